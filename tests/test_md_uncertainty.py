"""Uncertainties of atoms while a simulation runs: ``md``, its watch, and OpenMM's reporter."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.backends import needs_openmm
from support.commands import run
from support.labelled import emt_crystals
from support.openmm import openmm_system, topology_of
from support.students import make_student

from mlff_distiller.constants import FRAME_UNCERTAINTY_MARGIN, UNCERTAINTY_MARGIN
from mlff_distiller.data import Structure, write_structures
from mlff_distiller.data.structure import without_labels
from mlff_distiller.dynamics import MDSettings, RunStoppedError, run_md
from mlff_distiller.dynamics.watch import Watch
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.export import export_student
from mlff_distiller.students.file import read_metadata
from mlff_distiller.students.monitor import UncertaintyMonitor
from mlff_distiller.students.uncertainty import fit_uncertainty, uncertainties

SETTINGS = MDSettings(ensemble="nve", steps=20, interval=10, temperature=100.0, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "student.pt"
    student = make_student((29, 47), scale=0.1, energies=[0.0, 0.0])
    frames = emt_crystals(16)
    fit_uncertainty(student, frames[:12], frames[12:])
    export_student(student, path)
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A student without uncertainties."""
    path = tmp_path_factory.mktemp("bare") / "bare.pt"
    export_student(make_student((29, 47), scale=0.1), path)
    return path


@pytest.fixture
def crystal() -> Structure:
    return without_labels(emt_crystals(1)[0])


def squeezed(structure: Structure, factor: float = 0.75) -> Structure:
    return replace(structure, positions=factor * structure.positions, cell=factor * structure.cell)


def expected(model: Path, structure: Structure) -> np.ndarray:
    return uncertainties(StudentForceField.load(model), [structure])[0]


def test_monitor(model, bare, crystal):
    monitor = UncertaintyMonitor(model, dtype="float64")
    arrays = (crystal.atomic_numbers, crystal.positions, crystal.cell, crystal.pbc)
    np.testing.assert_allclose(monitor(*arrays), expected(model, crystal), rtol=1e-9)
    largest = float(StudentForceField.load(model).uncertainty.largest)
    assert monitor.limit == pytest.approx(UNCERTAINTY_MARGIN * largest)
    assert UncertaintyMonitor(model, 0.7).limit == 0.7
    frame = float(StudentForceField.load(model).uncertainty.largest_frame)
    assert monitor.frame_limit == pytest.approx(FRAME_UNCERTAINTY_MARGIN * frame)
    with pytest.raises(InputError, match=r"bare.pt must have data for uncertainties"):
        UncertaintyMonitor(bare)


def test_atoms_are_judged_one_by_one_and_then_together(model):
    monitor = UncertaintyMonitor(model)
    even, odd = np.full(8, 1.0), np.full(8, 1.0)
    odd[3] = 9.0
    monitor.limit, monitor.frame_limit = 5.0, 1.1
    assert monitor.above(even) is None
    one = monitor.above(odd, lambda i: f"{i} (Cu)")
    assert one.startswith("the uncertainty of the force on atom 3 (Cu)")
    together = monitor.above(1.2 * even)
    assert "uncertainty of the forces is 1.2 eV/Å (root mean square of all atoms)" in together
    theirs = UncertaintyMonitor(model, 5.0)  # of an atom, and then the only one
    assert theirs.above(4.9 * even) is None


def test_files_from_before_frames_were_judged(model, monkeypatch):
    """The largest of an atom takes that place: no mean is above it."""
    card = read_metadata(model)
    del card["uncertainty"]["largest_frame"]
    monkeypatch.setattr("mlff_distiller.students.monitor.read_metadata", lambda path: card)
    monitor = UncertaintyMonitor(model)
    assert monitor.largest_frame == monitor.largest_held_out


def test_watch_says_it_once_and_can_stop(model, crystal):
    said: list[str] = []
    limit = 0.99 * float(expected(model, squeezed(crystal)).max())
    monitor = UncertaintyMonitor(model, limit)

    def watch(stop: bool) -> Watch:
        return Watch({"cutoff": 4.0}, crystal, 300.0, stop, said.append, monitor=monitor)

    w, far = watch(False), squeezed(crystal)
    w.check(0, crystal.with_labels(0.0), 300.0)
    w.check(10, far.with_labels(0.0), 300.0)
    w.check(20, far.with_labels(0.0), 300.0)
    (line,) = w.warnings
    worst = int(expected(model, far).argmax())
    assert line.startswith(f"step 10: the uncertainty of the force on atom {worst} (Cu)")
    assert "held-out atoms had up to" in line
    assert len(said) == 1
    assert w.largest[0] < w.largest[1] == w.largest[2]
    with pytest.raises(RunStoppedError, match=r"step 10: the uncertainty .*; add such frames"):
        watch(True).check(10, far.with_labels(0.0), 300.0)


def test_frames_that_no_model_can_compute_are_left_to_the_other_checks(model, crystal):
    monitor = UncertaintyMonitor(model)
    w = Watch({"cutoff": 4.0}, crystal, 300.0, False, lambda text: None, monitor=monitor)
    positions = crystal.positions.copy()
    positions[1] = positions[0]
    with pytest.raises(RunStoppedError, match=r"atoms have fused"):
        w.check(0, replace(crystal, positions=positions, energy=0.0), 300.0)
    positions[1] = np.nan
    with pytest.raises(RunStoppedError, match=r"positions are not finite"):
        w.check(1, replace(crystal, positions=positions, energy=0.0), 300.0)
    assert np.isnan(w.largest).all()


