"""The training loop.

A run directory holds ``best.ckpt`` (averaged weights of the best validation, see :func:`score`),
``last.ckpt`` (the same of now, and all that resuming needs), ``config.yaml``, ``history.csv`` and
``tensorboard/``.

Resuming repeats an uninterrupted run bit for bit on the CPU: the order of the structures is a
function of seed and epoch (batches.py), nothing else draws random numbers, and weights, averages, moments of
the optimiser, schedule and the place within the epoch are in ``last.ckpt``. A limit in minutes
ties the learning rate to the clock; then resuming is only as reproducible as the clock is.

With several processes (``training.devices``, torchrun or srun; processes.py) each takes every n-th structure of a batch. Sums of squares are divided by
the numbers of labels of the whole batch and gradients are added up, so the result is that of one
process up to rounding.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from mlff_distiller.config import TrainConfig, save_yaml, to_dict
from mlff_distiller.data import Batch
from mlff_distiller.data.frames import Frames
from mlff_distiller.errors import InputError, LostProcessError
from mlff_distiller.launch import Launch, launched
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.checkpoint import (
    BEST,
    LAST,
    read_checkpoint,
    save_checkpoint,
)
from mlff_distiller.students.student import load_state, load_student
from mlff_distiller.training.batches import WINDOW, Loader, Plan
from mlff_distiller.training.display import Display
from mlff_distiller.training.fine_tune import Untaught, parameter_groups
from mlff_distiller.training.history import History
from mlff_distiller.training.hooks import Hooks
from mlff_distiller.training.interrupt import Interrupt
from mlff_distiller.training.losses import QUANTITIES, Loss, residuals
from mlff_distiller.training.metrics import ErrorSums, error_sums, score
from mlff_distiller.training.processes import (
    Processes,
    check_devices,
    make_fabric,
    threads_of_each,
)
from mlff_distiller.training.resume import resumable
from mlff_distiller.training.schedule import Schedule
from mlff_distiller.training.setup import (
    AveragedStudent,
    first_student,
    load_data,
    new_optimizer,
)
from mlff_distiller.training.spawn import spawn

COLUMNS = [
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    *(f"train_{name}_rmse" for name in ("energy", "force", "stress")),
    "valid_loss",
    *(f"valid_{name}_{kind}" for name in ("energy", "force", "stress") for kind in ("mae", "rmse")),
]
# last.ckpt is written after an epoch unless it is younger than this many seconds; short epochs
# would otherwise spend their time on writing. The end of a run and Ctrl-C always write it.
_SAVE_INTERVAL = 5.0
# A validation loss of this many times the best one is no accident of a batch.
_ABSURD = 1e4
# So often a run that blew up goes back, each time with half the learning rate.
_RETURNS = 5
# Within an epoch it is written this often: one over a million frames takes hours.
_SAVE_WITHIN = 300.0


class TrainingResult(TypedDict):
    """What a run reached; plain JSON types."""

    run_dir: str
    epochs: int
    steps: int
    seconds: float
    stopped: str
    """``max_epochs``, ``max_minutes`` or ``early stop``."""
    best_epoch: int
    num_parameters: int
    min_distance: float | None
    data_hash: str
    validation: dict[str, Any]
    """Metrics of the best epoch, see :func:`mlff_distiller.training.evaluate`."""


class _Stopped(Exception):
    """Ctrl-C was pressed and the state is consistent."""


def train(
    config: TrainConfig,
    output: str | Path,
    *,
    resume: bool | Literal["auto"] = False,
    start_from: str | Path | None = None,
    hooks: Hooks | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train a student on labelled data.

    Args:
        config: data, network and optimisation.
        output: run directory. Checkpoints of an earlier run there move to ``*.old``.
        resume: go on from ``last.ckpt``; ``"auto"`` does so only where that belongs to the same
            data, network, first weights and optimisation, and starts anew otherwise. Other limits (more epochs)
            or another way to compute (threads, device) are no reason to start anew.
        start_from: run directory, checkpoint or exported file whose weights are the first ones,
            reference energies included unless ``training.reference_energies`` is ``refit``; the
            optimiser and its schedule start anew. A run that
            is resumed has them behind it.
        hooks: called while the run goes on.
        progress: show progress on stderr.

    Returns:
        What was reached. ``best.ckpt`` in ``output`` holds the student.

    Raises:
        InputError: data that cannot be used, nothing to resume, a student to start from that is
            another network or lacks an element, a loss that is not finite again and again.
        LostProcessError: a process of several was killed; ``last.ckpt`` holds the state.
        KeyboardInterrupt: Ctrl-C (or SIGTERM), after ``last.ckpt`` was written.
    """
    arguments = (config, Path(output), resume, start_from, hooks or Hooks(), progress)
    launch, wanted = launched(), config.training.devices
    if launch is not None and wanted not in (1, launch.processes):
        raise InputError(
            f"training.devices must be 1 or as many as {launch.by} starts on each machine, got "
            f"{wanted} and {launch.processes}; leave training.devices out"
        )
    try:
        if launch is None and wanted > 1:
            check_devices(config.training, wanted)
            return cast(TrainingResult, spawn(wanted, _run, *arguments))
        return _run(launch, *arguments)
    except LostProcessError as error:
        last = Path(output) / LAST
        kept = f"go on with --resume from {last}" if last.exists() else "nothing was saved yet"
        error.args = (f"{error}; {kept}",)
        raise


