"""Which labels of a file are taken: one set for all frames, never parts of two.

Sets (names.py) are ranked: reference labels (``REF_``), first-principles methods (``DFT_``,
``pbe_``), plain names (``energy``), anything else (``mace_``, ``lj_``). The first that holds an
energy is taken, whole, and a line says what was passed over. Where that would be a guess, nothing
is taken: two sets of one rank, or an energy whose forces lie in another set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from mlff_distiller.data.read.frame import ReadOptions, listed
from mlff_distiller.data.read.names import RANK_PLAIN, LabelName, parse_name, rank
from mlff_distiller.errors import InputError

_MISSING_WORDS = {"", "none", "null", "na", "n/a", "missing"}


@dataclass
class Choice:
    """What is taken for each quantity.

    Attributes:
        taken: energy, forces, gradient, stress, virial -> names in order of preference.
        notes: lines for the user.
        doubt: why nothing was taken, with the remedy; empty when the choice is clear.
    """

    taken: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubt: str = ""

    def names(self) -> list[str]:
        """All names that are taken."""
        return [name for names in self.taken.values() for name in names]


def split_labels(
    config: dict[str, Any], per_atom: dict[str, Any], num_atoms: int, options: ReadOptions
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Separate what could be a label.

    Args:
        config: values of the whole frame.
        per_atom: values with a row for each atom.
        num_atoms: of the frame.
        options: names given by the user are labels whatever they look like.

    Returns:
        labels, the other values of ``config``, and names in ``per_atom`` with rows of three real
        numbers that are no label.
    """
    keys = options.keys()
    labels, rest = {}, {}
    for name, value in config.items():
        known = [q for q, key in keys.items() if key == name]
        parsed = parse_name(name)
        quantity = known[0] if known else parsed.quantity if parsed else ""
        if quantity and (known or _fits(quantity, value, num_atoms)):
            labels[name] = value
        else:
            rest[name] = value
    unnamed = []
    for name, value in per_atom.items():
        parsed = parse_name(name)
        vectors = np.shape(value) == (num_atoms, 3) and np.asarray(value).dtype.kind == "f"
        if keys.get("forces") == name or (
            vectors and parsed and parsed.quantity in ("forces", "gradient")
        ):
            labels[name] = value
        elif vectors and name not in _KNOWN_VECTORS:
            unnamed.append(name)
    return labels, rest, tuple(unnamed)


_KNOWN_VECTORS = {"momenta", "velo", "vel", "velocities", "initial_magmoms", "magmoms", "magmom"}


def misfits(
    rest: dict[str, Any], per_atom: dict[str, Any], labels: dict[str, Any]
) -> dict[str, str]:
    """Values under the name of a label that cannot be one, as text.

    Args:
        rest: values of the frame that are no label.
        per_atom: all columns.
        labels: what was taken for labels.
    """
    found = {}
    for name, value in rest.items():
        if parse_name(name) is not None and np.size(value) < _MANY:
            found[name] = f"{value!s:.40}".replace("\n", " ")
    for name, value in per_atom.items():
        parsed = parse_name(name)
        if name not in labels and parsed and parsed.quantity in ("forces", "gradient"):
            found[name] = f"columns of shape {np.shape(value)}"
    return found


_MANY = 100


def labels_of_atoms(
    atoms: Atoms, options: ReadOptions
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Like :func:`split_labels`, for ASE atoms; computes nothing."""
    config = dict(atoms.info)
    arrays = {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
    if atoms.calc is not None:
        for key in ("energy", "free_energy", "forces", "stress"):
            try:
                value = atoms.calc.get_property(key, atoms, allow_calculation=False)
            except (PropertyNotImplementedError, NotImplementedError, KeyError):
                continue
            if value is not None:
                (arrays if key == "forces" else config)[key] = value
    return split_labels(config, arrays, len(atoms), options)


def number(value: Any) -> float | None:
    """A label as a number: arrays of one, text with Fortran exponents; None for ``None``.

    Raises:
        ValueError: anything else.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING_WORDS):
        return None
    if isinstance(value, str):
        return float(value.strip().replace("D", "E").replace("d", "e"))
    if isinstance(value, (bool, np.bool_)) or np.size(value) != 1:
        raise ValueError("not one number")
    return float(np.asarray(value, dtype=np.float64).reshape(-1)[0])


def choose(found: Sequence[dict[str, Any]], options: ReadOptions) -> Choice:
    """Decide for a file.

    Args:
        found: labels of each frame.
        options: names given by the user come first.

    Raises:
        InputError: a name given by the user that no frame has.
    """
    counts: Counter[str] = Counter()
    for labels in found:
        counts.update(name for name, value in labels.items() if not _is_missing(value))
    given = options.keys()
    for quantity, name in given.items():
        if name not in counts:
            raise InputError(
                f"--{quantity}-key {name}: no frame has a label of that name, got "
                f"{listed(sorted(counts)) or 'no labels at all'}; use one of these"
            )
    groups = _groups(counts)
    if given:
        return _as_told(given, groups, options)
    with_energy = {g: q for g, q in groups.items() if _has_energy(q)}
    ordered = sorted(with_energy or groups, key=rank)
    if not ordered:
        return Choice()
    best = [g for g in ordered if rank(g) == rank(ordered[0])]
    if len(best) > 1:
        return Choice(doubt=_several(best, groups))
    group = best[0]
    mine = groups[group]
    elsewhere = {
        g: names
        for g, q in groups.items()
        if g not in with_energy and (names := q.get("forces", []) + q.get("gradient", []))
    }
    if with_energy and elsewhere and not (mine.get("forces") or mine.get("gradient")):
        energy, forces = _energies(mine)[0], next(iter(elsewhere.values()))[0]
        return Choice(
            doubt=f"the energy is called {energy} and the forces {forces}, which are names of two "
            f"sets of labels; if they belong together, add --energy-key {energy} "
            f"--forces-key {forces}"
        )
    choice = Choice(_order(mine, found))
    _note_free_energy(choice, found)
    if with_energy and not (mine.get("forces") or mine.get("gradient")):
        # Another set has both: its forces are not the slope of this energy.
        whole = [g for g in ordered if groups[g].get("forces") or groups[g].get("gradient")]
        if whole:
            theirs = _energies(groups[whole[0]])[0]
            choice.notes.append(
                f"{_energies(mine)[0]} comes without forces, and those of {theirs} do not belong to "
                f"it: energies alone are taken (for the set with forces, say --energy-key {theirs})"
            )
    left = [n for g, q in groups.items() if g != group for names in q.values() for n in names]
    if left:
        why = _because(group, groups)
        choice.notes.append(
            f"labels taken: {listed(choice.names())}{why}; left: {listed(left)}, of another set "
            "(to use a name, say --energy-key, --forces-key, --stress-key or --virial-key)"
        )
    return choice


