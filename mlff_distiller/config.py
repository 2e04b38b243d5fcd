"""Every setting of the pipeline. A YAML file mirrors :class:`DistillConfig`.

docs/configuration.md is this file for readers; :mod:`mlff_distiller.settings` loads and checks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlff_distiller.constants import MAX_THREADS, PRECISIONS
from mlff_distiller.elements import MAX_Z
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.pipeline.loop import LoopConfig
from mlff_distiller.purpose import PurposeConfig
from mlff_distiller.sampling.defect_frames import DefectsConfig
from mlff_distiller.sampling.dimers import DimersConfig
from mlff_distiller.sampling.melt import MeltConfig
from mlff_distiller.sampling.modes import ModesConfig
from mlff_distiller.sampling.molecule_frames import MoleculesConfig
from mlff_distiller.sampling.strain import StrainConfig
from mlff_distiller.sampling.walk import WalkConfig
from mlff_distiller.settings import (
    Settings,
    from_dict,
    load_config,
    load_yaml,
    save_yaml,
    section,
    seed_setting,
    setting,
    to_dict,
)

__all__ = [
    "PRESETS",
    "AcceptanceConfig",
    "DataConfig",
    "DefectsConfig",
    "DimersConfig",
    "DistillConfig",
    "EnginesConfig",
    "LoopConfig",
    "MeltConfig",
    "ModelConfig",
    "ModesConfig",
    "MoleculesConfig",
    "PurposeConfig",
    "SamplingConfig",
    "StrainConfig",
    "TeacherConfig",
    "TrainConfig",
    "TrainingConfig",
    "WalkConfig",
    "from_dict",
    "load_config",
    "load_yaml",
    "save_yaml",
    "to_dict",
]


@dataclass(frozen=True)
class ModelConfig(Settings, path="model"):
    """The PaiNN student (Schütt, Unke, Gastegger 2021, arXiv:2102.03150)."""

    hidden_dim: int = setting(
        128,
        "Channels F of the scalar and vector features.",
        above=0,
        multiple_of=8,
        advice="set model.hidden_dim to 64, 128 or 256",
    )
    num_interactions: int = setting(3, "Message + update blocks.", least=1)
    num_rbf: int = setting(20, "Radial basis functions.", least=2)
    # Beyond it a neighbour list of a crystal fits into no memory.
    cutoff: float = setting(
        5.0, "Neighbours at this distance and beyond do not exist.", unit="Å", above=0, most=100
    )
    rbf: str = setting(
        "gaussian", "Radial basis functions.", choices=("gaussian", "bessel", "chebyshev")
    )
    rbf_trainable: bool = setting(
        False, "Train the radial functions too (not those of `chebyshev`: they have no parameters)."
    )
    rbf_per_interaction: bool = setting(False, "Each interaction has radial functions of its own.")
    cutoff_function: str = setting(
        "polynomial",
        "How messages fade out at the cutoff; `cosine` is the paper's: its second derivative "
        "jumps there.",
        choices=("polynomial", "cosine", "mollifier", "switch"),
    )
    # Below 3 the second derivative jumps at the cutoff.
    cutoff_exponent: int = setting(6, "p of the polynomial.", least=3, most=64)
    cutoff_onset: float | None = setting(
        None, "Where the `switch` begins to fall; it needs one below the cutoff.", unit="Å", least=0
    )
    norm: str = setting(
        "smooth",
        "Norm of the vector features. The second derivative of `paper` is wrong at symmetric "
        "sites: for imported weights and to repeat published results.",
        choices=("smooth", "paper"),
    )
    norm_scale: float = setting(1.0, "s of the smooth norm `sqrt(|v|^2 + s^2) - s`.", above=0)
    norm_epsilon: float = setting(
        1e-8, "Epsilon of the paper's norm `sqrt(|v|^2 + epsilon)`.", above=0
    )
    readout_dim: int | None = setting(
        None,
        "Width of the last hidden layer; half of hidden_dim when left out.",
        least=1,
        most=8192,
    )
    max_z: int = setting(MAX_Z, "Largest atomic number that may be asked for.", least=1, most=MAX_Z)
    zbl: bool = setting(
        True,
        "Add Ziegler-Biersack-Littmark repulsion, so that atoms cannot fuse where there are no "
        "training data; training learns the difference to it.",
    )
    zbl_reach: float = setting(
        0.8,
        "Where the repulsion ends, as a share of the sum of covalent radii. Bonds begin at about 0.8; "
        "a repulsion that reaches into them must be cancelled by the network.",
        above=0,
        most=2,
    )
    zbl_switched: bool = setting(
        True, "The repulsion falls smoothly to zero; imported ones may be cut off with a jump."
    )

    @property
    def norm_numbers(self) -> tuple[float, float]:
        """What is added under the root of the norm, and what is subtracted from the root."""
        if self.norm == "paper":
            return self.norm_epsilon, 0.0
        return self.norm_scale**2, self.norm_scale

    @property
    def caveat(self) -> str:
        """What a user should know about the smoothness of the energy; empty if there is nothing.

        The same words as ``ModelFile::caveat`` of the engines.
        """
        clauses = []
        if self.norm_numbers[0] < 1e-4:
            clauses.append(
                "norm of the PaiNN paper, not smooth: force constants, phonons and elastic "
                "constants of symmetric crystals are wrong"
            )
        if self.zbl and not self.zbl_switched:
            clauses.append("repulsion cut off with a step in the energy")
        return "; ".join(clauses)

    def __post_init__(self) -> None:
        super().__post_init__()
        onset = self.cutoff_onset
        if self.cutoff_function == "switch" and (onset is None or onset >= self.cutoff):
            raise InputError(
                f"a switch needs an onset of 0..{self.cutoff} Å (the cutoff), got {onset}; set "
                "model.cutoff_onset"
            )


@dataclass(frozen=True)
class TeacherConfig(Settings, path="teacher"):
    """Who labels the structures."""

    name: str = setting(
        "sevennet-0",
        "A registry name (`mlff-distiller info --teachers`) or `module:Class(kwargs)`.",
    )
    device: str = setting("cpu", "`cpu`, `cuda` or `cuda:N`.")
    options: dict[str, Any] = setting({}, "Keyword arguments for the teacher.")
    batch_size: int = setting(8, "Structures labelled between two writes to disk.", least=1)
    workers: int = setting(
        0,
        "Processes of one thread each that label, and run the student while it is distilled; 0 for "
        "as many as there are CPUs. On a GPU one process labels.",
        least=0,
        most=1024,
    )


@dataclass(frozen=True)
class SamplingConfig(Settings, path="sampling"):
    """How structures are made from the ones that are given."""

    supercell: list[int] = setting(
        [1, 1, 1],
        "Repeats of the starting cells along their vectors; open directions are not repeated. 0 "
        "for as many as make the cell two cutoffs wide.",
        least=0,
        length=3,
    )
    num_rattle: int = setting(
        100, "Rattled (and, when periodic, strained) copies in total.", least=0
    )
    rattle_stdev: list[float] = setting(
        [0.02, 0.05, 0.10, 0.15],
        "Standard deviations of a displacement; copies take them in turn.",
        unit="Å",
        least=0,
    )
    max_strain: float = setting(
        0.04,
        "Largest component of the random symmetric strain of periodic copies; structures with held "
        "atoms are not strained.",
        least=0,
        below=1,
    )
    num_md: int = setting(100, "Frames taken from molecular dynamics in total.", least=0)
    md_temperatures: list[float] = setting(
        [300.0, 600.0, 1200.0], "One trajectory each.", unit="K", above=0
    )
    md_pressures: list[float] = setting(
        [],
        "With every temperature one trajectory each; empty: fixed volume. Structures that are not "
        "periodic in three directions or have held atoms keep their cells.",
        unit="GPa",
    )
    md_timestep: float = setting(1.0, "Time step of the dynamics.", unit="fs", above=0)
    md_interval: int = setting(10, "Steps between two frames.", least=1)
    md_warmup: int = setting(50, "Steps thrown away at the start.", least=0)
    min_distance: float = setting(
        0.6,
        "Frames with a pair closer than this fraction of the sum of covalent radii are rejected.",
        least=0,
    )
    max_force: float = setting(
        30.0, "Labelled frames with a larger force are rejected.", unit="eV/Å", above=0
    )
    isolated_atoms: bool = setting(
        False, "One lone atom of each element: its energy is the reference energy of the element."
    )
    box: float = setting(
        20.0,
        "Edge of the empty cell around dimers and lone atoms, where the teacher needs a cell.",
        unit="Å",
        least=8,
    )
    keep: float = setting(
        1.0,
        "Share of all frames that is kept, by farthest-point selection: near copies are dropped "
        "before they cost labels.",
        above=0,
        most=1,
    )
    seed: int = seed_setting(advice="set sampling.seed or --seed")
    strain: StrainConfig = section(StrainConfig)
    dimers: DimersConfig = section(DimersConfig)
    defects: DefectsConfig = section(DefectsConfig)
    molecules: MoleculesConfig = section(MoleculesConfig)
    modes: ModesConfig = section(ModesConfig)
    walk: WalkConfig = section(WalkConfig)
    melt: MeltConfig = section(MeltConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, count, unit in (
            ("rattle_stdev", self.num_rattle, "Å"),
            ("md_temperatures", self.num_md, "K"),
        ):
            if count and not getattr(self, name):
                raise InputError(
                    f"{name} must hold at least one value, got []; set sampling.{name}, in {unit}"
                )


@dataclass(frozen=True)
class DataConfig(Settings, path="data"):
    """Where labelled data lies and how it is split."""

    path: str | list[str] | dict[str, float] | None = setting(
        None,
        "HDF5 file; `distill` makes it, `train --data` sets it. Several: `[a.h5, b.h5]`, or with "
        "weights `{a.h5: 1, b.h5: 0.2}`: how often a frame of the file is shown in an epoch.",
    )
    valid_fraction: float = setting(
        0.1, "Share of the frames that chooses the best epoch.", least=0, below=1
    )
    test_fraction: float = setting(
        0.1, "Share of the frames that training never sees.", least=0, below=1
    )
    split_seed: int = seed_setting(advice="set data.split_seed")
    memory: float = setting(
        2.0,
        "Files whose frames need less are held in memory; larger ones are read in blocks while "
        "training goes on.",
        unit="GiB",
        least=0,
    )
    neighbor_memory: float = setting(
        1.0,
        "Neighbour lists of frames in memory are kept up to this; the rest is built anew in each "
        "epoch.",
        unit="GiB",
        least=0,
    )

    @property
    def files(self) -> dict[str, float]:
        """Path -> weight of every file, in order."""
        if self.path is None:
            return {}
        paths = [self.path] if isinstance(self.path, str) else self.path
        return dict(paths) if isinstance(paths, dict) else dict.fromkeys(paths, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.path, (list, dict)):
            if not self.path or len(self.files) < len(self.path):
                raise InputError(
                    f"data.path must name at least one file, each once, got {self.path}; give a "
                    "file that counts more a weight: {a.h5: 2, b.h5: 1}"
                )
            for name, weight in self.files.items():
                if not (math.isfinite(weight) and weight > 0):
                    raise InputError(
                        f"the weight of {name} must be finite and > 0, got {weight:g}; set it in "
                        "data.path, or leave the file out"
                    )
        if self.valid_fraction + self.test_fraction >= 1:
            raise InputError(
                "valid_fraction and test_fraction must be >= 0 and sum to less than 1, got "
                f"{self.valid_fraction} and {self.test_fraction}; set data.valid_fraction, "
                "data.test_fraction"
            )


@dataclass(frozen=True)
class TrainingConfig(Settings, path="training"):
    """Optimisation of the student."""

    batch_size: int | None = setting(
        None, "Structures in a step; left out, their number follows from `batch_atoms`.", least=1
    )
    batch_atoms: int | None = setting(
        None,
        "Atoms in a step, as nearly as whole structures allow. Where neither is given: those of 8 "
        "structures of mean size, at most 512, so one structure where they are larger.",
        least=1,
    )
    max_epochs: int = setting(500, "Stop after these passes over the training frames.", least=1)
    max_minutes: float | None = setting(
        None,
        "Stop after this wall-clock time; the schedule is fitted to it.",
        unit="min",
        above=0,
    )
    optimizer: str = setting(
        "soap",
        "`soap` is Adam in the eigenbasis of the gradients of each matrix: fewer steps to an error, "
        "each of which costs more (docs/defaults.md); `adamw` is Adam.",
        choices=("soap", "adamw"),
    )
    learning_rate: float = setting(1e-2, "After the warm-up.", above=0)
    weight_decay: float = setting(
        0.03, "Share of a weight that a step takes, by the learning rate.", least=0
    )
    warmup_steps: int = setting(50, "Steps in which the learning rate rises.", least=0)
    long_run_rate: float = setting(
        0.45,
        "In long runs the rate is at most this over the root of the steps, so that weights which "
        "the labels hardly hold do not wander until the loss blows up; 0: no such bound.",
        least=0,
    )
    schedule: str = setting(
        "cosine",
        "How the learning rate falls: by a cosine to `final_lr_fraction`, or whenever the "
        "validation loss stays on a plateau.",
        choices=("cosine", "plateau"),
    )
    final_lr_fraction: float = setting(
        0.01, "The last learning rate, as a fraction of learning_rate.", least=0, most=1
    )
    plateau_patience: int = setting(
        20, "Epochs without a better validation loss before the learning rate falls.", least=0
    )
    plateau_factor: float = setting(
        0.5, "The learning rate falls by this factor at a plateau.", least=0, most=1
    )
    energy_weight: float = setting(
        10.0, "Weight of the squared error of the energy per atom, in eV/atom.", least=0
    )
    force_weight: float = setting(
        10.0, "Weight of the squared error of a force component, in eV/Å.", least=0
    )
    stress_weight: float = setting(
        1000.0,
        "Weight of the squared error of a stress component, in eV/Å^3; labels without stress "
        "count 0.",
        least=0,
    )
    energy_huber: float = setting(
        0.0, "Larger errors of the energy count linearly (Huber); 0 counts all by their squares.",
        unit="eV/atom", least=0,
    )  # fmt: skip
    force_huber: float = setting(
        0.0, "The same of the length of a force's error.", unit="eV/Å", least=0
    )
    stress_huber: float = setting(
        0.0, "The same of the norm of a stress' error.", unit="eV/Å^3", least=0
    )
    ema_decay: float = setting(
        0.995,
        "Decay of the exponential moving average that is validated and exported; 0 turns it off.",
        least=0,
        below=1,
    )
    gradient_clip: float = setting(10.0, "Largest norm of the gradient; 0 turns it off.", least=0)
    early_stop_patience: int = setting(
        100,
        "Epochs without a better validation (the geometric mean of the mean errors) before "
        "training stops.",
        least=1,
    )
    reference_energies: str = setting(
        "least-squares",
        "Energy of each element: fitted to the training labels (training from a student keeps "
        "that of the student), fitted there, too (`refit`: for labels with another zero of energy), "
        "or `none`.",
        choices=("least-squares", "refit", "none"),
    )
    frozen: list[str] = setting(
        [],
        "Names of parameters that training leaves as they are; patterns such as `embedding*` or "
        "`interactions.0` (all of it).",
    )
    learning_rate_factors: dict[str, float] = setting(
        {},
        "Pattern of names -> factor of the learning rate; the last that fits counts.",
        above=0,
        advice="freeze what shall not move with training.frozen",
    )
    precision: str = setting(
        "float32", "Arithmetic of training and of the exported student.",
        choices=PRECISIONS,
    )  # fmt: skip
    device: str = setting(
        "auto", "`auto` takes a GPU where there is one.", choices=("auto", "cpu", "cuda")
    )
    devices: int = setting(1, "GPUs, or processes on CPUs.", least=1)
    # Absurd numbers crash OpenMP.
    threads: int = setting(
        2,
        "Threads of each process, at most as many as there are CPUs that it may use.",
        least=1,
        most=MAX_THREADS,
    )
    tensorboard: bool = setting(True, "Write curves for TensorBoard where it is installed.")
    seed: int = seed_setting(
        meaning="Of the weights and of the order of batches.", advice="set training.seed or --seed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_atoms is not None:
            raise InputError(
                "batch_size and batch_atoms exclude each other, got "
                f"{self.batch_size} and {self.batch_atoms}; set training.batch_size or "
                "training.batch_atoms"
            )
        weights = [self.energy_weight, self.force_weight, self.stress_weight]
        if not any(weights):
            raise InputError(
                "energy_weight, force_weight and stress_weight must be finite, >= 0 and not all 0, "
                f"got {weights}; set training.force_weight"
            )


@dataclass(frozen=True)
class ExportConfig(Settings, path="export"):
    """The exported file."""

    uncertainty: bool = setting(
        True, "Fit uncertainties of atoms to the training and validation data."
    )


@dataclass(frozen=True)
class EnginesConfig(Settings, path="engines"):
    """What is run with the exported student at the end of ``distill``."""

    lammps: bool = setting(True, "Run LAMMPS.")
    openmm: bool = setting(True, "Run OpenMM.")
    ase: bool = setting(True, "Run ASE.")
    # What is wrong here would else be found only after hours of training.
    temperature: float = setting(300.0, "Of all runs.", unit="K", least=0)
    timestep: float = setting(1.0, "Of all runs.", unit="fs", above=0, most=20)
    nve_steps: int = setting(2000, "Steps at constant energy, in each engine.", least=1)
    npt_steps: int = setting(
        1000, "Steps at constant pressure in LAMMPS, of periodic systems; 0 for none.", least=0
    )
    threads: int = setting(
        1,
        "Of every engine and of the teacher that they are timed against.",
        least=1,
        most=MAX_THREADS,
    )


@dataclass(frozen=True)
class DistillConfig(Settings):
    """The whole run: structures -> labels -> student -> engines -> report."""

    structures: list[str] = setting(
        ...,
        "Files with the starting structure(s), or `builtin:NAME` (silicon, aspirin, ...); the "
        "engines run the first structure.",
        lone=True,
        example="builtin:silicon",
    )
    output: str = setting("runs/distill", "Directory for everything that the run writes.")
    purpose: PurposeConfig = section(PurposeConfig)
    teacher: TeacherConfig = section(TeacherConfig)
    sampling: SamplingConfig = section(SamplingConfig)
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    training: TrainingConfig = section(TrainingConfig)
    export: ExportConfig = section(ExportConfig)
    loop: LoopConfig = section(LoopConfig)
    engines: EnginesConfig = section(EnginesConfig)
    acceptance: AcceptanceConfig = section(AcceptanceConfig)

    def __post_init__(self) -> None:
        if isinstance(self.structures, str):
            object.__setattr__(self, "structures", [self.structures])
        super().__post_init__()
        if not self.structures:
            raise InputError("structures must name at least one file, got []; set structures")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """What ``mlff-distiller train`` reads: the same sections without sampling and teacher."""

    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    training: TrainingConfig = section(TrainingConfig)


#: Ready-made networks, `--preset`: about 27,000, 0.1, 0.6 and 2.3 million parameters.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_dim": 32, "num_interactions": 2},
    "small": {"hidden_dim": 64, "num_interactions": 2},
    "base": {},
    "large": {"hidden_dim": 256, "num_interactions": 3},
}
