"""Kinds of sampling that the teacher drives: normal modes, pressures, melt and quench."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.vibrations import Vibrations
from support.calculators import Counting

from mlff_distiller.config import SamplingConfig, from_dict
from mlff_distiller.data import Structure, structures_hash
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import PartialFrames, builtin, count_sources, sample
from mlff_distiller.sampling.geometry import closest_ratio
from mlff_distiller.sampling.modes import hessian, normal_modes

COPPER = Structure.from_atoms(bulk("Cu", cubic=True))


def settings(**changes: object) -> SamplingConfig:
    return from_dict(SamplingConfig, {"num_rattle": 0, "num_md": 0, **changes})


class Elastic(Calculator):
    """No forces between atoms; a bulk modulus of 50 GPa around the volume V0 of ``COPPER``."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]
    modulus = 50 * units.GPa
    volume = float(np.linalg.det(COPPER.cell))

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        x = atoms.get_volume() / self.volume
        slope = self.modulus * np.log(x)
        self.results = {
            "energy": self.modulus * self.volume * (x * np.log(x) - x + 1),
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.array([slope] * 3 + [0.0] * 3),
        }


# --- normal modes ------------------------------------------------------------------------------


def forces_of(structure: Structure) -> np.ndarray:
    atoms = structure.to_atoms(labels=False)
    atoms.calc = EMT()
    return atoms.get_forces()


@pytest.mark.parametrize("name", ["H2O", "CO2", "C2H6"])
def test_modes_are_those_of_ase(name: str, tmp_path: Path) -> None:
    from ase.optimize import BFGS

    atoms = molecule(name)
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-4, steps=400)
    structure = Structure.from_atoms(atoms, labels=False)
    matrix = hessian(structure, forces_of, step=0.01)
    squares, modes = normal_modes(structure, matrix)
    linear = name == "CO2"
    assert len(squares) == 3 * len(atoms) - (5 if linear else 6)
    np.testing.assert_allclose(modes @ modes.T, np.eye(len(modes)), atol=1e-9)
    vibrations = Vibrations(atoms, name=str(tmp_path / "v"), delta=0.01)
    vibrations.run()
    wanted = np.sort(vibrations.get_energies().real)[-len(squares) :]
    hbar = units._hbar * units.J * units.second
    np.testing.assert_allclose(hbar * np.sqrt(np.maximum(squares, 0)), wanted, rtol=1e-3, atol=2e-3)


def test_amplitudes_follow_the_temperature() -> None:
    """Equipartition: in a harmonic solid each of 3 N - 3 modes holds kT / 2 of potential energy."""
    temperature = 20.0  # the solid is harmonic there
    config = settings(modes={"number": 150, "temperatures": [temperature]})
    frames = sample([COPPER], config, EMT())
    assert count_sources(frames) == {"modes": 150}

    def energy(s: Structure) -> float:
        atoms = s.to_atoms()
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    raised = np.mean([energy(s) for s in frames]) - energy(COPPER)
    assert raised == pytest.approx(9 * units.kB * temperature / 2, rel=0.12)
    centre = np.array([s.positions.mean(axis=0) for s in frames]) - COPPER.positions.mean(axis=0)
    np.testing.assert_allclose(centre, 0.0, atol=1e-9)


def test_modes_of_held_atoms_and_large_structures() -> None:
    fixed = np.zeros((4, 3), dtype=bool)
    fixed[0] = True
    base = Structure(COPPER.atomic_numbers, COPPER.positions, COPPER.cell, [True] * 3, fixed=fixed)
    frames = sample([base], settings(modes={"number": 4}), EMT())
    assert [s.info["temperature"] for s in frames] == [300.0, 900.0] * 2
    for s in frames:
        np.testing.assert_array_equal(s.positions[0], COPPER.positions[0])
        assert np.abs(s.positions[1:] - COPPER.positions[1:]).max() > 0.01
    with pytest.raises(InputError, match="at most 3 atoms, got none"):
        sample([COPPER], settings(modes={"number": 4, "max_atoms": 3}), EMT())
    large = Structure.from_atoms(bulk("Cu", cubic=True) * (3, 3, 3))
    assert {len(s) for s in sample([large], settings(modes={"number": 3}), EMT())} == {32}
    both = sample([COPPER, builtin("ethanol")[0]], settings(modes={"number": 5}), EMT())
    assert Counter(s.info["parent"] for s in both) == {0: 3, 1: 2}


def test_a_hessian_is_not_computed_twice(tmp_path: Path) -> None:
    config = settings(modes={"number": 4}, num_md=2, md_warmup=1, md_interval=1)
    whole = sample([COPPER], config, EMT())
    with pytest.raises(KeyboardInterrupt), PartialFrames(tmp_path / "a.h5", {}) as partial:
        sample([COPPER], config, Counting(24 + 3), partial=partial)
    calculator = Counting()
    with PartialFrames(tmp_path / "a.h5", {}) as partial:
        again = sample([COPPER], config, calculator, partial=partial)
    assert calculator.calls < 24
    assert structures_hash(again) == structures_hash(whole)


# --- pressure ----------------------------------------------------------------------------------


def test_volumes_follow_the_pressure() -> None:
    config = settings(
        num_md=120, md_pressures=[0.0, 5.0], md_temperatures=[100.0], md_timestep=2.0,
        md_warmup=100, md_interval=10, min_distance=0.1,
    )  # fmt: skip
    frames = sample([COPPER], config, Elastic())
    assert [s.info["pressure"] for s in frames] == [0.0] * 60 + [5.0] * 60
    for pressure in (0.0, 5.0):
        late = [s for s in frames if s.info["pressure"] == pressure][20:]
        volume = np.mean([np.linalg.det(s.cell) for s in late]) / Elastic.volume
        # p = -B ln(V / V0), less that of the four free atoms, 4 kT / V.
        kinetic = 4 * units.kB * 100.0 / Elastic.volume / units.GPa
        assert volume == pytest.approx(np.exp(-(pressure - kinetic) / 50), abs=0.012)
    assert len({s.info["group"] for s in frames}) == 12


