"""What is asked of a student that its starting structures cannot give, by the name that was typed."""

from __future__ import annotations

from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.pipeline.plan import plan

WATER, COPPER = molecule("H2O"), bulk("Cu", cubic=True)


def planned(atoms: Atoms, **purpose: Any) -> Any:
    return plan(["start.xyz"], [Structure.from_atoms(atoms)], purpose=purpose, given={})


@pytest.mark.parametrize(
    ("atoms", "purpose", "message"),
    [
        (
            WATER,
            {"phases": ["crystal"]},
            "--phase crystal (purpose.phases) needs a starting structure that is periodic in three "
            "directions, got molecule; name such a structure, or leave crystal out",
        ),
        (
            COPPER,
            {"phases": ["molecule"]},
            "--phase molecule (purpose.phases) needs a starting structure that is one molecule "
            "without held atoms, got crystal; name such a structure, or leave molecule out",
        ),
        (
            WATER,
            {"defects": ["vacancy"]},
            "--defect vacancy (purpose.defects) needs a starting structure that is a crystal, got "
            "molecule of H O; name such a structure, or leave vacancy out",
        ),
        (
            COPPER,
            {"defects": ["vacancy", "antisite"]},
            "--defect antisite (purpose.defects) needs a starting structure that is a crystal of two "
            "elements, got crystal of Cu; name such a structure, or leave antisite out",
        ),
        (
            COPPER,
            {"temperature": [900.0, 300.0]},
            "temperature must be the lowest and the highest, got 900:300; set purpose.temperature to "
            "[300, 900], or --temperature 300:900",
        ),
    ],
)  # fmt: skip
def test_contradictions(atoms: Atoms, purpose: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        planned(atoms, **purpose)
    assert str(error.value) == message


def test_what_nobody_asked_for_is_left_out_where_it_cannot_be() -> None:
    held = COPPER.copy()
    held.set_constraint(FixAtoms([0]))
    config = planned(held)
    assert config.sampling.strain.number == 0
    assert config.sampling.defects.number > 0
    assert planned(COPPER).sampling.strain.number > 0
