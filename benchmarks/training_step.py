"""Time of a training step: native operators, automatic differentiation, SchNetPack, graph-pes.

Energies, forces, loss, its gradient by the weights and AdamW, on a batch with its neighbour lists: ten
molecules of ethanol (rMD17, F = 128, 3 interactions, 20 radial functions, 5 Å) and one silicon cell of
64 atoms (F = 64, 2 interactions, 16 radial functions, 5 Å, with stress). Float32. Every way is a
process of its own that waits for its turn; its largest memory is given, and how much of that came
after the imports, the network and the batch.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --schnetpack build/peers/schnetpack/bin/python \\
        --graph-pes build/peers/graphpes/bin/python
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, in_turn, parser_of, processor, spread, write_report

ETHANOL = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "rmd17" / "rmd17_ethanol_train_01.npz"
)
NETWORKS: dict[str, dict[str, Any]] = {
    "ethanol": {"hidden_dim": 128, "num_interactions": 3, "num_rbf": 20, "cutoff": 5.0},
    "silicon": {"hidden_dim": 64, "num_interactions": 2, "num_rbf": 16, "cutoff": 5.0},
}
WAYS = {
    "native": "native operators",
    "torch": "automatic differentiation",
    "schnetpack": "SchNetPack, eager",
    "graph-pes": "graph-pes, eager",
}


def frames(system: str, data: Path) -> list[Any]:
    """Atoms of a batch; the labels of silicon are numbers."""
    from ase import Atoms
    from ase.build import bulk

    if system == "silicon":
        atoms = bulk("Si", cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, seed=0)
        return [atoms]
    with np.load(data) as file:
        return [Atoms(file["nuclear_charges"], file["coords"][i]) for i in range(10)]


def ours(system: str, data: Path, native: bool) -> Callable[[], None]:
    """A step of this package."""
    import torch

    from mlff_distiller.config import ModelConfig
    from mlff_distiller.data import Structure
    from mlff_distiller.data.batch import collate
    from mlff_distiller.ops.training import native_training
    from mlff_distiller.students.student import StudentForceField

    rng = np.random.default_rng(0)
    structures = [
        Structure(
            atomic_numbers=a.numbers.astype(np.int64),
            positions=a.positions,
            cell=np.array(a.cell),
            pbc=a.pbc,
            energy=0.0,
            forces=rng.normal(size=a.positions.shape),
            stress=np.zeros((3, 3)) if a.pbc.all() else None,
        )
        for a in frames(system, data)
    ]
    torch.manual_seed(0)
    elements = sorted({int(z) for s in structures for z in s.atomic_numbers})
    student = StudentForceField(ModelConfig(**NETWORKS[system], zbl=False), elements)
    batch = collate(structures, student.cutoff)
    stress = bool(batch.has_stress.any())
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)

    def step() -> None:
        with native_training(native):
            found = student.compute(batch, stress=stress, create_graph=True)
        loss = (found["energy"] - batch.energy).square().mean()
        loss = loss + (found["forces"] - batch.forces).square().mean()
        if stress:
            loss = loss + (found["stress"] - batch.stress).square().mean()
        loss.backward(inputs=list(student.parameters()))
        optimizer.step()
        optimizer.zero_grad()

    return step


def schnetpack_network(network: dict[str, Any], *, periodic: bool = False) -> Any:
    """SchNetPack's PaiNN of the same size, with random weights.

    Args:
        network: keys of ModelConfig.
        periodic: with a stress.
    """
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances, Strain
    from schnetpack.model import NeuralNetworkPotential
    from schnetpack.nn import CosineCutoff, GaussianRBF
    from schnetpack.representation import PaiNN

    width, cutoff = network["hidden_dim"], network["cutoff"]
    return NeuralNetworkPotential(
        representation=PaiNN(
            n_atom_basis=width,
            n_interactions=network["num_interactions"],
            radial_basis=GaussianRBF(n_rbf=network["num_rbf"], cutoff=cutoff),
            cutoff_fn=CosineCutoff(cutoff),
        ),
        input_modules=[*([Strain()] if periodic else []), PairwiseDistances()],
        output_modules=[Atomwise(n_in=width, output_key="energy"), Forces(calc_stress=periodic)],
    )


def schnetpack(system: str, data: Path) -> Callable[[], None]:
    """A step of SchNetPack's network without its data loader."""
    import torch
    from ase.neighborlist import neighbor_list

    cutoff, periodic = NETWORKS[system]["cutoff"], system == "silicon"
    torch.manual_seed(0)
    model = schnetpack_network(NETWORKS[system], periodic=periodic)
    lists: dict[str, list[Any]] = {k: [] for k in ("z", "r", "cell", "i", "j", "offsets", "m")}
    atoms_before = 0
    for m, atoms in enumerate(frames(system, data)):
        i, j, shifts = neighbor_list("ijS", atoms, cutoff)
        lists["z"].append(atoms.numbers)
        lists["r"].append(atoms.positions)
        lists["cell"].append(np.array(atoms.cell)[None])
        lists["i"].append(i + atoms_before)
        lists["j"].append(j + atoms_before)
        lists["offsets"].append(shifts @ np.array(atoms.cell))
        lists["m"].append(np.full(len(atoms), m))
        atoms_before += len(atoms)

    def tensor(name: str, kind: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(lists[name])).to(kind)

    inputs = {
        "_atomic_numbers": tensor("z", torch.long),
        "_positions": tensor("r", torch.float32),
        "_cell": tensor("cell", torch.float32),
        "_idx_i": tensor("i", torch.long),
        "_idx_j": tensor("j", torch.long),
        "_offsets": tensor("offsets", torch.float32),
        "_idx_m": tensor("m", torch.long),
        "_n_atoms": torch.tensor([len(z) for z in lists["z"]]),
    }

    def predict() -> dict[str, Any]:
        return model({k: v.clone() if v.is_floating_point() else v for k, v in inputs.items()})

    return peer_step(model, predict, inputs["_positions"], stress=periodic)


