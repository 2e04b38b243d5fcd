"""Screened nuclear repulsion between close atoms.

Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Matter", 1985. The pair energy is
switched off smoothly at a share of the sum of the covalent radii, below the bonds, where the network
takes over; the switch is the polynomial cutoff (p = 6) of Gasteiger et al., arXiv:2003.03123.

At the whole sum it would reach into bonds, which the network had to cancel: C=O of 1.20 Å with
15 eV/Å and a curvature of 147 eV/Å², twice that of the bond; aromatic C-C with 2.5 eV/Å and 40 eV/Å².
"""

from collections.abc import Sequence

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from mlff_distiller.config import ModelConfig
from mlff_distiller.ops.library import has_kernel
from mlff_distiller.students.radial import PolynomialCutoff

COULOMB = 14.399645  # e^2 / (4 π ε0) in eV Å
SCREENING_LENGTH = 0.46850  # Å
SCREENING_EXPONENT = 0.23
AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)


class PairRepulsion(nn.Module):
    """``q/d Σ_k A_k exp(-B_k d/l) s(d/range)`` for each pair, half to either atom.

    As constructed it is ZBL with the constants above. All numbers are buffers that an importer may
    set to those of another program; they stay in float64, in which the energy is computed.

    Args:
        elements: atomic number of each species.
        radii: (n_species,), covalent radii in Å; ASE's when left out.
        reach: a pair's range, as a share of the sum of its radii.
        switched: fall smoothly to zero at the range; otherwise the pair energy jumps to zero there.
    """

    charge: Tensor
    inverse_length: Tensor
    range: Tensor
    amplitudes: Tensor
    decays: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        radii: Tensor | None = None,
        *,
        reach: float = 1.0,
        switched: bool = True,
    ) -> None:
        super().__init__()
        self.switched = switched
        self.switch = PolynomialCutoff(1.0, 6)
        z = torch.tensor(list(elements), dtype=torch.float64)
        if radii is None:
            radii = torch.as_tensor(covalent_radii[list(elements)])
        radii = reach * radii.to(torch.float64)
        power = z**SCREENING_EXPONENT
        lengths = (power.unsqueeze(1) + power) / SCREENING_LENGTH
        self.register_buffer("charge", COULOMB * z.unsqueeze(1) * z)  # (S, S), eV Å
        self.register_buffer("inverse_length", lengths)  # (S, S), 1/Å
        self.register_buffer("range", radii.unsqueeze(1) + radii)  # (S, S), Å
        self.register_buffer("amplitudes", torch.tensor(AMPLITUDES, dtype=torch.float64))
        self.register_buffer("decays", torch.tensor(DECAYS, dtype=torch.float64))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Few numbers, large energies: `.to(float32)` moves them but does not round them.
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in exact.items():
            if value is not None:
                setattr(self, name, value.to(getattr(self, name).device))
        return self

    def forward(self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """Energy of each atom, (n_atoms,) in eV; arguments as in ``PaiNN.forward``."""
        sending, receiving = species[edge_index[0]], species[edge_index[1]]
        # Casts are spelt out: TorchScript's gradients of mixed products have wrong dtypes.
        vectors = edge_vectors.to(self.charge.dtype)
        distances = torch.sqrt((vectors * vectors).sum(dim=-1))
        reduced = distances / self.range[receiving, sending]
        x = distances * self.inverse_length[receiving, sending]
        screening = (self.amplitudes * torch.exp(-self.decays * x.unsqueeze(-1))).sum(dim=-1)
        if self.switched:
            switch = self.switch(reduced)
        else:
            switch = (reduced < 1.0).to(reduced.dtype)
        pair = self.charge[receiving, sending] / distances * screening * switch
        energies = torch.zeros(species.shape[0], dtype=pair.dtype, device=pair.device)
        return energies.index_add(0, edge_index[1], 0.5 * pair).to(edge_vectors.dtype)

    def pairs(
        self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energies where each edge stands for both of its pair, and their gradient by its vector.

        Args:
            species: (n_atoms,) int64.
            edge_index: (2, n_pairs) int64.
            edge_vectors: (n_pairs, 3), Å.

        Returns:
            (n_atoms,) in eV and (n_pairs, 3) in eV/Å, without a graph.
        """
        if has_kernel("pair_repulsion", edge_vectors.device.type):
            with torch.no_grad():
                energies, gradient = torch.ops.mlff.pair_repulsion(
                    species,
                    edge_index,
                    edge_vectors,
                    [self.charge, self.inverse_length, self.range, self.amplitudes, self.decays],
                    self.switched,
                )
            return energies, gradient
        with torch.enable_grad():
            vectors = edge_vectors.detach().requires_grad_(True)
            there = self(species, edge_index, vectors)
            energies = there + self(species, edge_index.flip(0), vectors)
            (gradient,) = torch.autograd.grad([energies.sum()], [vectors])
        return energies.detach(), gradient

    def jump(self) -> float:
        """Largest step of a pair's energy at its range, eV; 0 when switched."""
        if self.switched:
            return 0.0
        x = (self.range * self.inverse_length).to(torch.float64)
        decays, amplitudes = self.decays.to(torch.float64), self.amplitudes.to(torch.float64)
        screening = (amplitudes * torch.exp(-decays * x.unsqueeze(-1))).sum(dim=-1)
        return float((self.charge.to(torch.float64) / self.range * screening).max())


def make_repulsion(config: ModelConfig, elements: Sequence[int]) -> PairRepulsion | None:
    """The repulsion that a configuration asks for, between these elements; None if there is none."""
    if not config.zbl:
        return None
    return PairRepulsion(elements, reach=config.zbl_reach, switched=config.zbl_switched)


__all__ = ["PairRepulsion", "make_repulsion"]
