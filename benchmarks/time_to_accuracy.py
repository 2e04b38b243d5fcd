"""Wall time of training to a validation force error: ours against SchNetPack's own settings.

The same network (PaiNN, F = 128, 3 interactions, 20 radial functions, 5 Å, float32, AdamW, batches of
ten), the same frames for training and validation, two threads. SchNetPack has its published settings
for this set (lr 1e-3, halved on plateaus, weights 0.01 and 0.99, average of weights 0.995) and
neighbour lists that were made once, without its data loader. Its clock stops at the first epoch that
is good enough. Ours has a learning rate that falls to the end of the minutes, so minutes have to be
given: budgets are tried from short to long, and the first that ends good enough counts.

    python benchmarks/time_to_accuracy.py --schnetpack build/peers/schnetpack/bin/python
    python benchmarks/time_to_accuracy.py --final 60     # minutes: then tested once on the test file
    python benchmarks/time_to_accuracy.py --hot 10       # minutes
    python benchmarks/time_to_accuracy.py --demo runs/demo

--hot asks for extrapolation: the fifth of the frames with the highest potential energies is kept from
training, and the errors there stand beside those on the test file. --demo learns the labels of a
finished demo twice with its network: for 4.2 minutes by automatic differentiation and AdamW, as demos
once did, and for two with what they do now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, processor, write_report
from benchmarks.training_step import NETWORKS, schnetpack_network

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
#: system -> file, frames for validation, error to reach (meV/Å), test file
SYSTEMS: dict[str, tuple[str, int, float, str]] = {
    "ethanol": ("rmd17/rmd17_ethanol_train_01.npz", 50, 20.0, "rmd17/rmd17_ethanol_test_01.npz"),
    "acac": ("acac/train_300K.xyz", 50, 60.0, "acac/test_MD_300K.xyz"),
}
NETWORK = NETWORKS["ethanol"]
BATCH = 10
_KCAL = 0.0433641153087705  # eV


def split(system: str) -> tuple[list[Any], list[Any]]:
    """Frames for training and for validation; the same for all."""
    from mlff_distiller.data.io import read_structures

    name, held_out, _, _ = SYSTEMS[system]
    frames = read_structures(DATA / name)
    order = np.random.default_rng(0).permutation(len(frames))
    return [frames[i] for i in order[held_out:]], [frames[i] for i in order[:held_out]]


def by_energy(system: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Frames for training and for validation as of :func:`split`, less the fifth of the highest energies."""
    fitted, held_out = split(system)
    energies = np.array([f.energy for f in [*fitted, *held_out]])
    highest = float(np.quantile(energies, 0.8))
    hot = [f for f in [*fitted, *held_out] if f.energy > highest]
    cold = [[f for f in frames if f.energy <= highest] for frames in (fitted, held_out)]
    return cold[0], cold[1], hot


def data_file(system: str, folder: Path, frames: tuple[list[Any], list[Any]] | None = None) -> Path:
    """The frames of :func:`split`, or those given, with their splits; made where it is missing."""
    from mlff_distiller.data import HDF5Writer
    from mlff_distiller.data.hdf5 import store_splits

    path = folder / f"{system}.h5"
    if not path.exists():
        fitted, held_out = frames or split(system)
        numbers = np.arange(len(fitted) + len(held_out))
        with HDF5Writer(path) as writer:
            writer.append([*fitted, *held_out])
        parts = np.split(numbers, [len(fitted)])
        store_splits(path, {"train": parts[0], "valid": parts[1], "test": numbers[:0]})
    return path


def ours(
    system: str,
    minutes: float,
    threads: int,
    folder: Path,
    frames: tuple[list[Any], list[Any]] | None = None,
) -> dict[str, Any]:
    """A training of this package that ends after ``minutes``; frames of :func:`split` or those given."""
    path = data_file(system, folder, frames)
    training = {"batch_size": BATCH, **_until(minutes, threads)}
    config = {"data": {"path": str(path)}, "model": NETWORK, "training": training}
    return {"minutes": minutes, **_trained(config, folder / f"{system}-{minutes:g}")}


