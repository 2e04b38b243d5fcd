"""Radial basis functions and cutoff functions: what the filters of an interaction are made of.

A filter is ``w(d) = (W rbf(d) + b) fcut(d)``. Engines tabulate it, so neither the basis nor the
cutoff function costs anything at run time; csrc/core/radial.cpp is the twin of this file.

All take distances ``d`` of shape (n_edges,) in Å. Parameters are buffers, so that an imported model
keeps the very numbers it was trained with; ``trainable`` makes them parameters.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from mlff_distiller.config import ModelConfig
from mlff_distiller.ops.library import has_kernel


class _RadialBasis(nn.Module):
    """Keeps float64 numbers as buffers or parameters of the default dtype."""

    def _keep(self, name: str, values: Tensor, trainable: bool) -> None:
        values = values.to(torch.get_default_dtype())
        if trainable:
            self.register_parameter(name, nn.Parameter(values))
        else:
            self.register_buffer(name, values)


class GaussianBasis(_RadialBasis):
    """``exp(-0.5 ((d - c_k) / w_k)^2)`` with evenly spaced centres from 0 to the cutoff.

    Args:
        num_rbf: number of functions.
        cutoff: Å.
        trainable: train centres and widths.
    """

    centers: Tensor
    widths: Tensor

    def __init__(self, num_rbf: int, cutoff: float, trainable: bool = False) -> None:
        super().__init__()
        centers = torch.linspace(0.0, cutoff, num_rbf, dtype=torch.float64)
        self._keep("centers", centers, trainable)
        self._keep("widths", torch.full_like(centers, cutoff / (num_rbf - 1)), trainable)

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges, num_rbf)."""
        scaled = (distances.unsqueeze(-1) - self.centers) / self.widths
        return torch.exp(-0.5 * scaled * scaled)


class BesselBasis(_RadialBasis):
    """``sin(f_n d) / d``, at first f_n = n π / cutoff (Gasteiger et al. 2020, arXiv:2003.03123).

    Args:
        num_rbf: number of functions.
        cutoff: Å.
        trainable: train the frequencies.
    """

    frequencies: Tensor

    def __init__(self, num_rbf: int, cutoff: float, trainable: bool = False) -> None:
        super().__init__()
        orders = torch.arange(1, num_rbf + 1, dtype=torch.float64)
        self._keep("frequencies", orders * (math.pi / cutoff), trainable)

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges, num_rbf)."""
        d = distances.unsqueeze(-1)
        return torch.sin(d * self.frequencies) / d


class ChebyshevBasis(nn.Module):
    """Chebyshev polynomials ``T_n(2 d / cutoff - 1)``, n = 0..num_rbf-1.

    With enough of them, any smooth function of the distance: :func:`chebyshev_coefficients`.

    Args:
        num_rbf: number of polynomials.
        cutoff: Å.
    """

    def __init__(self, num_rbf: int, cutoff: float) -> None:
        super().__init__()
        self.num_rbf = num_rbf
        self.cutoff = cutoff

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges, num_rbf)."""
        x = distances * (2.0 / self.cutoff) - 1.0
        values = [torch.ones_like(x), x]
        for n in range(2, self.num_rbf):
            values.append(2.0 * x * values[n - 1] - values[n - 2])
        return torch.stack(values[: self.num_rbf], dim=-1)


def chebyshev_coefficients(values: Tensor) -> Tensor:
    """Coefficients over :class:`ChebyshevBasis` of functions known at its nodes.

    Args:
        values: (num_rbf, n) float64, the functions at :func:`chebyshev_nodes`.

    Returns:
        (n, num_rbf), the ``weight`` of a linear layer over the basis.
    """
    n = values.shape[0]
    angles = math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    matrix = torch.cos(torch.arange(n, dtype=torch.float64).unsqueeze(1) * angles) * (2.0 / n)
    matrix[0] *= 0.5
    return (matrix @ values.to(torch.float64)).T


def chebyshev_nodes(num_rbf: int, cutoff: float) -> Tensor:
    """Distances in Å, (num_rbf,) float64, at which :func:`chebyshev_coefficients` wants values."""
    angles = math.pi * (torch.arange(num_rbf, dtype=torch.float64) + 0.5) / num_rbf
    return 0.5 * cutoff * (torch.cos(angles) + 1.0)


class CosineCutoff(nn.Module):
    """``0.5 (cos(π d / cutoff) + 1)``, 0 beyond (Behler 2011): the paper's.

    Value and first derivative vanish at the cutoff; the second jumps there.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges,)."""
        values = 0.5 * (torch.cos(distances * (math.pi / self.cutoff)) + 1.0)
        return torch.where(distances < self.cutoff, values, torch.zeros_like(values))


