"""The torch backend: the exported TorchScript inside a force of openmm-torch.

| force            | where it exists            | what OpenMM calls                               |
|------------------|----------------------------|-------------------------------------------------|
| PythonTorchForce | openmm-torch since 06/2026 | :class:`TorchComputation`                       |
| TorchForce       | before                     | :class:`TorchForceModule`, which calls the same |

Either way positions and forces stay on the GPU of an OpenMM platform that runs there.

TorchForce does not hold the network itself, though it could: OpenMM calls it under Python's lock
(pressure, reporters of the minimiser) or in the user's ``inference_mode()``, and neither can be left
within TorchScript. Autograd stops under the first and finds no gradients in the second.
"""

import functools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlff_distiller.data.structure import check_cell
from mlff_distiller.errors import DeviceError, InputError
from mlff_distiller.files import sha256
from mlff_distiller.openmm.checks import check_count, check_unchanged
from mlff_distiller.openmm.openmm_torch import load_openmm_torch
from mlff_distiller.ops.neighbors import edge_vectors
from mlff_distiller.ops.reference import neighbor_list_reference
from mlff_distiller.students.file import load_exported
from mlff_distiller.students.portable import (
    PortableEvaluator,
    check_distances,
    check_extent,
    checked_device,
)
from mlff_distiller.students.potential import dtype_name
from mlff_distiller.units import ANGSTROM_IN_NM, EV_IN_KJ_PER_MOL

ANGSTROM_PER_NM = 1.0 / ANGSTROM_IN_NM


class _OnDevice(NamedTuple):
    """What an evaluation needs, where it runs."""

    evaluator: PortableEvaluator
    cutoff: float
    atomic_numbers: Tensor
    particles: Tensor
    pbc: Tensor


class TorchComputation:
    """What PythonTorchForce calls: a State and positions in, energy and forces out.

    Pickles hold the path, the hash and the options, never the model. Any number of Contexts and
    threads may share one object.

    Args:
        path: exported student.
        digest: its SHA-256; a file that has changed since is refused.
        atomic_numbers: of the atoms that the model sees.
        particles: their indices among all particles; None for all.
        periodic: whether there are box vectors.
        dtype: ``float32`` or ``float64``.
        device: a torch device; ``auto`` is wherever OpenMM has the positions.

    Raises:
        InputError: the file cannot be used, or the device does not exist.
    """

    def __init__(
        self,
        path: str,
        digest: str,
        atomic_numbers: list[int],
        particles: list[int] | None,
        *,
        periodic: bool,
        dtype: str,
        device: str,
    ) -> None:
        self.path = path
        self.digest = digest
        self.atomic_numbers = atomic_numbers
        self.particles = particles
        self.periodic = periodic
        self.dtype = dtype
        self.device = device
        self._loaded: dict[str, _OnDevice] = {}
        self._on("cpu" if device == "auto" else device)  # errors now, not in the first step

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The file is looked at in the first step: an exception in here would not reach the user.
        vars(self).update(state)
        self._loaded = {}

    def __call__(self, state: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Called by OpenMM with an ``openmm.State``; see :meth:`evaluate`."""
        box = None
        if self.periodic:
            box = torch.as_tensor(state.getPeriodicBoxVectors(asNumpy=True)._value)
        return self.evaluate(positions, box)

    def evaluate(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energy and forces.

        Args:
            positions: (n_particles, 3), nm, of any dtype and device.
            box: (3, 3), nm, rows are box vectors; None where nothing is periodic.

        Returns:
            energy (), kJ/mol, float64, and forces (n_particles, 3), kJ/mol/nm, contiguous, in the
            dtype of ``positions``; both on the device of ``positions``.

        Raises:
            InputError: another number of particles, NaN, or a model that has changed; OpenMM
                passes the message on as OpenMMException.
            DeviceError: out of memory.
        """
        device = str(positions.device) if self.device == "auto" else self.device
        # A caller's inference_mode() must not take the forces away.
        with torch.inference_mode(False):
            try:
                return self._evaluate(positions, box, self._on(device))
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{device} is out of memory for {len(self.atomic_numbers)} atoms "
                    f"({str(error).splitlines()[0]}); make the system smaller or use device='cpu'"
                ) from None

    def _evaluate(
        self, positions: Tensor, box: Tensor | None, model: _OnDevice
    ) -> tuple[Tensor, Tensor]:
        check_count(len(positions), len(self.atomic_numbers), self.particles)
        device = model.pbc.device
        # Copies, since OpenMM's are views of its memory or made in inference_mode(). float64
        # first: a platform in single precision has no more digits to lose.
        x = positions.detach().clone().to(device, torch.float64) * ANGSTROM_PER_NM
        if self.particles is not None:
            x = x.index_select(0, model.particles)
        cell = torch.zeros(3, 3, dtype=torch.float64, device=device)
        if box is not None:
            cell = box.detach().clone().to(device, torch.float64) * ANGSTROM_PER_NM
        self._check_finite(x, cell)
        rows, pbc = cell.cpu().numpy(), np.full(3, self.periodic)
        check_cell(rows, pbc, "the box")
        check_extent(float(x.abs().max()), len(x), rows, pbc, model.cutoff)
        edge_index, shifts = neighbor_list_reference(x, cell, model.pbc, model.cutoff)
        vectors = edge_vectors(x, cell, edge_index, shifts)
        check_distances(edge_index, (vectors * vectors).sum(1), self.particles)
        energies, forces, _ = model.evaluator(model.atomic_numbers, edge_index, vectors)
        energy = energies.to(torch.float64).sum() * EV_IN_KJ_PER_MOL
        forces = forces * (EV_IN_KJ_PER_MOL * ANGSTROM_PER_NM)
        if not (torch.isfinite(energy) and torch.isfinite(forces).all()):
            raise InputError(
                "the model gave a NaN or infinite energy or force "
                f"(energy {float(energy)} kJ/mol); "
                "minimise, shorten the time step, or check the model"
            )
        if self.particles is not None:
            everywhere = forces.new_zeros(len(positions), 3)
            forces = everywhere.index_copy(0, model.particles, forces)
        # OpenMM reads the memory as it lies.
        forces = forces.to(positions.device, positions.dtype).contiguous()
        return energy.to(positions.device), forces

    def _check_finite(self, x: Tensor, cell: Tensor) -> None:
        if not torch.isfinite(cell).all():
            raise InputError("the box must be finite, got NaN or infinity; check its vectors")
        finite = torch.isfinite(x).all(dim=1)
        if not finite.all():
            atom = int(torch.nonzero(~finite)[0, 0])
            particle = atom if self.particles is None else self.particles[atom]
            raise InputError(
                f"positions must be finite, got NaN or infinity for particle {particle}; "
                "minimise, or shorten the time step"
            )

    def _on(self, device: str) -> _OnDevice:
        found = self._loaded.get(device)
        if found is None:
            check_unchanged(self.path, self.digest)
            where = checked_device(device)
            # Weights that are made in inference_mode() have no gradients, ever.
            with torch.inference_mode(False):
                student = load_exported(self.path, where, getattr(torch, self.dtype))
                found = self._loaded[device] = _OnDevice(
                    PortableEvaluator(student),
                    float(student.cutoff),
                    torch.tensor(self.atomic_numbers, device=where),
                    torch.tensor(self.particles or [], dtype=torch.int64, device=where),
                    torch.full((3,), self.periodic, device=where),
                )
        return found


