"""PaiNN: polarisable atom interaction network.

Schütt, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties
and molecular spectra", ICML 2021, arXiv:2102.03150.

Channel layout, epsilon and the order of every split follow SchNetPack's PaiNN, so that weights
trained there import exactly. Vector features have the layout (n_atoms, 3, F) and are only ever
mixed across channels F: mixing x, y and z would break rotational equivariance.

Symbols: F = hidden_dim, i = receiver (centre), j = sender (neighbour).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlff_distiller.models.radial import BesselBasis, GaussianBasis, cosine_cutoff
from mlff_distiller.ops.messages import message, message_reference

#: Added under the square root of the vector norm, whose gradient is infinite at zero.
NORM_EPSILON = 1e-8


class Interaction(nn.Module):
    """One message block and one update block.

    Args:
        hidden_dim: F.
        num_rbf: radial basis functions.
        is_first: whether its vectors are zero, so that messages along them are left out.
    """

    def __init__(self, hidden_dim: int, num_rbf: int, is_first: bool = False) -> None:
        super().__init__()
        self.is_first = is_first
        self.hidden_dim = hidden_dim
        self.norm_epsilon = NORM_EPSILON  # TorchScript sees attributes, not globals
        self.filter = nn.Linear(num_rbf, 3 * hidden_dim)
        self.message = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 3 * hidden_dim)
        )
        self.mix = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)
        self.update = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 3 * hidden_dim)
        )

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        edge_index: Tensor,
        directions: Tensor,
        radial: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Message passing, then the atom-wise update.

        Args:
            scalars: (n_atoms, F).
            vectors: (n_atoms, 3, F); zero before the first interaction.
            edge_index: (2, n_edges), senders and receivers.
            directions: (n_edges, 3), unit vectors from receiver to sender.
            radial: (n_edges, num_rbf + 1), basis functions times the cutoff function and, last,
                the cutoff function itself.

        Returns:
            scalars and vectors of the same shapes.
        """
        # The first interaction has no vectors to pass on: a third of its messages is zero.
        rows = 2 * self.hidden_dim if self.is_first else 3 * self.hidden_dim
        # (W rbf + b) fcut = [rbf fcut, fcut] [W b]^T: no product of the size of the filters. The
        # transpose is made contiguous because the matrix product of its gradient, tall and skinny,
        # is three times as fast in this order.
        weight = torch.cat([self.filter.weight.t(), self.filter.bias.unsqueeze(0)])[:, :rows]
        filters = radial @ weight.contiguous()  # (n_edges, 3F)
        features = self.message(scalars)[:, :rows]
        if torch.jit.is_scripting():
            received = message_reference(features, vectors, filters, directions, edge_index)
        else:
            received = message(features, vectors, filters, directions, edge_index)
        scalars = scalars + received[0]
        vectors = vectors + received[1]

        normed, mixed = torch.split(self.mix(vectors), self.hidden_dim, dim=-1)  # V v and U v
        norms = torch.sqrt((normed * normed).sum(dim=1) + self.norm_epsilon)
        a = self.update(torch.cat([scalars, norms], dim=-1))
        a_ss, a_vv, a_sv = torch.split(a, self.hidden_dim, dim=-1)
        scalars = scalars + a_ss + a_sv * (normed * mixed).sum(dim=1)
        vectors = vectors + a_vv.unsqueeze(1) * mixed
        return scalars, vectors


class PaiNN(nn.Module):
    """Atomic energies from species and edge vectors.

    Args:
        num_species: rows of the embedding.
        hidden_dim: F, a multiple of 8.
        num_interactions: message + update blocks.
        num_rbf: radial basis functions.
        cutoff: Å.
        rbf: ``gaussian`` or ``bessel``.
    """

    def __init__(
        self,
        num_species: int,
        hidden_dim: int = 128,
        num_interactions: int = 3,
        num_rbf: int = 20,
        cutoff: float = 5.0,
        rbf: str = "gaussian",
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.cutoff = cutoff
        self.embedding = nn.Embedding(num_species, hidden_dim)
        self.rbf = (
            BesselBasis(num_rbf, cutoff) if rbf == "bessel" else GaussianBasis(num_rbf, cutoff)
        )
        self.interactions = nn.ModuleList(
            Interaction(hidden_dim, num_rbf, is_first=k == 0) for k in range(num_interactions)
        )
        self.readout = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim // 2), nn.SiLU(), nn.Linear(hidden_dim // 2, 1)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases, as in the paper's code; embeddings are normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """Energy of each atom without its reference energy.

        Args:
            species: (n_atoms,) int64, rows of the embedding.
            edge_index: (2, n_edges) int64, senders and receivers.
            edge_vectors: (n_edges, 3), Å, from receiver to sender. Edges at the cutoff and
                beyond contribute nothing.

        Returns:
            (n_atoms,), eV.
        """
        distances = torch.sqrt((edge_vectors * edge_vectors).sum(dim=-1))
        directions = edge_vectors / distances.unsqueeze(-1)
        envelope = cosine_cutoff(distances, self.cutoff).unsqueeze(-1)
        radial = torch.cat([self.rbf(distances) * envelope, envelope], dim=-1)

        scalars = self.embedding(species)
        vectors = scalars.new_zeros(scalars.shape[0], 3, self.hidden_dim)
        for interaction in self.interactions:
            scalars, vectors = interaction(scalars, vectors, edge_index, directions, radial)
        return self.readout(scalars).squeeze(-1)


__all__ = ["NORM_EPSILON", "Interaction", "PaiNN"]
