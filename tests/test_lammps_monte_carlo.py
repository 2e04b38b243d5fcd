"""Atoms that are taken out of all pairs, and the Monte Carlo fixes of LAMMPS that rely on it.

``fix gcmc`` takes the energy of a trial deletion with the atom in a group that is excluded from
group all. Its reference energy must then be gone, or every acceptance is wrong by that factor.

Averages are compared with exact ones at five standard errors, from blocks of one series. Seeds are
fixed, so each test gives the same numbers every time.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.units import _amu, _hplanck, _k, kB
from support.backends import needs_lammps
from support.lammps import (
    EXACT,
    Run,
    assert_same,
    evaluate,
    glass_of,
    reference,
    run_lmp,
    script_of,
    write_student,
)
from support.students import make_student
from support.systems import System

from mlff_distiller.students.export import export_student

pytestmark = needs_lammps

ARGON = 18


# --- excluded atoms ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    return path, write_student(path)


def without(system: System, gone: np.ndarray) -> System:
    return replace(system, numbers=system.numbers[~gone], positions=system.positions[~gone])


#: Ways to take atoms 4, 11, 12 and 30 out of all pairs, or all oxygen. Some of them are neighbours.
SOME = "group gone id 5 12 13 31\n"
EXCLUSIONS = {
    "all": SOME + "neigh_modify exclude group all gone",
    "reversed": SOME + "neigh_modify exclude group gone all",
    "both": "group a id 5 12\ngroup b id 13 31\nneigh_modify exclude group all a\n"
    "neigh_modify exclude group b all",
    "types": "neigh_modify exclude type 2 1\nneigh_modify exclude type 2 2",
    "include": SOME + "group kept subtract all gone\natom_modify first kept\n"
    "neigh_modify include kept",
    "null": SOME + "neigh_modify exclude group all gone",
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("centroid", [False, True])
def test_atoms_excluded_from_all_pairs_contribute_nothing(model, tmp_path, ranks, centroid):
    glass = glass_of(36, [9.3, 8.4, 9.9])
    runs, expected = [], {}
    for name, lines in EXCLUSIONS.items():
        gone = np.isin(np.arange(36), (4, 11, 12, 30))
        if name == "types":
            gone = glass.numbers == 8
        if name == "null":
            gone = gone | (glass.numbers == 8)
        expected[name] = (gone, reference(model[1], without(glass, gone)))
        names = {"names": "Si NULL"} if name == "null" else {}
        runs.append(Run(name, glass, model[0], after=lines, centroid=centroid, **names))
    done = run_lmp(tmp_path, "".join(script_of(run, tmp_path) for run in runs), ranks)
    assert "hides pairs" not in done.output
    for name, got in evaluate(runs, tmp_path, ranks).items():
        gone, want = expected[name]
        assert np.all(got.energies[gone] == 0.0), name
        if name != "include":  # LAMMPS never clears the forces of atoms outside that group
            assert np.all(got.forces[gone] == 0.0), name
        part = replace(got, energies=got.energies[~gone], forces=got.forces[~gone])
        assert_same(part, want)
        np.testing.assert_allclose(part.energies, want.energies, atol=1e-8, rtol=0)


def test_images_of_an_excluded_atom_are_gone_as_well(model, tmp_path):
    """In a box shorter than the cutoff an atom is its own neighbour; nothing may be left of it."""
    tiny = glass_of(3, [3.1, 2.9, 3.3], distance=1.2, seed=3)
    gone = np.array([False, True, False])
    lines = "group gone id 2\nneigh_modify exclude group gone all"
    for ranks in (1, 2):
        got = evaluate([Run("t", tiny, model[0], after=lines)], tmp_path, ranks)["t"]
        assert got.energies[1] == 0.0
        assert abs(got.energy - reference(model[1], without(tiny, gone)).energy) < 1e-8


@pytest.mark.parametrize(
    ("lines", "hidden"),
    [
        ("neigh_modify exclude type 1 2", True),
        ("neigh_modify exclude type 1 1", True),
        ("group a id 1:9\nneigh_modify exclude group a a", True),
        ("neigh_modify exclude type 2 1\nneigh_modify exclude type 2 2", False),
        ("group a id 1:9\nneigh_modify exclude group a all", False),
    ],
)
def test_a_warning_where_some_pairs_are_hidden(model, tmp_path, lines, hidden):
    """A rigid framework whose own pairs are excluded keeps its energy, gas or no gas."""
    glass = glass_of(36, [9.3, 8.4, 9.9])
    done = run_lmp(tmp_path, script_of(Run("w", glass, model[0], after=lines), tmp_path), 2)
    assert done.returncode == 0
    assert done.output.count("WARNING: neigh_modify exclude hides pairs") == hidden


def test_a_framework_that_does_not_see_itself_keeps_its_reference_energies(model, tmp_path):
    glass = glass_of(36, [9.3, 8.4, 9.9])
    lines = "group frame id 1:36\nneigh_modify exclude group frame frame"
    got = evaluate([Run("f", glass, model[0], after=lines)], tmp_path)["f"]
    free = [
        reference(model[1], System(np.array([z]), np.full((1, 3), 9.0), np.diag([18.0] * 3)))
        for z in glass.numbers
    ]
    assert abs(got.energy - sum(v.energy for v in free)) < 1e-8


# --- Monte Carlo --------------------------------------------------------------------------------
def write_argon(path: Path, free: float, scale: float, cutoff: float = 4.0):
    """A student of argon whose free atom has the energy ``free``, eV; scale 0: no interaction."""
    options = {
        "scale": scale, "seed": 1, "cutoff": cutoff, "hidden_dim": 8, "num_interactions": 2,
        "zbl": scale > 0.0,
    }  # fmt: skip
    student = make_student((ARGON,), energies=[0.0], **options)
    atom = System(np.array([ARGON]), np.full((1, 3), 9.0), np.diag([18.0] * 3))
    student = make_student((ARGON,), energies=[free - reference(student, atom).energy], **options)
    assert abs(reference(student, atom).energy - free) < 1e-12
    export_student(student, path)
    return student


def chemical_potential(density: float, temperature: float, mass: float, free: float) -> float:
    """mu in eV of free particles of ``density`` 1/Å^3, counted from the energy that a model gives."""
    wavelength = 1e10 * _hplanck / np.sqrt(2 * np.pi * mass * _amu * _k * temperature)
    return float(kB * temperature * np.log(density * wavelength**3) + free)


def mean_and_error(series: np.ndarray, blocks: int = 20) -> tuple[float, float]:
    """Mean of a correlated series and its standard error from the scatter of blocks."""
    means = np.array([part.mean() for part in np.array_split(series, blocks)])
    return float(series.mean()), float(means.std(ddof=1) / np.sqrt(blocks))


def series_of(output: str) -> np.ndarray:
    """Columns behind the step of all lines ``SERIES ...``."""
    lines = re.findall(r"^SERIES (.*)$", output, re.MULTILINE)
    return np.array([[float(v) for v in line.split()] for line in lines])


GAS = """
units metal
atom_style {style}
boundary p p p
region box block 0 {length} 0 {length} 0 {length}
create_box 1 box {extra}
{atoms}
mass 1 39.948
pair_style painn precision double
pair_coeff * * {model} Ar
neighbor 0.5 bin
neigh_modify delay 0 every 1 check yes
compute_modify thermo_temp dynamic/dof yes
variable n equal atoms
{fix}
thermo 100000
thermo_modify lost ignore
fix out all print 1 "SERIES {columns}" screen yes
run {steps}
"""


def gas(folder: Path, ranks: int, **fields) -> tuple[np.ndarray, str]:
    defaults = {"style": "atomic", "extra": "", "length": 15, "columns": "$n", "atoms": ""}
    done = run_lmp(folder, GAS.format(**{**defaults, **fields}), ranks)
    assert done.returncode == 0, done.output[-3000:]
    assert "hides pairs" not in done.output
    return series_of(done.output), done.output


@pytest.mark.parametrize(("ranks", "steps"), [(1, 1500), (2, 400)])
def test_gcmc_of_an_ideal_gas_for_any_energy_of_the_free_atom(tmp_path, ranks, steps):
    temperature, wanted, length = 300.0, 10.0, 15.0
    results = {}
    for free in (0.0, -3.0, 2.5):
        write_argon(tmp_path / "argon.pt", free, 0.0)
        mu = chemical_potential(wanted / length**3, temperature, 39.948, free)
        # LAMMPS takes full_energy by itself where a style has no energy of single pairs
        keyword = "full_energy" if free else ""
        series, output = gas(
            tmp_path,
            ranks,
            model="argon.pt",
            atoms="create_atoms 1 random 10 12345 box overlap 1.0 maxtry 1000",
            fix=f"fix 1 all gcmc 1 20 10 1 71 {temperature} {mu!r} 0.5 {keyword}",
            steps=steps,
        )
        assert ("Fix gcmc using full_energy option" in output) == (not free)
        results[free] = series[50:, 0]
        mean, error = mean_and_error(results[free])
        assert error < 0.07 * wanted
        assert abs(mean - wanted) < 5 * error
        # Poisson: the variance is the mean
        assert abs(results[free].var() / wanted - 1.0) < 0.3
    # The reference energy cancels: the same random numbers give the same decisions.
    np.testing.assert_array_equal(results[0.0], results[-3.0])
    np.testing.assert_array_equal(results[0.0], results[2.5])


def boltzmann_factor(student, temperature: float, length: float) -> float:
    """Mean of exp(-(E(host + atom) - E(host)) / kT + E(free) / kT) over the box around a host."""
    radii = np.linspace(0.0, 4.0, 161)[1:]
    energies = []
    for r in radii:
        pair = np.array([[9.0, 9, 9], [9.0 + r, 9, 9]])
        system = System(np.array([ARGON, ARGON]), pair, np.diag([18.0] * 3))
        energies.append(reference(student, system).energy)
    interaction = np.array(energies) - energies[-1]  # nothing is left at the cutoff
    f = np.exp(-interaction / (kB * temperature)) - 1.0
    values = np.concatenate([[0.0], 4 * np.pi * radii**2 * f])
    return 1.0 + float(np.trapezoid(values, dx=radii[0])) / length**3


TEMPERATURE, LENGTH, FREE = 3000.0, 10.0, -3.0


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A student with interactions, and the exact mean of its Boltzmann factor around one atom."""
    path = tmp_path_factory.mktemp("host") / "argon.pt"
    student = write_argon(path, FREE, 3.0)
    factor = boltzmann_factor(student, TEMPERATURE, LENGTH)
    assert abs(factor - 1.0) > 0.1, factor  # or the test would see no interaction
    return path, factor


