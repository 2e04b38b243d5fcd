"""The mutations, one file for each room of the package."""

from __future__ import annotations

from mutants.mutation import Mutation
from mutants.rooms import (
    data,
    dynamics,
    evaluation,
    export,
    gates,
    gpu,
    importers,
    kinds,
    labelling,
    models,
    multistep,
    multistep_engines,
    rounds,
    sampling,
    training,
)

ALL: dict[str, list[Mutation]] = {
    "training": training.MUTATIONS,
    "sampling": sampling.MUTATIONS,
    "sampling kinds": kinds.MUTATIONS,
    "rounds": rounds.MUTATIONS,
    "labelling": labelling.MUTATIONS,
    "dynamics": dynamics.MUTATIONS,
    "evaluation": evaluation.MUTATIONS,
    "gates": gates.MUTATIONS,
    "export": export.MUTATIONS,
    "importers": importers.MUTATIONS,
    "data": data.MUTATIONS,
    "models": models.MUTATIONS,
    "gpu": gpu.MUTATIONS,
    "multistep": multistep.MUTATIONS,
    "multistep engines": multistep_engines.MUTATIONS,
}


def every() -> list[Mutation]:
    """All rooms in a row."""
    found = [m for mutations in ALL.values() for m in mutations]
    names = [m.name for m in found]
    assert len(set(names)) == len(names), "two mutations have one name"
    return found
