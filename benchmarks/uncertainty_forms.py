"""Which covariance and which form of u rank and size the errors of forces best.

One covariance over all atoms or one per element, with or without their mean; u proportional to the
deviation s, with a floor under it, or a power of it. Each is calibrated by maximum likelihood on
held-out frames. On copper, gold and silver by EMT (trains a student, two minutes of one core) and, where
benchmarks/uncertainty.py has run, on its silicon.

    python benchmarks/uncertainty_forms.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from scipy.optimize import minimize

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, write_report
from benchmarks.uncertainty import WORK
from benchmarks.uncertainty_report import spearman
from mlff_distiller.config import DataConfig, ModelConfig, TrainConfig, TrainingConfig
from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure, ensure_splits
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.energy_model import StudentModel
from mlff_distiller.students.features import features_of
from mlff_distiller.training import train

RIDGE = 1e-6
COVARIANCES = ("one", "one, mean", "per element", "per element, mean")
#: ln u of ln s.
FORMS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], list[float]]] = {
    "proportional": (lambda p, x: p[0] + x, [-4.0]),
    "floor": (lambda p, x: 0.5 * np.logaddexp(2 * p[0], 2 * (p[1] + x)), [-4.0, -4.0]),
    "power": (lambda p, x: p[0] + p[1] * x, [-4.0, 1.0]),
}


class Atomwise:
    """Features, squared force errors and elements of the atoms of some frames."""

    def __init__(self, student: StudentForceField, frames: Sequence[Structure]) -> None:
        self.features = np.concatenate(features_of(student, frames))
        model = StudentModel(student)
        self.squared = np.concatenate(
            [np.square(s.forces - model.compute(s).forces).sum(axis=1) for s in frames]
        )
        self.elements = np.concatenate([s.atomic_numbers for s in frames])


def deviations(known: Atomwise, atoms: Atomwise, covariance: str) -> np.ndarray:
    """ln s of atoms."""
    s = np.zeros(len(atoms.features))
    kinds = np.unique(known.elements) if covariance.startswith("per") else [None]
    for kind in kinds:
        of = slice(None) if kind is None else known.elements == kind
        to = slice(None) if kind is None else atoms.elements == kind
        h = known.features[of]
        mean = h.mean(axis=0) if covariance.endswith("mean") else np.zeros(h.shape[1])
        matrix = (h - mean).T @ (h - mean) / len(h)
        matrix += RIDGE * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        whitened = np.linalg.solve(np.linalg.cholesky(matrix), (atoms.features[to] - mean).T)
        s[to] = np.linalg.norm(whitened, axis=0)
    return np.log(s + 1e-12)


def cost(log_u: np.ndarray, squared: np.ndarray) -> float:
    """Negative logarithm of the likelihood of an atom's three components, up to a constant."""
    return float(np.mean(3 * log_u + 1.5 * squared * np.exp(-2 * log_u)))


def compare(
    known: Atomwise, held_out: Atomwise, others: dict[str, Atomwise]
) -> list[dict[str, Any]]:
    rows = []
    for covariance in COVARIANCES:
        x = deviations(known, held_out, covariance)
        for name, (form, start) in FORMS.items():
            found = minimize(
                lambda p, form=form, x=x: cost(form(p, x), held_out.squared),
                start,
                method="Nelder-Mead",
                options={"maxiter": 4000, "fatol": 1e-9, "xatol": 1e-6},
            )
            row = {"covariance": covariance, "form": name, "held-out": (found.fun, np.nan)}
            for kind, atoms in others.items():
                y = deviations(known, atoms, covariance)
                log_u = form(found.x, y)
                row[kind] = (cost(log_u, atoms.squared), spearman(y, atoms.squared))
            rows.append(row)
    return rows