class TorchForceModule(nn.Module):
    """What TorchForce calls, without any tensor of its own: it runs on every platform alike.

    Args:
        computation: the state of a :class:`TorchComputation` as JSON.
    """

    def __init__(self, computation: str) -> None:
        super().__init__()
        self.computation = computation

    def forward(self, positions: Tensor, boxvectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`TorchComputation.evaluate`.

        Raises:
            ValueError: whatever went wrong, in one line, after TorchScript's traceback.
        """
        energy, forces, problem = torch.ops.mlff_openmm.evaluate(
            self.computation, positions, boxvectors
        )
        if len(problem) > 0:
            raise ValueError(problem)
        return energy, forces


# The way from TorchScript back to Python.
_OPERATORS = torch.library.Library("mlff_openmm", "DEF")
_OPERATORS.define(
    "evaluate(str computation, Tensor positions, Tensor? box) -> (Tensor, Tensor, str)"
)


@functools.lru_cache(maxsize=64)
def _restored(computation: str) -> TorchComputation:
    restored = TorchComputation.__new__(TorchComputation)
    restored.__setstate__(json.loads(computation))
    return restored


def _evaluate(
    computation: str, positions: Tensor, box: Tensor | None
) -> tuple[Tensor, Tensor, str]:
    try:
        return *_restored(computation).evaluate(positions, box), ""
    except Exception as error:  # in C++ its text would be lost
        text = " ".join(str(error).split()) or type(error).__name__
        return positions.new_zeros(()), torch.zeros_like(positions), text


_OPERATORS.impl("evaluate", _evaluate, "CompositeImplicitAutograd")


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
    return _scripted(_computation(path, atomic_numbers, particles, periodic, precision, device))


def _scripted(computation: TorchComputation) -> torch.jit.ScriptModule:
    text = json.dumps(computation.__getstate__())
    _restored(text)._loaded = computation._loaded
    with torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation
        return torch.jit.script(TorchForceModule(text).eval())


def torch_force(
    path: Path,
    *,
    atomic_numbers: Sequence[int],
    particles: Sequence[int] | None,
    periodic: bool,
    precision: str,
    device: str,
) -> Any:
    """A force of openmm-torch; arguments as in ``painn_force``.

    Raises:
        InputError: openmm-torch is not installed or does not fit this torch or this OpenMM.
    """
    openmmtorch = load_openmm_torch()
    computation = _computation(path, atomic_numbers, particles, periodic, precision, device)
    if hasattr(openmmtorch, "PythonTorchForce"):
        # Not its setParticles(), which reads past the end of a System that is too small.
        force = openmmtorch.PythonTorchForce(computation)
    else:
        force = openmmtorch.TorchForce(_scripted(computation))
        force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setName("PainnTorchForce")
    return force


def _computation(
    path: Path,
    atomic_numbers: Sequence[int],
    particles: Sequence[int] | None,
    periodic: bool,
    precision: str,
    device: str,
) -> TorchComputation:
    return TorchComputation(
        str(path),
        sha256(path),
        [int(z) for z in atomic_numbers],
        None if particles is None else [int(i) for i in particles],
        periodic=periodic,
        dtype=str(dtype_name(precision)),
        device=device,
    )
