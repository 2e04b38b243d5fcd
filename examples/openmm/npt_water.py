"""Liquid water from the student at constant pressure: density against time.

    python npt_water.py student.pt --steps 100000

The student must know H and O. Molecules are whole for the barostat, because the force declares the
bonds of the topology.
"""

import argparse

import matplotlib
import numpy as np
import openmm
from openmm import app, unit

from mlff_distiller.openmm import painn_force

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--steps", type=int, default=20000, help="of 0.5 fs")
parser.add_argument("--box", type=float, default=1.6, help="edge of the first box, nm")
parser.add_argument("--temperature", type=float, default=300.0, help="K")
parser.add_argument("--plot", default="density.png")
args = parser.parse_args()

# OpenMM fills the box with TIP3P water; only the positions are used.
modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
modeller.addSolvent(
    app.ForceField("amber14/tip3p.xml"), boxSize=openmm.Vec3(1, 1, 1) * args.box * unit.nanometer
)
topology = modeller.topology
system = openmm.System()
system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
for atom in topology.atoms():
    system.addParticle(atom.element.mass)
system.addForce(painn_force(topology, args.model))  # periodic, because the topology has a box
temperature = args.temperature * unit.kelvin
system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, temperature, 10))

# The student is the only force and brings its own threads: Reference has none to wake.
platform = openmm.Platform.getPlatform("Reference")
integrator = openmm.LangevinMiddleIntegrator(
    temperature, 2 / unit.picosecond, 0.5 * unit.femtosecond
)
simulation = app.Simulation(topology, system, integrator, platform)
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=50)
simulation.context.setVelocitiesToTemperature(temperature)

mass = (
    sum((system.getParticleMass(i) for i in range(system.getNumParticles())), 0 * unit.dalton)
    / unit.AVOGADRO_CONSTANT_NA
)
times, densities = [], []
print(
    f"{topology.getNumResidues()} molecules, {len(simulation.context.getMolecules())} for the barostat"
)
print(f"{'time / ps':>10} {'E_pot / kJ/mol':>16} {'density / g/cm³':>16}")
records = 100 if args.steps >= 1000 else 20
for record in range(1, records + 1):
    simulation.step(max(1, args.steps // records))
    state = simulation.context.getState(energy=True)
    times.append(state.getTime().value_in_unit(unit.picosecond))
    densities.append(
        (mass / state.getPeriodicBoxVolume()).value_in_unit(unit.gram / unit.centimeter**3)
    )
    if record % (records // 20) == 0:
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        print(f"{times[-1]:10.3f} {energy:16.1f} {densities[-1]:16.4f}")

half = densities[records // 2 :]
figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
axes.plot(times, densities, lw=1)
axes.hlines(np.mean(half), times[records // 2], times[-1], color="C1", label="mean of this half")
axes.axhline(0.997, color="0.5", ls=":", label="experiment, 298 K")
axes.set(xlabel="time / ps", ylabel="density / (g/cm³)", title="liquid water, 1 bar")
axes.grid(alpha=0.3)
axes.legend()
figure.savefig(args.plot, dpi=150)
print(f"density of the second half {np.mean(half):.4f} ± {np.std(half):.4f} g/cm³; {args.plot}")