def demo(run: Path, threads: int, folder: Path) -> list[dict[str, Any]]:
    """The labels of ``run`` learned as before there were native training steps, and as now."""
    from dataclasses import asdict

    from mlff_distiller.config import DistillConfig
    from mlff_distiller.ops.training import native_training
    from mlff_distiller.settings import load_config

    config = load_config(run / "config.yaml", DistillConfig)
    rows = []
    for name, native, minutes, changed in (
        (
            "automatic differentiation, AdamW",
            False,
            4.2,
            {"optimizer": "adamw", "learning_rate": 3e-3},
        ),
        ("now", True, 2.0, {}),
    ):
        training = {**asdict(config.training), **changed, **_until(minutes, threads)}
        settings = {
            "data": {**asdict(config.data), "path": str(run / "data.h5")},
            "model": asdict(config.model),
            "training": training,
        }
        with native_training(native):
            row = _trained(settings, folder / name.split()[0])
        rows.append({"name": name, "minutes": minutes, **row})
    return rows


def _until(minutes: float, threads: int) -> dict[str, Any]:
    """Keys of TrainingConfig for a training that only its minutes end."""
    return {
        "max_minutes": minutes,
        "max_epochs": 10**9,
        "early_stop_patience": 10**9,
        "threads": threads,
        "tensorboard": False,
    }


def _trained(config: dict[str, Any], output: Path) -> dict[str, Any]:
    """Train; seconds, epochs, and the validation errors of the epoch with the best forces."""
    from mlff_distiller.config import TrainConfig, from_dict
    from mlff_distiller.training import train
    from mlff_distiller.training.history import read_history

    start = time.perf_counter()
    train(from_dict(TrainConfig, config), output)
    seconds = time.perf_counter() - start
    history = read_history(output / "history.csv")
    best = int(np.nanargmin(history["valid_force_mae"]))
    return {
        "seconds": seconds,
        "force_mae": 1e3 * float(history["valid_force_mae"][best]),
        "energy_mae": 1e3 * float(history["valid_energy_mae"][best]),
        "epochs": len(history["valid_force_mae"]),
        "output": str(output),
    }


def schnetpack(system: str, target: float, threads: int, minutes: float, source: Path) -> None:
    """Worker: trains until the error is below ``target`` and prints what it took, a line an epoch."""
    import torch
    from schnetpack.train import ReduceLROnPlateau

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with np.load(source) as file:
        arrays = dict(file)
    model = schnetpack_network(NETWORK)
    frames = [_inputs(arrays, m) for m in range(len(arrays["energy"]))]
    # As its AddOffsets does: the mean energy of the training frames is taken off.
    count = int(arrays["num_train"])
    mean = float(np.mean([f["energy"] for f in frames[:count]]))
    for f in frames:
        f["energy"] = f["energy"] - mean
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    plateau = ReduceLROnPlateau(
        optimizer, mode="min", factor=0.5, patience=75, threshold=0.0, cooldown=10
    )
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    valid = [_joined(frames[i : i + 50]) for i in range(count, len(frames), 50)]
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    epoch = 0
    while time.perf_counter() - start < 60.0 * minutes:
        order = rng.permutation(count)
        for first in range(0, count - BATCH + 1, BATCH):
            inputs, energy, forces = _joined([frames[i] for i in order[first : first + BATCH]])
            found = model(inputs)
            loss = 0.01 * (found["energy"] - energy).square().mean()
            loss = loss + 0.99 * (found["forces"] - forces).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update_parameters(model)
        epoch += 1
        losses, errors = [], []
        for inputs, energy, forces in valid:
            found = averaged({k: v.clone() for k, v in inputs.items()})
            errors.append(float((found["forces"].detach() - forces).abs().mean()))
            losses.append(
                0.01 * float((found["energy"] - energy).square().mean())
                + 0.99 * float((found["forces"] - forces).square().mean())
            )
        plateau.step(float(np.mean(losses)))
        mae = 1e3 * _KCAL * float(np.mean(errors))
        row = {"epoch": epoch, "seconds": time.perf_counter() - start, "force_mae": mae}
        print(json.dumps(row), flush=True)
        if mae <= target:
            break