@pytest.mark.parametrize(("ranks", "steps"), [(1, 2500), (2, 1000)])
def test_gcmc_around_a_host(host, tmp_path, ranks, steps):
    """P(1) / P(0) is exact: one gas atom in the field of one host."""
    path, factor = host
    ratio = 0.7
    density = ratio / factor / LENGTH**3
    mu = chemical_potential(density, TEMPERATURE, 39.948, FREE)
    script = GAS.replace("create_box 1 box", "create_box 2 box").replace(
        "mass 1 39.948", "mass * 39.948"
    )
    fields = {
        "style": "atomic", "extra": "", "length": LENGTH, "columns": "$n", "steps": steps,
        "atoms": "create_atoms 2 single 4.9 5.1 5.2", "model": f"{path} Ar",
        "fix": f"group gas type 1\nfix 1 gas gcmc 1 20 10 1 29 {TEMPERATURE} {mu!r} 1.0 full_energy",
    }  # fmt: skip
    done = run_lmp(tmp_path, script.format(**fields), ranks)
    assert done.returncode == 0, done.output[-3000:]
    counts = series_of(done.output)[20:, 0] - 1
    one, zero = (counts == 1).astype(float), (counts == 0).astype(float)
    assert zero.mean() > 0.2
    difference, error = mean_and_error(one - ratio * zero)
    assert error < 0.05
    assert abs(difference) < 5 * error, (one.mean() / zero.mean(), ratio)


