"""The whole line: structures -> labels -> student -> engines -> report, stage by stage.

Every stage writes ``stages/NAME.json`` with a hash of its inputs when it is done. Run again, a
stage whose inputs have not changed and whose files are still there is skipped.

    OUTPUT/frames.h5       sampled structures
    OUTPUT/data.h5         with the teacher's labels and the splits
    OUTPUT/training/       checkpoints, history.csv
    OUTPUT/student.pt      for LAMMPS, OpenMM and ASE
    OUTPUT/metrics.json, report.html, *.png
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller import __version__
from mlff_distiller.config import DistillConfig, TrainConfig, save_yaml, to_dict
from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_write_text, jsonable, sha256

Say = Callable[[str], None]
Work = Callable[[], dict[str, Any]]


class Stages:
    """Runs stages or skips those that are done already.

    Args:
        folder: where the records lie.
        say: told what happens.
        fresh: forget all records.
    """

    def __init__(self, folder: Path, say: Say, fresh: bool = False) -> None:
        self._folder, self._say = folder, say
        self.seconds: dict[str, float] = {}
        self.skipped: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            for record in folder.glob("*.json"):
                record.unlink()

    def run(self, name: str, inputs: dict[str, Any], outputs: list[Path], work: Work) -> Any:
        """Result of ``work()``, or that of an earlier run with the same inputs.

        Args:
            name: of the stage.
            inputs: everything that the result depends on; plain JSON.
            outputs: files that the stage writes.
            work: returns plain JSON.
        """
        text = json.dumps({"version": __version__, **inputs}, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        record_path = self._folder / f"{name}.json"
        record = _read_json(record_path)
        if record.get("inputs") == key and all(path.exists() for path in outputs):
            self._say(f"[{name}] done before, {record['seconds']:.0f} s")
            self.seconds[name] = record["seconds"]
            self.skipped.append(name)
            return record["result"]
        self._say(f"[{name}]")
        record_path.unlink(missing_ok=True)  # its files are about to change
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self.seconds[name] = seconds
        content = {"inputs": key, "seconds": seconds, "result": result}
        atomic_write_text(record_path, json.dumps(content, indent=1))
        return result


def run_distillation(
    config: DistillConfig, *, fresh: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Distil a teacher into a student, run it in the engines and write the report.

    Args:
        config: the whole run.
        fresh: do stages again that are done already.
        quiet: print nothing on stdout.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: any stage was given something that cannot be used.
    """
    from rich.console import Console

    from mlff_distiller.evaluation.summary import print_summary

    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, style="bold" if text.startswith("[") else "dim", markup=False)

    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    save_yaml(config, output / "config.yaml")
    line = _Line(config, output, Stages(output / "stages", say, fresh), say, fresh)
    metrics = line.run()
    if not quiet:
        print_summary(metrics, output)
    return metrics


