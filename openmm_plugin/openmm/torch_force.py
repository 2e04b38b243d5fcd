"""The torch backend: the exported TorchScript inside ``openmmtorch.TorchForce``.

Positions and forces stay on the GPU of an OpenMM platform that runs there. openmm-torch must have
been built for the torch in use; no wheel of it runs beside the CPU build of torch.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlff_distiller.errors import InputError
from mlff_distiller.ops.reference import neighbor_list_reference
from mlff_distiller.students.file import load_exported
from mlff_distiller.students.portable import PortableEvaluator
from mlff_distiller.students.potential import dtype_name
from mlff_distiller.units import ANGSTROM_IN_NM, EV_IN_KJ_PER_MOL


class TorchForceModule(nn.Module):
    """What TorchForce calls: positions in nm in, energy in kJ/mol and forces out.

    Args:
        student: exported student, already in its dtype and on its device.
        atomic_numbers: (n,) int64.
        particles: (n,) int64 indices among all particles; empty for all.
        periodic: whether TorchForce passes box vectors.
    """

    atomic_numbers: Tensor
    particles: Tensor
    pbc: Tensor

    def __init__(
        self,
        student: torch.jit.ScriptModule,
        atomic_numbers: Sequence[int],
        particles: Sequence[int] | None,
        periodic: bool,
    ) -> None:
        super().__init__()
        self.evaluator = PortableEvaluator(student)
        self.cutoff = float(student.cutoff)
        self.num_atoms = len(atomic_numbers)
        self.everything = particles is None
        self.energy_unit = EV_IN_KJ_PER_MOL
        self.length_unit = 1.0 / ANGSTROM_IN_NM
        self.register_buffer("atomic_numbers", torch.tensor(atomic_numbers, dtype=torch.int64))
        self.register_buffer("particles", torch.tensor(particles or [], dtype=torch.int64))
        self.register_buffer("pbc", torch.full((3,), periodic))

    def forward(self, positions: Tensor, boxvectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n_particles, 3) nm, (3, 3) nm -> energy () kJ/mol, forces (n_particles, 3) kJ/mol/nm."""
        x = positions.detach() * self.length_unit
        if not self.everything:
            x = x[self.particles]
        elif x.shape[0] != self.num_atoms:
            raise ValueError("the System has another number of particles than the topology")
        cell = torch.zeros(3, 3, dtype=torch.float64, device=positions.device)
        if boxvectors is not None:
            cell = boxvectors.detach().to(torch.float64) * self.length_unit
        x = x.to(torch.float64)
        edge_index, shifts = neighbor_list_reference(x, cell, self.pbc, self.cutoff)
        vectors = x[edge_index[0]] - x[edge_index[1]] + shifts.to(x.dtype) @ cell
        energies, own, _ = self.evaluator(self.atomic_numbers, edge_index, vectors)
        own = own * (self.energy_unit * self.length_unit)
        # TorchForce reads the memory of the tensor as it lies: it must be contiguous.
        forces = torch.zeros_like(positions, dtype=torch.float64)
        if self.everything:
            forces = own
        else:
            forces = forces.index_copy(0, self.particles, own)
        if not bool(torch.isfinite(forces).all()):
            raise ValueError("the model gave a NaN or infinite force")
        return energies.sum() * self.energy_unit, forces.to(positions.dtype).contiguous()


def scripted_module(
    path: Path,
    *,
    atomic_numbers: Sequence[int],
    particles: Sequence[int] | None,
    periodic: bool,
    precision: str,
    device: str,
) -> torch.jit.ScriptModule:
    """TorchScript of :class:`TorchForceModule`; arguments as in ``painn_force``."""
    dtype = getattr(torch, str(dtype_name(precision)))
    student = load_exported(path, device, dtype)
    module = TorchForceModule(student, atomic_numbers, particles, periodic).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation
        return torch.jit.script(module.eval())


def torch_force(
    path: Path,
    *,
    atomic_numbers: Sequence[int],
    particles: Sequence[int] | None,
    periodic: bool,
    precision: str,
    device: str,
) -> Any:
    """An ``openmmtorch.TorchForce``; arguments as in ``painn_force``.

    Raises:
        InputError: openmm-torch is not installed or does not load with this torch.
    """
    try:
        from openmmtorch import TorchForce
    except (ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"backend='torch' needs an openmm-torch that fits torch {torch.__version__} "
            f"({reason}); install one, or use backend='native' or 'python'"
        ) from None
    module = scripted_module(
        path,
        atomic_numbers=atomic_numbers,
        particles=particles,
        periodic=periodic,
        precision=precision,
        device=device,
    )
    force = TorchForce(module)
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setName("PainnTorchForce")
    return force
