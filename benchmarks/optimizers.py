"""Optimisers that were compared for training, in the place where training has AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlff_distiller.training import Hooks
from mlff_distiller.training.soap import SOAP

Make = Callable[[nn.Module, dict[str, Any]], Any]


class Together:
    """Two optimisers that look like one to the training loop: it sets the rate of the first."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        self.param_groups = first.param_groups

    def step(self) -> None:
        first, second = self.parts
        for group in second.param_groups:
            group["lr"] = first.param_groups[0]["lr"]
        first.step()
        second.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {}  # these runs are not resumed


def muon(student: nn.Module, keys: dict[str, Any]) -> Together:
    """Muon for hidden matrices, with steps as large as AdamW's, and AdamW for all else."""
    hidden, others = [], []
    for name, p in student.named_parameters():
        is_hidden = p.ndim == 2 and "embedding" not in name and min(p.shape) > 1
        (hidden if is_hidden else others).append(p)
    first = torch.optim.Muon(
        hidden, adjust_lr_fn="match_rms_adamw", weight_decay=keys["weight_decay"]
    )
    return Together(first, torch.optim.AdamW(others, fused=True, **keys))


def _all(student: nn.Module) -> list[Tensor]:
    return list(student.parameters())


#: Name -> what makes it, from the student and the keys of AdamW.
OPTIMIZERS: dict[str, Make] = {
    "AdamW, betas 0.95": lambda s, k: torch.optim.AdamW(
        _all(s), betas=(0.95, 0.95), fused=True, **k
    ),
    "AMSGrad": lambda s, k: torch.optim.AdamW(_all(s), amsgrad=True, fused=True, **k),
    "NAdam": lambda s, k: torch.optim.NAdam(_all(s), decoupled_weight_decay=True, **k),
    "RAdam": lambda s, k: torch.optim.RAdam(_all(s), decoupled_weight_decay=True, **k),
    "Muon": muon,
    "SOAP, blocks of 192": lambda s, k: SOAP(_all(s), block=192, **k),
    "SOAP, refreshed every 10": lambda s, k: SOAP(_all(s), refresh=10, **k),
    "SOAP, refreshed every 50": lambda s, k: SOAP(_all(s), refresh=50, **k),
}


class Replace(Hooks):
    """Puts another optimiser into a run before its first step."""

    def __init__(self, name: str) -> None:
        self.name = name

    def before_step(self, run: Any) -> None:
        if run.step == 0:
            settings = run.settings
            keys = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
            run.optimizer = OPTIMIZERS[self.name](run.student, keys)
