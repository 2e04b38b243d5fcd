"""All that the emulated engine can do, once, under one schedule: for sanitizers and the race detector.

    python workout.py FOLDER_OF_THE_MODULE FOLDER_OF_STUDENTS SCHEDULE

Its last line says who watched and what was launched, as JSON. tests/test_cuda_watched.py runs it and compares
that with the sources; results are only asked to be finite here and compared with the CPU's elsewhere.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import _cuda_emulated as gpu
import numpy as np
import pytest
from support.students import ELEMENTS
from support.systems import OPEN, SYSTEMS, random_system
from test_cuda_ghosts import Plan, with_ghosts
from test_cuda_particles import Slots

from mlff_distiller.errors import InputError

SKIN = 0.3
# Single, half, double; of the fused networks and of products one by one.
PRECISIONS = (
    {"dtype": "float32"},
    {"dtype": "float32", "math": "half"},
    {"dtype": "float32", "math": "half", "fuse": False},
    {"dtype": "float32", "math": "tf32"},
    {"dtype": "float64"},
    {"dtype": "float64", "fuse": False},
)


def watched() -> list[str]:
    """What the module was compiled for."""
    module = ctypes.CDLL(gpu.__file__)
    races = module._ZN9cuda_host12race_enabledEv() & 1
    found = {"sanitized": hasattr(module, "__asan_init"), "races": races}
    return [name for name, is_it in found.items() if is_it]


def compute(potential, system, **options):
    numbers, positions, cell, pbc = system
    out = potential.compute(np.asarray(numbers, np.int64), positions, cell, pbc, **options)
    for name, values in out.items():
        assert np.isfinite(values).all(), name
    return out


def moved(system, by: float):
    numbers, positions, cell, pbc = system
    return numbers, positions + by, cell, pbc


def steps(students: Path) -> None:
    """Enqueued, captured, launched again, with and without the conditional node's build of a list."""
    for name, labels in (("one", ("molecule",)), ("odd", ("tiny",)), ("zbl", ("skewed", "tiny"))):
        for options in PRECISIONS:
            potential = gpu.GpuPotential(str(students / f"{name}.pt"), skin=SKIN, **options)
            for label in labels:
                system, before = SYSTEMS[label](), potential.num_builds
                launched = potential.num_graph_launches
                for by in (0.0, 0.01, 0.3, 0.31):
                    compute(potential, moved(system, by), atom_virials=True)
                assert potential.num_builds == before + 2
                assert potential.num_graph_launches == launched + 3


def sizes(students: Path) -> None:
    """All channels of the fused networks; blocks of eight atoms; lists that overflow; nothing at all."""
    nothing = np.zeros(0, int), np.zeros((0, 3)), np.zeros((3, 3)), np.zeros(3, bool)
    for dtype in ("float32", "float64"):
        full = gpu.GpuPotential(str(students / "default.pt"), dtype=dtype)
        compute(full, SYSTEMS["tiny"]())
        # More than the 512 of blocks of four, and the last block is not full.
        many = random_system(515, 31.0, OPEN, seed=8)
        small = gpu.GpuPotential(str(students / "other.pt"), dtype=dtype)
        compute(small, many)
        compute(small, nothing)
        compute(small, many, forces=False)
    crowded = random_system(60, 6.0, seed=3, distance=0.7)
    potential = gpu.GpuPotential(str(students / "odd.pt"))
    compute(potential, crowded)
    assert potential.num_edges > 64 * 60


def ghosts(students: Path) -> None:
    """As LAMMPS has them: of this process, of others with rows packed for them, weighted energies."""
    # (part of other processes, options, reach beyond the cutoff: the last makes scans take two rounds)
    ways = (
        (0.0, {}, 0.3),
        (0.5, {}, 0.3),
        (0.5, {"device_exchange": True}, 0.3),
        (1.0, {"fuse": False}, 0.3),
        (0.0, {"graph": False}, 12.0),
    )
    system = SYSTEMS["skewed"]()
    n, rng = len(system[0]), np.random.default_rng(0)
    for share, options, reach in ways:
        if "device_exchange" in options and "sanitized" in watched():
            continue  # numpy plays MPI, and a host that touches device memory is reported
        positions, owners = with_ghosts(system, 4.0 + reach)
        assert reach == 0.3 or len(positions) > 4096
        order = np.concatenate([np.arange(n), owners])
        species = np.array([ELEMENTS.index(z) for z in system[0]], np.int32)[order]
        plan = Plan(n, owners, rng.random(len(owners)) < share)
        for dtype in ("float32", "float64"):
            rows_of = gpu.GpuSystem(str(students / "zbl.pt"), dtype=dtype, skin=SKIN, **options)
            for step in range(3):
                plan.begin(rows_of, n, species, positions + 0.01 * step, step == 0, True)
                while share and (rows := rows_of.advance()):
                    plan.swap(rows)
                assert np.isfinite(rows_of.finish()["forces"]).all()
    alone = gpu.GpuSystem(str(students / "zbl.pt"), dtype="float32", skin=SKIN)
    none = np.zeros(0, np.int32)
    species = np.array([ELEMENTS.index(z) for z in system[0]], np.int32)
    alone.begin(n, species, system[1], none, rng.normal(size=n), True)
    while alone.advance():
        pass
    assert np.isfinite(alone.finish()["forces"]).all()


