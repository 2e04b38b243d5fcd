"""What LAMMPS reports besides forces: per-atom energies and virials, hybrid styles, units, files.

Test names carry the numbers of the cases in lammps_plugin/README.md.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.backends import needs_lammps
from support.lammps import (
    EXACT,
    UNITS,
    Run,
    assert_same,
    evaluate,
    glass_of,
    nine,
    reference,
    run_lmp,
    script_of,
    six,
    write_student,
)

from mlff_distiller.ops.reference import neighbor_list_reference

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
    return path, write_student(path)


@pytest.fixture(scope="module")
def glass():
    return glass_of(30, [[9.3, 0, 0], [2.1, 8.4, 0], [-1.3, 1.7, 9.9]])


@pytest.fixture(scope="module")
def results(model, glass, tmp_path_factory):
    path = model[0]
    wide = tmp_path_factory.mktemp("wide") / "wide.pt"
    student = write_student(wide, hidden_dim=128, num_interactions=2, cutoff=3.2)
    charges = np.where(np.arange(30) % 2 == 0, 0.4, -0.4)
    charged = {"atom_style": "charge", "charges": tuple(charges)}
    box = replace(glass_of(30, [9.0, 9.2, 9.4], seed=2))
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
    write_student(path, num_interactions=2, zbl=True, seed=3)
    system = glass_of(24, [9.0, 9.0, 9.0], distance=1.9, seed=4)
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


def heat_virials(student, system, reach: int) -> np.ndarray:
    """W_j = sum_i (r_i - r_j) (outer) dE_i/dr_j from a cluster of explicit images, (n, 9) in eV.

    The definition of Langer et al., arXiv:2303.14434: i in the cell, j any image.
    """
    cells = np.array(
        [[a, b, c] for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)
         for c in range(-reach, reach + 1)]
    )  # fmt: skip
    cells = cells[np.argsort(np.abs(cells).sum(axis=1), kind="stable")]  # the cell itself first
    n_atoms, n_images = len(system.numbers), len(cells)
    positions = torch.as_tensor(
        (system.positions[None] + (cells @ system.cell)[:, None]).reshape(-1, 3)
    ).requires_grad_(True)
    edge_index, _ = neighbor_list_reference(
        positions.detach(), torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool),
        student.cutoff,
    )  # fmt: skip
    numbers = torch.as_tensor(np.tile(system.numbers, n_images))
    vectors = positions[edge_index[0]] - positions[edge_index[1]]
    inside = student.atomic_energies(numbers, edge_index, vectors)[:n_atoms]
    (plain,) = torch.autograd.grad(inside.sum(), positions, retain_graph=True)
    virials = np.zeros((n_atoms, 3, 3))
    for a in range(3):
        moment = (inside * positions.detach()[:n_atoms, a]).sum()
        (gradient,) = torch.autograd.grad(moment, positions, retain_graph=True)
        rows = gradient - positions.detach()[:, a : a + 1] * plain
        virials[:, a] = rows.reshape(n_images, n_atoms, 3).sum(dim=0).numpy()
    return np.array([nine(v) for v in virials])


def test_case_25_centroid_virials_are_the_exact_heat_flux(tmp_path):
    path = tmp_path / "student.pt"
    student = write_student(path, num_interactions=3, cutoff=3.0, zbl=True).to(torch.float64)
    tilted = glass_of(16, [[7.0, 0, 0], [2.1, 6.4, 0], [-1.3, 1.7, 6.9]], distance=1.3)
    small = glass_of(3, [3.1, 2.9, 3.3], distance=1.2, seed=3)
    want = {"tilted": heat_virials(student, tilted, 2), "small": heat_virials(student, small, 4)}
    runs = [
        Run("tilted", tilted, path),
        Run("small", small, path),
        Run("off", tilted, path, newton="off"),
        Run("real", tilted, path, units="real"),
        Run("single", tilted, path, style="precision single"),
    ]
    for ranks in (1, 2, 4):
        values = evaluate(runs, tmp_path, ranks)
        for name, tolerance in {
            "tilted": 1e-8, "small": 1e-8, "off": 1e-8, "real": 1e-7, "single": 1e-4,
        }.items():  # fmt: skip
            got = values[name].centroid_virials
            expected = want["small" if name == "small" else "tilted"]
            np.testing.assert_allclose(got, expected, atol=tolerance, rtol=0, err_msg=name)
            assert np.abs(got[:, :6] - values[name].atom_virials).max() > 1e-2  # another gauge


def test_heat_flux_command(model, glass, tmp_path):
    # compute heat/flux from LAMMPS against the definition, with velocities
    student = model[1].to(torch.float64)
    flux = (
        "velocity all create 300.0 4928 loop geom\n"
        "compute ke all ke/atom\ncompute flux all heat/flux ke ea ca\n"
        "thermo_style custom step pe etotal vol c_pr[*] c_sumea c_sumsa[*] c_sumca[*] c_flux[*]\n"
        "run 0 post no\nwrite_dump all custom v.dump id vx vy vz c_ke modify sort id format float "
        "%.17g\n"
        'print "FLUX $(c_flux[1]:%.17g) $(c_flux[2]:%.17g) $(c_flux[3]:%.17g)"'
    )
    run = Run("flux", glass, model[0], steps=flux)
    done = run_lmp(tmp_path, script_of(run, tmp_path), 2)
    assert done.returncode == 0, done.output[-2000:]
    got = [float(v) for v in re.findall(r"^FLUX (\S+) (\S+) (\S+)$", done.output, re.M)[-1]]
    table = np.loadtxt(tmp_path / "v.dump", skiprows=9)
    want = reference(model[1], glass)
    virials = heat_virials(student, glass, 2).reshape(-1, 9)
    total = np.zeros(3)
    for i, (_, *row) in enumerate(table):
        velocity, kinetic = np.array(row[:3]), row[3]
        w = virials[i]
        tensor = np.array([[w[0], w[3], w[4]], [w[6], w[1], w[5]], [w[7], w[8], w[2]]])
        total += (want.energies[i] + kinetic) * velocity + tensor @ velocity
    np.testing.assert_allclose(got, total, rtol=1e-6, atol=1e-6)
