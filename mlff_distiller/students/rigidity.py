"""The few numbers that turn features of the last layer into an uncertainty; fitted elsewhere."""

import torch
from torch import Tensor, nn


class LastLayerUncertainty(nn.Module):
    """``sqrt(floor² + |weight h + bias|²)``, see :mod:`mlff_distiller.students.uncertainty`.

    Restricted to what ``torch.jit.script`` understands.

    Args:
        width: number of features, the readout_dim of the network.
    """

    weight: Tensor  # (width, width), lower triangular, eV/Å
    bias: Tensor  # (width,), eV/Å: minus weight times the mean of h in training
    floor: Tensor  # (), eV/Å
    largest: Tensor  # (), eV/Å: of a held-out atom
    largest_frame: Tensor  # (), eV/Å: root mean square of a held-out frame's atoms

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(width, width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("floor", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("largest_frame", torch.zeros(()))

    def set(
        self, weight: Tensor, bias: Tensor, floor: float, largest: float, largest_frame: float
    ) -> None:
        """Take numbers of any dtype, in float64."""
        self.weight, self.bias = weight.to(torch.float64), bias.to(torch.float64)
        self.floor = torch.tensor(floor, dtype=torch.float64)
        self.largest = torch.tensor(largest, dtype=torch.float64)
        self.largest_frame = torch.tensor(largest_frame, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        """Of atoms with these features (n_atoms, width): (n_atoms,), eV/Å."""
        deviations = features @ self.weight.t() + self.bias
        return torch.sqrt((deviations * deviations).sum(dim=-1) + self.floor * self.floor)


__all__ = ["LastLayerUncertainty"]
