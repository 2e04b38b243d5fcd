"""Files of the programs that people come from: layouts, units and elements as each states them."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from support.commands import run

from mlff_distiller.data import HDF5Dataset, check_structure, read_structures
from mlff_distiller.data.io import read_file
from mlff_distiller.errors import InputError
from mlff_distiller.units import BOHR_IN_ANGSTROM, EV_IN_KCAL_PER_MOL, HARTREE_IN_EV

SHARED = Path(__file__).parents[2] / "shared" / "data"
KCAL = EV_IN_KCAL_PER_MOL  # eV to kcal/mol


def emt(names: list[str], seed: int = 0) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    found = []
    for name in names:
        atoms = bulk("Cu", cubic=True) if name == "Cu4" else molecule(name)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces()
        found.append(atoms)
    return found


def assert_same(structures, frames: list[Atoms], *, forces: bool = True) -> None:
    assert [s.formula for s in structures] == [a.get_chemical_formula() for a in frames]
    for s, atoms in zip(structures, frames, strict=True):
        check_structure(s)
        assert s.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(s.positions, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(s.cell, atoms.cell.array * atoms.pbc[:, None], atol=1e-8)
        assert s.pbc.tolist() == atoms.pbc.tolist()
        assert (s.forces is not None) == forces
        if forces:
            np.testing.assert_allclose(s.forces, atoms.get_forces(), atol=1e-8)


def stacked(frames: list[Atoms], factor: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "R": np.array([a.positions for a in frames]),
        "E": np.array([a.get_potential_energy() for a in frames]) * factor,
        "F": np.array([a.get_forces() for a in frames]) * factor,
    }


# --- NumPy archives --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "factor"),
    [({"e_unit": "eV"}, 1.0), ({"e_unit": b"eV"}, 1.0), ({"e_unit": "kcal/mol"}, KCAL), ({}, KCAL)],
)
def test_sgdml_states_its_units(tmp_path, stated: dict, factor: float) -> None:
    frames = emt(["H2CO"] * 3)
    np.savez(
        tmp_path / "a.npz", z=frames[0].numbers, **stacked(frames, factor), r_unit="Ang", **stated
    )
    found = read_file(tmp_path / "a.npz")
    assert_same(found.structures, frames)
    assert bool(found.notes) == (not stated)
    np.savez(tmp_path / "told.npz", z=frames[0].numbers, **stacked(frames))
    assert_same(read_structures(tmp_path / "told.npz", units="eV"), frames)


def test_sgdml_in_bohr_and_hartree(tmp_path) -> None:
    frames = emt(["H2O"] * 2)
    data = stacked(frames, 1 / HARTREE_IN_EV)
    data["R"] /= BOHR_IN_ANGSTROM
    data["F"] *= BOHR_IN_ANGSTROM
    np.savez(tmp_path / "a.npz", z=frames[0].numbers, e_unit="Hartree", r_unit="Bohr", **data)
    assert_same(read_structures(tmp_path / "a.npz"), frames)


def test_sgdml_lattice_vectors_are_columns(tmp_path) -> None:
    frames = emt(["Cu4"] * 2)
    shear = np.array([[1, 0.2, 0], [0, 1, 0.1], [0, 0, 1]])
    for atoms in frames:
        atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    data = stacked(frames)
    lattice = frames[0].cell.array.T
    np.savez(tmp_path / "a.npz", z=frames[0].numbers, lattice=lattice, e_unit="eV", **data)
    assert_same(read_structures(tmp_path / "a.npz"), frames)
    named = {"pos": data["R"], "total_energy": data["E"], "forces": data["F"]}
    cells = np.array([a.cell.array for a in frames])
    np.savez(tmp_path / "b.npz", atomic_numbers=frames[0].numbers, cell=cells, **named)
    found = read_file(tmp_path / "b.npz")
    assert_same(found.structures, frames)
    assert any("eV assumed" in note for note in found.notes)


@pytest.mark.parametrize("layout", ["padded", "padded with N", "flat"])
def test_molecules_of_several_sizes(tmp_path, layout: str) -> None:
    frames = emt(["H2O", "CH4", "H2CO"])
    counts = [len(a) for a in frames]
    energy = np.array([a.get_potential_energy() for a in frames])
    if layout == "flat":
        data = {
            "Z": np.concatenate([a.numbers for a in frames]),
            "R": np.concatenate([a.positions for a in frames]),
            "F": np.concatenate([a.get_forces() for a in frames]),
        }
    else:
        data = {
            "Z": np.zeros((3, 5), int),
            "R": np.zeros((3, 5, 3)),
            "F": np.zeros((3, 5, 3)),
        }
        for i, atoms in enumerate(frames):
            data["Z"][i, : len(atoms)] = atoms.numbers
            data["R"][i, : len(atoms)] = atoms.positions
            data["F"][i, : len(atoms)] = atoms.get_forces()
    if layout != "padded":
        data["N"] = np.array(counts)
    np.savez(tmp_path / "a.npz", E=energy, **data)
    found = read_file(tmp_path / "a.npz")
    assert_same(found.structures, frames)
    assert any("eV assumed, as PhysNet" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"z": np.ones(3, int)}, "z must have shape"),
        ({"E": np.ones(5)}, "E must have 2 rows"),
        ({"F": np.ones((2, 3, 3))}, "F must have 24 numbers"),
        ({"R": np.ones((2, 12))}, "R must have shape"),
        ({"lattice": np.ones((2, 2))}, "lattice must have shape"),
        ({"e_unit": "furlong"}, "unknown unit 'furlong'"),
    ],
)
def test_archives_that_do_not_fit_together(tmp_path, changes: dict, part: str) -> None:
    frames = emt(["H2CO"] * 2)
    np.savez(tmp_path / "a.npz", **{"z": frames[0].numbers, **stacked(frames), **changes})
    with pytest.raises(InputError, match=part) as error:
        read_structures(tmp_path / "a.npz")
    assert "a.npz" in str(error.value)


# --- ASE and SchNetPack databases ------------------------------------------------------------


@pytest.mark.parametrize("single", [False, True])
def test_schnetpack_states_units_in_the_metadata(tmp_path, single: bool) -> None:
    frames = emt(["H2CO", "H2O"])
    with ase.db.connect(tmp_path / "a.db") as database:
        for atoms in frames:
            energy = atoms.get_potential_energy() * KCAL
            forces = atoms.get_forces() * KCAL
            data = {"energy": energy if single else np.array([energy]), "forces": forces}
            database.write(Atoms(atoms.numbers, atoms.positions), data=data)
        units = {"energy": "kcal/mol", "forces": "kcal/mol/Ang"}
        database.metadata = {"_distance_unit": "Ang", "_property_unit_dict": units, "atomrefs": {}}
    assert_same(read_structures(tmp_path / "a.db"), frames)


def test_qm9_database_of_schnetpack(tmp_path) -> None:
    with ase.db.connect(tmp_path / "qm9.db") as database:
        data = {
            name: np.array([value])
            for name, value in {"energy_U0": -76.4, "energy_U": -76.3, "free_energy": -76.5}.items()
        }
        database.write(molecule("H2O"), data=data)
        units = dict.fromkeys(data, "Ha")
        database.metadata = {"_distance_unit": "Ang", "_property_unit_dict": units}
    (s,) = read_structures(tmp_path / "qm9.db")
    assert s.energy == pytest.approx(-76.4 * HARTREE_IN_EV)


def test_plain_ase_databases(tmp_path) -> None:
    frames = emt(["H2CO", "Cu4"])
    with ase.db.connect(tmp_path / "a.db") as database:
        for atoms in frames:
            database.write(atoms)
    assert_same(read_structures(tmp_path / "a.db"), frames)


# --- DeePMD-kit ------------------------------------------------------------------------------


def deepmd(path: Path, frames: list[Atoms], *, mixed: bool, periodic: bool = False) -> Path:
    """The npy layouts, with a padded atom where sizes differ."""
    names = ["H", "C", "O", "Cu"]
    size = max(map(len, frames))
    (path / "set.000").mkdir(parents=True)
    (path / "type_map.raw").write_text("\n".join(names))

    def padded(array: np.ndarray, fill: float = 0.0) -> np.ndarray:
        out = np.full((size, *array.shape[1:]), fill)
        out[: len(array)] = array
        return out.ravel()

    arrays = {
        "coord": [padded(a.positions) for a in frames],
        "force": [padded(a.get_forces()) for a in frames],
        "energy": [[a.get_potential_energy()] for a in frames],
    }
    types = [padded(np.array([names.index(s) for s in a.symbols]), -1).astype(int) for a in frames]
    if mixed:
        arrays["real_atom_types"] = types
    first = np.zeros(size, int) if mixed else types[0]
    (path / "type.raw").write_text("\n".join(map(str, first)))
    if periodic:
        arrays["box"] = [a.cell.array.ravel() for a in frames]
        arrays["virial"] = [-a.get_stress(voigt=False).ravel() * a.get_volume() for a in frames]
    else:
        (path / "nopbc").touch()
    for name, array in arrays.items():
        np.save(path / "set.000" / f"{name}.npy", np.array(array))
    return path


def test_deepmd_standard_and_mixed_layouts(tmp_path) -> None:
    crystals = emt(["Cu4"] * 3)
    folder = deepmd(tmp_path / "std", crystals, mixed=False, periodic=True)
    structures = read_structures(folder)
    assert_same(structures, crystals)
    for s, atoms in zip(structures, crystals, strict=True):
        np.testing.assert_allclose(s.stress, atoms.get_stress(voigt=False), atol=1e-9)
    molecules = emt(["H2CO", "C2H2", "H2O", "CO2"])
    found = read_file(deepmd(tmp_path / "mix", molecules, mixed=True))
    assert "mixed" in found.kind
    assert_same(found.structures, molecules)
    # A folder of systems is read as one.
    both = read_structures(tmp_path)
    assert len(both) == 7


def test_deepmd_text_layout(tmp_path) -> None:
    frames = emt(["H2O"] * 2)
    folder = deepmd(tmp_path / "raw", frames, mixed=False)
    for name in ("coord", "force", "energy"):
        array = np.load(folder / "set.000" / f"{name}.npy")
        np.savetxt(folder / f"{name}.raw", array.reshape(2, -1))
        (folder / "set.000" / f"{name}.npy").unlink()
    (folder / "set.000").rmdir()
    assert_same(read_structures(folder), frames)


def test_deepmd_faults_are_named(tmp_path) -> None:
    frames = emt(["H2O"] * 2)
    folder = deepmd(tmp_path / "a", frames, mixed=False)
    (folder / "nopbc").unlink()
    with pytest.raises(InputError, match=r"set.000, box.npy is missing.*nopbc"):
        read_structures(folder)
    (folder / "nopbc").touch()
    (folder / "type_map.raw").write_text("H C")
    with pytest.raises(InputError, match=r"frame 0: types must be below the 2 elements"):
        read_structures(folder)
    (folder / "type_map.raw").write_text("OW HW")
    with pytest.raises(InputError, match=r"must name elements, got 'OW'"):
        read_structures(folder)
    (folder / "type_map.raw").write_text("H C O")
    (folder / "type.raw").write_text("0 0")
    with pytest.raises(InputError, match=r"coord must hold 2 x 6 numbers"):
        read_structures(folder)


# --- xyz -------------------------------------------------------------------------------------

HEADER = 'Lattice="6 0 0 0 6 0 0 0 6" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 '
ATOMS = "O 0 0 0 0.1 0 0\nH 0 0 0.97 -0.1 0 0\n"
QM9 = (
    "3\ngdb 9\t1.1\t2.2\t3.3\t1.85\t6.31\t-0.29\t0.07\t0.36\t19.0\t0.02\t-76.4\t-76.3\t-76.2\t-76.5"
    "\t6.0\t\nO\t-0.034\t 0.977\t 0.007\t-0.58\nH\t 0.064\t 2.0572*^-6\t 0.001\t 0.29\n"
    "H\t 0.871\t 1.300\t 0.0006\t 0.29\n1671.4\t3803.6\t3907.6\nO\tO\t\nInChI=1S\tInChI=1S\n"
)


@pytest.mark.parametrize(
    "content",
    [
        f"2\n{HEADER}\n{ATOMS}",
        f'2\r\n{HEADER}\tpbc="t T true" \r\n{ATOMS}'.replace("\n", "\r\n").replace("\r\r", "\r"),
        f'  2  \n{HEADER} pbc="T T T"\n{ATOMS}\n\n\n',
        f"2\n{HEADER}author=Müller pbc=T\n{ATOMS}",
        f"2\n{HEADER}\n{ATOMS}".replace("-1.5", "-1.5D+00").replace("0.97", "0.97D+00"),
        f"2\n{HEADER}\n{ATOMS}".replace("species:S:1", "Z:I:1")
        .replace("O ", "8 ", 1)
        .replace("H ", "1 "),
        f"2\n{HEADER}\n{ATOMS}".replace("O ", "O1 ", 1).replace("H ", "D "),
        f"2\n{HEADER}\n{ATOMS}".replace("forces:R:3", "fx:R:1:fy:R:1:fz:R:1"),
        f"2\n{HEADER.replace('=', ' = ', 1)}\n{ATOMS}",
        f"2\n{HEADER}\n{ATOMS}".replace("pos:R:3:forces:R:3", "pos:R:3:tags:I:1:forces:R:3")
        .replace("0 0.1", "0 7 0.1")
        .replace("0.97 -", "0.97 7 -"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_xyz_as_people_write_it(tmp_path, content: str, encoding: str) -> None:
    (tmp_path / "a.xyz").write_bytes(content.encode(encoding))
    (s,) = read_structures(tmp_path / "a.xyz")
    assert (s.formula, s.energy, s.pbc.tolist()) == ("HO", -1.5, [True] * 3)
    np.testing.assert_allclose(s.positions, [[0, 0, 0], [0, 0, 0.97]])
    np.testing.assert_allclose(s.forces, [[0.1, 0, 0], [-0.1, 0, 0]])


def test_compressed_xyz(tmp_path) -> None:
    content = f"2\n{HEADER}\n{ATOMS}".encode()
    (tmp_path / "a.xyz.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a.extxyz.bz2").write_bytes(bz2.compress(content))
    for name in ("a.xyz.gz", "a.extxyz.bz2"):
        assert read_structures(tmp_path / name)[0].energy == -1.5


def test_renamed_atoms_are_noted(tmp_path) -> None:
    (tmp_path / "a.xyz").write_text(f"2\n{HEADER}\n{ATOMS}".replace("H ", "D "))
    assert any("D as H" in note for note in read_file(tmp_path / "a.xyz").notes)
    # Of two capitals the second reading may be meant: an alpha carbon.
    (tmp_path / "a.xyz").write_text(f"2\n{HEADER}\n{ATOMS}".replace("H ", "CA "))
    assert any("CA as Ca" in note for note in read_file(tmp_path / "a.xyz").notes)


def test_qm9_files(tmp_path) -> None:
    (tmp_path / "a.xyz").write_text(QM9 * 2)
    found = read_file(tmp_path / "a.xyz")
    assert found.kind == "QM9"
    assert [s.formula for s in found.structures] == ["H2O", "H2O"]
    assert found.structures[0].energy == pytest.approx(-76.4 * HARTREE_IN_EV)
    assert found.structures[0].positions[1, 1] == pytest.approx(2.0572e-6)
    assert any("zero-point" in note for note in found.notes)


def test_cp2k_trajectories_with_the_forces_beside(tmp_path) -> None:
    def frame(step: int, rows: str) -> str:
        comment = f" i = {step:8d}, time = {step * 0.5:12.3f}, E = {-17.2 - step:20.10f}"
        return f"       2\n{comment}\n{rows}"

    positions = "".join(frame(i, f" O 0 0 0\n H 0 0 {0.9 + i / 10}\n") for i in range(3))
    forces = "".join(frame(i, f" O 0 0 {0.1 * i}\n H 0 0 {-0.1 * i}\n") for i in range(3))
    path = tmp_path / "run-pos-1.xyz"
    path.write_text(positions)
    found = read_file(path)
    assert [s.energy for s in found.structures] == pytest.approx(
        [(-17.2 - i) * HARTREE_IN_EV for i in range(3)]
    )
    assert any("Hartree" in note for note in found.notes)
    assert found.structures[0].forces is None
    (tmp_path / "run-frc-1.xyz").write_text(forces)
    with_forces = read_structures(path)
    expected = 0.2 * HARTREE_IN_EV / BOHR_IN_ANGSTROM
    np.testing.assert_allclose(with_forces[2].forces, [[0, 0, expected], [0, 0, -expected]])
    cells = "#   Step   Time [fs]   Ax [Angstrom] ...   Volume [Angstrom^3]\n"
    cells += "".join(
        f" {i} {i * 0.5:.3f} {9 + i:.6f} 0 0 0.5 8 0 0 0 7 {56 * (9 + i):.6f}\n" for i in range(4)
    )
    (tmp_path / "run-1.cell").write_text(cells)
    found = read_file(path)
    np.testing.assert_allclose(found.structures[2].cell, [[11, 0, 0], [0.5, 8, 0], [0, 0, 7]])
    assert all(s.pbc.all() for s in found.structures)
    assert any("run-1.cell" in note for note in found.notes)
    (tmp_path / "run-1.cell").write_text(cells.replace("\n 2 ", "\n 7 "))
    with pytest.raises(InputError, match=r"run-1.cell beside it lacks step 2.*line 9"):
        read_structures(path)
    (tmp_path / "run-1.cell").unlink()
    with pytest.raises(InputError, match="forces of a CP2K run"):
        read_structures(tmp_path / "run-frc-1.xyz")
    (tmp_path / "run-frc-1.xyz").write_text(forces[: len(forces) // 3])
    with pytest.raises(InputError, match="must hold 3 frames"):
        read_structures(path)


@pytest.mark.parametrize(
    ("units", "size"),
    [
        ("positions{angstrom} cell{angstrom}", (1.0, 1.0)),
        ("positions{atomic_unit} cell{angstrom}", (BOHR_IN_ANGSTROM, 1.0)),
        ("", (BOHR_IN_ANGSTROM, BOHR_IN_ANGSTROM)),
    ],
)
def test_ipi_states_cell_and_units_in_its_comment(tmp_path, units: str, size: tuple) -> None:
    comment = f"# CELL(abcABC):  8.0  8.0  9.0  90.0  90.0  90.0  Step: 0  Bead: 0 {units}"
    (tmp_path / "a.xyz").write_text(f"2\n{comment}\nO 0 0 0\nH 0 0 1.9\n")
    (s,) = read_structures(tmp_path / "a.xyz")
    assert s.pbc.all()
    assert s.positions[1, 2] == pytest.approx(1.9 * size[0])
    np.testing.assert_allclose(s.cell, np.diag([8, 8, 9]) * size[1], atol=1e-9)
    (tmp_path / "f.xyz").write_text(f"1\n{comment.replace('positions', 'forces')}\nO 0 0 0\n")
    if units:
        with pytest.raises(InputError, match=r"i-PI wrote forces here"):
            read_structures(tmp_path / "f.xyz")


def test_a_number_for_a_comment_is_said(tmp_path) -> None:
    (tmp_path / "a.xyz").write_text("1\n-17.2\nO 0 0 0\n")
    assert any("energy=-17.2" in note for note in read_file(tmp_path / "a.xyz").notes)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("0.97", "zero", ["line 4", "pos of atom 1", "'zero'"]),
        ("H 0", "HW2 0", ["line 4", "atom 1", "'HW2'"]),
        ("H 0", "X 0", ["line 1", "at atom 1", "ghost"]),
        (" -0.1 0 0\n", "\n", ["line 4", "atom 1 must have 7 columns, got 4"]),
        ("H 0 0 0.97 -0.1 0 0\n", "", ["line 1", "2 atoms must follow, got 1"]),
        ("2\n", "3\n", ["line 1", "3 atoms must follow, got 2"]),
        ("2\n", "1\n", ["line 4", "number of atoms", "'H 0 0 0.97"]),
        ("forces:R:3", "forces:Q:3", ["line 2", "Properties"]),
        ("6 0 0 0 6 0 0 0 6", "6 6 6", ["line 2", "Lattice must be 9 numbers"]),
        ("energy=-1.5", "energy=nan", ["structure 0", "energy must be finite"]),
        ("-1.5", '-1.5 pbc="T F"', ["line 2", "pbc"]),
    ],
)
def test_faults_of_xyz_are_found_by_line(tmp_path, old: str, new: str, parts: list[str]) -> None:
    (tmp_path / "a.xyz").write_text(f"2\n{HEADER}\n{ATOMS}".replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_structures(tmp_path / "a.xyz")
    for part in ["a.xyz", *parts]:
        assert part in str(error.value)
    assert "write or copy it again" not in str(error.value)


def test_faults_of_later_frames_are_found_by_line(tmp_path) -> None:
    good = f"2\n{HEADER}\n{ATOMS}"
    (tmp_path / "a.xyz").write_text(good * 2 + good.replace("0.97", "nan"))
    with pytest.raises(InputError, match=r"line 9, structure 2: positions .* at atom 1 \(H\)"):
        read_structures(tmp_path / "a.xyz")


@pytest.mark.parametrize("header", [HEADER, HEADER.replace(":forces:R:3", ""), "no header"])
def test_a_frame_without_atoms_is_found_by_line(tmp_path, header: str) -> None:
    file = tmp_path / "a.xyz"
    file.write_text(f"2\n{HEADER}\n{ATOMS}0\n{header}\n")
    with pytest.raises(InputError) as error:
        read_structures(file)
    assert str(error.value) == (
        f"{file}, line 5, structure 1 must have at least one atom, got 0; remove it"
    )
    run("convert", file, tmp_path / "a.h5", "--drop-bad")
    assert len(HDF5Dataset(tmp_path / "a.h5")) == 1


# --- VASP ------------------------------------------------------------------------------------


def vasprun(path: Path, energies: list[tuple[float, float]]) -> Path:
    """The parts of a vasprun.xml that ASE reads; (free energy, energy without smearing)."""

    def rows(name: str, values: np.ndarray) -> str:
        lines = "".join(f"<v> {' '.join(f'{x:.8f}' for x in row)} </v>\n" for row in values)
        return f'<varray name="{name}" >\n{lines}</varray>\n'

    cell, places = np.eye(3) * 3.6, np.array([[0, 0, 0], [0, 0.5, 0.5]])
    crystal = f'<crystal>\n{rows("basis", cell)}<i name="volume"> 46.656 </i>\n'
    crystal += rows("rec_basis", np.linalg.inv(cell).T) + "</crystal>\n" + rows("positions", places)
    atom = "<rc><c>Cu</c><c> 1</c></rc>"
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n'
    text += '<kpoints><varray name="kpointlist"><v> 0 0 0 </v></varray>'
    text += '<varray name="weights"><v> 1 </v></varray></kpoints>'
    text += f'<atominfo><atoms> 2 </atoms><types> 1 </types><array name="atoms"><set>{atom}{atom}'
    text += (
        '</set></array></atominfo>\n<structure name="initialpos">\n' + crystal + "</structure>\n"
    )
    for free, zero in energies:
        energy = f'<energy><i name="e_fr_energy"> {free} </i><i name="e_wo_entrp"> {zero} </i>'
        energy += f'<i name="e_0_energy"> {zero} </i></energy>\n'
        forces = rows("forces", np.array([[0.1, 0, 0], [-0.1, 0, 0]]))
        stress = rows("stress", np.diag([12.0, 11.0, 10.0]))
        text += f"<calculation><scstep>{energy}</scstep><structure>{crystal}</structure>\n"
        text += f"{forces}{stress}{energy}</calculation>\n"
    path.write_text(text + "</modeling>\n")
    return path


_OUTCAR_HEAD = """ vasp.6.3.0
 POTCAR:    PAW_PBE Cu 22Jun2005
   ISPIN  =      1    spin polarized calculation?
   ions per type =               2