def test_every_engine_records_the_largest(engine, model, crystal):
    trajectory = run_md(engine, model, crystal, replace(SETTINGS, uncertainty_limit=1e3))
    want = [expected(model, f).max() for f in trajectory.frames]
    np.testing.assert_allclose(trajectory.uncertainty, want, rtol=2e-3)
    assert trajectory.warnings == []
    assert trajectory.summary()["largest_uncertainty_ev_per_ang"] == pytest.approx(
        trajectory.uncertainty.max()
    )


def test_files_without_data_run_as_before_unless_a_limit_asks(bare, crystal):
    trajectory = run_md("ase", bare, crystal, SETTINGS)
    assert trajectory.uncertainty is None
    assert "largest_uncertainty_ev_per_ang" not in trajectory.summary()
    with pytest.raises(InputError, match=r"bare.pt must have data for uncertainties"):
        run_md("ase", bare, crystal, replace(SETTINGS, uncertainty_limit=0.5))


def test_md_stops_with_status_3_and_keeps_the_frames(model, crystal, tmp_path):
    write_structures(tmp_path / "cu.extxyz", [crystal])
    arguments = ["md", model, tmp_path / "cu.extxyz", "--engine", "ase", "--steps", "20"]
    arguments += ["--uncertainty-limit", "1e-4", "-o", tmp_path / "out.extxyz", "--overwrite"]
    warned = run(*arguments)
    assert "warning: step 0: the uncertainty of the force on atom" in warned.stderr
    stopped = run(*arguments, "--on-extrapolation", "stop", code=3)
    assert "stopped at extrapolation, step 0: the uncertainty of the force" in stopped.stderr


@pytest.fixture
def cubic(crystal) -> Structure:
    """In a box that OpenMM takes."""
    return replace(crystal, cell=np.diag([3.8, 3.7, 3.65]))


@pytest.fixture
def simulate(model, cubic):
    """Runs copper and silver in OpenMM with a reporter of these settings."""
    import openmm
    from openmm import app, unit

    from mlff_distiller.openmm import UncertaintyReporter, painn_force

    def simulation(file, *, path=model, atoms=None, steps=20, **options):
        topology = topology_of(cubic.to_atoms(labels=False))
        system = openmm_system(topology, painn_force(topology, path, atoms, threads=1))
        integrator = openmm.VerletIntegrator(0.001)
        platform = openmm.Platform.getPlatform("Reference")
        run = app.Simulation(topology, system, integrator, platform)
        run.context.setPositions(cubic.positions / 10 * unit.nanometer)
        reporter = UncertaintyReporter(file, 10, path, topology, atoms, threads=1, **options)
        run.reporters.append(reporter)
        run.step(steps)
        return run, reporter

    return simulation


@needs_openmm
def test_reporter_writes_the_worst_atom(simulate, model, cubic, tmp_path):
    out = io.StringIO()
    run, _ = simulate(out, limit=1e3, steps=20)
    head, *rows = out.getvalue().splitlines()
    assert head == "step,time_ps,largest_uncertainty_ev_per_ang,atom"
    assert [row.split(",")[0] for row in rows] == ["10", "20"]
    state = run.context.getState(positions=True)
    positions = 10 * np.array(state.getPositions(asNumpy=True)._value)
    want = expected(model, replace(cubic, positions=positions))
    _, time, largest, atom = rows[-1].split(",")
    assert float(time) == pytest.approx(0.02)
    assert float(largest) == pytest.approx(want.max(), rel=2e-3)
    assert int(atom) == want.argmax()
    simulate(tmp_path / "u.csv", limit=1e3)
    assert (tmp_path / "u.csv").read_text().splitlines() == [head, *rows]


@needs_openmm
def test_reporter_names_atoms_of_the_whole_system(simulate):
    out = io.StringIO()
    simulate(out, atoms=[3, 1], steps=10, on_limit="ignore")
    assert int(out.getvalue().splitlines()[-1].split(",")[-1]) in (1, 3)


@needs_openmm
def test_reporter_warns_once_stops_or_is_silent(simulate):
    with pytest.warns(UserWarning, match=r"step 10: the uncertainty of the force on atom") as found:
        simulate(io.StringIO(), limit=1e-4)
    assert len(found) == 1
    out = io.StringIO()
    with pytest.raises(InputError, match=r"step 10: .*above the limit of 0.0001"):
        simulate(out, limit=1e-4, on_limit="stop")
    assert len(out.getvalue().splitlines()) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(io.StringIO(), limit=1e-4, on_limit="ignore")


@needs_openmm
def test_reporter_says_what_is_wrong(simulate, bare, tmp_path):
    for options, words in (
        ({"path": bare}, "bare.pt must have data for uncertainties"),
        ({"on_limit": "halt"}, "on_limit must be warn, stop or ignore, got 'halt'"),
        ({"limit": -1.0}, "limit must be > 0 eV/Å, got -1.0"),
    ):
        with pytest.raises(InputError, match=words):
            simulate(io.StringIO(), **options)
    with pytest.raises(InputError, match="cannot write"):
        simulate(tmp_path / "missing" / "u.csv")
