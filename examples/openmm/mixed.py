"""A solute from the student in classical water: mixed ML/MM with PME.

    python mixed.py student.pt --steps 10000

Alanine dipeptide sees itself through the student, everything else (water, and water with the
solute) through Amber14 and TIP3P, whose files come with OpenMM. The student must know H, C, N, O.
"""

import argparse
from pathlib import Path

import matplotlib
import openmm
from openmm import app, unit
from openmmml import MLPotential

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="file written by `mlff-distiller export`")
parser.add_argument("--pdb", default=Path(__file__).parent / "alanine-dipeptide.pdb")
parser.add_argument("--steps", type=int, default=5000, help="of 1 fs")
parser.add_argument("--padding", type=float, default=0.8, help="nm of water around the solute")
parser.add_argument("--plot", default="mixed.png")
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

mm_count = topology.getNumAtoms() - len(solute)
print(
    f"{len(solute)} atoms from the student, {mm_count} from TIP3P, "
    f"{len(simulation.context.getMolecules())} molecules for the barostat"
)
print(f"{'time / ps':>10} {'E_student / kJ/mol':>20} {'E_total / kJ/mol':>18} {'box / nm':>10}")
records = 100 if args.steps >= 1000 else 10
rows = []
for record in range(1, records + 1):
    simulation.step(max(1, args.steps // records))
    everything = simulation.context.getState(energy=True)
    student = simulation.context.getState(energy=True, groups={1})
    volume = everything.getPeriodicBoxVolume().value_in_unit(unit.nanometer**3)
    rows.append(
        [
            everything.getTime().value_in_unit(unit.picosecond),
            student.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
            everything.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
            volume ** (1 / 3),
        ]
    )
    if record % (records // 10) == 0:
        print("{:10.3f} {:20.2f} {:18.1f} {:10.4f}".format(*rows[-1]))

figure, panels = plt.subplots(3, 1, figsize=(6, 6), sharex=True, layout="constrained")
times, *columns = zip(*rows, strict=True)
for axes, values, label in zip(
    panels, columns, ["student / (kJ/mol)", "student + MM / (kJ/mol)", "box / nm"], strict=True
):
    axes.plot(times, values, lw=1)
    axes.set_ylabel(label)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
panels[0].set_title(f"{len(solute)} atoms from the student in {mm_count // 3} TIP3P waters")
panels[-1].set_xlabel("time / ps")
figure.savefig(args.plot, dpi=150)
print(f"picture in {args.plot}")
