"""The whole line: structures -> labels -> student -> engines -> report, stage by stage.

Every stage writes ``stages/NAME.json`` with a hash of its inputs when it is done. Run again, a
stage whose inputs have not changed and whose files are still there is skipped.

    OUTPUT/frames.h5       sampled structures
    OUTPUT/labels.h5       with the teacher's labels and the splits
    OUTPUT/rounds/NN/      what the rounds of the on-policy loop asked and learnt
    OUTPUT/data.h5         labels of all rounds
    OUTPUT/training/       checkpoints, history.csv
    OUTPUT/student.pt      for LAMMPS, OpenMM and ASE
    OUTPUT/gates.json      what the gates measured, of the teacher once for all
    OUTPUT/metrics.json, report.html, *.png
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mlff_distiller.config import DistillConfig, load_yaml, save_yaml, to_dict
from mlff_distiller.data import Structure, structures_hash
from mlff_distiller.dynamics import engine_of
from mlff_distiller.errors import DamagedFileError, InputError
from mlff_distiller.evaluation.gates.stability import planned
from mlff_distiller.evaluation.summary import print_summary
from mlff_distiller.pipeline import (
    engines,
    evaluate,
    export,
    fit,
    gates,
    join,
    label,
    report,
    sample,
)
from mlff_distiller.pipeline.alone import alone_in
from mlff_distiller.pipeline.rounds import Budget, Outcome, limited, run_rounds
from mlff_distiller.pipeline.stage import Hashed, Stages, hashed_file
from mlff_distiller.sampling import starting_structures
from mlff_distiller.sampling.geometry import narrow_cell, supercell
from mlff_distiller.training.processes import on_gpu

GATES_CACHE = "gates.json"


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
        InputError: any stage was given something that cannot be used, or another process distils
            into the same folder.
    """
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, style="bold" if text.startswith("[") else "dim", markup=False)

    on_gpu(config.training)  # or hours of labelling would come before the refusal
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with alone_in(output):
        try:
            metrics = _run(config, output, say, fresh)
        except DamagedFileError as error:
            if error.path and error.path.resolve().is_relative_to(output.resolve()):
                error.args = (f"{error}, or delete it: this command then makes it again",)
            raise
    if not quiet:
        print_summary(metrics, output)
    return metrics


def _run(
    config: DistillConfig, output: Path, say: Callable[[str], None], fresh: bool
) -> dict[str, Any]:
    put_aside(config, output, say)
    save_yaml(config, output / "config.yaml")
    given = read_starts(config.structures, lambda line: say(f"note: {line}"))
    start = [supercell(s, config.sampling.supercell, config.model.cutoff) for s in given]
    _warn_of_narrow_cells(start, config.model.cutoff, say)
    opened: list[Stages] = []

    def open_stages(folder: Path) -> Stages:
        opened.append(Stages(folder, say, fresh))
        return opened[-1]

    def spent() -> float:
        return sum(sum(stages.seconds.values()) for stages in opened)

    return _line(config, given, start, output, open_stages, spent, say, fresh)


def read_starts(
    sources: Sequence[str], note: Callable[[str], None] = lambda line: None
) -> list[Structure]:
    """Starting structures of all files and builtin names. Raises InputError."""
    return [s for source in sources for s in starting_structures(source, note)]


def begins_anew(
    config: DistillConfig, minutes: float | None, outcome: Outcome, say: Callable[[str], None]
) -> bool:
    """Whether the last training starts from new weights.

    What the rounds have learned is worth more than a start that leads nowhere.

    Args:
        config: of the run.
        minutes: of the last training; None: it has all the epochs that it wants.
        outcome: of the rounds.
        say: told where the time is too short for new weights.
    """
    longest = max((row["minutes"] or 0.0 for row in outcome.rounds), default=0.0)
    if not config.loop.final_anew or minutes is None or minutes >= longest:
        return config.loop.final_anew
    say(
        f"{60 * minutes:.0f} s are left for it, less than a round had ({60 * longest:.0f} s): it goes "
        "on from the weights of the rounds"
    )
    return False


def put_aside(config: DistillConfig, output: Path, say: Callable[[str], None]) -> None:
    """Results of another system or teacher get the ending .old: nobody shall take them for new ones."""
    earlier = output / "config.yaml"
    if not earlier.exists():
        return
    try:
        there = load_yaml(earlier)
    except InputError:
        there = {}
    teacher = there.get("teacher")
    known = teacher.get("name") if isinstance(teacher, dict) else teacher
    if (there.get("structures"), known) == (to_dict(config)["structures"], config.teacher.name):
        return
    moved = []
    for result in (output / name for name in (export.STUDENT, "report.html", "metrics.json")):
        if result.exists():
            result.replace(result.with_name(f"{result.name}.old"))
            moved.append(result.name)
    if moved:
        say(
            f"warning: {output} holds a run of {there.get('structures')} with {known}; "
            f"{', '.join(moved)} of it now end in .old"
        )


