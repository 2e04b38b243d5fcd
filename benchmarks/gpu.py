"""Time the student on a GPU beside the CPU engine, LAMMPS, OpenMM, torch, its teacher and peers.

Correctness first: energies and forces of the GPU against the CPU engine in float64, in float64 and
float32, with and without a CUDA graph; nothing is timed when they disagree. Then water from 81 to a
million atoms; every call moves all atoms by 0.01 Å and returns energy and forces to the host, as in
dynamics. LAMMPS, OpenMM and the same network in plain torch: gpu_engines.py. Peers (SchNetPack, MACE,
NequIP) run in environments of their own (benchmarks/peers) with their usual torch.

    python benchmarks/gpu.py --quick
    python benchmarks/gpu.py --teacher sevennet-0 --peers schnetpack,mace,nequip

Exit status: 0 measured, 1 the GPU's results are wrong, 2 there is nothing to measure on (no GPU, or an
engine compiled without CUDA), 3 the GPU failed on the way; with one line that says what. The report
holds whatever was measured until then.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks import gpu_engines, gpu_report
from benchmarks.common import RESULTS, parser_of, spread, water, write_structure
from benchmarks.peers.environments import PEERS as KNOWN_PEERS
from benchmarks.peers.environments import Peer, python_of
from benchmarks.peers.run import Worker
from benchmarks.scaling import export_model
from mlff_distiller.constants import MATHS
from mlff_distiller.errors import DeviceError, InputError
from mlff_distiller.ops import engine

ROOT = Path(__file__).resolve().parents[1]
SIDES = (3, 7, 15, 32, 69)  # waters: 81 ... 985,527 atoms
QUICK = (3, 7)
STEP = 0.01  # Å
SKIN = 0.3  # Å
#: Largest deviation from the CPU engine in float64: energy per atom (eV), force relative to the
#: largest one.
LIMITS = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-5)}
PEERS = ("schnetpack", "mace", "nequip")
ENGINES = ("lammps", "openmm", "torch", "torch.compile")


def require_gpu(device: str) -> str:
    """The device's name.

    Raises:
        InputError: there is none, with what to do.
    """
    index = engine.device_index(device)
    if index is None:
        raise InputError(
            f"--device must be cuda or cuda:N, got {device}; for the CPU run scaling.py"
        )
    module = engine.gpu_module()
    if not 0 <= index < module.gpu_count():
        raise InputError(
            f"no GPU {index} is usable here ({module.gpu_count()} found); run this where "
            "nvidia-smi lists one"
        )
    return str(module.gpu_name(index))


def check_systems() -> dict[str, tuple[Any, ...]]:
    """Periodic, skewed and open water, and one atom: (numbers, positions, cell, pbc)."""
    numbers, positions, cell = water(4)
    skew = np.array([[1, 0, 0], [0.2, 1, 0], [-0.1, 0.15, 1]])
    periodic, open_ = np.array([True] * 3), np.array([False] * 3)
    return {
        "periodic": (numbers, positions, cell, periodic),
        "skewed": (numbers, positions @ skew, cell @ skew, periodic),
        "open": (numbers, positions, np.zeros((3, 3)), open_),
        "slab": (numbers, positions, cell, np.array([True, True, False])),
        "one atom": (numbers[:1], positions[:1], np.zeros((3, 3)), open_),
    }


def check(path: Path, device: str, systems: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Deviations from the CPU engine in float64; rows beyond the limits have ``ok`` False. For modes
    that round more by intent they are only reported.

    Raises:
        DeviceError: the GPU failed.
    """
    exact = engine.NativePotential(path, dtype="float64")
    for dtype, math in (("float64", "float32"), *(("float32", math) for math in MATHS)):
        for graph in (False, True):
            potential = open_on_gpu(path, dtype=dtype, device=device, math=math, graph=graph)
            for label, (numbers, positions, cell, pbc) in systems.items():
                for move in range(3):  # a list, the list again, the captured graph
                    moved = positions + 0.02 * move * np.sin(np.arange(positions.size)).reshape(
                        -1, 3
                    )
                    want = exact.compute(numbers, moved, cell, pbc)
                    got = potential.compute(numbers, moved, cell, pbc)
                energy = float(np.abs(got["energies"] - want["energies"]).max())
                scale = max(1.0, float(np.abs(want["forces"]).max()))
                force = float(np.abs(got["forces"] - want["forces"]).max()) / scale
                rounded = math != "float32"
                limits = LIMITS[dtype]
                within = energy <= limits[0] and force <= limits[1]
                yield {
                    "system": label,
                    "dtype": dtype,
                    "math": math,
                    "graph": graph,
                    "energy_eV": energy,
                    "force": force,
                    "ok": bool(np.isfinite(force) and (rounded or within)),
                }


