"""Where training starts: reference energies per element and the scale of the readout."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mlff_distiller.data import Batch, Structure, collate
from mlff_distiller.data.structure import is_isolated
from mlff_distiller.elements import symbol
from mlff_distiller.errors import InputError
from mlff_distiller.ops import edge_vectors
from mlff_distiller.students import StudentForceField

logger = logging.getLogger(__name__)

# The readout starts with forces this much smaller than the labels: a random guess of their size
# would add its own error to the first steps.
_INITIAL_FORCE_FRACTION = 0.1
# eV/atom; no substance is bound more strongly.
_STRONGEST = 12.0


def fit_reference_energies(
    structures: Sequence[Structure],
    elements: Sequence[int],
    repulsion: np.ndarray | None = None,
    isolated: Mapping[int, float] | None = None,
) -> np.ndarray:
    """Energy per atom of each element that explains most of the labels by composition alone.

    Least squares over ``Σ_z n_z E_z / n = E / n``, so that large structures count no more than
    small ones. Where compositions do not tell elements apart (one formula, one element missing),
    the solution of smallest norm is taken: any other would serve the network as well.

    Args:
        structures: with energy labels; others are ignored.
        elements: atomic numbers, ascending or not.
        repulsion: (len(structures),), eV; subtracted from the labels beforehand.
        isolated: atomic number -> energy of the isolated atom, eV; kept as it is, and only the
            other elements are fitted.

    Returns:
        (len(elements),) float64, eV, in the order of ``elements``.

    Raises:
        InputError: no energy labels, or an element outside of ``elements``.
    """
    column = {int(z): k for k, z in enumerate(elements)}
    rows, targets = [], []
    for i, s in enumerate(structures):
        if s.energy is None:
            continue
        row = np.zeros(len(column))
        for z, count in zip(*np.unique(s.atomic_numbers, return_counts=True), strict=True):
            if int(z) not in column:
                raise InputError(
                    f"reference energies: structure {i} ({s.formula}) holds Z={z}, expected only "
                    f"{sorted(column)}; add the element"
                )
            row[column[int(z)]] = count / len(s)
        rows.append(row)
        extra = 0.0 if repulsion is None else float(repulsion[i])
        targets.append((s.energy - extra) / len(s))
    if not rows:
        raise InputError(
            "reference energies need structures with an energy, got none; label them, or set "
            "training.reference_energies to none"
        )
    matrix, target = np.array(rows), np.array(targets)
    known = np.array([int(z) in (isolated or {}) for z in elements], dtype=bool)
    energies = np.array([(isolated or {}).get(int(z), 0.0) for z in elements])
    # Compositions are ratios of small integers: singular values below 1e-9 are rounding.
    energies[~known], _, rank, _ = np.linalg.lstsq(
        matrix[:, ~known], target - matrix @ energies, rcond=1e-9
    )
    rank += known.sum()
    rms = float(np.sqrt(np.mean((matrix @ energies - target) ** 2)))
    logger.info(
        "reference energies, eV: %s; %.4g meV/atom remain%s",
        ", ".join(f"Z={z}: {e:.6f}" for z, e in zip(elements, energies, strict=True)),
        1e3 * rms,
        "" if rank == len(column) else f" (rank {rank} of {len(column)}: smallest norm)",
    )
    return np.asarray(energies, dtype=np.float64)


def undetermined_elements(structures: Sequence[Structure]) -> list[int]:
    """Elements whose reference energy the compositions leave open, as in frames of one compound.

    Any choice describes the training frames as well; but energies of other compositions, and of
    atoms that leave, are then arbitrary. Isolated atoms among the structures settle theirs.
    """
    labelled = [s for s in structures if s.energy is not None]
    elements = sorted({int(z) for s in labelled for z in s.atomic_numbers})
    counts = {s.atomic_numbers.tobytes(): s.atomic_numbers for s in labelled}.values()
    rows = [[np.count_nonzero(numbers == z) / len(numbers) for z in elements] for numbers in counts]
    if not rows:
        return []
    # What no composition sees: an element is settled if all of that is zero for it.
    _, values, vectors = np.linalg.svd(np.array(rows), full_matrices=True)
    unseen = vectors[np.count_nonzero(values > 1e-9 * values[0]) :]
    return [z for z, v in zip(elements, unseen.T, strict=True) if np.abs(v).max(initial=0) > 1e-9]


def isolated_energies(structures: Sequence[Structure]) -> dict[int, float]:
    """Energies of the isolated atoms that are marked as such (``config_type=IsolatedAtom``), eV.

    Of several for one element the lowest is taken; ions are left out.

    Returns:
        atomic number -> energy.
    """
    energies: dict[int, float] = {}
    for s in structures:
        if s.energy is None or not is_isolated(s.atomic_numbers, s.info) or s.info.get("charge"):
            continue
        z = int(s.atomic_numbers[0])
        energies[z] = min(s.energy, energies.get(z, s.energy))
    return energies


def doubt_isolated_atoms(structures: Sequence[Structure]) -> str:
    """Why the energies of marked isolated atoms cannot be those of free atoms; empty if they can.

    Foundation models trained on bulk alone give lone atoms any energy. With those of free atoms
    every structure is bound, by less than any substance is known to be (the atoms of tungsten by
    8.9 eV, those of CO by 5.6).
    """
    isolated = isolated_energies(structures)
    bindings = [
        (s.energy - sum(isolated[int(z)] for z in s.atomic_numbers)) / len(s)
        for s in structures
        if s.energy is not None and len(s) > 1 and set(s.atomic_numbers.tolist()) <= set(isolated)
    ]
    if not bindings or -_STRONGEST < min(bindings) < 0.0:
        return ""
    found = ", ".join(f"{symbol(z)} {energy:.2f} eV" for z, energy in sorted(isolated.items()))
    return (
        f"the teacher's lone atoms ({found}) are no free atoms: the best bound structure would have "
        f"{min(bindings):.2f} eV per atom; reference energies are fitted instead"
    )


def mean_binding(
    structures: Sequence[Structure],
    elements: Sequence[int],
    energies: np.ndarray,
    repulsion: np.ndarray,
) -> float:
    """Mean of what reference energies and repulsion leave of the labels, isolated atoms aside.

    Args:
        structures: those without an energy do not count.
        elements: atomic numbers of ``energies``.
        energies: (len(elements),), eV.
        repulsion: (len(structures),), eV.

    Returns:
        eV/atom; 0 if there is nothing to average.
    """
    of = dict(zip((int(z) for z in elements), energies.tolist(), strict=True))
    rest = [
        (s.energy - repulsion[i] - sum(of[int(z)] for z in s.atomic_numbers)) / len(s)
        for i, s in enumerate(structures)
        if s.energy is not None and len(s) > 1
    ]
    return float(np.mean(rest)) if rest else 0.0


def repulsion_energies(student: StudentForceField, structures: Sequence[Structure]) -> np.ndarray:
    """ZBL energy of each structure, (len(structures),), eV; zeros if the student has none."""
    energies = np.zeros(len(structures))
    if student.repulsion is None:
        return energies
    parameter = student.reference_energies
    for i, structure in enumerate(structures):
        batch = collate([structure], student.cutoff, torch.float64).to(parameter.device)
        vectors = edge_vectors(
            batch.positions, batch.cell, batch.edge_index, batch.shifts, batch.structure_index
        ).to(student.repulsion.range.dtype)
        species = student.species(batch.atomic_numbers)
        energies[i] = float(student.repulsion(species, batch.edge_index, vectors).sum())
    return energies


def scale_readout(student: StudentForceField, batch: Batch, mean: float = 0.0) -> None:
    """Scale and shift the last layer so that training starts near the labels.

    Random weights give energies and forces of an arbitrary size. Afterwards the forces of the
    network are a tenth of the labels' in root mean square, and its mean energy is ``mean``.

    Args:
        student: fresh; changed in place.
        batch: some training structures; without forces nothing is changed.
        mean: eV/atom, what the network has to explain on average.
    """
    readout = student.painn.readout[-1]
    if not isinstance(readout, torch.nn.Linear):  # for the type checker
        raise TypeError("the readout must end in a linear layer")
    rows = batch.has_forces[batch.structure_index]
    repulsion, student.repulsion = student.repulsion, None
    try:
        result = student.compute(batch, stress=False)
    finally:
        student.repulsion = repulsion
    found = float(result["forces"][rows].square().mean().sqrt()) if bool(rows.any()) else 0.0
    wanted = float(batch.forces[rows].square().mean().sqrt()) if bool(rows.any()) else 0.0
    factor = _INITIAL_FORCE_FRACTION * wanted / found if found > 0 and wanted > 0 else 1.0
    species = student.species(batch.atomic_numbers)
    network = (result["energies"] - student.reference_energies[species]).mean()
    with torch.no_grad():
        readout.weight.mul_(factor)
        readout.bias.copy_(mean - factor * network.to(readout.bias.dtype).reshape(1))
