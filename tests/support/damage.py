"""Damaged files: what a reader makes of one is its own one-line error, or exactly what was written.

python -m support.damage 5000        (in tests/) many more mutations than the test tries
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff_distiller.config import ModelConfig
from mlff_distiller.data import HDF5Dataset, Structure, ensure_splits, write_structures
from mlff_distiller.errors import InputError
from mlff_distiller.ops.engine import NativePotential
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.checkpoint import read_checkpoint, save_checkpoint
from mlff_distiller.students.export import export_student
from mlff_distiller.students.portable import PortablePotential
from mlff_distiller.students.student import load_student

METADATA = "extra/metadata.json"
ATOMS = (
    np.array([8, 1, 1]),
    np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]),
    np.zeros((3, 3)),
    np.zeros(3, dtype=bool),
)


def student() -> StudentForceField:
    """A small one with random weights."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_dim=8, num_interactions=1, num_rbf=4, cutoff=3.0, zbl=False)
    return StudentForceField(config, [1, 8], [-13.5, -2040.25])


def write_whole(folder: Path) -> dict[str, Path]:
    """A file of every kind."""
    model = student()
    rng = np.random.default_rng(0)
    export_student(model, folder / "student.pt", {"teacher": "none", "min_distance": 0.9})
    save_checkpoint(folder / "best.ckpt", model.stored(), metadata={"teacher": "none"})
    structures = [
        Structure([8, 1, 1], ATOMS[1] + rng.normal(0, 0.1, (3, 3)), energy=rng.normal(),
                  forces=rng.normal(size=(3, 3)), info={"source": f"frame {i}"})
        for i in range(12)
    ]  # fmt: skip
    write_structures(folder / "data.h5", structures, teacher="none", seed=3)
    ensure_splits(folder / "data.h5")
    return {name: folder / name for name in READERS}


def read_model(path: Path) -> list[Any]:
    """Numbers of the two engines, and the student for training."""
    native = NativePotential(str(path), dtype="float64", tabulate=False).compute(*ATOMS)
    portable = PortablePotential(path).compute(*ATOMS)
    state = load_student(path).state_dict()
    return [
        *(out[key] for out in (native, portable) for key in ("energy", "forces", "virial")),
        *(value.numpy() for value in state.values()),
    ]


def read_native(path: Path) -> list[Any]:
    """Numbers of the engine of LAMMPS and OpenMM, which knows nothing of Python."""
    out = NativePotential(str(path), dtype="float64", tabulate=False).compute(*ATOMS)
    return [out["energy"], out["forces"], out["virial"]]


def read_run(path: Path) -> list[Any]:
    """Weights and metadata of a checkpoint."""
    content = read_checkpoint(path)
    state = load_student(path).state_dict()
    return [repr(content["metadata"]), *(value.numpy() for value in state.values())]


def read_data(path: Path) -> list[Any]:
    """Everything that training takes, read whole and one by one."""
    found: list[Any] = []
    for in_memory in (True, False):
        data = HDF5Dataset(path, in_memory=in_memory)
        found += [data.hash(), data.teacher, data.seed, repr(data.progress), repr(data.units)]
        found += [repr([s.info for s in data]), *data.splits.values()]
    return found


READERS: dict[str, Callable[[Path], list[Any]]] = {
    "student.pt": read_model,
    "best.ckpt": read_run,
    "data.h5": read_data,
}


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four bytes are others: anywhere, or where there is something (HDF5 has wide gaps)."""
    changed = bytearray(data)
    filled = np.flatnonzero(np.frombuffer(data, np.uint8))
    places = filled if rng.random() < 0.5 else np.arange(len(data))
    for place in rng.choice(places, int(rng.integers(1, 5))):
        changed[int(place)] ^= int(rng.integers(1, 256))
    return bytes(changed)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The beginning of a file; what follows is missing or zero."""
    end = int(rng.integers(len(data)))
    return data[:end] + bytes(len(data) - end if rng.random() < 0.3 else 0)


def with_other_metadata(data: bytes, rng: np.random.Generator) -> bytes:
    """metadata.json damaged before the zip was made: its CRC-32 fits."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(METADATA):
                content = (flipped if rng.random() < 0.7 else cut)(content, rng)
            new.writestr(entry.filename, content)
    return buffer.getvalue()


def mutate(name: str, data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy of the content of file ``name``."""
    kinds = [flipped, flipped, cut]
    if name == "student.pt":
        kinds += [with_other_metadata, with_other_metadata]
    return kinds[int(rng.integers(len(kinds)))](data, rng)


def outcome(read: Callable[[Path], list[Any]], path: Path, right: list[Any]) -> str:
    """``refused``, ``right``, or what a user should not have seen."""
    try:
        found = read(path)
    except InputError as error:
        text = str(error)
        return "refused" if "\n" not in text and path.name in text else f"unclear: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    same = len(found) == len(right) and all(map(np.array_equal, found, right))
    return "right" if same else "wrong numbers"


def outcomes(path: Path, count: int, seed: int) -> Counter[str]:
    """What becomes of ``count`` damaged copies of a file."""
    read, data, rng = READERS[path.name], path.read_bytes(), np.random.default_rng(seed)
    right = read(path)
    found: Counter[str] = Counter()
    copy = path.with_name("copy_" + path.name)
    for _ in range(count):
        copy.write_bytes(mutate(path.name, data, rng))
        found[outcome(read, copy, right)] += 1
    return found


def main(count: int, *names: str) -> None:
    """Print what became of ``count`` copies of each file."""
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_whole(Path(folder)).items():
            if name in (names or READERS):
                print(name, dict(outcomes(path, count, seed=1)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
