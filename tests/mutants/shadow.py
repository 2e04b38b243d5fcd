"""A copy of the repository and of its environment, in which a mutated package is what is imported.

The editable install of the package redirects imports by a finder of its own, ahead of every path
and in every child process. So a copy can only win in an environment without that finder: a folder
of symbolic links to the packages of the real one, in which a .pth names the copied repository. Its
``bin/python`` is ``sys.executable`` of the tests; whatever they start stays in the copy.

The compiled files of the package are linked into the copy. Only Python can be mutated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

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

    def run(self, command: list[str], timeout: float | None = None, cwd: Path | None = None):
        """Run a command in the copy, and end what it started when it takes too long."""
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("MLFF_", "PYTHON", "PYTEST_"))
        }
        # Processes that a killed test leaves behind must not disturb the next mutation.
        with subprocess.Popen(
            command, cwd=cwd or self.root, env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output = process.communicate(timeout=timeout)
            except BaseException:
                os.killpg(process.pid, 9)
                raise
        return subprocess.CompletedProcess(command, process.returncode, *output)

    def test(self, tests: str, timeout: float, *, stop: bool = True) -> tuple[bool, str]:
        """Whether all of ``tests`` pass, and the first that fails (all of them without ``stop``)."""
        arguments = [
            f"tests/{word}" if word.startswith("test_") else word for word in tests.split()
        ]
        command = [str(self.python), "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
        command += ["-x"] if stop else []
        try:
            done = self.run([*command, *arguments], timeout)
        except subprocess.TimeoutExpired:
            return False, f"no end within {timeout:.0f} s"
        if done.returncode not in (0, 1):
            if "ImportError while loading conftest" in done.stdout + done.stderr:
                return False, "import"
            if "error" not in done.stdout.lower():
                raise RuntimeError(f"pytest {tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
        names = [x.partition(" ")[2].partition(" - ")[0].removeprefix("tests/") for x in failed]
        return done.returncode == 0, ", ".join(names[:1] if stop else names)
