"""Relax a crystal with its cell, then its equation of state and bulk modulus.

    python relax_eos.py student.pt --crystal Si

Any structure file that ASE reads may stand in for the element.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS
from ase.units import GPa

from mlff_distiller import StudentCalculator

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--crystal", default="Si", help="a file, or an element")
parser.add_argument("--steps", type=int, default=200, help="most steps of the relaxation")
parser.add_argument("--plot", default="eos.png")
args = parser.parse_args()

is_file = Path(args.crystal).exists()
atoms = read(args.crystal) if is_file else bulk(args.crystal)
# Energy differences of a fraction of a meV matter here: double precision.
atoms.calc = StudentCalculator(args.model, dtype="float64")
BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.001, steps=args.steps)
print(f"relaxed {atoms.get_chemical_formula()}: {atoms.get_volume() / len(atoms):.4f} Å³/atom")
force, stress = np.abs(atoms.get_forces()).max(), np.abs(atoms.get_stress()).max()
print(f"largest force {force:.1e} eV/Å, largest stress {stress / GPa:.1e} GPa")

volumes, energies = [], []
print(f"{'V / Å³/atom':>12} {'E / eV/atom':>14} {'p / GPa':>10}")
for scale in np.linspace(0.94, 1.06, 9) ** (1 / 3):
    strained = atoms.copy()
    strained.set_cell(scale * atoms.cell.array, scale_atoms=True)
    strained.calc = atoms.calc
    volumes.append(strained.get_volume() / len(atoms))
    energies.append(strained.get_potential_energy() / len(atoms))
    pressure = -strained.get_stress()[:3].mean() / GPa
    print(f"{volumes[-1]:12.4f} {energies[-1]:14.6f} {pressure:10.3f}")

figure, axes = plt.subplots(figsize=(5, 3.5))
axes.plot(volumes, energies, "o")
axes.set(xlabel="volume / (Å³/atom)", ylabel="energy / (eV/atom)")
try:
    equation = EquationOfState(volumes, energies, eos="birchmurnaghan")
    volume, energy, modulus = equation.fit(warn=False)
    grid = equation.getplotdata()
    axes.plot(grid[4], grid[5])
    print(f"V0 = {volume:.4f} Å³/atom, E0 = {energy:.6f} eV/atom, B = {modulus / GPa:.2f} GPa")
except (ValueError, RuntimeError) as error:
    print(f"no minimum of the energy in this range of volumes ({error})")
figure.tight_layout()
figure.savefig(args.plot, dpi=150)
print(f"picture in {args.plot}")
