"""From a purpose to a configuration: what ``distill STRUCTURES --temperature ...`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import atomic_masses

from mlff_distiller.config import DistillConfig, ModelConfig, from_dict, to_dict
from mlff_distiller.data import Structure, elements_of
from mlff_distiller.elements import symbols
from mlff_distiller.errors import InputError
from mlff_distiller.purpose import PurposeConfig, phases
from mlff_distiller.sampling.defect_frames import suiting
from mlff_distiller.sampling.geometry import supercell
from mlff_distiller.sampling.molecule_frames import is_molecule

# fs, for the lightest atom that is below so many amu.
_TIMESTEPS = ((3.0, 0.5), (20.0, 1.0), (np.inf, 2.0))
# Minutes that a student of the full size needs on a few cores.
_SMALL_BELOW = 120.0
_BATCH_ATOMS, _ROUND_ATOMS = 128, 4096
# Of each pair of elements.
_DIMERS = 10
_BULK = {"crystal", "liquid", "slab"}
_STRAINED = {"crystal", "liquid"}
_DEFECTS = ("vacancy", "surface")
# Of a run of the student, and between two of its candidates.
_STEPS, _CANDIDATE = 5000, 50
_MOST_ROUNDS = 12


def plan(
    sources: Sequence[str],
    structures: Sequence[Structure],
    *,
    purpose: dict[str, Any],
    given: dict[str, Any],
) -> DistillConfig:
    """A configuration with every choice made.

    Args:
        sources: names of the structures, for the configuration.
        structures: what they hold.
        purpose: keys of :class:`~mlff_distiller.purpose.PurposeConfig` that are given.
        given: other keys of the configuration that are given, nested as in the YAML.

    Raises:
        InputError: nothing to start from, or values out of range.
    """
    if not structures:
        raise InputError("distill needs at least one starting structure, got none; name a file")
    repeated = [supercell(s, [0, 0, 0], ModelConfig().cutoff) for s in structures]
    chosen = {"timestep": timestep_for(structures), **purpose}
    settings = from_dict(PurposeConfig, chosen, "purpose")
    _check_purpose(settings, structures)
    found = phases(settings, structures)
    if "crystal" in found and "defects" not in chosen and suiting(_DEFECTS, structures):
        chosen["defects"] = list(_DEFECTS)
    minutes = given.get("loop", {}).get("minutes")
    mapping: dict[str, Any] = {
        "structures": list(sources),
        "purpose": {**chosen, "phases": found},
        "sampling": sampling_for(found, {**to_dict(settings), **chosen}, structures),
        "model": _small(found) if minutes is not None and minutes < _SMALL_BELOW else {},
        "loop": loop_for(repeated, found, chosen["timestep"], minutes),
        "training": training_for(repeated),
        "engines": {"timestep": chosen["timestep"]},
    }
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(mapping.get(key), dict)
        mapping[key] = {**mapping[key], **value} if both else value
    return from_dict(DistillConfig, mapping)


def _check_purpose(purpose: PurposeConfig, structures: Sequence[Structure]) -> None:
    """Raise InputError for what no starting structure is or can have, by the name that was given.

    Sampling would refuse it as well, but by settings that are made here and nobody has written.
    """
    starts = ", ".join(phases(PurposeConfig(), structures))
    for phase, there, what in (
        *(
            (bulk, _strainable(structures), "periodic in three directions")
            for bulk in sorted(_STRAINED)
        ),
        ("molecule", any(map(is_molecule, structures)), "one molecule without held atoms"),
    ):
        if phase in purpose.phases and not there:
            raise InputError(
                f"--phase {phase} (purpose.phases) needs a starting structure that is {what}, got "
                f"{starts}; name such a structure, or leave {phase} out"
            )
    if unfit := [kind for kind in purpose.defects if not suiting([kind], structures)]:
        needs = {
            "antisite": "a crystal of two elements",
            "surface": "a crystal without held atoms",
            "stacking": "a crystal without held atoms",
        }
        raise InputError(
            f"--defect {unfit[0]} (purpose.defects) needs a starting structure that is "
            f"{needs.get(unfit[0], 'a crystal')}, got {starts} of {symbols(elements_of(structures))}; "
            f"name such a structure, or leave {unfit[0]} out"
        )


def _strainable(structures: Sequence[Structure]) -> bool:
    return any(s.pbc.all() and s.fixed is None for s in structures)


def _small(found: Sequence[str]) -> dict[str, Any]:
    """Three interactions are a third slower than two, and better at liquids."""
    layers = 3 if set(found) & _BULK else 2
    return {"hidden_dim": 64, "num_interactions": layers, "num_rbf": 16}


def timestep_for(structures: Sequence[Structure]) -> float:
    """fs: 0.5 with hydrogen, 1 with other light elements, 2 with heavy ones alone."""
    lightest = min(atomic_masses[z] for z in elements_of(structures))
    return next(step for limit, step in _TIMESTEPS if lightest < limit)


def training_for(structures: Sequence[Structure]) -> dict[str, Any]:
    """Batches of about a hundred atoms."""
    batch = int(np.clip(round(_BATCH_ATOMS / _mean_atoms(structures)), 2, 16))
    return {"batch_size": batch, "learning_rate": 5e-3}


def loop_for(
    structures: Sequence[Structure], found: Sequence[str], timestep: float, minutes: float | None
) -> dict[str, Any]:
    """As many frames in a round as make some 4000 atoms: small ones teach less each.

    With a limit in minutes the clock ends the rounds, and they grow as soon as the student is nearly
    right. A teacher of bulk costs far more than the student learns from one frame in a second, and
    more frames then help more than a longer last training; with molecules it is the other way
    round (docs/distillation.md).
    """
    frames = int(np.clip(round(_ROUND_ATOMS / _mean_atoms(structures)), 12, 128))
    loop: dict[str, Any] = {"frames": frames, "visited": round(frames / 3)}
    if set(found) & _BULK:
        loop |= {
            "picoseconds": timestep * _STEPS / 1000.0,
            "interval": timestep * _CANDIDATE,
            "overshoot": 1.4,
            "final_share": 0.2,
        }
    if minutes is not None:
        loop |= {"rounds": _MOST_ROUNDS, "growth": 1.8}
    return loop


def sampling_for(
    found: Sequence[str], purpose: dict[str, Any], structures: Sequence[Structure]
) -> dict[str, Any]:
    """What the first student is trained on; the rounds bring the rest."""
    bulk, molecules = set(found) & _BULK, set(found) & {"molecule", "cluster"}
    elements = len(elements_of(structures))
    number_of_pairs = elements * (elements + 1) // 2
    sampling: dict[str, Any] = {
        "supercell": [0, 0, 0],
        "num_rattle": 24,
        "rattle_stdev": [0.03, 0.06, 0.1, 0.15] if bulk else [0.02, 0.04, 0.06],
        "num_md": 0,
        "isolated_atoms": True,
        # Large forces would decide the fit; what is closer is left to the repulsion.
        "dimers": {"number": _DIMERS * number_of_pairs, "shortest": 0.7},
        "max_force": 15.0,
    }
    if set(found) & _STRAINED and _strainable(structures):
        sampling["strain"] = {"number": 20, "linear": [-0.08, 0.08], "shear": 0.05}
    if molecules:
        sampling["modes"] = {"number": 48, "temperatures": list(purpose["temperature"])}
    if "molecule" in found:
        sampling["molecules"] = {"number": 96}
    if purpose.get("defects"):
        sampling["defects"] = {"number": 8 * len(purpose["defects"]), "kinds": purpose["defects"]}
    return sampling


def _mean_atoms(structures: Sequence[Structure]) -> float:
    return float(np.mean([len(s) for s in structures]))
