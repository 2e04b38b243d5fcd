"""Names, sets and units of labels: every convention is read for what it says, none is guessed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write as ase_write

from mlff_distiller.data import Structure, read_structures
from mlff_distiller.data.io import read_file
from mlff_distiller.data.read.frame import ReadOptions
from mlff_distiller.data.read.names import LabelName, parse_name, rank
from mlff_distiller.data.read.units import factor, parse_units
from mlff_distiller.errors import InputError
from mlff_distiller.units import (
    BOHR_IN_ANGSTROM,
    EV_IN_KCAL_PER_MOL,
    EV_PER_ANGSTROM3_IN_GPA,
    HARTREE_IN_EV,
)


def frames(count: int = 3) -> list[tuple[Atoms, float, np.ndarray, np.ndarray]]:
    """Atoms, energy, forces and stress by EMT."""
    rng = np.random.default_rng(0)
    result = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(0, 0.1, (4, 3))
        atoms.calc = EMT()
        found = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
        atoms.calc = None
        result.append((atoms, *found))
    return result


FRAMES = frames()


def text(*columns: str, lattice: str = "Lattice", properties: str = "Properties", **header) -> str:
    """Extended XYZ with the forces under each name of ``columns``.

    ``header`` maps a name to what it holds: energy, stress, virial, voigt, or a function.
    """
    lines = []
    for atoms, energy, forces, stress in FRAMES:
        values = {
            "energy": energy,
            "stress": stress,
            "virial": -stress * atoms.get_volume(),
            "voigt": stress.ravel()[[0, 4, 8, 5, 2, 1]],
        }
        words = []
        for name, what in header.items():
            value = values[what] if isinstance(what, str) else what(energy, stress)
            words.append(f'{name}="{" ".join(f"{v:.10f}" for v in np.ravel(value))}"')
        cell = " ".join(f"{v:.8f}" for v in atoms.cell.array.ravel())
        extra = "".join(f":{name}:R:3" for name in columns)
        lines.append(str(len(atoms)))
        lines.append(
            f'{lattice}="{cell}" {properties}=species:S:1:pos:R:3{extra} {" ".join(words)}'
        )
        for position, force in zip(atoms.positions, forces, strict=True):
            numbers = [*position, *(v for _ in columns for v in force)]
            lines.append("Cu " + " ".join(f"{v:.10f}" for v in numbers))
    return "\n".join(lines) + "\n"


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def assert_labels(structures: list[Structure], *, stress: bool = True) -> None:
    assert len(structures) == len(FRAMES)
    for s, (atoms, energy, forces, tensor) in zip(structures, FRAMES, strict=True):
        assert s.energy == pytest.approx(energy, abs=1e-8)
        np.testing.assert_allclose(s.forces, forces, atol=1e-8)
        np.testing.assert_allclose(s.positions, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(s.cell, atoms.cell.array, atol=1e-7)
        assert s.pbc.all()
        assert (s.stress is not None) == stress
        if stress:
            np.testing.assert_allclose(s.stress, tensor, atol=1e-8)
        assert not any(parse_name(key) for key in s.info)


@pytest.mark.parametrize(
    ("column", "header", "stress"),
    [
        ("forces", {"energy": "energy", "stress": "stress"}, True),
        ("forces", {"energy": "energy", "stress": "voigt"}, True),
        ("force", {"energy": "energy", "virial": "virial"}, True),
        ("dft_forces", {"dft_energy": "energy", "dft_virial": "virial"}, True),
        ("dft_force", {"dft_energy": "energy", "dft_virial": "virial"}, True),
        ("DFT_forces", {"DFT_energy": "energy"}, False),
        ("REF_forces", {"REF_energy": "energy", "REF_virials": "virial"}, True),
        ("REF_forces", {"REF_energy": "energy", "REF_stress": "voigt"}, True),
        ("ref_force", {"ref_energy": "energy", "ref_stress": "stress"}, True),
        ("force", {"TotEnergy": "energy"}, False),
        ("Forces", {"Energy": "energy", "Stress": "stress"}, True),
        ("forces", {"total_energy": "energy", "stress": "stress"}, True),
        ("forces", {"potential_energy": "energy"}, False),
        ("forces_pbe", {"energy_pbe": "energy", "stress_pbe": "stress"}, True),
        ("mace_mp_forces", {"mace_mp_energy": "energy", "mace_mp_stress": "stress"}, True),
        ("F_dft", {"E_dft": "energy"}, False),
    ],
)
def test_the_same_labels_under_all_names(tmp_path, column, header, stress) -> None:
    path = write(tmp_path / "a.xyz", text(column, **header))
    found = read_file(path)
    assert_labels(found.structures, stress=stress)
    assert not found.left()
    assert not found.notes + found.label_notes + found.hints


def test_lower_case_headers_of_gpumd(tmp_path) -> None:
    content = text(
        "force", lattice="lattice", properties="properties", energy="energy", virial="virial"
    )
    assert_labels(read_structures(write(tmp_path / "train.xyz", content)))
    upper = text("FORCE", lattice="LATTICE", properties="PROPERTIES", ENERGY="energy")
    assert_labels(read_structures(write(tmp_path / "upper.xyz", upper)), stress=False)


@pytest.mark.parametrize("prefix", ["REF_", "ref_", "DFT_", "dft_", "pbe_"])
@pytest.mark.parametrize("cheap", [("energy", "forces", "stress"), ("energy",), ("forces",)])
def test_reference_labels_come_first_and_are_taken_whole(tmp_path, prefix, cheap) -> None:
    """A cheap calculator's labels, all or some, stand beside those that count."""
    header = {f"{prefix}energy": "energy", f"{prefix}stress": "stress"}
    cheap_header = {
        name: (lambda e, s: e + 7.0) if name == "energy" else (lambda e, s: s + 1.0)
        for name in cheap
        if name != "forces"
    }
    columns = [f"{prefix}forces"] + (["forces"] if "forces" in cheap else [])
    path = write(tmp_path / "a.xyz", text(*columns, **cheap_header, **header))
    found = read_file(path)
    assert_labels(found.structures)
    assert set(found.left()) == set(cheap)
    (note,) = found.label_notes
    assert f"{prefix}energy" in note
    assert all(name in note for name in cheap)
    # The other set is one option away.
    if "energy" in cheap:
        other = read_structures(path, energy_key="energy")
        assert other[0].energy == pytest.approx(FRAMES[0][1] + 7.0)
        assert (other[0].forces is not None) == ("forces" in cheap)


