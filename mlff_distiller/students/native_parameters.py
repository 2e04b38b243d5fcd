"""``native.bin``: the parameters of a student for the native engine, which needs no libtorch."""

from __future__ import annotations

import torch
from torch import Tensor

from mlff_distiller.students.file import FORMAT_VERSION
from mlff_distiller.students.student import StudentForceField


def native_parameters(student: StudentForceField, min_distance: float) -> bytes:
    """Parameters for the native engine: a text header, then raw little-endian numbers.

    The header has one item a line: ``mlff-native 2``, then ``key value...``, then
    ``tensor NAME f32|f64 NDIM DIM... BYTE_OFFSET``, then ``end DATA_BYTES``. The data follow the
    last newline; offsets count from there. Keys that are not as their names say:

    ``norm EPSILON SHIFT``
        the norm of vectors v is ``sqrt(|v|^2 + EPSILON) - SHIFT``.
    ``filter K BASIS NUM_RBF CUTOFF_FUNCTION [PARAMETER]``
        of interaction K; the parameter is the exponent of a polynomial or the onset of a switch.
    ``repulsion none|switched|cut``
        see :class:`~mlff_distiller.students.repulsion.PairRepulsion`.

    The tensors ``uncertainty.*`` are optional; older readers pass over them.
    """
    config, painn = student.config, student.painn
    tensors: dict[str, Tensor] = {
        name: value for name, value in painn.state_dict().items() if not name.startswith("bases.")
    }
    for k in range(config.num_interactions):
        basis = painn.bases[min(k, len(painn.bases) - 1)]
        for name, value in basis.state_dict().items():
            tensors[f"interactions.{k}.rbf.{name}"] = value
    tensors["reference_energies"] = student.reference_energies
    repulsion = "none"
    if student.repulsion is not None:
        repulsion = "switched" if student.repulsion.switched else "cut"
        for name, value in student.repulsion.state_dict().items():
            tensors[f"repulsion.{name}"] = value
    if student.uncertainty is not None:
        for name, value in student.uncertainty.state_dict().items():
            tensors[f"uncertainty.{name}"] = value
    dtype = "float64" if painn.embedding.weight.dtype == torch.float64 else "float32"
    epsilon, shift = config.norm_numbers
    parameter = {"polynomial": config.cutoff_exponent, "switch": config.cutoff_onset}
    lines = [
        f"mlff-native {FORMAT_VERSION}",
        f"hidden_dim {config.hidden_dim}",
        f"num_interactions {config.num_interactions}",
        f"readout_dim {painn.readout[0].out_features}",
        f"cutoff {student.cutoff!r}",
        f"norm {epsilon!r} {shift!r}",
        *(
            f"filter {k} {config.rbf} {config.num_rbf} {config.cutoff_function} "
            f"{parameter.get(config.cutoff_function, '')}".rstrip()
            for k in range(config.num_interactions)
        ),
        f"repulsion {repulsion}",
        f"dtype {dtype}",
        "elements " + " ".join(str(z) for z in student.elements),
        f"min_distance {min_distance!r}",
        "units_energy eV",
        "units_length Ang",
    ]
    blocks: list[bytes] = []
    offset = 0
    for name, value in tensors.items():
        kind = "f64" if value.dtype == torch.float64 else "f32"
        array = value.detach().cpu().contiguous().numpy().astype(f"<{kind[0]}{int(kind[1:]) // 8}")
        dims = " ".join(str(n) for n in array.shape)
        lines.append(f"tensor {name} {kind} {array.ndim} {dims} {offset}")
        blocks.append(array.tobytes())
        offset += len(blocks[-1])
    lines.append(f"end {offset}\n")
    return "\n".join(lines).encode("ascii") + b"".join(blocks)
