"""SOAP: its mathematics against a plain form, and its place in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.labelled import emt_crystals, tiny_config, write

from mlff_distiller.config import TrainConfig
from mlff_distiller.errors import InputError
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.students.versions import upgrade_training
from mlff_distiller.training import Hooks, train
from mlff_distiller.training.history import read_history
from mlff_distiller.training.soap import SOAP, _parts


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in shapes
    ]


def gradients(shape: tuple[int, ...], count: int, seed: int = 1) -> list[torch.Tensor]:
    """Correlated along rows and columns, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (shape[0], shape[-1])
    )
    return [
        left @ torch.randn(shape, generator=generator, dtype=torch.float64) @ right
        for _ in range(count)
    ]


def plain_soap(weight, gradients, rate, betas, decay, refresh):
    """One matrix, step by step as in the paper: the average gradient lives in the old axes."""
    first, second = betas
    weight, g = weight.clone(), gradients[0]
    left, right = g @ g.T, g.T @ g
    average, squares = torch.zeros_like(g), torch.zeros_like(g)

    def floor(matrix):
        return 1e-5 * torch.diag(matrix).mean()

    def first_basis(matrix):
        ramp = torch.diag(torch.linspace(1, 0, len(matrix), dtype=matrix.dtype))
        return torch.linalg.eigh(matrix + floor(matrix) * ramp)[1].flip(1)

    def next_basis(matrix, old):
        return torch.linalg.qr(matrix @ old + floor(matrix) * old)[0]

    u, v = first_basis(left), first_basis(right)
    for steps, g in enumerate(gradients[1:], start=1):
        average = first * average + (1 - first) * g
        squares = second * squares + (1 - second) * (u.T @ g @ v) ** 2
        roots = (squares / (1 - second**steps)).sqrt() + 1e-8
        roots = roots + 1e-4 * (roots**2).mean().sqrt()
        step = (u.T @ average @ v) / (1 - first**steps) / roots
        weight = weight * (1 - rate * decay) - rate * (u @ step @ v.T)
        if steps % 2 == 0:
            left = second * left + (1 - second) * g @ g.T
            right = second * right + (1 - second) * g.T @ g
        if steps % refresh == 0:
            rows = torch.diag(u.T @ left @ u).argsort(descending=True)
            columns = torch.diag(v.T @ right @ v).argsort(descending=True)
            squares = squares[rows][:, columns]
            u, v = next_basis(left, u[:, rows]), next_basis(right, v[:, columns])
    return weight


def stepped(optimizer, parameters, gradients) -> None:
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("refresh", [1, 3, 100])
def test_a_matrix_is_stepped_as_in_the_paper(refresh):
    (weight,) = parameters((12, 9))
    grads = gradients((12, 9), 20)
    keys = {"betas": (0.9, 0.8), "weight_decay": 0.3, "refresh": refresh}
    expected = plain_soap(weight.detach(), grads, 0.01, (0.9, 0.8), 0.3, refresh)
    stepped(SOAP([weight], lr=0.01, **keys), [weight], [[g] for g in grads])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-10)


def test_blocks_are_stepped_on_their_own():
    """24 x 16 in blocks of at most 8: six matrices that do not know each other."""
    (weight,) = parameters((24, 16))
    grads = gradients((24, 16), 8)
    expected = torch.empty(24, 16, dtype=torch.float64)
    for i in range(0, 24, 8):
        for j in range(0, 16, 8):
            part = (slice(i, i + 8), slice(j, j + 8))
            expected[part] = plain_soap(
                weight.detach()[part], [g[part] for g in grads], 0.01, (0.95, 0.95), 0.0, 3
            )
    stepped(SOAP([weight], lr=0.01, block=8, refresh=3), [weight], [[g] for g in grads])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-10)


