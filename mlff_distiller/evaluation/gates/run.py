"""All gates of a student, the cheap ones first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mlff_distiller.config import TeacherConfig
from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates import bulk, liquids, molecules, stability, visited
from mlff_distiller.evaluation.gates.cache import Cache, student_side, teacher_side
from mlff_distiller.evaluation.gates.choose import Case, cases, chosen
from mlff_distiller.evaluation.gates.context import Context, Map, Say
from mlff_distiller.evaluation.gates.gate import Gate, unmeasured
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.purpose import PurposeConfig

Measure = Callable[[Context, Case], list[Gate]]

#: What measures each kind.
MEASURES: dict[str, Measure] = {
    "lattice": bulk.lattice,
    "elastic": bulk.elastic,
    "vacancy": bulk.vacancy,
    "surface": bulk.surface,
    "phonons": bulk.phonon,
    "frequencies": molecules.frequencies,
    "torsion": molecules.torsion,
    "dissociation": molecules.dissociation,
    "speed": stability.speed,
    "drift": stability.drift,
    "stability": stability.stability,
    "held_out": visited.held_out,
    "visited": visited.visited,
    "density": liquids.density,
    "rdf": liquids.rdf,
    "diffusion": liquids.diffusion,
}
#: Kinds of single structures: no dynamics.
QUICK = (
    "held_out", "lattice", "elastic", "vacancy", "surface", "phonons", "frequencies", "torsion",
    "dissociation",
)  # fmt: skip


def run_gates(
    student: str | Path,
    teacher: TeacherConfig,
    structures: Sequence[Structure],
    purpose: PurposeConfig,
    acceptance: AcceptanceConfig | None = None,
    *,
    cache: Path | None = None,
    held_out: Sequence[Structure] | None = None,
    engine: str | None = None,
    quick: bool = False,
    pool: Map = map,
    say: Say = lambda text: None,
) -> list[Gate]:
    """Measure student and teacher alike and compare.

    Args:
        student: exported file.
        teacher: who is compared with.
        structures: starting structures of the run, as they were given.
        purpose: the conditions, phases and defects that decide which gates there are.
        acceptance: limits and choices.
        cache: JSON file of what was measured; the teacher's side is never computed twice.
        held_out: labelled frames that training never saw; None: that gate is not among the defaults.
        engine: of the student's dynamics; None: LAMMPS where it is installed, else ASE.
        quick: without dynamics and speed, for the rounds of a loop.
        pool: like the built-in ``map``; the runs of a gate go through it, plain and picklable.
        say: told what is measured.

    Returns:
        One gate for each number. What could not be measured is there too, with its reason.
    """
    limits = acceptance or AcceptanceConfig()
    known = Cache(cache)
    context = Context(
        path=Path(student),
        student=student_side(Path(student), known),
        teacher=teacher_side(teacher, known),
        teacher_config=teacher,
        structures=list(structures),
        purpose=purpose,
        limits=limits,
        held_out=held_out,
        engine=engine,
        pool=pool,
        say=say,
    )
    gates: list[Gate] = []
    for kind in chosen(limits, purpose, structures, held_out is not None):
        if quick and kind not in QUICK:
            continue
        for case in cases(kind, purpose, structures, limits.structures):
            say(f"{kind} {case.label}".rstrip())
            gates += _measured(kind, context, case)
    return gates


def _measured(kind: str, context: Context, case: Case) -> list[Gate]:
    try:
        if case.structure is None and case.missing:
            raise ValueError(case.missing)
        rows = MEASURES[kind](context, case)
    except (Exception, SystemExit) as error:  # whatever it was, the gate has no measurement
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        name, least = kind.replace("_", " "), kind in ("speed", "stability")
        limit, unit = _limit(kind, context.limits)
        advice = f"where the gate means nothing, leave it out: acceptance.skip: [{kind}]"
        if line.startswith("student:"):
            advice = "more training frames like those of this gate, or a longer training"
        rows = [unmeasured(name, kind, limit, unit, line, at_least=least, advice=advice)]
    return [case.named(row) for row in rows]


def _limit(kind: str, limits: AcceptanceConfig) -> tuple[float, str]:
    """Limit and unit that stand beside a kind which could not be measured."""
    from mlff_distiller.settings import fields_of

    key = {
        "held_out": "force_mae",
        "visited": "visited_force_mae",
        "phonons": "phonon_mae",
        "stability": "stability_seeds",
        "speed": "speedup",
    }.get(kind, kind)
    units = {f.name: f.metadata["rule"].unit for f, _ in fields_of(AcceptanceConfig)}
    return float(getattr(limits, key)), {"speed": "×", "stability": "runs"}.get(kind, units[key])
