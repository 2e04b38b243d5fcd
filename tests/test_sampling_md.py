"""Molecular dynamics of sampling against what mechanics says: every setting has its effect."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from mlff_distiller.config import SamplingConfig
from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import sample
from mlff_distiller.sampling.dynamics import HOT, LARGE_FORCE
from mlff_distiller.sampling.geometry import closest_ratio
from mlff_distiller.sampling.rattle import CLOSE_CONTACT

COPPER = Structure.from_atoms(bulk("Cu", cubic=True) * (3, 3, 3))
MASS = COPPER.to_atoms().get_masses()[0]
FRICTION = 0.01  # 1/fs


class Free(Calculator):
    """No forces. Counts its calls."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]
    calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        self.results = {"energy": 0.0, "forces": self.forces(atoms.get_positions())}

    def forces(self, positions: np.ndarray) -> np.ndarray:
        return np.zeros_like(positions)


class Springs(Free):
    """Forces towards the sites of ``COPPER``, eV/Å."""

    constant = 5.0

    def forces(self, positions: np.ndarray) -> np.ndarray:
        return -self.constant * (positions - COPPER.positions)


def config(**changes: object) -> SamplingConfig:
    defaults = {
        "num_rattle": 0, "num_md": 10, "md_warmup": 0, "md_interval": 1, "max_strain": 0.0,
        "md_temperatures": [600.0], "md_timestep": 2.0, "min_distance": 0.1,
    }  # fmt: skip
    return SamplingConfig(**{**defaults, **changes})  # type: ignore[arg-type]


def rms(away: np.ndarray) -> float:
    return float(np.sqrt(np.mean(away**2)))


def thermal(temperature: float) -> float:
    """Root mean square of a component of the velocity, Å/fs."""
    return float(np.sqrt(units.kB * temperature / MASS)) * units.fs


@pytest.mark.parametrize("timestep", [0.5, 2.0])
@pytest.mark.parametrize("temperature", [150.0, 600.0])
def test_first_frame_is_a_time_step_away(timestep: float, temperature: float) -> None:
    """Δx = v Δt with the velocities of twice the temperature, of which a crystal gives half away."""
    settings = config(num_md=1, md_timestep=timestep, md_temperatures=[temperature])
    (frame,) = sample([COPPER], settings, Free())
    expected = thermal(2 * temperature) * timestep
    # 324 components: a standard deviation of 4 %.
    assert rms(frame.positions - COPPER.positions) == pytest.approx(expected, rel=0.13)


def flown(time: float, temperature: float) -> float:
    """Root mean square of free Langevin flight from velocities of twice the temperature, Å."""
    # <x²> = T-part of an Ornstein-Uhlenbeck process + excess of the start.
    decay = np.exp(-FRICTION * time)
    v2 = thermal(temperature) ** 2
    equilibrium = 2 * v2 / FRICTION**2 * (FRICTION * time - 1 + decay)
    return float(np.sqrt(equilibrium + v2 * ((1 - decay) / FRICTION) ** 2))


@pytest.mark.parametrize(("warmup", "interval"), [(0, 40), (40, 1), (80, 20)])
def test_warm_up_and_interval_pass_before_a_frame(warmup: int, interval: int) -> None:
    calculator = Free()
    settings = config(num_md=2, md_warmup=warmup, md_interval=interval)
    first, second = sample([COPPER], settings, calculator)
    away = rms(first.positions - COPPER.positions)
    assert away == pytest.approx(flown(2.0 * (warmup + interval), 600.0), rel=0.15)
    whole = rms(second.positions - COPPER.positions)
    assert whole == pytest.approx(flown(2.0 * (warmup + 2 * interval), 600.0), rel=0.15)
    assert warmup + 2 * interval <= calculator.calls <= warmup + 2 * interval + 4


def test_velocities_settle_at_the_temperature() -> None:
    """One frame a step: Δx/Δt after ten relaxation times."""
    settings = config(num_md=10, md_warmup=500, md_temperatures=[900.0])
    frames = sample([COPPER], settings, Free())
    steps = np.diff([s.positions for s in frames], axis=0)
    assert rms(steps) == pytest.approx(thermal(900.0) * 2.0, rel=0.13)


def test_the_centre_of_mass_is_not_thrown() -> None:
    (frame,) = sample([COPPER], config(num_md=1), Free())
    drift = (frame.positions - COPPER.positions).mean(axis=0)
    # One kick of the thermostat alone: a tenth of a thermal velocity, shared by 108 atoms.
    assert np.abs(drift).max() < 0.2 * thermal(600.0) * 2.0 / np.sqrt(len(COPPER))