def test_a_preferred_energy_never_takes_the_forces_of_another_set(tmp_path) -> None:
    path = write(
        tmp_path / "a.xyz", text("forces", REF_energy=lambda e, s: e - 100.0, energy="energy")
    )
    found = read_file(path)
    assert [s.energy for s in found.structures] == pytest.approx([f[1] - 100.0 for f in FRAMES])
    assert all(s.forces is None for s in found.structures)
    assert sum("REF_energy comes without forces" in note for note in found.label_notes) == 1
    assert_labels(read_structures(path, energy_key="energy"), stress=False)


def test_frames_without_the_chosen_set_have_no_labels(tmp_path) -> None:
    content = text("REF_forces", REF_energy="energy") + text("forces", energy="energy")
    found = read_file(write(tmp_path / "a.xyz", content))
    assert [s.energy is not None for s in found.structures] == [True] * 3 + [False] * 3
    assert [s.forces is not None for s in found.structures] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("columns", "header", "parts"),
    [
        (["DFT_forces"], {"energy": "energy"}, ["--energy-key energy", "--forces-key DFT_forces"]),
        (["forces"], {"DFT_energy": "energy"}, ["--energy-key DFT_energy --forces-key forces"]),
        (
            ["pbe_forces", "r2scan_forces"],
            {"pbe_energy": "energy", "r2scan_energy": "energy"},
            ["2 sets", "r2scan_energy", "--energy-key pbe_energy"],
        ),
        (["lj_forces"], {"lj_energy": "energy", "mace_energy": "energy"}, ["2 sets"]),
    ],
)
def test_sets_are_never_mixed(tmp_path, columns, header, parts) -> None:
    path = write(tmp_path / "a.xyz", text(*columns, **header))
    with pytest.raises(InputError) as error:
        read_structures(path)
    for part in ["a.xyz", *parts]:
        assert part in str(error.value)
    # What the message proposes works.
    energy, forces = next(iter(header)), columns[0]
    assert_labels(read_structures(path, energy_key=energy, forces_key=forces), stress=False)


def test_unusual_names_are_named_and_can_be_told(tmp_path) -> None:
    path = write(tmp_path / "a.xyz", text("dftF", foo="energy", tension="stress", push="virial"))
    found = read_file(path)
    assert found.structures[0].energy is None
    assert any("foo" in h and "--energy-key foo" in h for h in found.hints)
    assert any("dftF" in h and "--forces-key dftF" in h for h in found.hints)
    keys = {"energy_key": "foo", "forces_key": "dftF"}
    assert_labels(read_structures(path, **keys, stress_key="tension"))
    assert_labels(read_structures(path, **keys, virial_key="push"))
    with pytest.raises(InputError, match=r"--energy-key bar: no frame .*use one of these"):
        read_structures(path, energy_key="bar")


