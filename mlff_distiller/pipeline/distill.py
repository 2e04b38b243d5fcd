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

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from mlff_distiller.config import DistillConfig, save_yaml
from mlff_distiller.data import Structure, structures_hash
from mlff_distiller.evaluation.summary import print_summary
from mlff_distiller.pipeline import engines, evaluate, export, fit, label, report, sample
from mlff_distiller.pipeline.stage import Hashed, Stages, hashed_file
from mlff_distiller.sampling import starting_structures
from mlff_distiller.sampling.geometry import narrow_cell, supercell


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
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, style="bold" if text.startswith("[") else "dim", markup=False)

    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    save_yaml(config, output / "config.yaml")
    start = [
        supercell(structure, config.sampling.supercell)
        for source in config.structures
        for structure in starting_structures(source, lambda line: say(f"note: {line}"))
    ]
    _warn_of_narrow_cells(start, config.model.cutoff, say)
    metrics = _line(config, start, output, Stages(output, say, fresh), fresh)
    if not quiet:
        print_summary(metrics, output)
    return metrics


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
    config: DistillConfig, start: list[Structure], output: Path, stages: Stages, fresh: bool
) -> dict[str, Any]:
    teacher, options, device = config.teacher.name, config.teacher.options, config.teacher.device
    sampled = stages.run(
        sample.STATION,
        sample.Inputs(
            Hashed(start, structures_hash(start)), config.sampling, teacher, options, device
        ),
    )
    labelled = stages.run(
        label.STATION,
        label.Inputs(
            frames=Hashed(output / sample.FRAMES, sampled.frames_hash),
            teacher=teacher,
            options=options,
            max_force=config.sampling.max_force,
            splits=config.data,
            seed=config.sampling.seed,
            device=device,
            batch_size=config.teacher.batch_size,
        ),
    )
    data = Hashed(output / label.DATA, f"{labelled.data_hash} {labelled.splits_hash}")
    fitted = stages.run(
        fit.STATION,
        fit.Inputs(data, config.model, config.training, splits=config.data, resume=not fresh),
    )
    stages.run(export.STATION, export.Inputs(hashed_file(output / fit.BEST)))
    student = hashed_file(output / export.STUDENT)
    test = stages.run(
        evaluate.STATION, evaluate.Inputs(student, data, hashed_file(output / fit.HISTORY))
    )
    first = Hashed(start[0], structures_hash(start[:1]))
    ran = stages.run(
        engines.STATION,
        engines.Inputs(student, data, first, config.engines, teacher, options, device),
    )
    return report.write(
        report.Inputs(
            teacher=teacher,
            structures=config.structures,
            sampled=sampled,
            labelled=labelled,
            fitted=fitted,
            test=test,
            engines=ran,
            seconds=stages.seconds,
        ),
        output,
    )