def _groups(counts: Counter[str]) -> dict[str, dict[str, list[str]]]:
    """Set -> quantity -> names, the plainest name first."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name in sorted(counts, key=lambda n: (n != n.lower(), len(n), n)):
        parsed = parse_name(name) or LabelName(name, "")
        if parsed.quantity:
            groups.setdefault(parsed.group, {}).setdefault(parsed.quantity, []).append(name)
    return groups


def _as_told(
    given: dict[str, str], groups: dict[str, dict[str, list[str]]], options: ReadOptions
) -> Choice:
    taken: dict[str, tuple[str, ...]] = {q: (name,) for q, name in given.items()}
    sets = {p.group for name in given.values() if (p := parse_name(name))}
    notes = []
    if len(sets) == 1:
        mine = groups.get(next(iter(sets)), {})
        for quantity in ("energy", "forces", "gradient", "stress", "virial"):
            told = {"gradient": "forces", "virial": "stress", "stress": "virial"}
            if quantity in mine and quantity not in taken and told.get(quantity) not in taken:
                taken[quantity] = tuple(mine[quantity])
    names = {n for group in taken.values() for n in group}
    left = [n for q in groups.values() for ns in q.values() for n in ns if n not in names]
    if left:
        notes.append(f"labels taken: {listed(sorted(names))}, as told; left: {listed(left)}")
    return Choice(taken, notes)


def _order(mine: dict[str, list[str]], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    taken: dict[str, tuple[str, ...]] = {}
    energies = list(mine.get("energy", []))
    free = mine.get("free_energy", [])
    if free and (mine.get("forces") or mine.get("gradient")):
        energies = free + energies  # forces are the slope of the free energy
    elif not energies:
        energies = free
    if energies:
        taken["energy"] = tuple(energies)
    for quantity in ("forces", "gradient", "stress", "virial"):
        if mine.get(quantity):
            taken[quantity] = tuple(mine[quantity])
    return taken


def _note_free_energy(choice: Choice, found: Sequence[dict[str, Any]]) -> None:
    names = choice.taken.get("energy", ())
    if len(names) < 2:
        return
    first, others = names[0], names[1:]
    pairs = []
    for labels in found:
        values = [number(labels[n]) for n in names if n in labels and not _is_missing(labels[n])]
        pairs += [abs(v - values[0]) for v in values[1:] if v is not None and values[0] is not None]
    lacking = sum(first not in labels and any(o in labels for o in others) for labels in found)
    largest = max(pairs, default=0.0)
    if largest > 1e-6 or (lacking and parse_name(first).quantity == "free_energy"):  # type: ignore[union-attr]
        reason = ""
        if (parsed := parse_name(first)) and parsed.quantity == "free_energy":
            reason = ", which the forces belong to"
        text = f"energy taken from {first}{reason}; {listed(others)} differs by up to "
        text += f"{largest:.4g}, left (to use it, say --energy-key {others[0]})"
        if lacking:
            text += f"; {lacking} frames without {first} keep {listed(others)}"
        choice.notes.append(text)


def _several(best: list[str], groups: dict[str, dict[str, list[str]]]) -> str:
    sets = [listed([n for ns in groups[g].values() for n in ns]) for g in best]
    energy = _energies(groups[best[0]]) or next(iter(groups[best[0]].values()))
    option = "--energy-key" if _has_energy(groups[best[0]]) else "--forces-key"
    return (
        f"{len(best)} sets of labels were found ({'; '.join(sets)}); say which to take, for "
        f"instance {option} {energy[0]}"
    )


def _because(group: str, groups: dict[str, dict[str, list[str]]]) -> str:
    others = [g for g in groups if g != group]
    if rank(group) < RANK_PLAIN and any(rank(g) > rank(group) for g in others):
        return " (reference labels come before those of a calculator)"
    return ""


def _energies(quantities: dict[str, list[str]]) -> list[str]:
    return quantities.get("energy", []) + quantities.get("free_energy", [])


def _has_energy(quantities: dict[str, list[str]]) -> bool:
    return bool(_energies(quantities))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _MISSING_WORDS)


def _fits(quantity: str, value: Any, num_atoms: int) -> bool:
    """Whether a value of a whole frame has the size of the quantity."""
    if _is_missing(value):
        return quantity in ("energy", "free_energy")
    if quantity in ("energy", "free_energy"):
        try:
            number(value)
        except (TypeError, ValueError):
            return False
        return True
    sizes = {"stress": (6, 9), "virial": (6, 9)}.get(quantity, (3 * num_atoms,))
    return np.size(value) in sizes and np.asarray(value).dtype.kind in "if"
