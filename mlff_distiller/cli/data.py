"""``sample``, ``label`` and ``convert``: from structures to labelled data."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import (
    JSON,
    OVERWRITE,
    emit,
    example,
    note,
    nothing_but_json,
    parse_options,
    refuse_to_replace,
    say,
    user_errors,
    wrote,
)
from mlff_distiller.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        **example(
            "Make new structures: rattle, strain, defects, molecular dynamics ... (docs/sampling.md).",
            "sample si.cif -o frames.extxyz --rattle 200",
            "sample nacl.cif -o frames.extxyz --config sampling.yaml --teacher sevennet-0",
            "sample builtin:aspirin -o frames.extxyz --md 200 --teacher gfn2-xtb",
        )
    )(sample)
    app.command(
        **example(
            "Label structures with a teacher: energy, forces, stress. Ctrl-C and run it again to "
            "go on; with more structures, those that are not in the file yet are added.",
            "label frames.extxyz --teacher sevennet-0 -o data.h5",
            "label more.extxyz --teacher sevennet-0 -o data.h5",
            "label frames.extxyz --teacher sevennet-0 -o data.h5 --scheduler tcp://node1:8786",
            "label frames.extxyz --teacher 'ase.calculators.lj:LennardJones(sigma=3.4)' -o lj.h5",
        )
    )(label)
    app.command(
        **example(
            "Convert between structure files and HDF5, keeping labels, and join files; or make a "
            "student of a PaiNN that SchNetPack or graph-pes trained. What is read, and how names "
            "and units of labels are decided: docs/data.md.",
            "convert frames.xyz data.h5",
            "convert frames.xyz data.h5 --energy-key TotEnergy --units energy=Hartree",
            "convert data.h5 more.h5 -o all.h5 --drop-bad",
            "convert best_model student.pt --energy-unit kcal/mol --elements C,H,O",
            "convert model.pt student.pt --energy-unit eV",
        )
    )(convert)


def sample(
    structures: str = typer.Argument(
        help="Structure file, or builtin:NAME (silicon, aspirin ...)."
    ),
    output: Path = typer.Option(..., "-o", "--output", help="File to write (.extxyz or .h5)."),
    config: Path | None = typer.Option(
        None,
        "--config",
        help="YAML with the keys of the `sampling` section (docs/sampling.md): strain, dimers, "
        "defects, walks, temperatures, supercell ...",
    ),
    rattle: int | None = typer.Option(
        None, help="Rattled (and strained) copies in total.", show_default="100"
    ),
    md: int | None = typer.Option(
        None, help="Frames from molecular dynamics in total.", show_default="100 with a teacher"
    ),
    teacher: str | None = typer.Option(
        None, "--teacher", help="What drives the dynamics: a teacher's name, or a student file."
    ),
    device: str = typer.Option("cpu", help="Where the teacher runs."),
    seed: int | None = typer.Option(None, help="Seed of all random numbers.", show_default="0"),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """Make new structures."""
    unfinished = output.with_name(output.name + ".partial.h5")

    def kept() -> str:
        if not unfinished.exists():
            return "no frames were written; run the command again to start over"
        return f"finished frames are kept in {unfinished}; run the same command again to go on"

    with user_errors(kept):
        import dataclasses
        from collections import Counter

        from mlff_distiller.config import SamplingConfig, from_dict, load_yaml, to_dict
        from mlff_distiller.data import structures_hash
        from mlff_distiller.data.io import write_structures
        from mlff_distiller.files import sha256
        from mlff_distiller.progress import Progress
        from mlff_distiller.sampling import (
            PartialFrames,
            count_sources,
            knows_teacher,
            starting_structures,
            teacher_frames,
        )
        from mlff_distiller.sampling import sample as draw
        from mlff_distiller.sampling.geometry import supercell

        refuse_to_replace(output, overwrite)
        mapping = load_yaml(config) if config else {}
        settings = from_dict(SamplingConfig, mapping.get("sampling", mapping), "sampling")
        given: dict[str, Any] = {"num_rattle": rattle, "num_md": md, "seed": seed}
        settings = dataclasses.replace(
            settings, **{k: v for k, v in given.items() if v is not None}
        )
        base = [supercell(s, settings.supercell) for s in starting_structures(structures, note)]
        if teacher is None and settings.num_md:
            if md is not None:
                raise InputError(
                    "dynamics needs a potential, got none; add --teacher NAME or --md 0"
                )
            settings = dataclasses.replace(settings, num_md=0)
            say("no --teacher given: no molecular dynamics")
        total = teacher_frames(settings)
        with nothing_but_json(as_json):
            driving = _driver(teacher, device) if teacher and knows_teacher(settings) else {}
        rejected: Counter[str] = Counter()
        driver = sha256(teacher) if teacher and Path(teacher).is_file() else teacher
        inputs = {"base": structures_hash(base), "sampling": to_dict(settings), "driver": driver}
        with nothing_but_json(as_json), PartialFrames(unfinished, inputs) as partial:
            if len(partial):
                say(f"{len(partial)} of {total} frames that take the teacher were done before")
            with Progress("sampling with the teacher") as bar:
                frames = draw(
                    base, settings, rejected=rejected, progress=bar.update, partial=partial,
                    **driving,
                )  # fmt: skip
        write_structures(output, frames)
        partial.remove()
        kinds = count_sources(frames)
        detail = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        text = wrote(output, f"{len(frames)} structures: {detail}")
        text += "".join(f"\nrejected {count}: {reason}" for reason, count in rejected.items())
        result = {
            "path": output,
            "num_structures": len(frames),
            "sources": kinds,
            "rejected": dict(rejected),
        }
        emit(result, as_json, text)


def label(
    structures: str = typer.Argument(help="Structure file, or builtin:NAME."),
    teacher: str = typer.Option(
        ..., "--teacher", help="Registry name (see info --teachers) or module:Class(kwargs)."
    ),
    output: Path = typer.Option(
        ..., "-o", "--output", help="HDF5 file to write, to continue or to extend."
    ),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    batch_size: int = typer.Option(8, min=1, help="Structures between two writes to disk."),
    option: list[str] = typer.Option(
        [], "-O", "--option", metavar="KEY=VALUE", help="Keyword argument of the teacher."
    ),
    scheduler: str | None = typer.Option(
        None,
        "--scheduler",
        metavar="ADDRESS",
        help="Label on the workers of this Dask scheduler (docs/processes.md).",
    ),
    max_force: float = typer.Option(30.0, help="eV/Å; frames with a larger force are left out."),
    resume: bool = typer.Option(True, help="Go on with an existing file, or start anew."),
    as_json: bool = JSON,
) -> None:
    """Label structures with a teacher."""

    def kept() -> str:
        if not output.exists() and not output.with_name(output.name + ".journal").exists():
            return "stopped before the first batch was finished; nothing was written"
        return f"finished batches are kept beside {output}; run the same command again to go on"

    with user_errors(kept):
        from mlff_distiller.data import HDF5Dataset
        from mlff_distiller.sampling import starting_structures
        from mlff_distiller.teachers import Teacher, get_teacher, label_dataset

        frames = starting_structures(structures, note)
        if output.is_dir():
            raise InputError(f"--output must be a file, got the directory {output}; name another")
        options = parse_options(option)
        with contextlib.ExitStack() as stack:
            stack.enter_context(nothing_but_json(as_json))
            labeller: Teacher
            if scheduler is None:
                labeller = get_teacher(teacher, device=device, **options)
            else:
                from mlff_distiller.teachers.cluster import ClusterTeacher

                cluster = ClusterTeacher(teacher, scheduler, device, options, say=note)
                labeller = stack.enter_context(cluster)
            report = label_dataset(
                frames,
                labeller,
                output,
                batch_size=batch_size,
                resume=resume,
                extend=True,
                max_force=max_force,
            )
        data = HDF5Dataset(output)
        result = {
            "path": output,
            "num_structures": len(data),
            "num_resumed": report.num_resumed,
            "rejected": report.rejected,
            "refused": [{"structure": i, "reason": reason} for i, reason in report.refused],
            "teacher": data.teacher,
            "seconds": report.seconds,
            "seconds_per_structure": report.seconds_per_structure,
        }
        emit(result, as_json, f"{report}\n{wrote(output, f'labels of {data.teacher}')}")


def convert(
    paths: list[Path] = typer.Argument(
        metavar="SOURCE... [TARGET]",
        help="extxyz, xyz, ASE or SchNetPack db, npz, DeePMD folder, VASP, CP2K, CIF, HDF5 ... or "
        "a model of SchNetPack or graph-pes; then the file to write: .h5, .extxyz ...; .pt for a "
        "model.",
    ),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="File to write; then all other names are sources to join."
    ),
    energy_key: str | None = typer.Option(None, help="Name of the energy in the file."),
    forces_key: str | None = typer.Option(None, help="Name of the forces in the file."),
    stress_key: str | None = typer.Option(None, help="Name of the stress in the file."),
    virial_key: str | None = typer.Option(None, help="Name of the virial in the file."),
    units: str | None = typer.Option(
        None, help="Where the file does not say: kcal/mol, or energy=Hartree,stress=kbar ..."
    ),
    drop_bad: bool = typer.Option(
        False, "--drop-bad", help="Leave out duplicates and structures that make no sense."
    ),
    new_splits: bool = typer.Option(
        False, "--new-splits", help="Leave stored splits out; training draws new ones."
    ),
    energy_unit: str | None = typer.Option(
        None, "--energy-unit", help="Of the model's training data: eV, kcal/mol, Hartree ..."
    ),
    length_unit: str = typer.Option("Ang", "--length-unit", help="Of the model's training data."),
    elements: str | None = typer.Option(
        None, "--elements", help="Elements that the model was trained on, as C,H,O."
    ),
    dtype: str = typer.Option("float32", "--dtype", help="Of the student: float32 or float64."),
    as_json: bool = JSON,
) -> None:
    """Convert or join structure files, or import a model of SchNetPack or graph-pes."""
    sources, target = (paths, output) if output else (paths[:-1], paths[-1])
    with user_errors(f"{target} was not written"):
        if not sources:
            raise InputError(f"convert needs a source and a target, got only {target}; name both")
        if target.suffix == ".pt":
            if len(sources) > 1:
                raise InputError(f"a model is made of one file, got {len(sources)}; name one")
            _convert_model(sources[0], target, energy_unit, length_unit, elements, dtype, as_json)
            return
        if energy_unit is not None or elements is not None:
            raise InputError(
                f"--energy-unit and --elements go with a model, got the target {target}; name it "
                ".pt to import a model, or say --units for the units of data"
            )
        if len(sources) > 1 and output is None:
            raise InputError(
                f"several files are joined with -o, got {len(paths)} names; write convert "
                f"{' '.join(str(p) for p in sources)} -o {target}"
            )
        from mlff_distiller.data.read.frame import ReadOptions

        options = ReadOptions(energy_key, forces_key, stress_key, virial_key, units)
        _convert_structures(sources, target, options, drop_bad, new_splits, as_json)


def _convert_model(
    source: Path,
    target: Path,
    energy_unit: str | None,
    length_unit: str,
    elements: str | None,
    dtype: str,
    as_json: bool,
) -> None:
    from ase.data import chemical_symbols

    from mlff_distiller.importers import convert_model

    if energy_unit is None:
        raise InputError(
            "the unit of a model's energies is not in its file; pass it, "
            "for instance --energy-unit kcal/mol"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        metadata = convert_model(source, target, energy_unit, length_unit, elements, dtype)
    for warning in caught:
        if issubclass(warning.category, UserWarning) and "--elements" in str(warning.message):
            typer.secho(f"warning: {warning.message}", fg="yellow", err=True)
    symbols = " ".join(chemical_symbols[z] for z in metadata["elements"])
    origin = metadata["imported_from"]
    text = (
        f"PaiNN of {origin['program']}, {metadata['num_parameters']:,} parameters, {symbols}, "
        f"{metadata['dtype']}"
    )
    result = {
        "path": target,
        "elements": metadata["elements"],
        "dtype": metadata["dtype"],
        "imported_from": origin,
    }
    lines = [wrote(target, text)]
    if step := metadata.get("repulsion_step"):
        lines.append(
            f"as trained, the repulsion of two atoms ends with a step of up to {step:.2g} eV; "
            "see docs/importing.md"
        )
    emit(result, as_json, "\n".join(lines))


def _convert_structures(
    sources: list[Path],
    target: Path,
    options: Any,
    drop_bad: bool,
    new_splits: bool,
    as_json: bool,
) -> None:
    from mlff_distiller.cli import tables
    from mlff_distiller.data import join
    from mlff_distiller.data.read.frame import listed

    for source in sources:
        if source.resolve() == target.resolve():
            raise InputError(
                f"source and target are the same file, got {source}; name another target"
            )
    joined = join.gather(sources, options, drop_bad=drop_bad, new_splits=new_splits)
    join.write(joined, target)
    structures, found = joined.structures, joined.survey
    labelled = sum(s.energy is not None for s in structures)
    rows: dict[str, str] = {}
    notes = []
    for i, (source, reading) in enumerate(zip(sources, joined.readings, strict=True), 1):
        key = "source" if len(sources) == 1 else f"source {i}"
        rows[key] = f"{source}: {reading.kind}, {len(reading.structures)} structures"
        rows |= tables.label_rows(reading) if len(sources) == 1 else {}
        own = [*reading.notes, *reading.label_notes, *reading.hints]
        notes += own if len(sources) == 1 else [f"{source}: {note}" for note in own]
    rows |= tables.survey_rows(found)
    if joined.dropped:
        reasons = listed((f"{i} ({reason})" for i, reason in joined.dropped.items()), 12)
        rows["left out"] = f"{len(joined.dropped)} structures: {reasons}"
    tables.tell([*found.warnings, *joined.warnings], notes)
    result = {
        "path": target,
        "num_structures": len(structures),
        "num_labelled": labelled,
        "sources": [
            {"file": p, **tables.reading_dict(r)}
            for p, r in zip(sources, joined.readings, strict=True)
        ],
        "survey": found.to_dict(),
        "dropped": joined.dropped,
        "warnings": [*found.warnings, *joined.warnings],
    }
    headline = wrote(target, f"{len(structures)} structures, {labelled} labelled")
    emit(result, as_json, f"{headline}\n{tables.aligned(rows)}")


def _driver(name: str, device: str) -> dict[str, Any]:
    """What ``sample`` must know of a teacher or a student file."""
    if Path(name).is_file():
        from mlff_distiller.calculator import StudentCalculator

        return {"calculator": StudentCalculator(name, device=device)}
    from mlff_distiller.teachers import get_teacher

    teacher = get_teacher(name, device=device)
    return {
        "calculator": teacher.calculator,
        "periodic_only": getattr(teacher, "periodic_only", False),
        "elements": getattr(teacher, "elements", None),
    }
