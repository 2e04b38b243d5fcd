"""Files that the importer of SchNetPack refuses: options without a twin, damage, code."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from support.schnetpack_files import (
    AddOffsets,
    MollifierCutoff,
    fake_model,
    under_schnetpack_names,
)
from torch import nn

from mlff_distiller.errors import InputError
from mlff_distiller.importers import import_model
from mlff_distiller.importers.inert_pickle import read_torch_file


@pytest.fixture
def schnetpack_names(monkeypatch):
    yield from under_schnetpack_names(monkeypatch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": lambda _: nn.Tanh()}, "cutoff function Tanh, expected one of CosineCutoff"),
        ({"cutoff": lambda c: MollifierCutoff(c, 0.1)}, "eps 0.1.*thousandth of the cutoff"),
        ({"activation": nn.functional.tanh}, "expected silu"),
        ({"epsilon": 0.0}, "epsilon 0.0, expected one number > 0"),
        ({"mode": "avg"}, "aggregation_mode 'avg'"),
        ({"postprocessors": [AddOffsets(1.0, None, extensive=False)]}, "is_extensive"),
        ({"postprocessors": [nn.Tanh()]}, "postprocessor torch.nn.modules.activation.Tanh"),
    ],
)
def test_options_that_a_student_lacks(tmp_path, schnetpack_names, options, message):
    torch.save(fake_model(**options), tmp_path / "best_model")
    with pytest.raises(InputError, match=message):
        import_model(tmp_path / "best_model", energy_unit="eV", elements="H")


def test_other_contents(tmp_path, schnetpack_names):
    read = functools.partial(import_model, tmp_path / "file", energy_unit="eV", elements="H")
    with pytest.raises(InputError, match="no such file"):
        read()
    torch.save(nn.Linear(2, 2), tmp_path / "file")
    with pytest.raises(InputError, match="expected a trained PaiNN of SchNetPack"):
        read()
    model = fake_model()
    model.representation = nn.Linear(2, 2)
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="expected SchNetPack's PaiNN"):
        read()
    model = fake_model()
    model.representation.mixing[1].epsilon = 1e-6
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="expected one number > 0 for all layers"):
        read()
    torch.save({"a": torch.ones(2)}, tmp_path / "file")
    with pytest.raises(InputError, match="embedding"):
        read()
    torch.save(3.0, tmp_path / "file")
    with pytest.raises(InputError, match="float"):
        read()
    model = fake_model()
    model.representation.electronic_embeddings.append(nn.Linear(2, 2))
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="electronic"):
        read()
    model = fake_model()
    model.representation.filter_net.weight.data[0, 0] = float("nan")
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="finite"):
        read()
    with pytest.raises(InputError, match="unit"):
        import_model(tmp_path / "file", energy_unit="calories")


def test_damaged_files(tmp_path, schnetpack_names):
    torch.save(fake_model(), tmp_path / "good")
    data = (tmp_path / "good").read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 5):
        (tmp_path / "bad").write_bytes(data[:cut])
        with pytest.raises(InputError):
            read_torch_file(tmp_path / "bad")
    middle = bytearray(data)
    middle[len(data) // 2] ^= 0xFF  # the zip's checksum notices
    (tmp_path / "bad").write_bytes(middle)
    with pytest.raises(InputError):
        read_torch_file(tmp_path / "bad")


class _Malicious:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def _write_archive(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("where", ["top", "inside", "in a list"])
def test_code_in_a_pickle_is_refused(tmp_path, where):
    mark = tmp_path / "executed"
    call = _Malicious(os.system, f"touch {mark}")
    content = {"top": call, "inside": {"state_dict": {"x": call}}, "in a list": [1, [call]]}[where]
    _write_archive(tmp_path / "bad", content)
    with pytest.raises(InputError, match=r"call (posix|os|nt)\.system"):
        import_model(tmp_path / "bad", energy_unit="eV")
    assert not mark.exists()
    _write_archive(tmp_path / "bad", [_Malicious(eval, "open('x', 'w')")])
    with pytest.raises(InputError, match=r"eval"):
        read_torch_file(tmp_path / "bad")
    _write_archive(tmp_path / "bad", [_Malicious(getattr, nn.Linear, "mro")])
    with pytest.raises(InputError, match=r"getattr"):
        read_torch_file(tmp_path / "bad")


def test_a_file_cannot_alter_what_reads_it(tmp_path):
    """BUILD with a slot state is pickle's setattr; it must not reach the reader's own objects."""
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x09\x00\x00\x00_functioncos\nsystem\ns\x86b."
    with zipfile.ZipFile(tmp_path / "bad", "w") as archive:
        archive.writestr("model/data.pkl", program)
    with contextlib.suppress(InputError):
        read_torch_file(tmp_path / "bad")
    torch.save({"x": torch.arange(6).view(2, 3).T}, tmp_path / "good")
    assert torch.equal(read_torch_file(tmp_path / "good")["x"], torch.arange(6).view(2, 3).T)


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((1 << 40,), (1,), 0), ((2,), (1,), 3), ((4,), (-1,), 3)]
)
def test_a_tensor_stays_inside_its_storage(tmp_path, size, stride, offset):
    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return (
                ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(obj, Storage) else None
            )

    build = torch._utils._rebuild_tensor_v2
    with zipfile.ZipFile(tmp_path / "bad", "w") as archive:
        with archive.open("model/data.pkl", "w") as file:
            args = (Storage(), offset, size, stride, False, collections.OrderedDict())
            Pickler(file, protocol=2).dump(_Malicious(build, *args))
        archive.writestr("model/data/0", np.zeros(4, "<f4").tobytes())
    with pytest.raises(InputError, match="damaged"):
        read_torch_file(tmp_path / "bad")
