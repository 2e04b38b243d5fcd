"""Starting structures that come with the package: ``builtin:NAME``.

The molecules were built from bond lengths, angles and dihedrals and relaxed with GFN2-xTB (largest
force 0.002 eV/Å); the crystal and the water box follow from their formulas.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence

import numpy as np
from ase.build import bulk

from mlff_distiller.data.io import check_all, read_file
from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError

logger = logging.getLogger(__name__)

PREFIX = "builtin:"

_ETHANOL = """
  C   -1.0167   -0.1491   -0.0000
  C    0.4239    0.3378    0.0000
  O    1.2762   -0.7888   -0.0000
  H    2.1923   -0.4946   -0.0000
  H   -1.1983   -0.7575    0.8816
  H   -1.6973    0.6976   -0.0000
  H   -1.1983   -0.7575   -0.8816
  H    0.6091    0.9561   -0.8911
  H    0.6091    0.9561    0.8911
"""

_ASPIRIN = """
  C    0.8226   -0.7523   -0.0771
  C    0.3595    0.5573   -0.2283
  C    1.2581    1.6158   -0.2290
  C    2.6121    1.3834   -0.0750
  C    3.0792    0.0907    0.1048
  C    2.1890   -0.9636    0.1059
  C   -0.0419   -1.9580   -0.1068
  O    0.2675   -3.0162    0.3749
  O   -1.1919   -1.7955   -0.7815
  O   -0.9772    0.8681   -0.3953
  C   -1.8768    0.4468    0.5194
  O   -1.5855   -0.1115    1.5391
  C   -3.2657    0.8106    0.0767
  H   -1.6958   -2.6244   -0.7574
  H    0.8750    2.6174   -0.3490
  H    3.3004    2.2149   -0.0821
  H    4.1336   -0.0918    0.2429
  H    2.5263   -1.9800    0.2418
  H   -3.5084    0.2389   -0.8161
  H   -3.9733    0.5823    0.8674
  H   -3.3066    1.8670   -0.1750
"""

_ALANINE_DIPEPTIDE = """
  C   -2.7403    1.4575   -0.2447
  C   -1.5147    0.8544    0.4022
  O   -0.9029    1.3877    1.3115
  N   -1.1517   -0.3390   -0.1080
  H   -1.6225   -0.7050   -0.9203
  C   -0.0199   -1.1043    0.3917
  C    1.2862   -0.5570   -0.2299
  C   -0.2002   -2.5767    0.0627
  H    0.0202   -0.9451    1.4759
  O    1.8939   -1.1409   -1.1031
  N    1.6507    0.6215    0.2988
  H    1.0222    1.0749    0.9544
  C    2.8018    1.3571   -0.1639
  H   -3.5817    0.7723   -0.1709
  H   -2.9887    2.3882    0.2566
  H   -2.5436    1.6587   -1.2958
  H   -0.1317   -2.7240   -1.0128
  H    0.5920   -3.1545    0.5297
  H   -1.1614   -2.9357    0.4227
  H    2.5006    2.2967   -0.6314
  H    3.4709    1.5740    0.6700
  H    3.3206    0.7391   -0.8952
"""


# Oxygen atoms of a face-centred lattice: neighbours are farther apart than on a simple one.
_FACES = ((0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))


def starting_structures(
    source: str, note: Callable[[str], None] = logger.warning
) -> list[Structure]:
    """Structures of a file or ``builtin:NAME``, for new labels: those in the file do not matter.

    Args:
        source: file or name.
        note: called with each line about what the reader decided.

    Raises:
        InputError: unknown name, or a file that cannot be used.
    """
    if source.startswith(PREFIX):
        return builtin(source)
    found = read_file(source)
    check_all(source, found)
    for line in found.notes:
        note(f"{source}: {line}")
    return found.structures


def builtin(name: str) -> list[Structure]:
    """Starting structures by name, with or without the prefix ``builtin:``.

    ========================  =============================================================
    ``silicon``               64 atoms, diamond, a = 5.43 Å, periodic
    ``silicon-8``             the conventional cell of it
    ``water``                 64 molecules at 0.997 g/cm^3 on a lattice, turned at random
    ``water-32``              32 at 0.95 g/cm^3: with 10.0 Å, the smallest box of two usual cutoffs
    ``water-8``               8 at 0.95 g/cm^3, 6.3 Å: labels of it cost a tenth
    ``ethanol``               9 atoms, the trans conformer
    ``aspirin``               21 atoms
    ``alanine-dipeptide``     22 atoms, C7eq
    ========================  =============================================================

    Raises:
        InputError: unknown name, with the nearest.
    """
    key = name.removeprefix(PREFIX)
    makers = {
        "silicon": lambda: _silicon(2),
        "silicon-8": lambda: _silicon(1),
        "water": lambda: water_box(4),
        "water-32": lambda: water_box(2, density=0.95, basis=_FACES),
        "water-8": lambda: water_box(2, density=0.95),
        "ethanol": lambda: _molecule(_ETHANOL),
        "aspirin": lambda: _molecule(_ASPIRIN),
        "alanine-dipeptide": lambda: _molecule(_ALANINE_DIPEPTIDE),
    }
    if key not in makers:
        close = difflib.get_close_matches(key, list(makers), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(makers)}"
        raise InputError(f"there is no structure {PREFIX}{key}; {hint}")
    structure = makers[key]()
    structure.info.update(source=PREFIX + key, group=key)
    return [structure]


def water_box(
    per_side: int,
    seed: int = 0,
    *,
    density: float = 0.997,
    basis: Sequence[Sequence[float]] = ((0.0, 0.0, 0.0),),
) -> Structure:
    """Water on a cubic lattice, molecules turned at random.

    Args:
        per_side: cells of the lattice along each edge.
        seed: of the orientations.
        density: g/cm^3.
        basis: fractional coordinates of the oxygen atoms in each cell; by default one,
            ``per_side**3`` molecules in all.
    """
    bond, angle = 0.9572, np.radians(104.52)  # Å; the molecule in the gas phase
    # g/mol over g/cm^3 and Avogadro's number, in Å^3
    spacing = (len(basis) * 18.01528 / (density * 0.602214076)) ** (1 / 3)
    arm = bond * np.array([[np.cos(angle / 2), s * np.sin(angle / 2), 0.0] for s in (1, -1)])
    rng = np.random.default_rng(seed)
    corners = np.indices((per_side,) * 3).reshape(3, -1).T
    sites = (corners[:, None] + np.array(basis)).reshape(-1, 3) * spacing
    positions = []
    for site in sites:
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        positions += [site, *(site + arm @ turn)]
    return Structure(
        atomic_numbers=np.tile([8, 1, 1], len(sites)),
        positions=np.array(positions),
        cell=np.eye(3) * spacing * per_side,
        pbc=np.ones(3, dtype=bool),
    )


def _silicon(repeat: int) -> Structure:
    atoms = bulk("Si", "diamond", a=5.43, cubic=True) * (repeat, repeat, repeat)
    return Structure.from_atoms(atoms)


def _molecule(table: str) -> Structure:
    rows = [line.split() for line in table.split("\n") if line.strip()]
    return Structure(
        atomic_numbers=np.array([{"H": 1, "C": 6, "N": 7, "O": 8}[row[0]] for row in rows]),
        positions=np.array([[float(x) for x in row[1:]] for row in rows]),
    )
