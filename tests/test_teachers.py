"""Teachers: what they label, how they are named, and labelling that resumes after anything."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from rich.console import Console

from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure, structures_hash
from mlff_distiller.data.journal import journal_path
from mlff_distiller.errors import InputError, MismatchError
from mlff_distiller.sampling import rattled
from mlff_distiller.sampling.geometry import strained
from mlff_distiller.teachers import (
    CalculatorTeacher,
    Teacher,
    get_teacher,
    label_dataset,
    list_teachers,
)
from mlff_distiller.teachers.registry import parse_call

WATER = Structure.from_atoms(molecule("H2O"))
SILICON = Structure.from_atoms(bulk("Si"))
COPPER = Structure.from_atoms(bulk("Cu"))


def copies(structure: Structure, number: int, stdev: float = 0.05) -> list[Structure]:
    return [rattled(structure, np.random.default_rng(i), stdev) for i in range(number)]


def energy_of(teacher: Teacher, structure: Structure) -> float:
    (labelled,) = teacher.label([structure])
    assert labelled.energy is not None
    return labelled.energy


def check_derivatives(
    teacher: Teacher, s: Structure, step: float, tolerance: float, directions: int = 3
) -> None:
    """Forces and stress are the derivatives of the energy, along random directions."""
    (labelled,) = teacher.label([s])
    assert labelled.forces is not None
    rng = np.random.default_rng(0)
    for _ in range(directions):
        direction = rng.standard_normal(s.positions.shape)
        direction /= np.linalg.norm(direction)
        ends = [
            Structure(s.atomic_numbers, s.positions + sign * step * direction, s.cell, s.pbc)
            for sign in (1, -1)
        ]
        slope = (energy_of(teacher, ends[0]) - energy_of(teacher, ends[1])) / (2 * step)
        assert slope == pytest.approx(-float(np.sum(labelled.forces * direction)), abs=tolerance)
    if not s.pbc.all():
        assert labelled.stress is None
        return
    assert labelled.stress is not None
    volume = np.linalg.det(s.cell)
    for _ in range(directions):
        strain = rng.standard_normal((3, 3))
        strain = (strain + strain.T) / 2
        up, down = (energy_of(teacher, strained(s, sign * step * strain)) for sign in (1, -1))
        expected = float(np.sum(labelled.stress * strain)) * volume
        assert (up - down) / (2 * step) == pytest.approx(expected, abs=3 * tolerance)


# --- what teachers return ----------------------------------------------------------------------


def test_labels_are_those_of_the_calculator_and_input_is_untouched() -> None:
    teacher = get_teacher("emt")
    assert isinstance(teacher, Teacher)
    partly = Structure(COPPER.atomic_numbers, COPPER.positions, np.eye(3) * 4, [True, True, False])
    inputs = [*copies(COPPER, 2), partly, *copies(WATER, 1)]
    before = structures_hash(inputs)
    outputs = teacher.label(inputs)
    assert structures_hash(inputs) == before
    for s, labelled in zip(inputs, outputs, strict=True):
        atoms = s.to_atoms()
        atoms.calc = EMT()
        assert labelled.energy == atoms.get_potential_energy()
        np.testing.assert_array_equal(labelled.forces, atoms.get_forces())
        np.testing.assert_array_equal(labelled.positions, s.positions)
        if s.pbc.any():  # of a slab with three vectors too: ASE's convention
            np.testing.assert_array_equal(labelled.stress, atoms.get_stress(voigt=False))
        else:
            assert labelled.stress is None
    check_derivatives(teacher, inputs[0], 1e-4, 1e-5)


def test_sevennet_labels_with_consistent_derivatives() -> None:
    pytest.importorskip("sevenn")
    teacher = get_teacher("sevennet-0")
    assert teacher.versions["sevenn"]
    # float32: the energy carries 1e-6 eV, so the step must be large.
    check_derivatives(teacher, copies(SILICON, 1)[0], 5e-3, 2e-2, directions=1)
    (water,) = teacher.label([WATER])
    assert water.stress is None
    assert -15.0 < water.energy < -13.0  # PBE, Materials Project
    with pytest.raises(InputError, match="sevennet-0 does not know Po"):
        teacher.label([Structure([84], [[0.0] * 3])])


def test_gfn2_labels_with_consistent_derivatives_in_any_order() -> None:
    pytest.importorskip("tblite")
    teacher = get_teacher("gfn2-xtb")
    check_derivatives(teacher, copies(WATER, 1)[0], 1e-3, 1e-4)
    crystal = Structure([1, 1], [[0.0] * 3, [0.8, 0, 0]], np.diag([4.0, 4.5, 5.0]), [True] * 3)
    check_derivatives(teacher, crystal, 1e-3, 1e-3)
    inputs = copies(WATER, 4)
    together = teacher.label(inputs)
    alone = teacher.label(inputs[3:])
    # Not bit for bit: tblite adds up in threads, in whatever order they end.
    assert together[3].energy == pytest.approx(alone[0].energy, abs=1e-9)
    np.testing.assert_allclose(together[3].forces, alone[0].forces, atol=1e-9)
    with pytest.raises(InputError, match="gfn2-xtb does not know U; it labels H to Rn"):
        teacher.check([Structure([92], [[0.0] * 3])])


def test_chgnet_labels_crystals_only() -> None:
    pytest.importorskip("chgnet")
    teacher = get_teacher("chgnet")
    check_derivatives(teacher, copies(SILICON, 1)[0], 5e-3, 2e-2, directions=1)
    with pytest.raises(InputError, match="three periodic directions, got H2O"):
        teacher.label([WATER])


@pytest.mark.parametrize("name", ["orb-v2", "orb-v3-conservative-20-omat", "orb-v3-direct"])
def test_orb_architecture_labels_a_batch(name: str, tmp_path) -> None:
    """The published loader and network, with untrained weights: none can be downloaded here."""
    pytest.importorskip("orb_models")
    teacher = get_teacher(name, weights="random", seed=1)
    parameters = sum(p.numel() for p in teacher.calculator.model.parameters())
    assert 25_000_000 < parameters < 26_500_000
    inputs = [SILICON, *copies(WATER, 2)]
    report = label_dataset(inputs, teacher, tmp_path / "orb.h5", max_force=None, progress=False)
    assert report.num_labelled == 3
    data = HDF5Dataset(tmp_path / "orb.h5")
    assert data.teacher == f"{name}(seed=1, weights='random')"
    assert data[0].stress is not None
    assert data[1].energy != data[2].energy
    assert torch.get_default_dtype() == torch.float32
    again = get_teacher(name, weights="random", seed=1).label(inputs[1:])
    assert again[0].energy == pytest.approx(data[1].energy, abs=1e-4)
    with pytest.raises(InputError, match="weights must be 'random' or a file"):
        get_teacher(name, weights="nowhere.ckpt")
    with pytest.raises(InputError, match=r"no model 'orb-v9'"):
        get_teacher("orb-v9", weights="random")


# --- names -------------------------------------------------------------------------------------


def test_custom_calculators_by_module_and_class() -> None:
    teacher = get_teacher("ase.calculators.emt:EMT(asap_cutoff=True)")
    atoms = COPPER.to_atoms()
    atoms.calc = EMT(asap_cutoff=True)
    assert energy_of(teacher, COPPER) == atoms.get_potential_energy()
    assert get_teacher("ase.calculators.emt:EMT").name == "ase.calculators.emt:EMT"


def test_calls_are_parsed_and_never_run() -> None:
    assert parse_call("A") == ("A", [], {})
    assert parse_call("A(1, b='x', c=[1, {'d': None}])") == (
        "A",
        [1],
        {"b": "x", "c": [1, {"d": None}]},
    )
    evil = [
        "A(__import__('os').system('true'))",
        "A(b=open('/etc/passwd'))",
        "A(**{'a': 1})",
        "A.b(1)",
        "A(1",
        "A(lambda: 1)",
        "A(b=c)",
        "",
        "A()()",
    ]
    for text in evil:
        with pytest.raises(InputError, match="literal values"):
            parse_call(text)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sevenet-0", "did you mean 'sevennet-0'"),
        ("nonsense", "known: sevennet-0"),
        ("ase.calculators.emt:EMTT", "did you mean 'EMT'"),
        ("no.such.module:Class", "cannot import 'no.such.module'"),
        ("ase.calculators.mixing:SumCalculator(nonsense=1)", "could not be loaded"),
        ("collections:Counter()", "must be an ASE calculator, got Counter"),
    ],
)
def test_unusable_names_are_explained_in_one_line(name: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as error:
        get_teacher(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("mace-mp-small", "mace", "pip install mace-torch"),
        ("ani2x", "torchani", "pip install torchani"),
        ("mattersim-1m", "mattersim", "pip install mattersim"),
        ("orb-v2", "orb_models", "pip install orb-models"),
        ("chgnet", "chgnet", "pip install chgnet==0.4.2"),
        ("sevennet-0", "sevenn", "pip install sevenn==0.13.0"),
        ("gfn2-xtb", "tblite", "pip install tblite==0.8.0"),
    ],
)
def test_missing_packages_name_their_install_line(monkeypatch, name, module, install) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(InputError, match="not installed") as error:
        get_teacher(name)
    assert str(error.value).endswith(install)
    assert "\n" not in str(error.value)


def test_every_entry_is_listed() -> None:
    listed = {pattern for pattern, _, _, _ in list_teachers()}
    wanted = "sevennet-0 sevennet-l3i5 chgnet gfn2-xtb ani2x mace-* mattersim-* orb-v2 emt"
    assert set(wanted.split()) <= listed
    assert ("emt", True) in {(p, installed) for p, _, installed, _ in list_teachers()}


class Recorder(Calculator):
    """Stands in for a calculator that is not installed, and shows how it was made."""

    implemented_properties: ClassVar[list[str]] = ["energy"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.made_with = (args, kwargs)


def install(monkeypatch, **modules: dict[str, Any]) -> None:
    for name, content in modules.items():
        module = types.ModuleType(name.replace("__", "."))
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_names_reach_packages_that_are_not_installed_here(monkeypatch) -> None:
    calculators = types.SimpleNamespace(mace_mp=Recorder, mace_off=Recorder)
    install(monkeypatch, mace={"calculators": calculators})
    install(monkeypatch, mattersim={}, mattersim__forcefield={"MatterSimCalculator": Recorder})
    made: Any = get_teacher("mace-off-small", "cuda").calculator
    assert made.made_with[1] == {"device": "cuda", "default_dtype": "float64", "model": "small"}
    made = get_teacher("mace-mp", default_dtype="float32").calculator
    assert made.made_with[1] == {"device": "cpu", "default_dtype": "float32"}
    made = get_teacher("mattersim-5m").calculator
    assert made.made_with[1] == {"load_path": "MatterSim-v1.0.0-5M.pth", "device": "cpu"}
    with pytest.raises(InputError, match="mace-xx is not a family"):
        get_teacher("mace-xx")


def test_both_generations_of_orb_models_are_spoken_to(monkeypatch) -> None:
    """0.5 loaders return a model, later ones (model, adapter) and a calculator elsewhere."""
    model, adapter = torch.nn.Linear(2, 2), object()
    calls: list[dict[str, Any]] = []

    def load(result: Any) -> Callable[..., Any]:
        def orb_v2(**keywords: Any) -> Any:
            calls.append(keywords)
            return result

        return orb_v2

    class New(Recorder):
        def __init__(self, model: Any, atoms_adapter: Any, *, device: str) -> None:
            super().__init__(model, atoms_adapter, device=device)

    class Old(Recorder):
        def __init__(self, model: Any, *, device: str) -> None:
            super().__init__(model, device=device)

    for result, place, kind, arguments in [
        (model, "orb_models__forcefield__calculator", Old, (model,)),
        ((model, adapter), "orb_models__forcefield__inference__calculator", New, (model, adapter)),
    ]:
        for name in [n for n in sys.modules if n.startswith("orb_models")]:
            monkeypatch.delitem(sys.modules, name)
        pretrained = types.SimpleNamespace(ORB_PRETRAINED_MODELS={"orb-v2": load(result)})
        install(monkeypatch, orb_models={}, orb_models__forcefield={"pretrained": pretrained})
        install(monkeypatch, **{place: {"ORBCalculator": kind}})
        made: Any = get_teacher("orb-v2").calculator
        assert isinstance(made, kind)
        assert made.made_with == (arguments, {"device": "cpu"})
    expected = {"device": "cpu", "precision": "float32-highest", "compile": False}
    assert calls == [expected, expected]


# --- labelling a data set ------------------------------------------------------------------------


class Slow(EMT):
    """EMT that takes its time, may fail on purpose, and counts."""

    def __init__(self, seconds: float = 0.0, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.seconds, self.interrupt_at, self.calls = seconds, interrupt_at, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        self.calls += 1
        time.sleep(self.seconds)
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        if atoms.positions[0, 0] > 90:
            raise RuntimeError("did not converge")
        super().calculate(atoms, properties, system_changes)


def teacher_of(calculator: Calculator) -> CalculatorTeacher:
    return CalculatorTeacher("slow", calculator)


def mixed(number: int) -> list[Structure]:
    """Every seventh has atoms on top of each other, every eleventh makes the teacher fail."""
    structures = copies(Structure.from_atoms(bulk("Cu", cubic=True)), number)
    for i, s in enumerate(structures):
        s.info["group"] = f"g{i}"
        if i % 7 == 3:
            s.positions[1] = s.positions[0] + 0.3
        if i % 11 == 5:
            s.positions[0, 0] += 100
    return structures


def contents(path: Path) -> tuple:
    data = HDF5Dataset(path)
    return data.hash(), data.progress, [s.info for s in data], data.teacher


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple:
    path = tmp_path_factory.mktemp("label") / "all.h5"
    report = label_dataset(mixed(40), teacher_of(Slow()), path, batch_size=3, progress=False)
    assert report.num_labelled == 40 - 6 - 4 + 1  # 38 is both
    return contents(path)


def test_rejects_are_counted_by_reason(tmp_path) -> None:
    path = tmp_path / "a.h5"
    report = label_dataset(mixed(40), teacher_of(Slow()), path, batch_size=5, progress=False)
    reasons = {k.split("(")[0].strip(): v for k, v in report.rejected.items()}
    assert reasons == {"a force above 30 eV/Å": 5, "the teacher failed": 4}
    assert "did not converge" in str(report)
    by_force = [i for i, reason in report.refused if reason == "a force above 30 eV/Å"]
    assert by_force == [3, 10, 17, 24, 31]
    assert "rejected 5: a force above 30 eV/Å (structures 3, 10, 17, 24, 31)" in str(report)
    assert [i for i, reason in report.refused if "teacher failed" in reason] == [5, 16, 27, 38]
    again = label_dataset(mixed(40), teacher_of(Slow()), path, progress=False)
    assert again.refused == report.refused
    data = HDF5Dataset(path)
    assert len(data) == report.num_labelled == 31
    assert max(np.linalg.norm(s.forces, axis=1).max() for s in data) <= 30
    assert data[0].info == {"group": "g0"}
    assert data[0].stress is not None
    kept = label_dataset(
        mixed(40), teacher_of(Slow()), tmp_path / "b.h5", max_force=None, progress=False
    )
    assert kept.num_labelled == 36


def test_rejects_by_the_length_of_a_force(tmp_path) -> None:
    """Not by its components, of whatever sign."""
    along = np.array([1.0, 1.0, 1.0]) / np.sqrt(3.0)
    pair = Structure([29, 29], [[0.0] * 3, 1.6 * along])
    force = np.linalg.norm(get_teacher("emt").label([pair])[0].forces, axis=1).max()
    for limit, kept in ((1.01 * force, 1), (0.9 * force, 0)):
        report = label_dataset(
            [pair, Structure([29], [[0.0] * 3])], get_teacher("emt"), tmp_path / f"{kept}.h5",
            max_force=limit, progress=False,
        )  # fmt: skip
        assert report.num_labelled == 1 + kept


def test_labels_have_no_memory_of_the_frame_before() -> None:
    class Warm(EMT):
        """Starts from where the last calculation ended, unless it is reset."""

        warm = False

        def reset(self) -> None:
            super().reset()
            self.warm = False

        def calculate(self, atoms=None, properties=("energy",), changes=all_changes) -> None:
            super().calculate(atoms, properties, changes)
            self.results["energy"] += 1e-3 * self.warm
            self.warm = True

    structures = copies(COPPER, 3)
    labels = [s.energy for s in teacher_of(Warm()).label(structures)]
    assert labels == [s.energy for s in get_teacher("emt").label(structures)]


@pytest.mark.parametrize("calls", [1, 8, 25])
def test_ctrl_c_then_resume_equals_uninterrupted(tmp_path, uninterrupted, calls: int) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt):
        label_dataset(mixed(40), teacher_of(Slow(0, calls)), path, batch_size=3, progress=False)
    assert not journal_path(path).exists()
    calculator = Slow()
    report = label_dataset(mixed(40), teacher_of(calculator), path, batch_size=3, progress=False)
    assert contents(path) == uninterrupted
    assert report.num_resumed % 3 == 0
    assert (0 if calls < 4 else 3) <= report.num_resumed < calls
    again = Slow()
    report = label_dataset(mixed(40), teacher_of(again), path, progress=False)
    assert (again.calls, report.num_resumed, report.num_labelled) == (0, 40, 31)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_signals_then_resume_equals_uninterrupted(tmp_path, uninterrupted, number) -> None:
    path = tmp_path / "a.h5"
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            label_dataset(mixed(40), teacher_of(Slow(0.02)), path, batch_size=3, progress=False)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if journal_path(path).exists() and journal_path(path).stat().st_size > 10_000:
            break
        time.sleep(0.005)
    os.kill(pid, number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (130 if number == signal.SIGINT else -number)
    done = HDF5Dataset(path).progress["done"]
    assert 3 <= done < 40
    report = label_dataset(mixed(40), teacher_of(Slow()), path, batch_size=3, progress=False)
    assert report.num_resumed == done
    assert contents(path) == uninterrupted


def test_other_structures_or_teachers_do_not_mix(tmp_path) -> None:
    path = tmp_path / "a.h5"
    label_dataset(copies(COPPER, 3), get_teacher("emt"), path, progress=False)
    with pytest.raises(InputError, match=r"same structures to go on.*--no-resume"):
        label_dataset(copies(COPPER, 4), get_teacher("emt"), path, progress=False)
    with pytest.raises(InputError, match="labelled by 'emt', got 'slow'"):
        label_dataset(copies(COPPER, 3), teacher_of(Slow()), path, progress=False)
    label_dataset(copies(COPPER, 4), teacher_of(Slow()), path, resume=False, progress=False)
    assert len(HDF5Dataset(path)) == 4


def largest_force(path: Path) -> float:
    return max(float(np.linalg.norm(s.forces, axis=1).max()) for s in HDF5Dataset(path))


def test_another_max_force_does_not_keep_the_old_choice(tmp_path) -> None:
    path, frames = tmp_path / "a.h5", mixed(12)
    first = label_dataset(frames, teacher_of(Slow()), path, max_force=None, progress=False)
    assert largest_force(path) > 30
    with pytest.raises(MismatchError, match=r"max_force 30.0 to go on, got None; .*--no-resume"):
        label_dataset(frames, teacher_of(Slow()), path, progress=False)
    report = label_dataset(frames, teacher_of(Slow()), path, on_mismatch="restart", progress=False)
    assert report.num_resumed == 0
    assert report.num_labelled == len(HDF5Dataset(path)) < first.num_labelled
    assert largest_force(path) <= 30
    kept = HDF5Dataset(tmp_path / "a.h5.old")
    assert len(kept) == first.num_labelled
    again = label_dataset(frames, teacher_of(Slow()), path, on_mismatch="restart", progress=False)
    assert again.num_resumed == len(frames)


def test_a_file_of_an_older_version_must_keep_to_the_limit(tmp_path, monkeypatch) -> None:
    """It does not say which limit it was made with."""
    real = HDF5Writer.append

    def append(self, structures, *, progress):
        real(self, structures, progress={k: v for k, v in progress.items() if k != "max_force"})

    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        patch.setattr(HDF5Writer, "append", append)
        label_dataset(mixed(8), teacher_of(Slow()), path, max_force=1000.0, progress=False)
    largest = largest_force(path)
    report = label_dataset(
        mixed(8), teacher_of(Slow()), path, max_force=1.1 * largest, progress=False
    )
    assert report.num_resumed == 8
    with pytest.raises(MismatchError, match=f"got a force of {largest:.3g} eV/Å"):
        label_dataset(mixed(8), teacher_of(Slow()), path, max_force=0.9 * largest, progress=False)


def test_another_teacher_restarts_where_that_is_asked_for(tmp_path) -> None:
    path = tmp_path / "a.h5"
    label_dataset(copies(COPPER, 3), get_teacher("emt"), path, progress=False)
    label_dataset(
        copies(COPPER, 3), teacher_of(Slow()), path, on_mismatch="restart", progress=False
    )
    assert HDF5Dataset(path).teacher == "slow"
    assert HDF5Dataset(tmp_path / "a.h5.old").teacher == "emt"


def test_hopeless_input_is_refused(tmp_path) -> None:
    path = tmp_path / "a.h5"
    for structures, part in [
        ([], "at least one structure"),
        ([SILICON], "emt does not know Si"),
        ([Structure([29], [[np.nan, 0, 0]])], "structure 0: positions"),
    ]:
        with pytest.raises(InputError, match=part):
            label_dataset(structures, get_teacher("emt"), path, progress=False)
        assert not path.exists()
    far = Structure([29], [[100.0, 0, 0]])
    with pytest.raises(InputError, match=r"no structure could be labelled.*did not converge"):
        label_dataset([far], teacher_of(Slow()), path, progress=False)


def test_progress_as_lines_as_a_bar_and_as_calls(tmp_path) -> None:
    calls: list[tuple[int, int]] = []
    structures = copies(COPPER, 5)
    label_dataset(
        structures, get_teacher("emt"), tmp_path / "a.h5", batch_size=2,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(0, 5), (2, 5), (4, 5), (5, 5)]
    for terminal in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=80)
        path = tmp_path / f"{terminal}.h5"
        label_dataset(structures, get_teacher("emt"), path, batch_size=2, console=console)
        assert "label with emt" in text.getvalue()
        assert "5/5" in text.getvalue()
        assert ("\x1b[" in text.getvalue()) == terminal
