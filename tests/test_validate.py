"""``mlff-distiller validate`` and the page that shows the verdict first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from support.commands import run
from support.students import make_student

from mlff_distiller.config import AcceptanceConfig, PurposeConfig
from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates import Gate
from mlff_distiller.evaluation.gates.plots import figures
from mlff_distiller.evaluation.gates.verdict import cells, validation
from mlff_distiller.evaluation.plots import png
from mlff_distiller.evaluation.report import write_report
from mlff_distiller.export import export_student
from mlff_distiller.students.file import read_metadata

COPPER = Structure.from_atoms(bulk("Cu", a=3.6, cubic=True))
GOOD = Gate("bulk modulus", "lattice", 1.0, 10.0, "%", 101.0, 100.0, "GPa")
BAD = Gate("vacancy", "vacancy", 0.8, 0.3, "eV", 0.4, 1.2, "eV", advice="label <vacancies>")
LOST = Gate("elastic", "elastic", None, 10.0, "%", reason="teacher: it has no stress")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("validate")
    export_student(make_student([29]), path / "student.pt")
    write(path / "cu.cif", bulk("Cu", a=3.6, cubic=True))
    return path


def validated(gates: list[Gate], **purpose) -> dict:
    return validation(gates, PurposeConfig(**purpose), AcceptanceConfig(), [COPPER], teacher="emt")


# --- the sentence --------------------------------------------------------------------------------


def test_the_verdict_says_what_for_and_where() -> None:
    good = validated([GOOD], temperature=[300, 1800], pressure=[0, 10])
    assert good["passed"]
    assert good["verdict"] == (
        "May be used for Cu (crystal) at 300–1800 K, 0–10 GPa: the one gate passed."
    )
    bad = validated([GOOD, BAD, LOST])
    assert not bad["passed"]
    assert bad["verdict"].startswith("NOT to be used for Cu (crystal) at 300–900 K: 2 of 3 gates")
    assert "vacancy" in bad["verdict"]
    assert "label <vacancies>" in bad["failures"][0]
    assert "not measured (teacher: it has no stress)" in bad["failures"][1]
    json.dumps(bad, allow_nan=False)
    nothing = validated([])
    assert not nothing["passed"]
    assert nothing["verdict"].startswith("Not validated")


def test_gates_that_were_asked_alone_are_no_verdict() -> None:
    limits = AcceptanceConfig(gates=["stability"], stability_seeds=1, stability_time=0.1)
    gate = replace(GOOD, name="stable 0.1 ps at 900 K", kind="stability")
    found = validation([gate], PurposeConfig(), limits, [COPPER])
    assert found["verdict"] == (
        "No verdict on Cu (crystal) at 300–900 K: the one gate that was asked passed (stability), "
        "the others were not asked."
    )
    assert found["conditions"]["stability"] == "1 run of 0.1 ps"
    assert validated([GOOD])["conditions"]["stability"] == "10 runs of 50 ps"


def test_a_student_without_the_elements_is_not_measured(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "al.cif", bulk("Al", cubic=True))
    command = ("validate", folder / "student.pt", tmp_path / "al.cif", "--teacher", "emt")
    found = run(*command, "-o", tmp_path / "out", code=2)
    assert "Al (Z=13)" in found.stderr


@pytest.mark.parametrize("where", ["import", "start", "call"])
def test_a_teacher_that_ends_the_program_is_no_success(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    lines = {
        "import": "sys.exit(0)\n",
        "start": "class T(EMT):\n    def __init__(self): sys.exit(0)\n",
        "call": "class T(EMT):\n    def calculate(self, *a, **k): sys.exit(0)\n",
    }
    text = "import sys\nfrom ase.calculators.emt import EMT\n" + lines[where]
    (tmp_path / f"leaves_{where}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    teacher = f"leaves_{where}:T"
    command = ("validate", folder / "student.pt", folder / "cu.cif", "--teacher", teacher)
    command += ("--gate", "lattice", "-o", tmp_path / "out")
    found = run(*command, code=1)
    said = found.stdout + found.stderr
    assert "not measured" in said
    assert "NOT to be used" in said
    assert "Traceback" not in said
    # Elsewhere there is no gate that could fail.
    command = ("label", folder / "cu.cif", "--teacher", teacher, "-o", tmp_path / "l.h5")
    refused = run(*command, code=2).stderr
    assert "leaves" in refused or "cannot label" in refused


def test_what_was_left_out_is_said() -> None:
    limits = AcceptanceConfig(skip=["stability"])
    found = validation([GOOD], PurposeConfig(), limits, [COPPER])
    assert found["conditions"]["left out"] == "stability"
    assert found["conditions"]["ensembles"] == "NPT, NVT"


def test_cells_of_the_table() -> None:
    assert cells(GOOD) == ("101 GPa", "100 GPa", "1%", "≤ 10%")
    assert cells(LOST) == ("–", "–", "not measured", "≤ 10%")
    assert cells(replace(GOOD, at_least=True, limit_unit="×"))[3] == "≥ 10 ×"


# --- the page ------------------------------------------------------------------------------------


def page(folder: Path, tmp_path: Path, metrics: dict, **figures) -> str:
    write_report(
        tmp_path / "report.html",
        title="emt distilled on copper",
        metrics=metrics,
        card=read_metadata(folder / "student.pt"),
        figures=figures,
        model_path="student.pt",
    )
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_begins_with_verdict_conditions_gates(folder: Path, tmp_path: Path) -> None:
    details = {
        "figure": "equation_of_state",
        **{
            side: {"volumes": [10.0, 11.0, 12.0, 13.0], "energies": [0.2, 0.0, 0.1, 0.3]}
            for side in ("student", "teacher")
        },
    }
    found = validated([replace(GOOD, details=details), BAD, LOST])
    drawn = figures([replace(GOOD, details=details)])
    ((name, (figure, caption)),) = drawn.items()
    metrics = {
        "validation": {**found, "captions": {name: caption}},
        "force_mae_mev_per_ang": 20.0,
        "engines": None,
    }
    text = page(folder, tmp_path, metrics, **{name: png(figure)})
    order = [
        "NOT to be used",
        "300–900 K",
        "Gates: student",
        "bulk modulus",
        caption,
        "Details",
        "Force error (MAE)",
        "Model card",
    ]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert "label &lt;vacancies&gt;" in text
    assert "teacher: it has no stress" in text


def test_the_page_works_without_gates_and_says_so(folder: Path, tmp_path: Path) -> None:
    text = page(folder, tmp_path, {"force_mae_mev_per_ang": 20.0})
    assert "No acceptance gate was measured" in text
    assert "Gates: student" not in text
    assert "Force error (MAE)" in text


# --- the command ---------------------------------------------------------------------------------


def test_a_student_that_fails_is_refused_by_the_exit_status(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "validation"
    process = run(
        "validate", folder / "student.pt", folder / "cu.cif", "--teacher", "emt",
        "--gate", "lattice", "--gate", "vacancy", "-o", output, code=1,
    )  # fmt: skip
    assert "NOT to be used for Cu" in " ".join(process.stdout.split())
    assert "✗" in process.stdout
    result = json.loads((output / "validation.json").read_text())
    assert not result["passed"]
    assert {row["kind"] for row in result["gates"]} == {"lattice", "vacancy"}
    assert result["teacher"] == "emt"
    page = (output / "validation.html").read_text(encoding="utf-8")
    assert "NOT to be used for Cu" in page
    assert (output / "gate_equation_of_state.png").exists()


def test_held_out_frames_are_a_gate_where_there_are_some(folder: Path, tmp_path: Path) -> None:
    frames = []
    for seed in range(3):
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(atoms)
    write(tmp_path / "test.extxyz", frames)
    process = run(
        "validate", folder / "student.pt", folder / "cu.cif", "--teacher", "emt", "--json",
        "--gate", "held_out", "--data", tmp_path / "test.extxyz", "-o", tmp_path / "v", code=1,
    )  # fmt: skip
    rows = json.loads(process.stdout)["gates"]
    assert [row["name"].partition(",")[0] for row in rows] == [
        "force error", "energy error", "stress error",
    ]  # fmt: skip
    process = run(
        "validate", folder / "student.pt", folder / "cu.cif", "--teacher", "emt", "--json",
        "--gate", "held_out", "-o", tmp_path / "v", code=1,
    )  # fmt: skip
    assert "no held-out frames" in json.loads(process.stdout)["gates"][0]["reason"]


def test_a_student_that_passes(folder: Path, tmp_path: Path) -> None:
    """It is its own teacher; pressure and temperature by a file, and the command line over it."""
    config = {
        "purpose": {"pressure": [0, 3], "temperature": [100, 200]},
        "acceptance": {"skip": ["speed"]},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    teacher = f"mlff_distiller.calculator:StudentCalculator('{folder / 'student.pt'}')"
    process = run(
        "validate", folder / "student.pt", folder / "cu.cif", "--teacher", teacher, "--json",
        "--config", tmp_path / "c.yaml", "--temperature", "50", "--gate", "lattice",
        "--gate", "stability", "--seeds", 1, "--picoseconds", 0.05, "--engine", "ase", "--workers", 1,
        "-o", tmp_path / "v",
    )  # fmt: skip
    result = json.loads(process.stdout)
    assert result["passed"], result["failures"]
    assert result["conditions"]["temperature"] == "50 K"
    names = [row["name"] for row in result["gates"]]
    assert names[:2] == ["lattice parameter a", "lattice parameter a at 3 GPa"]
    assert names[-1] == "stable 0.05 ps at 50 K"
    assert str(tmp_path / "v" / "gate_stability.png") in result["files"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "cold"], ["--temperature", "LOW:HIGH", "cold"]),
        (["--temperature", "900:300"], ["temperature", "900:300", "[300, 900]"]),
        (["--gate", "beauty"], ["gates", "beauty", "lattice"]),
        (["--seeds", "0"], ["stability_seeds", "0"]),
        (["--pressure", "1:2:3"], ["--pressure", "1:2:3"]),
    ],
)
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, arguments, words) -> None:
    process = run(
        "validate", folder / "student.pt", folder / "cu.cif", "--teacher", "emt",
        "-o", tmp_path / "v", *arguments, code=2,
    )  # fmt: skip
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not (tmp_path / "v" / "validation.json").exists()