def test_free_energy_goes_with_forces(tmp_path) -> None:
    header = {"energy": lambda e, s: e + 0.08, "free_energy": "energy", "stress": "stress"}
    path = write(tmp_path / "a.xyz", text("forces", **header))
    found = read_file(path)
    assert_labels(found.structures)
    assert any("free_energy" in n and "0.08" in n for n in found.label_notes)
    told = read_structures(path, energy_key="energy")
    assert told[0].energy == pytest.approx(FRAMES[0][1] + 0.08)
    assert told[0].forces is not None
    # Without forces it is as likely the one of thermochemistry.
    path = write(tmp_path / "b.xyz", text(free_energy=lambda e, s: e - 1.0, energy="energy"))
    assert read_structures(path)[0].energy == pytest.approx(FRAMES[0][1], abs=1e-8)


def test_missing_values_of_labels(tmp_path) -> None:
    lines = text("forces", energy="energy").split("\n")
    lines[1] = lines[1].replace(f'energy="{FRAMES[0][1]:.10f}"', "energy=None")
    found = read_file(write(tmp_path / "a.xyz", "\n".join(lines)))
    assert [s.energy is None for s in found.structures] == [True, False, False]
    assert any("None" in hint for hint in found.hints)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [("energy=", "energy=abc old=", "energy"), ("stress=", 'stress="1 2 3" old=', "stress"),
     ("forces:R:3", "forces:R:1:a:R:1:b:R:1", "forces")],
)  # fmt: skip
def test_values_that_cannot_be_labels_are_said(tmp_path, old, new, name) -> None:
    content = text("forces", energy="energy", stress="stress")
    found = read_file(write(tmp_path / "a.xyz", content.replace(old, new, 1)))
    (hint,) = [h for h in found.hints if "not what its name says" in h]
    assert hint.startswith(f"{name} in 1 frames")
    assert "line 1" in hint


def test_from_atoms_follows_the_same_rules() -> None:
    atoms, energy, forces, stress = FRAMES[0]
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy + 3.0)
    atoms.info["REF_energy"] = energy
    atoms.arrays["REF_forces"] = forces
    atoms.info["REF_virials"] = -stress * atoms.get_volume()
    s = Structure.from_atoms(atoms)
    assert s.energy == energy
    np.testing.assert_array_equal(s.forces, forces)
    np.testing.assert_allclose(s.stress, stress, atol=1e-12)
    assert s.info == {}
    atoms.info["r2scan_energy"] = atoms.info.pop("REF_energy")
    atoms.info["pbe_energy"] = 1.0
    with pytest.raises(InputError, match=r"sets of labels .*r2scan_energy"):
        Structure.from_atoms(atoms)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("REF_energy", LabelName("ref", "energy")),
        ("wb97x_dz.forces", LabelName("wb97x_dz", "forces")),
        ("TotEnergy", LabelName("", "energy")),
        ("DFTenergy", LabelName("dft", "energy")),
        ("gradient", LabelName("", "gradient")),
        ("stress_kbar", LabelName("", "stress", "kbar")),
        ("energy_kcal_mol", LabelName("", "energy", "kcal/mol")),
        ("forces_ha_bohr", LabelName("", "forces", "Hartree/Bohr")),
        ("free_energy", LabelName("", "free_energy")),
        ("E", LabelName("", "energy")),
        ("e", None),
        ("kinetic_energy", None),
        ("energy_per_atom", None),
        ("config_energy_weight", None),
        ("max_force", None),
        ("formation_energy", None),
        ("energy_std", None),
        ("dispersion_energy", None),
        ("config_type", None),
        ("positions", None),
        ("enthalpy_H", None),
    ],
)
def test_names_are_taken_apart(name: str, expected: LabelName | None) -> None:
    assert parse_name(name) == expected