def test_volumes_go_on_from_segment_to_segment_and_do_not_overshoot() -> None:
    config = settings(
        num_md=20, md_pressures=[20.0], md_temperatures=[100.0], md_timestep=1.0, md_warmup=0,
        md_interval=5, min_distance=0.1,
    )  # fmt: skip
    volumes = [np.linalg.det(s.cell) for s in sample([COPPER], config, Elastic())]
    volumes = np.array(volumes) / Elastic.volume
    assert np.all(np.diff(volumes) < 0.005)
    assert volumes[0] > 0.99
    assert volumes[9] < 0.9
    assert volumes[-1] > np.exp(-20 / 50)


def test_pressures_and_what_cannot_have_them(tmp_path: Path) -> None:
    config = settings(
        num_md=8, md_pressures=[0.0, 2.0], md_temperatures=[300.0, 600.0], md_warmup=2,
        md_interval=1,
    )  # fmt: skip
    frames = sample([COPPER], config, EMT())
    assert [(s.info["temperature"], s.info["pressure"]) for s in frames] == [
        (t, p) for t in (300.0, 600.0) for p in (0.0, 2.0) for _ in range(2)
    ]
    assert structures_hash(frames) == structures_hash(sample([COPPER], config, EMT()))
    (ethanol,) = builtin("ethanol")
    mixed = sample([ethanol, COPPER], config, EMT())
    assert {"pressure" in s.info for s in mixed if s.info["parent"] == 0} == {False}
    with pytest.raises(InputError, match=r"constant pressure needs a starting structure"):
        sample([ethanol], config, EMT())

    class Stressless(Elastic):
        implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    with pytest.raises(InputError, match=r"with stress, got Stressless; set sampling\.md_press"):
        sample([COPPER], config, Stressless())


# --- melt and quench ---------------------------------------------------------------------------

HOT = {
    "number": 12, "melt_temperature": 4000.0, "heat_steps": 60, "hold_steps": 120,
    "quench_steps": 120,
}  # fmt: skip


def test_a_melt_goes_through_its_schedule() -> None:
    base = Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 1))
    melt = {**HOT, "melt_temperature": 9000.0, "heat_steps": 120, "hold_steps": 240}
    melt["quench_steps"] = 240
    frames = sample([base], settings(melt=melt, md_timestep=3.0, min_distance=0.2), EMT())
    assert count_sources(frames) == {
        "melt (heat)": 2, "melt (liquid)": 5, "melt (quench)": 5
    }  # fmt: skip
    temperatures = [s.info["temperature"] for s in frames]
    assert temperatures[0] < temperatures[1] < 9000
    assert temperatures[2:7] == [9000.0] * 5
    assert np.all(np.diff(temperatures[6:]) < 0)
    assert [s.info["step"] for s in frames] == list(range(50, 601, 50))
    assert {s.info["group"] for s in frames} == {"base-0/melt-0"}
    away = [np.linalg.norm(s.positions - base.positions, axis=1).mean() for s in frames]
    assert away[6] > 1.0  # it flows
    assert min(closest_ratio(s) for s in frames) >= 0.2
    for s in frames:
        np.testing.assert_array_equal(s.cell, base.cell)


def test_a_melt_goes_on_leg_by_leg(tmp_path: Path) -> None:
    config = settings(melt={**HOT, "runs": 2, "number": 8}, min_distance=0.2)
    whole = Counting()
    frames = sample([COPPER], config, whole)
    assert Counter(s.info["group"] for s in frames) == {"base-0/melt-0": 4, "base-0/melt-1": 4}
    assert not np.allclose(frames[0].positions, frames[4].positions)
    stop = Counting(int(0.8 * whole.calls))
    with pytest.raises(KeyboardInterrupt), PartialFrames(tmp_path / "a.h5", {}) as partial:
        sample([COPPER], config, stop, partial=partial)
    last = Counting()
    with PartialFrames(tmp_path / "a.h5", {}) as partial:
        again = sample([COPPER], config, last, partial=partial)
    assert structures_hash(again) == structures_hash(frames)
    assert last.calls < 0.4 * whole.calls


def test_close_pairs_of_a_melt_are_left_out_and_counted() -> None:
    """The run goes on from them: later frames are the same."""
    counted: Counter[str] = Counter()
    melt = {**HOT, "number": 6}
    loose = sample([COPPER], settings(melt=melt, min_distance=0.1), EMT())
    strict = sample([COPPER], settings(melt=melt, min_distance=0.81), EMT(), rejected=counted)
    assert len(loose) == 6
    assert 0 < len(strict) < 6
    assert counted == {"atoms too close": 6 - len(strict)}
    wanted = [s for s in loose if closest_ratio(s) >= 0.81]
    assert structures_hash(strict) == structures_hash(wanted)
    assert [s.info for s in strict] == [s.info for s in wanted]


def test_melts_under_pressure_and_what_is_refused() -> None:
    config = settings(melt={**HOT, "number": 4, "pressure": 1.0}, min_distance=0.2)
    frames = sample([COPPER], config, EMT())
    assert len({np.linalg.det(s.cell) for s in frames}) == 4
    with pytest.raises(InputError, match=r"set sampling\.melt\.number to 0"):
        sample(builtin("ethanol"), config, EMT())
    with pytest.raises(InputError, match=r"sampling\.melt \(4 frames\) needs a calculator"):
        sample([COPPER], config)
