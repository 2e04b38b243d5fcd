"""Dynamics on the teacher's surface with a student in between: what does a longer outer step cost?

    python multiple_time_steps.py student.pt --teacher sevennet-0 --structure silicon.xyz

Any ASE calculator may be the teacher: ``--teacher module:Class(key=value)``.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

from mlff_distiller import StudentCalculator
from mlff_distiller.multistep import MultipleTimeStep
from mlff_distiller.teachers import teacher_calculator

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--teacher", default="emt")
parser.add_argument("--structure", default="CH3CH2OH", help="a file, or a molecule that ASE knows")
parser.add_argument("--steps", type=int, default=480, help="of the student, in each run")
parser.add_argument("--timestep", type=float, default=0.5, help="fs")
parser.add_argument("--temperature", type=float, default=300.0, help="K")
parser.add_argument("--plot", default="multiple_time_steps.png")
args = parser.parse_args()

is_file = Path(args.structure).exists()
start = read(args.structure) if is_file else molecule(args.structure)
MaxwellBoltzmannDistribution(start, temperature_K=args.temperature, rng=np.random.default_rng(1))
Stationary(start)
teacher = teacher_calculator(args.teacher)


def run(every):
    """Times, the teacher's total energy per atom, which is conserved, and calls of the teacher."""
    atoms = start.copy()
    atoms.calc = StudentCalculator(args.model, dtype="float64")
    dynamics = MultipleTimeStep(atoms, args.timestep * units.fs, teacher, every)
    energies = []

    def record():
        total = dynamics.get_teacher_energy() + atoms.get_kinetic_energy()
        energies.append(1000 * total / len(atoms))

    dynamics.attach(record)
    dynamics.run(args.steps // every)
    times = every * args.timestep * np.arange(len(energies)) / 1000
    return times, np.array(energies), dynamics.correction.calls


figure, axes = plt.subplots(figsize=(5, 3.5))
print(f"{'every':>6} {'outer / fs':>11} {'calls':>6} {'deviation / meV/atom':>21}")
for every in (1, 2, 4, 6):
    times, energies, calls = run(every)
    axes.plot(times, energies - energies[0], label=f"every {every}")
    print(f"{every:6d} {every * args.timestep:11.2f} {calls:6d} {energies.std():21.4f}")

axes.set(xlabel="time / ps", ylabel="the teacher's total energy / (meV/atom)")
axes.legend()
figure.tight_layout()
figure.savefig(args.plot, dpi=150)
print(f"picture in {args.plot}")
