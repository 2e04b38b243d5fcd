"""What a teacher is, and the one made of any ASE calculator."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Sequence
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError

from mlff_distiller.data.structure import Structure, elements_of
from mlff_distiller.elements import symbols, unknown_elements
from mlff_distiller.energy_model import EnergyModel, Labels
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import stress_volume


@runtime_checkable
class Teacher(EnergyModel, Protocol):
    """An energy model that also drives molecular dynamics."""

    calculator: Calculator
    """For molecular dynamics and timing."""


class CalculatorTeacher(Teacher):
    """A teacher made of an ASE calculator.

    Args:
        name: of the teacher.
        calculator: any ASE calculator with energy and forces.
        packages: distributions whose versions are worth remembering.
        elements: atomic numbers that it knows; None when unknown or all.
        periodic_only: it needs a cell with three periodic directions.
        conservative: its forces are the gradient of its energy.
    """

    def __init__(
        self,
        name: str,
        calculator: Calculator,
        *,
        packages: Sequence[str] = (),
        elements: Collection[int] | None = None,
        periodic_only: bool = False,
        conservative: bool = True,
    ) -> None:
        self.name = name
        self.calculator = calculator
        self.versions = versions_of(packages)
        self.elements = None if elements is None else frozenset(int(z) for z in elements)
        self.periodic_only = periodic_only
        self.conservative = conservative

    def check(self, structures: Sequence[Structure]) -> None:
        """Raise InputError for an unknown element or a missing cell, naming it."""
        unknown = (
            []
            if self.elements is None
            else unknown_elements(elements_of(structures), self.elements)
        )
        if unknown:
            raise InputError(
                f"{self.name} does not know {symbols(unknown)}; it labels {_known(self.elements or ())}, "
                "choose another teacher"
            )
        open_one = next((s for s in structures if not s.pbc.all()), None)
        if self.periodic_only and open_one is not None:
            raise InputError(
                f"{self.name} labels structures with three periodic directions, got "
                f"{open_one.formula} with pbc {open_one.pbc.tolist()}; put it into a cell or "
                "choose another teacher"
            )

    def compute(self, structure: Structure) -> Labels:
        """Labels of one structure, without memory of the one before.

        Raises:
            InputError: the calculator fails.
        """
        # A warm start from the last frame would make labels depend on their order.
        self.calculator.reset()
        return self._compute(structure)

    def follow(self, structure: Structure) -> Labels:
        """Labels of the next configuration of a run; self-consistent methods start from the last.

        Raises:
            InputError: the calculator fails, also from a fresh start.
        """
        try:
            return self._compute(structure)
        except InputError:
            return self.compute(structure)

    def _compute(self, structure: Structure) -> Labels:
        atoms = structure.to_atoms(labels=False)
        atoms.calc = self.calculator
        try:
            energy = float(atoms.get_potential_energy())
            forces = np.array(atoms.get_forces(), dtype=np.float64)
            stress = None
            if (
                stress_volume(structure.cell, structure.pbc)
                and "stress" in self.calculator.implemented_properties
            ):
                # Some calculators have a stress of bulk alone.
                with contextlib.suppress(PropertyNotImplementedError):
                    stress = np.array(atoms.get_stress(voigt=False), dtype=np.float64)
        except (Exception, SystemExit) as error:  # calculators raise whatever they like
            raise InputError(
                f"{self.name} cannot label {structure.formula}: {_first_line(error)}; remove the "
                "structure or choose another teacher"
            ) from error
        return Labels(energy, forces, stress)


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of distributions; absent ones are left out."""
    versions: dict[str, str] = {}
    for package in ("mlff-distiller", "ase", "torch", *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@contextlib.contextmanager
def quiet() -> Any:
    """Hold back what packages print while they load; failures carry their own message."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _known(elements: Collection[int]) -> str:
    numbers = sorted(elements)
    if len(numbers) > 20 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return symbols([numbers[0], numbers[-1]], " to ")
    return symbols(numbers) if len(numbers) <= 20 else f"{len(numbers)} elements"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else "").rstrip(".;") or type(error).__name__
