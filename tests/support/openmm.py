"""Evaluating with OpenMM."""

import numpy as np

EV = 96.48533212331  # kJ/mol, on purpose not taken from mlff_distiller.units


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


class StandInForPythonTorchForce:
    """What openmm-torch's PythonTorchForce does, by an ``openmm.PythonForce``: State and Tensor in."""

    def __init__(self, computation):
        self.computation = computation

    def __call__(self, state):
        import torch

        positions = torch.from_numpy(np.array(state.getPositions(asNumpy=True)._value))
        # As in ReferenceTorchKernels.cpp: a leaf that wants gradients.
        energy, forces = self.computation(state, positions.requires_grad_(True))
        assert energy.shape == ()
        assert forces.dtype == positions.dtype
        assert forces.device == positions.device
        assert forces.is_contiguous()
        return energy.item(), forces.numpy()

    @classmethod
    def force(cls, computation):
        import openmm

        return openmm.PythonForce(cls(computation))
