"""The figures of pair_style painn in the stock ``lmp``: one table, one picture, one JSON file.

    python benchmarks/lammps/figures.py                  everything, about half an hour
    python benchmarks/lammps/figures.py --only 1,4       some; the others keep their last result
    python benchmarks/lammps/figures.py --quick          seconds: that it works, not how fast it is

1 two ranks over one · 2 beside DeePMD-kit's plugin · 3 beside SNAP · 4 overhead over the engine
5 agreement of 1, 2, 4 ranks · 6 energy drift · 7 memory of 100,000 atoms · 8 memory over 10,000 steps

Timings mean something on a quiet machine only; the table says when it was not. DeePMD-kit is
installed once in the environment of benchmarks/peers; what cannot be had is a row with its reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))
from benchmarks.common import parser_of, processor, write_report
from benchmarks.lammps.cases import FULL, QUICK, NotMeasuredError, Result, Setup
from benchmarks.lammps.checks import drift, flat_memory, large, ranks_agree
from benchmarks.lammps.launch import LammpsError
from benchmarks.lammps.tables import NAME, markdown, plot, read_report
from benchmarks.lammps.timings import beside_deepmd, beside_snap, over_the_engine, two_ranks
from mlff_distiller.errors import InputError

MEASUREMENTS: dict[int, tuple[str, Callable[[Setup], Result]]] = {
    1: ("two ranks over one", two_ranks),
    2: ("beside DeePMD-kit", beside_deepmd),
    3: ("beside SNAP", beside_snap),
    4: ("overhead over the engine", over_the_engine),
    5: ("agreement of 1, 2 and 4 ranks", ranks_agree),
    6: ("energy drift", drift),
    7: ("100,000 atoms", large),
    8: ("memory over 10,000 steps", flat_memory),
}


def measure(number: int, setup: Setup) -> dict[str, Any]:
    """One measurement, or why there is none."""
    name, function = MEASUREMENTS[number]
    facts = {"name": name, "date": time.strftime("%Y-%m-%d %H:%M")}
    try:
        result = function(setup)
        if setup.size is QUICK:
            result.update(met=None, quick=True)
    except (NotMeasuredError, LammpsError, InputError) as reason:
        result = {"line": f"not measured: {reason}", "met": None}
    return {**facts, **result}


def numbers(text: str) -> list[int]:
    chosen = [int(x) for x in text.split(",")]
    if unknown := set(chosen) - set(MEASUREMENTS):
        raise argparse.ArgumentTypeError(f"there is no measurement {min(unknown)}")
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, quick="small systems; nothing is installed",
                       output=Path("build/lammps_benchmark"), whole=True)  # fmt: skip
    parser.add_argument("--only", type=numbers, default=list(MEASUREMENTS), metavar="1,2,...")
    parser.add_argument("--rounds", type=int, help="of what is timed")
    parser.add_argument("--trained", type=Path, default=Path("runs/demo/student.pt"),
                        help="a trained student of silicon, for the drift")  # fmt: skip
    parser.add_argument("--peers", type=Path, default=Path("build/peers"),
                        help="cache of benchmarks/peers")  # fmt: skip
    options = parser.parse_args(arguments)

    size = QUICK if options.quick else FULL
    output = options.output.resolve()
    setup = Setup(size, output / "work", options.trained, options.peers.resolve(),
                  install=not options.quick, rounds=options.rounds or size.rounds)  # fmt: skip
    for number in options.only:
        result = measure(number, setup)
        found = {**read_report(output), str(number): result}
        print(f"{number}. {result['line']}", flush=True)
        report = {
            "processor": processor(),
            "cores": os.cpu_count(),
            "lammps": version("lammps"),
            "measurements": {key: found[key] for key in sorted(found)},
        }
        write_report(output, NAME, report, markdown(report), plot)
    print(f"wrote lammps.md, lammps.json and lammps.png in {options.output}")


if __name__ == "__main__":
    main()
