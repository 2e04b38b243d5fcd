"""Which gates a purpose asks for, and of which structures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from mlff_distiller.data import Structure
from mlff_distiller.elements import reduced_formula
from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.settings import KINDS, AcceptanceConfig
from mlff_distiller.purpose import PurposeConfig, phase_of, phases

_ALWAYS = ("speed", "drift", "visited", "stability")
_OF_PHASE = {
    "crystal": ("lattice", "elastic", "phonons"),
    "liquid": ("density", "rdf", "diffusion"),
    "molecule": ("frequencies", "torsion", "dissociation"),
    "cluster": ("frequencies",),
    "slab": (),
}
_OF_DEFECT = {"vacancy": "vacancy", "surface": "surface"}
_CRYSTAL = ("lattice", "elastic", "vacancy", "surface", "phonons")
_MOLECULE = ("frequencies", "torsion", "dissociation")
_LIQUID = ("density", "rdf", "diffusion")


@dataclass(frozen=True)
class Case:
    """One structure that a gate is measured on."""

    structure: Structure | None
    """None: the gate does not need one, or there is none."""
    label: str = ""
    """Tells several from each other."""
    missing: str = ""
    """Why there is none."""

    def named(self, gate: Gate) -> Gate:
        """The gate with the label in its name."""
        if not self.label:
            return gate
        return dataclasses.replace(gate, name=f"{self.label}: {gate.name}")


def chosen(
    limits: AcceptanceConfig,
    purpose: PurposeConfig,
    structures: Sequence[Structure],
    held_out: bool,
) -> list[str]:
    """Kinds of gates in the order of their cost.

    Args:
        limits: names them, or leaves the choice to the purpose.
        purpose: phases and defects.
        structures: starting structures.
        held_out: whether there are labelled frames.
    """
    wanted = set(limits.gates)
    if not wanted:
        found = phases(purpose, structures)
        wanted = {*_ALWAYS, *(kind for phase in found for kind in _OF_PHASE[phase])}
        if any(phase_of(s) == "crystal" for s in structures):
            wanted |= {_OF_DEFECT[d] for d in purpose.defects if d in _OF_DEFECT}
        if held_out:
            wanted.add("held_out")
    return [kind for kind in KINDS if kind in wanted and kind not in limits.skip]


def cases(
    kind: str, purpose: PurposeConfig, structures: Sequence[Structure], most: int
) -> list[Case]:
    """The structures that a gate is measured on: each composition once.

    Args:
        kind: of the gate.
        purpose: asks for phases.
        structures: starting structures.
        most: of them.
    """
    if kind == "held_out":
        return [Case(None)]
    fitting: tuple[str, ...]
    if kind in _CRYSTAL:
        fitting, name = ("crystal",), "crystal"
    elif kind in _MOLECULE:
        fitting, name = ("molecule", "cluster"), "molecule"
    elif kind in _LIQUID:
        # A purpose may ask for the melt of a crystal.
        fitting, name = ("liquid", "crystal"), "liquid"
    else:
        fitting, name = tuple(_OF_PHASE), "structure"
    fit = [s for s in structures if phase_of(s) in fitting]
    if not fit and name == "crystal" and name in purpose.phases:
        fit = [s for s in structures if s.pbc.all()]  # crystals of molecules look like liquids
    own = _different(fit, 1 if kind == "speed" else most)
    if not own:
        return [Case(None, missing=f"no starting structure is a {name}; give one")]
    if len(own) == 1:
        return [Case(own[0])]
    return [Case(s, label) for s, label in zip(own, _labels(own), strict=True)]


def _different(structures: Sequence[Structure], most: int) -> list[Structure]:
    found: dict[tuple[str, tuple[bool, ...], float], Structure] = {}
    for s in structures:
        # Polymorphs have other volumes; strained and rattled copies hardly.
        volume = abs(float(s.to_atoms().cell.volume)) / len(s) if s.pbc.all() else float(len(s))
        same = [
            key
            for key in found
            if key[0] == reduced_formula(s.atomic_numbers)
            and key[1] == tuple(s.pbc)
            and abs(key[2] / volume - 1) < 0.08
        ]
        if not same:
            found[reduced_formula(s.atomic_numbers), tuple(s.pbc), volume] = s
    return list(found.values())[:most]


def _labels(structures: Sequence[Structure]) -> list[str]:
    names = [reduced_formula(s.atomic_numbers) for s in structures]
    return [
        name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]
