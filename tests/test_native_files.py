"""What the native engine refuses, and how: one line that says what to do."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.students import export_to
from support.systems import graph_of, random_system

from mlff_distiller.errors import InputError
from mlff_distiller.ops.engine import NativePotential

OPEN = (np.zeros((3, 3)), np.zeros(3, bool))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("students")
    return export_to(directory, hidden_dim=8, num_interactions=1, num_rbf=4, cutoff=3.0, zbl=False)[
        1
    ]


@pytest.fixture(scope="module")
def native_bytes(path):
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("extra/native.bin"))
        return archive.read(name)


def refused(match, function, *arguments, **keywords):
    with pytest.raises(InputError, match=match) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_native_bin_alone_opens(native_bytes, path, tmp_path):
    (tmp_path / "native.bin").write_bytes(native_bytes)
    case = random_system(8, 5.0, (True, True, True))
    results = [
        NativePotential(p, threads=1).compute(*case)["energy"]
        for p in (path, tmp_path / "native.bin")
    ]
    assert results[0] == results[1]


def test_missing_empty_foreign(tmp_path, path):
    refused("cannot open.*check the path", NativePotential, tmp_path / "none.pt")
    refused("directory|truncated", NativePotential, tmp_path)
    (tmp_path / "empty.pt").write_bytes(b"")
    refused("empty", NativePotential, tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("hello, world\n")
    refused("no exported student", NativePotential, tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("other/data.pkl", b"1")
    refused("without extra/native.bin", NativePotential, tmp_path / "other.pt")


def test_compressed_zip(tmp_path, native_bytes):
    with zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("z/extra/native.bin", native_bytes)
    refused("compressed", NativePotential, tmp_path / "z.pt")


def test_truncated_and_damaged_anywhere(tmp_path, path):
    """Whatever is cut off or flipped in the parameters is noticed."""
    whole = Path(path).read_bytes()
    target = tmp_path / "cut.pt"
    for fraction in (0.001, 0.1, 0.5, 0.9, 0.99, 0.999):
        target.write_bytes(whole[: int(len(whole) * fraction)])
        refused("truncated|no exported student", NativePotential, target)
    start = whole.index(b"mlff-native 2")
    for offset in (3, 40, 900, 2000, 5000):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 0x10
        target.write_bytes(damaged)
        refused("checksum", NativePotential, target)


def test_truncated_native_bin(tmp_path, native_bytes):
    target = tmp_path / "native.bin"
    header = native_bytes.index(b"\nend ")
    for size in [*range(12, header, 97), header + 3, len(native_bytes) - 1]:
        target.write_bytes(native_bytes[:size])
        refused("truncated|no exported student", NativePotential, target)
    target.write_bytes(native_bytes + b"x")
    refused("truncated or damaged", NativePotential, target)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"mlff-native 2", b"mlff-native 3", "version 3.*reads up to 2; upgrade"),
        (b"mlff-native 2", b"mlff-native 1", "lacks the header key 'rbf'"),
        (b"mlff-native 2", b"mlff-native 0", "unreadable header line"),
        (b"hidden_dim 8", b"hidden_dim 9", "multiple of 8"),
        (b"hidden_dim 8", b"hidden_dim x", "must be a number"),
        (b"hidden_dim 8", b"hidden_dim -8", "must be a number within"),
        (b"hidden_dim 8", b"hidden_dim 16", "must have shape"),
        (b"num_interactions 1", b"num_interactions 2", "lacks the header key 'filter 1'"),
        (b"0 gaussian", b"0 wavelets", "must be one of: gaussian bessel chebyshev, got 'wavelets'"),
        (b"0 gaussian", b"0 bessel", "lacks the tensor 'interactions.0.rbf.frequencies'"),
        (b"gaussian 4", b"gaussian -4", "must be 'BASIS NUM_RBF CUTOFF_FUNCTION"),
        (b"polynomial 6", b"step 6", "must be one of: cosine polynomial mollifier switch"),
        (b"polynomial 6", b"polynomial", "must be 'BASIS NUM_RBF CUTOFF_FUNCTION"),
        (b"polynomial 6", b"polynomial 6.5", "must be 'BASIS NUM_RBF CUTOFF_FUNCTION"),
        (b"polynomial 6", b"switch 3.5", "must be 'BASIS NUM_RBF CUTOFF_FUNCTION"),
        (b"polynomial 6", b"polynomial 6 7", "must be 'BASIS NUM_RBF CUTOFF_FUNCTION"),
        (b"norm 1.0 1.0", b"norm 0.0 1.0", "must be two numbers, EPSILON > 0"),
        (b"norm 1.0 1.0", b"norm 1.0", "must be two numbers"),
        (b"norm 1.0 1.0", b"norm nan 1.0", "must be two numbers"),
        (b"readout_dim 4", b"readout_dim 5", "must have shape"),
        (b"cutoff 3.0", b"cutoff nan", "must be a number"),
        (b"cutoff", b"cutof", "lacks the header key 'cutoff'"),
        (b"elements 1 6 8", b"elements 1 6 6", "distinct"),
        (b"elements 1 6 8", b"elements 1 6 999", "within"),
        (b"units_energy eV", b"units_energy kcal", "units must be eV"),
        (b"repulsion none", b"repulsion hard", "must be one of: none switched cut"),
        (b"repulsion none", b"repulsion cut", "lacks the tensor 'repulsion.charge'"),
        (b"f64 2 3 8", b"f64 2 3 -8", "unreadable header line"),
        (b"f64 2 3 8", b"f16 2 3 8", "unreadable header line"),
        (b"f64 2 3 8", b"f64 2 3000 8", "reaches beyond"),
    ],
)
def test_headers_that_make_no_sense(tmp_path, native_bytes, old, new, match):
    assert native_bytes.count(old) >= 1
    (tmp_path / "native.bin").write_bytes(native_bytes.replace(old, new, 1))
    refused(match, NativePotential, tmp_path / "native.bin")


def test_parameters_that_diverged(tmp_path, native_bytes):
    damaged = native_bytes[:-8] + np.array([np.nan]).tobytes()
    (tmp_path / "native.bin").write_bytes(damaged)
    refused("NaN or infinity", NativePotential, tmp_path / "native.bin")


def test_options(path):
    refused("float32 or float64", NativePotential, path, dtype="float16")
    refused("threads must be >= 0", NativePotential, path, threads=-1)
    refused("skin must be >= 0", NativePotential, path, skin=-0.1)
    refused("auto, portable, avx2 or avx512", NativePotential, path, isa="mmx")


def test_systems_that_make_no_sense(path):
    potential = NativePotential(path, threads=1)
    numbers, positions = np.array([6, 1]), np.array([[0.0, 0, 0], [1.1, 0, 0]])
    good = potential.compute(numbers, positions, *OPEN)
    for bad in (np.nan, np.inf):
        moved = positions.copy()
        moved[1, 2] = bad
        refused("must be finite.*atom 1", potential.compute, numbers, moved, *OPEN)
    refused("atom 1 is Fe.*H, C, O", potential.compute, np.array([6, 26]), positions, *OPEN)
    refused("the model knows H, C, O", potential.compute, np.array([6, -5]), positions, *OPEN)
    refused("one point", potential.compute, numbers, positions * 0, *OPEN)
    refused("shape", potential.compute, numbers, positions[:1], *OPEN)
    refused("shape", potential.compute, numbers, positions, np.eye(2), OPEN[1])
    periodic = np.array([True] * 3)
    for cell, match in (
        (np.diag([5.0, 5, -5]), "right-handed"),
        (np.array([[5.0, 0, 0], [0, 5, 0], [5, 5, 0]]), "linearly dependent"),
        (np.diag([5.0, 5, 0]), "lattice vector 2 must not be zero"),
        (np.diag([5.0, 5, np.nan]), "cell must be finite"),
    ):
        refused(match, potential.compute, numbers, positions, cell, periodic)
    again = potential.compute(numbers, positions, *OPEN)  # a refusal leaves no trace
    np.testing.assert_array_equal(again["forces"], good["forces"])


def test_graphs_that_make_no_sense(path):
    from mlff_distiller import _native

    engine = _native.testing.Engine(path, dtype="float64")
    species, offsets, senders, vectors, _ = graph_of(
        *random_system(6, 4.0, (True, True, True), distance=1.2), 3.0
    )

    def begin(**changes):
        graph = {"species": species, "offsets": offsets, "senders": senders}
        engine.begin(**{**graph, "edge_vectors": vectors, **changes})

    begin()
    wrong = senders.copy()
    wrong[0] = len(species)
    refused("senders must lie within", begin, senders=wrong)
    unknown = species.copy()
    unknown[0] = -1
    refused("has no species", begin, species=unknown)
    unknown[0] = 3
    refused("species must be below 3", begin, species=unknown)
    missing = vectors.copy()
    missing[2] = np.nan
    refused("must be finite", begin, edge_vectors=missing)
    refused("offsets must run", begin, offsets=offsets[:-1])
    refused("must not decrease", begin, offsets=np.array([0, 9, 2, *offsets[3:]]))
    assert engine.advance() is None  # nothing was begun
