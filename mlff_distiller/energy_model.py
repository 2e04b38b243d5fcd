"""One face for teachers and students: what gives a structure an energy, forces and a stress.

Whatever has this face can label data, be evaluated against labels, and be added to others:

    difference = Sum([(1.0, teacher), (-1.0, student)])
    committee = Sum([(0.5, one), (0.5, other)]); uncertainty = spread([one, other], structure)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from mlff_distiller.data.structure import Structure, check_structure, elements_of
from mlff_distiller.elements import check_elements
from mlff_distiller.errors import InputError


class Labels(NamedTuple):
    """What a model says of a structure."""

    energy: float
    """eV."""
    forces: np.ndarray
    """(n, 3), eV/Å."""
    stress: np.ndarray | None
    """(3, 3), eV/Å^3, ASE's sign; None where the model has none or there is no volume."""


@runtime_checkable
class EnergyModel(Protocol):
    """A potential energy surface. Derive from it: only ``name`` and ``compute`` have no default."""

    name: str
    """What a data set remembers as its source."""
    versions: dict[str, str] = {}  # noqa: RUF012
    """Package -> version."""
    elements: frozenset[int] | None = None
    """Atomic numbers that it knows; None when that is unknown or all."""
    cutoff: float | None = None
    """Å; atoms farther apart do not see each other directly. None when unknown."""
    conservative: bool = True
    """Its forces are the gradient of its energy; those that a network predicts directly are not."""

    def compute(self, structure: Structure) -> Labels:
        """Energy, forces and stress of one structure. Raises InputError."""
        ...

    def follow(self, structure: Structure) -> Labels:
        """Like :meth:`compute`, of the next configuration of a run: a model may start from what it
        found for the last one, so that labels depend on their order to its convergence."""
        return self.compute(structure)

    def check(self, structures: Sequence[Structure]) -> None:
        """Raise InputError for structures that it cannot compute, before any work."""
        if self.elements is not None:
            check_elements(elements_of(structures), sorted(self.elements), self.name)

    def announce(self, structures: Sequence[Structure]) -> None:
        """These will be labelled next, in this order: a model may work ahead."""
        return

    def label(self, structures: Sequence[Structure]) -> list[Structure]:
        """The same structures in the same order, with labels.

        Raises:
            InputError: it fails or gives something that is not finite.
        """
        self.check(structures)
        return [
            check_structure(s.with_labels(*self.compute(s)), f"{s.formula} labelled by {self.name}")
            for s in structures
        ]


class Sum(EnergyModel):
    """Σ weight · model: sums, differences and means of models.

    Args:
        terms: weights and models; at least one.

    Raises:
        InputError: no terms.
    """

    def __init__(self, terms: Sequence[tuple[float, EnergyModel]]) -> None:
        if not terms:
            raise InputError("a sum needs at least one model, got none; pass [(1.0, model)]")
        self.terms = list(terms)
        models = [model for _, model in self.terms]
        self.name = " + ".join(f"{weight:g} {model.name}" for weight, model in self.terms)
        self.versions = {k: v for model in models for k, v in model.versions.items()}
        known = [model.elements for model in models if model.elements is not None]
        self.elements = frozenset.intersection(*known) if known else None
        cutoffs = [model.cutoff for model in models]
        self.cutoff = None if None in cutoffs else max(c for c in cutoffs if c is not None)

    def check(self, structures: Sequence[Structure]) -> None:
        """Raise the InputError of the first model that cannot compute them."""
        for _, model in self.terms:
            model.check(structures)

    def compute(self, structure: Structure) -> Labels:
        """The sum; a stress where all models have one."""
        found = [(weight, model.compute(structure)) for weight, model in self.terms]
        stresses = [w * s.stress for w, s in found if s.stress is not None]
        return Labels(
            sum(weight * labels.energy for weight, labels in found),
            np.sum([weight * labels.forces for weight, labels in found], axis=0),
            np.sum(stresses, axis=0) if len(stresses) == len(found) else None,
        )


def spread(models: Sequence[EnergyModel], structure: Structure) -> Labels:
    """Standard deviations over models: an estimate of how far a committee can be trusted.

    Args:
        models: two or more.
        structure: computed by each.

    Returns:
        Of the energy, of every force component and, where all have one, of the stress. The sample
        estimate, divided by n - 1.

    Raises:
        InputError: fewer than two models.
    """
    if len(models) < 2:
        raise InputError(f"a spread needs two models or more, got {len(models)}; add models")
    found = [model.compute(structure) for model in models]
    stresses = [labels.stress for labels in found if labels.stress is not None]
    return Labels(
        float(np.std([labels.energy for labels in found], ddof=1)),
        np.std([labels.forces for labels in found], axis=0, ddof=1),
        np.std(stresses, axis=0, ddof=1) if len(stresses) == len(found) else None,
    )