def open_on_gpu(path: Path, **options: Any) -> engine.NativePotential:
    """Without the warning of every potential that cuBLAS is missing: the report says so once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return engine.NativePotential(path, **options)


def without_folder(products: str) -> str:
    """What multiplies, without where it lies on this machine."""
    return re.sub(r"\(/.*/", "(", products)


def timed(call: Callable[[], Any], seconds: float, warm_up: int = 5) -> dict[str, Any]:
    """Median and extremes of calls that take about ``seconds`` together, at least 5."""
    for _ in range(warm_up):
        call()
    spent: list[float] = []
    while len(spent) < 5 or (sum(spent) < seconds and len(spent) < 1000):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return spread(spent)


def moving(potential: engine.NativePotential, system: tuple[Any, ...]) -> Callable[[], Any]:
    """A call that moves all atoms to one of four frames, none of which needs a new list."""
    numbers, positions, cell, pbc = system
    rng = np.random.default_rng(1)
    limit = SKIN / 2 / np.sqrt(3) * 0.9
    steps = [np.clip(rng.normal(0, STEP, positions.shape), -limit, limit) for _ in range(4)]
    frames = [positions + step for step in steps]
    potential.compute(numbers, positions, cell, pbc)
    turn = iter(range(10**9))
    return lambda: potential.compute(numbers, frames[next(turn) % 4], cell, pbc)


def student_row(
    path: Path, system: tuple[Any, ...], seconds: float, **options: Any
) -> dict[str, Any]:
    """One mode. Its potential is gone when this returns: a million atoms take 55 GB.

    Raises:
        DeviceError: the GPU failed in another way than by having too little memory.
    """
    row = {"what": "student, GPU", "math": options["math"], "graph": options["graph"],
           "rebuild": options["skin"] == 0.0}  # fmt: skip
    try:
        potential = open_on_gpu(path, **options)
        call = moving(potential, system)
        builds = potential.num_builds
        row.update(timed(call, seconds))
    except DeviceError as error:
        if "out of memory" not in str(error):
            raise
        return {**row, "not_measured": str(error)}
    return {**row, "builds": potential.num_builds - builds, "products": without_folder(potential.products),
            "memory_GB": potential.memory_bytes / 1e9}  # fmt: skip


def student_rows(
    path: Path, device: str, system: tuple[Any, ...], seconds: float
) -> Iterator[dict[str, Any]]:
    """The GPU in all its modes, and with the list built in every call."""
    modes = [(math, graph, SKIN) for math in MATHS for graph in (True, False)]
    for math, graph, skin in [*modes, ("float32", True, 0.0)]:
        yield student_row(path, system, seconds, device=device, math=math, graph=graph, skin=skin)


def engine_rows(
    options: argparse.Namespace, path: Path, system: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    """LAMMPS, OpenMM and torch, those that were asked for."""
    wanted, folder = options.engines, options.cache / "lammps"
    for math in ("float32", "tf32"):
        if "lammps" in wanted:
            yield gpu_engines.lammps_row(path, system, math, folder)
        if "openmm" in wanted:
            yield gpu_engines.openmm_row(path, system, math, options.device)
            if math == "float32":
                yield gpu_engines.openmm_row(path, system, math, options.device, "native")
    if "torch" in wanted or "torch.compile" in wanted:
        few = len(system[0]) <= gpu_engines.MOST_ATOMS_IN_TORCH
        forces = engine.NativePotential(path).compute(*system)["forces"] if few else None
        yield from gpu_engines.torch_rows(
            path, system, options.seconds, forces, "torch.compile" in wanted
        )


def cpu_row(path: Path, system: tuple[Any, ...], seconds: float) -> dict[str, Any]:
    potential = engine.NativePotential(path, skin=SKIN)
    row = {
        "what": f"student, CPU, {potential.threads} threads",
        **timed(moving(potential, system), seconds),
    }
    return {**row, "memory_GB": potential.memory_bytes / 1e9}


class Peers:
    """Peers and the teacher on the GPU, each in a process of its own (benchmarks/peers)."""

    def __init__(
        self, names: list[str], teacher: str, device: str, cache: Path, same_python: bool
    ) -> None:
        self.peers = [peer for peer in KNOWN_PEERS if peer.name in names]
        if same_python:
            self.peers = [replace(peer, environment="") for peer in self.peers]
        if teacher:
            self.peers.append(
                Peer("teacher", f"teacher {teacher}", "teacher", "", {"teacher": teacher})
            )
        self.device, self.cache = device, cache
        self.gave_up: dict[str, str] = {}

    def row(self, peer: Any, system: tuple[Any, ...], seconds: float) -> dict[str, Any]:
        """One peer on one system; after a failure, larger systems are not tried."""
        atoms = len(system[0])
        out: dict[str, Any] = {"what": peer.label}
        if peer.name in self.gave_up:
            return {**out, "not_measured": self.gave_up[peer.name]}
        path = self.cache / f"water-{atoms}.json"
        write_structure(path, *system)
        worker = None
        try:
            python = python_of(peer.environment, self.cache)
            worker = Worker(peer, python, os.cpu_count() or 1, self.cache, True, gpu=True)
            loaded = worker.ask(
                "load", timeout=1200.0, system=str(path), folder=str(self.cache),
                threads=os.cpu_count() or 1, options={**peer.options, "device": self.device},
                warm_up=max(3, peer.warm_up),
            )  # fmt: skip
            calls = int(min(200, max(5, seconds / max(loaded["call_s"], 1e-6))))
            spent = worker.ask("measure", timeout=1200.0, calls=calls)["seconds"]
            out["version"] = loaded["version"]
        except (RuntimeError, OSError) as error:
            self.gave_up[peer.name] = f"with {atoms:,} atoms: {error}"
            return {**out, "not_measured": self.gave_up[peer.name]}
        finally:
            if worker:
                worker.close()
        return {**out, **spread(spent)}


def measure(options: argparse.Namespace, path: Path, report: dict[str, Any]) -> None:
    """Everything, into ``report``, which is written after each size and at the end, whatever ends it.

    Raises:
        DeviceError: the GPU failed.
    """
    try:
        for row in check(path, options.device, check_systems()):
            report["checks"].append(row)
        if not all(row["ok"] for row in report["checks"]):
            return
        torch_device = "cuda" if options.device == "cuda" else options.device
        peers = Peers(
            options.peers, options.teacher, torch_device, options.cache, options.same_python
        )
        for side in options.sides:
            numbers, positions, cell = water(side)
            system = (numbers, positions, cell, np.array([True] * 3))
            atoms = {"atoms": len(numbers)}
            for row in student_rows(path, options.device, system, options.seconds):
                report["rows"].append({**atoms, **row})
            if len(numbers) <= options.cpu_atoms:
                report["rows"].append({**atoms, **cpu_row(path, system, options.seconds)})
            for row in engine_rows(options, path, system):
                report["rows"].append({**atoms, **row})
            for peer in peers.peers:
                report["rows"].append({**atoms, **peers.row(peer, system, options.seconds)})
            gpu_report.write(report, options.output)
            print(f"{len(numbers):,} atoms: done", flush=True)
    except DeviceError as error:
        report["failed"] = str(error)
        raise
    finally:
        if report["checks"]:
            gpu_report.write(report, options.output)


def arguments() -> argparse.Namespace:
    quick = "81 and 1029 atoms, no other engines, no peers, 0.5 s a row"
    parser = parser_of(__doc__, quick=quick, output=RESULTS)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--model", type=Path, help="exported student; random weights without")
    parser.add_argument("--teacher", default="sevennet-0", help="of the registry; empty: none")
    parser.add_argument("--peers", default=",".join(PEERS), help="of benchmarks/peers; empty: none")
    parser.add_argument(
        "--same-python", action="store_true", help="peers are installed here: no own environments"
    )
    parser.add_argument(
        "--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}; empty: none"
    )
    parser.add_argument("--sides", type=int, nargs="+", help="molecules along an edge of the box")
    parser.add_argument("--seconds", type=float, default=3.0, help="per row")
    parser.add_argument("--cpu-atoms", type=int, default=110_000, help="largest for the CPU engine")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "gpu_peers")
    options = parser.parse_args()
    if options.quick:
        options.peers = options.teacher = options.engines = ""
        options.seconds = 0.5
    options.sides = options.sides or (QUICK if options.quick else SIDES)
    options.peers = [name for name in options.peers.split(",") if name]
    options.engines = [name for name in options.engines.split(",") if name]
    return options


def main() -> int:
    options = arguments()
    report: dict[str, Any] = {"checks": [], "rows": []}
    try:
        name = require_gpu(options.device)
        report = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "device": name,
            "products": without_folder(engine.gpu_module().gpu_products()),
            "model": str(options.model.name)
            if options.model
            else "random weights, F = 128, 3 interactions",
            **report,
        }
        with tempfile.TemporaryDirectory() as folder:
            path = options.model or Path(folder) / "student.pt"
            if not options.model:
                export_model(path)
            measure(options, path, report)
    except InputError as error:
        print(f"nothing measured: {error}", file=sys.stderr)
        return 2
    except DeviceError as error:
        print(f"the GPU failed: {error} ({len(report['checks'])} checks and "
              f"{len(report['rows'])} rows before are in {options.output})", file=sys.stderr)  # fmt: skip
        return 3
    wrong = [row for row in report["checks"] if not row["ok"]]
    if wrong:
        row = max(wrong, key=lambda r: r["force"])
        print(
            f"nothing timed: {len(wrong)} of {len(report['checks'])} checks failed; {row['system']}, "
            f"{row['dtype']}, graph {row['graph']}: energies differ from the CPU engine's by "
            f"{row['energy_eV']:.1e} eV, forces by {row['force']:.1e}; please report it with "
            f"{options.output / 'gpu.json'}",
            file=sys.stderr,
        )
        return 1
    print(gpu_report.markdown(report))
    print(f"wrote gpu.md, gpu.json and gpu.png in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
