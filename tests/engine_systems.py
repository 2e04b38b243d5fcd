"""Models, systems and the arbiter (autograd through the Python student) of the engine tests."""

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import natural_cutoffs, neighbor_list

from mlff_distiller.config import ModelConfig
from mlff_distiller.students.student import StudentForceField

EV = 96.48533212331  # kJ/mol, on purpose not taken from mlff_distiller.units


def make_student(elements, dtype=torch.float64, scale=1.0, **config):
    """Random weights; ``scale`` multiplies the energies, reference energies apart."""
    torch.manual_seed(3)
    settings = {"hidden_dim": 16, "num_interactions": 2, "num_rbf": 8, "cutoff": 4.0, "zbl": True}
    student = StudentForceField(
        ModelConfig(**{**settings, **config}), elements, [-1.5 * z for z in elements]
    )
    with torch.no_grad():
        student.painn.readout[2].weight.mul_(scale)
    return student.to(dtype)


def direct(student, atoms):
    """Energy (eV), forces (eV/Å) and strain gradient (eV) by autograd through ``forward``."""
    x = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    symmetric = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.T)
    cell = torch.tensor(atoms.cell.array)
    energy = student(
        torch.tensor(atoms.numbers), x @ symmetric, cell @ symmetric, torch.tensor(atoms.pbc)
    )
    if not energy.requires_grad:
        return energy.item(), np.zeros((len(atoms), 3)), np.zeros((3, 3))
    gradient, strain_gradient = torch.autograd.grad(energy, (x, strain), allow_unused=True)
    zero = torch.zeros(3, 3)
    strain_gradient = zero if strain_gradient is None else strain_gradient
    forces = torch.zeros_like(x) if gradient is None else -gradient
    return energy.item(), forces.numpy(), strain_gradient.numpy()


def silicon(repeat=(2, 1, 1)):
    """Rattled triclinic silicon, the cell in OpenMM's and LAMMPS' reduced form."""
    atoms = bulk("Si", cubic=True) * repeat
    cell = atoms.cell.array @ [[1, 0, 0], [0.08, 1, 0], [-0.1, 0.07, 1]]
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=2)
    return atoms


def water_box(per_side=3):
    """Water at about 1 g/cm³ in random orientations, one molecule after another (O H H)."""
    rng = np.random.default_rng(7)
    box = Atoms(cell=np.eye(3) * 3.104 * per_side, pbc=True)
    for cell_index in np.ndindex(per_side, per_side, per_side):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.translate((np.array(cell_index) + 0.5) * 3.104 - water.positions[0])
        box += water
    box.rattle(0.03, seed=4)
    return box


def bonds_of(atoms):
    i, j = neighbor_list("ij", atoms, [1.25 * r for r in natural_cutoffs(atoms)])
    return [(int(a), int(b)) for a, b in zip(i, j, strict=True) if a < b]


def topology_of(atoms, bonds=()):
    """OpenMM topology of ASE atoms, one residue for each connected set of consecutive atoms."""
    from openmm import Vec3, unit
    from openmm.app import Element, Topology

    topology = Topology()
    chain = topology.addChain()
    residue = topology.addResidue("MOL", chain)
    added = [
        topology.addAtom(a.symbol, Element.getByAtomicNumber(int(a.number)), residue) for a in atoms
    ]
    for i, j in bonds:
        topology.addBond(added[i], added[j])
    if atoms.pbc.all():
        vectors = [Vec3(*row) for row in atoms.cell.array / 10]
        topology.setPeriodicBoxVectors(vectors * unit.nanometer)
    return topology


def openmm_system(topology, *forces):
    import openmm

    system = openmm.System()
    if topology.getPeriodicBoxVectors() is not None:
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    for atom in topology.atoms():
        system.addParticle(12.0 if atom.element is None else atom.element.mass)
    for force in forces:
        system.addForce(force)
    return system


def openmm_context(system, positions, platform="Reference", integrator=None):
    """Context of a System with positions (n, 3) in Å."""
    import openmm

    integrator = integrator or openmm.VerletIntegrator(0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform(platform))
    context.setPositions(np.asarray(positions) / 10)
    return context


def openmm_results(context, groups=-1):
    """Energy in eV and forces in eV/Å of a Context."""
    state = context.getState(energy=True, forces=True, groups=groups)
    forces = state.getForces(asNumpy=True)._value
    return state.getPotentialEnergy()._value / EV, np.array(forces) / (10 * EV)
