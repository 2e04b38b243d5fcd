"""The operators as torch sees them: schema, fakes, gradients, bad input, the right library."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from mlff_distiller.errors import InputError
from mlff_distiller.ops import edge_vectors, library, load_library, neighbor_list

PERIODIC = torch.tensor([True, True, True])
OPEN = torch.tensor([False, False, False])
MIXED = torch.tensor([True, False, True])


def random_structure(
    seed: int, n_atoms: int = 12, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cell = 6.0 * torch.eye(3, dtype=dtype) + torch.rand(3, 3, generator=generator, dtype=dtype)
    return torch.rand(n_atoms, 3, generator=generator, dtype=dtype) @ cell, cell


@pytest.fixture(scope="module", autouse=True)
def _library():
    load_library()


class TestTorchIntegration:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("pbc", [PERIODIC, OPEN])
    def test_opcheck(self, dtype, pbc):
        positions, cell = random_structure(0, dtype=dtype)
        torch.library.opcheck(torch.ops.mlff.neighbor_list.default, (positions, cell, pbc, 4.0))

    def test_opcheck_without_edges(self):
        positions, cell = torch.zeros(1, 3), torch.eye(3)
        torch.library.opcheck(torch.ops.mlff.neighbor_list.default, (positions, cell, OPEN, 4.0))

    def test_fake_tensors_carry_a_symbolic_number_of_edges(self):
        with FakeTensorMode(shape_env=ShapeEnv()):
            edge_index, shifts = torch.ops.mlff.neighbor_list(
                torch.rand(5, 3), torch.eye(3), torch.ones(3, dtype=torch.bool), 1.0
            )
        assert edge_index.shape[0] == 2
        assert shifts.shape[1] == 3
        assert isinstance(edge_index.shape[1], torch.SymInt)
        assert edge_index.dtype == shifts.dtype == torch.int64

    def test_compiles_into_one_graph(self):
        """One trace serves structures with different numbers of edges."""

        def total_distance(positions, cell, pbc):
            edge_index, shifts = neighbor_list(positions, cell, pbc, 4.0)
            vectors = edge_vectors(positions, cell, edge_index, shifts)
            return torch.linalg.norm(vectors, dim=1).sum()

        compiled = torch.compile(total_distance, backend="aot_eager", fullgraph=True)
        for seed in range(3):
            positions, cell = random_structure(seed)
            expected = total_distance(positions, cell, PERIODIC)
            torch.testing.assert_close(compiled(positions, cell, PERIODIC), expected)

    def test_positions_that_need_gradients_are_welcome(self):
        positions, cell = random_structure(1)
        expected = neighbor_list(positions, cell, PERIODIC, 4.0)
        for backend in ("native", "reference"):
            found = neighbor_list(
                positions.clone().requires_grad_(),
                cell.clone().requires_grad_(),
                PERIODIC,
                4.0,
                backend=backend,
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=0)

    def test_strided_input(self):
        positions, cell = random_structure(2)
        strided = torch.stack([positions, positions], dim=2)[:, :, 0]
        assert not strided.is_contiguous()
        torch.testing.assert_close(
            neighbor_list(strided, cell.T.contiguous().T, PERIODIC, 4.0),
            neighbor_list(positions, cell, PERIODIC, 4.0),
            rtol=0,
            atol=0,
        )


class TestEdgeVectors:
    def test_point_from_receiver_to_neighbour(self):
        positions = torch.tensor([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0]])
        cell = 3.0 * torch.eye(3)
        edge_index, shifts = neighbor_list(positions, cell, torch.tensor([True, False, False]), 1.0)
        assert edge_index.tolist() == [[1, 0], [0, 1]]
        assert shifts.tolist() == [[-1, 0, 0], [1, 0, 0]]
        vectors = edge_vectors(positions, cell, edge_index, shifts)
        torch.testing.assert_close(vectors, torch.tensor([[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]))

    def test_gradients(self):
        positions, cell = random_structure(3, n_atoms=4)
        edge_index, shifts = neighbor_list(positions, cell, PERIODIC, 3.5)
        assert edge_index.shape[1] > 0

        def function(x, c):
            return edge_vectors(x, c, edge_index, shifts).square().sum(1).sqrt()

        inputs = (positions.requires_grad_(), cell.requires_grad_())
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)

    def test_batch_is_one_by_one(self):
        structures = [random_structure(seed, n_atoms=3 + seed) for seed in range(4)]
        lists = [neighbor_list(x, c, PERIODIC, 4.0) for x, c in structures]
        starts = torch.tensor([0] + [len(x) for x, _ in structures]).cumsum(0)
        structure_index = torch.repeat_interleave(torch.arange(4), starts.diff())
        edge_index = torch.cat([e + s for (e, _), s in zip(lists, starts, strict=False)], dim=1)
        positions = torch.cat([x for x, _ in structures]).requires_grad_()
        cells = torch.stack([c for _, c in structures]).requires_grad_()
        shifts = torch.cat([s for _, s in lists])
        batched = edge_vectors(positions, cells, edge_index, shifts, structure_index)
        singles = [
            edge_vectors(x, c, e, s) for (x, c), (e, s) in zip(structures, lists, strict=True)
        ]
        torch.testing.assert_close(batched, torch.cat(singles))

        grads = torch.autograd.grad(batched.pow(3).sum(), (positions, cells))
        for k, ((x, c), (e, s)) in enumerate(zip(structures, lists, strict=True)):
            x, c = x.clone().requires_grad_(), c.clone().requires_grad_()
            expected = torch.autograd.grad(edge_vectors(x, c, e, s).pow(3).sum(), (x, c))
            torch.testing.assert_close(grads[0][structure_index == k], expected[0])
            torch.testing.assert_close(grads[1][k], expected[1])

    def test_scripted(self):
        positions, cell = random_structure(5)
        edge_index, shifts = neighbor_list(positions, cell, PERIODIC, 4.0)
        scripted = torch.jit.script(edge_vectors)
        torch.testing.assert_close(
            scripted(positions, cell, edge_index, shifts),
            edge_vectors(positions, cell, edge_index, shifts),
        )


def _cell(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


BAD_INPUT = {
    "positions (n_atoms, 3)": ((torch.zeros(4), torch.eye(3), OPEN, 1.0), "(n_atoms, 3), got (4,)"),
    "integer positions": ((torch.zeros(4, 3).long(), torch.eye(3), OPEN, 1.0), "torch.int64"),
    "cell vector": ((torch.zeros(4, 3), torch.ones(3), PERIODIC, 1.0), "(3, 3)"),
    "integer pbc": ((torch.zeros(4, 3), torch.eye(3), torch.ones(3), 1.0), "bool"),
    "cutoff 0": ((torch.zeros(4, 3), torch.eye(3), OPEN, 0.0), "cutoff must be > 0 Å, got 0"),
    "cutoff nan": ((torch.zeros(4, 3), torch.eye(3), OPEN, float("nan")), "cutoff must be > 0"),
    "nan": ((torch.tensor([[0.0] * 3, [0, float("nan"), 0]]), torch.eye(3), OPEN, 1.0), "atom 1"),
    "no cell": ((torch.zeros(4, 3), torch.zeros(3, 3), PERIODIC, 1.0), "cell row 0"),
    "nan cell": ((torch.zeros(4, 3), torch.eye(3) * float("nan"), PERIODIC, 1.0), "cell row 0"),
    "planar cell": (
        (torch.zeros(4, 3), _cell([1, 0, 0], [0, 1, 0], [1.0, 1.0, 0.0]), PERIODIC, 1.0),
        "linearly independent",
    ),
    "parallel rows": (
        (torch.zeros(4, 3), _cell([1, 0, 0], [0, 1, 0], [2.0, 0.0, 0.0]), MIXED, 1.0),
        "linearly independent",
    ),
    "left-handed": (
        (torch.zeros(4, 3), _cell([0, 1, 0], [1.0, 0, 0], [0, 0, 1]), PERIODIC, 1.0),
        "right-handed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_one_line(name, backend):
    arguments, message = BAD_INPUT[name]
    with pytest.raises(InputError) as error:
        neighbor_list(*arguments, backend=backend)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BAD_INPUT)
def test_the_operator_itself_refuses_bad_input(name):
    arguments, _ = BAD_INPUT[name]
    with pytest.raises(ValueError):
        torch.ops.mlff.neighbor_list(*arguments)


def test_unknown_backend():
    with pytest.raises(InputError, match="'native' or 'reference', got 'cuda'"):
        neighbor_list(torch.zeros(1, 3), torch.eye(3), OPEN, 1.0, backend="cuda")


def test_a_cutoff_of_hundreds_of_cells_is_refused_before_memory_runs_out():
    with pytest.raises(ValueError, match="too many images"):
        torch.ops.mlff.neighbor_list(torch.zeros(1, 3), torch.eye(3), PERIODIC, 1000.0)


class TestLibrary:
    def test_names_the_torch_it_was_built_for(self):
        assert torch.ops.mlff.build_torch_version() == torch.__version__
        path = library.native_file(library.LIBRARY)
        assert library.build_torch_version(path) == torch.__version__

    def test_refuses_another_torch_naming_both(self, tmp_path):
        original = library.native_file(library.LIBRARY).read_bytes()
        version = torch.__version__.encode()
        other = b"1" + version[1:]
        assert version + b"\0" in original
        path = tmp_path / "libmlff_ops.so"
        path.write_bytes(original.replace(version + b"\0", other + b"\0"))
        with pytest.raises(InputError) as error:
            library._load(path)
        assert other.decode() in str(error.value)
        assert torch.__version__ in str(error.value)
        assert library.REBUILD in str(error.value)

    def test_a_file_that_is_no_library(self, tmp_path):
        path = tmp_path / "libmlff_ops.so"
        path.write_bytes(b"mlff_build_torch_version=" + torch.__version__.encode() + b"\0")
        with pytest.raises(InputError, match="cannot load") as error:
            library._load(path)
        assert "\n" not in str(error.value)
        path.write_bytes(b"")
        with pytest.raises(InputError, match="torch unknown"):
            library._load(path)

    def test_not_built(self, monkeypatch):
        monkeypatch.setattr(library, "_loaded", False)
        monkeypatch.setattr(library, "native_file", lambda name: None)
        with pytest.raises(InputError, match="expected the compiled operators") as error:
            neighbor_list(torch.zeros(1, 3), torch.eye(3), OPEN, 1.0)
        assert library.REBUILD in str(error.value)
        neighbor_list(torch.zeros(1, 3), torch.eye(3), OPEN, 1.0, backend="reference")
