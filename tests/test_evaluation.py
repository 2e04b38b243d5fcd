"""Metrics against hand calculation, engines against each other, figures and the report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from support.students import make_student

from mlff_distiller.config import EnginesConfig, TeacherConfig
from mlff_distiller.data import Structure
from mlff_distiller.dynamics import MDSettings, Trajectory, run_md, single_point
from mlff_distiller.dynamics.freedom import initial_velocities
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation import accuracy, plots, predict
from mlff_distiller.evaluation.engines import compare_engines, headline, run_engines
from mlff_distiller.evaluation.report import write_report
from mlff_distiller.evaluation.speed import time_teacher
from mlff_distiller.evaluation.summary import summary_lines
from mlff_distiller.evaluation.targets import TARGETS, Target, measured, number
from mlff_distiller.export import export_student, read_metadata
from mlff_distiller.models import StudentForceField

ENGINES = ["lammps", "openmm", "ase"]


@pytest.fixture(scope="module")
def student() -> StudentForceField:
    return make_student([1, 8, 14], energies=[-1.0, -4.0, -5.0])


@pytest.fixture(scope="module")
def model(student: StudentForceField, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "student.pt"
    export_student(student, path, {"teacher": "nobody"})
    return path


def skewed_silicon() -> Structure:
    """12 atoms in a skewed cell that LAMMPS and OpenMM both have to rotate, one way each."""
    atoms = bulk("Si") * (3, 2, 1)
    strain = np.array([[1.02, 0.03, -0.05], [0.0, 0.97, 0.04], [0.0, 0.0, 1.01]])
    atoms.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
    atoms.rattle(0.08, seed=5)
    return Structure.from_atoms(atoms)


def water() -> Structure:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=2)
    return Structure.from_atoms(atoms)


# --- metrics -------------------------------------------------------------------------------------


def test_accuracy_is_what_its_names_say() -> None:
    def frame(energy: float, force: float, stress: float | None) -> Structure:
        return Structure(
            atomic_numbers=np.array([8, 1]),
            positions=np.zeros((2, 3)),
            energy=energy,
            forces=np.array([[force, 0.0, 0.0], [0.0, 2 * force, 0.0]]),
            stress=None if stress is None else np.full((3, 3), stress),
        )

    reference = [frame(1.0, 0.0, 0.0), frame(2.0, 1.0, None)]
    predicted = [frame(1.2, 0.3, 0.01), frame(1.9, 1.3, 0.5)]
    result = accuracy(reference, predicted)
    assert result["energy_mae_mev_per_atom"] == pytest.approx((100 + 50) / 2)
    assert result["energy_rmse_mev_per_atom"] == pytest.approx(np.sqrt((100**2 + 50**2) / 2))
    assert result["force_mae_mev_per_ang"] == pytest.approx((300 + 600) / 6)
    assert result["force_rmse_mev_per_ang"] == pytest.approx(np.sqrt((300**2 + 600**2) / 6))
    assert result["stress_mae_gpa"] == pytest.approx(1.602176634)  # only the frame that has one
    assert result["per_element"]["O"]["force_mae_mev_per_ang"] == pytest.approx(100)
    assert result["per_element"]["H"]["force_mae_mev_per_ang"] == pytest.approx(200)
    assert list(result["per_element"]) == ["H", "O"]
    true = np.array([0, 0, 0, 0, 0, 0, 1000, 0, 0, 0, 2000, 0])
    error = np.array([300, 0, 0, 0, 600, 0, 300, 0, 0, 0, 600, 0])
    expected = 1 - (error**2).sum() / ((true - true.mean()) ** 2).sum()
    assert result["force_r2"] == pytest.approx(expected)
    assert result["force_relative_error"] == pytest.approx(error.mean() / true.mean())


def test_accuracy_without_labels_is_none_and_without_frames_an_error() -> None:
    bare = water().with_labels(None)
    assert accuracy([bare], [bare])["force_mae_mev_per_ang"] is None
    with pytest.raises(InputError, match="at least one"):
        accuracy([], [])


def test_predict_keeps_the_order_of_unequal_structures(student: StudentForceField) -> None:
    structures = [water(), skewed_silicon(), water()]
    together = predict(student, structures, batch_size=2)
    for structure, result in zip(structures, together, strict=True):
        alone = predict(student, [structure])[0]
        assert result.energy == pytest.approx(alone.energy, abs=1e-10)
        np.testing.assert_allclose(result.forces, alone.forces, atol=1e-10)
    assert together[0].stress is None
    assert together[1].stress is not None


def test_verdicts_compare_with_the_targets() -> None:
    metrics = {target.key: target.limit for target in TARGETS if not target.at_least}
    metrics["nve_drift_mev_per_atom_per_ps"] = -2.0
    rows = {target.key: target.passed(value) for target, value in measured(metrics)}
    assert rows["force_mae_mev_per_ang"] is True
    assert rows["nve_drift_mev_per_atom_per_ps"] is False
    assert rows["speedup_vs_teacher_lammps"] is None


def test_targets_know_their_direction() -> None:
    error, speed = Target("e", "Error", "eV", 0.5), Target("s", "Speed", "×", 5.0, at_least=True)
    assert [error.passed(v) for v in (-0.5, 0.5, 0.51, -1.0)] == [True, True, False, False]
    assert [speed.passed(v) for v in (5.0, 4.9, -6.0, 100.0)] == [True, False, False, True]
    assert (error.goal, speed.goal) == ("≤ 0.5", "≥ 5")
    assert (error.reached(None), speed.reached(12345.0)) == ("– eV", "12,345 ×")


# --- engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [skewed_silicon, water])
def test_engines_agree_with_the_network(engine: str, make, student, model) -> None:  # type: ignore[no-untyped-def]
    structure = make()
    expected = predict(student, [structure])[0]
    for dtype, energy, force in (("float64", 1e-9, 1e-8), ("float32", 1e-6, 1e-4)):
        result = single_point(engine, model, structure, dtype)
        assert abs(result.energy - expected.energy) / len(structure) < energy
        np.testing.assert_allclose(result.forces, expected.forces, atol=force)
        if structure.pbc.all() and engine != "openmm":
            np.testing.assert_allclose(result.stress, expected.stress, atol=force)


def test_torchscript_agrees_with_the_network(student: StudentForceField, model: Path) -> None:
    for structure in (skewed_silicon(), water()):
        expected = predict(student, [structure])[0]
        result = single_point("torchscript", model, structure, "float64")
        assert result.energy == pytest.approx(expected.energy, abs=1e-9)
        np.testing.assert_allclose(result.forces, expected.forces, atol=1e-9)
        if expected.stress is not None:
            np.testing.assert_allclose(result.stress, expected.stress, atol=1e-9)


def test_compare_engines_takes_all_pairs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two may lie on two sides of the first."""
    from mlff_distiller.evaluation import engines

    shift = {"ase": 0.0, "openmm": 0.01, "torchscript": -0.01}

    def shifted(engine: str, model: object, structure: Structure, dtype: str) -> Structure:
        forces = np.full((len(structure), 3), shift[engine])
        return structure.with_labels(shift[engine] * len(structure), forces, None)

    monkeypatch.setattr(engines, "single_point", shifted)
    report = compare_engines(model, skewed_silicon(), list(shift), ("float64",))["float64"]
    assert report["max_energy_diff_ev_per_atom"] == pytest.approx(0.02)
    assert report["max_force_diff_ev_per_ang"] == pytest.approx(0.02)
    assert report["rows"]["openmm"]["max_force_diff_ev_per_ang"] == pytest.approx(0.01)


