"""PaiNN: polarisable atom interaction network.

Schütt, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties
and molecular spectra", ICML 2021, arXiv:2102.03150.

Channel layout and the order of every split follow SchNetPack's PaiNN, so that weights trained there
import exactly. Vector features have the layout (n_atoms, 3, F) and are only ever mixed across
channels F: mixing x, y and z would break rotational equivariance.

In two places the network differs from the paper unless told otherwise (``norm``,
``cutoff_function`` of the configuration), both for the second derivative of the energy. The paper's
norm ``sqrt(|v|^2 + 1e-8)`` is a cone with a tip 1e-4 wide where symmetry makes ``v`` vanish, as it
does on every site of a perfect crystal: force constants and phonons are wrong there. And its cosine
has a second derivative that jumps at the cutoff. docs/smoothness.md has the measurements.

Symbols: F = hidden_dim, i = receiver (centre), j = sender (neighbour).
"""

import torch
from torch import Tensor, nn

from mlff_distiller.config import ModelConfig
from mlff_distiller.ops.messages import group_edges, message, message_reference
from mlff_distiller.students.radial import make_basis, make_cutoff


class Interaction(nn.Module):
    """One message block and one update block.

    Args:
        config: of the network.
        is_first: whether its vectors are zero, so that messages along them are left out.
    """

    def __init__(self, config: ModelConfig, is_first: bool = False) -> None:
        super().__init__()
        hidden_dim, num_rbf = config.hidden_dim, config.num_rbf
        self.is_first = is_first
        self.hidden_dim = hidden_dim
        self.norm_epsilon, self.norm_shift = config.norm_numbers
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
        edge_groups: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Message passing, then the atom-wise update.

        Args:
            scalars: (n_atoms, F).
            vectors: (n_atoms, 3, F); zero before the first interaction.
            edge_index: (2, n_edges), senders and receivers.
            directions: (n_edges, 3), unit vectors from receiver to sender.
            radial: (n_edges, num_rbf + 1), basis functions times the cutoff function and, last,
                the cutoff function itself.
            edge_groups: of the edges, see :func:`message`.

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
            received = message(features, vectors, filters, directions, edge_index, edge_groups)
        scalars = scalars + received[0]
        vectors = vectors + received[1]

        normed, mixed = torch.split(self.mix(vectors), self.hidden_dim, dim=-1)  # V v and U v
        a = self.update(torch.cat([scalars, self.norm(normed)], dim=-1))
        a_ss, a_vv, a_sv = torch.split(a, self.hidden_dim, dim=-1)
        scalars = scalars + a_ss + a_sv * (normed * mixed).sum(dim=1)
        vectors = vectors + a_vv.unsqueeze(1) * mixed
        return scalars, vectors

    def norm(self, vectors: Tensor) -> Tensor:
        """Lengths of vectors, (n_atoms, 3, F) -> (n_atoms, F), with a finite gradient at zero."""
        return torch.sqrt((vectors * vectors).sum(dim=1) + self.norm_epsilon) - self.norm_shift


class PaiNN(nn.Module):
    """Atomic energies from species and edge vectors.

    Args:
        num_species: rows of the embedding.
        config: of the network.
    """

    scales: Tensor

    def __init__(self, num_species: int, config: ModelConfig) -> None:
        super().__init__()
        hidden_dim, layers = config.hidden_dim, config.num_interactions
        readout_dim = config.readout_dim or hidden_dim // 2
        self.hidden_dim = hidden_dim
        self.readout_dim = readout_dim
        self.cutoff = config.cutoff
        self.embedding = nn.Embedding(num_species, hidden_dim)
        self.cutoff_function = make_cutoff(config)
        num_bases = layers if config.rbf_per_interaction else 1
        self.bases = nn.ModuleList(make_basis(config) for _ in range(num_bases))
        self.interactions = nn.ModuleList(
            Interaction(config, is_first=k == 0) for k in range(layers)
        )
        self.readout = nn.Sequential(
            nn.Linear(hidden_dim, readout_dim), nn.SiLU(), nn.Linear(readout_dim, 1)
        )
        # Factor of each species' energies; only imported networks have others than 1.
        self.register_buffer("scales", torch.ones(num_species))
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
        return self.energies(self.features(species, edge_index, edge_vectors), species)

    def energies(self, features: Tensor, species: Tensor) -> Tensor:
        """The last layer: energy of each atom from its features, (n_atoms,), eV."""
        return self.readout[2](features).squeeze(-1) * self.scales[species]

    def features(self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """What the last, linear layer sees of each atom: its environment as the network knows it.

        Args: see :meth:`forward`.

        Returns:
            (n_atoms, readout_dim).
        """
        distances = torch.sqrt((edge_vectors * edge_vectors).sum(dim=-1))
        directions = edge_vectors / distances.unsqueeze(-1)
        envelope = self.cutoff_function(distances).unsqueeze(-1)
        radials = [
            torch.cat([basis(distances) * envelope, envelope], dim=-1) for basis in self.bases
        ]

        scalars = self.embedding(species)
        vectors = scalars.new_zeros(scalars.shape[0], 3, self.hidden_dim)
        groups: Tensor | None = None
        if not torch.jit.is_scripting():
            groups = group_edges(edge_index, scalars.shape[0])
        for k, interaction in enumerate(self.interactions):
            radial = radials[min(k, len(radials) - 1)]
            scalars, vectors = interaction(scalars, vectors, edge_index, directions, radial, groups)
        return self.readout[1](self.readout[0](scalars))


__all__ = ["Interaction", "PaiNN"]
