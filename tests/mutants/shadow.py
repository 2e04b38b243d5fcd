"""A copy of the repository and of its environment, in which a mutated package is what is imported.

The editable install of the package redirects imports by a finder of its own, ahead of every path
and in every child process. So a copy can only win in an environment without that finder: a folder
of symbolic links to the packages of the real one, in which a .pth names the copied repository. Its
``bin/python`` is ``sys.executable`` of the tests; whatever they start stays in the copy.

The compiled files of the package are linked into the copy. Only Python can be mutated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PACKAGE = "mlff_distiller"
#: Where the wheel has folders of the repository: see pyproject.toml, tool.scikit-build.
_MOVED = {"mlff_distiller/openmm": "openmm_plugin/openmm"}


class Shadow:
    """A copy of ROOT under ``folder``.

    Attributes:
        root: the copied repository.
        python: the interpreter that imports from it.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.root = folder / "repository"
        self.package = self.root / _PACKAGE
        self.python = folder / "environment" / "bin" / "python"
        self._server: subprocess.Popen[str] | None = None
        self._copy_repository()
        self._link_environment(folder / "environment")
        self._check()

    def _copy_repository(self) -> None:
        command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                target = self.root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        for inside, source in _MOVED.items():
            shutil.copytree(ROOT / source, self.root / inside, dirs_exist_ok=True)
        for name in ("build", "shared"):  # what tests compile is kept between runs
            if (ROOT / name).exists():
                (self.root / name).symlink_to(ROOT / name)
        compiled = Path(sysconfig.get_paths()["platlib"]) / _PACKAGE
        for path in compiled.rglob("*"):
            target = self.package / path.relative_to(compiled)
            if path.is_file() and path.suffix != ".pyc" and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)

    def _link_environment(self, home: Path) -> None:
        real = Path(sys.prefix)
        packages = home / Path(sysconfig.get_paths()["platlib"]).relative_to(real)
        packages.mkdir(parents=True)
        self.python.parent.mkdir(parents=True)
        for path in (real / "bin").iterdir():
            (home / "bin" / path.name).symlink_to(path)
        shutil.copy2(real / "pyvenv.cfg", home / "pyvenv.cfg")
        for path in Path(sysconfig.get_paths()["platlib"]).iterdir():
            if path.name != _PACKAGE and not path.name.startswith("_editable_skbc_"):
                (packages / path.name).symlink_to(path)
        (packages / f"{_PACKAGE}.pth").write_text(f"{self.root}\n")

    def _check(self) -> None:
        code = (
            f"import {_PACKAGE}, {_PACKAGE}._native as n, {_PACKAGE}.openmm as o, "
            f"sys; print({_PACKAGE}.__file__, n.__file__, o.__file__, sys.prefix)"
        )
        done = self.run([str(self.python), "-c", code], cwd=Path("/"))
        if done.returncode or done.stdout.count(str(self.root)) != 3:
            raise RuntimeError(f"the copy is not what is imported: {done.stdout}{done.stderr}")

    def run(self, command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy."""
        return subprocess.run(
            command, cwd=cwd or self.root, env=_environment(), capture_output=True, text=True
        )

    def test(self, tests: str, timeout: float, *, stop: bool = True) -> tuple[bool, str]:
        """Whether all of ``tests`` pass, and the first that fails (all of them without ``stop``)."""
        arguments = [f"tests/{w}" if w.startswith("test_") else w for w in tests.split()]
        arguments += ["-q", "--no-header", "-p", "no:cacheprovider", *(["-x"] if stop else [])]
        status, output = self._ask({"arguments": arguments, "timeout": timeout})
        if status is None:
            return False, f"no end within {timeout:.0f} s"
        failed = [x for x in output.splitlines() if x.startswith(("FAILED", "ERROR"))]
        names = [x.partition(" ")[2].partition(" - ")[0].removeprefix("tests/") for x in failed]
        if status not in (0, 1) and not names and "import" not in output.lower():
            raise RuntimeError(f"pytest {tests} ended with {status}: {output[-2000:]}")
        return status == 0, ", ".join(names[:1] if stop else names)

    def _ask(self, job: dict[str, Any]) -> tuple[int | None, str]:
        """Hand a job to the server of this copy, see server.py."""
        if self._server is None:
            command = [str(self.python), str(Path(__file__).with_name("server.py"))]
            self._server = subprocess.Popen(
                command, cwd=self.root, env=_environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        return answer["status"], answer["output"]

    def close(self) -> None:
        """End the server."""
        if self._server is not None and self._server.stdin is not None:
            self._server.stdin.close()
            self._server.wait()


def _environment() -> dict[str, str]:
    dropped = ("MLFF_", "PYTHON", "PYTEST_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "OMP_NUM_THREADS": "1"}
