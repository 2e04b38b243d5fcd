"""Uncertainties of atoms in LAMMPS: fix pair, what is built on it, and the keyword of the style."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.backends import needs_lammps
from support.lammps import EXACT, UNITS, Run, glass_of, run_lmp, script_of, write_student
from support.systems import System
from test_lammps_errors import fails

from mlff_distiller.constants import FRAME_UNCERTAINTY_MARGIN
from mlff_distiller.data import Structure
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.export import export_student
from mlff_distiller.students.rigidity import LastLayerUncertainty
from mlff_distiller.students.uncertainty import uncertainties

pytestmark = needs_lammps

LARGEST = 0.2
FIX = "fix u all pair 1 painn uncertainty 1\ncompute top all reduce max f_u\n"
SHOW = '\nprint "TOP $(c_top:%.17g)"\nwrite_dump all custom found.dump id f_u modify sort id format float %.17g'


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, StudentForceField]:
    path = tmp_path_factory.mktemp("model") / "student.pt"
    student = write_student(path, num_interactions=2)
    width = student.painn.readout_dim
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64).tril()
    student.uncertainty = LastLayerUncertainty(width).double()
    student.uncertainty.set(weight, torch.full((width,), 0.1), 0.02, LARGEST, LARGEST)
    export_student(student, path)
    return path, student


@pytest.fixture(scope="module")
def glass() -> System:
    return glass_of(24, [9.0, 8.4, 9.9])


def expected(student: StudentForceField, system: System) -> np.ndarray:
    structure = Structure(system.numbers, system.positions, system.cell, system.pbc)
    return uncertainties(student, [structure])[0]


def measured(folder: Path, run: Run, ranks: int = 1) -> tuple[np.ndarray, float, str]:
    """Of each atom and the largest, in force units of the run, and what ``lmp`` printed."""
    run = replace(run, steps=run.steps + SHOW)
    done = run_lmp(folder, script_of(run, folder), ranks)
    assert done.returncode == 0, done.output[-2000:]
    top = float(done.output.split("\nTOP ")[1].split()[0])
    return np.loadtxt(folder / "found.dump", skiprows=9, ndmin=2)[:, 1], top, done.output


RUN = {
    "after": FIX,
    "steps": "thermo_style custom step pe etotal vol c_pr[*] c_sumea c_top\nrun 0 post no",
}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("newton", ["on", "off"])
def test_fix_pair_dump_and_compute_reduce(model, glass, tmp_path, ranks, newton):
    found, top, _ = measured(tmp_path, Run("u", glass, model[0], newton=newton, **RUN), ranks)
    want = expected(model[1], glass)
    np.testing.assert_allclose(found, want, rtol=1e-8)
    assert top == pytest.approx(want.max(), rel=1e-8)


@pytest.mark.parametrize("units", ["real", "si", "electron"])
def test_are_in_force_units_of_the_run(model, glass, tmp_path, units):
    found, _, _ = measured(tmp_path, Run("u", glass, model[0], units=units, **RUN))
    length, energy = UNITS[units]
    np.testing.assert_allclose(found * energy / length, expected(model[1], glass), rtol=1e-6)


@pytest.mark.parametrize("style", ["hybrid/overlay", "hybrid"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_under_hybrid_and_zero_for_types_that_are_left_out(model, glass, tmp_path, style, ranks):
    silicon = glass.numbers == 14
    pair = (
        f"pair_style {style} painn {{style}} zbl 0.1 0.2\npair_coeff * * painn {{model}} Si NULL\n"
        "pair_coeff 1 2 zbl 14 8\npair_coeff 2 2 zbl 8 8\n"
    )
    if "overlay" in style:
        pair += "pair_coeff 1 1 zbl 14 14"
    found, _, _ = measured(tmp_path, Run("u", glass, model[0], pair=pair, **RUN), ranks)
    part = replace(glass, numbers=glass.numbers[silicon], positions=glass.positions[silicon])
    np.testing.assert_allclose(found[silicon], expected(model[1], part), rtol=1e-8)
    assert not found[~silicon].any()


@pytest.mark.parametrize("ranks", [1, 2])
def test_more_ranks_than_atoms(model, tmp_path, ranks):
    lone = System(np.array([8]), np.array([[1.0, 1, 1]]), np.diag([20.0] * 3))
    found, _, _ = measured(tmp_path, Run("u", lone, model[0], **RUN), ranks)
    np.testing.assert_allclose(found, expected(model[1], lone), rtol=1e-8)


def test_every_n_steps_of_dynamics(model, glass, tmp_path):
    steps = (
        "fix nve all nve\ntimestep 0.0002\nthermo_style custom step pe etotal vol c_pr[*] c_sumea c_top\n"
        "thermo 3\nrun 6 post no"
    )
    after = FIX.replace("pair 1", "pair 3")
    both = [
        measured(tmp_path, Run("u", glass, model[0], after=after, steps=steps), ranks)[0]
        for ranks in (1, 2)
    ]
    np.testing.assert_allclose(*both, rtol=1e-6)
    assert np.abs(both[0] / expected(model[1], glass) - 1).max() > 1e-6


def test_fix_halt(model, glass, tmp_path):
    want = expected(model[1], glass).max()
    after = FIX + f"variable top equal c_top\nfix stop all halt 1 v_top > {0.9 * want} error hard"
    run = Run("u", glass, model[0], after=after, steps="run 5 post no")
    done = run_lmp(tmp_path, script_of(run, tmp_path))
    assert done.returncode != 0
    assert "Fix halt condition for fix-id stop met" in done.output


def test_fix_pair_without_a_computation_and_without_data(model, glass, tmp_path):
    silent = Run("u", glass, model[0], after="fix u all pair 1 painn uncertainty 0")
    fails(silent, tmp_path, "Fix pair cannot extract property uncertainty", ranks=1)
    path = tmp_path / "without.pt"
    write_student(path, num_interactions=1)
    fails(Run("u", glass, path, **RUN), tmp_path, "without.pt", "no data for uncertainties")
    style = f"{EXACT} uncertainty warn auto"
    fails(Run("u", glass, path, style=style), tmp_path, "without.pt", "no data for uncertainties")


def test_keyword_that_makes_no_sense(model, glass, tmp_path):
    for style, words in (
        ("uncertainty", ["lacks its value"]),
        ("uncertainty warn", ["'uncertainty warn' lacks its limit"]),
        ("uncertainty ignore 1", ["uncertainty must be warn or stop, got 'ignore'"]),
        ("uncertainty stop high", ["must be a force > 0 or auto, got 'high'"]),
        ("uncertainty stop -1", ["must be a force > 0 or auto, got '-1'"]),
        ("uncertainty stop nan", ["must be a force > 0 or auto, got 'nan'"]),
        ("uncertainty warn 1 extrapolation", ["'extrapolation' lacks its value"]),
    ):
        fails(Run("u", glass, model[0], style=style), tmp_path, *words, ranks=1)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("pair", ["", "hybrid/overlay "])
def test_warns_once_or_stops_with_the_atom_of_all_ranks(model, glass, tmp_path, ranks, pair):
    want = expected(model[1], glass)
    limit = 0.5 * want.max()
    who = f"force on atom {int(want.argmax()) + 1} is {want.max():.3g} eV/Angstrom at step 0"
    lines = pair and (
        f"pair_style {pair}painn {{style}} zbl 0.1 0.2\npair_coeff * * painn {{model}} Si O\n"
        "pair_coeff * * zbl 14 14"
    )
    more = {"pair": lines} if lines else {}
    style = f"{EXACT} uncertainty warn {limit}"
    warn = Run("u", glass, model[0], style=style, steps="run 3 post no", **more)
    done = run_lmp(tmp_path, script_of(warn, tmp_path), ranks)
    assert done.returncode == 0, done.output[-2000:]
    assert done.output.count("the uncertainty of the force") == 1
    assert who in done.output
    assert f"warns at uncertainties above {limit:.3g} eV/Angstrom" in done.output
    again = replace(warn, steps="run 1 post no\nrun 1 post no")
    done = run_lmp(tmp_path, script_of(again, tmp_path), ranks)
    assert done.output.count("the uncertainty of the force") == 2
    stop = replace(warn, style=style.replace("warn", "stop"))
    fails(stop, tmp_path, who, f"above the limit of {limit:.3g}", ranks=ranks)
    high = replace(stop, style=f"{EXACT} uncertainty stop {1.1 * want.max()}")
    assert run_lmp(tmp_path, script_of(high, tmp_path), ranks).returncode == 0


def test_auto_is_a_multiple_of_the_largest_held_out(model, glass, tmp_path):
    run = Run("u", glass, model[0], style=f"{EXACT} uncertainty warn auto", units="real")
    done = run_lmp(tmp_path, script_of(run, tmp_path))
    assert f"above {3 * LARGEST / UNITS['real'][1]:.3g} kcal/mol/Angstrom" in done.output


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_atoms_that_are_all_uncertain_are_told_together(model, glass, tmp_path, ranks):
    """Where no single one is above its limit; of all ranks, and not of a limit that was given."""
    path = tmp_path / "even.pt"
    student, kept = model[1], model[1].uncertainty.state_dict()
    want = expected(student, glass)
    together = float(np.sqrt(np.square(want).mean()))
    limit = FRAME_UNCERTAINTY_MARGIN * 0.4 * together
    try:
        student.uncertainty.largest.fill_(float(want.max()))
        student.uncertainty.largest_frame.fill_(0.4 * together)
        export_student(student, path)
    finally:
        student.uncertainty.load_state_dict(kept)
    for units in ("metal", "real"):
        unit, words = UNITS[units][1], "kcal/mol/Angstrom" if units == "real" else "eV/Angstrom"
        line = (
            f"the uncertainty of the forces is {together / unit:.3g} {words} (root mean square of all "
            f"atoms) at step 0, above the limit of {limit / unit:.3g}"
        )
        warn = Run("u", glass, path, style=f"{EXACT} uncertainty warn auto", units=units,
                   steps="run 2 post no")  # fmt: skip
        done = run_lmp(tmp_path, script_of(warn, tmp_path), ranks)
        assert done.returncode == 0, done.output[-2000:]
        assert done.output.count(line) == 1, done.output[-2000:]
        assert f"of all atoms together above {limit / unit:.3g}" in done.output
        stop = replace(warn, style=f"{EXACT} uncertainty stop auto")
        fails(stop, tmp_path, line, ranks=ranks)
    given = replace(warn, style=f"{EXACT} uncertainty stop {1e3}")
    assert run_lmp(tmp_path, script_of(given, tmp_path), ranks).returncode == 0


def test_replaces_the_check_of_distances_unless_that_is_named(model, glass, tmp_path):
    path = tmp_path / "guarded.pt"
    export_student(model[1], path, {"min_distance": 2.5})
    message = "closer than any pair in training (2.5)"
    for style, times in (
        ("", 1),
        ("uncertainty warn 1e9", 0),
        ("uncertainty warn 1e9 extrapolation warn", 1),
        ("extrapolation warn uncertainty warn 1e-9", 1),
    ):
        run = Run("u", glass, path, style=f"{EXACT} {style}", steps="run 2 post no")
        done = run_lmp(tmp_path, script_of(run, tmp_path))
        assert done.output.count(message) == times, style
        assert done.output.count("the uncertainty of the force") == ("1e-9" in style)
