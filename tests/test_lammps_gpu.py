"""pair_style painn with ``device gpu``, in the real ``lmp``, its GPU emulated on the host.

The same systems and the same reference as tests/test_lammps_correct.py.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from support.backends import needs_lammps
from support.cuda_module import on_the_card, plugin
from support.lammps import Run, assert_same, evaluate, reference, run_lmp, script_of, write_student
from test_lammps_correct import crystal, systems, trajectory, variations

pytestmark = needs_lammps

STYLE = "device gpu precision double"
RANKS = (1, 2, 4)


@pytest.fixture(scope="module")
def prefix():
    return f"plugin unload pair painn\nplugin load {plugin()}\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    return path, write_student(path)


@pytest.mark.parametrize("ranks", RANKS)
def test_equals_autograd(model, prefix, tmp_path, ranks):
    """Cases 1, 5 to 11, 13, 14, 16 to 20 of lammps_plugin/README.md; tables are within 1e-8."""
    runs = [
        replace(run, style=STYLE, centroid=False)
        for run in variations(model[0], ranks)
        if "grid" not in run.name or "grid0" in run.name
    ]
    known = systems()
    expected = {name: reference(model[1], system) for name, system in known.items()}
    got = evaluate(runs, tmp_path, ranks, prefix=prefix)
    for run in runs:
        system = next(name for name, s in known.items() if s is run.system or same(s, run.system))
        assert_same(got[run.name], expected[system], forces=2e-8, virial=1e-6)
        sums = got[run.name].atom_virials.sum(axis=0)
        whole = expected[system].virial
        want = [whole[a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
        np.testing.assert_allclose(sums, want, atol=1e-6)


def same(a, b):
    return a.positions.shape == b.positions.shape and np.array_equal(a.positions, b.positions)


def test_single_precision(model, prefix, tmp_path):
    system = systems()["glass"]
    for ranks in (1, 2):
        run = Run("s", system, model[0], style="device gpu precision single", centroid=False)
        got = evaluate([run], tmp_path, ranks, prefix=prefix)["s"]
        want = reference(model[1], system)
        assert_same(got, want, energy=1e-6, forces=1e-4, virial=1e-3)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_mpi_that_takes_device_memory(model, prefix, tmp_path, precision, ranks):
    """As any MPI does under emulation; the same bits as through the host."""
    if on_the_card():
        pytest.skip("asks the emulation: an MPI that takes device memory")
    system = systems()["glass"]
    found = []
    for way in ("on", "off"):
        style = f"device gpu precision {precision} gpu_aware {way}"
        run = Run("a", system, model[0], style=style, centroid=False)
        found.append(evaluate([run], tmp_path, ranks, prefix=prefix)["a"])
    np.testing.assert_array_equal(found[0].forces, found[1].forces)
    assert found[0].energy == found[1].energy
    assert_same(found[0], reference(model[1], system), energy=1e-6, forces=1e-4, virial=1e-3)


@pytest.fixture(scope="module")
def soft_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("soft") / "soft.pt"
    write_student(path, num_interactions=2, zbl=True, seed=3)
    return path


def test_trajectories_agree_with_the_cpu(soft_model, prefix, tmp_path):
    """Dynamics with rebuilds, on one rank through a captured graph, and NPT with a tilting box."""
    for fix in ("fix 1 all nve", "fix 1 all npt temp 300 300 0.05 tri 0 0 0.5"):
        after = "timestep 0.0005\nneigh_modify every 1 delay 0 check yes"
        if "npt" in fix:
            after += "\nchange_box all triclinic"
        run = trajectory("t", crystal(), soft_model, fix, 25, after=after, skin=0.1)
        cpu = evaluate([replace(run, style="precision double")], tmp_path)["t"]
        for ranks in (1, 2, 3):
            gpu = evaluate([replace(run, style=STYLE)], tmp_path, ranks, prefix=prefix)["t"]
            assert_same(gpu, cpu, forces=1e-6, virial=1e-5)


@pytest.mark.parametrize(
    ("style", "after", "message"),
    [
        ("device gpu tabulate off", "", "tabulate off is for device cpu"),
        ("device gpu math full", "", "math must be float32 or half or tf32, got 'full'"),
        (
            "device gpu",
            "compute x all centroid/stress/atom NULL pair\ncompute y all reduce sum c_x[1]\n"
            "thermo_style custom step c_y",
            "centroid/stress/atom is not available with device gpu",
        ),
        ("device gpu", "neigh_modify exclude type 1 2", "exclude that hides some pairs"),
        ("device gpu", "displace_atoms all move 0 0 0\nset atom 2 x 0.3 y 0.3 z 0.3\n"
         "set atom 1 x 0.3 y 0.3 z 0.3", "no force is defined|are at one point"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ranks", [1, 2])
def test_errors_stop_all_ranks(model, prefix, tmp_path, style, after, message, ranks):
    run = Run("e", systems()["cubic"], model[0], style=style, after=after, centroid=False)
    script = script_of(run, tmp_path)
    if "thermo_style" in after:
        script = re.sub(r"thermo_style custom step pe.*", "", script)
    done = run_lmp(tmp_path, prefix + script, ranks)
    assert done.returncode != 0
    assert re.search(message, done.error), done.output[-1500:]


@pytest.mark.parametrize("ranks", [1, 2])
def test_excluded_atoms_and_types_that_change(model, prefix, tmp_path, ranks):
    """As on the CPU: excluded atoms are gone, and swapped types are seen without new lists."""
    glass = systems()["glass"]
    gone = np.isin(np.arange(36), (4, 11, 12, 30))
    part = replace(glass, numbers=glass.numbers[~gone], positions=glass.positions[~gone])
    lines = "group gone id 5 12 13 31\nneigh_modify exclude group gone all"
    run = Run("x", glass, model[0], style=STYLE, after=lines, centroid=False)
    got = evaluate([run], tmp_path, ranks, prefix=prefix)["x"]
    assert np.all(got.forces[gone] == 0.0)
    assert_same(replace(got, forces=got.forces[~gone]), reference(model[1], part), forces=2e-8)

    steps = (
        "fix 1 all atom/swap 1 10 29 1e6 ke no types 1 2\nrun 3 post no\n"
        "write_dump all custom types.txt id type modify sort id"
    )
    run = Run("s", glass, model[0], style=STYLE, steps=steps, centroid=False)
    got = evaluate([run], tmp_path, ranks, prefix=prefix)["s"]
    types = np.loadtxt(tmp_path / "types.txt", skiprows=9, dtype=int)[:, 1]
    swapped = replace(glass, numbers=np.where(types == 1, 14, 8))
    assert np.any(swapped.numbers != glass.numbers)
    assert_same(got, reference(model[1], swapped), forces=2e-8, virial=1e-6)


def test_short_pairs_are_reported(tmp_path, prefix):
    path = tmp_path / "m.pt"
    write_student(path, metadata={"min_distance": 2.0})
    for extrapolation, expected in (("warn", "WARNING"), ("stop", "ERROR"), ("ignore", "")):
        style = f"device gpu extrapolation {extrapolation}"
        run = Run("x", systems()["glass"], path, style=style, centroid=False)
        done = run_lmp(tmp_path, prefix + script_of(run, tmp_path))
        lines = [x for x in done.output.splitlines() if "closer than any pair in training" in x]
        assert bool(lines) == bool(expected), done.output[-1500:]
        assert all(line.startswith(expected) for line in lines[:1])


def test_banner_names_the_device(model, prefix, tmp_path):
    run = Run("b", systems()["glass"], model[0], style=STYLE, centroid=False)
    done = run_lmp(tmp_path, prefix + script_of(run, tmp_path), 2)
    assert "device gpu " in done.output
    assert re.search(r"products by (cuBLAS 1|own kernel, without cuBLAS)", done.output)
    assert "2 ranks of a node share 1 GPU" in done.output
    # The wheel's MPI takes no addresses of devices, and says so.
    assert "rows of other ranks through page-locked memory" in done.output
    if not on_the_card():
        run = replace(run, style=STYLE + " gpu_aware on")
        done = run_lmp(tmp_path, prefix + script_of(run, tmp_path), 2)
        assert "rows of other ranks by MPI between devices" in done.output


def test_every_atom_of_another_rank_travels_once(prefix, tmp_path):
    """... however many images of it a rank has: as on the CPU, but for atoms in no list there."""
    wide = tmp_path / "wide.pt"
    write_student(wide, hidden_dim=32)  # which neither engine pads
    bytes_per_atom = {}
    for device in ("cpu", "gpu"):
        style = f"device {device} precision double"
        run = Run("b", systems()["tiny"], wide, style=style, centroid=False)
        done = run_lmp(tmp_path, prefix + script_of(run, tmp_path), 2)
        (line,) = re.findall(r"exchanged 4 times a step: (\d+) bytes per atom", done.output)
        bytes_per_atom[device] = int(line)
    assert bytes_per_atom["gpu"] == bytes_per_atom["cpu"] > 0


def test_rounding_without_cublas_is_a_warning(model, prefix, tmp_path):
    """It would not be faster."""
    if on_the_card():
        pytest.skip("asks the emulation: a machine without cuBLAS")
    run = Run("m", systems()["cubic"], model[0], centroid=False)
    run = replace(run, style="device gpu math tf32 precision single")
    done = run_lmp(tmp_path, prefix + script_of(run, tmp_path))
    assert "math tf32 needs cuBLAS to be faster" in done.output
    assert "products in tf32 by own kernel" in done.output
    run = replace(run, style="device gpu math half precision single")
    done = run_lmp(tmp_path, prefix + script_of(run, tmp_path))
    assert "needs cuBLAS" not in done.output
    assert re.search("products in float32 by own kernel.*, filters in float16", done.output)


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ("device gpu math tf32 precision double", "this is double precision; use"),
        ("device gpu math tf32", "this is double precision; use"),  # that of the file
        ("math tf32", "math tf32 is for device gpu; use device gpu, or leave it out"),
        ("gpu_aware on", "gpu_aware on is for device gpu"),
    ],
)
def test_options_that_would_do_nothing_stop_the_run(model, prefix, tmp_path, style, message):
    run = Run("n", systems()["cubic"], model[0], style=style, centroid=False)
    done = run_lmp(tmp_path, prefix + script_of(run, tmp_path))
    assert done.returncode != 0
    assert message in done.error, done.output[-1500:]


@pytest.mark.skipif(on_the_card(), reason="asks the emulation: LAMMPS' plugin without CUDA")
def test_a_build_without_cuda_says_so(model, tmp_path):
    run = Run("c", systems()["glass"], model[0], style="device gpu", centroid=False)
    done = run_lmp(tmp_path, script_of(run, tmp_path))
    assert "built without CUDA" in done.error