def _inputs(arrays: dict[str, Any], m: int) -> dict[str, Any]:
    """One frame with its neighbour list, in kcal/mol and Å as SchNetPack's settings are for."""
    from ase import Atoms
    from ase.neighborlist import neighbor_list

    a, b = arrays["splits"][m], arrays["splits"][m + 1]
    atoms = Atoms(arrays["numbers"][a:b], arrays["positions"][a:b])
    i, j = neighbor_list("ij", atoms, NETWORK["cutoff"])
    return {
        "numbers": arrays["numbers"][a:b],
        "positions": arrays["positions"][a:b],
        "i": i,
        "j": j,
        "energy": float(arrays["energy"][m]) / _KCAL,
        "forces": arrays["forces"][a:b] / _KCAL,
    }


def _joined(frames: list[dict[str, Any]]) -> tuple[dict[str, Any], Any, Any]:
    import torch

    starts = np.cumsum([0, *(len(f["numbers"]) for f in frames)])

    def tensor(values: list[Any], kind: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(values)).to(kind)

    edges = [f["i"] + s for f, s in zip(frames, starts, strict=False)]
    others = [f["j"] + s for f, s in zip(frames, starts, strict=False)]
    idx_i = tensor(edges, torch.long)
    inputs = {
        "_atomic_numbers": tensor([f["numbers"] for f in frames], torch.long),
        "_positions": tensor([f["positions"] for f in frames], torch.float32),
        "_cell": torch.zeros(len(frames), 3, 3),
        "_idx_i": idx_i,
        "_idx_j": tensor(others, torch.long),
        "_offsets": torch.zeros(len(idx_i), 3),
        "_idx_m": torch.repeat_interleave(torch.arange(len(frames)), torch.tensor(np.diff(starts))),
        "_n_atoms": torch.tensor(np.diff(starts)),
    }
    energy = torch.tensor([f["energy"] for f in frames], dtype=torch.float32)
    return inputs, energy, tensor([f["forces"] for f in frames], torch.float32)