def test_compare_engines_sees_a_difference(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlff_distiller.evaluation import engines

    def shifted(engine: str, *arguments: object) -> Structure:
        result = single_point(engine, *arguments)  # type: ignore[arg-type]
        if engine == "torchscript":
            assert result.energy is not None
            assert result.forces is not None
            return result.with_labels(result.energy + 0.12, result.forces + 0.01, result.stress)
        return result

    monkeypatch.setattr(engines, "single_point", shifted)
    report = compare_engines(model, skewed_silicon(), ["ase", "torchscript"], ("float64",))
    assert report["float64"]["max_energy_diff_ev_per_atom"] == pytest.approx(0.01, rel=1e-6)
    assert report["float64"]["max_force_diff_ev_per_ang"] == pytest.approx(0.01, rel=1e-6)
    assert report["float64"]["max_stress_diff_gpa"] < 1e-6


def test_nve_conserves_energy_and_follows_the_same_path(engine: str, model: Path) -> None:
    structure = skewed_silicon()
    settings = MDSettings("nve", 40, interval=8, timestep=0.5, dtype="float64", temperature=200)
    run = run_md(engine, model, structure, settings)
    np.testing.assert_allclose(run.time, np.arange(0, 21, 4))
    assert np.ptp(run.total_energy) < 0.05 * np.ptp(run.potential_energy)
    reference = run_md("ase", model, structure, settings)
    np.testing.assert_allclose(run.potential_energy, reference.potential_energy, atol=2e-5)
    np.testing.assert_allclose(run.temperature, reference.temperature, rtol=1e-3)
    assert run.volume[0] == pytest.approx(abs(np.linalg.det(structure.cell)), rel=1e-6)
    for frame, potential in zip(run.frames, run.potential_energy, strict=True):
        again = single_point("torchscript", model, frame, "float64")
        assert again.energy == pytest.approx(potential, abs=1e-5)  # frames come back unrotated
        np.testing.assert_allclose(again.forces, frame.forces, atol=1e-4)


def test_npt_changes_the_volume_and_refuses_molecules(engine: str, model: Path) -> None:
    settings = MDSettings("npt", 60, interval=20, temperature=300, warmup_steps=5)
    run = run_md(engine, model, skewed_silicon(), settings)
    assert np.ptp(run.volume) > 0
    cells = [abs(np.linalg.det(frame.cell)) for frame in run.frames]
    np.testing.assert_allclose(cells, run.volume, rtol=1e-5)
    with pytest.raises(InputError, match="periodic in three directions"):
        run_md(engine, model, water(), settings)


def test_initial_velocities_have_the_temperature_and_no_drift() -> None:
    from ase import units

    structure = water()
    velocities = initial_velocities(structure, 300.0, seed=1)
    atoms = structure.to_atoms()
    atoms.set_velocities(velocities / units.fs)
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0, atol=1e-12)
    assert 2 * atoms.get_kinetic_energy() / (6 * units.kB) == pytest.approx(300.0)


