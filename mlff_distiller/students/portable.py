"""The portable path: exported TorchScript, autograd, pure-torch neighbour list with a skin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlff_distiller.constants import DEFAULT_SKIN
from mlff_distiller.data.structure import Structure, check_structure
from mlff_distiller.elements import check_elements
from mlff_distiller.errors import DeviceError, InputError
from mlff_distiller.lattice import MOST_IMAGES, SAME_POINT, reduced
from mlff_distiller.ops.reference import neighbor_list_reference
from mlff_distiller.students.file import check_uncertainty, load_exported, read_metadata

#: Å. Beyond, differences of float64 positions have lost the digits that forces need.
FARTHEST = 1e9
#: Images of atoms that one list may hold.
MOST_ATOM_IMAGES = 1e8


class PortableEvaluator(nn.Module):
    """Derivatives of the exported TorchScript: eagerly here, scripted inside of other programs.

    Args:
        student: as ``load_exported`` gives it.
    """

    def __init__(self, student: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, atomic_numbers: Tensor, edge_index: Tensor, edge_vectors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies (n,), eV, forces (n, 3), eV/Å, and virial (3, 3), eV, of one structure.

        Args:
            atomic_numbers: (n,) int64.
            edge_index: (2, n_edges) int64, senders and receivers.
            edge_vectors: (n_edges, 3) float64, Å.
        """
        # The caller may be inside torch.no_grad(); TorchScript knows no enable_grad().
        outside = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        vectors = edge_vectors.detach().requires_grad_(True)
        energies = self.student.atomic_energies(atomic_numbers, edge_index, vectors)
        found = derivatives(energies, vectors, edge_index)
        torch.set_grad_enabled(outside)
        return found


def derivatives(
    energies: Tensor, vectors: Tensor, edge_index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies (n,), forces (n, 3) and virial (3, 3) from energies as a function of ``vectors``."""
    gradient = torch.zeros_like(vectors)
    if vectors.shape[0] > 0:
        found = torch.autograd.grad([energies.sum()], [vectors])[0]
        if found is not None:
            gradient = found
    forces = torch.zeros(energies.shape[0], 3, dtype=vectors.dtype, device=vectors.device)
    forces = forces.index_add(0, edge_index[1], gradient)
    forces = forces.index_add(0, edge_index[0], -gradient)
    virial = -(vectors.detach().t() @ gradient)
    return energies.detach(), forces, 0.5 * (virial + virial.t())


def checked_device(device: str) -> torch.device:
    """The torch device of this name.

    Raises:
        InputError: torch does not know it, or cannot compute there.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"torch cannot compute on device {device!r} ({reason}); use device='cpu'"
        ) from None
    return found