def _run(
    launch: Launch | None, config: TrainConfig, output: Path, *arguments: Any
) -> TrainingResult:
    fabric = make_fabric(config.training, launch)
    fabric.launch()  # where somebody else started the processes, they meet here
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_of_each(config.training.threads, launch))
    processes = Processes(fabric, output)
    leader = os.getppid() if launch is not None and launch.by == "train" else None
    well = False
    try:
        trainer = _Trainer(fabric, processes, Interrupt(leader), config, output, *arguments)
        result = trainer.run()
        well = True
        # After the last step, which would have seen it: the training is whole, what comes next is not.
        if trainer.interrupt.arrived and launch is None:
            raise KeyboardInterrupt
        return result
    except KeyboardInterrupt:
        well = True
        raise
    finally:
        processes.leave(well=well)
        torch.set_num_threads(threads)


class _Trainer:
    def __init__(
        self,
        fabric: Fabric,
        processes: Processes,
        interrupt: Interrupt,
        config: TrainConfig,
        output: Path,
        resume: bool | str,
        start_from: str | Path | None,
        hooks: Hooks,
        progress: bool,
    ) -> None:
        self.fabric, self.config, self.settings = fabric, config, config.training
        self.processes, self.interrupt = processes, interrupt
        self.output, self.hooks = output, hooks
        self.display = Display(progress and fabric.is_global_zero)
        # The first process draws and stores the splits and goes through the data, the others then
        # read what it found.
        self.data = processes.first_then_others(
            lambda found: load_data(config, config.model.cutoff, found),
            lambda data: data.statistics,
        )
        self.dtype = getattr(torch, self.settings.precision)
        state = self._resumed(resume, start_from)
        self.student: StudentForceField = (
            first_student(config, self.data, start_from)
            if state is None
            else load_student(output / LAST).train()  # it may know more elements than the data hold
        )
        self.student.to(fabric.device)
        processes.make_equal(self.student.state_dict().values())
        groups, self.factors = parameter_groups(self.student, self.settings)
        self.parameters = [p for group in groups for p in group["params"]]
        self.untaught = Untaught(self.student, self.data.elements)
        self.averaged = AveragedStudent(self.student, self.settings.ema_decay)
        self.optimizer = new_optimizer(groups, self.settings)
        self.plan = Plan(
            self.data.train.sizes, self.settings, self.data.train.counts, self.data.files.weights
        )
        self.batches_per_epoch = self.plan.batches_per_epoch
        self.schedule = Schedule(self.settings, self.batches_per_epoch)
        self.loss = Loss.of(self.settings, fabric.device)
        self.needs_stress = self.data.statistics.num_stress > 0
        self.valid_batches: list[Batch] | None = None

        self.epoch, self.batch, self.step = 0, 0, 0
        self.train_sums = torch.zeros(3, 3, dtype=torch.float64)  # of the loss, squares, counts
        self.best_loss, self.best_epoch, self.stagnation = math.inf, 0, 0
        self.best_metrics: dict[str, Any] = {}
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.saved_at = -math.inf
        self._reason: str | None = None
        self._open_output(state)

    # -- start ---------------------------------------------------------------------------------

    def _resumed(self, resume: bool | str, start_from: str | Path | None) -> dict[str, Any] | None:
        """Content of the checkpoint to go on from, if any."""
        if not resume:
            return None
        last, metadata, auto = self.output / LAST, self.data.metadata, resume == "auto"
        state = resumable(last, self.config, metadata, auto=auto, start_from=start_from)
        if state is None and last.exists():
            self.display.note(
                f"{last} is of other settings, data or first weights, or damaged: training begins anew"
            )
        return state

    def _open_output(self, state: dict[str, Any] | None) -> None:
        self.processes.barrier()
        if state is not None:
            self._restore(state, self.output / LAST)
            if "started_from" in state["metadata"]:
                self.data.metadata["started_from"] = state["metadata"]["started_from"]
        if self.fabric.is_global_zero:
            self.output.mkdir(parents=True, exist_ok=True)
            self.processes.begin()
            if state is None:
                for name in (BEST, LAST):
                    if (self.output / name).exists():
                        (self.output / name).replace(self.output / f"{name}.old")
            save_yaml(self.config, self.output / "config.yaml")
            self.history = History(
                self.output, COLUMNS, self.epoch, tensorboard=self.settings.tensorboard
            )
            if self.history.warning:
                self.display.note(self.history.warning)
        self._describe(resumed=state is not None)

    def _describe(self, *, resumed: bool) -> None:
        data, student = self.data, self.student
        for note in data.notes:
            self.display.note(note)
        atoms = int(data.train.sizes.sum())
        numbers = data.metadata
        valid = numbers["num_valid"] or "the same"
        self.display.note(
            f"{'resuming' if resumed else 'training'} in {self.output}: {len(data.train)} "
            f"structures, {atoms:,} atoms, validated on {valid}; {student.num_parameters:,} "
            f"parameters, {self.fabric.device}, {self.settings.precision}"
        )
        if frozen := student.num_parameters - sum(p.numel() for p in self.parameters):
            self.display.note(f"{frozen:,} of the parameters are frozen")
        energies = student.reference_energies.tolist()
        text = ", ".join(f"Z={z} {e:.4f}" for z, e in zip(student.elements, energies, strict=True))
        self.display.note(f"reference energies, eV: {text}")

    # -- state ---------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "train_sums": self.train_sums,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seconds": self._seconds(),
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "best_metrics": self.best_metrics,
            "stagnation": self.stagnation,
        }

    def _restore(self, content: dict[str, Any], name: Path) -> None:
        state = content["training"]
        load_state(self.student, state["student"], name)
        load_state(self.averaged.student, content["model"], name)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.train_sums = _train_sums(state["train_sums"])
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.seconds_before = state["seconds"]
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        self.best_metrics, self.stagnation = state["best_metrics"], state["stagnation"]

    def _save(self, name: str, validation: dict[str, Any], *, anywhere: bool = False) -> None:
        if not self.fabric.is_global_zero and not anywhere:
            return
        metadata = {
            **self.data.metadata,
            "epoch": self.epoch,
            "validation": validation,
            "torch_version": str(torch.__version__),  # a class that weights_only refuses otherwise
        }
        save_checkpoint(
            self.output / name,
            self.averaged.student.stored(),
            metadata=metadata,
            config=to_dict(self.config),
            training=self._state() if name == LAST else None,
        )
        if name == LAST:
            self.saved_at = time.monotonic()

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> TrainingResult:
        self.started = time.monotonic()
        with self.interrupt.watch(), self.display.live():
            try:
                while (reason := self._finished()) is None:
                    try:
                        self._train_epoch()
                        self._validate_epoch()
                    except _DivergedError as error:
                        self._go_back(str(error))
                self._save(LAST, self.best_metrics)
            except _Stopped:
                self._save(LAST, self.best_metrics)
                self.display.note(f"stopped; {self.output / LAST} holds the state")
                raise KeyboardInterrupt from None
            except LostProcessError as lost:
                # Sums over processes come before anything that changes the state.
                if not lost.told:
                    self._save(LAST, self.best_metrics, anywhere=True)
                raise
            finally:
                if self.fabric.is_global_zero:
                    self.history.close()
        return TrainingResult(
            run_dir=str(self.output),
            epochs=self.epoch,
            steps=self.step,
            seconds=self._seconds(),
            stopped=reason,
            best_epoch=self.best_epoch,
            num_parameters=self.student.num_parameters,
            min_distance=self.data.metadata["min_distance"],
            data_hash=self.data.metadata["data_hash"],
            validation=self.best_metrics,
        )

    def stop(self) -> None:
        """See :class:`~mlff_distiller.training.hooks.Run`."""
        self.interrupt.requested = True

    def finish(self, reason: str) -> None:
        """See :class:`~mlff_distiller.training.hooks.Run`."""
        self._reason = reason

    def _finished(self) -> str | None:
        if self._reason is not None:
            return self._reason
        seconds = self._agreed(torch.zeros(3), stop=False)[1] if self.epoch else 0.0
        if self.epoch >= self.settings.max_epochs:
            return "max_epochs"
        if self.schedule.progress(0, seconds) >= 1.0:
            return "max_minutes"
        if self.stagnation > self.settings.early_stop_patience:
            return "early stop"
        return None

    def _train_epoch(self) -> None:
        """Train from batch ``self.batch`` to the end of the epoch or of the time."""
        self.data.files.check_unchanged()
        rank, world = self.fabric.global_rank, self.fabric.world_size
        places = self.plan.epoch(self.epoch)[self.batch :]
        seconds = 0.0
        with self._loader(self.data.train).batches([p[rank::world] for p in places]) as batches:
            for batch in batches:
                if self.schedule.progress(0, seconds) >= 1.0:
                    break
                self.hooks.before_step(self)
                loss, seconds = self._train_step(batch)
                self.batch += 1
                self.step += 1
                self.hooks.after_step(self, loss)
                done = self.schedule.progress(self.step, seconds)
                self.display.step(self.epoch, done, seconds, loss)
                if time.monotonic() - max(self.saved_at, self.started) > _SAVE_WITHIN:
                    self._save(LAST, self.best_metrics)

    def _loader(self, frames: Frames) -> Loader:
        memory = self.data.files.neighbors
        return Loader(frames, self.student.cutoff, self.dtype, self.plan.window, memory)

    def _train_step(self, batch: Batch | None) -> tuple[float, float]:
        """One step on this process' share of a batch; the loss of the batch and the seconds."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.fabric.device)
        squares, counts = torch.zeros_like(sums), torch.zeros_like(sums)
        if batch is not None:
            batch = batch.to(self.fabric.device)
            result = self.student.compute(batch, stress=self.needs_stress, create_graph=True)
            found = residuals(result, batch)
            sums, squares, counts = self.loss.sums(found), found.squared_sums(), found.counts()
        counts, seconds = self._agreed(counts, stop=self.interrupt.requested)
        loss = self.loss.value(sums, counts)
        if batch is not None:
            # Only parameters: edge vectors require gradients too, for the forces.
            self.fabric.backward(loss, inputs=self.parameters)
        norm = self._reduce_gradients()
        sums, squares = self.processes.sum(torch.stack([sums.detach(), squares.detach()]))
        value = float(self.loss.value(sums, counts))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise self._diverged("training loss", value if math.isfinite(norm) else norm)
        rate = self.schedule.learning_rate(self.step, seconds)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.untaught.restore()
        if self.settings.optimizer == "soap" and self.fabric.world_size > 1:
            self._make_equal()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update(self.step)
        self.train_sums += torch.stack([sums, squares, counts]).cpu()
        return value, seconds

    def _validate_epoch(self) -> None:
        with self._validation_batches() as batches:
            errors = error_sums(
                self.averaged.student, batches, loss=self.loss, after_batch=self._stop_if_asked
            )
        errors.table = self.processes.sum(errors.table)
        loss = errors.loss()
        if not math.isfinite(loss) or loss > _ABSURD * self.best_loss:
            raise self._diverged("validation loss", loss)
        row = self._history_row(errors, loss)
        self.epoch, self.batch = self.epoch + 1, 0
        self.train_sums.zero_()
        self.schedule.end_epoch(loss)
        metrics = errors.metrics()
        best = score(metrics, self.settings) < score(self.best_metrics, self.settings)
        if best:
            self.best_loss, self.best_epoch, self.stagnation = loss, self.epoch, 0
            self.best_metrics = metrics
            self._save(BEST, self.best_metrics)
        else:
            self.stagnation += 1
        if self.fabric.is_global_zero:
            self.history.add(row)
        if time.monotonic() - self.saved_at > _SAVE_INTERVAL:
            self._save(LAST, self.best_metrics)
        done = self.schedule.progress(self.step, row["seconds"])
        self.display.epoch(row, done, best, last=done >= 1.0)
        self.hooks.after_epoch(self, row)

    @contextlib.contextmanager
    def _validation_batches(self) -> Iterator[Iterable[Batch]]:
        """This process' share; what fits beside the neighbour lists is put together once."""
        if self.valid_batches is not None:
            yield self.valid_batches
            return
        places = self.plan.in_order(self.data.valid.sizes)
        mine = places[self.fabric.global_rank :: self.fabric.world_size]
        with self._loader(self.data.valid).batches(mine) as ahead:
            moved = (b.to(self.fabric.device) for b in ahead if b is not None)
            if self.data.valid.in_memory and len(self.data.valid) <= WINDOW:
                self.valid_batches = list(moved)
                yield self.valid_batches
            else:
                yield moved

    def _history_row(self, errors: ErrorSums, loss: float) -> dict[str, Any]:
        sums, squares, counts = self.train_sums
        means = (squares / counts).sqrt().tolist()  # 0 / 0 is NaN: no labels
        device = self.fabric.device
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": round(self._seconds(), 3),
            "learning_rate": self.optimizer.param_groups[0]["lr"] / self.factors[0],
            "train_loss": float(self.loss.value(sums.to(device), counts.to(device))),
            "valid_loss": loss,
        }
        for name, quantity, mean in zip(
            ("energy", "force", "stress"), QUANTITIES, means, strict=True
        ):
            row[f"train_{name}_rmse"] = mean
            row[f"valid_{name}_mae"] = errors.mae(quantity)
            row[f"valid_{name}_rmse"] = errors.rmse(quantity)
        return row

    # -- several processes, and the end ----------------------------------------------------------

    def _agreed(self, counts: Tensor, *, stop: bool) -> tuple[Tensor, float]:
        """Counts of all processes and the clock of the first; raises _Stopped on Ctrl-C in any."""
        clock = self._seconds() if self.fabric.is_global_zero else 0.0
        own = torch.tensor([float(stop), clock], dtype=torch.float64, device=self.fabric.device)
        together = self.processes.sum(torch.cat([counts.to(own), own]))
        if together[3] > 0:
            raise _Stopped
        return together[:3], float(together[4])

    def _reduce_gradients(self) -> float:
        """Add up the gradients of all processes, clip them, and return their norm before that."""
        if self.fabric.world_size > 1:
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            flat = self.processes.sum(torch.cat([p.reshape(-1) for p in parts]))
            pieces = flat.split([p.numel() for p in parts])
            for parameter, piece in zip(self.parameters, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)
        limit = self.settings.gradient_clip or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))

    def _make_equal(self) -> None:
        """The first process' weights in all: SOAP's bases depend on how a CPU rounds."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.processes.make_equal([flat])
        pieces = flat.split([p.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.detach().copy_(piece.view_as(parameter))

    def _stop_if_asked(self) -> None:
        self.processes.check()
        # Several processes stop together in the next training step instead.
        if self.interrupt.requested and self.fabric.world_size == 1:
            raise _Stopped

    def _diverged(self, what: str, value: float) -> _DivergedError:
        where = f"in epoch {self.epoch + 1}, batch {self.batch + 1}"
        return _DivergedError(f"the {what} became {value:g} {where}")

    def _go_back(self, what: str) -> None:
        """To the state of last.ckpt with half the learning rate; the clock goes on.

        Raises:
            InputError: there is no such state, or this has not helped often enough.
        """
        last, lowered = self.output / LAST, 0.5 * self.schedule.lowered
        rate = self.settings.learning_rate
        if not last.exists() or lowered < 0.5**_RETURNS:
            kept = [name for name in (BEST, LAST) if (self.output / name).exists()]
            raise InputError(
                f"{what}; lower training.learning_rate (now {rate:g}"
                + (f", halved {_RETURNS} times" if last.exists() else "")
                + f") or look for wrong labels; kept: {', '.join(kept) or 'nothing yet'}"
            )
        seconds = self._seconds()
        self._restore(read_checkpoint(last), last)
        self.schedule.lowered = lowered
        self.seconds_before, self.started = seconds, time.monotonic()
        for parameter in self.parameters:
            parameter.grad = None
        self.display.note(
            f"{what}: back to epoch {self.epoch + 1}, batch {self.batch + 1}, with a learning "
            f"rate of {lowered * rate:g}"
        )
        if self.fabric.is_global_zero:
            self.history.close()
            self.history = History(self.output, COLUMNS, self.epoch, self.settings.tensorboard)


class _DivergedError(Exception):
    """The loss is no number any more, or absurd."""


def _train_sums(stored: Tensor) -> Tensor:
    # Older files have squares and counts: the loss was made of nothing else.
    return stored if len(stored) == 3 else torch.cat([stored[:1], stored])
