"""What LAMMPS reports besides forces: per-atom energies and virials, hybrid styles, units, files.

Test names carry the numbers of the cases in lammps_plugin/README.md.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from lammps_runner import (
    EXACT,
    UNITS,
    Run,
    assert_same,
    evaluate,
    make_student,
    needs_lammps,
    nine,
    random_system,
    reference,
    run_lmp,
    script_of,
    six,
)

pytestmark = needs_lammps

PAINN = "pair_coeff * * painn {model} {names}\n"
ZBL = "pair_coeff 1 1 zbl 14 14\npair_coeff 1 2 zbl 14 8\npair_coeff 2 2 zbl 8 8\n"
ZBL_ALONE = "pair_style zbl 1.5 3.0\n" + ZBL.replace("zbl ", "")
KSPACE = "kspace_style ewald 1e-6\n"
OVERLAYS = {
    "zblsecond": "pair_style hybrid/overlay painn {style} zbl 1.5 3.0\n" + PAINN + ZBL,
    "zblfirst": "pair_style hybrid/overlay zbl 1.5 3.0 painn {style}\n" + ZBL + PAINN,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    return path, make_student(path)


@pytest.fixture(scope="module")
def glass():
    return random_system(30, [[9.3, 0, 0], [2.1, 8.4, 0], [-1.3, 1.7, 9.9]])


@pytest.fixture(scope="module")
def results(model, glass, tmp_path_factory):
    path = model[0]
    wide = tmp_path_factory.mktemp("wide") / "wide.pt"
    student = make_student(wide, hidden_dim=128, num_interactions=2, cutoff=3.2)
    charges = np.where(np.arange(30) % 2 == 0, 0.4, -0.4)
    charged = {"atom_style": "charge", "charges": tuple(charges)}
    box = replace(random_system(30, [9.0, 9.2, 9.4], seed=2))
    coulomb = "pair_coeff * * coul/long\n"
    runs = [
        Run("plain", glass, path),
        Run("off", glass, path, newton="off"),
        *(Run(name, glass, path, pair=pair) for name, pair in OVERLAYS.items()),
        Run("zbloff", glass, path, pair=OVERLAYS["zblfirst"], newton="off"),
        Run("zbl", glass, path, pair=ZBL_ALONE),
        Run("box", box, path, **charged),
        Run("coul", box, path, pair="pair_style coul/long 4.0\npair_coeff * *\n" + KSPACE,
            **charged),
        Run("overlaycoul", box, path, **charged,
            pair="pair_style hybrid/overlay painn {style} coul/long 4.0\n"
            + PAINN + coulomb + KSPACE),
        Run("wide", glass, wide,
            pair="pair_style hybrid/overlay zbl 0.1 0.2 painn {style}\n" + ZBL + PAINN),
        *(Run(units, glass, path, units=units) for units in UNITS),
        Run("electronoff", glass, path, units="electron", newton="off"),
    ]  # fmt: skip
    values = {
        ranks: evaluate(runs, tmp_path_factory.mktemp(f"np{ranks}"), ranks) for ranks in (1, 4)
    }
    return values, reference(model[1], glass), reference(student, glass)


@pytest.mark.parametrize("ranks", [1, 4])
def test_case_23_sum_of_atomic_energies(results, ranks):
    for name in ("plain", "off", "zblfirst", "zblsecond", "zbloff"):
        values = results[0][ranks][name]
        assert abs(values.energies.sum() - values.energy) < 1e-9
        assert abs(values.extra["sumea"] - values.energy) < 1e-9
    np.testing.assert_allclose(results[0][ranks]["plain"].energies, results[1].energies, atol=1e-9)


@pytest.mark.parametrize("ranks", [1, 4])
def test_case_24_sum_of_atomic_virials(results, ranks):
    for name in ("plain", "off", "zblfirst", "zblsecond", "zbloff"):
        values = results[0][ranks][name]
        np.testing.assert_allclose(
            values.atom_virials.sum(axis=0), six(values.virial), atol=1e-8, rtol=0
        )
    np.testing.assert_allclose(
        results[0][1]["plain"].atom_virials, results[0][4]["plain"].atom_virials, atol=1e-8
    )


@pytest.mark.parametrize("ranks", [1, 4])
def test_case_25_sum_of_centroid_virials(results, ranks):
    for name in ("plain", "off", "zblfirst", "zblsecond", "zbloff"):
        values = results[0][ranks][name]
        np.testing.assert_allclose(
            values.centroid_virials.sum(axis=0), nine(values.virial), atol=1e-8, rtol=0
        )
    for name in ("plain", "off", "zbloff"):
        np.testing.assert_allclose(
            results[0][1][name].centroid_virials, results[0][4][name].centroid_virials, atol=1e-8
        )


@pytest.mark.parametrize("ranks", [1, 4])
def test_case_26_overlay_with_zbl_in_both_orders(results, ranks):
    values = results[0][ranks]
    for name in ("zblfirst", "zblsecond", "zbloff"):
        assert abs(values[name].energy - values["plain"].energy - values["zbl"].energy) < 1e-8
        for key in ("forces", "virial", "energies", "atom_virials"):
            total = getattr(values["plain"], key) + getattr(values["zbl"], key)
            np.testing.assert_allclose(getattr(values[name], key), total, atol=1e-8, rtol=0)
    assert np.abs(values["zbl"].forces).max() > 0.1


@pytest.mark.parametrize("ranks", [1, 4])
def test_case_27_overlay_with_coul_long(results, ranks):
    values = results[0][ranks]
    total = values["box"].energy + values["coul"].energy
    assert abs(values["overlaycoul"].energy - total) < 1e-8
    forces = values["box"].forces + values["coul"].forces
    np.testing.assert_allclose(values["overlaycoul"].forces, forces, atol=1e-8, rtol=0)
    assert np.abs(values["coul"].forces).max() > 0.1


@pytest.mark.parametrize("ranks", [1, 4])
def test_case_28_overlay_with_wide_features(results, ranks):
    assert_same(results[0][ranks]["wide"], results[2])


@pytest.mark.parametrize("ranks", [1, 4])
def test_case_30_units(results, ranks):
    for units in (*UNITS, "electronoff"):
        got = results[0][ranks][units]
        assert_same(got, results[1], virial=None)
        # LAMMPS knows its pressure factors to seven digits, but the same ones multiply and divide
        np.testing.assert_allclose(got.virial, results[1].virial, atol=1e-7, rtol=0)
        np.testing.assert_allclose(got.energies, results[1].energies, atol=1e-8)
        np.testing.assert_allclose(got.atom_virials, results[0][1]["plain"].atom_virials, atol=1e-7)


def energies_printed(output: str, label: str) -> list[float]:
    return [float(v) for v in re.findall(rf"^{label} (\S+)$", output, re.MULTILINE)]


def test_case_29_minimize_rerun_restart(tmp_path):
    path = tmp_path / "soft.pt"
    make_student(path, num_interactions=2, zbl=True, seed=3)
    system = random_system(24, [9.0, 9.0, 9.0], min_distance=1.9, seed=4)
    steps = """