def test_equal_blocks_of_several_matrices_are_one_stack():
    student = parameters((192, 64), (64, 64), (64, 128), (192, 20), (3, 64), (64,), (1, 32))
    stacks, others = _parts(student, 64)
    assert [[tuple(p.parameter.shape) for p in stack.pieces] for stack in stacks] == [
        [(192, 64), (64, 64), (64, 128)],
        [(192, 20)],
    ]
    assert [tuple(p.shape) for p in others] == [(3, 64), (64,), (1, 32)]
    for piece in stacks[0].pieces:
        values = piece.parameter.detach()
        blocks = piece.blocks(values)
        assert blocks.shape == (values.numel() // 64**2, 64, 64)
        assert torch.equal(blocks[0], values[:64, :64])
        assert torch.equal(blocks[-1], values[-64:, -64:])
        assert torch.equal(piece.matrix(blocks), values)
    # No equal pieces of a prime number of rows: single ones are not worth a basis.
    assert _parts(parameters((67, 64)), 64)[0] == []


def test_vectors_and_thin_matrices_are_stepped_by_adam_and_do_not_decay():
    own, theirs = (parameters((5,), (3, 40), (1, 1)) for _ in "ab")
    adam = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    soap = SOAP(own, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for p, q in zip(own, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            q.grad = p.grad.clone()
        adam.step()
        soap.step()
    for p, q in zip(own, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_it_finds_what_adam_does_not_in_turned_axes():
    """A quadratic whose narrow axes lie across the weights."""
    generator = torch.Generator().manual_seed(0)
    turn, other = (
        torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))[0]
        for _ in "ab"
    )
    scales = torch.logspace(0, -2, 16, dtype=torch.float64)

    def loss_after(make) -> float:
        (weight,) = parameters((16, 16))
        optimizer = make([weight])
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 - step / 300)
            loss = ((scales[:, None] * (turn.T @ weight @ other) * scales) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after(SOAP) < 0.1 * loss_after(torch.optim.Adam)


def test_no_gradient_counts_as_zero_and_only_matrices_decay():
    weights = parameters((16, 16), (4,))
    before = [p.detach().clone() for p in weights]
    stepped(SOAP(weights, lr=0.1), weights, [[None, None]] * 25)
    assert all(torch.equal(p, q) for p, q in zip(weights, before, strict=True))
    stepped(SOAP(weights, lr=0.1, weight_decay=1.0), weights, [[None, None]] * 2)
    torch.testing.assert_close(weights[0].detach(), 0.9 * before[0])  # the first step moves none
    assert torch.equal(weights[1], before[1])


def test_a_restored_state_goes_on_bit_for_bit():
    shapes = [(32, 16), (16, 16), (7,)]
    grads = [list(row) for row in zip(*(gradients(s, 14) for s in shapes[:2]), strict=True)]
    grads = [[*row, torch.full((7,), float(i), dtype=torch.float64)] for i, row in enumerate(grads)]
    whole, pieces = parameters(*shapes), parameters(*shapes)
    stepped(SOAP(whole, block=16, refresh=3), whole, grads)
    first = SOAP(pieces, block=16, refresh=3)
    stepped(first, pieces, grads[:8])
    second = SOAP(pieces, block=16, refresh=3)
    second.load_state_dict(first.state_dict())
    stepped(second, pieces, grads[8:])
    assert all(torch.equal(p, q) for p, q in zip(whole, pieces, strict=True))


# -- in training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "cu.h5", emt_crystals(16))


def soap_config(data: Path, **training) -> TrainConfig:
    return tiny_config(data, **{"optimizer": "soap", "max_epochs": 6, **training})


def final(folder: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(folder / "last.ckpt")
    return {**content["model"], **content["training"]["student"]}


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path):
    """With groups of their own rates, of which each has its state; a basis is turned at step 10."""
    config = soap_config(data, frozen=["embedding"], learning_rate_factors={"readout": 0.5})
    train(config, tmp_path / "whole", progress=False)

    class Stopping(Hooks):
        def after_step(self, run, loss):
            if run.step in (4, 13):
                run.stop()

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", resume=resume, hooks=Stopping(), progress=False)
    train(config, tmp_path / "run", resume=True, progress=False)
    one, other = final(tmp_path / "whole"), final(tmp_path / "run")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_two_processes_equal_one(data, tmp_path):
    same = {"precision": "float64", "schedule": "plateau", "device": "cpu"}
    for name, devices in (("one", 1), ("two", 2)):
        config = soap_config(data, devices=devices, **same)
        train(config, tmp_path / name, progress=False)
    a, b = (read_history(tmp_path / name / "history.csv") for name in ("one", "two"))
    assert a["valid_loss"].tolist() == pytest.approx(b["valid_loss"].tolist(), rel=1e-6)


def test_a_run_goes_on_with_its_own_optimiser_only(data, tmp_path):
    train(soap_config(data, max_epochs=1), tmp_path / "run", progress=False)
    adam = tiny_config(data, optimizer="adamw", max_epochs=2)
    with pytest.raises(InputError, match=r"training.optimizer soap, got adamw"):
        train(adam, tmp_path / "run", resume=True, progress=False)
    assert upgrade_training({})["optimizer"] == "adamw"