@pytest.mark.parametrize("ranks", [1, 2])
def test_widom_insertion_around_a_host(host, tmp_path, ranks):
    path, factor = host
    series, _ = gas(
        tmp_path,
        ranks,
        model=path,
        length=LENGTH,
        atoms="create_atoms 1 single 4.9 5.1 5.2",
        fix=f"fix 1 all widom 1 100 1 29 {TEMPERATURE}\nvariable b equal f_1[2]\n"
        "variable mu equal f_1[1]",
        columns="$b $(v_mu:%.12g)",
        steps=150,
    )
    beta = 1.0 / (kB * TEMPERATURE)
    mean, error = mean_and_error(series[1:, 0] * np.exp(beta * FREE))
    assert error < 0.05
    assert abs(mean - factor) < 5 * error
    # an empty neighbourhood: the excess is the energy of the free atom, to the digit
    ideal = tmp_path / "ideal.pt"
    write_argon(ideal, FREE, 0.0)
    series, _ = gas(
        tmp_path,
        ranks,
        model=ideal,
        atoms="create_atoms 1 single 4.9 5.1 5.2",
        fix=f"fix 1 all widom 1 20 1 29 {TEMPERATURE}\nvariable mu equal f_1[1]",
        columns="$(v_mu:%.12g)",
        steps=3,
    )
    np.testing.assert_allclose(series[1:, 0], FREE, atol=1e-6)


