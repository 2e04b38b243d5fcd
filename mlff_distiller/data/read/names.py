"""Names of labels: which quantity a key or a column holds, and to which set of labels it belongs.

``REF_energy``, ``dft_forces``, ``TotEnergy``, ``force``, ``E``, ``energy_pbe``, ``virials`` ... are
taken apart into words. One word is the quantity, fillers (``total``) say nothing, and what is left
names the set: ``ref``, ``dft``, ``pbe`` or, for plain names, nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class LabelName(NamedTuple):
    """A name taken apart.

    Attributes:
        group: the set of labels it belongs to; empty for plain names.
        quantity: energy, free_energy, forces, gradient, stress or virial.
        unit: stated in the name (``energy_kcal``), or empty.
    """

    group: str
    quantity: str
    unit: str = ""


#: Sets by the trust that they deserve; plain names are 2, names that say nothing (programs, other
#: models, cheap calculators) are 3.
RANK_PLAIN, RANK_OTHER = 2, 3
_REFERENCE = {"ref", "reference", "target", "label", "labels", "true", "truth"}
_FIRST_PRINCIPLES = set(
    """
    dft qm abinitio vasp cp2k qe castep aims fhiaims orca gaussian psi4 siesta gpaw abacus pbe pbe0
    pbesol rpbe revpbe scan r2scan rscan lda blyp b3lyp hse hse06 hse03 wb97x wb97m wb97xd wb97xd3
    wb97mv tpss m06 bp86 pw91 optb88 ccsd ccsd(t) cc dlpno mp2 hf dmc qmc rpa teacher
    """.split()  # noqa: SIM905 - as a table of strings it fills a page
)
_QUANTITIES = {
    "energy": "energy",
    "energies": "energy",
    "energie": "energy",
    "etot": "energy",
    "toteng": "energy",
    "epot": "energy",
    "poteng": "energy",
    "force": "forces",
    "forces": "forces",
    "gradient": "gradient",
    "gradients": "gradient",
    "grad": "gradient",
    "stress": "stress",
    "virial": "virial",
    "virials": "virial",
}
_FILLERS = set(
    """
    tot total potential pot scf electronic config final last tensor voigt vector cell mol 3x3
    system structure frame ang angstrom a ang3 angstrom3 a3 ase
    """.split()  # noqa: SIM905 - as a table of strings it fills a page
)
_UNITS = {"ev": "eV", "mev": "meV", "ha": "Hartree", "hartree": "Hartree", "kcal": "kcal/mol"}
_UNITS |= {"kj": "kJ/mol", "ry": "Ry", "rydberg": "Ry", "gpa": "GPa", "kbar": "kbar"}
_UNITS |= {"au": "Hartree", "hartrees": "Hartree", "eh": "Hartree", "kcalmol": "kcal/mol"}
_UNITS |= {"kjmol": "kJ/mol", "bar": "bar", "mpa": "MPa", "pa": "Pa"}
_PRESSURES = {"GPa", "kbar", "bar", "MPa", "Pa"}
# Units whose capitals are no CamelCase.
_CAPITALS = re.compile(r"(?<![A-Za-z])(m?eV|kJ|[kMG]?Pa|kBar|a\.u\.)(?![a-z])")
# Names that hold one of the quantities and are something else.
_OTHER_THINGS = set(
    """
    kinetic formation atomization atomisation binding cohesive interaction fermi delta diff
    difference dispersion vdw disp d3 d4 per atom atoms peratom atomic weight weights std var
    variance uncertainty error err mae rmse max min maximum minimum mean average norm rms cutoff
    sigma zero zpe zpve shift shifted isolated isol nuclear repulsion xc hartreefock band gap homo
    lumo surface strain elastic relative rel correction corrected adsorption mixing activation
    barrier reaction above hull restraint bias conserved solvation constraint residual tolerance
    threshold unit units key type scale scaled local site vacancy image kspace ewald coulomb coul
    bond angle convergence converged id index rank field
    """.split()  # noqa: SIM905 - as a table of strings it fills a page
)
_WHOLE = {
    "e": LabelName("", "energy"),
    "f": LabelName("", "forces"),
    "u0": LabelName("", "energy"),
    "energy_u0": LabelName("", "energy"),
    "free_energy": LabelName("", "free_energy"),
    "e_fr_energy": LabelName("", "free_energy"),
    "e_0_energy": LabelName("", "energy"),
}
_NOT = {"energy_u", "energy_h", "energy_g", "enthalpy_h", "e_wo_entrp"}
_GLUED = re.compile(r"(.*?)(energy|energies|forces?|stress|virials?)")


@lru_cache(maxsize=4096)
def parse_name(name: str) -> LabelName | None:
    """Take a name apart; None if it is no label."""
    lower = name.lower()
    if lower in _WHOLE:
        return _WHOLE[lower] if lower not in ("e", "f") or name.isupper() else None
    if lower in _NOT:
        return None
    words = _words(name)
    if _OTHER_THINGS & set(words):
        return None
    quantity, unit, group, free, bohr = "", "", [], False, False
    for word in words:
        if not quantity and word in _QUANTITIES:
            quantity = _QUANTITIES[word]
        elif word in _UNITS:
            unit = unit or _UNITS[word]
        elif word == "free":
            free = True
        elif word == "bohr":
            bohr = True
        elif word not in _FILLERS:
            group.append(word)
    if not quantity:  # E_dft, dft_F
        short = [w for w in re.split(r"[^A-Za-z0-9]+", name) if w in ("E", "F")]
        if len(short) != 1 or len(words) != 2:
            return None
        quantity = {"E": "energy", "F": "forces"}[short[0]]
        group = [w for w in group if w != short[0].lower()]
    if free:
        if quantity != "energy":
            return None
        quantity = "free_energy"
    bohr |= "au" in words
    if unit and quantity in ("forces", "gradient"):
        unit += "/Bohr" if bohr else "/Ang"
    if unit and quantity == "stress" and unit not in _PRESSURES:
        unit += "/Bohr^3" if bohr else "/Ang^3"
    return LabelName("_".join(group), quantity, unit)


def mentions_quantity(name: str) -> bool:
    """Whether a name that is no label holds the word of one: ``energy_per_atom``."""
    return any(word in _QUANTITIES for word in _words(name))


def rank(group: str) -> int:
    """0 for reference labels, 1 for first-principles methods, 2 for plain names, 3 for others."""
    words = set(group.split("_"))
    if not group:
        return RANK_PLAIN
    if words & _REFERENCE:
        return 0
    return 1 if words & _FIRST_PRINCIPLES else RANK_OTHER


def _words(name: str) -> list[str]:
    plain = _CAPITALS.sub(lambda unit: unit[0].lower().replace(".", ""), name)
    plain = re.sub(r"\((?![tT]\))|(?<!\(t)(?<!\(T)\)", " ", plain)  # energy(eV), but CCSD(T)
    text = re.sub(r"([a-z])([A-Z])", r"\1_\2", plain)
    words: list[str] = []
    for word in re.split(r"[^a-z0-9()]+", text.lower()):
        glued = _GLUED.fullmatch(word)
        words += [part for part in (glued.groups() if glued else (word,)) if part]
    return words
