"""What OpenMM adds to the engine's time, and whether a trained student conserves energy in it.

overhead  Time of an OpenMM step with the force, minus that of the same System without it, minus
          that of the engine alone (NativePotential, less what its call from Python costs) on the
          positions of these very steps. Same skin, same threads; blocks of steps take turns, and
          the differences are medians over turns.
drift     NVE of a molecule with a trained student, 100 ps a run: slope of the total energy, single
          and double precision, and longer steps with and without heavy hydrogens.
memory    Resident memory over 5000 steps of Langevin dynamics, in a process of its own.

    python benchmarks/openmm_plugin.py --model runs/demo_molecule/student.pt
    python benchmarks/openmm_plugin.py --only overhead --quick

Parts that a run leaves out stay in the report as they were measured before. (This file is not
called openmm.py, because Python would then import it in place of OpenMM.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import in_turn, parser_of, processor, random_student, write_report
from benchmarks.openmm_report import PARTS, mass_text, plot, tables
from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.openmm import painn_force
from mlff_distiller.ops.engine import NativePotential
from mlff_distiller.sampling import starting_structures
from mlff_distiller.sampling.builtin import builtin, water_box
from mlff_distiller.units import EV_IN_KJ_PER_MOL

SKIN = 0.3  # Å
#: hidden channels × interactions: that of the molecule demo, and the default one
NETWORKS = ((32, 2), (128, 3))
BACKENDS = ("native", "python")
#: where weights and buffers happen to lie in memory makes some percent: measure several of each
INSTANCES = 4
MEMORY_STEPS, MEMORY_WARMUP = 5000, 1000
#: time step in fs, mass of hydrogen in amu (None: natural), precision of the network
RUNS: tuple[tuple[float, float | None, str], ...] = (
    (0.5, None, "single"),
    (0.5, None, "double"),
    (1.0, None, "single"),
    (1.0, 3.0, "single"),
    (1.5, 3.0, "single"),
    (2.0, 3.0, "single"),
)
TEMPERATURE = 300.0
OUTPUT = Path("build/openmm_benchmark")


# --- systems --------------------------------------------------------------------------------------
def topology_of(structure: Structure) -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for z in structure.atomic_numbers:
        element = app.Element.getByAtomicNumber(int(z))
        topology.addAtom(element.symbol, element, residue)
    if structure.pbc.all():
        topology.setPeriodicBoxVectors(structure.cell / 10)
    return topology


def masses_of(structure: Structure, hydrogen_mass: float | None = None) -> NDArray:
    """Masses in amu; what hydrogens gain their nearest heavy atoms lose."""
    masses = structure.to_atoms(labels=False).get_masses()
    if hydrogen_mass is not None:
        heavy = np.flatnonzero(structure.atomic_numbers > 1)
        for i in np.flatnonzero(structure.atomic_numbers == 1):
            distances = np.linalg.norm(structure.positions[heavy] - structure.positions[i], axis=1)
            masses[heavy[distances.argmin()]] -= hydrogen_mass - masses[i]
            masses[i] = hydrogen_mass
    return masses


def system_of(structure: Structure, masses: NDArray, force: openmm.Force | None) -> openmm.System:
    system = openmm.System()
    if structure.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in structure.cell / 10))
    for mass in masses:
        system.addParticle(float(mass))
    if force is not None:
        system.addForce(force)
    return system


def context_of(
    system: openmm.System, integrator: openmm.Integrator, name: str, threads: int
) -> openmm.Context:
    properties = {"Threads": str(threads)} if name == "CPU" else {}
    return openmm.Context(system, integrator, openmm.Platform.getPlatform(name), properties)


def weak_student(path: Path, hidden_dim: int, num_interactions: int) -> None:
    """Forces are weak, so that atoms fly on."""
    network = {"hidden_dim": hidden_dim, "num_interactions": num_interactions}
    random_student(path, (1, 6, 8), readout=0.05, **network)


# --- overhead -------------------------------------------------------------------------------------
#: a block of steps: takes a clock, gives seconds per step
Block = Callable[[Callable[[], float]], float]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Steps:
    """Blocks of NVE steps in OpenMM, each from the same positions and velocities."""

    def __init__(
        self, structure: Structure, force: openmm.Force | None, name: str, block: int, threads: int
    ) -> None:
        self.structure, self.block = structure, block
        masses = masses_of(structure)
        self.integrator = openmm.VerletIntegrator(0.0005)
        system = system_of(structure, masses, force)
        self.context = context_of(system, self.integrator, name, threads)
        normal = np.random.default_rng(0).standard_normal((len(structure), 3))
        # sqrt(kT/m) in nm/ps, with k = 0.0083145 kJ/mol/K
        self.velocities = normal * np.sqrt(0.0083145 * TEMPERATURE / masses[:, None])

    def start(self) -> None:
        self.context.setPositions(self.structure.positions / 10)
        self.context.setVelocities(self.velocities)

    def __call__(self, clock: Callable[[], float]) -> float:
        """Seconds per step of one block."""
        self.start()
        begin = clock()
        self.integrator.step(self.block)
        return (clock() - begin) / self.block

    def positions(self) -> list[NDArray]:
        """Where the force is evaluated in one block, Å."""
        self.start()
        frames = []
        for _ in range(self.block):
            state = self.context.getState(positions=True)
            frames.append(np.array(state.getPositions(asNumpy=True)._value) * 10)
            self.integrator.step(1)
        return frames


def engine_alone(model: Path, structure: Structure, frames: list[NDArray], threads: int) -> Block:
    """Seconds per call of NativePotential over the positions of a block."""
    potential = NativePotential(model, threads=threads, skin=SKIN)
    numbers, cell, pbc = structure.atomic_numbers, structure.cell, structure.pbc

    def run(clock: Callable[[], float]) -> float:
        begin = clock()
        for positions in frames:
            potential.compute(numbers, positions, cell, pbc)
        return (clock() - begin) / len(frames)

    return run


def middle(values: list[float]) -> tuple[float, float]:
    """Median and its standard error, from the median absolute deviation."""
    centre = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(v - centre) for v in values)
    return centre, 1.2533 * spread / len(values) ** 0.5


def measure_overhead(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiny, one = Path(folder) / "tiny.pt", Structure(np.array([8]), np.zeros((1, 3)))
        weak_student(tiny, 8, 1)
        call = engine_alone(tiny, one, [one.positions] * 200, 1)
        call_us = 1e6 * statistics.median(call(CLOCKS[options.clock]) for _ in range(20))
        for hidden, interactions in NETWORKS[: 1 if options.quick else None]:
            model = Path(folder) / f"{hidden}.pt"
            weak_student(model, hidden, interactions)
            for structure in (builtin("aspirin")[0], water_box(7)):
                for threads in options.threads:
                    found = turns(model, structure, threads, call_us, options)
                    rows += [{"network": f"{hidden} × {interactions}", **row} for row in found]
    return {
        "rows": rows,
        "python_call_us": call_us,
        "skin_angstrom": SKIN,
        "clock": options.clock,
    }


def turns(
    model: Path, structure: Structure, threads: int, call_us: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of one system and network: platform × back end."""
    small = len(structure) < 100
    block = 200 if small else 10
    rounds = 1 if options.quick else max(1, options.rounds * (2 if small else 1) // INSTANCES)
    topology = topology_of(structure)

    def steps(name: str, backend: str | None) -> Steps:
        force = None
        if backend is not None:
            force = painn_force(topology, model, backend=backend, threads=threads, skin=SKIN)
        return Steps(structure, force, name, block, threads)

    frames = steps(options.platforms[0], "native").positions()
    engine: tuple[str, str | None] = ("engine", None)
    in_openmm = [(name, backend) for name in options.platforms for backend in (None, *BACKENDS)]
    keys = [engine, *in_openmm]
    times: dict[tuple[str, str | None], list[float]] = {key: [] for key in keys}
    clock, generator = CLOCKS[options.clock], random.Random(0)
    alive = []  # so that the next ones lie elsewhere in memory
    for _ in range(INSTANCES):
        runs: dict[tuple[str, str | None], Block] = {key: steps(*key) for key in in_openmm}
        runs[engine] = engine_alone(model, structure, frames, threads)
        alive.append(runs)
        for run in runs.values():
            run(clock)
        blocks = {key: partial(run, clock) for key, run in runs.items()}
        for key, seconds in in_turn(blocks, rounds, shuffle=generator).items():
            times[key] += [1e6 * value for value in seconds]

    rows = []
    alone = [value - call_us for value in times[engine]]
    for name in options.platforms:
        for backend in BACKENDS:
            empty, full = times[name, None], times[name, backend]
            added = [f - e - a for f, e, a in zip(full, empty, alone, strict=True)]
            overhead, error = middle(added)
            row = {
                "atoms": len(structure),
                "threads": threads,
                "platform": name,
                "backend": backend,
                "engine_us": statistics.median(alone),
                "without_us": statistics.median(empty),
                "with_us": statistics.median(full),
                "overhead_us": overhead,
                "error_us": error,
                "overhead_percent": 100 * overhead / statistics.median(alone),
                "rounds": len(added),
                "steps_per_round": block,
            }
            rows.append(row)
            print(
                f"{row['atoms']:>5} atoms, {name:>9}, {backend:>6}: engine {row['engine_us']:.1f}, "
                f"OpenMM alone {row['without_us']:.1f}, added {overhead:.1f} ± {error:.1f} µs"
            )
    return rows


# --- drift ----------------------------------------------------------------------------------------
def trajectory(
    structure: Structure,
    options: argparse.Namespace,
    run: tuple[float, float | None, str],
    seed: int,
) -> tuple[NDArray, NDArray, float]:
    """Times (ps) and total energies (eV/atom) of one NVE run after equilibration, and mean T."""
    femtoseconds, hydrogen_mass, precision = run
    topology, masses = topology_of(structure), masses_of(structure, hydrogen_mass)

    def context(integrator: openmm.Integrator) -> openmm.Context:
        force = painn_force(
            topology, options.model, precision=precision, threads=options.threads[0], skin=SKIN
        )
        system = system_of(structure, masses, force)
        return context_of(system, integrator, "CPU", options.threads[0])

    warm = openmm.LangevinMiddleIntegrator(TEMPERATURE, 5.0, 0.0005)
    warm.setRandomNumberSeed(seed)
    first = context(warm)
    first.setPositions(structure.positions / 10)
    openmm.LocalEnergyMinimizer.minimize(first, maxIterations=100)
    first.setVelocitiesToTemperature(TEMPERATURE, seed)
    warm.step(200 if options.quick else 10_000)
    state = first.getState(positions=True, velocities=True)

    integrator = openmm.VerletIntegrator(femtoseconds / 1000)
    second = context(integrator)
    second.setPositions(state.getPositions())
    second.setVelocities(state.getVelocities())
    interval = max(1, round(20 / femtoseconds))
    count = int(options.picoseconds * 1000 / femtoseconds / interval)
    unit = EV_IN_KJ_PER_MOL * len(structure)
    times, energies, kinetic = [], [], []
    for _ in range(count):
        integrator.step(interval)
        state = second.getState(energy=True)
        kinetic.append(state.getKineticEnergy()._value)
        times.append(state.getTime()._value)
        energies.append((state.getPotentialEnergy()._value + kinetic[-1]) / unit)
    temperature = 2 * float(np.mean(kinetic)) / (3 * len(structure) - 3) / 0.0083145
    return np.array(times), np.array(energies), temperature


def measure_drift(options: argparse.Namespace) -> dict[str, Any]:
    structure = starting_structures(options.structure)[-1]
    rows = []
    for run in RUNS[:2] if options.quick else RUNS:
        slopes, noises, temperatures, traces = [], [], [], []
        for seed in range(1, options.trajectories + 1):
            times, energies, temperature = trajectory(structure, options, run, seed)
            slope, offset = np.polyfit(times, energies, 1)
            slopes.append(float(slope))
            noises.append(float(np.std(energies - slope * times - offset)))
            temperatures.append(temperature)
            parts = np.array_split(np.arange(len(times)), min(100, len(times)))
            traces.append([[float(v[part].mean()) for part in parts] for v in (times, energies)])
        mean = float(np.mean(slopes))
        error = float(np.std(slopes, ddof=1) / len(slopes) ** 0.5) if len(slopes) > 1 else None
        row = {
            "step_fs": run[0],
            "hydrogen_amu": run[1],
            "precision": run[2],
            "picoseconds": options.picoseconds,
            "drift": mean,
            "error": error,
            "slopes": slopes,
            "noise": float(np.mean(noises)),
            "temperature": float(np.mean(temperatures)),
            "traces": traces,
        }
        rows.append(row)
        print(
            f"{run[0]} fs, {mass_text(row)} hydrogen, {run[2]}: drift {mean:+.1e}"
            f"{'' if error is None else f' ± {error:.0e}'} eV/atom/ps at {row['temperature']:.0f} K"
        )
    return {"rows": rows, "atoms": len(structure), "structure": Path(options.structure).name}


# --- memory ---------------------------------------------------------------------------------------
def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_worker(model: str, source: str, backend: str, steps: int) -> None:
    """Prints the resident memory in the course of a run, as JSON."""
    structure = starting_structures(source)[-1]
    force = painn_force(topology_of(structure), model, backend=backend, threads=1)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 5.0, 0.0005)
    context = context_of(system_of(structure, masses_of(structure), force), integrator, "CPU", 1)
    context.setPositions(structure.positions / 10)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(min(MEMORY_WARMUP, steps))
    series = [resident_bytes()]
    for _ in range(20):
        integrator.step(steps // 20)
        series.append(resident_bytes())
    print(json.dumps(series))


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    steps = 200 if options.quick else MEMORY_STEPS
    rows = []
    for backend in BACKENDS:
        command = [sys.executable, __file__, "--memory-worker", str(options.model)]
        command += [options.structure, backend, str(steps)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        series = json.loads(done.stdout.splitlines()[-1])
        growth = 100 * (series[-1] - series[0]) / series[0]
        rows.append({"backend": backend, "steps": steps, "bytes": series, "growth_percent": growth})
        print(f"{backend:>6}: {series[0] / 1e6:.1f} MB, {growth:+.3f} % after {steps} steps")
    return {"rows": rows}


def main() -> None:
    parser = parser_of(__doc__, quick="seconds instead of minutes", output=OUTPUT)
    parser.add_argument("--model", type=Path, default=Path("runs/demo_molecule/student.pt"))
    parser.add_argument("--structure", default="builtin:aspirin", help="molecule of the model")
    parser.add_argument("--only", nargs="*", default=list(PARTS), help="parts; none: draw again")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--platforms", nargs="+", default=["CPU", "Reference"])
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="of the overhead; cpu on a busy machine"
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of the overhead")
    parser.add_argument("--picoseconds", type=float, help="of an NVE run (100; quick 1)")
    parser.add_argument("--trajectories", type=int, help="NVE runs a row (4; quick 2)")
    parser.add_argument("--memory-worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_worker:
        model, source, backend, steps = options.memory_worker
        memory_worker(model, source, backend, int(steps))
        return
    unknown = sorted(set(options.only) - set(PARTS))
    if unknown:
        raise InputError(f"--only takes {', '.join(PARTS)}, got {unknown[0]!r}; correct it")
    options.picoseconds = options.picoseconds or (1 if options.quick else 100)
    options.trajectories = options.trajectories or (2 if options.quick else 4)
    if set(options.only) - {"overhead"} and not options.model.is_file():
        raise InputError(
            f"drift and memory need a trained student, got {options.model}, which is no file; "
            "run `make demo DEMO=molecule`, or pass --model and --structure"
        )
    saved = options.output / "openmm.json"
    report = json.loads(saved.read_text()) if saved.is_file() else {}
    measure = {"overhead": measure_overhead, "drift": measure_drift, "memory": measure_memory}
    for part in options.only:
        about = {
            "machine": processor(),
            "openmm": openmm.Platform.getOpenMMVersion(),
            "load": os.getloadavg()[0],
            "quick": options.quick,
        }
        report[part] = {"about": about, **measure[part](options)}
        write_report(options.output, "openmm", report)
    text = tables(report)
    write_report(options.output, "openmm", report, text, plot)
    print("\n" + text)
    print(f"wrote openmm.json, openmm.md and openmm.png in {options.output}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
