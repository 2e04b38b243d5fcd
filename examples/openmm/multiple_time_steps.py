"""A molecule on its teacher's surface: the student in each step, teacher - student every n steps.

    python multiple_time_steps.py student.pt --teacher gfn2-xtb --every 4 --steps 4000

NVE, so that the conserved energy can be seen: it is the teacher's. Any other molecule that teacher
and student know works as well (--pdb).
"""

import argparse
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from mlff_distiller.openmm import painn_force, teacher_correction

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--teacher", default="gfn2-xtb", help="registry name or module:Class(...)")
parser.add_argument("--pdb", default=Path(__file__).parent / "alanine-dipeptide.pdb")
parser.add_argument("--every", type=int, default=4, help="steps between two calls of the teacher")
parser.add_argument("--steps", type=int, default=4000, help="of 0.5 fs")
parser.add_argument("--temperature", type=float, default=300.0, help="K, of the start")
args = parser.parse_args()

pdb = app.PDBFile(str(args.pdb))
system = openmm.System()
for atom in pdb.topology.atoms():
    system.addParticle(atom.element.mass)
system.addForce(painn_force(pdb.topology, args.model))
force = teacher_correction(pdb.topology, args.model, args.teacher)
correction = force.correction
system.addForce(force)

# One step of the integrator is an outer step; group 0 is the student, group 1 the correction. With
# a thermostat: openmm.MTSLangevinIntegrator.
outer = args.every * 0.5 * unit.femtosecond
integrator = openmm.MTSIntegrator(outer, [(0, args.every), (1, 1)])
platform = openmm.Platform.getPlatform("Reference")
simulation = app.Simulation(pdb.topology, system, integrator, platform)
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy(maxIterations=50)
simulation.context.setVelocitiesToTemperature(2 * args.temperature * unit.kelvin, 1)
before = correction.calls

freedom = 3 * system.getNumParticles()
rows = []
for _ in range(20):
    simulation.step(max(1, args.steps // args.every // 20))
    # Energies of all groups are the teacher's, and cost no call of it after a step.
    state = simulation.context.getState(energy=True)
    kinetic = state.getKineticEnergy()
    kelvin = 2 * kinetic / unit.MOLAR_GAS_CONSTANT_R / freedom
    total = state.getPotentialEnergy() + kinetic
    time = state.getTime().value_in_unit(unit.femtosecond)
    rows.append(
        (time, kelvin.value_in_unit(unit.kelvin), total.value_in_unit(unit.kilojoule_per_mole))
    )
rows = np.array(rows)

print(f"{'time / fs':>10} {'T / K':>8} {'E - mean / kJ/mol':>18}")
for time, kelvin, total in rows:
    print(f"{time:10.1f} {kelvin:8.1f} {total - rows[:, 2].mean():18.4f}")
per_call = correction.seconds / correction.calls
print(f"{correction.calls - before} calls of {correction.teacher.name}, {per_call:.3g} s each")
