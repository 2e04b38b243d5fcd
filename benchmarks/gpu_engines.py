"""Rows of benchmarks/gpu.py for LAMMPS, OpenMM and plain torch on the same GPU, with the same student.

LAMMPS and OpenMM do dynamics (their own list, integration and copies are in the time), torch repeats a
call as the engine does; its neighbour list is built once and given to it for nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import spread
from mlff_distiller.errors import DeviceError, InputError

#: numbers, positions, cell, pbc
System = tuple[Any, ...]
STEPS, WARM_UP = 200, 20
MOST_ATOMS_IN_TORCH = 60_000
TIMESTEP = 0.0001  # ps


def torch_device() -> str:
    """Where torch has the GPU.

    Raises:
        InputError: nowhere.
    """
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} finds no GPU; install one built with CUDA")
    return "cuda"


def measured(what: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row, with the reason where it could not be measured."""
    try:
        return {"what": what, **work()}
    except (ImportError, InputError, DeviceError, RuntimeError, OSError) as error:
        text = str(error).strip() or type(error).__name__
        return {"what": what, "not_measured": text.splitlines()[0][:300]}


# --- LAMMPS ---------------------------------------------------------------------------------------
def before_pair_style() -> str:
    """Lines of input before ``pair_style``: none, as ``lmp`` finds the plugin by itself."""
    return ""


def lammps_row(path: Path, system: System, math: str, folder: Path) -> dict[str, Any]:
    """One rank of ``lmp`` with ``device gpu``: wall time of a step of NVE."""
    from ase import Atoms

    from benchmarks.lammps.launch import Case, timed
    from mlff_distiller.lammps import lammps_command

    def work() -> dict[str, Any]:
        numbers, positions, cell, _ = system
        atoms = Atoms(numbers, positions, cell=cell, pbc=True)
        atoms.wrap()
        style = f"pair_style painn device gpu precision single math {math}"
        pair = f"{before_pair_style()}{style}\npair_coeff * * {path.resolve()} {{names}}"
        steps = max(5, min(STEPS, 4_000_000 // max(1, len(numbers))))
        case = Case("water", atoms, pair, tuple(lammps_command()), skin=0.6, timestep=TIMESTEP)
        outcome = timed(case, steps, folder, warm_up=min(WARM_UP, steps))
        each = outcome.seconds_per_step
        banner = next(line for line in outcome.output.splitlines() if "device gpu" in line)
        return {
            "median_s": each, "low_s": each, "high_s": each, "calls": steps,
            "products": banner.split("products", 1)[1].split(", precision")[0].strip(),
        }  # fmt: skip

    return measured(f"LAMMPS, 1 rank, {math}", work)


# --- OpenMM ---------------------------------------------------------------------------------------
def openmm_row(
    path: Path, system: System, math: str, device: str, backend: str = "python"
) -> dict[str, Any]:
    """The network on the GPU by the python backend, or by the native one's kernel for that platform.

    The rest of the System has no forces.
    """

    def work() -> dict[str, Any]:
        import openmm
        from openmm import app, unit

        from mlff_distiller.openmm import painn_force

        numbers, positions, cell, _ = system
        topology, container = app.Topology(), openmm.System()
        residue = topology.addResidue("W", topology.addChain())
        for z in numbers:
            element = app.Element.getByAtomicNumber(int(z))
            topology.addAtom(element.symbol, element, residue)
            container.addParticle(element.mass)
        topology.setPeriodicBoxVectors(np.asarray(cell) * 0.1 * unit.nanometer)
        container.setDefaultPeriodicBoxVectors(*(np.asarray(cell) * 0.1))
        where = "cuda" if backend == "native" else device
        container.addForce(painn_force(topology, path, backend=backend, device=where, math=math))
        integrator = openmm.VerletIntegrator(TIMESTEP)
        names = [openmm.Platform.getPlatform(k).getName()
                 for k in range(openmm.Platform.getNumPlatforms())]  # fmt: skip
        name = next(x for x in ("CUDA", "CPU", "Reference") if x in names)
        context = openmm.Context(container, integrator, openmm.Platform.getPlatformByName(name))
        context.setPositions(np.asarray(positions) * 0.1)
        steps = max(2, min(STEPS // 10, 400_000 // max(1, len(numbers))))
        integrator.step(steps)
        spent = []
        for _ in range(5):
            start = time.perf_counter()
            integrator.step(steps)
            spent.append((time.perf_counter() - start) / steps)
        return {**spread(spent), "platform": name}

    return measured(f"OpenMM, {backend} backend, {math}", work)


# --- torch ----------------------------------------------------------------------------------------
def torch_rows(
    path: Path, system: System, seconds: float, reference: np.ndarray | None, compiled: bool
) -> list[dict[str, Any]]:
    """The same network in torch: eager without and with our message operator, and torch.compile.

    ``reference``: forces (n, 3), eV/Å, of which the largest deviation is given.
    """
    kinds = [("torch, eager", False, False), ("torch, eager, our message operator", True, False)]
    if compiled:
        kinds.append(("torch.compile", False, True))
    if len(system[0]) > MOST_ATOMS_IN_TORCH:
        reason = f"left out beyond {MOST_ATOMS_IN_TORCH:,} atoms"
        return [{"what": name, "not_measured": reason} for name, _, _ in kinds]
    return [
        measured(name, lambda f=fused, c=compile_: _torch(path, system, seconds, reference, f, c))
        for name, fused, compile_ in kinds
    ]


def _torch(
    path: Path, system: System, seconds: float, reference: np.ndarray | None, fused: bool,
    compile_: bool,
) -> dict[str, Any]:  # fmt: skip
    import torch

    from mlff_distiller.models import StudentForceField
    from mlff_distiller.ops import edge_vectors, messages, neighbor_list

    device = torch_device()
    on_gpu = device != "cpu"
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    model = StudentForceField.load(path).to(torch.float32).to(device).requires_grad_(False)
    numbers, positions, cell, pbc = (torch.as_tensor(np.asarray(x), device=device) for x in system)
    edges, shifts = neighbor_list(positions, cell, pbc, model.cutoff)
    energies = (
        torch.compile(model.atomic_energies, dynamic=False) if compile_ else model.atomic_energies
    )

    def call(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_(True)
        energy = energies(numbers, edges, edge_vectors(x, cell, edges, shifts)).sum()
        return -torch.autograd.grad(energy, x)[0]

    with _message_operator(messages, fused):
        start = time.perf_counter()
        forces = call(positions)
        wait()
        first = time.perf_counter() - start
        for _ in range(3):
            call(positions)
        wait()
        spent: list[float] = []
        while len(spent) < 5 or (sum(spent) < seconds and len(spent) < 200):
            start = time.perf_counter()
            call(positions + 0.001)
            wait()
            spent.append(time.perf_counter() - start)
    row = {**spread(spent), "first_s": first}
    if on_gpu:
        row["memory_GB"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if reference is not None:
        scale = max(1.0, float(np.abs(reference).max()))
        row["force"] = float(np.abs(forces.cpu().numpy() - reference).max()) / scale
    return row


@contextlib.contextmanager
def _message_operator(messages: Any, fused: bool) -> Any:
    """With our operator, or without it, whatever is there."""
    before = messages._available
    if not fused:
        messages._available = lambda device: False
    try:
        yield
    finally:
        messages._available = before
