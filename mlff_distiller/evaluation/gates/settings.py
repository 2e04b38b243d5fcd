"""Which gates a student must pass, and the limits. docs/acceptance.md says how each is measured."""

from __future__ import annotations

from dataclasses import dataclass

from mlff_distiller.settings import Settings, setting

#: Cheap ones first: those up to ``surface`` and ``dissociation`` are of single structures.
KINDS = (
    "held_out",
    "lattice",
    "elastic",
    "vacancy",
    "surface",
    "phonons",
    "frequencies",
    "torsion",
    "dissociation",
    "speed",
    "drift",
    "visited",
    "stability",
    "density",
    "rdf",
    "diffusion",
)


@dataclass(frozen=True)
class AcceptanceConfig(Settings, path="acceptance"):
    """What the student must reach, measured like the teacher; a gate without a measurement fails."""

    measure: bool = setting(
        True, "Measure the gates; without them nothing vouches for the student."
    )
    gates: list[str] = setting(
        [],
        "Gates to pass; empty: those of the phases and defects of the purpose.",
        choices=KINDS,
    )
    skip: list[str] = setting([], "Gates that are left out.", choices=KINDS)
    structures: int = setting(
        3, "Different starting structures of a phase that are measured, in their order.", least=1
    )

    force_mae: float = setting(50.0, "Mean error, held-out frames.", unit="meV/Å", above=0)
    energy_mae: float = setting(5.0, "Mean error, held-out frames.", unit="meV/atom", above=0)
    stress_mae: float = setting(0.1, "Mean error, held-out frames.", unit="GPa", above=0)
    element_force_mae: float = setting(
        75.0, "Mean error of the worst element, held-out frames.", unit="meV/Å", above=0
    )
    visited_force_mae: float = setting(
        30.0,
        "Mean error of the forces on frames that the student's own dynamics visits, up to half of "
        "the highest temperature.",
        unit="meV/Å",
        above=0,
    )
    visited_force_fraction: float = setting(
        0.12,
        "The same at the highest temperature, as a share of the mean size of a component of the "
        "teacher's forces there; from visited_force_mae up to four times that.",
        above=0,
        most=1,
    )
    visited_frames: int = setting(6, "Frames at each temperature that the teacher labels.", least=1)

    stability_seeds: int = setting(
        10, "Runs at the highest temperature, none of which may fail.", least=1
    )
    stability_time: float = setting(50.0, "Length of each of them.", unit="ps", above=0)
    drift: float = setting(
        1.0, "Of the total energy without thermostat.", unit="meV/atom/ps", above=0
    )
    drift_time: float = setting(5.0, "Length of that run.", unit="ps", above=0)
    speedup: float = setting(5.0, "Least, over the teacher, one thread each.", above=0)

    lattice: float = setting(0.2, "Lattice parameters, relaxed.", unit="%", above=0)
    bulk_modulus: float = setting(10.0, "From the equation of state.", unit="%", above=0)
    elastic: float = setting(
        10.0,
        "Independent elastic constants with relaxed ions; of ones below a tenth of the largest, in "
        "% of that tenth.",
        unit="%",
        above=0,
    )
    phonon_mae: float = setting(
        0.5, "Mean difference of the phonon frequencies.", unit="THz", above=0
    )
    phonon_imaginary: float = setting(
        0.2,
        "How far below zero (or below the teacher's lowest, if that is imaginary) the lowest "
        "frequency may lie.",
        unit="THz",
        above=0,
    )
    vacancy: float = setting(0.3, "Formation energy of a relaxed vacancy.", unit="eV", above=0)
    surface: float = setting(10.0, "Surface energies, unrelaxed and relaxed.", unit="%", above=0)
    miller: list[str] = setting(
        ["100"], "Surfaces, by three digits of the cell that is given, e.g. `110`."
    )

    frequencies: float = setting(
        20.0, "Mean difference of harmonic frequencies.", unit="cm⁻¹", above=0
    )
    torsion: float = setting(
        0.043, "Mean difference of torsion profiles (1 kcal/mol).", unit="eV", above=0
    )
    dissociation: float = setting(
        10.0,
        "Mean difference of the curves of broken bonds, of the teacher's energy at their end.",
        unit="%",
        above=0,
    )
    dissociation_reach: float = setting(
        2.5, "How far bonds are stretched.", unit="Å", above=0, most=10
    )

    rdf: float = setting(
        0.1, "Area between the radial distribution functions, as a share of the teacher's.", above=0
    )
    density: float = setting(3.0, "At the lowest temperature and pressure.", unit="%", above=0)
    diffusion: float = setting(30.0, "Self-diffusion coefficient.", unit="%", above=0)
    teacher_time: float = setting(
        1.0,
        "Length of the teacher's dynamics for rdf and diffusion, from frames of the student; the "
        "student runs as long.",
        unit="ps",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from mlff_distiller.errors import InputError

        for index in self.miller:
            if len(index) != 3 or not index.isdigit() or index == "000":
                raise InputError(
                    f"miller must be three digits, got {index!r}; set acceptance.miller to e.g. "
                    "['100', '110']"
                )
