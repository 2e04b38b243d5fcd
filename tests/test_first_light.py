"""benchmarks/first_light, rehearsed: the emulation in the card's place, every stage of both runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.backends import needs_lammps, needs_openmm
from support.cuda_module import build, on_the_card
from support.processes import clean_environment
from support.students import export_to

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "first_light"

pytestmark = [
    pytest.mark.skipif(on_the_card(), reason="asks the emulation: a rehearsal"),
    pytest.mark.skipif(os.name != "posix", reason="needs bash"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Small, and of the elements of water."""
    config = {"hidden_dim": 32, "num_interactions": 2, "num_rbf": 6, "cutoff": 3.0, "zbl": False}
    return export_to(tmp_path_factory.mktemp("model"), **config)[1]


def rehearse(script: str, out: Path, model: str, **settings: str) -> dict[str, str]:
    """What stages.txt says of every stage."""
    environment = clean_environment(
        FIRST_LIGHT_REHEARSAL=str(build().parent), OUT=str(out), MODEL=str(model), PYTHON=sys.executable,
        ROW="0.01", MILLION="1", OMP_NUM_THREADS="1", **settings,
    )  # fmt: skip
    done = subprocess.run(
        ["bash", str(FOLDER / script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    logs = "\n".join(path.read_text()[-1500:] for path in out.glob("*.log"))
    assert done.returncode == 0, done.stderr
    lines = (out / "stages.txt").read_text().splitlines()
    stages = dict(line.split(": ", 1) for line in lines)
    assert all(what.startswith("exit 0 ") for what in stages.values()), f"{stages}\n{logs}"
    return stages


def test_first_run(model, tmp_path):
    stages = rehearse("run1.sh", tmp_path, model, SIDES="1 1")
    first = ["smoke", "smoke, own products", "steps", "kernels beside their bounds"]
    assert list(stages)[:4] == first
    assert set(stages) == {*first, "memcheck", "initcheck", "racecheck"}  # those run side by side
    smoke = "".join((tmp_path / name).read_text() for name in ("smoke.log", "smoke_own.log"))
    assert smoke.count("smoke ok") == 2
    assert "WRONG" not in smoke
    assert "host emulation" in (tmp_path / "card.txt").read_text()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["what"].split(",")[0] for row in report["rows"]} == {"student"}
    kernels = json.loads((tmp_path / "kernels.json").read_text())
    assert [row["math"] for row in kernels] == ["float32", "half", "tf32"]
    # Of two interactions, without a graph: networks in one kernel, and products one by one.
    assert [sum(row["count"] for row in x["rows"]) for x in kernels] == [27, 27, 60]


@needs_lammps
@needs_openmm
def test_second_run(model, tmp_path):
    stages = rehearse("run2.sh", tmp_path, model, SIDES="1", ENGINES="lammps,openmm,torch")
    assert list(stages) == ["ncu, passes over edges", "a million atoms, float32",
                            "a million atoms, tf32", "torch's operators",
                            "LAMMPS, OpenMM, torch"]  # fmt: skip
    assert "operators ok" in (tmp_path / "operators.log").read_text()
    report = json.loads((tmp_path / "engines" / "gpu.json").read_text())
    measured = {row["what"].split(",")[0]: row for row in report["rows"] if "median_s" in row}
    assert set(measured) == {"student", "LAMMPS", "OpenMM", "torch"}, report["rows"]
    assert measured["torch"]["force"] < 1e-4
    assert measured["LAMMPS"]["products"] == (
        "in tf32 by own kernel, without cuBLAS, filters in float16"
    )


def test_kernels_are_known_by_their_names(monkeypatch):
    """As torch's profiler has them; products take what is not ours."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parents[1]))
    spec = importlib.util.spec_from_file_location("kernels_of_first_light", FOLDER / "kernels.py")
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    ours = "void mlff::gpu::(anonymous namespace)::forward_kernel<float, true>(mlff::gpu::EdgeCall<float>)"
    assert kernels.short(ours) == "forward_kernel<T, true>"
    assert kernels.short("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64>(Params)") is None
    product, other = kernels.step(2)[-1], kernels.step(2)[0]
    launches = [other, next(x for x in kernels.step(2, fuse=0) if x.multiply), product]
    seen = [(other.name, 1.0), (None, 2.0), (None, 3.0), (product.name, 4.0)]
    assert kernels.align(seen, launches) == [1.0, 5.0, 4.0]
    assert kernels.align([seen[0], ("product_kernel<T, 0>", 2.0), seen[3]], launches) == [1, 2, 4]
    with pytest.raises(SystemExit, match="in step with the engine"):
        kernels.align(seen[1:], launches)


def test_nothing_of_this_machine_is_in_it():
    text = "\n".join(path.read_text() for path in FOLDER.iterdir() if path.is_file())
    assert not re.search(r"(?<![\w}])/(home|root|tmp|work)\b|~/", text)
    for script in FOLDER.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)


def test_the_user_is_told(monkeypatch):
    text = (FOLDER.parents[1] / "docs" / "gpu.md").read_text()
    for script in ("run1.sh", "run2.sh"):
        assert f"bash benchmarks/first_light/{script}" in text
    assert "build/first_light/out" in text
