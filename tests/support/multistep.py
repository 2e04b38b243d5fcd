"""A teacher that costs nothing, a student that knows little of it, and what they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.data import Structure
from mlff_distiller.dynamics import MDSettings
from mlff_distiller.export import export_student
from support.students import make_student

#: Of the nearest-neighbour distance 2.83 Å at rest; stiff as a metal.
LJ = {"sigma": 2.56, "epsilon": 0.35, "rc": 6.0, "smooth": True}
#: Å, between nearest neighbours of fcc crystals of these tests, about.
LENGTH = 2.83
TEACHER = f"ase.calculators.lj:LennardJones({', '.join(f'{k}={v!r}' for k, v in LJ.items())})"


class FailsAt(LennardJones):
    """The teacher, which gives up from one of its calls on."""

    def __init__(self, call: int, **parameters: Any) -> None:
        super().__init__(**{**LJ, **parameters})
        self.call, self.calls = call, 0

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        if self.calls >= self.call:
            raise RuntimeError("no convergence after 250 iterations")
        super().calculate(*args, **kwargs)


class Springs(Calculator):
    """Springs between nearest neighbours of an fcc crystal: quick, and harmonic when cold.

    Args:
        structure: says who is whose neighbour; a cell of two cubes or more a side.
        stiffness: eV/Å^2.
        length: at rest, Å.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self, structure: Structure, stiffness: float = 1.0, length: float = LENGTH
    ) -> None:
        super().__init__()
        self.stiffness, self.length = stiffness, length
        self.pairs = neighbor_list("ij", structure.to_atoms(labels=False), 1.2 * length)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        (i, j), x, cell = self.pairs, self.atoms.positions, self.atoms.cell.array
        vectors = x[j] - x[i]
        vectors -= np.round(vectors @ np.linalg.inv(cell)) @ cell
        distances = np.linalg.norm(vectors, axis=1)
        stretch = distances - self.length
        pulls = (self.stiffness * stretch / distances)[:, None] * vectors
        forces = np.zeros_like(x)
        np.add.at(forces, i, pulls)
        self.results = {
            "energy": 0.25 * self.stiffness * float((stretch**2).sum()),
            "forces": forces,
            "stress": full_3x3_to_voigt_6_stress(0.5 * vectors.T @ pulls / self.atoms.get_volume()),
        }


def lennard_jones() -> LennardJones:
    """The teacher, as a calculator."""
    return LennardJones(**LJ)


def write_model(path: Path, elements: tuple[int, ...] = (14,), scale: float = 0.1) -> Path:
    """A random student that has nothing of the teacher."""
    size = {"hidden_dim": 8, "num_interactions": 2, "num_rbf": 4, "cutoff": 3.5}
    student = make_student(elements, energies=[-5.0] * len(elements), scale=scale, **size)
    export_student(student, path)
    return path


def crystal(repeat: tuple[int, int, int] = (2, 1, 1), temperature: float = 300.0) -> Structure:
    """Moving atoms in a skewed cell that LAMMPS and OpenMM have to turn."""
    atoms = bulk("Si", "fcc", a=4.05, cubic=True) * repeat
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    strain = np.array([[1, 0, 0], [0.05, 1, 0], [-0.04, 0.06, 1]])
    atoms.set_cell(atoms.cell @ strain @ turn, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return _moving(atoms, temperature)


def small_molecule(temperature: float = 300.0) -> Structure:
    """Ethanol without a cell."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.02, seed=2)
    return _moving(atoms, temperature)


def _moving(atoms: Any, temperature: float) -> Structure:
    rng = np.random.default_rng(5)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    momenta = atoms.get_momenta()
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    return Structure.from_atoms(atoms)


def corrected(ensemble: str = "nve", steps: int = 40, every: int = 4, **changes: Any) -> MDSettings:
    """Settings of a corrected run in double precision; a record every outer step."""
    return MDSettings(
        **{
            "ensemble": ensemble, "steps": steps, "every": every, "interval": every,
            "correct_with": TEACHER, "dtype": "float64", "threads": 1, "timestep": 1.0,
            **changes,
        }
    )  # fmt: skip


def by_ase(structure: Structure, calculator: Any, steps: int, timestep: float) -> np.ndarray:
    """Positions after velocity Verlet on the surface of ``calculator`` alone, (steps + 1, n, 3)."""
    from ase.md.verlet import VelocityVerlet

    atoms = structure.to_atoms(labels=False, dynamics=True)
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    found = [atoms.get_positions()]
    for _ in range(steps):
        dynamics.run(1)
        found.append(atoms.get_positions())
    return np.array(found)
