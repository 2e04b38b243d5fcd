"""What a set of structures holds, and what looks wrong in it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mlff_distiller.data.read.frame import listed
from mlff_distiller.data.structure import (
    Structure,
    check_structure,
    complete_cell,
    is_isolated,
)
from mlff_distiller.errors import InputError
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

# Beyond these nothing is meant to be.
_CLOSE = 0.3  # Å
_LARGE_FORCE = 1000.0  # eV/Å
_LARGE_STRESS = 100.0  # GPa
# A first cutoff for the closest pair, Å; doubled while there is none.
_FIRST_CUTOFF, _LAST_CUTOFF = 1.6, 13.0
# Energies of one formula, or beyond its offsets per element, apart by more than that much are two.
_GAP_SAME_FORMULA, _GAP_ALL = 0.5, 15.0  # eV/atom
_FEW = 20.0  # times that for one or two structures
_CHARGES = ("charge", "total_charge", "tot_charge")
_SPINS = ("spin", "multiplicity", "spin_multiplicity", "total_spin")
_STATES = {*_CHARGES, *_SPINS}


@dataclass
class Survey:
    """Numbers of labels, their ranges and what looks wrong.

    Attributes:
        counts: energy, forces, stress -> number of structures.
        num_structures: in all.
        energy_per_atom: smallest and largest, eV, or None.
        max_force: eV/Å, or None.
        max_stress: largest component, GPa, or None.
        closest: distance (Å), structure and the two atoms of the closest pair, or None.
        bad: index -> why the structure cannot be used or makes no sense.
        duplicates: index -> earlier index of the same geometry with the same labels.
        warnings: one line each.
    """

    counts: dict[str, int]
    num_structures: int
    energy_per_atom: tuple[float, float] | None = None
    max_force: float | None = None
    max_stress: float | None = None
    closest: tuple[float, int, int, int] | None = None
    bad: dict[int, str] = field(default_factory=dict)
    duplicates: dict[int, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def rows(self) -> dict[str, str]:
        """Label -> text, for tables."""
        of = f"of {self.num_structures} structures"
        rows = {name: f"{self.counts[name]} {of}" for name in ("energy", "forces", "stress")}
        if self.energy_per_atom is not None:
            low, high = self.energy_per_atom
            rows["energy"] += f", {low:.4f} .. {high:.4f} eV/atom"
        if self.max_force is not None:
            rows["forces"] += f", |F| up to {self.max_force:.3g} eV/Å"
        if self.max_stress is not None:
            rows["stress"] += f", |σ| up to {self.max_stress:.3g} GPa"
        if self.closest is not None:
            distance, frame, i, j = self.closest
            rows["closest pair"] = f"{distance:.3f} Å (structure {frame}, atoms {i} and {j})"
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "labels": self.counts,
            "energy_per_atom_ev": self.energy_per_atom,
            "max_force_ev_per_ang": self.max_force,
            "max_stress_gpa": self.max_stress,
            "closest_pair_ang": None if self.closest is None else self.closest[0],
            "bad": {str(k): v for k, v in self.bad.items()},
            "duplicates": {str(k): v for k, v in self.duplicates.items()},
            "warnings": self.warnings,
        }


def survey(structures: Sequence[Structure]) -> Survey:
    """Look at all structures, valid or not.

    Args:
        structures: in order; their indices appear in the result.
    """
    names = ("energy", "forces", "stress")
    counts = {n: sum(getattr(s, n) is not None for s in structures) for n in names}
    result = Survey(counts, len(structures))
    for i, s in enumerate(structures):
        if reason := _invalid(s):
            result.bad[i] = reason
    good = [i for i in range(len(structures)) if i not in result.bad]
    _ranges(result, structures, good)
    _distances(result, structures, good)
    _outliers(result, structures, good)
    _repeated(result, structures, good)
    _warn(result, structures, good)
    return result


def charge_and_spin(structures: Sequence[Structure]) -> str:
    """One line with counts if charge or spin have several values; else empty.

    A student sees neither. Isolated atoms are left out: their spins differ by nature.
    """
    states = States()
    for s in structures:
        states.add(s)
    return states.warning()


class States:
    """Charges and spins of structures that are taken in one by one.

    Attributes:
        values: key of ``info`` -> value -> number of structures.
    """

    def __init__(self, values: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.values: dict[str, Counter[str]] = defaultdict(Counter)
        self.values.update({key: Counter(counts) for key, counts in (values or {}).items()})

    def add(self, s: Structure) -> None:
        """Take in one structure."""
        if _STATES.isdisjoint(s.info) or is_isolated(s.atomic_numbers, s.info):
            return
        for key in _STATES:
            if key in s.info:
                v = s.info[key]
                self.values[key][f"{float(v):g}" if isinstance(v, (int, float)) else str(v)] += 1

    def warning(self) -> str:
        """See :func:`charge_and_spin`."""
        parts = []
        for what, keys in (("charge", _CHARGES), ("spin", _SPINS)):
            for key in keys:
                values = self.values.get(key) or Counter()
                if len(values) > 1:
                    counts = listed(f"{v} in {n}" for v, n in sorted(values.items()))
                    parts.append(f"{what} ({key}) is {counts}")
                    break
        if not parts:
            return ""
        return (
            f"several states of charge or spin: {'; '.join(parts)} structures; the student does "
            "not see them and would learn their mean: keep one in a file"
        )


def _invalid(structure: Structure) -> str:
    try:
        check_structure(structure, "it")
    except InputError as error:
        return str(error).removeprefix("it: ").partition(";")[0]
    return ""


def _ranges(result: Survey, structures: Sequence[Structure], good: list[int]) -> None:
    per_atom = [s.energy / len(s) for i in good if (s := structures[i]).energy is not None]
    if per_atom:
        result.energy_per_atom = (min(per_atom), max(per_atom))
    for i in good:
        s = structures[i]
        if s.forces is not None:
            force = float(np.linalg.norm(s.forces, axis=1).max())
            result.max_force = max(result.max_force or 0.0, force)
            if force > _LARGE_FORCE:
                result.bad[i] = f"a force of {force:.3g} eV/Å"
        if s.stress is not None:
            stress = float(np.abs(s.stress).max()) * EV_PER_ANGSTROM3_IN_GPA
            result.max_stress = max(result.max_stress or 0.0, stress)


def _distances(result: Survey, structures: Sequence[Structure], good: list[int]) -> None:
    cutoff = _FIRST_CUTOFF
    while cutoff < _LAST_CUTOFF:
        for i in good:
            near = min(cutoff, result.closest[0]) if result.closest else cutoff
            pair = _closest(structures[i], max(near, _CLOSE))
            if pair is None:
                continue
            if pair[0] < _CLOSE:
                at_one_point = "at one point" if pair[0] < 1e-3 else f"{pair[0]:.3g} Å apart"
                result.bad[i] = f"atoms {pair[1]} and {pair[2]} are {at_one_point}"
            if result.closest is None or pair[0] < result.closest[0]:
                result.closest = (pair[0], i, pair[1], pair[2])
        if result.closest is not None:
            return
        cutoff *= 2.0


def _closest(structure: Structure, cutoff: float) -> tuple[float, int, int] | None:
    from mlff_distiller.ops import neighbor_list

    edges, shifts = neighbor_list(
        torch.from_numpy(structure.positions),
        torch.from_numpy(complete_cell(structure.cell)),
        torch.from_numpy(structure.pbc),
        cutoff,
    )
    if edges.shape[1] == 0:
        return None
    i, j = edges.numpy()
    vectors = structure.positions[i] - structure.positions[j] + shifts.numpy() @ structure.cell
    distances = np.linalg.norm(vectors, axis=1)
    k = int(distances.argmin())
    return float(distances[k]), int(min(i[k], j[k])), int(max(i[k], j[k]))


def _outliers(result: Survey, structures: Sequence[Structure], good: list[int]) -> None:
    """Energies that no offset per element explains."""
    chosen = [i for i in good if structures[i].energy is not None and len(structures[i]) > 1]
    if len(chosen) < 4:
        return
    values = np.array([structures[i].energy / len(structures[i]) for i in chosen])  # type: ignore[operator]
    by_formula: dict[str, list[int]] = defaultdict(list)
    for k, i in enumerate(chosen):
        by_formula[structures[i].formula].append(k)
    for formula, members in by_formula.items():
        if (split := _two_levels(values[members], _GAP_SAME_FORMULA)) is None:
            continue
        gap, few = split
        frames = [chosen[members[k]] for k in few]
        result.warnings.append(
            f"energies of {formula} fall into two groups {gap:.3g} eV/atom apart; structures "
            f"{listed(frames)} are the smaller one: two levels of theory, two states of charge or "
            "wrong labels"
        )
        return
    elements = sorted({int(z) for i in chosen for z in structures[i].atomic_numbers})
    rows = np.array(
        [[np.mean(structures[i].atomic_numbers == z) for z in elements] for i in chosen]
    )
    rest = values - rows @ np.linalg.lstsq(rows, values, rcond=1e-9)[0]
    if (split := _two_levels(rest, _GAP_ALL)) is not None:
        frames = [chosen[k] for k in split[1]]
        result.warnings.append(
            f"energies that no offset per element explains: structures {listed(frames)} lie "
            f"{split[0]:.3g} eV/atom from the others: two levels of theory, states of charge or "
            "wrong labels"
        )


def _two_levels(values: np.ndarray, least: float) -> tuple[float, np.ndarray] | None:
    """Largest gap and the positions of the smaller side, if the gap is far wider than the sides."""
    if len(values) < 4:
        return None
    order = np.argsort(values)
    steps = np.diff(values[order])
    k = int(steps.argmax())
    low, high = order[: k + 1], order[k + 1 :]
    spread = max(float(np.std(values[low])), float(np.std(values[high])))
    few = min(len(low), len(high)) < 3  # one or two may be strained or broken, and right
    if steps[k] < least * (_FEW if few else 1.0) or steps[k] < 4.0 * spread:
        return None
    return float(steps[k]), np.sort(min(low, high, key=len))


def _repeated(result: Survey, structures: Sequence[Structure], good: list[int]) -> None:
    first: dict[bytes, int] = {}
    conflicts = []
    for i in good:
        s = structures[i]
        key = geometry_key(s)
        j = first.setdefault(key, i)
        if j == i:
            continue
        if _same_labels(s, structures[j]):
            result.duplicates[i] = j
        else:
            conflicts.append(f"{i} (like {j})")
    if conflicts:
        result.warnings.append(
            f"structures with the geometry of an earlier one and other labels: {listed(conflicts)}; "
            "keep one of each"
        )


def geometry_key(structure: Structure) -> bytes:
    """Equal for structures with the same atoms, cell (within 1e-6 Å), charge and spin."""
    digest = hashlib.sha256(structure.atomic_numbers.astype("<i8").tobytes())
    for array in (structure.positions, structure.cell):
        # + 0.0 makes -0.0 positive
        digest.update((np.round(array, 6) + 0.0).astype("<f8").tobytes())
    digest.update(structure.pbc.astype("u1").tobytes())
    states = [structure.info.get(key) for key in (*_CHARGES, *_SPINS)]
    digest.update(repr(states).encode())
    return digest.digest()


def _same_labels(a: Structure, b: Structure) -> bool:
    if a.energy is not None and b.energy is not None and abs(a.energy - b.energy) > 1e-5 * len(a):
        return False
    if a.forces is not None and b.forces is not None:
        return bool(np.abs(a.forces - b.forces).max() < 1e-3)
    return True


def _warn(result: Survey, structures: Sequence[Structure], good: list[int]) -> None:
    warnings = []
    if result.bad:
        shown = [f"{i} ({reason})" for i, reason in sorted(result.bad.items())]
        warnings.append(
            f"structures that make no sense: {listed(shown)}; 'convert --drop-bad' leaves them out"
        )
    if result.duplicates:
        shown = [f"{i} (of {j})" for i, j in result.duplicates.items()]
        warnings.append(f"duplicates: {listed(shown)}; 'convert --drop-bad' leaves them out")
    limit = _LARGE_STRESS / EV_PER_ANGSTROM3_IN_GPA
    high = [i for i in good if (t := structures[i].stress) is not None and np.abs(t).max() > limit]
    if high:
        warnings.append(
            f"stress above {_LARGE_STRESS:g} GPa in {len(high)} structures ({listed(high)}), up to "
            f"{result.max_stress:.3g} GPa; if the file is in kbar or GPa, say --units stress=kbar"
        )
    skew = {
        i: float(np.abs(t - t.T).max())
        for i in good
        if (t := structures[i].stress) is not None and not np.allclose(t, t.T, rtol=1e-2, atol=1e-4)
    }
    if skew:
        warnings.append(
            f"stress that is not symmetric in {len(skew)} structures ({listed(skew)}), by up to "
            f"{max(skew.values()) * EV_PER_ANGSTROM3_IN_GPA:.3g} GPa: a student's always is; look at "
            "the order of its numbers"
        )
    with_energy = [i for i in good if structures[i].energy is not None and len(structures[i]) > 1]
    lacking = [i for i in with_energy if structures[i].forces is None]
    if with_energy and len(lacking) > 0.5 * len(with_energy):
        which = "all" if len(lacking) == len(with_energy) else f"{len(lacking)}"
        warnings.append(
            f"no forces in {which} of {len(with_energy)} structures with an energy; training on "
            "energies alone needs far more of them: look whether the forces have another name "
            "(--forces-key)"
        )
    if result.counts["energy"] or result.counts["forces"]:
        bare = [i for i in good if structures[i].energy is None and structures[i].forces is None]
        if bare:
            warnings.append(f"no labels in {len(bare)} structures ({listed(bare)})")
    if states := charge_and_spin(structures):
        warnings.append(states)
    result.warnings = warnings + result.warnings
