"""Pure-torch twins of the native operators: slower, portable, the arbiter in tests.

`torch.jit.script` compiles every function here, so exported models carry them and run in any
libtorch without the native library.
"""

from __future__ import annotations

import torch
from torch import Tensor


def neighbor_list_reference(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, max_candidates: int = 1 << 21
) -> tuple[Tensor, Tensor]:
    """All pairs with ``|positions[j] - positions[i] + S @ cell| < cutoff``, images included.

    Same edges in the same order as the native list (`csrc/core/neighbors.h`): sorted by
    receiver, then sender, then shift. Both evaluate each distance in float64 from the positions
    as given, operation by operation alike, so they agree for pairs at the cutoff as well.

    Args:
        positions: (n_atoms, 3), Å; atoms may lie outside of the cell.
        cell: (3, 3), Å, rows are lattice vectors. Rows of open directions are ignored.
        pbc: (3,) bool.
        cutoff: Å, > 0; a pair at exactly the cutoff is left out.
        max_candidates: candidate pairs held at once, which keeps the memory flat for large systems.

    Returns:
        ``edge_index`` (2, n_edges) int64, senders then receivers, and ``shifts`` (n_edges, 3)
        int64, lattice vectors added to the sender.
    """
    n_atoms = positions.shape[0]
    device = positions.device
    if n_atoms == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return torch.stack([empty, empty]), empty.unsqueeze(1).expand(0, 3)
    points = positions.detach().to(torch.float64)
    lattice = cell.detach().to(device=device, dtype=torch.float64)
    periodic = pbc.to(device=device)
    lattice = torch.where(periodic.unsqueeze(1), lattice, torch.zeros_like(lattice))

    # Wrapped positions only serve to find candidates, so rounding is met by a wider cutoff.
    # Columns of open directions are rounding errors around 0: exactly 0 means no wrap, no images.
    inverse = torch.linalg.pinv(lattice)
    inverse = torch.where(periodic, inverse, torch.zeros_like(inverse))
    wraps = -torch.floor(points @ inverse)
    wrapped = points + wraps @ lattice
    reach = cutoff * (1.0 + 1e-9) + 1e-12 * float(points.abs().max().item())

    codes = _image_shifts(torch.ceil(reach * torch.linalg.norm(inverse, dim=0)).to(torch.int64))
    lower = torch.amin(wrapped, 0) - reach
    upper = torch.amax(wrapped, 0) + reach
    image_positions, image_atoms, image_codes = _images(
        wrapped, lattice, codes, lower, upper, max_candidates
    )

    # Bins no narrower than the cutoff, with an empty layer around, so that the candidates of a
    # centre are nine runs of three consecutive bins.
    bins = _bin_counts(upper - lower, reach, 2 * image_atoms.shape[0] + 64)
    strides = torch.tensor([(bins[1] + 2) * (bins[2] + 2), bins[2] + 2, 1], device=device)
    image_bins = _bin_index(image_positions, lower, upper, bins, strides)
    image_bins, order = torch.sort(image_bins, stable=True)
    image_positions = image_positions[order]
    image_atoms = image_atoms[order]
    image_codes = image_codes[order]
    n_bins = (bins[0] + 2) * (bins[1] + 2) * (bins[2] + 2)
    starts = torch.searchsorted(image_bins, torch.arange(n_bins + 1, device=device))
    step = torch.arange(-1, 2, device=device)
    rows = (step.unsqueeze(1) * strides[0] + step * strides[1]).flatten()
    rows = _bin_index(wrapped, lower, upper, bins, strides).unsqueeze(1) + rows
    first_candidate = starts[rows - 1]
    n_candidates = starts[rows + 2] - first_candidate
    ends = torch.cumsum(n_candidates.sum(1), 0)

    wraps_int = wraps.to(torch.int64)
    senders: list[Tensor] = []
    receivers: list[Tensor] = []
    shifts: list[Tensor] = []
    start = 0
    while start < n_atoms:
        done = 0 if start == 0 else int(ends[start - 1].item())
        limit = torch.full_like(ends[:1], done + max_candidates)
        stop = max(start + 1, int(torch.searchsorted(ends, limit, right=True).item()))

        counts = n_candidates[start:stop].flatten()
        offsets = first_candidate[start:stop].flatten() - (torch.cumsum(counts, 0) - counts)
        candidates = torch.repeat_interleave(offsets, counts)
        candidates += torch.arange(candidates.shape[0], device=device)
        centres = torch.arange(start, stop, device=device)
        centres = torch.repeat_interleave(centres, n_candidates[start:stop].sum(1))
        distances = image_positions[candidates] - wrapped[centres]
        near = torch.nonzero((distances * distances).sum(1) < reach * reach).squeeze(1)
        centres = centres[near]
        atoms = image_atoms[candidates[near]]
        image = image_codes[candidates[near]]

        shift = codes[image] + wraps_int[atoms] - wraps_int[centres]
        inside = _squared_distances(points, lattice, atoms, centres, shift) < cutoff * cutoff
        inside &= (atoms != centres) | (shift != 0).any(1)
        edges = torch.nonzero(inside).squeeze(1)
        key = ((centres[edges] - start) * n_atoms + atoms[edges]) * codes.shape[0] + image[edges]
        edges = edges[torch.argsort(key)]
        senders.append(atoms[edges])
        receivers.append(centres[edges])
        shifts.append(shift[edges])
        start = stop
    return torch.stack([torch.cat(senders), torch.cat(receivers)]), torch.cat(shifts)


