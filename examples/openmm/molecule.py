"""Alanine dipeptide in vacuum, every interaction from the student: Ramachandran plot.

    python molecule.py student.pt --steps 200000

The student must know H, C, N and O. Any other molecule with CONECT records works as well; the
picture then holds energy and temperature alone.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import openmm
from openmm import app, unit

from mlff_distiller.openmm import painn_force

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--pdb", default=Path(__file__).parent / "alanine-dipeptide.pdb")
parser.add_argument("--steps", type=int, default=20000, help="of 1 fs")
parser.add_argument("--temperature", type=float, default=300.0, help="K")
parser.add_argument("--plot", default="molecule.png")
args = parser.parse_args()

pdb = app.PDBFile(str(args.pdb))
system = openmm.System()
for atom in pdb.topology.atoms():
    system.addParticle(atom.element.mass)
# The student replaces the whole force field: one force, no parameters, no constraints.
system.addForce(painn_force(pdb.topology, args.model))

# The student is the only force and brings its own threads: Reference has none to wake.
platform = openmm.Platform.getPlatform("Reference")
integrator = openmm.LangevinMiddleIntegrator(
    args.temperature * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond
)
simulation = app.Simulation(pdb.topology, system, integrator, platform)
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy(maxIterations=200)
simulation.context.setVelocitiesToTemperature(args.temperature * unit.kelvin)

names = {(a.residue.name, a.name): a.index for a in pdb.topology.atoms()}
backbone = [("ACE", "C"), ("ALA", "N"), ("ALA", "CA"), ("ALA", "C"), ("NME", "N")]
is_dipeptide = all(name in names for name in backbone)


def dihedral(positions, atoms):
    """Angle of four atoms in degrees."""
    b = np.diff(positions[list(atoms)], axis=0)
    first, second = np.cross(b[0], b[1]), np.cross(b[1], b[2])
    return np.degrees(
        np.arctan2(np.cross(first, second) @ b[1] / np.linalg.norm(b[1]), first @ second)
    )


interval = max(1, args.steps // 200)
freedom = 3 * system.getNumParticles()
rows = []
for _ in range(args.steps // interval):
    simulation.step(interval)
    state = simulation.context.getState(energy=True, positions=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    kinetic = state.getKineticEnergy() / unit.MOLAR_GAS_CONSTANT_R
    angles = [np.nan, np.nan]
    if is_dipeptide:
        chain = [names[name] for name in backbone]
        angles = [dihedral(positions, chain[:4]), dihedral(positions, chain[1:])]
    rows.append(
        [
            state.getTime().value_in_unit(unit.picosecond),
            state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
            2 * kinetic.value_in_unit(unit.kelvin) / freedom,
            *angles,
        ]
    )
rows = np.array(rows)

half = rows[len(rows) // 2 :]
mosaic = (
    [["map", "energy"], ["map", "temperature"]] if is_dipeptide else [["energy"], ["temperature"]]
)
figure, panels = plt.subplot_mosaic(
    mosaic, figsize=(10 if is_dipeptide else 6, 4.3), layout="constrained"
)
if is_dipeptide:
    points = panels["map"].scatter(rows[:, 3], rows[:, 4], c=rows[:, 0], s=14)
    panels["map"].set(xlabel="φ / °", ylabel="ψ / °", xlim=(-180, 180), ylim=(-180, 180))
    panels["map"].set(xticks=range(-180, 181, 60), yticks=range(-180, 181, 60), aspect="equal")
    figure.colorbar(points, ax=panels["map"], label="time / ps")
panels["energy"].plot(rows[:, 0], rows[:, 1] - half[:, 1].mean(), lw=1)
panels["energy"].set(ylabel="E_pot − mean / (kJ/mol)")
panels["temperature"].plot(rows[:, 0], rows[:, 2], color="C1", lw=1)
panels["temperature"].axhline(args.temperature, color="0.5", ls=":")
panels["temperature"].set(xlabel="time / ps", ylabel="T / K")
for axes in panels.values():
    axes.grid(alpha=0.3)
figure.savefig(args.plot, dpi=150)

print(f"{'time / ps':>10} {'E_pot / kJ/mol':>16} {'T / K':>8} {'φ / °':>8} {'ψ / °':>8}")
for row in rows[:: max(1, len(rows) // 10)]:
    print("{:10.3f} {:16.2f} {:8.1f} {:8.1f} {:8.1f}".format(*row))
print(f"mean temperature {rows[:, 2].mean():.1f} K; picture in {args.plot}")