def peer(
    system: str, python: str, target: float, threads: int, minutes: float, folder: Path
) -> list[dict[str, Any]]:
    """Rows of SchNetPack's training, one an epoch."""
    fitted, held_out = split(system)
    frames = [*fitted, *held_out]
    source = folder / f"{system}.npz"
    np.savez(
        source,
        numbers=np.concatenate([f.atomic_numbers for f in frames]),
        positions=np.concatenate([f.positions for f in frames]),
        forces=np.concatenate([f.forces for f in frames]),
        energy=np.array([f.energy for f in frames]),
        splits=np.cumsum([0, *(len(f) for f in frames)]),
        num_train=len(fitted),
    )
    command = [python, __file__, "--worker", system, str(target), str(threads), str(minutes)]
    rows = []
    with subprocess.Popen(
        [*command, str(source)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
            if len(rows) % 20 == 0:
                print(f"  epoch {rows[-1]['epoch']}: {rows[-1]['force_mae']:.1f} meV/Å", flush=True)
    if not rows:
        raise SystemExit("SchNetPack's process ended before its first epoch; its output says why")
    return rows


def errors_on(frames: list[Any], output: Path) -> dict[str, float]:
    """Errors of the forces, meV/Å."""
    from mlff_distiller.evaluation import predict
    from mlff_distiller.students import StudentForceField

    found = predict(StudentForceField.load(output / "best.ckpt"), frames)
    errors = np.concatenate([p.forces - f.forces for p, f in zip(found, frames, strict=True)])
    return {
        "mae": 1e3 * float(np.abs(errors).mean()),
        "rmse": 1e3 * float(np.sqrt(np.square(errors).mean())),
        "frames": len(frames),
    }


def _told(errors: dict[str, float]) -> str:
    return f"force MAE {errors['mae']:.2f}, RMSE {errors['rmse']:.2f} meV/Å on {errors['frames']}"


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        system, target, threads, minutes, source = sys.argv[2:7]
        schnetpack(system, float(target), int(threads), float(minutes), Path(source))
        return
    from mlff_distiller.data.io import read_structures

    parser = parser_of(__doc__, output=RESULTS, whole=True)
    parser.add_argument("--schnetpack", help="a Python that has schnetpack")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 1, 2, 4, 8, 16])
    parser.add_argument("--most", type=float, default=60.0, help="minutes for SchNetPack")
    parser.add_argument("--final", type=float, help="train for these minutes, and test")
    parser.add_argument(
        "--hot", type=float, help="train for these minutes, test above the energies"
    )
    parser.add_argument("--demo", type=Path, help="folder of a finished demo: learn its labels")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    name = "time_to_accuracy" if options.final is None else "final_accuracy"
    if options.hot is not None:
        name = "extrapolation"
    if options.demo is not None:
        name, options.systems = "demo_training", []
    report: dict[str, Any] = {"processor": processor(), "threads": options.threads, "systems": {}}
    lines = [f"{options.threads} threads. {processor()}.", ""]
    with tempfile.TemporaryDirectory(prefix="mlff-accuracy-") as made:
        folder = Path(made)
        if options.demo is not None:
            report["demo"] = demo(options.demo, options.threads, folder)
            lines += [
                f"{row['name']}, {row['minutes']:g} min ({row['epochs']} epochs): "
                f"{row['force_mae']:.1f} meV/Å, {row['energy_mae']:.2f} meV/atom"
                for row in report["demo"]
            ]
        for system in options.systems:
            target = SYSTEMS[system][2]
            test = read_structures(DATA / SYSTEMS[system][3])
            if options.final is not None:
                row = ours(system, options.final, options.threads, folder)
                row["test"] = errors_on(test, Path(row["output"]))
                report["systems"][system] = row
                lines.append(f"{system}, {options.final:g} min: {_told(row['test'])} test frames")
                continue
            if options.hot is not None:
                cold, valid, hot = by_energy(system)
                row = ours(system, options.hot, options.threads, folder, (cold, valid))
                row["test"] = errors_on(test, Path(row["output"]))
                row["hot"] = errors_on(hot, Path(row["output"]))
                report["systems"][system] = row
                lines.append(
                    f"{system}, {options.hot:g} min on {len(cold)} frames: {_told(row['test'])} "
                    f"test frames; {_told(row['hot'])} frames above all energies of training"
                )
                continue
            tries = []
            for minutes in options.budgets:
                tries.append(ours(system, minutes, options.threads, folder))
                print(f"{system}: {minutes:g} min, {tries[-1]['force_mae']:.1f} meV/Å", flush=True)
                if tries[-1]["force_mae"] <= target:
                    break
            row = {"target": target, "ours": tries}
            lines.append(
                f"{system}, to {target:g} meV/Å: ours {tries[-1]['seconds']:.0f} s "
                f"({tries[-1]['force_mae']:.1f} meV/Å)"
            )
            if options.schnetpack:
                rows = peer(
                    system, options.schnetpack, target, options.threads, options.most, folder
                )
                row["schnetpack"] = rows
                reached = "" if rows[-1]["force_mae"] <= target else ", not reached"
                ratio = rows[-1]["seconds"] / tries[-1]["seconds"]
                lines[-1] += (
                    f", SchNetPack {rows[-1]['seconds']:.0f} s ({rows[-1]['force_mae']:.1f} meV/Å"
                    f"{reached}), ratio {ratio:.1f}"
                )
            report["systems"][system] = row
    rows = [*report["systems"].values(), *report.get("demo", [])]
    for row in rows:  # folders that are gone
        for one in (row, *row.get("ours", [])):
            one.pop("output", None)
    text = "\n".join(lines) + "\n"
    print(text)
    write_report(options.output, name, report, text)


if __name__ == "__main__":
    main()