def particles(students: Path) -> None:
    """As OpenMM has them, in every precision of its positions; a step that nobody finishes."""
    for dtype, precision in (("float32", "single"), ("float32", "mixed"), ("float64", "double")):
        slots = Slots(SYSTEMS["skewed"](), np.arange(5, 45), 70)
        potential = slots.potential(gpu, students / "zbl.pt", dtype)
        for by in (0.0, 0.01, 0.3, 0.31):
            arrays = slots.arrays(slots.positions + by, precision)
            assert np.isfinite(slots.compute(potential, arrays)[1]).all()
        assert potential.num_graph_launches == 3
        given, rest, order, before, _ = slots.arrays(slots.positions, precision)
        potential.start(given, rest, order, slots.cell, True, True, before)
        slots.compute(potential, slots.arrays(slots.positions, precision), forces=False)


def uncertainties(students: Path) -> None:
    for options in ({"dtype": "float32"}, {"dtype": "float64", "fuse": False}):
        potential = gpu.GpuPotential(str(students / "uncertain.pt"), **options)
        for label in ("molecule", "tiny", "tiny", "tiny"):
            compute(potential, SYSTEMS[label](), uncertainties=True)


def faults(students: Path) -> None:
    """Input that is refused is named by a kernel of its own, and the next list is built anew."""
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    potential = gpu.GpuPotential(str(students / "zbl.pt"), dtype="float32")
    for row in (positions[3], np.full(3, np.nan)):
        bad = positions.copy()
        bad[7] = row
        with pytest.raises(InputError, match="7"):
            compute(potential, (numbers, bad, cell, pbc))
        compute(potential, (numbers, positions, cell, pbc))


def products() -> None:
    """Tiles that are not full, of every rounding; and as cuBLAS is called."""
    for dtype in (np.float32, np.float64):
        arrays = (np.ones(shape, dtype) for shape in ((65, 43), (40, 70), (65, 75)))
        a, b, c = arrays
        for math in ("float32", "tf32"):
            for cublas in (False, True):
                for accumulate in (False, True):
                    out = gpu.multiply(a, 40, b, c, accumulate, math, cublas)
                    assert (out[:, :70] == 40 + accumulate).all()
                    assert (out[:, 70:] == 1).all()


def messages() -> None:
    """The operators of training, to the second derivative."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for n, e, f, parts in ((5, 17, 33, 3), (5, 17, 8, 2), (1, 0, 1, 3), (0, 0, 4, 3)):
            shapes = {"x": (n, parts * f), "v": (n, 3, f), "w": (e, parts * f), "r": (e, 3)}
            shapes |= {"h" + k: shape for k, shape in shapes.items()} | {
                "g": (n, f),
                "G": (n, 3, f),
            }
            arrays = {k: rng.normal(size=shape).astype(dtype) for k, shape in shapes.items()}
            for side in ("sender", "receiver"):
                atoms = rng.integers(0, max(n, 1), e)
                groups = np.argsort(atoms, kind="stable")
                arrays[side + "s"], arrays[side + "_edges"] = atoms, groups
                arrays[side + "_offsets"] = np.searchsorted(atoms[groups], np.arange(n + 1))
            for order in ("forward", "backward", "double_backward"):
                for name, result in gpu.message(order, arrays).items():
                    assert np.isfinite(result).all(), name


def main() -> None:
    students = Path(sys.argv[2])
    gpu.set_schedule(int(sys.argv[3]))
    gpu.reset_counters()
    for part in (steps, sizes, ghosts, particles, uncertainties, faults):
        part(students)
    products()
    messages()
    print(json.dumps({"watched": watched(), "launches": gpu.counters()["launches"]}))


if __name__ == "__main__":
    main()
