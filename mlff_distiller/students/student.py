"""StudentForceField: PaiNN + reference energies + optional ZBL repulsion.

| quantity       | shape          | unit    | sign                                        |
|----------------|----------------|---------|---------------------------------------------|
| atomic_numbers | (n_atoms,)     |         |                                             |
| positions      | (n_atoms, 3)   | Å       |                                             |
| cell           | (3, 3)         | Å       | rows are lattice vectors                    |
| pbc            | (3,)           |         |                                             |
| edge_index     | (2, n_edges)   |         | senders, receivers                          |
| edge_vectors   | (n_edges, 3)   | Å       | r_sender - r_receiver + shift @ cell        |
| energy         | () or (B,)     | eV      |                                             |
| forces         | (n_atoms, 3)   | eV/Å    | -dE/dr                                      |
| stress         | (3, 3)         | eV/Å^3  | dE/dε / volume, positive under tension (ASE)|

Batches hold the atoms of B structures one after another, with ``structure_index`` (n_atoms,).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlff_distiller.config import ModelConfig
from mlff_distiller.elements import MAX_Z, symbols
from mlff_distiller.errors import InputError
from mlff_distiller.ops.neighbors import edge_vectors, neighbor_list
from mlff_distiller.ops.training import can_train, energies_and_gradients, pairs_of
from mlff_distiller.students.load import read_student
from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.radial import values_and_slopes
from mlff_distiller.students.repulsion import make_repulsion
from mlff_distiller.students.rigidity import LastLayerUncertainty
from mlff_distiller.students.stored import StoredStudent
from mlff_distiller.students.terms import EnergyTerms

if TYPE_CHECKING:
    from mlff_distiller.data import Batch


class StudentForceField(EnergyTerms):
    """The distilled potential.

    Args:
        config: the network.
        elements: atomic numbers that the student knows; only these can be evaluated.
        reference_energies: energy per atom of each element, eV, in the order of ``elements``;
            zero when left out. Kept in float64: totals of large systems need it.

    Raises:
        InputError: no elements, an element twice, or one outside 1..max_z.
    """

    def __init__(
        self,
        config: ModelConfig,
        elements: Sequence[int],
        reference_energies: Sequence[float] | None = None,
    ) -> None:
        elements = [int(z) for z in elements]
        _check_elements(elements, config.max_z)
        painn = PaiNN(len(elements), config)
        super().__init__(painn, make_repulsion(config, elements))
        self.config = config
        self.elements = elements
        self.cutoff = float(config.cutoff)
        species_of_z = torch.full((MAX_Z + 1,), -1, dtype=torch.int64)
        species_of_z[elements] = torch.arange(len(elements))
        self.register_buffer("species_of_z", species_of_z, persistent=False)
        energies = torch.zeros(len(elements), dtype=torch.float64)
        self.register_buffer("reference_energies", energies)
        if reference_energies is not None:
            self.set_reference_energies(reference_energies)

    def set_reference_energies(self, energies: Sequence[float]) -> None:
        """Set the energy per atom of each element, eV, in the order of ``elements``."""
        if len(energies) != len(self.elements):
            raise InputError(
                f"reference energies: expected {len(self.elements)} values, one for each of "
                f"{symbols(self.elements)}, got {len(energies)}"
            )
        self.reference_energies.copy_(torch.as_tensor(list(energies), dtype=torch.float64))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # `.to(float32)` must not round the reference energies.
        exact = self.reference_energies
        super()._apply(fn, recurse)
        self.reference_energies = exact.to(self.reference_energies.device)
        return self

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.parameters())

    def species(self, atomic_numbers: Tensor) -> Tensor:
        """Rows of the embedding, (n_atoms,). Raises InputError for an unknown element."""
        valid = (atomic_numbers >= 1) & (atomic_numbers <= MAX_Z)
        species = self.species_of_z[torch.where(valid, atomic_numbers, 0)]
        if not torch.compiler.is_compiling() and bool((species < 0).any()):
            unknown = sorted({int(z) for z in atomic_numbers[species < 0]})
            raise InputError(
                f"the model knows {symbols(self.elements)}, got {symbols(unknown)}; "
                "train with these elements in the data"
            )
        return species

    def atomic_energies(
        self, atomic_numbers: Tensor, edge_index: Tensor, edge_vectors: Tensor
    ) -> Tensor:
        """Energy of each atom, reference energies included.

        Args:
            atomic_numbers: (n_atoms,) int64.
            edge_index: (2, n_edges) int64.
            edge_vectors: (n_edges, 3), Å; edges at the cutoff and beyond contribute nothing.

        Returns:
            (n_atoms,) float64, eV.
        """
        return self.energies_of_species(self.species(atomic_numbers), edge_index, edge_vectors)

    def forward(
        self, atomic_numbers: Tensor, positions: Tensor, cell: Tensor, pbc: Tensor
    ) -> Tensor:
        """Energy of one structure, () float64 in eV, differentiable in positions and cell.

        Raises:
            InputError: wrong shape or dtype, NaN, unknown element, singular or left-handed
                periodic cell.
        """
        if atomic_numbers.shape != positions.shape[:1] or atomic_numbers.is_floating_point():
            raise InputError(
                "atomic_numbers must be integers, one for each row of positions, got "
                f"{atomic_numbers.dtype} {tuple(atomic_numbers.shape)} for positions "
                f"{tuple(positions.shape)}"
            )
        edge_index, shifts = neighbor_list(positions, cell, pbc, self.cutoff, backend="reference")
        vectors = edge_vectors(positions, cell, edge_index, shifts)
        return self.atomic_energies(atomic_numbers, edge_index, vectors).sum()

    def compute(
        self,
        batch: Batch,
        *,
        forces: bool = True,
        stress: bool = True,
        create_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Energies and their derivatives for a batch.

        Args:
            batch: structures with their neighbour lists.
            forces: compute forces.
            stress: compute the stress (zero rows for structures without a volume).
            create_graph: keep the graph, so that a loss on forces can be differentiated.

        Returns:
            ``energy`` (B,), ``energies`` (n_atoms,) and, when asked for, ``forces``
            (n_atoms, 3) and ``stress`` (B, 3, 3).
        """
        found = None
        if forces or stress:
            with torch.set_grad_enabled(create_graph):
                found = self._compute_pairs(batch)
        with torch.enable_grad():
            if found is not None:
                energies, edge_index, vectors, gradient = found
            else:
                edge_index = batch.edge_index
                vectors = edge_vectors(
                    batch.positions, batch.cell, edge_index, batch.shifts, batch.structure_index
                )
                if forces or stress:
                    vectors = vectors.detach().requires_grad_(True)
                energies = self.atomic_energies(batch.atomic_numbers, edge_index, vectors)
                if forces or stress:
                    (gradient,) = torch.autograd.grad(
                        [energies.sum()], [vectors], create_graph=create_graph
                    )
            energy = torch.zeros(
                batch.num_structures, dtype=energies.dtype, device=energies.device
            ).index_add(0, batch.structure_index, energies)
            result = {"energy": energy, "energies": energies}
            if forces:
                result["forces"] = _forces(batch, edge_index, gradient)
            if stress:
                result["stress"] = _stress(batch, edge_index, vectors.detach(), gradient)
        if not create_graph:
            result = {key: value.detach() for key, value in result.items()}
        return result

    def _compute_pairs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Energies and their gradients by the operators of training, where these can do it.

        Returns:
            Energies as :meth:`atomic_energies`, and the edges that stand for pairs of edges, which
            have opposite vectors: their edge_index, vectors and gradients.
        """
        if not can_train(self.painn, batch.positions.device.type):
            return None
        pairs = pairs_of(batch.edge_index, batch.shifts, batch.positions.shape[0])
        if pairs is None:
            return None
        chosen = pairs[-1]
        edge_index = batch.edge_index.index_select(1, chosen)
        vectors = edge_vectors(
            batch.positions,
            batch.cell,
            edge_index,
            batch.shifts.index_select(0, chosen),
            batch.structure_index,
        ).to(self.painn.embedding.weight.dtype)
        species = self.species(batch.atomic_numbers)
        radials = values_and_slopes(self.painn.bases, self.painn.cutoff_function, vectors)
        energies, gradient = energies_and_gradients(self.painn, species, pairs, vectors, radials)
        if self.repulsion is not None:
            repulsion, more = self.repulsion.pairs(species, edge_index, vectors)
            energies, gradient = energies + repulsion, gradient + more
        energies = energies.to(torch.float64) + self.reference_energies[species]
        return energies, edge_index, vectors, gradient

    @staticmethod
    def load(path: str | Path) -> StudentForceField:
        """Load a student from a run directory, a checkpoint or an exported ``.pt`` file.

        Raises:
            InputError: missing, truncated or foreign file, or one written by a newer version.
        """
        return load_student(path)

    def stored(self) -> StoredStudent:
        """What files keep of it."""
        dtype = str(self.painn.embedding.weight.dtype).removeprefix("torch.")
        state = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        return StoredStudent(self.config, list(self.elements), dtype, state)


def load_student(path: str | Path) -> StudentForceField:
    """Rebuild a student from a run directory, a checkpoint or an exported file, in its own dtype.

    Raises:
        InputError: missing, truncated or foreign file, one of a newer format, or weights that do
            not fit the configuration.
    """
    stored = read_student(path)
    student = StudentForceField(stored.config, stored.elements)
    if any(name.startswith("uncertainty.") for name in stored.state):
        student.uncertainty = LastLayerUncertainty(student.painn.readout_dim)
        # Files from before it was kept: no frame's mean is above its largest atom.
        if "uncertainty.largest" in stored.state:
            largest = stored.state["uncertainty.largest"]
            stored.state.setdefault("uncertainty.largest_frame", largest)
    student.to(getattr(torch, stored.dtype))
    load_state(student, stored.state, path)
    return student.eval()


def load_state(student: StudentForceField, state: dict[str, Tensor], name: str | Path) -> None:
    """``load_state_dict`` with a one-line error that names the file."""
    try:
        student.load_state_dict(state)
    except RuntimeError:
        raise InputError(
            f"{name}: the weights do not fit the configuration of the model; the file is damaged "
            "or was edited, train again"
        ) from None


def _forces(batch: Batch, edge_index: Tensor, gradient: Tensor) -> Tensor:
    # r_edge = r_sender - r_receiver, so -dE/dr collects + at the receiver and - at the sender.
    forces = gradient.new_zeros(batch.positions.shape)
    forces = forces.index_add(0, edge_index[1], gradient)
    return forces.index_add(0, edge_index[0], -gradient)


def _stress(batch: Batch, edge_index: Tensor, vectors: Tensor, gradient: Tensor) -> Tensor:
    # dE/dε = Σ_edges r ⊗ dE/dr; symmetric because the energy is invariant under rotation.
    per_edge = vectors.unsqueeze(2) * gradient.unsqueeze(1)
    strain_gradient = gradient.new_zeros(batch.num_structures, 3, 3).index_add(
        0, batch.structure_index[edge_index[1]], per_edge
    )
    strain_gradient = 0.5 * (strain_gradient + strain_gradient.transpose(1, 2))
    volume = torch.linalg.det(batch.cell).abs()
    usable = batch.has_volume
    volume = torch.where(usable, volume, torch.ones_like(volume))
    stress = strain_gradient / volume[:, None, None]
    return torch.where(usable[:, None, None], stress, torch.zeros_like(stress))


def _check_elements(elements: list[int], max_z: int) -> None:
    if not elements:
        raise InputError("a student needs at least one element, got none; pass elements=[14]")
    if len(set(elements)) != len(elements):
        raise InputError(f"each element must appear once, got {elements}")
    bad = [z for z in elements if not 1 <= z <= max_z]
    if bad:
        raise InputError(f"atomic numbers must be 1..{max_z}, got {bad}; correct the structures")
