"""Uncertainty of each atom from the last layer: no second network, one small product per atom.

The last layer of the network is linear in the features h of an atom. Its Bayesian variance, up to a
weight, is x' (Σ x x')⁻¹ x with x = (h, 1) and the sum over the atoms of training: small where training
has seen such environments, large in directions of feature space that it has not determined
("last-layer prediction rigidity", Bigi, Chong, Ceriotti, Grasselli, "A prediction rigidity formalism
for low-cost uncertainties in trained neural networks", 2024, arXiv:2403.02251). With the mean m and
the covariance C of h this is (1 + (h - m)' C⁻¹ (h - m)) / n. The weights of the two terms are
calibrated on held-out structures to the error of the force on the atom:

    u² = floor² + |W (h - m)|²          W = slope · L⁻¹,  L L' = C + ridge

u is the root of the expected squared length of the error vector, eV/Å; it has no upper bound. One
mean and covariance over all elements, and this form of u, were chosen by measurement:
docs/uncertainty.md. Repulsion and reference energies, which are not trained, do not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.students.energy_model import StudentModel
from mlff_distiller.students.features import features_of
from mlff_distiller.students.rigidity import LastLayerUncertainty
from mlff_distiller.students.student import StudentForceField

# Shares of the mean square of the features that may be added to their covariance; the likelihood of
# the held-out errors chooses. Below, float32 has no digits left for W (h - m).
_RIDGES = (1e-6, 1e-5, 1e-4)
# Least share of the mean square error that must come from the second term: u has to rise outside of
# training also where the held-out errors do not tell one atom from another.
_LEAST_SHARE = 0.1
# Structures are thinned out evenly to these numbers.
_MOST_TRAIN, _MOST_HELD_OUT = 2000, 500


@dataclass(frozen=True)
class Calibration:
    """How an uncertainty was fitted. Forces in eV/Å."""

    floor: float
    """u of an atom in the middle of training."""
    ridge: float
    """Share of the mean square of the features that was added to their covariance."""
    train_atoms: int
    held_out_atoms: int
    rms_error: float
    """Root mean square length of the held-out force errors."""
    rms_predicted: float
    """The same by u."""
    largest: float
    """Largest u of a held-out atom."""
    largest_frame: float
    """Largest root mean square of u over the atoms of one held-out frame."""


def fit_uncertainty(
    student: StudentForceField,
    train_structures: Sequence[Structure],
    held_out_structures: Sequence[Structure],
) -> Calibration:
    """Give a trained student uncertainties; ``student.uncertainty`` is set.

    It belongs to the present weights: train on, and fit again.

    Args:
        student: evaluated in its own dtype and on its own device.
        train_structures: what it was trained on; labels are not used.
        held_out_structures: with forces; never trained on, of the same kinds.

    Raises:
        InputError: no training structures, or no held-out structure with forces.
    """
    train = _thinned(train_structures, _MOST_TRAIN)
    held_out = _thinned([s for s in held_out_structures if s.forces is not None], _MOST_HELD_OUT)
    if not train or not held_out:
        raise InputError(
            "uncertainties need training structures and held-out structures with forces, got "
            f"{len(train)} and {len(held_out)}; set data.valid_fraction"
        )
    known = np.concatenate(features_of(student, train))
    of_frames = features_of(student, held_out)
    found = np.concatenate(of_frames)
    squared = np.concatenate(_squared_errors(student, held_out))
    if not (np.isfinite(known).all() and np.isfinite(found).all() and np.isfinite(squared).all()):
        raise InputError(
            "uncertainties need finite features and forces, got NaN or infinity; train again"
        )
    mean = known.mean(axis=0)
    best: tuple[float, float, np.ndarray, float] | None = None
    for ridge in _RIDGES:
        inverse = _whitening(known - mean, ridge)
        variances = np.square((found - mean) @ inverse.T).sum(axis=1)
        cost, floor, slope = _calibrate(variances, squared)
        if best is None or cost < best[0]:
            best = (cost, floor, slope * inverse, ridge)
    assert best is not None
    _, floor, weight, ridge = best
    predicted = floor**2 + np.square((found - mean) @ weight.T).sum(axis=1)
    ends = np.cumsum([len(frame) for frame in of_frames])[:-1]
    calibration = Calibration(
        floor=floor,
        ridge=ridge,
        train_atoms=len(known),
        held_out_atoms=len(found),
        rms_error=float(np.sqrt(squared.mean())),
        rms_predicted=float(np.sqrt(predicted.mean())),
        largest=float(np.sqrt(predicted.max())),
        largest_frame=float(np.sqrt(max(x.mean() for x in np.split(predicted, ends)))),
    )
    like = student.painn.embedding.weight
    module = LastLayerUncertainty(weight.shape[0])
    module.set(
        torch.from_numpy(weight),
        torch.from_numpy(-weight @ mean),
        floor,
        calibration.largest,
        calibration.largest_frame,
    )
    student.uncertainty = module.to(device=like.device, dtype=like.dtype)
    return calibration


@torch.no_grad()
def uncertainties(
    student: StudentForceField, structures: Sequence[Structure], batch_size: int = 8
) -> list[np.ndarray]:
    """Uncertainty of each atom of each structure.

    Args:
        student: with uncertainties, see :func:`fit_uncertainty`.
        structures: any number.
        batch_size: structures evaluated together.

    Returns:
        (n_atoms,) float64 for each structure, eV/Å.

    Raises:
        InputError: the student has none.
    """
    if student.uncertainty is None:
        raise InputError(
            "the student has no uncertainties; call fit_uncertainty(student, train, held_out)"
        )
    weight = student.painn.embedding.weight
    return [
        student.uncertainty(torch.from_numpy(f).to(weight.device, weight.dtype))
        .to("cpu", torch.float64)
        .numpy()
        for f in features_of(student, structures, batch_size)
    ]


def _whitening(centred: np.ndarray, ridge: float) -> np.ndarray:
    """(d, d) lower triangular W with |W x|² = x' (C + ridge)⁻¹ x, C the covariance of ``centred``."""
    covariance = centred.T @ centred / len(centred)
    width = len(covariance)
    # Features that are all alike still get a positive matrix.
    size = float(np.trace(covariance)) / width or 1.0
    lower = np.linalg.cholesky(covariance + ridge * size * np.eye(width))
    inverse: np.ndarray = np.linalg.solve(lower, np.eye(width))
    return np.tril(inverse)


