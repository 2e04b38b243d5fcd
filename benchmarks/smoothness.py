"""Which norm and which envelope a student should have: accuracy and second derivatives by form.

Trains the demo's network with each form on silicon (SevenNet-0), aspirin (GFN2-xTB) and ethanol
(rMD17), three seeds each, with the same number of optimiser steps, and measures the students in
float64. A run takes about 80 s of one core, the whole study an hour and a half; finished runs are
kept in the work folder and never repeated.

    python benchmarks/smoothness.py
    python benchmarks/smoothness.py --systems silicon --forms "paper, cosine" "smooth 1, p = 6"
    python benchmarks/smoothness.py --report
    python benchmarks/smoothness.py --demo OLD_RUN NEW_RUN

The last compares two runs of `make demo` with their teacher.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, processor, write_report
from benchmarks.smoothness.datasets import SYSTEMS, prepare
from benchmarks.smoothness.report import demo_table, markdown, plot
from benchmarks.smoothness.study import (
    DEMO_LATTICE,
    ENVELOPES,
    FORMS,
    LATTICE,
    NORMS,
    measure_demo,
    measure_form,
    measure_silicon,
    train_form,
)
from mlff_distiller.files import atomic_write_text
from mlff_distiller.teachers import get_teacher

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "smoothness"
#: Forces of the teacher are float32: minimisers get no further, eV/Å.
TEACHER_FORCE = 1e-4


def key_of(system: str, form: str, seed: int) -> str:
    return f"{system}; {form}; seed {seed}"


def measure_teacher(lattice: float = LATTICE) -> dict[str, Any]:
    calculator = get_teacher("sevennet-0").calculator
    return measure_silicon(calculator, TEACHER_FORCE, relaxed_ions=True, lattice=lattice)


def run(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Do what is missing in the report and save it after every run."""

    def save() -> None:
        atomic_write_text(arguments.work / "results.json", json.dumps(report, indent=1))

    plan = [
        (system, form, seed)
        for forms in (NORMS, ENVELOPES)
        for system in arguments.systems
        for form in forms
        if form in arguments.forms
        for seed in range(arguments.seeds)
    ]
    for number, (system, form, seed) in enumerate(plan, start=1):
        key = key_of(system, form, seed)
        record = report["runs"].setdefault(key, {})
        data = prepare(system, arguments.work)
        folder = arguments.work / "students" / key.replace("; ", "/")
        if "training" not in record:
            record["training"] = train_form(form, system, seed, data, folder)
            record.pop("found", None)
        if "found" not in record or arguments.measure_again:
            record["found"] = measure_form(form, system, data, folder)
            save()
            force = record["found"]["force_mae_mev_per_ang"]
            print(f"{number}/{len(plan)} {key}: force MAE {force:.2f} meV/Å", flush=True)
    if "teacher" not in report or arguments.measure_again:
        report["teacher"] = measure_teacher()
        report["teacher_at_demo"] = measure_teacher(DEMO_LATTICE)
        save()


def main() -> None:
    parser = parser_of(__doc__, output=RESULTS)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=WORK, help="labelled data, students, runs")
    parser.add_argument("--measure-again", action="store_true", help="of students that are there")
    parser.add_argument("--report", action="store_true", help="of the runs that are there")
    parser.add_argument(
        "--demo", nargs=2, type=Path, metavar=("OLD", "NEW"), help="two run folders"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    if arguments.demo:
        found = {"before": arguments.demo[0], "after": arguments.demo[1]}
        rows = {name: measure_demo(folder) for name, folder in found.items()}
        print(demo_table({**rows, "teacher": measure_teacher()}))
        return

    stored = arguments.work / "results.json"
    report: dict[str, Any] = {"runs": {}}
    if stored.exists():
        report = json.loads(stored.read_text())
    report["about"] = {
        "machine": processor(),
        "torch": torch.__version__,
        "lattice": LATTICE,
    }
    if not arguments.report:
        run(arguments, report)
    text = markdown(report)
    write_report(arguments.output, "smoothness", report, text, plot)
    print(text)


if __name__ == "__main__":
    main()
