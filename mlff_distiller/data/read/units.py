"""Units as files and users write them: ``kcal/mol/Ang``, ``Hartree / Bohr``, ``eV/Ang^3``, ``kbar``."""

from __future__ import annotations

import re

from mlff_distiller.errors import InputError
from mlff_distiller.units import ENERGY_UNITS, EV_PER_ANGSTROM3_IN_GPA, LENGTH_UNITS

#: Quantity -> powers of energy and length.
DIMENSIONS = {
    "energy": (1, 0),
    "virial": (1, 0),
    "length": (0, 1),
    "forces": (1, -1),
    "stress": (1, -3),
}
#: Quantity -> the unit inside.
OURS = {
    "energy": "eV",
    "virial": "eV",
    "length": "Ang",
    "forces": "eV/Ang",
    "stress": "eV/Ang^3",
}
_PRESSURES = {"gpa": 1.0, "mpa": 1e-3, "pa": 1e-9, "kbar": 0.1, "bar": 1e-4, "atm": 1.01325e-4}
_ALIASES = {
    "eh": "hartree",
    "hartrees": "hartree",
    "electronvolt": "ev",
    "angstroms": "ang",
    "a0": "bohr",
    "a": "ang",
    "kcal": "kcal/mol",
    "kj": "kj/mol",
    "nanometer": "nm",
}


def factor(unit: str, quantity: str) -> float:
    """Size of one ``unit`` in eV, Å, eV/Å or eV/Å^3.

    Args:
        unit: a product of names; a leading minus turns the sign (VASP's stress: ``-kbar``).
        quantity: a key of DIMENSIONS.

    Raises:
        InputError: an unknown name, or a unit of another quantity.
    """
    text = unit.strip().lower().replace("å", "ang").replace("³", "^3").replace("**", "^")
    text = re.sub(r"\s+per\s+|_per_", "/", text)
    text = re.sub(r"[\s()]", "", text)
    sign = -1.0 if text.startswith("-") else 1.0
    text = text.lstrip("-")
    text = re.sub(r"(kcal|kj)/mol", r"\1", text)
    value, energy, length = 1.0, 0, 0
    for operator, name, power in re.findall(r"([*/]?)([a-z_][a-z_0]*)\^?(\d*)", text):
        size, dimensions = _base(name, unit)
        exponent = int(power or 1) * (-1 if operator == "/" else 1)
        value *= size**exponent
        energy += dimensions[0] * exponent
        length += dimensions[1] * exponent
    if not re.fullmatch(r"([*/]?[a-z_][a-z_0]*(\^?\d+)?)+", text):
        raise _unknown(unit)
    if (energy, length) != DIMENSIONS[quantity]:
        raise InputError(f"{unit!r} is no unit of {quantity}; write for instance {OURS[quantity]}")
    return sign * value


def parse_units(text: str) -> dict[str, str]:
    """``"energy=Hartree,length=Bohr"`` or plain units, told apart by what they measure.

    Returns:
        quantity -> unit.

    Raises:
        InputError: an unknown quantity or unit.
    """
    units: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        quantity, equals, unit = (p.strip() for p in part.partition("="))
        if not equals:
            quantity, unit = _quantity_of(part), part
        quantity = {"force": "forces", "positions": "length"}.get(quantity, quantity)
        if quantity not in DIMENSIONS:
            raise InputError(
                f"--units takes {', '.join(DIMENSIONS)}, got {quantity!r}; for instance "
                "--units energy=Hartree,length=Bohr,stress=kbar"
            )
        factor(unit, quantity)
        units[quantity] = unit
    return units


def _quantity_of(unit: str) -> str:
    for quantity in ("energy", "length", "forces", "stress"):
        try:
            factor(unit, quantity)
        except InputError as error:
            if "unknown unit" in str(error):
                raise
        else:
            return quantity
    raise _unknown(unit)


def _base(name: str, unit: str) -> tuple[float, tuple[int, int]]:
    name = _ALIASES.get(name, name)
    if name in ENERGY_UNITS:
        return ENERGY_UNITS[name], (1, 0)
    if name in LENGTH_UNITS:
        return LENGTH_UNITS[name], (0, 1)
    if name in _PRESSURES:
        return _PRESSURES[name] / EV_PER_ANGSTROM3_IN_GPA, (1, -3)
    raise _unknown(unit)


def _unknown(unit: str) -> InputError:
    known = ", ".join([*ENERGY_UNITS, *LENGTH_UNITS, *_PRESSURES])
    return InputError(
        f"unknown unit {unit!r}; use products of {known}, for instance kcal/mol/Ang or eV/Ang^3"
    )
