"""What each ``math`` of a GPU costs: errors of a student's forces, and of its energy's conservation.

Against the CPU engine in float64, on rattled copies of a structure:

- forces and energies;
- work: how far forces are from being derivatives of the same potential's energy, by central differences
  along random directions, less the same in float64, for each length of the step;
- a run without a thermostat: slope and scatter of its total energy.

    python benchmarks/gpu_rounding.py student.pt builtin:silicon
    python benchmarks/gpu_rounding.py student.pt frame.extxyz --emulation build/cuda_emulated

The second needs no GPU: the folder is that of the tests' emulation (any test of tests/test_cuda_engine.py
builds it), which computes the same numbers, slowly. With several students, give one structure for each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, write_report
from benchmarks.gpu import open_on_gpu
from mlff_distiller.constants import MATHS
from mlff_distiller.ops import engine
from mlff_distiller.sampling import starting_structures

#: Å, root mean square of all atoms' displacements to one side.
STEPS = (0.03, 0.01, 0.003, 0.001)


class Surface:
    """Energy, eV, and forces, eV/Å, of one structure's atoms at other positions."""

    def __init__(self, potential: engine.NativePotential, structure: Any) -> None:
        self.potential, self.structure = potential, structure

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        s = self.structure
        found = self.potential.compute(s.atomic_numbers, positions, s.cell, s.pbc)
        return float(found["energies"].sum()), found["forces"]


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def work_errors(surface: Surface, exact: Surface, frames: list[np.ndarray]) -> dict[str, float]:
    """By step: root mean square of (central difference + force along the direction), less the same
    of ``exact``, over the root mean square of that force. What remains is neither truncation nor
    the table's error: energy that no work accounts for."""
    rng = np.random.default_rng(1)
    missing: dict[float, list[float]] = {step: [] for step in STEPS}
    scale = []
    for positions in frames:
        direction = rng.normal(size=positions.shape)
        direction /= rms(direction) * np.sqrt(3)
        for step in STEPS:
            gap = []
            for each in (surface, exact):
                ahead, behind = (each(positions + s * direction)[0] for s in (step, -step))
                along = float((each(positions)[1] * direction).sum())
                gap.append((ahead - behind) / (2 * step) + along)
            missing[step].append(gap[0] - gap[1])
        scale.append(along)
    return {f"{step:g}": rms(gaps) / rms(scale) for step, gaps in missing.items()}


class Engine(Calculator):
    """A surface for ASE."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        self.surface = surface

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results["energy"], self.results["forces"] = self.surface(self.atoms.positions)


def conservation(
    surface: Surface, positions: np.ndarray, steps: int, kelvin: float, femtoseconds: float
) -> dict[str, float]:
    """Velocity Verlet from one state: slope, eV/atom/ps, and scatter, eV/atom, of the total energy."""
    s = surface.structure
    atoms = Atoms(s.atomic_numbers, positions, cell=s.cell, pbc=s.pbc, calculator=Engine(surface))
    MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=np.random.default_rng(2))
    Stationary(atoms, preserve_temperature=False)
    total: list[float] = []
    dynamics = VelocityVerlet(atoms, femtoseconds * units.fs)
    dynamics.attach(lambda: total.append(atoms.get_total_energy() / len(atoms)))
    dynamics.run(steps)
    time, after = np.arange(1, steps + 1) * femtoseconds / 1000, np.asarray(total[1:])
    slope, start = np.polyfit(time, after, 1)
    return {"slope": float(slope), "scatter": rms(after - (start + slope * time))}


def measure(path: Path, structure: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each ``math``."""
    rng = np.random.default_rng(0)
    shape = structure.positions.shape
    frames = [
        structure.positions + rng.normal(0, options.rattle, shape) for _ in range(options.frames)
    ]
    exact = Surface(engine.NativePotential(path, dtype="float64"), structure)
    wanted = [exact(frame) for frame in frames]
    size = rms([forces for _, forces in wanted])
    rows = []
    for math in MATHS:
        surface = Surface(open_on_gpu(path, device="cuda", dtype="float32", math=math), structure)
        found = [surface(frame) for frame in frames]
        error = np.array([a[1] - b[1] for a, b in zip(found, wanted, strict=True)])
        shift = [(a[0] - b[0]) / len(a[1]) for a, b in zip(found, wanted, strict=True)]
        row = {
            "student": path.name,
            "atoms": len(structure.atomic_numbers),
            "math": math,
            "intervals": surface.potential.table["intervals"],
            "force_rms": rms(error),
            "force_max": float(np.abs(error).max()),
            "force_relative": rms(error) / size,
            "energy_rms": rms(shift),
            "work": work_errors(surface, exact, frames),
        }
        if options.steps:
            row["run"] = conservation(
                surface, frames[0], options.steps, options.kelvin, options.femtoseconds
            )
        rows.append(row)
        print(markdown([row]).splitlines()[-1], flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table; forces in meV/Å, energies in meV/atom."""
    heads = [
        "student", "atoms", "math", "intervals", "forces, rms", "largest", "rms, relative", "energy",
    ]  # fmt: skip
    heads += [f"work, {step:g} Å" for step in STEPS] + ["slope, meV/atom/ps", "scatter, meV/atom"]
    lines = ["| " + " | ".join(heads) + " |", "|---|--:|---|" + "--:|" * (len(heads) - 3)]
    for row in rows:
        cells = [row["student"], row["atoms"], row["math"], row["intervals"]]
        cells += [f"{1e3 * row['force_rms']:.2g}", f"{1e3 * row['force_max']:.2g}"]
        cells += [f"{row['force_relative']:.1e}", f"{1e3 * row['energy_rms']:.2g}"]
        cells += [f"{value:.1e}" for value in row["work"].values()]
        run = row.get("run")
        cells += [f"{1e3 * run[key]:.2g}" for key in ("slope", "scatter")] if run else ["–", "–"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def emulate(folder: Path) -> None:
    """Put the tests' emulation in the GPU's place."""
    sys.path.append(str(folder))
    import _cuda_emulated as emulated

    parts = {"Potential": engine._native.Potential, "GpuPotential": emulated.GpuPotential}
    engine._native = SimpleNamespace(**parts)


def main() -> None:
    parser = parser_of(__doc__, output=RESULTS)
    parser.add_argument("pairs", nargs="+", metavar="STUDENT STRUCTURE", help="in turn")
    parser.add_argument("--emulation", type=Path, help="folder of the tests' emulation")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rattle", type=float, default=0.1, help="Å, standard deviation")
    parser.add_argument("--steps", type=int, default=1000, help="of the run; 0: none")
    parser.add_argument("--femtoseconds", type=float, default=0.5, help="of a step")
    parser.add_argument("--kelvin", type=float, default=300.0, help="of the first velocities")
    options = parser.parse_args()
    if len(options.pairs) % 2:
        parser.error("every student needs a structure")
    if options.emulation:
        emulate(options.emulation)
    rows = []
    for path, source in zip(options.pairs[::2], options.pairs[1::2], strict=True):
        rows += measure(Path(path), starting_structures(source)[-1], options)
    report = {"rows": rows, "emulated": bool(options.emulation)}
    write_report(options.output, "gpu_rounding", report, markdown(rows) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