def markdown(tables: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["# Forms of the uncertainty", ""]
    lines += ["Cost of an atom (lower is better) and, in brackets, correlation of ranks.", ""]
    for system, rows in tables.items():
        kinds = [k for k in rows[0] if k not in ("covariance", "form")]
        lines += [f"## {system}", "", f"| covariance | u | {' | '.join(kinds)} |"]
        lines += ["|" + "---|" * (2 + len(kinds))]
        for row in rows:
            cells = [
                f"{value:.2f}" + ("" if np.isnan(rho) else f" ({rho:.2f})")
                for value, rho in (row[k] for k in kinds)
            ]
            lines.append(f"| {row['covariance']} | {row['form']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


# --- copper, gold and silver ------------------------------------------------------------------------
def alloy(rng: np.random.Generator) -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.72, cubic=True) * (2, 2, 2)
    atoms.numbers[rng.permutation(len(atoms))[: len(atoms) // 4]] = 79
    atoms.numbers[rng.integers(len(atoms))] = 47
    return atoms


def labelled(atoms: Atoms) -> Structure:
    atoms = atoms.copy()
    atoms.calc = EMT()
    atoms.get_forces(), atoms.get_stress()
    return Structure.from_atoms(atoms)


def rattled(rng: np.random.Generator, number: int) -> list[Structure]:
    frames = []
    for i in range(number):
        atoms = alloy(rng)
        strain = np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0.0, (0.03, 0.06, 0.1, 0.14)[i % 4], atoms.positions.shape)
        frames.append(labelled(atoms))
    return frames


def dynamics(rng: np.random.Generator, kelvin: float, vacancies: int = 0) -> list[Structure]:
    frames = []
    for seed in range(2):
        atoms = alloy(rng)
        del atoms[list(range(vacancies))]
        atoms.calc = EMT()
        run = Langevin(
            atoms,
            2 * units.fs,
            temperature_K=kelvin,
            friction=0.02,
            rng=np.random.default_rng(seed),
        )
        run.run(150)
        for _ in range(4):
            run.run(25)
            frames.append(labelled(atoms))
    return frames


def strained(rng: np.random.Generator) -> list[Structure]:
    frames = []
    for factor in (0.9, 0.93, 0.95, 1.06, 1.1):
        atoms = alloy(rng)
        atoms.set_cell(factor * atoms.cell, scale_atoms=True)
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
        frames.append(labelled(atoms))
    return frames


def of_alloy(work: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    path = work / "alloy.h5"
    path.unlink(missing_ok=True)
    with HDF5Writer(path, teacher="emt") as writer:
        writer.append(rattled(rng, 70))
    ensure_splits(path, 0.2, 0.0, 0)
    config = TrainConfig(
        data=DataConfig(path=str(path)),
        model=ModelConfig(hidden_dim=32, num_interactions=2, num_rbf=12, cutoff=4.6),
        training=TrainingConfig(
            max_minutes=1.5, max_epochs=400, batch_size=4, learning_rate=3e-3, threads=1
        ),
    )
    train(config, work / "alloy")
    student = StudentForceField.load(work / "alloy")
    data = HDF5Dataset(path)
    others = {
        "300 K": dynamics(rng, 300),
        "1200 K": dynamics(rng, 1200),
        "2500 K": dynamics(rng, 2500),
        "vacancies, 600 K": dynamics(rng, 600, 2),
        "strained": strained(rng),
    }
    return compare(
        Atomwise(student, data.subset("train")),
        Atomwise(student, data.subset("valid")),
        {kind: Atomwise(student, frames) for kind, frames in others.items()},
    )


def of_silicon(run: Path, work: Path) -> list[dict[str, Any]]:
    """Of what benchmarks/uncertainty.py has left."""
    student = StudentForceField.load(run / "training")
    data = HDF5Dataset(run / "data.h5")
    others: dict[str, list[Structure]] = {"test": data.subset("test")}
    for frame in HDF5Dataset(work / "frames.h5"):
        others.setdefault(str(frame.info["kind"]), []).append(frame)
    return compare(
        Atomwise(student, data.subset("train")),
        Atomwise(student, data.subset("valid")),
        {kind: Atomwise(student, frames) for kind, frames in others.items()},
    )


def main() -> None:
    parser = parser_of(__doc__, output=RESULTS, whole=True)
    parser.add_argument("--run", type=Path, default=WORK / "run", help="run of distill")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is in between")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tables = {}
    if (arguments.work / "frames.h5").exists():
        tables["Silicon"] = of_silicon(arguments.run, arguments.work)
    tables["Copper, gold and silver"] = of_alloy(arguments.work)
    write_report(arguments.output, "uncertainty_forms", tables, markdown(tables))
    print(markdown(tables))


if __name__ == "__main__":
    main()