def test_drift_is_the_slope_of_the_total_energy() -> None:
    time = np.arange(50) * 10.0  # fs
    energy = -100 + 2e-6 * time  # eV/fs
    flat = np.zeros(50)
    run = Trajectory("ase", "nve", 4, time, energy, energy, flat, flat, 1e-3)
    assert run.drift() == pytest.approx(2e-6 * 1e3 * 1e3 / 4)  # meV/atom/ps
    assert run.microseconds_per_atom_step == pytest.approx(250.0)


def test_settings_refuse_nonsense() -> None:
    for wrong in (
        {"steps": 0},
        {"timestep": 0.0},
        {"ensemble": "nph"},
        {"dtype": "half"},
        {"threads": 10**6},
    ):
        with pytest.raises(InputError):
            MDSettings(**wrong)  # type: ignore[arg-type]


def test_errors_of_a_timed_teacher_are_told() -> None:
    copper = Structure.from_atoms(bulk("Cu", cubic=True))
    with pytest.raises(InputError, match="no-such-teacher"):
        time_teacher("no-such-teacher", copper)


def test_a_timed_teacher_may_print_and_may_not_leave(tmp_path: Path, monkeypatch) -> None:
    text = (
        "import atexit, sys\nfrom ase.calculators.emt import EMT\n"
        "class Loud(EMT):\n    def __init__(self):\n        print('licence 7')\n"
        "        atexit.register(print, 'good bye')\n        super().__init__()\n"
        "class Gone(EMT):\n    def calculate(self, *a, **k):\n        sys.exit(0)\n"
    )
    (tmp_path / "timed_teachers.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    copper = Structure.from_atoms(bulk("Cu", cubic=True))
    assert 0 < time_teacher("timed_teachers:Loud", copper, seconds=0.01) < 60
    with pytest.raises(InputError, match="Gone"):
        time_teacher("timed_teachers:Gone", copper, seconds=0.01)


def test_run_engines_gives_the_keys_of_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "cu.pt"
    size = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.5}
    export_student(make_student([29], **size, zbl=False), path)
    settings = EnginesConfig(nve_steps=20, npt_steps=20)
    copper = Structure.from_atoms(bulk("Cu", cubic=True))
    result, runs = run_engines(path, copper, settings, TeacherConfig(name="emt"))
    usable = [e for e in ENGINES if e not in result["not_run"]]
    assert "ase" in usable
    assert {r.engine for r in runs if r.ensemble == "nve"} == set(usable)
    keys = headline(result)
    assert keys["engines_max_energy_diff_ev_per_atom"] < 1e-6
    assert keys["engines_max_force_diff_ev_per_ang"] < 1e-4
    assert np.isfinite(keys["nve_drift_mev_per_atom_per_ps"])
    assert 1e-6 < result["teacher_seconds"] < 1.0
    assert keys["speedup_vs_teacher"]["ase"] > 0