def test_ranks_of_sets() -> None:
    assert [rank(g) for g in ("ref", "dft", "pbe_d3", "", "mace_mp", "lj")] == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("unit", "quantity", "size"),
    [
        ("eV", "energy", 1.0),
        ("kcal/mol", "energy", 1 / EV_IN_KCAL_PER_MOL),
        ("Hartree", "energy", HARTREE_IN_EV),
        ("kcal/mol/Ang", "forces", 1 / EV_IN_KCAL_PER_MOL),
        ("Hartree / Bohr", "forces", HARTREE_IN_EV / BOHR_IN_ANGSTROM),
        ("eV per Angstrom", "forces", 1.0),
        ("eV/Å", "forces", 1.0),
        ("eV/Ang/Ang/Ang", "stress", 1.0),
        ("eV/Å^3", "stress", 1.0),
        ("GPa", "stress", 1 / EV_PER_ANGSTROM3_IN_GPA),
        ("kbar", "stress", 0.1 / EV_PER_ANGSTROM3_IN_GPA),
        ("-kbar", "stress", -0.1 / EV_PER_ANGSTROM3_IN_GPA),
        ("nm", "length", 10.0),
        ("mRy", "energy", None),
        ("eV/", "energy", None),
        ("eV", "forces", None),
        ("Bohr", "energy", None),
    ],
)
def test_units_are_products_of_names(unit: str, quantity: str, size: float | None) -> None:
    if size is not None:
        assert factor(unit, quantity) == pytest.approx(size, rel=1e-12)
        return
    with pytest.raises(InputError, match="unit"):
        factor(unit, quantity)


def test_units_of_the_user() -> None:
    assert parse_units("kcal/mol") == {"energy": "kcal/mol"}
    assert parse_units("Hartree, Bohr, kbar") == {
        "energy": "Hartree",
        "length": "Bohr",
        "stress": "kbar",
    }
    assert parse_units("forces=eV/nm") == {"forces": "eV/nm"}
    for wrong in ("charge=e", "furlong", "energy=Bohr"):
        with pytest.raises(InputError):
            parse_units(wrong)


@pytest.mark.parametrize("stated", ["option", "header", "name", "janus"])
def test_units_that_are_said(tmp_path, stated: str) -> None:
    ev, kbar = 1 / HARTREE_IN_EV, 10 * EV_PER_ANGSTROM3_IN_GPA
    header = {"energy": lambda e, s: e * ev, "stress": lambda e, s: s * kbar}
    options = {}
    if stated == "option":
        options["units"] = "energy=Hartree,stress=kbar,forces=eV/Ang"
    if stated == "name":
        header = {"energy_hartree": header["energy"], "stress_kbar": header["stress"]}
    content = text("forces", **header)
    if stated == "header":
        units = "energy_unit=Hartree stress_unit=kbar forces_unit=eV/Ang"
        content = content.replace("Lattice=", f"{units} Lattice=")
    if stated == "janus":
        units = {"energy": "Hartree", "forces": "eV/Ang", "stress": "kbar", "masses": "amu"}
        words = json.dumps(units).replace('"', '\\"')
        content = content.replace("Lattice=", f'units="_JSON {words}" Lattice=')
    assert_labels(read_structures(write(tmp_path / "a.xyz", content), **options))


def test_atomic_units_throughout(tmp_path) -> None:
    lines = ["1", 'Lattice="10 0 0 0 10 0 0 0 10" Properties=species:S:1:pos:R:3:forces:R:3 ']
    lines[1] += 'energy=2 virial="3 0 0 0 3 0 0 0 3"'
    path = write(tmp_path / "a.xyz", "\n".join([*lines, "He 1 0 0 0 0 5"]))
    (s,) = read_structures(path, units="Hartree,Bohr")
    assert s.energy == pytest.approx(2 * HARTREE_IN_EV)
    assert s.positions[0, 0] == pytest.approx(BOHR_IN_ANGSTROM)
    assert s.cell[1, 1] == pytest.approx(10 * BOHR_IN_ANGSTROM)
    assert s.forces[0, 2] == pytest.approx(5 * HARTREE_IN_EV / BOHR_IN_ANGSTROM)
    volume = (10 * BOHR_IN_ANGSTROM) ** 3
    assert s.stress[0, 0] == pytest.approx(-3 * HARTREE_IN_EV / volume)