def test_gcmc_of_molecules(host, tmp_path):
    """The atoms of a deleted molecule have no energy of their bond either: P(1) / P(0) = z V."""
    path, _ = host
    (tmp_path / "dimer.txt").write_text(
        "dimer\n\n2 atoms\n\nCoords\n\n1 0 0 0\n2 2.5 0 0\n\nTypes\n\n1 1\n2 1\n"
    )
    student = write_argon(tmp_path / "argon.pt", FREE, 3.0)
    pair = System(
        np.array([ARGON, ARGON]), np.array([[9.0, 9, 9], [11.5, 9, 9]]), np.diag([18.0] * 3)
    )
    energy = reference(student, pair).energy
    assert abs(energy - 2 * FREE) > 0.1  # or the bond would not be seen
    ratio = 0.6
    mu = chemical_potential(ratio / 15.0**3, TEMPERATURE, 2 * 39.948, 0.0)
    series, _ = gas(
        tmp_path,
        1,
        style="molecular",
        model=path,
        atoms="molecule dimer dimer.txt",
        fix=f"fix 1 all gcmc 1 20 0 0 29 {TEMPERATURE} {mu!r} 1.0 mol dimer "
        f"intra_energy {energy!r} full_energy",
        steps=2000,
    )
    molecules = series[20:, 0] / 2
    one, zero = (molecules == 1).astype(float), (molecules == 0).astype(float)
    difference, error = mean_and_error(one - ratio * zero)
    assert error < 0.03
    assert abs(difference) < 5 * error, (one.mean() / zero.mean(), ratio)


# --- exchange of types --------------------------------------------------------------------------
SWAPS = """
fix 1 all atom/swap {options}
dump types all custom 1 types.dump id type
dump_modify types sort id
run {steps} post no
undump types
"""


def swap(folder: Path, ranks: int, run: Run, options: str, steps: int) -> tuple[np.ndarray, float]:
    """Types of all atoms in each step, (steps + 1, n), and the energy of the last step."""
    run = replace(run, steps=SWAPS.format(options=options, steps=steps), centroid=False)
    values = evaluate([run], folder, ranks)[run.name]
    n = len(run.system.numbers)
    lines = (folder / "types.dump").read_text().split("\n")
    rows = np.array([line.split() for line in lines if re.fullmatch(r"\d+ \d+ ?", line)], int)
    return rows[:, 1].reshape(-1, n), values.energy


@pytest.mark.parametrize(("ranks", "steps"), [(1, 1500), (2, 400)])
def test_atom_swap_samples_the_boltzmann_distribution(model, tmp_path, ranks, steps):
    """One oxygen on six sites: the chance of each site is known."""
    sites = glass_of(6, [5.5, 5.2, 5.8], seed=11)
    numbers = [np.where(np.arange(6) == k, 8, 14) for k in range(6)]
    energies = np.array([reference(model[1], replace(sites, numbers=z)).energy for z in numbers])
    temperature = float(0.5 * np.std(energies) / kB)
    chances = np.exp(-(energies - energies.min()) / (kB * temperature))
    chances /= chances.sum()
    run = Run("s", replace(sites, numbers=numbers[0]), model[0])
    types, last = swap(tmp_path, ranks, run, f"1 20 29 {temperature!r} ke no types 1 2", steps)
    where = np.argmax(types == 2, axis=1)
    assert np.all((types == 2).sum(axis=1) == 1)
    assert abs(last - energies[where[-1]]) < 1e-8
    assert np.sort(chances)[-2] > 0.05
    for k in range(6):
        mean, error = mean_and_error((where[20:] == k).astype(float))
        assert abs(mean - chances[k]) < 5 * max(error, 1e-3), (k, chances)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_swaps_with_a_type_that_the_model_does_not_see(model, tmp_path, ranks):
    """Vacancies of type NULL move; LAMMPS sends the types of ghosts, its lists stay."""
    glass = glass_of(24, [9.3, 8.4, 9.9], seed=12)
    run = Run("v", glass, model[0], names="Si NULL")
    types, last = swap(tmp_path, ranks, run, "1 10 29 1e6 ke no types 1 2", 5)
    assert np.any(types[0] != types[-1])
    seen = types[-1] == 1
    part = replace(glass, numbers=np.full(seen.sum(), 14), positions=glass.positions[seen])
    assert abs(last - reference(model[1], part).energy) < 1e-8


def test_semi_grand_swaps(model, tmp_path):
    """Each of two far atoms is O or Si with the ratio of their free energies and the mu."""
    far = System(np.array([14, 14]), np.array([[2.0, 2, 2], [11.0, 11, 11]]), np.diag([18.0] * 3))
    free = {
        z: reference(model[1], replace(far, numbers=np.array([z, z]))).energy / 2 for z in (14, 8)
    }
    temperature = 3000.0
    # mu of oxygen that makes it as likely as e^-1
    shift = free[8] - free[14] - kB * temperature
    run = Run("g", far, model[0], style=EXACT)
    types, _ = swap(
        tmp_path, 1, run, f"1 5 29 {temperature} ke no semi-grand yes types 1 2 mu 0.0 {shift!r}",
        2000,
    )  # fmt: skip
    mean, error = mean_and_error((types[20:] == 2).mean(axis=1))
    chance = 1.0 / (1.0 + np.exp(1.0))
    assert min(abs(mean - chance), abs(mean - (1 - chance))) < 5 * error, (mean, error)