class PortablePotential:
    """Evaluate an exported student with torch alone.

    Args:
        path: exported student.
        device: where to compute.
        dtype: ``float32`` or ``float64``; None takes that of the file. Energies are summed, and
            edge vectors formed, in float64 in either case.
        skin: Å; the neighbour list is rebuilt when an atom has moved half of it.

    Raises:
        InputError: the file cannot be used, or the device does not exist.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        skin: float = DEFAULT_SKIN,
    ) -> None:
        metadata = read_metadata(path)
        if not np.isfinite(skin) or skin < 0:
            raise InputError(
                f"skin must be a length >= 0 Å, got {skin}; {DEFAULT_SKIN} is a good value"
            )
        self.elements: list[int] = list(metadata["elements"])
        self.cutoff = float(metadata["cutoff"])
        self.skin = float(skin)
        self.num_builds = 0
        torch_dtype = getattr(torch, dtype or metadata["dtype"])
        self._path, self._metadata = path, metadata
        self._device = checked_device(device)
        with torch.inference_mode(False):
            self._evaluator = PortableEvaluator(load_exported(path, self._device, torch_dtype))
        self._listed: tuple[np.ndarray, ...] | None = None
        self._edge_index = torch.empty(2, 0, dtype=torch.int64)
        self._shifts = torch.empty(0, 3, dtype=torch.int64)

    def compute(
        self,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        *,
        uncertainties: bool = False,
    ) -> dict[str, Any]:
        """See :meth:`mlff_distiller.students.potential.Potential.compute`."""
        s = check_structure(Structure(atomic_numbers, positions, cell, pbc), "atoms")
        check_elements(s.atomic_numbers, self.elements)
        if uncertainties:
            check_uncertainty(self._metadata, self._path)
        # A caller's inference_mode() must not take the forces away.
        with torch.inference_mode(False):
            try:
                return self._compute(s.atomic_numbers, s.positions, s.cell, s.pbc, uncertainties)
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{self._device} is out of memory for {len(s.atomic_numbers)} atoms "
                    f"({str(error).splitlines()[0]}); make the system smaller or use device='cpu'"
                ) from None

    def _compute(
        self,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        uncertainties: bool,
    ) -> dict[str, Any]:
        # The same lattice, by vectors with as few images within reach as the native engine's.
        cell = reduced(cell, pbc)
        x = torch.as_tensor(positions, device=self._device)
        lattice = torch.as_tensor(cell, device=self._device)
        self._update_list(atomic_numbers, positions, cell, pbc, x, lattice)
        senders, receivers = self._edge_index[0], self._edge_index[1]
        vectors = x[senders] - x[receivers] + self._shifts.to(x.dtype) @ lattice
        squared = (vectors * vectors).sum(1)
        check_distances(self._edge_index, squared)
        inside = squared < self.cutoff**2
        numbers = torch.as_tensor(atomic_numbers, device=self._device)
        arguments = numbers, self._edge_index[:, inside], vectors[inside]
        result: dict[str, Any] = {}
        if uncertainties:
            (energies, forces, virial), found = self._with_uncertainties(*arguments)
            result["uncertainties"] = _numpy(found)
        else:
            energies, forces, virial = self._evaluator(*arguments)
        energies_out = _numpy(energies)
        return {
            "energy": float(energies_out.sum()),
            "energies": energies_out,
            "forces": _numpy(forces),
            "virial": _numpy(virial),
            **result,
        }

    @torch.enable_grad()
    def _with_uncertainties(
        self, numbers: Tensor, edge_index: Tensor, vectors: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        vectors = vectors.detach().requires_grad_(True)
        student = self._evaluator.student
        energies, found = student.energies_and_uncertainties(numbers, edge_index, vectors)
        return derivatives(energies, vectors, edge_index), found

    def _update_list(
        self,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        x: Tensor,
        lattice: Tensor,
    ) -> None:
        if self._listed is not None:
            numbers_0, positions_0, cell_0, pbc_0 = self._listed
            same = np.array_equal(numbers_0, atomic_numbers) and np.array_equal(pbc_0, pbc)
            if same and np.array_equal(cell_0, cell):
                moved = float(((positions - positions_0) ** 2).sum(axis=1).max())
                if moved <= (0.5 * self.skin) ** 2:
                    return
        largest = float(np.abs(positions).max(initial=0.0))
        check_extent(largest, len(positions), cell, pbc, self.cutoff + self.skin)
        self._edge_index, self._shifts = neighbor_list_reference(
            x, lattice, torch.as_tensor(pbc, device=x.device), self.cutoff + self.skin
        )
        self._listed = (atomic_numbers.copy(), positions.copy(), cell.copy(), pbc.copy())
        self.num_builds += 1


def check_extent(
    largest: float, count: int, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> None:
    """Refuse what would need more memory than there is, or more digits than float64 has.

    Args:
        largest: of all coordinates, Å.
        count: number of atoms.
        cell: (3, 3), Å.
        pbc: (3,) bool.
        reach: of the neighbour list, Å.

    Raises:
        InputError: atoms too far away, or too many images within reach.
    """
    if largest > FARTHEST:
        raise InputError(
            f"positions must lie within {FARTHEST:g} Å of the origin, got {largest:g}; "
            "wrap or centre them"
        )
    images = 1.0
    if pbc.any():
        inverse = np.linalg.pinv(np.where(pbc[:, None], cell, 0.0))[:, pbc]
        heights = 1.0 / np.linalg.norm(inverse, axis=0)
        images = float(np.prod(1.0 + 2.0 * np.ceil(reach / heights)))
    if images > MOST_IMAGES or images * count > MOST_ATOM_IMAGES:
        raise InputError(
            f"a cutoff of {reach:g} Å reaches {images:.1g} images of this cell; check the cell"
        )


def check_distances(
    edge_index: Tensor, squared: Tensor, names: Sequence[int] | None = None
) -> None:
    """Refuse atoms between which there is no direction.

    Args:
        edge_index: (2, n_edges) int64, senders and receivers.
        squared: (n_edges,) squared distances, Å^2.
        names: what to call the atoms; None for their indices.

    Raises:
        InputError: two atoms are at one point.
    """
    if squared.numel() and float(squared.min()) <= SAME_POINT**2:
        pair = edge_index[:, int(squared.argmin())].tolist()
        if names is not None:
            pair = [names[i] for i in pair]
        raise InputError(
            f"atoms {pair[1]} and {pair[0]} are at one point "
            f"({float(squared.min()) ** 0.5:.1g} Å apart); remove duplicate atoms"
        )


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float64)
