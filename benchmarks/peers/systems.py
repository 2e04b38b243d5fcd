"""The four structures, the same for every peer, from the package's own generators.

Water is a lattice of randomly turned molecules at 1 g/cm³: time per call depends on density and number
of neighbours, not on the thermal history.
"""

from __future__ import annotations

from pathlib import Path

import ase
from ase.build import bulk
from ase.neighborlist import neighbor_list

from benchmarks.common import write_structure
from mlff_distiller.sampling.builtin import builtin, water_box


def silicon(repeats: int) -> ase.Atoms:
    atoms = bulk("Si", "diamond", a=5.431, cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=1)
    return atoms


SYSTEMS = {
    "aspirin": (lambda: builtin("aspirin")[0].to_atoms(), "aspirin, 21 atoms"),
    "water-192": (lambda: water_box(4).to_atoms(), "periodic water, 192 atoms"),
    "water-1536": (lambda: water_box(8).to_atoms(), "periodic water, 1536 atoms"),
    "silicon-512": (lambda: silicon(4), "silicon, 512 atoms"),
}


def write_system(name: str, folder: Path) -> dict:
    """Write ``folder/NAME.json`` for the workers; returns what the report says about it."""
    atoms = SYSTEMS[name][0]()
    path = folder / f"{name}.json"
    write_structure(path, atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    distances = neighbor_list("d", atoms, 5.0)
    return {
        "path": str(path),
        "atoms": len(atoms),
        "neighbours_5A": round(len(distances) / len(atoms), 1),
        "closest_A": round(float(distances.min()), 3),
    }