def graph_pes(system: str, data: Path) -> Callable[[], None]:
    """A step of graph-pes' network of the same size."""
    import torch

    # graph_pes.py of this folder would be found first.
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]
    from graph_pes import AtomicGraph
    from graph_pes.atomic_graph import to_batch
    from graph_pes.models import PaiNN

    network, periodic = NETWORKS[system], system == "silicon"
    torch.manual_seed(0)
    model = PaiNN(
        channels=network["hidden_dim"],
        radial_features=network["num_rbf"],
        layers=network["num_interactions"],
        cutoff=network["cutoff"],
    ).train()
    batch = to_batch([AtomicGraph.from_ase(a, network["cutoff"]) for a in frames(system, data)])
    asked = ["energy", "forces", "stress"] if periodic else ["energy", "forces"]
    return peer_step(model, lambda: model.predict(batch, asked), batch.R, stress=periodic)


def peer_step(
    model: Any, predict: Callable[[], dict[str, Any]], positions: Any, *, stress: bool
) -> Callable[[], None]:
    """The loss of what a peer predicts, its gradient, and AdamW; labels are numbers."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    labels = torch.randn(positions.shape)

    def step() -> None:
        found = predict()
        loss = found["energy"].square().mean() + (found["forces"] - labels).square().mean()
        if stress:
            loss = loss + found["stress"].square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_memory() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(way: str, system: str, threads: int, data: Path) -> None:
    """For every line that comes: seconds of a step (median of some), MiB at most and before steps."""
    import torch

    torch.set_num_threads(threads)
    peers = {"schnetpack": schnetpack, "graph-pes": graph_pes}
    step = peers[way](system, data) if way in peers else ours(system, data, way == "native")
    before = peak_memory()
    for _ in range(3):
        step()
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), peak_memory(), before, flush=True)


def turn(worker: subprocess.Popen[str], steps: int) -> tuple[float, ...]:
    """What a worker prints."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    return tuple(map(float, worker.stdout.readline().split()))


def measure(
    system: str, threads: int, data: Path, pythons: dict[str, str], rounds: int, steps: int
) -> dict[str, list[tuple[float, ...]]]:
    """What the worker of every way prints, one line for each round."""
    workers = {
        way: subprocess.Popen(
            [python, __file__, "--worker", way, system, str(threads), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        for way, python in pythons.items()
    }
    try:
        for worker in workers.values():
            turn(worker, 1)  # imports and warms up
        calls = {way: partial(turn, worker, steps) for way, worker in workers.items()}
        return in_turn(calls, rounds, rotate=True)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        way, system, threads, data = sys.argv[2:6]
        work(way, system, int(threads), Path(data))
        return
    parser = parser_of(__doc__, quick="two rounds of two steps", output=RESULTS, whole=True)
    parser.add_argument("--schnetpack", help="a Python that has schnetpack")
    parser.add_argument("--graph-pes", help="a Python that has graph-pes")
    parser.add_argument("--data", type=Path, default=ETHANOL, help="npz of rMD17 ethanol")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    rounds, steps = (2, 2) if options.quick else (options.rounds, 8)
    pythons = {"native": sys.executable, "torch": sys.executable}
    if options.schnetpack:
        pythons["schnetpack"] = options.schnetpack
    if options.graph_pes:
        pythons["graph-pes"] = options.graph_pes
    rows: list[dict[str, Any]] = []
    for system in NETWORKS:
        if system == "ethanol" and not options.data.exists():
            print(f"{options.data} is not there: ethanol is left out")
            continue
        for threads in (1, 2):
            found = measure(system, threads, options.data, pythons, rounds, steps)
            rows += [
                {
                    "system": system,
                    "threads": threads,
                    "way": way,
                    **spread([seconds for seconds, _, _ in lines]),
                    "peak_mib": lines[-1][1],
                    "before_mib": lines[-1][2],
                }
                for way, lines in found.items()
            ]
    lines = [
        f"A training step in ms, median of {rounds} rounds in turn, and the largest memory of its "
        f"process in MiB (in brackets: what steps added to it). {processor()}.",
        "",
        "| system | threads | " + " | ".join(WAYS[way] for way in pythons) + " |",
        "|---|---|" + "---|" * len(pythons),
    ]
    for system, threads in dict.fromkeys((r["system"], r["threads"]) for r in rows):
        cells = [
            f"{1e3 * r['median_s']:.1f}; {r['peak_mib']:.0f} "
            f"({r['peak_mib'] - r['before_mib']:.0f})"
            for r in rows
            if (r["system"], r["threads"]) == (system, threads)
        ]
        lines.append(f"| {system} | {threads} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if not options.quick:
        report = {"processor": processor(), "rounds": rounds, "rows": rows}
        write_report(options.output, "training_step", report, text)


if __name__ == "__main__":
    main()
