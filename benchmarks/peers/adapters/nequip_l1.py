"""NequIP with l = 1, 4 layers and 32 features (its small setting), compiled by AOTInductor."""

from importlib.metadata import version as package_version
from pathlib import Path

import torch
from nequip.data import from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
from nequip.utils.aot import aot_export_model
from nequip.utils.aoti_metadata import (
    NEQUIP_AOTI_INPUTS_KEY,
    NEQUIP_AOTI_OUTPUTS_KEY,
    serialize_aoti_keys,
)
from nequip.utils.global_state import get_latest_global_state, set_global_state

CUTOFF = 5.0


def calculator(atoms, folder: Path, threads: int, options: dict):
    symbols = sorted(set(atoms.get_chemical_symbols()))
    device = options.get("device", "cpu")
    suffix = "" if device == "cpu" else f"-{device}"
    path = folder / "nequip" / f"{''.join(symbols)}{suffix}.nequip.pt2"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(atoms, symbols, path, device)
    return NequIPCalculator.from_compiled_model(path, device=device)


def _compile(atoms, symbols: list[str], path: Path, device: str) -> None:
    """What `nequip-compile` does with a trained checkpoint, for a new model."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    set_global_state(allow_tf32=False)
    model = NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        type_names=symbols,
        r_max=CUTOFF,
        num_bessels=8,
        polynomial_cutoff_p=6,
        num_layers=4,
        l_max=1,
        parity=False,
        num_features=32,
        radial_mlp_depth=1,
        radial_mlp_width=128,
        avg_num_neighbors=50.0,
        compile_mode="eager",
    )
    target = COMPILE_TARGET_DICT["ase"]
    if not atoms.pbc.any():  # its check of the compiled model needs a volume for the stress
        atoms = atoms.copy()
        atoms.set_cell([30.0, 30.0, 30.0])
        atoms.pbc = True
    data = from_ase(atoms)
    data = ChemicalSpeciesToAtomTypeMapper(symbols)(data)
    data = NeighborListTransform(r_max=CUTOFF)(data)
    metadata = {**model.metadata, **get_latest_global_state(only_metadata_related=True)}
    metadata = {k: str(int(v)) if isinstance(v, bool) else str(v) for k, v in metadata.items()}
    metadata[NEQUIP_AOTI_INPUTS_KEY] = serialize_aoti_keys(target["input"])
    metadata[NEQUIP_AOTI_OUTPUTS_KEY] = serialize_aoti_keys(target["output"])
    aot_export_model(
        model=model,
        device=torch.device(device),
        input_fields=target["input"],
        output_fields=target["output"],
        data=target["data_settings"](data),
        batch_map=target["batch_map_settings"](
            {
                "graph": torch.export.Dim("num_frames", min=2),
                "node": torch.export.Dim("num_nodes", min=2),
                "edge": torch.export.Dim("num_edges", min=2),
            }
        ),
        output_path=str(unfinished),
        inductor_configs={"aot_inductor.metadata": metadata},
    )
    unfinished.replace(path)


def version() -> str:
    return f"{package_version('nequip')}, torch {torch.__version__}"