def _calibrate(variances: np.ndarray, squared: np.ndarray) -> tuple[float, float, float]:
    """Maximum likelihood of u² = floor² + slope² variance for normal errors of u²/3 a component.

    Args:
        variances: (n,), of the last layer.
        squared: (n,), lengths of force errors, squared.

    Returns:
        Cost (lower is better), floor and slope.
    """
    scale = float(variances.mean()) or 1.0
    best = (np.inf, 0.0, 0.0)
    # Written as u² = k (1 - share + share variance / scale), the best k is a mean.
    for share in np.linspace(_LEAST_SHARE, 1.0, 91):
        shape = np.maximum(1.0 - share + share * variances / scale, 1e-12)
        k = max(float((squared / shape).mean()), 1e-12)
        cost = float(np.log(shape).mean()) + np.log(k)
        if cost < best[0]:
            best = (cost, np.sqrt(k * (1.0 - share)), np.sqrt(k * share / scale))
    return float(best[0]), float(best[1]), float(best[2])


def _squared_errors(
    student: StudentForceField, structures: Sequence[Structure], batch_size: int = 8
) -> list[np.ndarray]:
    model, result = StudentModel(student), []
    for start in range(0, len(structures), batch_size):
        some = structures[start : start + batch_size]
        for labelled, found in zip(some, model.label(some), strict=True):
            assert labelled.forces is not None
            assert found.forces is not None
            result.append(np.square(found.forces - labelled.forces).sum(axis=1))
    return result


def _thinned(structures: Sequence[Structure], most: int) -> list[Structure]:
    stride = max(1, -(-len(structures) // most))
    return list(structures[::stride])


__all__ = ["Calibration", "LastLayerUncertainty", "fit_uncertainty", "uncertainties"]