# --- figures and the report ----------------------------------------------------------------------


class Tags(HTMLParser):
    """Checks that tags are closed, collects the images."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(str(dict(attrs)["src"]))
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def example_metrics(runs: list[Trajectory]) -> dict[str, object]:
    row = {"energy_ev": -1.0, "energy_diff_ev_per_atom": 0.0, "max_force_diff_ev_per_ang": 2e-7}
    block = {"rows": {"lammps": row, "ase": row}, "max_energy_diff_ev_per_atom": 0.0}
    reference = skewed_silicon().with_labels(-1.0, np.ones((12, 3)), np.eye(3))
    return {
        "force_mae_mev_per_ang": 12.3,
        "energy_mae_mev_per_atom": 7.5,
        "stress_mae_gpa": None,
        "teacher": "<teacher>",
        "structures": "builtin:silicon",
        "num_frames": {"train": 8, "test": 2},
        "test": accuracy([reference], [reference]),
        "stage_seconds": {"sample": 1.5, "train": 60.0},
        "engines": {
            "agreement": {"float32": block, "float64": block},
            "runs": [r.summary() for r in runs],
            "not_run": {"openmm": "OpenMM is not installed"},
            "seconds_per_step": {"ase": 1e-3},
            "teacher_seconds": 0.1,
            "num_atoms": 12,
            "threads": 1,
        },
    }


def test_report_is_one_valid_file_with_everything_in_it(tmp_path: Path, model: Path) -> None:
    time = np.arange(20) * 1.0
    line = np.sin(time)
    flat = np.full(20, 300.0)
    runs = [
        Trajectory("ase", ens, 12, time, line, line, flat, flat, 1e-3) for ens in ("nve", "npt")
    ]
    reference = [skewed_silicon().with_labels(-1.0, np.random.default_rng(0).normal(size=(12, 3)))]
    history = {"epoch": np.arange(5.0), "valid_force_mae": np.array([5, 4, 3, np.nan, 2.0])}
    figures = {
        "learning_curve": plots.png(plots.learning_curve(history)),
        "parity": plots.save(plots.parity(reference, reference), tmp_path / "parity.png"),
        "energy_drift": plots.png(plots.energy_drift(runs)),
        "npt": plots.png(plots.volume_over_time(runs[1])),
        "speed": plots.png(plots.speed_bars({"ase": 20.0, "teacher": 900.0}, "nobody")),
    }
    metrics = example_metrics(runs)
    page_path = tmp_path / "report.html"
    write_report(
        page_path,
        title="<b> & student",
        metrics=metrics,
        card=read_metadata(model),
        figures=figures,
        model_path="runs/x/student.pt",
    )
    page = page_path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.images) == 5
    assert all(source.startswith("data:image/png;base64,") for source in tags.images)
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    assert "&lt;b&gt; &amp; student" in page
    for text in (
        "pair_style painn",
        "StudentCalculator",
        "MLPotential",
        "12.3",
        "OpenMM was not run",
    ):
        assert text in page, text
    lines = "\n".join(summary_lines(metrics))
    assert "✓ Force error" in lines
    assert "✗ Energy error" in lines
    assert "✗ openmm was not run" in lines
    json.dumps(metrics)


def test_numbers_read_well() -> None:
    assert number(None) == "–"
    assert number(0.0) == "0"
    assert number(-3.2e-7) == "−3.2e-7"
    assert number(12.345) == "12.3"
    assert number(7125.3) == "7,125"


def test_predictions_that_are_not_finite_are_refused(student: StudentForceField) -> None:
    whole = water()
    overlapping = Structure([1, 1], np.zeros((2, 3)), energy=0.0, forces=np.zeros((2, 3)))
    for size in (1, 2, 8):
        with pytest.raises(InputError, match=r"frame 2 of those evaluated \(H2\).*--drop-bad"):
            predict(student, [whole, whole, overlapping, whole], batch_size=size)
