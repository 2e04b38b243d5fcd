"""How long may the time step be? Energy drift in NVE with and without heavy hydrogens.

    python time_step.py student.pt --steps 20000

Hydrogen-mass repartitioning moves mass from heavy atoms to their hydrogens. It changes no
equilibrium property and slows the fastest vibrations, so that 1 to 2 fs become possible.
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
parser.add_argument("--steps", type=int, default=10000, help="of each run")
parser.add_argument("--temperature", type=float, default=300.0, help="K")
parser.add_argument("--plot", default="time_step.png")
args = parser.parse_args()

pdb = app.PDBFile(str(args.pdb))
count = pdb.topology.getNumAtoms()
ev = 96.48533212  # kJ/mol


def make_system(hydrogen_mass):
    """System with hydrogens of that mass (amu), None for the natural one."""
    system = openmm.System()
    for atom in pdb.topology.atoms():
        system.addParticle(atom.element.mass)
    for bond in pdb.topology.bonds():
        heavy, light = sorted(bond, key=lambda atom: -atom.element.atomic_number)
        if hydrogen_mass and light.element.symbol == "H" and heavy.element.symbol != "H":
            moved = hydrogen_mass - light.element.mass.value_in_unit(unit.dalton)
            system.setParticleMass(light.index, hydrogen_mass)
            left = system.getParticleMass(heavy.index).value_in_unit(unit.dalton) - moved
            system.setParticleMass(heavy.index, left)
    system.addForce(painn_force(pdb.topology, args.model))
    return system


# The student is the only force and brings its own threads: Reference has none to wake.
platform = openmm.Platform.getPlatform("Reference")
figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
print(f"{'step / fs':>10} {'m(H) / amu':>11} {'drift / eV/atom/ps':>20} {'noise / eV/atom':>17}")
for femtoseconds, hydrogen_mass in [(0.5, None), (1.0, None), (1.0, 3.0), (2.0, 3.0)]:
    integrator = openmm.VerletIntegrator(femtoseconds * unit.femtosecond)
    simulation = app.Simulation(pdb.topology, make_system(hydrogen_mass), integrator, platform)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy(maxIterations=200)
    simulation.context.setVelocitiesToTemperature(args.temperature * unit.kelvin, 1)
    times, energies = [], []
    for _ in range(50):
        simulation.step(max(1, args.steps // 50))
        state = simulation.context.getState(energy=True)
        total = state.getPotentialEnergy() + state.getKineticEnergy()
        times.append(state.getTime().value_in_unit(unit.picosecond))
        energies.append(total.value_in_unit(unit.kilojoule_per_mole) / ev / count)
    drift, offset = np.polyfit(times, energies, 1)
    noise = np.std(np.array(energies) - drift * np.array(times) - offset)
    mass = "natural" if hydrogen_mass is None else f"{hydrogen_mass:.1f}"
    print(f"{femtoseconds:10.1f} {mass:>11} {drift:20.1e} {noise:17.1e}")
    shifted = 1000 * (np.array(energies) - offset)
    axes.plot(times, shifted, lw=1, label=f"{femtoseconds:g} fs, hydrogen {mass}")
axes.set(
    xlabel="time / ps",
    ylabel="total energy / (meV/atom)",
    title="NVE, from the start of a fitted line",
)
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
figure.savefig(args.plot, dpi=150)
print(f"picture in {args.plot}")