def _squared_distances(
    points: Tensor, lattice: Tensor, senders: Tensor, receivers: Tensor, shifts: Tensor
) -> Tensor:
    """(n_edges,) float64, one rounded operation after the other as in `csrc/core/neighbors.cpp`."""
    difference = points[senders] - points[receivers]
    s = shifts.to(torch.float64)
    translation = s[:, 0:1] * lattice[0] + s[:, 1:2] * lattice[1] + s[:, 2:3] * lattice[2]
    difference = difference + translation
    x, y, z = difference[:, 0], difference[:, 1], difference[:, 2]
    return x * x + y * y + z * z


def _image_shifts(repeats: Tensor) -> Tensor:
    """(n_images, 3) int64: all shifts within ±repeats, in lexicographic order."""
    axes: list[Tensor] = []
    for k in range(3):
        m = int(repeats[k].item())
        axes.append(torch.arange(-m, m + 1, device=repeats.device))
    a, b, c = torch.meshgrid(axes[0], axes[1], axes[2], indexing="ij")
    return torch.stack([a.flatten(), b.flatten(), c.flatten()], 1)


def _images(
    wrapped: Tensor,
    lattice: Tensor,
    codes: Tensor,
    lower: Tensor,
    upper: Tensor,
    max_images: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, atoms and rows of ``codes`` of all images between ``lower`` and ``upper``."""
    n_atoms = wrapped.shape[0]
    translations = codes.to(torch.float64) @ lattice
    block = max(1, max_images // n_atoms)
    positions: list[Tensor] = []
    flat_index: list[Tensor] = []
    for start in range(0, codes.shape[0], block):
        images = (translations[start : start + block].unsqueeze(1) + wrapped).reshape(-1, 3)
        kept = torch.nonzero(((images >= lower) & (images <= upper)).all(1)).squeeze(1)
        positions.append(images[kept])
        flat_index.append(kept + start * n_atoms)
    index = torch.cat(flat_index)
    return (
        torch.cat(positions),
        index % n_atoms,
        torch.div(index, n_atoms, rounding_mode="floor"),
    )


def _bin_counts(extent: Tensor, width: float, limit: int) -> list[int]:
    """Bins along x, y, z, at least ``width`` wide and at most ``limit`` in all."""
    bins: list[int] = []
    for k in range(3):
        bins.append(int(min(max(1.0, float(extent[k].item()) // width), 1048576.0)))
    while bins[0] * bins[1] * bins[2] > limit:
        longest = 0
        for k in range(1, 3):
            if bins[k] > bins[longest]:
                longest = k
        bins[longest] = bins[longest] // 2
    return bins


def _bin_index(
    points: Tensor, lower: Tensor, upper: Tensor, bins: list[int], strides: Tensor
) -> Tensor:
    """(n_points,) int64: number of the bin, counting the empty layer around the grid."""
    counts = torch.tensor(bins, device=points.device)
    index = ((points - lower) / (upper - lower) * counts).to(torch.int64)
    index = torch.minimum(index.clamp(min=0), counts - 1)
    return ((index + 1) * strides).sum(1)
