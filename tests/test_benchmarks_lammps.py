"""benchmarks/lammps: the quick run with the real ``lmp``; what is missing is a row with its reason."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.backends import needs_lammps
from support.lammps import write_student

pytest.importorskip("lammps")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.lammps.figures")


@needs_lammps
def test_quick_run(figures, tmp_path, capsys):
    trained = tmp_path / "si.pt"
    write_student(trained, (14,), hidden_dim=8, num_interactions=2, dtype=torch.float32)
    arguments = ["--quick", "--rounds", "2", "--output", str(tmp_path), "--trained", str(trained)]
    arguments += ["--peers", str(tmp_path / "no_peers")]
    figures.main(arguments)
    report = json.loads((tmp_path / "lammps.json").read_text())
    found = report["measurements"]
    assert list(found) == [str(k) for k in range(1, 9)]
    assert found["2"]["line"].startswith("not measured: DeePMD-kit and LAMMPS are not installed")

    ranks = found["1"]
    assert 500 < ranks["bytes_per_atom"] < 100_000
    assert 0 < ranks["exchange_share"] < 1
    one, two = ranks["rows"].values()
    ratios = [a / b for a, b in zip(one["rounds"], two["rounds"], strict=True)]
    assert len(ratios) == 2
    assert ranks["speedup"] == pytest.approx(sum(ratios) / 2)  # median of two
    assert all(0 < row["seconds_per_step"] < 10 for row in found["3"]["rows"].values())
    assert set(found["3"]["ratios"]) == {"Ge", "Li"}
    engine = found["4"]["rows"]["bare engine, call"]
    assert engine["lowest"] <= engine["seconds_per_step"] <= engine["highest"]
    assert found["5"]["relative_energy"] < 1e-8
    assert found["5"]["force_eV_per_A"] < 1e-8
    assert found["5"]["largest_force_eV_per_A"] > 1e-3
    assert [len(s) for s in found["6"]["slopes_meV_per_atom_ns"].values()] == [2, 2]
    assert 1e7 < found["7"]["peak_bytes"] < 1e9
    assert all(len(s) == 11 for s in found["8"]["series_bytes"].values())

    text = (tmp_path / "lammps.md").read_text()
    assert "Quick run" in text  # so that nobody quotes it
    assert "**no**" not in text
    assert all(result["name"] in text for result in found.values())
    assert (tmp_path / "lammps.png").stat().st_size > 10_000

    # One of them again, with nothing trained: the others stay.
    capsys.readouterr()
    figures.main([*arguments, "--only", "6", "--trained", str(tmp_path / "none.pt")])
    assert "6. not measured: no trained student" in capsys.readouterr().out
    again = json.loads((tmp_path / "lammps.json").read_text())["measurements"]
    assert again["1"] == found["1"]
    with pytest.raises(SystemExit):
        figures.main(["--only", "9"])
    assert "there is no measurement 9" in capsys.readouterr().err


@needs_lammps
def test_a_target_that_is_missed_says_no(figures):
    tables = importlib.import_module("benchmarks.lammps.tables")
    row = {"seconds_per_step": 1e-3, "lowest": 1e-3, "highest": 2e-3, "cpu_share": 0.5,
           "cpu_seconds_per_step": 5e-4}  # fmt: skip
    result = {"name": "a thing", "date": "today", "line": "It is slow.", "target": "fast",
              "met": False, "atoms": 10, "rows": {"painn": row}}  # fmt: skip
    text = tables.markdown(
        {"processor": "p", "cores": 2, "lammps": "1", "measurements": {"1": result}}
    )
    assert "| a thing | fast | **no** | It is slow. | today |" in text
    assert "| a thing: painn | 100.0 | 100.0–200.0 | 50.0 |" in text
    assert "busy during: a thing" in text


@needs_lammps
def test_the_line_of_a_failed_lmp_is_the_reason(figures, tmp_path):
    launch, cases = (
        importlib.import_module(f"benchmarks.lammps.{name}") for name in ("launch", "cases")
    )
    setup = cases.Setup(cases.QUICK, tmp_path, tmp_path / "none", tmp_path, install=False, rounds=1)
    case = replace(setup.water(2), pair="pair_style nosuchstyle")
    with pytest.raises(launch.LammpsError, match="ERROR: Unrecognized pair style 'nosuchstyle'"):
        launch.run(case, "run 0\n", tmp_path)
