"""Radial basis functions and the cutoff function.

All take distances ``d`` of shape (n_edges,) in Å. Parameters are buffers, so that an imported
model keeps the very numbers it was trained with.
"""

import math

import torch
from torch import Tensor, nn


class GaussianBasis(nn.Module):
    """``exp(-0.5 ((d - c_k) / w_k)^2)`` with evenly spaced centres from 0 to the cutoff.

    Args:
        num_rbf: number of functions.
        cutoff: Å.
    """

    centers: Tensor
    widths: Tensor

    def __init__(self, num_rbf: int, cutoff: float) -> None:
        super().__init__()
        centers = torch.linspace(0.0, cutoff, num_rbf, dtype=torch.float64)
        widths = torch.full_like(centers, cutoff / (num_rbf - 1))
        self.register_buffer("centers", centers.to(torch.get_default_dtype()))
        self.register_buffer("widths", widths.to(torch.get_default_dtype()))

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges, num_rbf)."""
        scaled = (distances.unsqueeze(-1) - self.centers) / self.widths
        return torch.exp(-0.5 * scaled * scaled)


class BesselBasis(nn.Module):
    """``sin(n π d / cutoff) / d``, n = 1..num_rbf (Gasteiger et al. 2020, arXiv:2003.03123).

    Args:
        num_rbf: number of functions.
        cutoff: Å.
    """

    frequencies: Tensor

    def __init__(self, num_rbf: int, cutoff: float) -> None:
        super().__init__()
        orders = torch.arange(1, num_rbf + 1, dtype=torch.float64)
        frequencies = orders * (math.pi / cutoff)
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()))

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges, num_rbf)."""
        d = distances.unsqueeze(-1)
        return torch.sin(d * self.frequencies) / d


def cosine_cutoff(distances: Tensor, cutoff: float) -> Tensor:
    """``0.5 (cos(π d / cutoff) + 1)`` inside the cutoff and 0 beyond (Behler 2011).

    (n_edges,) -> (n_edges,); value and first derivative vanish at the cutoff.
    """
    values = 0.5 * (torch.cos(distances * (math.pi / cutoff)) + 1.0)
    return torch.where(distances < cutoff, values, torch.zeros_like(values))
