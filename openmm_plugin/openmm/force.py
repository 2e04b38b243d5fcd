"""``painn_force``: an exported student as an ``openmm.Force``, by one of three backends.

| backend | what it is                                   | where it runs                           |
|---------|----------------------------------------------|-----------------------------------------|
| native  | ``PainnForce`` in C++ around the engine      | any platform; the network on the CPU,   |
|         |                                              | on the CUDA platform on its GPU         |
| python  | ``openmm.PythonForce`` around the engine, or | any platform; the network on the CPU or |
|         | around the exported TorchScript              | a CUDA device                           |
| torch   | ``openmmtorch.PythonTorchForce``, or         | positions stay on the GPU; needs an     |
|         | ``openmmtorch.TorchForce`` where that is not | openmm-torch that fits the torch in use |

All give the same energies, and the same answers to bad input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlff_distiller.constants import DEFAULT_SKIN, MAX_THREADS
from mlff_distiller.elements import check_elements
from mlff_distiller.errors import InputError
from mlff_distiller.files import sha256
from mlff_distiller.openmm.checks import (
    check_choices,
    check_topology,
    checked_atoms,
    checked_integer,
    checked_model,
    checked_periodic,
    checked_skin,
)
from mlff_distiller.ops.engine import check_math
from mlff_distiller.students.file import read_metadata
from mlff_distiller.students.potential import dtype_name

try:
    import openmm
except ImportError:
    raise ImportError(
        "mlff_distiller.openmm needs OpenMM, which is not installed; "
        "run `pip install 'mlff-distiller[openmm]'`"
    ) from None

if TYPE_CHECKING:
    from openmm.app import Topology


def painn_force(
    topology: Topology,
    model: str | Path,
    atoms: Iterable[int] | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "single",
    periodic: bool | None = None,
    force_group: int = 0,
    threads: int = 0,
    skin: float = DEFAULT_SKIN,
    math: str = "float32",
) -> openmm.Force:
    """Make a force that evaluates an exported student; add it to a System.

    The System must hold the particles of ``topology`` in the same order.

    Serialization: the native force stores the path of the model, its SHA-256 and its options.
    The python backend is an ``openmm.PythonForce``, whose XML holds a pickle of the same: load
    such files only from people you trust, and only where mlff_distiller is installed, since
    OpenMM 8.6 crashes otherwise. So is a ``PythonTorchForce`` of the torch backend; the XML of a
    ``TorchForce`` holds the same in a piece of TorchScript, which calls mlff_distiller.

    Args:
        topology: elements, bonds and, unless ``periodic`` is given, whether there is a box.
        model: file written by ``mlff-distiller export``.
        atoms: indices that the model sees, in any order; None for all.
        backend: ``native``, ``python``, ``torch`` or ``auto``: native where it is built and the
            device is the CPU or not named, else python.
        device: ``cpu``, ``cuda``, ``cuda:0`` ...; ``auto`` is the CPU where the native engine is
            built and otherwise CUDA if torch has it. With the torch backend ``auto`` is the GPU of
            OpenMM's CUDA platform, and the CPU on Reference and CPU; with the native backend, too,
            where the plugin was built for that platform. There ``cuda`` is the GPU of the Context,
            and an error if it cannot be.
        precision: ``single`` or ``double`` for the network; sums are double in either case.
        periodic: whether the model sees periodic images; None asks the topology.
        force_group: 0..31.
        threads: of the native engine; 0 is OpenMP's default.
        skin: a number in Å or an OpenMM length; neighbour lists live until an atom has moved half
            of this.
        math: of the python backend with the native engine on a GPU, in single precision: what is
            rounded, ``float32``, ``half`` or ``tf32``; see docs/gpu.md.

    Returns:
        A force that is not yet owned by a System. Energies in kJ/mol include the model's
        reference energies of the atoms.

    Raises:
        InputError: unusable file, unknown option or value, atoms out of range or twice, an atom
            without an element or of one that the model does not know, a backend that is not there.
    """
    check_topology(topology)
    check_choices(backend, precision, device)
    periodic = checked_periodic(periodic, topology)
    force_group = checked_integer("force_group", force_group, 31, "choose another")
    threads = checked_integer("threads", threads, MAX_THREADS, "0 is OpenMP's default")
    skin = checked_skin(skin)
    path = checked_model(model)
    metadata = read_metadata(path)
    particles = None if atoms is None else checked_atoms(atoms, topology.getNumAtoms())
    numbers = atomic_numbers(topology, particles)
    check_elements(numbers, metadata["elements"])
    backend, device = _resolve(backend, device)
    check_math(math, on_gpu=backend == "python" and device.split(":")[0] == "cuda")

    if backend == "native":
        from mlff_distiller.openmm.native import native_force

        force = native_force(
            path,
            atomic_numbers=numbers,
            particles=particles,
            num_particles=topology.getNumAtoms(),
            bonds=bonds_within(topology, particles),
            periodic=periodic,
            device=device,
            precision=precision,
            threads=threads,
            skin=skin,
        )
    elif backend == "torch":
        from mlff_distiller.openmm.torch_force import torch_force

        force = torch_force(
            path,
            atomic_numbers=numbers,
            particles=particles,
            periodic=periodic,
            precision=precision,
            device=device,
        )
    else:
        from mlff_distiller.openmm.python_force import PainnComputation

        # OpenMM chooses the particles since 8.6.
        chooses = hasattr(openmm.PythonForce, "setParticles")
        computation = PainnComputation(
            str(path),
            sha256(path),
            numbers,
            periodic=periodic,
            dtype=str(dtype_name(precision)),
            device=device,
            threads=threads,
            skin=skin,
            math=math,
            particles=None if chooses else particles,
        )
        force = openmm.PythonForce(computation)
        force.setUsesPeriodicBoundaryConditions(periodic)
        force.setName("PainnPythonForce")
        if chooses and particles is not None:
            force.setParticles(particles)
    force.setForceGroup(force_group)
    return force


def keep_molecules_whole(
    topology: Topology, atoms: Iterable[int] | None = None, *, periodic: bool | None = False
) -> openmm.HarmonicBondForce:
    """Bonds of zero strength, so that barostats move molecules and not single atoms.

    OpenMM finds molecules from the bonds that forces declare. The native force declares those of
    the topology; a System with the python or torch backend needs this force beside it. (OpenMM-ML's
    ``MLPotential("painn")`` adds it by itself.)

    Args:
        topology: its bonds, both ends among ``atoms``, are used.
        atoms: as in :func:`painn_force`.
        periodic: as in :func:`painn_force`; None asks the topology.

    Raises:
        InputError: no topology, atoms out of range or twice.
    """
    check_topology(topology)
    particles = None if atoms is None else checked_atoms(atoms, topology.getNumAtoms())
    force = openmm.HarmonicBondForce()
    for first, second in bonds_within(topology, particles):
        force.addBond(first, second, 0.1, 0.0)
    force.setUsesPeriodicBoundaryConditions(checked_periodic(periodic, topology))
    force.setName("PainnMolecules")
    return force


def bonds_within(topology: Topology, atoms: Sequence[int] | None) -> list[tuple[int, int]]:
    """Bonds of the topology with both ends among ``atoms`` (None: all)."""
    bonds = [(bond.atom1.index, bond.atom2.index) for bond in topology.bonds()]
    if atoms is None:
        return bonds
    inside = set(atoms)
    return [(i, j) for i, j in bonds if i in inside and j in inside]


def atomic_numbers(topology: Topology, atoms: Sequence[int] | None) -> list[int]:
    """Atomic numbers of ``atoms`` (None: all), in their order.

    Raises:
        InputError: some have no element; the message lists their indices.
    """
    everything = list(topology.atoms())
    chosen = everything if atoms is None else [everything[i] for i in atoms]
    nameless = [atom.index for atom in chosen if atom.element is None]
    if nameless:
        shown = ", ".join(str(i) for i in nameless[:10]) + (", ..." if len(nameless) > 10 else "")
        raise InputError(
            f"{len(nameless)} of the model's atoms have no element in the topology, indices {shown}; "
            "set atom.element, or leave virtual sites out of atoms="
        )
    return [int(atom.element.atomic_number) for atom in chosen]


def _resolve(backend: str, device: str) -> tuple[str, str]:
    from mlff_distiller.openmm.native import plugin_is_built
    from mlff_distiller.students.potential import native_is_built

    if backend == "torch":
        return backend, device  # auto follows the platform, which is not known yet
    wish = device
    if device == "auto":
        device = "cpu"
        if not native_is_built():
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = device.split(":")[0] == "cpu"
    if backend == "auto":
        backend = "native" if on_cpu and plugin_is_built() else "python"
    if backend != "native":
        return backend, device
    if wish not in ("auto", "cuda") and not on_cpu:
        raise InputError(
            f"the native backend runs on the CPU or the GPU of the Context, got device {device!r}; "
            "use device='auto' and the CUDA platform's DeviceIndex, or backend='python'"
        )
    return backend, wish if wish in ("auto", "cuda") else "cpu"
