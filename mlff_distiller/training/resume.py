"""When a run may go on from the checkpoint of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlff_distiller.config import TrainConfig, TrainingConfig, to_dict
from mlff_distiller.errors import InputError
from mlff_distiller.students.checkpoint import BEST, read_checkpoint
from mlff_distiller.training import fine_tune

#: Settings of training that say where and how it computes, not what comes out.
EXECUTION = ("device", "devices", "threads", "tensorboard")
#: Settings that say when it ends: with other ones a run goes on, unless it is past them already.
LIMITS = ("max_epochs", "max_minutes", "early_stop_patience")
_OF_THE_SPLITS = ("valid_fraction", "test_fraction", "split_seed")
#: What decides which parameters are trained, and by what.
_TRAINED = ("optimizer", "frozen", "learning_rate_factors")
_OF_THE_DATA = ("data_hash", "num_train", "num_valid")


def settings_of_the_result(training: TrainingConfig) -> dict[str, Any]:
    """The settings that decide the weights, up to rounding."""
    return {k: v for k, v in to_dict(training).items() if k not in EXECUTION}


def resumable(
    last: Path,
    config: TrainConfig,
    data: dict[str, Any],
    *,
    auto: bool,
    start_from: str | Path | None = None,
) -> dict[str, Any] | None:
    """Content of the checkpoint that a run goes on from.

    Args:
        last: ``last.ckpt`` of the earlier run.
        config: of this run.
        data: metadata of this run's data.
        auto: None instead of an error, and also where the settings of the optimisation or the first
            weights differ, or the best checkpoint is gone.
        start_from: of this run, see :func:`mlff_distiller.training.train`.

    Raises:
        InputError: no checkpoint, or one of other data or another network.
    """
    if not last.exists():
        if auto:
            return None
        raise InputError(f"{last.parent} holds no {last.name} to resume; start without --resume")
    try:
        content = read_checkpoint(last)
        _check_same(last, content, config, data)
    except InputError:
        if auto:
            return None
        raise
    if not auto:
        return content
    if content["training"]["best_epoch"] and not (last.parent / BEST).exists():
        return None  # the best weights are lost, and going on may never be better than they were
    same = _same_settings(content, config) and _same_start(content, config, start_from)
    return content if same else None


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """``key VALUE_THERE instead of VALUE_HERE`` for every key that differs, for messages."""
    return ", ".join(
        f"{key} {there.get(key)} instead of {value}"
        for key, value in here.items()
        if there.get(key) != value
    )


def _check_same(
    last: Path, content: dict[str, Any], config: TrainConfig, data: dict[str, Any]
) -> None:
    if content.get("training") is None:
        raise InputError(f"{last} holds no state to resume from; start without --resume")
    if any(content["metadata"].get(key) != data[key] for key in _OF_THE_DATA):
        raise InputError(
            f"{last} was trained on other data than {', '.join(config.data.files)}; give the "
            "same data, or start without --resume in another directory"
        )
    here = {**to_dict(config.model), "precision": config.training.precision}
    there = {**content["model_config"], "precision": content["dtype"]}
    if here != there:
        raise InputError(
            f"{last} holds another network ({difference(there, here)}); use the "
            "configuration that it was started with, or start without --resume"
        )
    _check_same_parameters(last, content, config.training)


def _check_same_parameters(last: Path, content: dict[str, Any], training: TrainingConfig) -> None:
    """The state belongs to an optimiser and its groups of parameters."""
    given = to_dict(training)
    there = content["config"]["training"]
    for key in _TRAINED:
        if there[key] != given[key]:
            raise InputError(
                f"{last} was trained with training.{key} {there[key]}, got {given[key]}; give what "
                "it was started with, or train --from it into another directory"
            )


def _same_start(
    content: dict[str, Any], config: TrainConfig, start_from: str | Path | None
) -> bool:
    there = content["metadata"].get("started_from")
    if start_from is None or there is None:
        return start_from is None and there is None
    student = fine_tune.first_weights(start_from, config.training.precision)
    return bool(there["state"] == fine_tune.origin(student, start_from)["state"])


def _same_settings(content: dict[str, Any], config: TrainConfig) -> bool:
    training = config.training
    there = content["config"].get("training", {})
    here = settings_of_the_result(training)
    data = to_dict(config.data)
    same_splits = all(content["config"]["data"].get(k) == data[k] for k in _OF_THE_SPLITS)
    if any(there.get(key) != value for key, value in here.items() if key not in LIMITS):
        return False
    done, minutes = content["training"], training.max_minutes
    return (
        same_splits
        and done["epoch"] <= training.max_epochs
        and (
            minutes is None
            or done["seconds"] <= 60.0 * minutes
            or there.get("max_minutes") == minutes
        )
    )
