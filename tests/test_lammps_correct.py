"""pair_style painn computes what the pure-torch student does, on any number of ranks.

Test names carry the numbers of the cases in lammps_plugin/README.md. Energy evaluations are
batched: one ``lmp`` process (per rank) evaluates all systems of a module fixture.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.backends import needs_lammps
from support.lammps import (
    EXACT,
    Run,
    assert_same,
    evaluate,
    glass_of,
    reference,
    run_lmp,
    script_of,
    write_student,
)
from support.systems import System

pytestmark = needs_lammps

RANKS = (1, 2, 4)
TRICLINIC = np.array([[9.3, 0.0, 0.0], [2.1, 8.4, 0.0], [-1.3, 1.7, 9.9]])
TILTED = np.array([[6.1, 0.0, 0.0], [5.6, 6.4, 0.0], [-5.5, 5.9, 7.0]])
GRID = "processors {0} 1 1"


def systems() -> dict[str, System]:
    """Every geometry that is compared with the reference."""
    glass = glass_of(36, TRICLINIC)
    corner = glass_of(9, [6.0, 6.0, 6.0], pbc=(False, False, False), seed=5)
    far = System(
        np.array([14, 8, 14]),
        np.array([[1.0, 9, 9], [2.6, 9, 9], [20.0, 9, 9]]),
        np.diag([24.0, 18.0, 18.0]),
    )
    return {
        "glass": glass,
        "cubic": glass_of(24, [8.2, 8.6, 9.0], seed=2),
        "tiny": glass_of(3, [3.1, 2.9, 3.3], distance=1.2, seed=3),
        "tinytilt": glass_of(
            3, [[3.1, 0, 0], [1.4, 2.9, 0], [-1.2, 1.3, 3.3]], distance=1.2, seed=4
        ),
        "one": System(np.array([14]), np.array([[0.3, 0.4, 0.5]]), np.diag([1.9, 2.2, 2.4])),
        "tilted": glass_of(12, TILTED, seed=6),
        "molecule": replace(corner, cell=np.diag([14.0, 15.0, 16.0])),
        "slab": glass_of(20, [7.0, 7.5, 12.0], pbc=(True, True, False), seed=7),
        "isolated": System(np.array([8]), np.array([[10.0, 10, 10]]), np.diag([20.0] * 3)),
        "pieces": far,
        "half": glass_of(14, [16.0, 7.0, 7.0], seed=8, region=(0.02, 0.4)),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    student = write_student(path)
    return path, student


@pytest.fixture(scope="module")
def expected(model):
    return {name: reference(model[1], system) for name, system in systems().items()}


def variations(path: Path, ranks: int) -> list[Run]:
    """What one ``lmp`` call evaluates at a given number of ranks."""
    known = systems()
    glass = Run("glass", known["glass"], path)
    shuffled = tuple(int(i) for i in np.random.default_rng(0).permutation(36) * 7 + 3)
    runs = [Run(name, system, path) for name, system in known.items()]
    runs += [
        replace(glass, name="thick", skin=2.0),
        replace(glass, name="off", newton="off"),
        replace(glass, name="offon", newton="off on"),
        replace(glass, name="ids", ids=shuffled),
        replace(glass, name="mapped", before="atom_modify map yes"),
        replace(glass, name="unsorted", before="atom_modify sort 0 0.0"),
        replace(glass, name="types", types=(8, 14, 8)),
        replace(glass, name="tiled", before="comm_style tiled", after="balance 1.0 rcb"),
        Run("tinyoff", known["tiny"], path, newton="off"),
        Run(
            "moltiled", known["molecule"], path, before="comm_style tiled", after="balance 1.0 rcb"
        ),
    ]
    grids = {4: ("4 1 1", "2 2 1", "1 1 4"), 2: ("2 1 1", "1 2 1", "1 1 2"), 1: ()}[ranks]
    for k, grid in enumerate(grids):
        for name in ("glass", "half", "tiny", "pieces", "molecule", "tilted"):
            runs.append(Run(f"{name}grid{k}", known[name], path, before=f"processors {grid}"))
    return runs


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    """ranks -> run -> values; names that end in ``/ghosts`` ask for centroid virials.

    These have a row for each ghost and use LAMMPS' own communication; the others have rows for
    atoms of other ranks only and messages of the plugin.
    """
    values = {}
    for ranks in RANKS:
        folder = tmp_path_factory.mktemp(f"np{ranks}")
        runs = [replace(run, centroid=False) for run in variations(model[0], ranks)]
        values[ranks] = evaluate(runs, folder, ranks)
        runs = [run for run in variations(model[0], ranks) if "grid" not in run.name]
        for name, value in evaluate(runs, folder, ranks).items():
            values[ranks][f"{name}/ghosts"] = value
    return values


def close(results, expected, names, ranks=RANKS):
    """Each run of ``names`` (run name -> system) equals the reference, in both ways."""
    for n in ranks:
        for name, system in names.items():
            for run in (name, f"{name}/ghosts"):
                if run not in results[n]:
                    assert "grid" in name
                    continue
                try:
                    assert_same(results[n][run], expected[system])
                    np.testing.assert_allclose(
                        results[n][run].energies, expected[system].energies, atol=1e-8, rtol=0
                    )
                except AssertionError as error:
                    raise AssertionError(f"{run} at np {n}: {error}") from error


def test_forces_are_worth_comparing(expected):
    assert 0.3 < np.abs(expected["glass"].forces).max() < 100.0


def test_case_01_energy_forces_virial_equal_python(results, expected):
    close(results, expected, {"glass": "glass", "cubic": "cubic"}, ranks=(1,))


def test_case_01_single_precision_and_tables(model, expected, tmp_path):
    glass, want = (
        Run("double", systems()["glass"], model[0], style="precision double tabulate on"),
        expected,
    )
    runs = [
        glass,
        replace(glass, name="single", style="precision single"),
        replace(glass, name="off", style="precision single", newton="off"),
        replace(glass, name="exact", style="precision single tabulate off"),
    ]
    want = expected["glass"]
    for ranks in (1, 4):
        for name, got in evaluate(runs, tmp_path, ranks).items():
            assert abs(got.energy - want.energy) / 36 < 1e-6
            assert np.abs(got.forces - want.forces).max() < (1e-6 if name == "double" else 1e-4)


def test_case_05_ranks_agree(results, expected):
    close(results, expected, {name: name for name in systems()})


def test_case_06_processor_grids(results, expected):
    for n in (2, 4):
        names = {f"{name}grid{k}": name for name in ("glass", "half", "tilted") for k in range(3)}
        close(results, expected, names, ranks=(n,))


def test_case_07_box_shorter_than_the_cutoff(results, expected):
    close(results, expected, {"tiny": "tiny", "tinytilt": "tinytilt", "one": "one"}, ranks=(1,))


def test_case_08_tiny_box_on_four_ranks(results, expected):
    names = {"tiny": "tiny", "tinytilt": "tinytilt", "one": "one", "tinyoff": "tiny"}
    close(results, expected, {**names, **{f"tinygrid{k}": "tiny" for k in range(3)}}, ranks=(4,))


def test_case_09_large_tilt(results, expected):
    close(results, expected, {"tilted": "tilted"})


def test_case_10_open_boundaries(results, expected):
    close(results, expected, {"molecule": "molecule", "slab": "slab"})


def test_case_11_tiled_communication(results, expected):
    close(results, expected, {"tiled": "glass", "moltiled": "molecule"})


def test_case_13_all_atoms_on_one_rank(results, expected):
    # "molecule" fills one corner of its box
    close(results, expected, {f"moleculegrid{k}": "molecule" for k in range(3)}, ranks=(2, 4))


def test_case_14_isolated_atom(results, expected, model):
    # without neighbours a PaiNN atom still has the readout of its embedding
    for n in RANKS:
        got = results[n]["isolated"]
        assert abs(got.energy - expected["isolated"].energy) < 1e-10
        assert np.all(got.forces == 0.0)
        assert np.all(got.virial == 0.0)
    assert abs(expected["isolated"].energy - float(model[1].reference_energies[1])) < 5.0


def test_case_16_edges_on_one_rank_only(results, expected):
    close(results, expected, {f"piecesgrid{k}": "pieces" for k in range(3)}, ranks=(2, 4))


def test_case_17_ids_with_gaps(results, expected):
    close(results, expected, {"ids": "glass"})


def test_case_18_sort_and_map(results, expected):
    close(results, expected, {"glass": "glass", "mapped": "glass", "unsorted": "glass"})


def test_case_19_newton_off(results, expected):
    close(results, expected, {"off": "glass", "offon": "glass", "tinyoff": "tiny"})
    for n in RANKS:
        for key in ("energies", "atom_virials", "centroid_virials"):
            for way in ("", "/ghosts")[key == "centroid_virials" :]:
                np.testing.assert_allclose(
                    getattr(results[n][f"off{way}"], key),
                    getattr(results[n][f"glass{way}"], key),
                    atol=1e-8,
                )


def test_case_20_thick_skin(results, expected):
    close(results, expected, {"thick": "glass"})


def test_two_types_of_one_element(results, expected):
    close(results, expected, {"types": "glass"})


# --- derivatives by finite differences ----------------------------------------------------------
STEP = 1e-4


def test_case_02_finite_difference_forces(model, tmp_path):
    system = systems()["tinytilt"]
    glass = systems()["glass"]
    for ranks in (1, 4):
        runs = []
        for base, name, atoms in ((glass, "glass", (0, 17)), (system, "tiny", (1,))):
            runs.append(Run(f"{name}base", base, model[0], centroid=False))
            for i in atoms:
                for axis in range(3):
                    for sign in (1, -1):
                        moved = base.positions.copy()
                        moved[i, axis] += sign * STEP
                        runs.append(
                            Run(
                                f"{name}{i}{axis}{sign}",
                                replace(base, positions=moved),
                                model[0],
                                centroid=False,
                            )
                        )
        values = evaluate(runs, tmp_path, ranks)
        for name, atoms in (("glass", (0, 17)), ("tiny", (1,))):
            for i in atoms:
                for axis in range(3):
                    up, down = (values[f"{name}{i}{axis}{s}"].energy for s in (1, -1))
                    force = -(up - down) / (2 * STEP)
                    assert abs(force - values[f"{name}base"].forces[i, axis]) < 1e-5


def test_case_03_and_04_pressure_and_virial_by_strain(model, tmp_path):
    # Strains that keep the cell lower triangular: xx yy zz, and yx zx zy for xy xz yz.
    glass = systems()["glass"]
    places = ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1))
    runs = [Run("base", glass, model[0], centroid=False)]
    volumes = []
    for k, (a, b) in enumerate(places):
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] = sign * STEP
            runs.append(Run(f"s{k}{sign}", glass.strained(strain), model[0], centroid=False))
    for sign in (1, -1):
        scaled = glass.strained(sign * STEP * np.eye(3))
        volumes.append(np.linalg.det(scaled.cell))
        runs.append(Run(f"v{sign}", scaled, model[0], centroid=False))
    for ranks in (1, 4):
        values = evaluate(runs, tmp_path, ranks)
        virial = values["base"].virial
        for k, (a, b) in enumerate(places):
            slope = (values[f"s{k}1"].energy - values[f"s{k}-1"].energy) / (2 * STEP)
            assert abs(-slope - virial[a, b]) < 1e-4
        slope = (values["v1"].energy - values["v-1"].energy) / (volumes[0] - volumes[1])
        pressure = np.trace(virial) / 3.0 / np.linalg.det(glass.cell)
        assert abs(-slope - pressure) < 1e-6
        assert abs(pressure) > 1e-3  # so that a wrong sign would show


def test_case_15_dimer_at_the_cutoff(model, tmp_path):
    runs = []
    for k, offset in enumerate((-1e-6, 0.0, 1e-6, 0.5)):
        positions = np.array([[5.0, 5, 5], [5.0 + 4.0 + offset, 5, 5]])
        system = System(np.array([14, 8]), positions, np.diag([22.0] * 3))
        runs.append(Run(f"d{k}", system, model[0]))
    for ranks in (1, 2):
        values = evaluate(runs, tmp_path, ranks)
        for k in range(3):
            assert abs(values[f"d{k}"].energy - values["d3"].energy) < 1e-10
            assert np.abs(values[f"d{k}"].forces).max() < 1e-5
        assert np.all(values["d3"].forces == 0.0)


# --- dynamics -------------------------------------------------------------------------------------
def trajectory(name: str, system: System, path: Path, fix: str, steps: int, **options) -> Run:
    """A run that thermalises at 300 K, integrates, and dumps the last frame."""
    velocity = "velocity all create 300.0 4928 mom yes rot no dist gaussian loop geom"
    return Run(
        name,
        system,
        path,
        steps=f"{velocity}\n{fix}\nrun {steps} post no",
        centroid=False,
        **options,
    )


def crystal() -> System:
    """A jittered crystal: stable enough for dynamics with an untrained student plus ZBL."""
    cell = np.diag([8.4, 8.4, 8.4])
    grid = np.array([[x, y, z] for x in range(3) for y in range(3) for z in range(3)]) * 2.8
    jitter = np.random.default_rng(0).normal(0.0, 0.05, grid.shape)
    return System(np.tile([14, 8, 14], 9), grid + jitter + 0.3, cell)


@pytest.fixture(scope="module")
def soft_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("soft") / "soft.pt"
    write_student(path, num_interactions=2, zbl=True, seed=3)
    return path


def test_case_12_rank_becomes_empty_without_rebuild(model, tmp_path):
    # One half of the box is empty, and lists are never rebuilt: ranks stay without atoms.
    system = systems()["half"]
    rules = "neigh_modify every 1 delay 100000 check no\ntimestep 0.0002"
    values = [
        evaluate(
            [
                trajectory(
                    "half",
                    system,
                    model[0],
                    "fix 1 all nve",
                    10,
                    after=rules,
                    before=GRID.format(ranks),
                )
            ],
            tmp_path,
            ranks,
        )["half"]
        for ranks in (1, 4)
    ]
    np.testing.assert_allclose(values[0].positions, values[1].positions, atol=1e-8, rtol=0)
    assert_same(values[1], values[0])


def test_case_11_load_balancing_while_running(soft_model, tmp_path):
    rules = "fix lb all balance 5 1.0 rcb\nneigh_modify every 1 delay 0 check no\ntimestep 0.0005"
    values = [
        evaluate(
            [
                trajectory(
                    "b",
                    crystal(),
                    soft_model,
                    "fix 1 all nve",
                    20,
                    after=rules,
                    before="comm_style tiled",
                )
            ],
            tmp_path,
            ranks,
        )["b"]
        for ranks in (1, 4)
    ]
    assert_same(values[1], values[0], forces=1e-7)


def test_case_17_delete_atoms(model, tmp_path):
    glass = systems()["glass"]
    gone = (4, 11, 30)
    steps = (
        "run 0 post no\ngroup gone id 5 12 31\ndelete_atoms group gone compress no\nrun 0 post no"
    )
    keep = np.array([i for i in range(36) if i not in gone])
    want = reference(
        model[1], replace(glass, numbers=glass.numbers[keep], positions=glass.positions[keep])
    )
    for ranks in (1, 4):
        assert_same(evaluate([Run("d", glass, model[0], steps=steps)], tmp_path, ranks)["d"], want)


def test_case_21_nve_conserves_energy(soft_model, tmp_path):
    totals = {}
    for ranks in (1, 4):
        run = trajectory(
            "nve",
            crystal(),
            soft_model,
            "fix 1 all nve",
            240,
            after="timestep 0.0005\nneighbor 0.2 bin\nneigh_modify every 1 delay 0 check yes",
            skin=0.2,
        )
        script = script_of(run, tmp_path).replace("thermo 100000", "thermo 20")
        done = run_lmp(tmp_path, script, ranks)
        assert done.returncode == 0, done.output[-2000:]
        rows = [
            line.split() for line in done.output.splitlines() if re.match(r"^\s+\d+\s+-?\d", line)
        ]
        totals[ranks] = np.array([[float(r[0]), float(r[2])] for r in rows])
        energies = totals[ranks][:, 1]
        assert len(energies) > 10
        assert np.ptp(energies) / 27 < 2e-4
        slope = np.polyfit(totals[ranks][:, 0] * 0.0005, energies, 1)[0] / 27
        assert abs(slope) < 1e-3  # eV per atom and ps, untrained student at 1 g/cm^3
    np.testing.assert_allclose(totals[1][:5], totals[4][:5], rtol=1e-8)


def test_case_22_npt_agrees_across_ranks(soft_model, tmp_path):
    fix = "fix 1 all npt temp 300 300 0.05 tri 0 0 0.5"
    values = [
        evaluate(
            [
                trajectory(
                    "npt",
                    crystal(),
                    soft_model,
                    fix,
                    30,
                    after="timestep 0.0005\nchange_box all triclinic",
                )
            ],
            tmp_path,
            ranks,
        )["npt"]
        for ranks in (1, 4)
    ]
    assert_same(values[1], values[0], forces=1e-7, virial=1e-6)
    assert abs(values[0].extra["vol"] / 8.4**3 - 1.0) > 1e-7  # the box did move
    assert abs(values[0].extra["vol"] / values[1].extra["vol"] - 1.0) < 1e-10


# --- the exchange itself --------------------------------------------------------------------------
def test_adjoint_identity_across_ranks(model, tmp_path):
    # The reverse pass gathers, so no transposed exchange exists whose adjointness could be tested
    # by itself. What must hold instead: J, the Jacobian of per-atom energies, as it appears in
    # <J u, 1> (one-sided difference of the sum of energies of all ranks along u) and <u, J^T 1>
    # (forces of all ranks), for directions u that move atoms of every rank at once.
    glass = systems()["glass"]
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(3, 36, 3))
    runs = [Run("base", glass, model[0], centroid=False)]
    for k, u in enumerate(directions):
        for sign in (1, -1):
            moved = replace(glass, positions=glass.positions + sign * 1e-5 * u)
            runs.append(Run(f"u{k}{sign}", moved, model[0], centroid=False))
    for ranks in RANKS:
        values = evaluate(runs, tmp_path, ranks)
        for k, u in enumerate(directions):
            forward = (values[f"u{k}1"].energies - values[f"u{k}-1"].energies).sum() / 2e-5
            backward = -(values["base"].forces * u).sum()
            assert abs(forward - backward) < 1e-6 * np.abs(values["base"].forces * u).sum()
        assert np.abs(values["base"].forces.sum(axis=0)).max() < 1e-9


def test_threads_agree(model, tmp_path):
    glass = systems()["glass"]
    runs = [Run(f"t{n}", glass, model[0], style=f"{EXACT} threads {n}") for n in (1, 2, 3)]
    values = evaluate(runs, tmp_path, 2)
    for n in (2, 3):
        assert_same(values[f"t{n}"], values["t1"], energy=1e-14, forces=1e-12, virial=1e-11)


def test_float32_model_runs_in_single_by_default(tmp_path):
    path = tmp_path / "f32.pt"
    student = write_student(path, dtype=torch.float32, seed=2)
    system = systems()["glass"]
    values = evaluate(
        [Run("default", system, path, style=""), Run("double", system, path, style=EXACT)], tmp_path
    )
    want = reference(student, system)
    assert_same(values["double"], want)
    gap = np.abs(values["default"].forces - want.forces).max()
    assert 1e-9 < gap < 1e-4