@pytest.mark.parametrize("pbc", ["T T T", "T T F", "F F T"])
def test_left_handed_cells_are_turned_over(tmp_path, pbc: str) -> None:
    """Atoms, labels and the lattice stay; the order of the flags goes with the vectors."""
    atoms, energy, forces, stress = FRAMES[0]
    right = atoms.copy()
    right.pbc = [word == "T" for word in pbc.split()]
    for order, sign in itertools.product([[1, 0, 2], [0, 2, 1], [2, 1, 0], [0, 1, 2]], [1, -1]):
        left = right.copy()
        left.set_cell(right.cell.array[order] * sign)
        left.pbc = right.pbc[order]
        if np.linalg.det(left.cell) > 0:
            continue
        left.calc = SinglePointCalculator(left, energy=energy, forces=forces, stress=stress)
        left.write(tmp_path / "left.extxyz")
        found = read_file(tmp_path / "left.extxyz")
        (s,) = found.structures
        assert np.linalg.det(s.cell) > 0
        np.testing.assert_allclose(s.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(s.forces, forces, atol=1e-7)
        np.testing.assert_allclose(s.stress, stress, atol=1e-7)
        coordinates = np.linalg.solve(right.cell.array.T, s.cell.T).T  # in units of the vectors
        assert sorted(np.abs(coordinates).sum(axis=1)) == pytest.approx([1, 1, 1])
        periodic = {tuple(np.abs(c).round().astype(int)) for c in coordinates[s.pbc]}
        assert periodic == {tuple(row) for row in np.eye(3, dtype=int)[right.pbc]}
        assert sum("turned over" in note for note in found.notes) == 1


@pytest.mark.parametrize(
    ("energy", "forces", "size_energy", "size_forces"),
    [
        ("energy_au", "forces_au", HARTREE_IN_EV, HARTREE_IN_EV / BOHR_IN_ANGSTROM),
        ("energy_meV", "forces_meV_A", 1e-3, 1e-3),
        (
            "energy_kJ_mol",
            "forces_kJ_mol_A",
            factor("kJ/mol", "energy"),
            factor("kJ/mol", "energy"),
        ),
        ("energy(eV)", "forces(eV/A)", 1.0, 1.0),
    ],
)
def test_units_in_names_with_capitals(tmp_path, energy, forces, size_energy, size_forces) -> None:
    """CamelCase does not take kJ or meV apart; ``au`` is a unit, not a set of labels."""
    line = f'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:{forces}:R:3 {energy}=-2'
    (s,) = read_structures(write(tmp_path / "a.xyz", f"1\n{line}\nHe 0 0 0 0 0 5\n"))
    assert s.energy == pytest.approx(-2 * size_energy)
    assert s.forces[0, 2] == pytest.approx(5 * size_forces)


@pytest.mark.parametrize("stated", ["kcal/mol", '"energy=kcal/mol forces=kcal/mol/Ang"'])
def test_units_in_one_word_of_the_header(tmp_path, stated: str) -> None:
    kcal = 1 / factor("kcal/mol", "energy")
    content = text("forces", energy=lambda e, s: e * kcal)
    content = content.replace("Lattice=", f"units={stated} Lattice=")
    found = read_structures(write(tmp_path / "a.xyz", content))
    for s, (_, energy, forces, _) in zip(found, FRAMES, strict=True):
        assert s.energy == pytest.approx(energy)
        np.testing.assert_allclose(s.forces, forces / kcal, atol=1e-7)


def test_what_units_are_guessed_is_said(tmp_path) -> None:
    content = text("forces", energy_hartree=lambda e, s: e / HARTREE_IN_EV)
    path = write(tmp_path / "a.xyz", content)
    (note,) = read_file(path).label_notes
    assert "energy_hartree is in Hartree" in note
    assert "--units forces=Hartree/Bohr" in note
    assert not read_file(path, ReadOptions(units="forces=eV/Ang")).label_notes
    content = text("forces", energy=lambda e, s: e).replace("Lattice=", "units=furlong Lattice=")
    (note,) = read_file(write(tmp_path / "b.xyz", content)).notes
    assert "units='furlong' in the header is not understood" in note


def test_stress_as_a_list_of_rows(tmp_path) -> None:
    content = text("forces", energy="energy", stress="stress")
    for _, _, _, stress in FRAMES:
        words = " ".join(f"{v:.10f}" for v in stress.ravel())
        assert words in content
        content = content.replace(words, json.dumps(stress.tolist()))
    assert_labels(read_structures(write(tmp_path / "a.xyz", content)))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_virial_that_contradicts_the_stress_is_said(tmp_path, sign: int) -> None:
    lines = []
    for atoms, energy, _, stress in FRAMES:
        atoms = atoms.copy()
        atoms.info = {"REF_energy": energy, "REF_stress": stress}
        atoms.info["REF_virial"] = -sign * stress * atoms.get_volume()
        lines.append(atoms)
    ase_write(tmp_path / "a.xyz", lines, format="extxyz")
    notes = [n for n in read_file(tmp_path / "a.xyz").label_notes if "another sign" in n]
    assert len(notes) == (sign < 0)
    assert all("--virial-key REF_virial" in n for n in notes)