def test_frames_above_max_force_are_left_out() -> None:
    settings = {"num_md": 10, "md_warmup": 60, "md_interval": 3, "md_temperatures": [900.0]}
    frames = sample([COPPER], config(**settings), Springs())
    largest = [np.linalg.norm(Springs().forces(s.positions), axis=1).max() for s in frames]
    limit = float(np.sort(largest)[4])
    rejected: Counter[str] = Counter()
    kept = sample([COPPER], config(**settings, max_force=limit), Springs(), rejected=rejected)
    assert rejected[LARGE_FORCE] > 0
    for s in kept:
        assert np.linalg.norm(Springs().forces(s.positions), axis=1).max() <= limit
    with pytest.raises(InputError, match="force above max_force in molecular dynamics"):
        sample([COPPER], config(**settings, max_force=0.01), Springs())


def test_frames_with_close_contacts_are_left_out() -> None:
    nearest = closest_ratio(COPPER)
    assert nearest < 0.98
    rejected: Counter[str] = Counter()
    settings = config(num_rattle=1, rattle_stdev=[0.0], num_md=5, min_distance=nearest - 1e-6)
    sample([COPPER], settings, Free(), rejected=rejected)
    assert rejected == {CLOSE_CONTACT: 5}


def test_a_run_that_heats_up_is_stopped_though_all_is_finite() -> None:
    class Wind(Free):
        def forces(self, positions: np.ndarray) -> np.ndarray:
            return np.full_like(positions, 5.0)  # far below max_force, and no atom comes nearer

    rejected: Counter[str] = Counter()
    settings = config(num_rattle=1, rattle_stdev=[0.0], num_md=5, md_warmup=60)
    frames = sample([COPPER], settings, Wind(), rejected=rejected)
    assert {s.info["source"] for s in frames} == {"rattle"}
    assert rejected == {HOT: 5}


def test_a_ladder_shares_its_frames_and_names_its_rungs() -> None:
    frames = sample([COPPER], config(num_md=5, md_temperatures=[300.0, 600.0, 900.0]), Free())
    assert Counter(s.info["temperature"] for s in frames) == {300.0: 2, 600.0: 2, 900.0: 1}
    assert {s.info["source"] for s in frames} == {"md"}
    starts = [s for i, s in enumerate(frames) if i in (0, 2, 4)]
    away = [rms(s.positions - COPPER.positions) for s in starts]
    assert np.array(away) / away[0] == pytest.approx(np.sqrt([1, 2, 3]), rel=0.2)
    noise = [(s.positions - COPPER.positions).ravel() for s in starts]
    assert np.abs(np.corrcoef(noise)[np.triu_indices(3, 1)]).max() < 0.25  # not the same numbers


def test_later_segments_are_strained_by_half_of_the_largest_strain() -> None:
    settings = config(num_md=60, max_strain=0.04, md_timestep=0.1)
    frames = sample([COPPER], settings, Free())
    cells = {s.info["group"]: s.cell for s in frames}
    strains = np.array([np.linalg.solve(COPPER.cell, c) - np.eye(3) for c in cells.values()])
    np.testing.assert_allclose(strains[0], 0.0, atol=1e-12)
    assert 0.014 < np.abs(strains[1:]).max() <= 0.02 + 1e-12
    for strain in strains:
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)
    unstrained = sample([COPPER], config(num_md=60, md_timestep=0.1), Free())
    assert all(np.array_equal(s.cell, COPPER.cell) for s in unstrained)


def test_segments_take_the_starting_structures_in_turn() -> None:
    other = Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 2))
    frames = sample([COPPER, other], config(num_md=40), Free())
    assert [s.info["parent"] for s in frames] == [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10
    assert [len(s) for s in frames[9:11]] == [108, 32]


def test_seeds_differ_in_velocities_and_in_the_noise() -> None:
    """At the end nothing is left of the first velocities; what differs then is the noise."""
    ends = []
    for seed in (0, 0, 1):
        frames = sample([COPPER], config(num_md=2, md_warmup=800, seed=seed), Free())
        ends.append((frames[1].positions - frames[0].positions).ravel())
    np.testing.assert_array_equal(ends[0], ends[1])
    assert abs(np.corrcoef(ends[0], ends[2])[0, 1]) < 0.25


def test_progress_counts_the_frames() -> None:
    calls: list[tuple[int, int]] = []
    sample([COPPER], config(num_md=3), Free(), progress=lambda *state: calls.append(state))
    assert calls == [(1, 3), (2, 3), (3, 3)]
