"""What a student is for: the conditions that are sampled, explored and asked for by the gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlff_distiller.data.bonds import find_molecules
from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.settings import Settings, setting

PHASES = ("crystal", "liquid", "molecule", "slab", "cluster")
_ORGANIC = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)
DEFECTS = ("vacancy", "interstitial", "antisite", "surface", "stacking")


@dataclass(frozen=True)
class PurposeConfig(Settings, path="purpose"):
    """The conditions under which the student will run: they are explored, and the gates hold there."""

    temperature: list[float] = setting(
        [300.0, 900.0], "Lowest and highest.", unit="K", above=0, length=2
    )
    pressure: list[float] = setting([0.0, 0.0], "Lowest and highest.", unit="GPa", length=2)
    ensembles: list[str] = setting(
        [],
        "Ensembles of the runs; empty: npt and nvt of what is periodic in three directions, nvt of "
        "the rest.",
        choices=("nve", "nvt", "npt"),
    )
    phases: list[str] = setting(
        [],
        "Empty: what the starting structures are. `liquid` melts crystals.",
        choices=PHASES,
    )
    defects: list[str] = setting(
        [],
        "Defects of crystals that the student must know.",
        choices=DEFECTS,
    )
    timestep: float = setting(1.0, "Time step of all dynamics.", unit="fs", above=0, most=20)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in (("temperature", self.temperature), ("pressure", self.pressure)):
            if low > high:
                raise InputError(
                    f"{name} must be the lowest and the highest, got {low:g}:{high:g}; set "
                    f"purpose.{name} to [{high:g}, {low:g}], or --{name} {high:g}:{low:g}"
                )


def phase_of(structure: Structure) -> str:
    """``crystal``, ``liquid``, ``slab``, ``molecule`` or ``cluster``: what a structure looks like.

    Periodic in three directions it is a liquid if bonds by covalent radii make finite molecules
    (or lone atoms) of it, else a crystal; in one or two directions a slab; in none a molecule, or a
    cluster if it holds atoms other than H, B, C, N, O, F, Si, P, S, Cl, Br and I.
    """
    if structure.pbc.all():
        return "liquid" if find_molecules(structure).finite else "crystal"
    if structure.pbc.any():
        return "slab"
    return "molecule" if np.isin(structure.atomic_numbers, _ORGANIC).all() else "cluster"


def phases(purpose: PurposeConfig, structures: Sequence[Structure]) -> list[str]:
    """Those of the purpose, or where it names none those of the structures; each once, sorted."""
    return sorted(set(purpose.phases or map(phase_of, structures)))


def ensembles(purpose: PurposeConfig, structure: Structure) -> list[str]:
    """Those of the purpose that ``structure`` can be run in, or the defaults."""
    bulk = bool(structure.pbc.all()) and structure.fixed is None
    wanted = purpose.ensembles or ["npt", "nvt"]
    return [e for e in wanted if bulk or e != "npt"] or ["nvt"]
