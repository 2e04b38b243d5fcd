"""What the energy of an atom is made of: one method for training and for the exported file."""

import torch
from torch import Tensor, nn

from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.repulsion import PairRepulsion
from mlff_distiller.students.rigidity import LastLayerUncertainty


class EnergyTerms(nn.Module):
    """The network, the repulsion and the reference energies, which subclasses register.

    ``uncertainty`` is there once it was fitted.

    Restricted to what ``torch.jit.script`` understands.
    """

    reference_energies: Tensor  # (n_elements,), eV
    species_of_z: Tensor  # row of the embedding, (119,); -1 for an element that is not known

    def __init__(
        self,
        painn: PaiNN,
        repulsion: PairRepulsion | None,
        uncertainty: LastLayerUncertainty | None = None,
    ) -> None:
        super().__init__()
        self.painn = painn
        self.repulsion = repulsion
        self.uncertainty = uncertainty

    def energies_of_species(
        self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor
    ) -> Tensor:
        """Energy of each atom, (n_atoms,) float64 in eV, reference energies included.

        Args:
            species: (n_atoms,) int64, rows of the embedding.
            edge_index: (2, n_edges) int64.
            edge_vectors: (n_edges, 3), Å; edges at the cutoff and beyond contribute nothing.
        """
        vectors = edge_vectors.to(self.painn.embedding.weight.dtype)
        energies = self.painn(species, edge_index, vectors)
        return self.complete(energies, species, edge_index, vectors)

    def energies_and_uncertainties_of_species(
        self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energies as :meth:`energies_of_species`, and the uncertainty of each atom.

        Returns:
            (n_atoms,) float64 in eV, and (n_atoms,) float64 in eV/Å, not differentiable; empty
            without :attr:`uncertainty`.
        """
        vectors = edge_vectors.to(self.painn.embedding.weight.dtype)
        features = self.painn.features(species, edge_index, vectors)
        energies = self.painn.energies(features, species)
        found = torch.zeros(0, dtype=torch.float64, device=features.device)
        if self.uncertainty is not None:
            found = self.uncertainty(features.detach()).to(torch.float64)
        return self.complete(energies, species, edge_index, vectors), found

    def complete(
        self, energies: Tensor, species: Tensor, edge_index: Tensor, vectors: Tensor
    ) -> Tensor:
        """Energies of the network with repulsion and reference energies, (n_atoms,) float64."""
        if self.repulsion is not None:
            energies = energies + self.repulsion(species, edge_index, vectors)
        return energies.to(torch.float64) + self.reference_energies[species].to(torch.float64)
