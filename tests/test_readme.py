"""Every Python and LAMMPS block of README.md runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.processes import clean_environment

from mlff_distiller.config import ModelConfig
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```(python|lammps)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("readme")
    student = StudentForceField(ModelConfig(hidden_dim=16, num_interactions=2), [14], [-5.0])
    export_student(student, path / "student.pt")
    return path


def test_readme_shows_every_engine() -> None:
    assert [language for language, _ in BLOCKS].count("lammps") == 1
    assert [language for language, _ in BLOCKS].count("python") == 3


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=lambda v: v if len(v) < 9 else "")
def test_readme_block(language: str, code: str, folder: Path) -> None:
    script = folder / f"block.{language}"
    script.write_text(code, encoding="utf-8")
    if language == "python":
        command = [sys.executable, script.name]
    else:
        command = [str(Path(sys.executable).parent / "lmp"), "-in", script.name, "-log", "none"]
    run = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=clean_environment(),
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stdout.strip()