class PolynomialCutoff(nn.Module):
    """``1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)``, x = d / cutoff, 0 beyond.

    Gasteiger et al. 2020 (arXiv:2003.03123). Value and two derivatives vanish at the cutoff. It is
    computed as ``(1 - x)^3 Σ_{k<p} (k+1)(k+2)/2 x^k``, which loses no digits there.

    Args:
        cutoff: Å.
        exponent: p >= 3; the larger, the closer to the cutoff it falls.
    """

    def __init__(self, cutoff: float, exponent: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.exponent = exponent

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges,)."""
        x = distances / self.cutoff
        series = torch.zeros_like(x)
        for k in range(self.exponent - 1, -1, -1):
            series = series * x + 0.5 * (k + 1) * (k + 2)
        rest = 1.0 - x
        return torch.where(x < 1.0, rest * rest * rest * series, torch.zeros_like(x))


class MollifierCutoff(nn.Module):
    """``exp(1 - 1 / (1 - (d / cutoff)^2))``, 0 beyond; smooth to every order (SchNetPack's)."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges,)."""
        x = distances / self.cutoff
        inside = x < 1.0
        x = torch.where(inside, x, torch.zeros_like(x))
        values = torch.exp(1.0 - 1.0 / (1.0 - x * x))
        return torch.where(inside, values, torch.zeros_like(values))


class SwitchCutoff(nn.Module):
    """1 up to the onset, 0 from the cutoff on, smooth to every order (SchNetPack's).

    ``g(1 - x) / (g(x) + g(1 - x))`` with ``g(x) = exp(-1/x)``, x from 0 at the onset to 1.

    Args:
        cutoff: Å.
        onset: Å.
    """

    def __init__(self, cutoff: float, onset: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.onset = onset

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) -> (n_edges,)."""
        x = (distances - self.onset) / (self.cutoff - self.onset)
        inside = (x > 0.0) & (x < 1.0)
        x = torch.where(inside, x, torch.full_like(x, 0.5))
        # g(1 - x) / (g(x) + g(1 - x)) without a quotient of tiny numbers
        values = torch.sigmoid(1.0 / x - 1.0 / (1.0 - x))
        outside = (distances <= self.onset).to(values.dtype)
        return torch.where(inside, values, outside)


def make_basis(config: ModelConfig) -> nn.Module:
    """The radial basis that a configuration asks for."""
    if config.rbf == "chebyshev":
        return ChebyshevBasis(config.num_rbf, config.cutoff)
    kind = BesselBasis if config.rbf == "bessel" else GaussianBasis
    return kind(config.num_rbf, config.cutoff, config.rbf_trainable)


def make_cutoff(config: ModelConfig) -> nn.Module:
    """The cutoff function that a configuration asks for."""
    if config.cutoff_function == "cosine":
        return CosineCutoff(config.cutoff)
    if config.cutoff_function == "mollifier":
        return MollifierCutoff(config.cutoff)
    if config.cutoff_function == "switch":
        assert config.cutoff_onset is not None  # checked by ModelConfig
        return SwitchCutoff(config.cutoff, config.cutoff_onset)
    return PolynomialCutoff(config.cutoff, config.cutoff_exponent)


def values_and_slopes(
    bases: Iterable[nn.Module], cutoff_function: nn.Module, vectors: Tensor
) -> list[Tensor]:
    """What filters are linear in, and the derivatives by the distance, without a graph.

    Args:
        bases: radial basis functions.
        cutoff_function: of all of them.
        vectors: (n_pairs, 3), Å.

    Returns:
        (n_pairs, 2, num_rbf + 1) for each basis: basis functions times the cutoff function and,
        last, the cutoff function itself.
    """
    kinds = [_kind(basis) for basis in bases]
    kind, parameter = _cutoff_kind(cutoff_function)
    if kind and all(kinds) and has_kernel("radial_functions", vectors.device.type):
        cutoff = cast(float, cutoff_function.cutoff)
        with torch.no_grad():
            return [
                torch.ops.mlff.radial_functions(vectors, *basis, kind, parameter, cutoff)
                for basis in kinds
                if basis
            ]
    distances = torch.sqrt((vectors * vectors).sum(dim=-1))

    def values(d: Tensor) -> list[Tensor]:
        envelope = cutoff_function(d).unsqueeze(-1)
        return [torch.cat([basis(d) * envelope, envelope], dim=-1) for basis in bases]

    found = torch.func.jvp(values, (distances,), (torch.ones_like(distances),))
    return [torch.stack(pair, dim=1).detach() for pair in zip(found[0], found[1], strict=True)]


def _kind(basis: nn.Module) -> tuple[str, int, list[Tensor]] | None:
    """A basis in the words of the engine: name, number of functions, their numbers."""
    if isinstance(basis, GaussianBasis):
        return "gaussian", len(basis.centers), [basis.centers, basis.widths]
    if isinstance(basis, BesselBasis):
        return "bessel", len(basis.frequencies), [basis.frequencies]
    if isinstance(basis, ChebyshevBasis):
        return "chebyshev", basis.num_rbf, []
    return None


def _cutoff_kind(function: nn.Module) -> tuple[str, float]:
    """A cutoff function in the words of the engine: name and number."""
    if isinstance(function, PolynomialCutoff):
        return "polynomial", float(function.exponent)
    if isinstance(function, SwitchCutoff):
        return "switch", function.onset
    if isinstance(function, CosineCutoff):
        return "cosine", 0.0
    return ("mollifier", 0.0) if isinstance(function, MollifierCutoff) else ("", 0.0)