class _Line:
    """The stages of one run, each a method."""

    def __init__(
        self, config: DistillConfig, output: Path, stages: Stages, say: Say, fresh: bool = False
    ) -> None:
        self.fresh = fresh
        self.config, self.output, self.stages, self.say = config, output, stages, say
        self.frames = output / "frames.h5"
        self.data = output / "data.h5"
        self.training = output / "training"
        self.student = output / "student.pt"

    def run(self) -> dict[str, Any]:
        config = to_dict(self.config)
        stage = self.stages.run
        from mlff_distiller.data import structures_hash
        from mlff_distiller.sampling import starting_structures
        from mlff_distiller.students.export import export_run

        start = starting_structures(self.config.structures)

        sampled = stage(
            "sample",
            {
                "structures": structures_hash(start),
                "sampling": config["sampling"],
                "teacher": config["teacher"],
            },
            [self.frames],
            lambda: self._sample(start),
        )
        labelled = stage(
            "label",
            {"frames": sha256(self.frames), "teacher": config["teacher"], "data": config["data"]},
            [self.data],
            self._label,
        )
        data_hash = labelled["data_hash"]
        fitted = stage(
            "train",
            {"data": data_hash, "model": config["model"], "training": config["training"]},
            [self.training / "best.ckpt", self.training / "history.csv"],
            lambda: self._train(data_hash),
        )
        stage(
            "export",
            {"checkpoint": sha256(self.training / "best.ckpt")},
            [self.student],
            lambda: export_run(self.training, self.student),
        )
        test = stage(
            "evaluate",
            {"student": sha256(self.student), "data": data_hash},
            [self.output / "parity.png", self.output / "learning_curve.png"],
            self._evaluate,
        )
        engines = stage(
            "engines",
            {
                "student": sha256(self.student),
                "data": data_hash,
                "engines": config["engines"],
                "teacher": config["teacher"],
                "threads": config["training"]["threads"],
            },
            [self.output / "energy_drift.png", self.output / "speed.png"],
            lambda: self._engines(start[0]),
        )
        return self._report(sampled, labelled, fitted, test, engines)

    def _sample(self, start: list[Any]) -> dict[str, Any]:
        from collections import Counter

        from mlff_distiller.data import HDF5Writer
        from mlff_distiller.progress import Progress
        from mlff_distiller.sampling import sample

        config = self.config.sampling
        calculator = self._teacher().calculator if config.num_md else None
        rejected: Counter[str] = Counter()
        with Progress("molecular dynamics with the teacher") as bar:
            frames = sample(start, config, calculator, rejected=rejected, progress=bar.update)
        self.frames.unlink(missing_ok=True)
        with HDF5Writer(self.frames, seed=config.seed) as writer:
            writer.append(frames)
        kinds = Counter(str(s.info.get("source", "frame")) for s in frames)
        self.say(f"{len(frames)} frames: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
        return {"num_frames": len(frames), "sources": dict(kinds), "rejected": dict(rejected)}

    def _label(self) -> dict[str, Any]:
        from mlff_distiller.data import HDF5Dataset, ensure_splits
        from mlff_distiller.teachers import label_dataset

        frames = list(HDF5Dataset(self.frames, require_labels=False))
        try:
            report = self._label_into(frames, label_dataset)
        except InputError as error:
            if "same structures" not in str(error):
                raise
            self.data.unlink(missing_ok=True)  # left by a run with other frames
            report = self._label_into(frames, label_dataset)
        c = self.config.data
        splits = ensure_splits(self.data, c.valid_fraction, c.test_fraction, c.split_seed)
        data = HDF5Dataset(self.data)
        self.say(str(report))
        return {
            "num_frames": {name: len(indices) for name, indices in splits.items()},
            "rejected": report.rejected,
            "seconds_per_structure": report.seconds_per_structure,
            "data_hash": data.hash(),
        }

    def _label_into(self, frames: list[Any], label_dataset: Any) -> Any:
        return label_dataset(
            frames,
            self._teacher(),
            self.data,
            batch_size=self.config.teacher.batch_size,
            max_force=self.config.sampling.max_force,
            seed=self.config.sampling.seed,
        )

    def _train(self, data_hash: str) -> dict[str, Any]:
        from mlff_distiller.training import train

        config = TrainConfig(
            data=replace(self.config.data, path=str(self.data)),
            model=self.config.model,
            training=self.config.training,
        )
        result = train(config, self.training, resume=False if self.fresh else "auto")
        return {**result, "data_hash": data_hash}

    def _evaluate(self) -> dict[str, Any]:
        from mlff_distiller.data import HDF5Dataset
        from mlff_distiller.evaluation import accuracy, plots, predict
        from mlff_distiller.students import StudentForceField
        from mlff_distiller.training.history import read_history

        data = HDF5Dataset(self.data)
        frames = data.subset("test") or data.subset("valid") or list(data)
        predicted = predict(StudentForceField.load(self.student), frames)
        plots.save(plots.parity(frames, predicted), self.output / "parity.png")
        history = read_history(self.training / "history.csv")
        plots.save(plots.learning_curve(history), self.output / "learning_curve.png")
        return accuracy(frames, predicted)

    def _engines(self, start: Any) -> dict[str, Any]:
        from mlff_distiller.data import HDF5Dataset
        from mlff_distiller.evaluation import plots
        from mlff_distiller.evaluation.engines import run_engines

        data = HDF5Dataset(self.data)
        tests = data.subset("test") or list(data)
        engines, trajectories = run_engines(
            self.student,
            start,
            self.config.engines,
            self.config.teacher,
            agreement_frame=max(tests, key=_roughness),
            say=self.say,
        )
        plots.save(plots.energy_drift(trajectories), self.output / "energy_drift.png")
        npt = [t for t in trajectories if t.ensemble == "npt"]
        if npt:
            plots.save(plots.volume_over_time(npt[0]), self.output / "npt.png")
        costs = {**engines["seconds_per_step"], "teacher": engines["teacher_seconds"]}
        costs = {k: 1e6 * v / len(start) for k, v in costs.items() if v is not None}
        bars = plots.speed_bars(costs, self.config.teacher.name)
        plots.save(bars, self.output / "speed.png")
        return engines

    def _report(
        self,
        sampled: dict[str, Any],
        labelled: dict[str, Any],
        fitted: dict[str, Any],
        test: dict[str, Any],
        engines: dict[str, Any],
    ) -> dict[str, Any]:
        from mlff_distiller.evaluation.engines import headline
        from mlff_distiller.evaluation.report import write_report
        from mlff_distiller.students.file import read_metadata

        keys = ("force_mae_mev_per_ang", "energy_mae_mev_per_atom", "stress_mae_gpa")
        metrics: dict[str, Any] = {
            **{key: test[key] for key in keys},
            **headline(engines),
            "teacher": self.config.teacher.name,
            "structures": self.config.structures,
            "sources": sampled["sources"],
            "num_frames": labelled["num_frames"],
            "rejected": labelled["rejected"],
            "training": fitted,
            "test": test,
            "engines": engines,
            "stage_seconds": self.stages.seconds,
            "total_seconds": sum(self.stages.seconds.values()),
        }
        metrics = jsonable(metrics)
        atomic_write_text(self.output / "metrics.json", json.dumps(metrics, indent=1))
        names = ("learning_curve", "parity", "energy_drift", "npt", "speed")
        figures = {
            name: (self.output / f"{name}.png").read_bytes()
            for name in names
            if (self.output / f"{name}.png").exists()
        }
        system = self.config.structures.removeprefix("builtin:")
        write_report(
            self.output / "report.html",
            title=f"{self.config.teacher.name} distilled on {Path(system).name}",
            metrics=metrics,
            card=read_metadata(self.student),
            figures=figures,
            model_path=str(self.student),
        )
        return metrics

    def _teacher(self) -> Any:
        from mlff_distiller.teachers import get_teacher

        teacher = self.config.teacher
        return get_teacher(teacher.name, device=teacher.device, **teacher.options)


def _roughness(structure: Any) -> float:
    return 0.0 if structure.forces is None else float(np.abs(structure.forces).mean())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
