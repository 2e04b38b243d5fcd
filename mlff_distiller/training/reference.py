"""Where training starts: reference energies per element and the scale of the readout."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mlff_distiller.data import Batch, Structure
from mlff_distiller.data.structure import is_isolated
from mlff_distiller.elements import symbol
from mlff_distiller.errors import InputError
from mlff_distiller.ops import edge_vectors
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.repulsion import PairRepulsion

logger = logging.getLogger(__name__)

# The readout starts with forces this much smaller than the labels: a random guess of their size
# would add its own error to the first steps.
_INITIAL_FORCE_FRACTION = 0.1
# Compositions that are counted before they are reduced.
_COMPOSITIONS = 1024
# eV; a reference energy that scatter alone leaves more uncertain than this says nothing.
_UNCERTAIN = 1.0
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
    fit = ReferenceFit()
    known = {int(z) for z in elements}
    for i, s in enumerate(structures):
        if s.energy is None:
            continue
        unknown = set(s.atomic_numbers.tolist()) - known
        if unknown:
            raise InputError(
                f"reference energies: structure {i} ({s.formula}) holds Z={min(unknown)}, expected "
                f"only {sorted(known)}; add the element"
            )
        fit.add(s.atomic_numbers, s.energy - (0.0 if repulsion is None else float(repulsion[i])))
    return fit.solve(elements, isolated)


class ReferenceFit:
    """Least squares of energies by composition, over frames that are taken in one by one.

    Equal compositions are counted, and what was counted is reduced to a triangular factor now and
    then: memory does not grow with the number of frames, and the solution is that of all rows.
    """

    def __init__(self) -> None:
        # Atomic numbers -> row of the matrix, number of frames and mean of their targets.
        self._groups: dict[bytes, list[Any]] = {}
        self._elements: list[int] = []
        self._factor = np.zeros((0, 1))  # (k, elements + 1), the last column are targets
        self._within = 0.0
        self.num_energies = 0
        self._of_bound: dict[int, float] = {}  # of frames of several atoms: Σ of their rows
        self._bound = [0.0, 0.0]  # number, Σ of targets

    def add(self, atomic_numbers: np.ndarray, energy: float) -> None:
        """Take in a frame: its atomic numbers (n,) and its energy without repulsion, eV."""
        target = energy / len(atomic_numbers)
        key = atomic_numbers.tobytes()
        if key not in self._groups:
            if len(self._groups) >= _COMPOSITIONS:
                self._reduce()
            numbers, counts = np.unique(atomic_numbers, return_counts=True)
            shares = (counts / len(atomic_numbers)).tolist()
            self._groups[key] = [dict(zip(numbers.tolist(), shares, strict=True)), 0, 0.0]
        group = self._groups[key]
        group[1] += 1
        step = target - group[2]
        group[2] += step / group[1]
        self._within += step * (target - group[2])
        self.num_energies += 1
        if len(atomic_numbers) > 1:
            self._bound[0] += 1
            self._bound[1] += target
            for z, share in group[0].items():
                self._of_bound[z] = self._of_bound.get(z, 0.0) + share

    def _reduce(self) -> None:
        """Put the counted compositions into the triangular factor."""
        found = {z for row, *_ in self._groups.values() for z in row} | set(self._elements)
        elements = sorted(found)
        column = {z: k for k, z in enumerate(elements)}
        rows = np.zeros((len(self._groups), len(elements) + 1))
        for line, (row, number, mean) in zip(rows, self._groups.values(), strict=True):
            root = np.sqrt(number)
            line[[column[z] for z in row]] = root * np.array(list(row.values()))
            line[-1] = root * mean
        old = np.zeros((len(self._factor), len(elements) + 1))
        old[:, [*(column[z] for z in self._elements), -1]] = self._factor
        together = np.concatenate([old, rows])
        # The factor of few rows is larger than they are.
        few = len(together) <= len(elements) + 1
        self._factor = together if few else np.asarray(np.linalg.qr(together, mode="r"))
        self._elements, self._groups = elements, {}

    def state(self) -> dict[str, Any]:
        """As plain JSON, numbers exactly."""
        self._reduce()
        return {
            "elements": self._elements,
            "factor": self._factor.tolist(),
            "within": self._within,
            "num_energies": self.num_energies,
            "of_bound": list(self._of_bound.items()),
            "bound": self._bound,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ReferenceFit:
        """From :meth:`state`."""
        fit = cls()
        fit._elements = list(state["elements"])
        fit._factor = np.array(state["factor"]).reshape(-1, len(fit._elements) + 1)
        fit._within, fit.num_energies = state["within"], state["num_energies"]
        fit._of_bound = {int(z): share for z, share in state["of_bound"]}
        fit._bound = list(state["bound"])
        return fit

    def solve(
        self, elements: Sequence[int], isolated: Mapping[int, float] | None = None
    ) -> np.ndarray:
        """Reference energies, see :func:`fit_reference_energies`."""
        if not self.num_energies:
            raise InputError(
                "reference energies need structures with an energy, got none; label them, or set "
                "training.reference_energies to none"
            )
        self._reduce()
        given = {int(z): e for z, e in (isolated or {}).items()}
        energies = {z: given.get(z, 0.0) for z in (int(z) for z in elements)}
        free = [z for z in self._elements if z not in given]
        matrix, target = self._factor[:, :-1], self._factor[:, -1]
        rest = target - matrix @ np.array([given.get(z, 0.0) for z in self._elements])
        columns = matrix[:, [self._elements.index(z) for z in free]]
        found, rank = _smallest_norm(columns, rest, self._within, self.num_energies)
        energies.update(zip(free, found.tolist(), strict=True))
        rms = np.sqrt((np.sum((columns @ found - rest) ** 2) + self._within) / self.num_energies)
        logger.info(
            "reference energies, eV: %s; %.4g meV/atom remain%s",
            ", ".join(f"Z={z}: {e:.6f}" for z, e in energies.items()),
            1e3 * rms,
            "" if rank == len(free) else f" (rank {rank} of {len(free)}: smallest norm)",
        )
        return np.array([energies[int(z)] for z in elements], dtype=np.float64)

    def undetermined(self) -> list[int]:
        """Elements whose energy the compositions leave open, or to chance: see :func:`solve`.

        Any choice describes the frames as well; but energies of other compositions, and of atoms
        that leave, are then arbitrary. Isolated atoms among the frames settle theirs.
        """
        self._reduce()
        matrix, target = self._factor[:, :-1], self._factor[:, -1]
        if not len(matrix) or not self._elements:
            return []
        _, values, vectors = np.linalg.svd(matrix, full_matrices=True)
        kept = _significant(matrix, target, self._within, self.num_energies)
        unseen = np.concatenate([vectors[len(values) :], vectors[: len(values)][~kept]])
        shares = np.abs(unseen).max(axis=0, initial=0)
        return [z for z, share in zip(self._elements, shares, strict=True) if share > 1e-9]

    def binding(self, elements: Sequence[int], energies: np.ndarray) -> float:
        """Mean of what ``energies`` of ``elements`` leave of frames of several atoms, eV/atom."""
        of = dict(zip((int(z) for z in elements), np.asarray(energies).tolist(), strict=True))
        number, total = self._bound
        if not number:
            return 0.0
        return float((total - sum(n * of[z] for z, n in self._of_bound.items())) / number)


def _significant(matrix: np.ndarray, target: np.ndarray, within: float, number: int) -> np.ndarray:
    """Which singular directions of a fit mean something, (min(matrix.shape),) bool.

    Below 1e-9 they are rounding: compositions are ratios of small integers. Others may be noise:
    of compositions that hardly differ (a vacancy in a thousand atoms), the scatter of the energies
    becomes many eV of reference energy. Such a direction is left out unless it stands out of its
    own standard error.
    """
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    kept = values > 1e-9 * values.max(initial=0.0)
    parts = left.T @ target
    misfit = within + max(0.0, float(target @ target - parts[kept] @ parts[kept]))
    scatter = np.sqrt(misfit / max(1, number - int(kept.sum())))
    errors = scatter / np.where(kept, values, 1.0)
    noise = (errors > _UNCERTAIN) & (np.abs(parts) < 3.0 * scatter)
    return np.asarray(kept & ~noise)


def _smallest_norm(
    matrix: np.ndarray, target: np.ndarray, within: float, number: int
) -> tuple[np.ndarray, int]:
    """Solution of smallest norm in the significant directions, and their number."""
    if not matrix.shape[1]:
        return np.zeros(0), 0
    kept = _significant(matrix, target, within, number)
    left, values, vectors = np.linalg.svd(matrix, full_matrices=False)
    parts = np.where(kept, left.T @ target / np.where(kept, values, 1.0), 0.0)
    return vectors.T @ parts, int(kept.sum())


def isolated_energies(structures: Sequence[Structure]) -> dict[int, float]:
    """Energies of the isolated atoms that are marked as such (``config_type=IsolatedAtom``), eV.

    Of several for one element the lowest is taken; ions are left out.

    Returns:
        atomic number -> energy.
    """
    energies: dict[int, float] = {}
    for s in structures:
        note_isolated(energies, s)
    return energies


def note_isolated(energies: dict[int, float], s: Structure) -> None:
    """Take one structure into ``energies`` of :func:`isolated_energies`."""
    if s.energy is None or not is_isolated(s.atomic_numbers, s.info) or s.info.get("charge"):
        return
    z = int(s.atomic_numbers[0])
    energies[z] = min(s.energy, energies.get(z, s.energy))


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


def vectors_of(batch: Batch) -> torch.Tensor:
    """Edge vectors of a batch, (n_edges, 3), Å."""
    return edge_vectors(
        batch.positions, batch.cell, batch.edge_index, batch.shifts, batch.structure_index
    )


def repulsion_of(
    repulsion: PairRepulsion, species: torch.Tensor, batch: Batch, vectors: torch.Tensor
) -> np.ndarray:
    """Repulsion energy of each structure of a batch, (B,), eV."""
    atoms = repulsion(species, batch.edge_index, vectors.to(repulsion.range.dtype))
    sums = atoms.new_zeros(batch.num_structures).index_add(0, batch.structure_index, atoms)
    return np.asarray(sums.cpu().numpy(), dtype=np.float64)


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
