"""Dynamics of a molecule at constant energy: does the student conserve it?

    python nve.py student.pt --molecule CH3CH2OH --steps 20000

Any structure file that ASE reads may stand in for the name of the molecule.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from mlff_distiller import StudentCalculator

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--molecule", default="CH3CH2OH", help="a file, or a name that ASE knows")
parser.add_argument("--steps", type=int, default=10000)
parser.add_argument("--timestep", type=float, default=0.5, help="fs")
parser.add_argument("--temperature", type=float, default=300.0, help="K")
parser.add_argument("--plot", default="nve.png")
args = parser.parse_args()

is_file = Path(args.molecule).exists()
atoms = read(args.molecule) if is_file else molecule(args.molecule)
atoms.calc = StudentCalculator(args.model)
BFGS(atoms, logfile=None).run(fmax=0.05, steps=100)
MaxwellBoltzmannDistribution(
    atoms, temperature_K=2 * args.temperature, rng=np.random.default_rng(1)
)  # half of it goes into the springs
Stationary(atoms)
ZeroRotation(atoms)

rows = []
dynamics = VelocityVerlet(atoms, args.timestep * units.fs)


def record():
    """Potential and total energy per atom, temperature."""
    total = atoms.get_total_energy() / len(atoms)
    potential = atoms.get_potential_energy() / len(atoms)
    time = dynamics.get_time() / units.fs / 1000
    rows.append([time, potential, total, atoms.get_temperature()])


dynamics.attach(record, interval=max(1, args.steps // 200))
dynamics.run(args.steps)
rows = np.array(rows)
drift = np.polyfit(rows[:, 0], rows[:, 2], 1)[0]

figure, axes = plt.subplots(figsize=(5, 3.5))
for column, label in ((1, "potential"), (2, "total")):
    axes.plot(rows[:, 0], 1000 * (rows[:, column] - rows[0, column]), label=label)
axes.set(xlabel="time / ps", ylabel="change of energy / (meV/atom)")
axes.legend()
figure.tight_layout()
figure.savefig(args.plot, dpi=150)

print(f"{'time / ps':>10} {'E_pot / eV/atom':>17} {'E_total / eV/atom':>18} {'T / K':>8}")
for row in rows[:: max(1, len(rows) // 10)]:
    print("{:10.3f} {:17.6f} {:18.6f} {:8.1f}".format(*row))
print(f"drift {drift:.1e} eV/atom/ps; picture in {args.plot}")
