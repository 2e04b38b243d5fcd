"""A solute from the student in classical water: mixed ML/MM with PME.

    python mixed.py student.pt --steps 10000

Alanine dipeptide sees itself through the student, everything else (water, and water with the
solute) through Amber14 and TIP3P, whose files come with OpenMM. The student must know H, C, N, O.
"""

import argparse
from pathlib import Path

import openmm
from openmm import app, unit
from openmmml import MLPotential

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--pdb", default=Path(__file__).parent / "alanine-dipeptide.pdb")
parser.add_argument("--steps", type=int, default=5000, help="of 1 fs")
parser.add_argument("--padding", type=float, default=0.8, help="nm of water around the solute")
args = parser.parse_args()

pdb = app.PDBFile(str(args.pdb))
forcefield = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
modeller = app.Modeller(pdb.topology, pdb.positions)
modeller.addSolvent(forcefield, padding=args.padding * unit.nanometer)
topology = modeller.topology

mm_system = forcefield.createSystem(
    topology,
    nonbondedMethod=app.PME,
    nonbondedCutoff=0.45 * args.padding * unit.nanometer + 0.3 * unit.nanometer,
    constraints=app.HBonds,
)
solute = [a.index for a in topology.atoms() if a.residue.name != "HOH"]
# Constraints within the solute go, the student moves its hydrogens; water stays rigid.
system = MLPotential("painn", modelPath=args.model).createMixedSystem(
    topology, mm_system, solute, forceGroup=1
)
system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin))

integrator = openmm.LangevinMiddleIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond
)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=100)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)

print(
    f"{len(solute)} atoms from the student, {topology.getNumAtoms() - len(solute)} from TIP3P, "
    f"{len(simulation.context.getMolecules())} molecules for the barostat"
)
print(f"{'time / ps':>10} {'E_student / kJ/mol':>20} {'E_total / kJ/mol':>18} {'box / nm':>10}")
for _ in range(10):
    simulation.step(max(1, args.steps // 10))
    everything = simulation.context.getState(energy=True)
    student = simulation.context.getState(energy=True, groups={1})
    edge = everything.getPeriodicBoxVolume().value_in_unit(unit.nanometer**3) ** (1 / 3)
    print(
        f"{everything.getTime().value_in_unit(unit.picosecond):10.3f} "
        f"{student.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole):20.2f} "
        f"{everything.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole):18.1f} "
        f"{edge:10.4f}"
    )
