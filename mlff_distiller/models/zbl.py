"""Ziegler-Biersack-Littmark screened nuclear repulsion.

Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Matter", 1985. The pair energy is
switched off smoothly at the sum of the covalent radii, where chemistry begins and the network
takes over; the switch is the polynomial envelope (p = 6) of Gasteiger et al., arXiv:2003.03123.
"""

import torch
from torch import Tensor, nn

COULOMB = 14.399645  # e^2 / (4 π ε0) in eV Å
SCREENING_LENGTH = 0.46850  # Å
SCREENING_EXPONENT = 0.23
AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)


class ZBLRepulsion(nn.Module):
    """Half of each pair's repulsion for the atom that receives the edge.

    Args:
        atomic_numbers: (n_species,) int64, Z of each species.
        radii: (n_species,), covalent radii in Å.
    """

    charges: Tensor
    radii: Tensor

    def __init__(self, atomic_numbers: Tensor, radii: Tensor) -> None:
        super().__init__()
        # TorchScript sees attributes, not globals.
        self.coulomb = COULOMB
        self.exponent = SCREENING_EXPONENT
        self.length = SCREENING_LENGTH
        self.amplitudes = list(AMPLITUDES)
        self.decays = list(DECAYS)
        self.register_buffer("charges", atomic_numbers.to(torch.get_default_dtype()))
        self.register_buffer("radii", radii.to(torch.get_default_dtype()))

    def forward(self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """Energy of each atom, (n_atoms,) in eV; arguments as in ``PaiNN.forward``."""
        sending, receiving = species[edge_index[0]], species[edge_index[1]]
        distances = torch.sqrt((edge_vectors * edge_vectors).sum(dim=-1))
        reduced = distances / (self.radii[sending] + self.radii[receiving])
        z_i, z_j = self.charges[receiving], self.charges[sending]
        scale = (z_i**self.exponent + z_j**self.exponent) / self.length
        x = distances * scale
        screening = torch.zeros_like(x)
        for amplitude, decay in zip(self.amplitudes, self.decays):  # noqa: B905 (TorchScript)
            screening = screening + amplitude * torch.exp(-decay * x)
        r6 = reduced**6
        envelope = 1.0 - r6 * (28.0 - 48.0 * reduced + 21.0 * reduced * reduced)
        envelope = torch.where(reduced < 1.0, envelope, torch.zeros_like(envelope))
        pair = self.coulomb * z_i * z_j / distances * screening * envelope
        energies = torch.zeros(species.shape[0], dtype=pair.dtype, device=pair.device)
        return energies.index_add(0, edge_index[1], 0.5 * pair)
