"""What ``mlff-distiller info`` says about each kind of file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from mlff_distiller.cli.common import accuracy_text
from mlff_distiller.config import ModelConfig, from_dict
from mlff_distiller.errors import InputError

Description = tuple[dict[str, Any], str]


def anything(path: Path) -> Description:
    """Describe a file or directory by its content. Raises InputError for unknown kinds."""
    if path.is_dir():
        from mlff_distiller.data.read import deepmd

        holds_run = any(path.glob("*.ckpt")) or (path / "metrics.json").exists()
        return structures(path) if not holds_run and deepmd.systems(path) else checkpoint(path)
    if not path.exists():
        raise InputError(f"no such file: {path}; check the path")
    if path.suffix == ".ckpt":
        return checkpoint(path)
    with path.open("rb") as file:
        magic = file.read(8)
    if magic == b"\x89HDF\r\n\x1a\n" or path.suffix in (".h5", ".hdf5"):
        return dataset(path)
    if path.suffix in (".pt", ".pth") or (path.suffix != ".npz" and zipfile.is_zipfile(path)):
        return student(path)
    return structures(path)


def student(path: Path) -> Description:
    """An exported student."""
    from mlff_distiller.students.file import read_metadata

    card = read_metadata(path)
    result = {"kind": "student", "path": path, **card, "native_engine": _native(path)}
    result["gpu"] = _gpu()
    config = from_dict(ModelConfig, card["model_config"])
    rows = {
        "kind": f"exported student (format {card['format_version']})",
        "elements": _symbols(card["elements"]),
        "cutoff": f"{card['cutoff']:g} Å",
        "network": f"PaiNN, {config.hidden_dim} channels, {config.num_interactions} interactions, "
        f"{config.num_rbf} {config.rbf} functions, {config.cutoff_function} cutoff"
        + (", ZBL repulsion" if config.zbl else ""),
        "smoothness": _smoothness(config, card.get("repulsion_step")),
        "parameters": f"{card['num_parameters']:,}",
        "dtype": card["dtype"],
        "teacher": card.get("teacher") or "unknown",
        "E0": ", ".join(
            f"{chemical_symbols[z]} {e:.4f} eV"
            for z, e in zip(card["elements"], card["reference_energies"], strict=True)
        ),
        "accuracy": _accuracy(card.get("accuracy")),
        "closest pair": f"{card['min_distance']:.3f} Å in training"
        if card.get("min_distance")
        else "unknown",
        "closest by elements": _pairs(card.get("coverage")),
        "uncertainty": _uncertainty(card.get("uncertainty")),
        "data hash": str(card.get("data_hash") or "unknown")[:16],
        "written by": f"mlff_distiller {card.get('package_version')}, "
        f"torch {card.get('torch_version')}",
        "native engine": _native_text(result["native_engine"]),
        "GPU": _gpu_text(result["gpu"]),
    }
    return result, _rows(path, rows)


def _uncertainty(fit: dict[str, Any] | None) -> str:
    if not fit:
        return "none"
    text = f"of each atom, up to {fit['largest']:.3g} eV/Å on held-out atoms"
    if "rms_error" not in fit:
        return text
    return f"{text} (rms {fit['rms_predicted']:.3g}, errors {fit['rms_error']:.3g})"


def _pairs(coverage: dict[str, Any] | None) -> str:
    pairs = (coverage or {}).get("closest_pairs") or {}
    return ", ".join(f"{name} {distance:.3f} Å" for name, distance in pairs.items()) or "unknown"


def _smoothness(config: ModelConfig, repulsion_step: float | None) -> str:
    if config.caveat:
        return config.caveat + (f" of up to {repulsion_step:.2g} eV" if repulsion_step else "")
    if config.cutoff_function == "cosine":
        return "second derivatives step where atoms cross the cutoff"
    return "second derivatives are continuous"


def dataset(path: Path) -> Description:
    """An HDF5 file."""
    from mlff_distiller.cli import tables
    from mlff_distiller.data import HDF5Dataset, elements_of, structures_hash
    from mlff_distiller.data.survey import survey

    data = HDF5Dataset(path, require_labels=False)
    frames = data.unchecked()
    sizes = [len(s) for s in frames]
    found = survey(frames)
    result: dict[str, Any] = {
        "kind": "data",
        "path": path,
        "num_structures": len(frames),
        "num_atoms": int(sum(sizes)),
        "elements": elements_of(frames),
        "num_periodic": sum(bool(s.pbc.any()) for s in frames),
        **found.to_dict(),
        "splits": {name: len(indices) for name, indices in data.splits.items()},
        "teacher": data.teacher,
        "units": data.units,
        "versions": data.versions,
        "seed": data.seed,
        "provenance": data.provenance,
        "data_hash": structures_hash(frames),
    }
    span = f"{min(sizes)}–{max(sizes)} each" if sizes else "none"
    rows = {
        "kind": "HDF5 data",
        "structures": f"{len(frames)} ({result['num_periodic']} periodic)",
        "atoms": f"{sum(sizes):,} ({span})",
        "elements": _symbols(result["elements"]),
        "labels": ", ".join(f"{name} {count}" for name, count in found.counts.items()),
        **found.rows(),
        "splits": ", ".join(f"{name} {count}" for name, count in result["splits"].items())
        or "none stored",
        "teacher": data.teacher or "unknown",
        "units": ", ".join(f"{key} {unit}" for key, unit in data.units.items()),
        "data hash": result["data_hash"][:16],
    }
    for number, entry in enumerate(data.provenance, 1):
        origin = f", labelled by {entry['teacher']}" if entry.get("teacher") else ""
        rows[f"source {number}"] = (
            f"{entry.get('file')}: {entry.get('kind')}, {entry.get('num_structures')} structures"
            f"{origin}"
        )
    tables.tell(found.warnings)
    return result, _rows(path, rows)


def checkpoint(path: Path) -> Description:
    """A run directory or a checkpoint of training."""
    from mlff_distiller.students import StudentForceField
    from mlff_distiller.students.checkpoint import read_checkpoint

    if path.is_dir() and not any(path.glob("*.ckpt")):
        if (path / "metrics.json").exists():
            return distillation(path)
        raise InputError(
            f"{path} holds no checkpoint (best.ckpt, last.ckpt); name a run directory of train"
        )
    content = read_checkpoint(path)
    card = content.get("metadata", {})
    model = StudentForceField.load(path)
    result = {
        "kind": "checkpoint",
        "path": path,
        "elements": model.elements,
        "cutoff": model.cutoff,
        "num_parameters": model.num_parameters,
        "model_config": content.get("model_config"),
        "metadata": card,
    }
    rows = {
        "kind": "run directory" if path.is_dir() else "checkpoint",
        "elements": _symbols(model.elements),
        "cutoff": f"{model.cutoff:g} Å",
        "smoothness": _smoothness(model.config, None),
        "parameters": f"{model.num_parameters:,}",
        "epoch": str(card.get("epoch", "unknown")),
        "teacher": card.get("teacher") or "unknown",
        "accuracy": _accuracy(card.get("validation")),
        "data hash": str(card.get("data_hash") or "unknown")[:16],
    }
    return result, _rows(path, rows)


def distillation(path: Path) -> Description:
    """The output directory of ``distill``."""
    import json

    from mlff_distiller.evaluation.summary import summary_lines

    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    return {"kind": "distillation", "path": path, **metrics}, "\n".join(summary_lines(metrics))


def structures(path: Path) -> Description:
    """Any structure file that ASE reads."""
    from mlff_distiller.cli import tables
    from mlff_distiller.data import elements_of
    from mlff_distiller.data.io import read_file
    from mlff_distiller.data.survey import survey

    reading = read_file(path)
    frames = reading.structures
    found = survey(frames)
    result = {
        "kind": "structures",
        "path": path,
        "num_structures": len(frames),
        "num_atoms": sum(len(s) for s in frames),
        "elements": elements_of(frames),
        "num_labelled": found.counts["energy"],
        "reading": tables.reading_dict(reading),
        **found.to_dict(),
    }
    rows = {
        "kind": reading.kind,
        "structures": f"{len(frames)}, {result['num_labelled']} labelled",
        "atoms": f"{result['num_atoms']:,}",
        "elements": _symbols(elements_of([s for s in frames if all(s.atomic_numbers > 0)])),
        **tables.label_rows(reading),
        **tables.survey_rows(found),
    }
    doubt = [f"no labels would be taken: {reading.doubt}"] if reading.doubt else []
    notes = [*reading.notes, *reading.label_notes, *reading.hints]
    tables.tell([*doubt, *found.warnings], notes)
    return result, _rows(path, rows)


def teachers() -> Description:
    """The registry: what is installed and how to install the rest."""
    from mlff_distiller.teachers import list_teachers

    entries = [
        {"name": name, "about": about, "installed": installed, "install": install}
        for name, about, installed, install in list_teachers()
    ]
    lines = [f"{'teacher':<15}{'installed':<11}what it is, or how to install it"]
    for entry in entries:
        mark = "yes" if entry["installed"] else "no"
        lines.append(f"{entry['name']:<15}{mark:<11}{entry['about']}")
        if not entry["installed"]:
            lines.append(f"{'':<26}{entry['install']}")
    lines.append(f"{'module:Class(k=v)':<26}any ASE calculator that can be imported")
    return {"teachers": entries}, "\n".join(lines)


def _native(path: Path) -> dict[str, Any] | None:
    """What the native engine says about the file; None where it is not built."""
    from mlff_distiller.ops.engine import NativePotential
    from mlff_distiller.students.potential import native_is_built

    if not native_is_built():
        return None
    try:
        potential = NativePotential(path)
    except (RuntimeError, ValueError) as error:
        return {"error": str(error).splitlines()[0]}
    return {"instruction_set": potential.isa, "table": dict(potential.table)}


def _native_text(report: dict[str, Any] | None) -> str:
    if report is None:
        return "not built; install mlff_distiller with a C++ compiler at hand"
    if "error" in report:
        return f"refuses this file: {report['error']}"
    table = report["table"]
    text = f"reads this file, {report['instruction_set']}"
    if table.get("tabulated"):
        text += (
            f"; filters from a table of {table['intervals']} intervals with errors below "
            f"{table['value_error']:.1e} (values) and {table['derivative_error']:.1e} (slopes)"
        )
    return text


def _gpu() -> dict[str, Any] | None:
    """GPUs that the native engine can use; None where it was built without CUDA."""
    from mlff_distiller.ops.engine import gpu_report

    try:
        return gpu_report()
    except (RuntimeError, ValueError) as error:
        return {"error": str(error).splitlines()[0]}


def _gpu_text(report: dict[str, Any] | None) -> str:
    if report is None:
        return "the native engine was built without CUDA"
    if "error" in report:
        return f"cannot be used: {report['error']}"
    if not report["devices"]:
        return "built with CUDA, which finds no GPU here"
    return f"{', '.join(report['devices'])}; products by {report['products']}"


def _accuracy(errors: dict[str, Any] | None) -> str:
    text = accuracy_text(errors or {})
    split = (errors or {}).get("split")
    return f"{text} ({split})" if split else text


def _symbols(elements: list[int]) -> str:
    return " ".join(chemical_symbols[z] for z in elements)


def _rows(path: Path, rows: dict[str, str]) -> str:
    width = max(len(key) for key in rows) + 2
    return "\n".join([str(path), *(f"  {key:<{width}}{value}" for key, value in rows.items())])
