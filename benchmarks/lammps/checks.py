"""Measurements 5 to 8: agreement of ranks, drift, memory. Each returns numbers, one plain sentence,
and whether it met its target."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.build import bulk

from benchmarks.lammps.cases import NotMeasuredError, Result, Setup, on_ranks
from benchmarks.lammps.launch import OVERSUBSCRIBED, Case, run
from mlff_distiller.lammps import lammps_command

AGREEMENT_TARGET = 1e-8
MEMORY_TARGET = 8e9  # bytes
FLAT_TARGET = 1e6  # bytes that a flat memory may still move: a page here and there


# --- 5 ----------------------------------------------------------------------------------------
def ranks_agree(setup: Setup) -> Result:
    """Energy and forces in double precision on 1, 2 and 4 ranks."""
    case = setup.water(setup.size.water, style="precision double")
    values = {}
    for ranks in (1, 2, 4):
        name = f"agree-np{ranks}"
        outcome = run(
            replace(on_ranks(case, ranks), name=name),
            f'run 0 post no\nprint "ENERGY $(pe:%.17g)"\n'
            f"write_dump all custom {name}.dump id fx fy fz modify sort id format float %.17g\n",
            setup.folder,
            ranks,
        )
        forces = np.loadtxt(setup.folder / f"{name}.dump", skiprows=9)[:, 1:]
        values[ranks] = outcome.printed("ENERGY")[0][0], forces
    energy, forces = values[1]
    scale = max(1.0, abs(energy))
    de = max(abs(values[n][0] - energy) / scale for n in (2, 4))
    df = max(float(np.abs(values[n][1] - forces).max()) for n in (2, 4))
    largest = float(np.abs(forces).max())
    atoms = len(case.atoms)
    return {
        "atoms": atoms,
        "relative_energy": de,
        "force_eV_per_A": df,
        "largest_force_eV_per_A": largest,
        "met": max(de, df) <= AGREEMENT_TARGET,
        "target": f"≤ {AGREEMENT_TARGET:.0e} relative, ≤ {AGREEMENT_TARGET:.0e} eV/Å",
        "line": f"In double precision 1, 2 and 4 ranks differ by at most {de:.1e} of the energy and "
        f"{df:.1e} eV/Å in any force ({atoms} atoms of water, largest force {largest:.1g} eV/Å).",
    }


# --- 6 ----------------------------------------------------------------------------------------
def drift(setup: Setup) -> Result:
    """Drift of the total energy in NVE on one and two ranks, same starts."""
    size, trained = setup.size, _trained_student(setup)
    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(size.drift_cells)
    pair = f"pair_style painn\npair_coeff * * {trained} Si"
    every = max(1, size.drift_steps // 500)
    commands = (
        "fix move all nve\n"
        f"run {min(1000, size.drift_steps // 2)} post no\n"  # the crystal takes up half the energy
        "reset_timestep 0\nvariable e equal etotal/atoms\n"
        f'fix p all print {every} "TOTAL $(step) $(v_e:%.12g)" screen yes\n'
        f"run {size.drift_steps} post no\n"
    )
    slopes: dict[int, list[float]] = {1: [], 2: []}
    noise: dict[int, list[float]] = {1: [], 2: []}
    traces: dict[int, list] = {}
    for seed in range(1, size.drift_seeds + 1):
        for ranks in slopes:
            case = Case(f"drift-np{ranks}", atoms, pair, tuple(lammps_command(ranks)), skin=0.5,
                        timestep=0.001, temperature=600.0, seed=seed,
                        variables=OVERSUBSCRIBED)  # fmt: skip
            trace = np.array(run(case, commands, setup.folder, ranks).printed("TOTAL"))
            picoseconds, energy = trace[:, 0] * case.timestep, trace[:, 1]
            slope, offset = np.polyfit(picoseconds, energy, 1)
            slopes[ranks].append(slope * 1e6)  # eV/ps -> meV/ns
            noise[ranks].append(float(np.std(energy - slope * picoseconds - offset) * 1e3))
            if seed == 1:
                traces[ranks] = [picoseconds.tolist(), ((energy - energy[0]) * 1e3).tolist()]
    mean = {n: float(np.mean(s)) for n, s in slopes.items()}
    error = {n: float(np.std(s, ddof=1) / np.sqrt(len(s))) for n, s in slopes.items()}
    # No more than on one rank: as far as the scatter between starts can tell.
    together = float(np.hypot(error[1], error[2]))
    excess = abs(mean[2]) - abs(mean[1])
    return {
        "atoms": len(atoms),
        "steps": size.drift_steps,
        "student": str(trained.name),
        "slopes_meV_per_atom_ns": slopes,
        "mean": mean,
        "error": error,
        "fluctuation_meV_per_atom": {n: float(np.mean(v)) for n, v in noise.items()},
        "traces_ps_meV": traces,
        "met": excess <= 2 * together,
        "target": "np 2 no more than np 1 (within twice the standard error)",
        "line": f"NVE over {size.drift_steps:,} steps of 1 fs ({len(atoms)} atoms of silicon at "
        f"about 300 K, a trained student, single precision, {size.drift_seeds} starts) drifts by "
        f"{mean[1]:+.3f} ± {error[1]:.3f} meV per atom and ns on one rank and "
        f"{mean[2]:+.3f} ± {error[2]:.3f} on two (fitted slopes, standard error over starts).",
    }


def _trained_student(setup: Setup) -> Path:
    """The student that `make demo` left, or one from the same recipe."""
    if setup.trained.exists():
        return setup.trained.resolve()
    own = (setup.folder / "demo" / "student.pt").resolve()
    if own.exists():
        return own
    if not setup.install:
        raise NotMeasuredError(f"no trained student at {setup.trained}; `make demo` makes one")
    recipe = Path(__file__).parents[2] / "examples" / "demo_silicon.yaml"
    config = setup.folder / "demo.yaml"
    config.write_text(re.sub(r"(?m)^output:.*$", f"output: {own.parent}", recipe.read_text()))
    command = [sys.executable, "-m", "mlff_distiller.cli", "distill", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotMeasuredError(f"no trained student, and training one failed: {reason}")
    return own


# --- 7 ----------------------------------------------------------------------------------------
def large(setup: Setup) -> Result:
    """Peak memory of a large system."""
    size = setup.size
    threads = min(2, len(os.sched_getaffinity(0)))
    case = setup.water(size.large_water, threads=threads)
    commands = f"fix move all nve\nrun {size.large_steps}\ninfo memory\n"
    outcome = run(case, commands, setup.folder)
    atoms, (peak,) = len(case.atoms), outcome.peak_bytes
    return {
        "atoms": atoms,
        "peak_bytes": peak,
        "seconds_per_step": outcome.seconds_per_step,
        "threads": threads,
        "met": peak < MEMORY_TARGET,
        "target": f"< {MEMORY_TARGET / 1e9:.0f} GB",
        "line": f"{atoms:,} atoms of water take {peak / 1e9:.2f} GB at most (peak resident memory "
        f"of lmp over {size.large_steps} steps, one rank of {threads} threads; "
        f"{peak / atoms / 1e3:.1f} kB per atom).",
    }


# --- 8 ----------------------------------------------------------------------------------------
def flat_memory(setup: Setup) -> Result:
    """Resident memory during a long run."""
    size, per_side = setup.size, 2
    # ZBL keeps untrained atoms apart. Nothing is timed: ranks that wait give way to others.
    case = setup.water(per_side, zbl=True, skin=0.3, variables=OVERSUBSCRIBED)
    every = max(1, size.flat_steps // 10)
    settle = max(1, size.flat_steps // 5)
    commands = (
        "fix move all nve\nfix bath all langevin 300 300 0.1 7\n"
        # the largest number of neighbours of a run is reached early, not in the first step
        f"run {settle} post no\ninfo memory\n"
        + f"run {every} post no\ninfo memory\n"
        * (size.flat_steps // every)
    )
    grown, series = {}, {}
    for ranks in (1, 2):
        outcome = run(on_ranks(case, ranks), commands, setup.folder, ranks)
        peaks = outcome.peak_bytes
        series[ranks], grown[ranks] = peaks, peaks[-1] - peaks[0]
    worst = max(grown.values())
    return {
        "atoms": len(case.atoms),
        "steps": size.flat_steps,
        "grown_bytes": grown,
        "series_bytes": series,
        "every": every,
        "met": worst < FLAT_TARGET,
        "target": f"< {FLAT_TARGET / 1e6:.0f} MB of growth",
        "line": f"Over {size.flat_steps:,} steps with the default network the peak memory of lmp "
        f"grows by {grown[1] / 1e6:.2f} MB on one rank and {grown[2] / 1e6:.2f} MB on two "
        f"({len(case.atoms)} atoms of water, {series[1][-1] / 1e6:.0f} MB in all).",
    }