def _warn_of_narrow_cells(
    start: list[Structure], cutoff: float, say: Callable[[str], None]
) -> None:
    widths = [narrow_cell(structure, cutoff) for structure in start]
    narrow = [(width, i) for i, width in enumerate(widths) if width is not None]
    if narrow:
        width, worst = min(narrow)
        say(
            f"warning: the cell of {len(narrow)} of {len(start)} starting structures is narrower "
            f"than two cutoffs ({2 * cutoff:g} Å), structure {worst} only {width:.1f} Å: its atoms "
            "meet their own images; repeat it with sampling.supercell"
        )


def _line(
    config: DistillConfig,
    given: list[Structure],
    start: list[Structure],
    output: Path,
    open_stages: Callable[[Path], Stages],
    spent: Callable[[], float],
    say: Callable[[str], None],
    fresh: bool,
) -> dict[str, Any]:
    teacher, options, device = config.teacher.name, config.teacher.options, config.teacher.device
    stages = open_stages(output)
    sampled = stages.run(
        sample.STATION,
        sample.Inputs(
            Hashed(start, structures_hash(start)), config.sampling, teacher, options, device
        ),
    )
    labelled = stages.run(
        label.STATION,
        label.inputs_of(config, Hashed(output / sample.FRAMES, sampled.frames_hash), config.data),
    )
    seed = Hashed(output / label.LABELS, f"{labelled.data_hash} {labelled.splits_hash}")
    budget = Budget(config, spent, planned(config.acceptance, config.purpose, given))
    asked = functools.partial(_gates, config, given, output / GATES_CACHE)

    def quick_gates(student: Hashed[Path], folder: Stages) -> list[str]:
        if not config.acceptance.measure:
            return []
        inputs = asked(student, hashed_file(folder.output / join.DATA), quick=True)
        return folder.run(gates.STATION, inputs).failed

    outcome = Outcome([seed], asked=list(labelled.asked))
    if config.loop.rounds:
        outcome = run_rounds(
            config, start, outcome, output, open_stages, budget, quick_gates, say, resume=not fresh
        )
        say("the last training")
    joined = stages.run(join.STATION, join.Inputs(outcome.labels))
    data = Hashed(output / join.DATA, joined.data_hash)
    minutes = budget.of_final(60.0 * sum(row["minutes"] or 0.0 for row in outcome.rounds))
    anew = begins_anew(config, minutes, outcome, say)
    fitted = stages.run(
        fit.STATION,
        fit.Inputs(
            data,
            config.model,
            limited(config, minutes),
            start_from=None if anew else outcome.start_from,
            splits=config.data,
            resume=not fresh,
        ),
    )
    stages.run(export.STATION, export.Inputs(hashed_file(output / fit.BEST), data, config.export))
    student = hashed_file(output / export.STUDENT)
    test = stages.run(
        evaluate.STATION, evaluate.Inputs(student, data, hashed_file(output / fit.HISTORY))
    )
    first = Hashed(start[0], structures_hash(start[:1]))
    ran = stages.run(
        engines.STATION,
        engines.Inputs(student, data, first, config.engines, teacher, options, device),
    )
    verdict = None
    if config.acceptance.measure:
        verdict = stages.run(gates.STATION, asked(student, data, quick=False))
    return report.write(
        report.Inputs(
            teacher=teacher,
            structures=config.structures,
            sampled=sampled,
            labelled=labelled,
            num_frames=joined.num_frames,
            rounds=outcome,
            fitted=fitted,
            test=test,
            engines=ran,
            gates=verdict,
            purpose=config.purpose,
            acceptance=config.acceptance,
            given=given,
            seconds=stages.seconds,
            total_seconds=spent(),
        ),
        output,
    )


def _gates(
    config: DistillConfig,
    given: list[Structure],
    cache: Path,
    student: Hashed[Path],
    data: Hashed[Path],
    *,
    quick: bool,
) -> gates.Inputs:
    return gates.Inputs(
        student=student,
        structures=Hashed(given, structures_hash(given)),
        data=data,
        teacher=config.teacher,
        purpose=config.purpose,
        acceptance=config.acceptance,
        engine=engine_of(config.loop.engine),
        quick=quick,
        cache=cache,
        workers=config.teacher.workers,
    )
