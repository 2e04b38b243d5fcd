"""What older files say in other words: exported students and checkpoints of earlier formats.

| version | of | change |
|---|---|---|
| 2 | model_config | norm, cutoff_function and their numbers; 1 had the paper's of both |
| 2 | model_config | since then ``zbl_reach``; 1 where it is missing |
| | config.training | what later versions added, as it was before: AdamW, squared errors, all trained |
| 2 | state | ``painn.rbf`` became ``painn.bases.0``; ``painn.scales``; ``zbl`` became ``repulsion`` |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mlff_distiller.config import ModelConfig, from_dict, to_dict
from mlff_distiller.students.repulsion import PairRepulsion

# Added without a new version: files that lack these keys were written before there was a choice.
_BEFORE_THE_CHOICE: dict[str, Any] = {
    "optimizer": "adamw",
    "long_run_rate": 0.0,
    "energy_huber": 0.0,
    "force_huber": 0.0,
    "stress_huber": 0.0,
    "frozen": [],
    "learning_rate_factors": {},
}
_PAPER = {"norm": "paper", "norm_epsilon": 1e-8, "cutoff_function": "cosine"}


def upgrade_config(config: dict[str, Any], version: int) -> dict[str, Any]:
    """``model_config`` of a file of format ``version`` with all of today's keys."""
    if version < 2:
        config = {**_PAPER, **config}
    # Where a file does not say it, the repulsion ends at the sum of the covalent radii.
    config = {"zbl_reach": 1.0, **config}
    return to_dict(from_dict(ModelConfig, config, where="model_config"))


def upgrade_training(settings: dict[str, Any]) -> dict[str, Any]:
    """``config.training`` of an older checkpoint, with what it was trained with."""
    return {**_BEFORE_THE_CHOICE, **settings}


def upgrade_state(state: dict[str, Any], elements: Sequence[int], version: int) -> dict[str, Any]:
    """State of a student of format ``version`` under today's names."""
    if version >= 2:
        return dict(state)
    renamed = {
        name.replace("painn.rbf.", "painn.bases.0.", 1): value for name, value in state.items()
    }
    renamed.pop("zbl.charges", None)
    radii = renamed.pop("zbl.radii", None)
    if radii is not None:
        repulsion = PairRepulsion(elements, radii)
        renamed.update({f"repulsion.{k}": v for k, v in repulsion.state_dict().items()})
    renamed["painn.scales"] = torch.ones(len(elements))
    return renamed