minimize 0.0 1e-3 6 50
print "MINIMUM $(pe:%.17g)"
reset_timestep 0
timestep 0.0005
dump frames all custom 5 frames.dump id type x y z
dump_modify frames format float %.17g sort id
fix move all nve
velocity all create 300.0 7 loop geom
run 20 post no
print "LAST $(pe:%.17g)"
undump frames
unfix move
write_restart state.restart
rerun frames.dump post no dump x y z
print "AGAIN $(pe:%.17g)"
clear
read_restart state.restart
pair_style painn {style}
pair_coeff * * {model} Si O
run 0 post no
print "RESTARTED $(pe:%.17g)"
""".replace("{style}", EXACT).replace("{model}", str(path))
    run = Run("r", system, path, before="atom_modify map yes", centroid=False)
    energies = {}
    for ranks in (1, 4):
        script = script_of(run, tmp_path)
        head, _ = script.split("run 0 post no", 1)
        done = run_lmp(tmp_path, head + steps, ranks)
        assert done.returncode == 0, done.output[-3000:]
        energies[ranks] = {
            label: energies_printed(done.output, label)[-1]
            for label in ("MINIMUM", "LAST", "AGAIN", "RESTARTED")
        }
        values = energies[ranks]
        assert abs(values["AGAIN"] - values["LAST"]) < 1e-8
        assert abs(values["RESTARTED"] - values["LAST"]) < 1e-8
    # what follows starts from velocities that hang on the last bits of the positions
    assert abs(energies[1]["MINIMUM"] - energies[4]["MINIMUM"]) < 1e-6