"""
_OUTCAR_STEP = """
--------------------------------------- Iteration      1(   1)  -------------------------------

  FORCE on cell =-STRESS in cart. coord.  units (eV):
  in kB      12.00000    11.00000    10.00000     0.00000     0.00000     0.00000

      direct lattice vectors                 reciprocal lattice vectors
     3.600000000  0.000000000  0.000000000     0.277777778  0.000000000  0.000000000
     0.000000000  3.600000000  0.000000000     0.000000000  0.277777778  0.000000000
     0.000000000  0.000000000  3.600000000     0.000000000  0.000000000  0.277777778

 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.100000      0.000000      0.000000
      0.00000      1.80000      1.80000        -0.100000      0.000000      0.000000
 -----------------------------------------------------------------------------------
    total drift:                                0.000000      0.000000      0.000000

  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =       FREE eV

  energy  without entropy=      ZERO  energy(sigma->0) =      ZERO

"""


def outcar(path: Path, energies: list[tuple[float, float]]) -> Path:
    """The parts of an OUTCAR that ASE reads; (free energy, energy without smearing)."""
    steps = [_OUTCAR_STEP.replace("FREE eV", f"{f:.8f} eV").replace("ZERO", f"{z:.8f}")
             for f, z in energies]  # fmt: skip
    path.write_text(_OUTCAR_HEAD + "".join(steps))
    return path


@pytest.mark.parametrize(("write", "name"), [(vasprun, "vasprun.xml"), (outcar, "OUTCAR")])
def test_vasp_forces_belong_to_the_free_energy(tmp_path, write, name) -> None:
    path = write(tmp_path / name, [(-14.98, -14.90), (-14.93, -14.85)])
    found = read_file(path)
    assert [s.energy for s in found.structures] == pytest.approx([-14.98, -14.93])
    assert any("free_energy" in note and "0.08" in note for note in found.label_notes)
    pressure = -12.0 / 1602.176634  # kbar; VASP counts compression positive
    assert found.structures[0].stress[0, 0] == pytest.approx(pressure)
    assert found.structures[0].forces[1, 0] == -0.1
    assert read_structures(path, energy_key="energy")[0].energy == pytest.approx(-14.90)


# --- real files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "energy_per_atom", "formula"),
    [
        ("3bpa/train_300K.xyz", 500, -654.09, "C12H12N2O"),
        ("acac/train_300K.xyz", 500, -626.10, "C5H8O2"),
        ("rmd17/rmd17_ethanol_train_01.npz", 1000, -467.75, "C2H6O"),
        ("water_deepmd", 400, -155.96, "H128O64"),
    ],
)
def test_published_files(name: str, count: int, energy_per_atom: float, formula: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip("no ../shared/data")
    structures = read_structures(SHARED / name)
    assert len(structures) == count
    assert {s.formula for s in structures} == {formula}
    assert all(s.forces is not None for s in structures)
    mean = np.mean([s.energy / len(s) for s in structures])
    assert mean == pytest.approx(energy_per_atom, abs=0.05)
