"""Loading the Orb models of orb-models 0.5 (Python 3.10+) and 0.6/0.7 (Python 3.12+).

0.5 loaders return a model; later ones return (model, atoms_adapter), and ORBCalculator moved from
``forcefield.calculator`` to ``forcefield.inference.calculator``.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ase.calculators.calculator import Calculator

from mlff_distiller.errors import InputError


def orb_calculator(
    name: str,
    device: str = "cpu",
    *,
    weights: str | None = None,
    seed: int = 0,
    precision: str = "float32-highest",
    compile: bool = False,
    **options: Any,
) -> Calculator:
    """ASE calculator of an Orb model.

    Args:
        name: ``orb-v2``, ``orb-v3-conservative-20-omat`` ... as orb-models lists them;
            ``orb-v3-conservative`` and ``orb-v3-direct`` stand for their ``-inf-omat`` model.
        device: ``cpu`` or ``cuda``.
        weights: a checkpoint file; ``"random"`` takes the architecture with untrained weights
            (labels without meaning, for tests); None downloads the published ones.
        seed: of random weights.
        precision: as orb-models names it; the default avoids reduced-precision products.
        compile: let torch compile the model.
        options: of ORBCalculator.

    Raises:
        InputError: unknown model, or a checkpoint that does not exist.
    """
    from orb_models.forcefield import pretrained

    if name in ("orb-v3-conservative", "orb-v3-direct"):
        name = f"{name}-inf-omat"
    models = {k.replace("_", "-"): v for k, v in pretrained.ORB_PRETRAINED_MODELS.items()}
    if name not in models:
        close = difflib.get_close_matches(name, list(models), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(models)}"
        raise InputError(f"orb-models has no model {name!r}; {hint}")
    keywords: dict[str, Any] = {"device": device, "precision": precision, "compile": compile}
    if weights not in (None, "random"):
        if not Path(str(weights)).is_file():
            raise InputError(f"weights must be 'random' or a file, got {weights!r}; check the path")
        keywords["weights_path"] = str(weights)
    # The loaders set torch's default dtype for the whole process.
    default = torch.get_default_dtype()
    try:
        if weights == "random":
            loaded = _untrained(pretrained, models[name], keywords, seed)
        else:
            loaded = models[name](**keywords)
    finally:
        torch.set_default_dtype(default)
    model, adapter = loaded if isinstance(loaded, tuple) else (loaded, None)
    return _calculator(model, adapter, device, options)


def _untrained(pretrained: Any, loader: Any, keywords: dict[str, Any], seed: int) -> Any:
    # The published loader runs, except that reading the checkpoint is left out: the very network,
    # its settings and its adapter, whatever the release.
    def keep(model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return model.to(device=keywords["device"], dtype=torch.float32).eval().requires_grad_(False)

    with torch.random.fork_rng(devices=[]), mock.patch.object(pretrained, "load_model", keep):
        torch.manual_seed(seed)
        return loader(**keywords)


def _calculator(model: Any, adapter: Any, device: str, options: dict[str, Any]) -> Calculator:
    try:
        from orb_models.forcefield.inference.calculator import ORBCalculator
    except ImportError:
        from orb_models.forcefield.calculator import ORBCalculator
    if "atoms_adapter" in inspect.signature(ORBCalculator.__init__).parameters:
        return ORBCalculator(model, adapter, device=device, **options)
    return ORBCalculator(model, device=device, **options)
