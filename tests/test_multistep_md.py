"""``md --correct-with`` in ASE: records, labels, going on, refusals. Engines: test_multistep_*."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read, write
from support.calculators import Sites
from support.commands import run
from support.students import make_student

from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure
from mlff_distiller.dynamics import MDSettings, RunStoppedError, run_md
from mlff_distiller.dynamics.freedom import kinetic_energy, masses_of
from mlff_distiller.dynamics.masses import with_heavy_hydrogens
from mlff_distiller.dynamics.state import RunState, state_path
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.teachers import CalculatorTeacher, get_teacher


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.5}
    path = tmp_path_factory.mktemp("student") / "student.pt"
    export_student(make_student([1, 6, 8, 14, 29], scale=0.02, **size), path)
    return path


def copper() -> Structure:
    atoms = bulk("Cu", cubic=True) * (1, 1, 2)
    atoms.rattle(0.05, seed=1)
    return Structure.from_atoms(atoms, labels=False)


SETTINGS = MDSettings(
    ensemble="nve", steps=40, interval=8, temperature=300.0, dtype="float64", threads=1,
    correct_with="emt", every=4,
)  # fmt: skip


def emt(frame: Structure) -> Atoms:
    atoms = frame.to_atoms(labels=False)
    atoms.calc = EMT()
    return atoms


def test_records_have_the_teachers_labels(model: Path) -> None:
    said: list[str] = []
    trajectory = run_md("ase", model, copper(), SETTINGS, say=said.append)
    assert said == []
    assert [f.info["step"] for f in trajectory.frames] == [0, 8, 16, 24, 32, 40]
    student = ExportedModel(model, dtype="float64")
    for k, frame in enumerate(trajectory.frames):
        atoms = emt(frame)
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        assert trajectory.potential_energy[k] == frame.energy
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-10)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-10)
        own = student.compute(frame).energy
        assert frame.info["student_ev"] == pytest.approx(own, abs=1e-9)
    # Conserved is the teacher's energy: the student's changes by what both differ in.
    total = trajectory.total_energy
    kinetic = total - trajectory.potential_energy
    other = np.array([f.info["student_ev"] for f in trajectory.frames]) + kinetic
    assert np.ptp(total) < 0.05 * np.ptp(other)
    summary = trajectory.summary()
    assert summary["teacher"] == "emt"
    assert summary["teacher_calls"] == 11
    assert summary["outer_step_fs"] == 4.0
    assert 0 < summary["teacher_share"] <= 1
    assert trajectory.correction is not None
    json.dumps(summary)


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_going_on_equals_an_uninterrupted_run(model: Path, tmp_path: Path, ensemble: str) -> None:
    settings = replace(SETTINGS, ensemble=ensemble)
    whole = run_md("ase", model, copper(), settings)
    first = run_md("ase", model, copper(), replace(settings, steps=16))
    assert first.state is not None
    first.state.save(state_path(tmp_path / "a"))
    state = RunState.load(state_path(tmp_path / "a"))
    # The number of steps is that of the first part, also where it is left to be chosen.
    second = run_md("ase", model, copper(), replace(settings, steps=24, every=0), resume=state)
    assert second.time.tolist() == [16, 24, 32, 40]
    np.testing.assert_allclose(second.frames[-1].positions, whole.frames[-1].positions, atol=1e-9)
    np.testing.assert_allclose(second.frames[-1].momenta, whole.frames[-1].momenta, atol=1e-9)
    np.testing.assert_allclose(second.frames[-1].cell, whole.frames[-1].cell, atol=1e-9)
    if ensemble == "npt":
        assert np.abs(whole.frames[-1].cell - copper().cell).max() > 1e-4


# -- labels ----------------------------------------------------------------------------------------


def test_kept_labels_are_training_data(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels.h5"
    settings = replace(SETTINGS, keep_labels=str(target), ensemble="nvt")
    trajectory = run_md("ase", model, copper(), settings)
    data = HDF5Dataset(target)
    assert data.teacher == "emt"
    assert [s.info["step"] for s in data] == list(range(0, 41, 4))
    last = data[-1]
    assert last.info["source"] == "multistep"
    assert last.info["temperature"] == 300.0
    np.testing.assert_allclose(last.positions, trajectory.frames[-1].positions, atol=1e-12)
    np.testing.assert_allclose(last.forces, trajectory.frames[-1].forces, atol=1e-12)
    np.testing.assert_allclose(last.stress, trajectory.frames[-1].stress, atol=1e-12)
    # What goes on adds the rest, not its first frame again.
    run_md("ase", model, copper(), settings, resume=trajectory.state)
    steps = [s.info["step"] for s in HDF5Dataset(target)]
    assert steps == list(range(0, 81, 4))


def test_a_run_goes_on_on_the_same_surface_or_not_at_all(model: Path) -> None:
    plain = replace(SETTINGS, correct_with=None, every=0)
    corrected, alone = (run_md("ase", model, copper(), s).state for s in (SETTINGS, plain))
    for settings, state, words in (
        (plain, corrected, "had --correct-with emt, got no --correct-with"),
        (SETTINGS, alone, "had no --correct-with, got --correct-with emt"),
    ):
        with pytest.raises(InputError, match=words):
            run_md("ase", model, copper(), settings, resume=state)
    with pytest.raises(InputError, match="had --correct-with emt, got --correct-with Failing"):
        run_md("ase", model, copper(), SETTINGS, teacher=Failing(None), resume=corrected)


def test_a_plain_run_from_a_corrected_frame_forgets_its_student_energy(model: Path) -> None:
    start = run_md("ase", model, copper(), SETTINGS).frames[-1]
    assert "student_ev" in start.info
    plain = replace(SETTINGS, correct_with=None, every=0)
    frames = run_md("ase", model, start, plain).frames
    assert not any("student_ev" in f.info for f in frames)


def test_atoms_at_one_point_are_what_is_said(model: Path) -> None:
    said: list[str] = []
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(InputError, match="at one point"):
        run_md("ase", model, Structure.from_atoms(atoms, labels=False), SETTINGS, say=said.append)
    assert said == []


def test_what_was_stored_after_the_last_record_is_not_stored_again(model, tmp_path) -> None:
    target = tmp_path / "labels.h5"
    settings = replace(SETTINGS, keep_labels=str(target), interval=20)
    start = copper()
    calculator = Failing(at=8)
    with pytest.raises(RunStoppedError) as stopped:
        run_md("ase", model, start, settings, teacher=calculator)
    trajectory = stopped.value.trajectory
    assert [f.info["step"] for f in trajectory.frames] == [0, 20]
    assert [s.info["step"] for s in HDF5Dataset(target)] == list(range(0, 28, 4))
    settings = replace(settings, steps=20)
    run_md("ase", model, start, settings, teacher=Failing(at=None), resume=trajectory.state)
    assert [s.info["step"] for s in HDF5Dataset(target)] == list(range(0, 41, 4))


def test_labels_of_another_teacher_are_refused(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels.h5"
    with HDF5Writer(target, teacher="gfn2-xtb") as writer:
        writer.append([copper().with_labels(1.0, np.zeros((8, 3)))])
    with pytest.raises(InputError, match="labelled by 'gfn2-xtb', got 'emt'"):
        run_md("ase", model, copper(), replace(SETTINGS, keep_labels=str(target)))


# -- errors ----------------------------------------------------------------------------------------


class Failing(EMT):
    """EMT that fails from one of its calculations on."""

    def __init__(self, at: int | None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def calculate(self, *args, **kwargs) -> None:
        self.calls += 1
        if self.at is not None and self.calls >= self.at:
            raise self.error("out of range")
        super().calculate(*args, **kwargs)


# Programs that a calculator runs in this process may end it in their own way.
@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_failing_teacher_leaves_the_last_record(model: Path, error: type[BaseException]) -> None:
    with pytest.raises(RunStoppedError) as stopped:
        run_md("ase", model, copper(), SETTINGS, teacher=Failing(at=6, error=error))
    text = str(stopped.value)
    assert text.startswith("after step 16: the teacher failed at step 20: Failing cannot label Cu8")
    assert "out of range" in text
    assert "a smaller --every" in text
    assert "\n" not in text
    trajectory = stopped.value.trajectory
    assert trajectory.state is not None
    assert trajectory.state.step == 16
    whole = run_md("ase", model, copper(), SETTINGS, teacher=Failing(None))
    settings = replace(SETTINGS, steps=24)
    rest = run_md("ase", model, copper(), settings, teacher=Failing(None), resume=trajectory.state)
    np.testing.assert_allclose(rest.frames[-1].positions, whole.frames[-1].positions, atol=1e-9)


def test_what_is_refused_before_the_first_step(model: Path) -> None:
    def refused(match: str, start: Structure | None = None, teacher=None, **changes) -> None:
        start = copper() if start is None else start
        with pytest.raises(InputError, match=match) as error:
            run_md("ase", model, start, replace(SETTINGS, **changes), teacher=teacher)
        assert not isinstance(error.value, RunStoppedError)

    silicon = Structure.from_atoms(bulk("Si", cubic=True))
    refused("emt does not know Si", silicon)
    gas = replace(copper(), pbc=np.zeros(3, dtype=bool))
    strict = CalculatorTeacher("strict", EMT(), periodic_only=True)
    refused("strict labels structures with three periodic directions", gas, strict)
    refused(
        r"--interval must be a multiple of --every \(3\), got 8; use e.g. --interval 9", every=3
    )
    refused("--steps must be a multiple of --every", every=8, interval=8, steps=44)
    refused("--every needs a teacher", correct_with=None)
    refused("--keep-labels needs a teacher", correct_with=None, every=0, keep_labels="a.h5")
    refused("unknown teacher 'emtt'; did you mean 'emt'", correct_with="emtt")
    refused("the teacher failed at step 0: Failing", teacher=Failing(at=1))
    sites = Sites(copper().positions, 1.0)
    refused("constant pressure needs a stress, Sites gives none", teacher=sites, ensemble="npt")


def test_forces_that_are_no_gradient_are_warned_of(model: Path) -> None:
    said: list[str] = []
    teacher = CalculatorTeacher("direct", EMT(), conservative=False)
    run_md("ase", model, copper(), replace(SETTINGS, steps=8), teacher=teacher, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: direct predicts forces that are not the gradient")
    assert get_teacher("emt").conservative


# -- how often, and heavier hydrogens --------------------------------------------------------------


def test_auto_says_what_it_chose(model: Path) -> None:
    said: list[str] = []
    settings = replace(SETTINGS, every=0, interval=20, timestep=2.0, ensemble="nvt")
    trajectory = run_md("ase", model, copper(), settings, say=said.append)
    assert trajectory.correction is not None
    every = trajectory.correction.every
    assert 20 % every == 0
    (line,) = said
    assert line.startswith(f"correcting every {every} steps ({2 * every} fs), ")
    assert ("the most that divides --interval" if every == 10 else "limited by ") in line
    assert "calls of the teacher" in line
    assert trajectory.correction.calls == 40 // every + 1


def test_heavy_hydrogens_keep_mass_and_kinetic_energy() -> None:
    water = molecule("H2O")
    atoms = Atoms("H2", [[9, 0, 0], [9.74, 0, 0]]) + water + molecule("CH4")
    atoms.positions[5:] += 4.0
    momenta = np.random.default_rng(0).normal(size=(len(atoms), 3))
    start = replace(Structure.from_atoms(atoms), momenta=momenta)
    heavy = with_heavy_hydrogens(start, 3.0)
    assert heavy.masses is not None
    assert heavy.masses.sum() == pytest.approx(atoms.get_masses().sum())
    assert heavy.masses[:2] == pytest.approx(1.008)  # no heavier neighbour to take it from
    assert heavy.masses[2] == pytest.approx(15.999 - 2 * (3.0 - 1.008))
    assert (heavy.masses[atoms.numbers == 1][2:] == 3.0).all()
    assert masses_of(heavy)[:, 0] == pytest.approx(heavy.masses)
    before = kinetic_energy(momenta, masses_of(start))
    assert kinetic_energy(heavy.momenta, masses_of(heavy)) == pytest.approx(before, rel=0.05)
    velocity = momenta.sum(axis=0) / atoms.get_masses().sum()
    again = heavy.momenta.sum(axis=0) / heavy.masses.sum()
    np.testing.assert_allclose(again, velocity, atol=1e-12)
    with pytest.raises(InputError, match=r"at least 1\.008 amu, got 0\.5"):
        with_heavy_hydrogens(start, 0.5)
    with pytest.raises(InputError, match=r"leaves 4\.04 amu|leaves -.* amu to atom"):
        with_heavy_hydrogens(start, 6.0)
    with pytest.raises(InputError, match="is for structures with hydrogen, got Cu8"):
        with_heavy_hydrogens(copper(), 3.0)


def test_every_engine_has_the_heavy_hydrogens(engine: str, model: Path) -> None:
    start = Structure.from_atoms(molecule("CH3OH"))
    settings = MDSettings(
        ensemble="nve", steps=40, interval=40, timestep=0.5, dtype="float64", threads=1,
        hydrogen_mass=3.0,
    )  # fmt: skip
    found = run_md(engine, model, start, settings).frames[-1]
    expected = run_md("ase", model, start, settings).frames[-1]
    light = run_md("ase", model, start, replace(settings, hydrogen_mass=None)).frames[-1]
    assert np.abs(light.positions - expected.positions).max() > 0.02
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-4)
    assert found.info["temperature_k"] == pytest.approx(expected.info["temperature_k"], rel=1e-3)


def test_heavy_hydrogens_slow_the_run_and_go_on(model: Path, tmp_path: Path) -> None:
    start = Structure.from_atoms(molecule("CH3OH"))
    said: list[str] = []
    settings = replace(SETTINGS, every=20, interval=20, timestep=0.5, temperature=100.0)
    same = ExportedModel(model, dtype="float64")  # no impulses, whatever the outer step
    run_md("ase", model, start, settings, say=said.append, teacher=same)
    heavy = replace(settings, hydrogen_mass=3.0)
    lines: list[str] = []
    trajectory = run_md("ase", model, start, heavy, say=lines.append, teacher=same)
    frame = trajectory.frames[-1]
    assert frame.masses is not None
    assert (frame.masses[frame.atomic_numbers == 1] == 3.0).all()
    kinetic = trajectory.total_energy[-1] - trajectory.potential_energy[-1]
    assert frame.momenta is not None
    assert kinetic == pytest.approx((frame.momenta**2 / (2 * frame.masses[:, None])).sum())
    degrees = 3 * len(start) - 3
    assert trajectory.temperature[-1] == pytest.approx(2 * kinetic / degrees / units.kB, rel=1e-3)
    assert any("resonates" in line and "--hydrogen-mass 3" in line for line in said)
    assert not any("--hydrogen-mass" in line for line in lines)
    assert trajectory.state is not None
    trajectory.state.save(tmp_path / "state")
    state = RunState.load(tmp_path / "state")
    np.testing.assert_array_equal(state.structure.masses, frame.masses)
    run_md("ase", model, start, heavy, resume=state, teacher=same)
    with pytest.raises(InputError, match="had --hydrogen-mass 3, got none"):
        run_md("ase", model, start, settings, resume=state)


# -- the command -----------------------------------------------------------------------------------


def test_the_command(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "cu.xyz", copper().to_atoms(), format="extxyz")
    md = ["md", model, tmp_path / "cu.xyz", "--threads", 1, "--correct-with", "emt", "-o"]
    done = run(
        *md, tmp_path / "t.extxyz", "--every", 4, "--steps", 40, "--ensemble", "nve",
        "--keep-labels", tmp_path / "more.h5",
    )  # fmt: skip
    assert "corrected with emt every 4 steps (4 fs): 11 calls of" in done.stdout
    assert "energy drift of emt" in done.stdout
    frames = read(tmp_path / "t.extxyz", ":")
    assert [f.info["step"] for f in frames] == [0, 20, 40]
    assert "student_ev" in frames[0].info
    assert len(HDF5Dataset(tmp_path / "more.h5")) == 11
    done = run(*md, tmp_path / "auto.extxyz", "--steps", 40, "--every", "auto", "--json")
    assert "correcting every" in done.stderr
    assert json.loads(done.stdout)["teacher_calls"] > 1
    more = ["--every", 4, "--steps", 40, "--ensemble", "nve", "--continue"]
    run(*md, tmp_path / "t.extxyz", *more, "--keep-labels", tmp_path / "more.h5")
    assert read(tmp_path / "t.extxyz", -1).info["step"] == 80
    for options, text in (
        (["--every", "often"], "--every must be auto or a number of steps, got 'often'"),
        (["--every", 3, "--steps", 40], "--steps must be a multiple of --every (3), got 40"),
    ):
        assert text in run(*md, tmp_path / "no.extxyz", *options, code=2).stderr
    plain = ["md", model, tmp_path / "cu.xyz", "--every", 4]
    assert "--every needs a teacher" in run(*plain, code=2).stderr


def test_a_teacher_that_fails_ends_the_command_with_status_3(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "cu.xyz", copper().to_atoms(), format="extxyz")
    done = run(
        "md", model, tmp_path / "cu.xyz", "--threads", 1, "--steps", 40, "--every", 4,
        "--correct-with", "test_multistep_md:Failing(at=8)", "-o", tmp_path / "t.extxyz", code=3,
    )  # fmt: skip
    assert "the teacher failed at step 28" in done.stderr
    assert "has the 2 frames until then" in done.stderr
    assert len(read(tmp_path / "t.extxyz", ":")) == 2


# -- after the run ---------------------------------------------------------------------------------


def test_reweighting_a_students_run(model: Path, tmp_path: Path) -> None:
    """Frames drawn from a harmonic well of known width, weighted to another."""
    from mlff_distiller.multistep.reweight import reweight

    sites = np.arange(9.0).reshape(3, 3)
    kt = units.kB * 300.0
    rng = np.random.default_rng(0)
    student = Sites(sites, 1.0)
    frames = []
    for _ in range(3000):
        atoms = Atoms("Cu3", positions=sites + rng.normal(size=(3, 3)) * np.sqrt(kt))
        atoms.calc = student
        frames.append(Structure.from_atoms(atoms).with_labels(atoms.get_potential_energy()))
    teacher = CalculatorTeacher("stiffer", Sites(sites, 1.2))
    found = reweight(frames, teacher, 300.0)
    energy = found.averages["energy"]
    # Equipartition: 9/2 kT for three atoms, whatever the stiffness.
    assert abs(energy.teacher - 1.5 * kt) < 4 * energy.teacher_error
    assert energy.teacher_error < 0.03 * kt
    assert abs(energy.student - 1.5 * kt) < 4 * energy.student_error
    squares = np.array([((f.positions - sites) ** 2).mean() for f in frames])
    assert found.weights @ squares == pytest.approx(kt / 1.2, rel=0.03)
    # <w>²/<w²> for independent coordinates: (sqrt(1 + 2 d) / (1 + d))^9 with d = 0.2.
    expected = 3000 * (np.sqrt(1.4) / 1.2) ** 9
    assert found.effective_frames == pytest.approx(expected, rel=0.05)
    assert found.warning is None
    far = reweight(frames[:50], CalculatorTeacher("far", Sites(sites, 9.0)), 300.0)
    assert far.warning is not None
    assert "train a better student" in far.warning
    corrected = frames[0].with_labels(1.0, student_ev=0.5)
    with pytest.raises(InputError, match="put on the teacher's surface"):
        reweight([corrected, corrected], teacher, 300.0)


def test_the_command_reweight(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "cu.xyz", copper().to_atoms(), format="extxyz")
    target = tmp_path / "t.extxyz"
    run("md", model, tmp_path / "cu.xyz", "--threads", 1, "--steps", 40, "-o", target)
    weigh = ["reweight", target, "--teacher", "emt", "--temperature", 300]
    done = run(*weigh, "-o", tmp_path / "weights.json")
    assert "effective sample size" in done.stdout
    assert "g(r) of Cu-Cu" in done.stdout
    whole = json.loads((tmp_path / "weights.json").read_text())
    assert sum(whole["weights"]) == pytest.approx(1.0)
    assert len(whole["pairs"]["Cu-Cu"]["teacher"]) == len(whole["r"])
    assert "> 0 K, got 0" in run(*weigh[:-1], 0, code=2).stderr
