"""benchmarks/gpu_roofline.py against the engine under emulation, and benchmarks/gpu.py without a GPU."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.cuda_module import gpu_engine
from support.students import export_to
from support.systems import water_box

from mlff_distiller.ops.engine import gpu_count

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("gpu_kernels", "gpu_cards", "gpu_roofline")


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return [importlib.import_module(f"benchmarks.{name}") for name in MODULES]


def emulated_step(path, dtype="float32", side=3, **options):
    """A system after two steps, and what the emulation counted in the second."""
    gpu = gpu_engine()
    numbers, positions, cell, pbc = water_box(side)
    potential = gpu.GpuPotential(path, dtype=dtype, skin=0.3, **options)
    for turn in range(2):
        gpu.reset_counters()
        potential.compute(numbers, positions + 0.01 * turn, cell, pbc)
    assert potential.num_builds == 1
    return potential, gpu.counters(), len(numbers)


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "apart"])
@pytest.mark.parametrize(
    ("channels", "interactions", "dtype", "math"),
    [
        (64, 3, "float32", "float32"),
        (128, 2, "float64", "float32"),
        (32, 1, "float32", "float32"),
        (64, 2, "float32", "half"),
        (32, 1, "float32", "tf32"),
    ],
)
def test_launches_bus_and_memory_are_the_engines(
    roofline, tmp_path, channels, interactions, dtype, math, fuse
):
    kernels = roofline[0]
    config = {"hidden_dim": channels, "num_interactions": interactions, "num_rbf": 6}
    path = export_to(tmp_path, **config, cutoff=4.0, zbl=False)[1]
    potential, counters, atoms = emulated_step(path, dtype, math=math, fuse=fuse)

    half = math != "float32"
    small = kernels.fused(kernels.Shapes(atoms, channels), math) if fuse else 0
    expected = Counter(launch.name for launch in kernels.step(interactions, fuse=small, half=half))
    assert dict(expected) == counters["launches"]
    print(sum(expected.values()), "launches a step,", interactions, "interactions")
    assert sum(expected.values()) == (4 * interactions + 4 if small else 22 * interactions + 1)
    assert (counters["bytes_to_device"], counters["bytes_to_host"]) == kernels.bus_bytes(atoms)
    shapes = kernels.Shapes(
        atoms,
        channels,
        interactions,
        itemsize=4 if dtype == "float32" else 8,
        list_neighbors=potential.num_edges / atoms,
        intervals=potential.table["intervals"],
        species=3,
        half=half,
    )
    assert sum(kernels.memory_bytes(shapes).values()) == potential.memory_bytes


def test_products_are_the_engines(roofline, tmp_path):
    """Their shapes, as cuBLAS gets them, and their sum, as benchmarks/scaling.py has it for the CPU."""
    kernels, _, report = roofline
    path = export_to(tmp_path, hidden_dim=64, num_interactions=3, num_rbf=6, cutoff=3.0)[1]
    numbers, positions, cell, _ = water_box(2)
    names = kernels.variables(kernels.Shapes(len(numbers), 64), 1e9, (0, 0))
    expected = [
        [*(int(report.value(x, names)) for x in launch.multiply[:3]), int(launch.multiply[3])]
        for launch in kernels.step(3, fuse=0)
        if launch.multiply
    ]
    system = np.asarray(numbers, np.int64), positions, cell
    shapes = gpu_engine().product_shapes(path, *system, fuse=False)
    assert [list(shape) for shape in shapes] == expected
    assert gpu_engine().product_shapes(path, *system, fuse=True) == []

    scaling = importlib.import_module("benchmarks.scaling")
    names = kernels.variables(kernels.Shapes(1, scaling.HIDDEN, scaling.INTERACTIONS), 1e9, (0, 0))
    products = [x for x in kernels.step(scaling.INTERACTIONS, fuse=0) if x.multiply]
    total = sum(report.value(launch.fp32, names) for launch in products)
    work = scaling.multiply_adds(50.0)
    assert total == pytest.approx(work["dense_forward"] + work["dense_backward"])


def test_shapes_of_water(roofline):
    """Neighbours and the part of them that a block shares, of water in the engine's order."""
    from mlff_distiller.ops import neighbor_list

    torch = pytest.importorskip("torch")
    kernels = roofline[0]
    numbers, positions, cell, pbc = water_box(8)
    bins = np.floor(positions @ np.linalg.inv(cell) % 1 * (np.diag(cell) / 3.0)).astype(int)
    bits = [(bins >> bit & 1) << (3 * bit + np.arange(3)) for bit in range(10)]
    order = np.argsort(sum(bits).sum(axis=1), kind="stable")  # Morton, as core/spatial_order.cpp
    counts = {}
    for radius in (kernels.CUTOFF, kernels.CUTOFF + kernels.SKIN):
        tensors = [torch.tensor(x) for x in (positions[order], cell, pbc)]
        edge_index, _ = neighbor_list(*tensors, radius)
        counts[radius] = edge_index.numpy()
    shapes = kernels.Shapes(len(numbers), 128)
    for radius, per_atom in zip(counts, (shapes.neighbors, shapes.list_neighbors), strict=True):
        assert counts[radius].shape[1] / len(numbers) == pytest.approx(per_atom, rel=0.05)
    senders, centres = counts[kernels.CUTOFF]
    different = len(set(zip(centres // 2, senders, strict=True)))
    assert different / len(senders) == pytest.approx(kernels.BLOCK_SHARE, abs=0.03)


def test_prediction(roofline, tmp_path):
    """It is written, says what it is, and a bound is never beaten by a part of it."""
    _, cards, report = roofline
    result = report.collect()
    text = report.markdown(result)
    assert "PREDICTION" in text
    assert "measured on a GPU" in text
    for row in result["predictions"]:
        assert row["seconds"] >= sum(v for k, v in row["groups"].items() if k != "launches")
        for launch in row.get("launches", []):
            assert launch["seconds"] == max(launch["by_resource"].values())
    by_key = {
        (r["card"], r["shapes"]["channels"], r["math"], r["graph"], r["shapes"]["atoms"]): r[
            "seconds"
        ]
        for r in result["predictions"]
    }
    kernels = roofline[0]
    for (card, f, math, graph, atoms), seconds in by_key.items():
        if not kernels.fused(kernels.Shapes(atoms, f)):  # products that round come one by one
            assert seconds <= by_key[(card, f, "float32", graph, atoms)]
        assert by_key[(card, f, math, True, atoms)] <= seconds
    a100, h100, h200 = cards.CARDS
    assert a100.rates()["FP32"] * 2 == pytest.approx(19.5e12, rel=0.01)
    assert h100.rates()["FP32"] * 2 == pytest.approx(66.9e12, rel=0.01)
    # The figures of issue K: 100 atoms in 150 us, 100,000 in 20 ms, 30 launches a step.
    assert by_key[(h100.name, 128, "float32", True, 100)] < 75e-6
    assert by_key[(h100.name, 128, "float32", True, 100_000)] < 20e-3
    assert len(kernels.step(3)) == 16
    # One kernel for networks is taken where the bound is better, or within 5 %, on every card.
    for card in cards.CARDS:
        for f in report.CHANNELS:
            for atoms in report.ATOMS:
                shapes = kernels.Shapes(atoms, f)
                if kernels.fused(shapes):
                    seconds = [report.predict(shapes, card, fuse=x)["seconds"] for x in (None, 0)]
                    assert seconds[0] < 1.05 * seconds[1], (card.name, f, atoms)
    assert (h200.rates()["FP32"], h200.dram) == (h100.rates()["FP32"], 4.8e12)
    shown = [x for x in (BENCHMARKS.parent / "docs/gpu.md").read_text().splitlines() if "-SXM" in x]
    assert len(shown) == 9 + 6
    # Run it and copy the lines.
    assert set(shown) <= {*report.time_table(result), *report.split_table(result)}
    report.plot(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    json.dumps(result)


def test_split_products(roofline):
    """Why there is no math for them: where the factors go through memory the default network gets slower."""
    kernels, cards, report = roofline
    _, h100, _ = cards.CARDS
    shapes = kernels.Shapes(100_000, 128)
    now = report.predict(shapes, h100)
    parts = {where: report.predict(shapes, h100, split=where) for where in kernels.SPLITS}
    assert parts["product"]["seconds"] < now["seconds"]
    assert now["seconds"] < parts["producer"]["seconds"] < parts["kernel"]["seconds"]
    # Three times the products of tf32, on the same tensor cores; all else is float32's.
    for row in parts.values():
        flop = [
            sum(x["flop"] for x in y["launches"] if x["group"] == "products") for y in (now, row)
        ]
        assert flop[1] == 3 * flop[0]
        for group in ("edges forward", "edges backward", "pointwise"):
            assert row["groups"][group] == now["groups"][group]
    # By hand: 60.5 F factors an atom are read again and their parts written, 4 of 3352 bytes a ns; what
    # L2 keeps of each of 28 products is free.
    factors = 60.5 * 128 * 4
    split = parts["kernel"]["groups"]["split"] / shapes.atoms * 1e9
    assert split == pytest.approx(
        (4 * factors - 28 * h100.l2_bytes / shapes.atoms) / 3352, rel=0.02
    )


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return importlib.import_module("benchmarks.gpu")


def options(gpu, tmp_path, path, **more):
    settings = {
        "device": "cuda",
        "model": path,
        "teacher": "",
        "peers": [],
        "same_python": False,
        "engines": [],
        "sides": [1],
        "seconds": 0.01,
        "cpu_atoms": 10,
        "quick": True,
        "output": tmp_path / "report",
        "cache": tmp_path,
    }
    return argparse.Namespace(**{**settings, **more})


def test_one_line_where_there_is_no_gpu(tmp_path):
    """The real thing, as a user starts it on this machine."""
    if gpu_count():
        pytest.skip("there is a GPU")
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu.py"),
        "--quick",
        "--output",
        str(tmp_path / "x"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("nothing measured: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_one_line_where_cuda_finds_no_gpu(gpu, monkeypatch, capsys):
    module = gpu_engine()
    monkeypatch.setattr(gpu.engine, "gpu_module", lambda: module)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick"])
    module.set_device_count(0)
    try:
        assert gpu.main() == 2
    finally:
        module.set_device_count(1)
    assert "no GPU 0 is usable here (0 found)" in capsys.readouterr().err


def test_measures_under_emulation(gpu, tmp_path, monkeypatch, capsys):
    """The whole program where the "GPU" is the emulation: checks pass, every row has its figures."""
    config = {"hidden_dim": 8, "num_interactions": 2, "num_rbf": 4, "cutoff": 3.0}
    path = Path(export_to(tmp_path, **config)[1])
    numbers, positions, cell, pbc = water_box(1)
    small = {
        "periodic": (numbers, positions, cell, pbc),
        "open": (numbers, positions, cell, ~pbc),
    }
    monkeypatch.setattr(gpu, "check_systems", lambda: small)
    monkeypatch.setattr(gpu.engine, "gpu_module", gpu_engine)
    given = options(gpu, tmp_path, path, teacher="no-such-teacher")
    monkeypatch.setattr(gpu, "arguments", lambda: given)
    assert gpu.main() == 0
    report = json.loads((tmp_path / "report" / "gpu.json").read_text())
    assert {(c["dtype"], c["math"], c["graph"]) for c in report["checks"]} >= {
        ("float64", "float32", True),
        ("float32", "tf32", False),
    }
    student = [row for row in report["rows"] if row["what"] == "student, GPU"]
    assert len(student) == 7
    assert report["products"] == "own kernel, without cuBLAS"
    for row in student:
        assert row["products"] == report["products"]
        assert 0 < row["low_s"] <= row["median_s"] <= row["high_s"]
        assert (row["builds"] > 0) == row["rebuild"]
    (teacher,) = [row for row in report["rows"] if row["what"].startswith("teacher")]
    assert "unknown teacher" in teacher["not_measured"].lower()
    text = (tmp_path / "report" / "gpu.md").read_text()
    assert "student, CPU" in text
    assert "not measured" in text
    assert (tmp_path / "report" / "gpu.png").stat().st_size > 5000

    # Wrong forces: nothing is timed.
    real = gpu.engine.NativePotential.compute

    def wrong(self, *arguments, **options):
        result = real(self, *arguments, **options)
        if self.device != "cpu":
            result["forces"][0, 0] += 1e-3
        return result

    monkeypatch.setattr(gpu.engine.NativePotential, "compute", wrong)
    monkeypatch.setattr(gpu, "student_rows", lambda *_: pytest.fail("timed"))
    capsys.readouterr()
    given.output = tmp_path / "wrong"
    assert gpu.main() == 1
    assert "nothing timed: " in capsys.readouterr().err
    report = json.loads((tmp_path / "wrong" / "gpu.json").read_text())  # what to send to us
    assert not all(row["ok"] for row in report["checks"])
    assert report["rows"] == []
    assert "**wrong**" in (tmp_path / "wrong" / "gpu.md").read_text()


@pytest.fixture
def small(gpu, tmp_path, monkeypatch):
    """gpu.py with the emulation, a small student and one system to check. Options, and the module."""
    config = {"hidden_dim": 8, "num_interactions": 2, "num_rbf": 4, "cutoff": 3.0}
    path = Path(export_to(tmp_path, **config)[1])
    monkeypatch.setattr(gpu, "check_systems", lambda: {"periodic": water_box(1)})
    module = gpu_engine()
    monkeypatch.setattr(gpu.engine, "gpu_module", lambda: module)
    given = options(gpu, tmp_path, path)
    monkeypatch.setattr(gpu, "arguments", lambda: given)
    yield given, module
    module.set_memory_limit(0)


def test_a_failure_is_no_missing_gpu(gpu, small, monkeypatch, capsys):
    """... and what was measured before it is kept."""
    given, _ = small
    rows = iter([{"what": "student, GPU", "math": "float32", "graph": True, "rebuild": False,
                  "not_measured": "CUDA error while allocating: out of memory"}])  # fmt: skip

    def student_rows(*_):
        yield next(rows)
        raise gpu.DeviceError("CUDA error while running a step: an illegal memory access")

    monkeypatch.setattr(gpu, "student_rows", student_rows)
    assert gpu.main() == 3
    error = capsys.readouterr().err
    assert error.startswith("the GPU failed: CUDA error while running a step")
    assert error.count("\n") == 1
    report = json.loads((given.output / "gpu.json").read_text())
    assert report["failed"].endswith("an illegal memory access")
    assert len(report["rows"]) == 1
    assert "failed on the way" in (given.output / "gpu.md").read_text()


def test_one_potential_at_a_time(gpu, small):
    """Nothing holds the one before: of a million atoms only one fits."""
    given, module = small
    numbers, positions, cell = gpu.water(2)
    system = (numbers, positions, cell, np.array([True] * 3))
    before = module.memory_in_use()
    mode = {"device": "cuda", "math": "float32", "graph": True, "skin": 0.3}
    row = gpu.student_row(given.model, system, 0.01, **mode)
    assert module.memory_in_use() == before
    module.set_memory_limit(before + int(row["memory_GB"] * 1.5e9))
    rows = list(gpu.student_rows(given.model, "cuda", system, 0.01))
    assert len(rows) == 7
    assert not [row for row in rows if "not_measured" in row]
    module.set_memory_limit(before + int(row["memory_GB"] * 0.9e9))
    (row,) = [gpu.student_row(given.model, system, 0.01, **mode)]
    assert "out of memory" in row["not_measured"]


def test_what_rounding_costs(gpu, tmp_path, monkeypatch):
    """gpu_rounding.py where the "GPU" is the emulation."""
    rounding = importlib.import_module("benchmarks.gpu_rounding")
    config = {"hidden_dim": 8, "num_interactions": 2, "num_rbf": 4, "cutoff": 3.0}
    path = Path(export_to(tmp_path, **config)[1])
    numbers, positions, cell, pbc = water_box(1)
    structure = SimpleNamespace(atomic_numbers=numbers, positions=positions, cell=cell, pbc=pbc)
    monkeypatch.setattr(gpu.engine, "gpu_module", gpu_engine)
    run = {"steps": 4, "kelvin": 300.0, "femtoseconds": 0.5}
    rows = rounding.measure(path, structure, argparse.Namespace(frames=2, rattle=0.05, **run))
    found = {row["math"]: row for row in rows}
    assert tuple(found) == rounding.MATHS
    assert found["float32"]["force_relative"] < 1e-5 < found["half"]["force_relative"] < 1e-3
    assert 10 * found["half"]["work"]["0.01"] < found["tf32"]["work"]["0.01"]
    assert all(np.isfinite(row["run"]["slope"]) for row in rows)
    assert rounding.markdown(rows).count("\n") == 1 + len(rows)
