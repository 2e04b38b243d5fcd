"""What every kernel of one step on a GPU does, from the shapes: csrc/cuda, launch by launch.

One step is one list of :class:`Launch`; tests/test_gpu_benchmarks.py compares it with what the engine
really launches, its products and its memory with what the engine multiplies and allocates. Work is written
as formulas of :func:`variables`, so that they can be printed beside the kernel's name.

    fp32 fp64 special   lanes' operations; a fused multiply-add is one
    other               warps' instructions that are neither (selects)
    code                warps' instructions in all, as counted in the machine code (SASS, float32)
    rows                trips through L1 of 128 bytes or less (loads, stores, shuffles of a warp)
    l2                  bytes between L1 and L2: what L1 did not have, and all that is written
    passes x dram       bytes between L2 and memory, each array once a pass over the atoms, where they
                        exceed what L2 holds
    chain               cycles of loads of one warp that wait for each other
    multiply            m, n, k and whether C is read, for products
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, pi

from mlff_distiller.constants import ROUNDED_PRODUCTS

WATER = 3 / 3.1043**3  # atoms/Å³ at 1 g/cm³
SKIN, CUTOFF = 0.3, 5.0  # Å
INTERVALS = 256  # of the filter table, as the default model's
HALF_INTERVALS = 128  # of that with slopes in float16
SPECIES = 2
CHANNELS = 32  # of a chunk: one warp
BLOCK_SHARE = 0.67
"""Different senders of the two centres of a block, over all their edges: what L1 fetches if a block's
warps share everything and blocks nothing. Of water in the engine's order of atoms (tested)."""
SASS = {
    "forward_kernel<T, true>": 22,
    "forward_kernel<T, false>": 30,
    "forward_half_kernel<true>": 28,
    "forward_half_kernel<false>": 38,
    "backward_kernel<T, true>": 43,
    "backward_kernel<T, false>": 61,
}
"""Instructions per edge and 32 channels in the machine code of sm_90, as benchmarks/gpu_sass.py counts
them: addresses, conversions and moves take issue slots, too."""
PER_FMA = {4: 1.64, 8: 1.36}
"""Instructions for a warp's multiply-add in products of the fused kernels, by the atoms of a block, counted
the same way."""
FUSED_WORK, FUSED_CHANNELS, FEW_ATOMS = 2560 * 128**2, 128, 512
"""Atoms times channels squared, and channels, up to which the engine takes these; atoms up to which blocks
have four."""
SM_L2 = 64
"""Bytes a cycle that one SM gets from L2."""
BOX_BYTES, STATE_BYTES, TOTALS = 288, 312, 10


@dataclass(frozen=True)
class Shapes:
    """One system and network. ``itemsize``: bytes of a feature. ``list_neighbors`` include the skin.
    ``half``: the filter table has slopes in float16, too (``math`` other than float32)."""

    atoms: int
    channels: int
    interactions: int = 3
    itemsize: int = 4
    neighbors: float = WATER * 4 / 3 * pi * CUTOFF**3
    list_neighbors: float = WATER * 4 / 3 * pi * (CUTOFF + SKIN) ** 3
    intervals: int = INTERVALS
    species: int = SPECIES
    half: bool = False

    @property
    def readout(self) -> int:
        """Width of the readout, padded as the CPU's."""
        lanes = 64 // self.itemsize
        return ceil(self.channels // 2 / lanes) * lanes

    @property
    def edge_capacity(self) -> int:
        """Room for edges: 64 an atom, or what the first list needed and a sixteenth."""
        edges = round(self.atoms * self.list_neighbors)
        return 64 * self.atoms if edges <= 64 * self.atoms else edges + edges // 16


def fused(shapes: Shapes, math: str = "float32", cublas: bool = True) -> int:
    """Atoms of a block where networks are one kernel between two passes over edges, 0 where they are not
    (Network::is_fused; shared memory has room for them)."""
    small = shapes.channels <= FUSED_CHANNELS and shapes.atoms * shapes.channels**2 <= FUSED_WORK
    if math in ROUNDED_PRODUCTS or (cublas and not small):
        return 0
    return 4 if shapes.atoms <= FEW_ATOMS else 8


def variables(
    shapes: Shapes, l1_bytes: float, latencies: tuple[float, float], sms: int = 1, lanes: int = 1
) -> dict[str, float]:
    """What formulas may use. ``far2``, ``far3``: part of the table that does not fit L1, in the first
    and in other interactions; ``half2``, ``half3``: of that with slopes in float16. ``w``: rows of 128
    bytes that 32 features take. ``p``: edges that a warp does in one turn of its loop; ``t``: turns for
    a centre, the last of them not full. ``A``: atoms of a block of the fused kernels, ``B`` blocks,
    ``s`` of them one after the other on an SM of ``z`` lanes."""
    b, chunk = shapes.itemsize, CHANNELS * shapes.itemsize
    at_once = 16 // b
    each = fused(shapes, cublas=False)
    blocks = ceil(shapes.atoms / each)
    lines = (shapes.intervals + 2) * chunk  # bytes of one chunk and row of each interval
    far = {rows: max(0.0, 1 - l1_bytes / (rows * lines)) for rows in (3, 4, 5, 6)}
    return {
        "n": shapes.atoms, "F": shapes.channels, "C": shapes.channels / CHANNELS,
        "H": shapes.readout, "b": b, "w": b / 4, "k": shapes.list_neighbors,
        "e": shapes.neighbors, "R": 32 if b == 4 else 48, "share": BLOCK_SHARE, "row": chunk,
        "far2": far[4], "far3": far[6], "half2": far[3], "half3": far[5],
        "lat1": latencies[0], "lat2": latencies[1],
        "A": each, "B": blocks, "s": ceil(blocks / sms), "z": lanes,
        "p": at_once, "t": (shapes.neighbors + (at_once - 1) / 2) / at_once,
    }  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch. ``name`` as in MLFF_LAUNCH; ``group`` for summaries; formulas default to nothing."""

    name: str
    what: str
    group: str
    fp32: str = "0"
    fp64: str = "0"
    special: str = "0"
    other: str = "0"
    code: str = "0"
    rows: str = "0"
    l2: str = "0"
    dram: str = "0"
    passes: str = "1"
    chain: str = "0"
    issue: bool = False
    """Whether rows are instructions, too, so that schedulers can be the bound."""
    multiply: tuple[str, str, str, bool] | None = None


def _words(name: str, what: str, words: float, **more: str) -> Launch:
    """Element-wise: every thread moves ``words`` features of its own, coalesced."""
    size = f"{words}*n*F*b"
    rows = f"{words}*n*F/32*w"
    return Launch(name, what, "pointwise", rows=rows, l2=size, dram=size, **more)


def _product(what: str, m: str, n: str, k: str, add: bool = False) -> Launch:
    """C (m, n) = A (m, k) B (k, n), in tiles of 128 x 128 for what L2 gives."""
    read_c = 2 if add else 1
    return Launch(
        "product_kernel<T, kMath>", what, "products",
        fp32=f"({m})*({n})*({k})",
        l2=f"b*({m})*(({k})*ceil(({n})/128) + ({k})*({n})/128 + {read_c}*({n}))",
        dram=f"b*(({m})*({k}) + ({k})*({n}) + {read_c}*({m})*({n}))",
        multiply=(m, n, k, add),
    )  # fmt: skip


def list_launches(graph: bool) -> list[Launch]:
    """NeighborList::update where nothing has to be built: a graph skips the kernels of a build by its
    conditional node, without one they return at once."""

    def idle(name: str) -> Launch:
        return Launch(name, "returns at once", "list")

    moved = Launch(
        "find_moved", "distance from the last list", "list",
        fp64="15*n", rows="2*18/32*n", l2="48*n", dram="48*n",
    )  # fmt: skip
    names = (
        "plan_bins clear_counts bin_rows scan_counts scatter_items rank_items "
        "find_neighbors<false> scan_counts check_capacity drop_overflow find_neighbors<true> "
        "scan_counts scatter_items rank_items finish_build"
    )
    return [idle("decide_begin"), moved, *map(idle, () if graph else names.split())]


def geometry_launches() -> list[Launch]:
    size = "n*(k*(16 + 24 + R) + 32)"  # senders, shifts; vectors; records; positions, offsets, ends
    geometry = Launch(
        "geometry_kernel<T>", "edge records", "edges",
        fp64="24*n*k", special="2*n*k", rows="(49 + R/2)/32*n*k + 10*n", l2=size, dram=size,
    )  # fmt: skip
    return [geometry]


# Per turn of a lane, which has p channels of one edge. Forward: spline 10, and per channel each filter 3, s 1, along 1, v 3 (and 3 by w2). Reverse: spline 14, the sums over lanes 4 and
# the spacing 1, and per channel each filter and slope 6, along 3, scale 1, dd 4, g 3; by w2 and the sums
# 12. At the end of a row sums over quarters: 3 and 5 packs of p.
# With slopes in float16 conversions, as the multiply-adds' units do them: 2 or 3 each slope, and 3 for
# the scale of the slopes.
def forward_edges(first: bool, half: bool = False) -> Launch:
    name = f"forward_{'half_kernel<' if half else 'kernel<T, '}{str(first).lower()}>"
    flops, table, source = (11, "8", "2") if first else (17, "12", "5")
    spline = "10"
    far = "8*row*far2*e" if first else "(12*row*far3 + 5*row*share)*e"
    if half:
        flops, table, spline = (17, "5", "13") if first else (26, "8", "13")
        far = "5*row*half2*e" if first else "(8*row*half3 + 5*row*share)*e"
    centre = 4 if first else 8  # rows
    return Launch(
        name, "messages 0" if first else "messages", "edges forward", code=f"{SASS[name]}*n*C*p*t",
        issue=True, passes="C",
        fp32=f"32*n*C*(({flops}*p + {spline})*t + 3*p)", other="n*C*6*p",
        rows=f"n*C*(R/16*t + ({table}*w + {source}*w)*e + 3*p*w + {centre}*w)",
        l2=f"n*C*(R*e + {far} + {centre}*row)",
        dram=f"n*(R*e + {centre}*row)" if first else "n*(R*e + (5 + 8)*row)",
        chain="2*lat1*t" if first else "(lat1 + lat2)*t",
    )  # fmt: skip


def backward_edges(first: bool, add: bool) -> Launch:
    name = f"backward_kernel<T, {str(first).lower()}>"
    partial = 2 if add else 1
    flops, table, source = (23, "8", "2") if first else (38, "12", "4")
    far = "8*row*far2*e" if first else "(12*row*far3 + 4*row*share)*e"
    centre = "4*w" if first else "20*w + 5*p*w"
    return Launch(
        name, "messages 0 reversed" if first else "messages reversed", "edges backward",
        code=f"{SASS[name]}*n*C*p*t", issue=True, passes="C",
        fp32=f"32*n*C*({flops}*p + 19)*t", other="n*C*6*t",
        rows=f"n*C*((R/16 + 4*w + {partial}*w)*t + ({table}*w + {source}*w)*e + {centre})",
        l2=f"n*C*(R*e + {far} + {partial}*4*b*e + {4 if first else 20}*row)",
        dram=f"n*(R*e + {partial}*4*b*e + {4 if first else 20}*row)",
        chain="2*lat1*t" if first else "(lat1 + lat2)*t",
    )  # fmt: skip


def update_forward(last: bool) -> list[Launch]:
    parts = 2 if last else 3
    return [
        _product("mix", "3*n", "2*F", "F"),
        _words("norms_kernel<T>", "norms", 7, fp32="4*n*F", special="n*F"),
        _product("update in", "n", "F", "2*F"),
        _words("silu_kernel<T>", "silu", 3, fp32="6*n*F", special="2*n*F"),
        _product("update out", "n", f"{parts}*F", "F"),
        _words("combine_kernel<T>", "update", 11 if last else 19, fp32="12*n*F"),
    ]


def update_adjoint(last: bool) -> list[Launch]:
    parts = 2 if last else 3
    return [
        _words("adjoint_a_kernel<T>", "update reversed", 9 if last else 13, fp32="8*n*F"),
        _product("update out reversed", "n", "F", f"{parts}*F"),
        _words("scale_kernel<T>", "silu reversed", 3, fp32="n*F"),
        _product("update in reversed", "n", "2*F", "F"),
        _words("adjoint_vu_kernel<T>", "norms reversed", 15 if last else 19,
               fp32="20*n*F", special="2*n*F"),
        _product("mix reversed", "3*n", "F", "2*F", add=not last),
        _words("adjoints_kernel<T>", "rows of adjoints", 9, fp32="n*F"),
    ]  # fmt: skip


def readout() -> list[Launch]:
    narrow = "n*H*b"
    energies = Launch(
        "readout_kernel<T>", "silu, energies", "pointwise", fp32="8*n*H", special="2*n*H",
        fp64="n*(H + 5*32)",
        rows="n*(5*H/32*w + 10 + 3)", l2=f"3*{narrow} + 12*n", dram=f"3*{narrow} + 12*n",
    )  # fmt: skip
    return [
        _product("readout", "n", "H", "F"),
        energies,
        _product("readout reversed", "n", "F", "H"),
    ]


def next_message() -> list[Launch]:
    return [
        _product("message in", "n", "F", "F"),
        _words("silu_kernel<T>", "silu", 3, fp32="6*n*F", special="2*n*F"),
        _product("message out", "n", "3*F", "F"),
        _words("features_kernel<T>", "rows of features", 12, fp32="6*n*F"),
    ]


def message_adjoint() -> list[Launch]:
    return [
        _product("message out reversed", "n", "F", "3*F"),
        _words("scale_kernel<T>", "silu reversed", 3, fp32="n*F"),
        _product("message in reversed", "n", "F", "F", add=True),
    ]


def _fused(
    name: str, what: str, atoms: int, macs: str, weights: str, moved: str, kept: str
) -> Launch:
    """Networks in one launch. In units of F squared: ``macs`` of an atom, ``weights`` that each block
    reads; in features of an atom and channel: ``moved`` through L2, ``kept`` before or after. A block
    has an SM to itself: its multiply-adds and its weights are a chain."""
    size = f"F*F*({weights})"
    return Launch(
        f"{name}<T, {atoms}>", what, "networks", issue=True,
        fp32=f"n*(F*F*({macs}) + 40*F)", special="6*n*F",
        code=f"{PER_FMA[atoms]}/32*n*F*F*({macs})",
        # Of A p p multiply-adds of a warp: p rows of weights, four trips each, A numbers for all lanes.
        rows=f"n*(F*F*({macs})*(4*p + A)/(A*p*p) + 2*F*w*({moved}))/32",
        l2=f"b*(B*{size} + n*F*({moved}))", dram=f"b*({size} + n*F*({kept}))",
        chain=f"s*max(A*F*F*({macs})/z, b*{size}/{SM_L2})",
    )  # fmt: skip


def fused_forward(atoms: int) -> Launch:
    return _fused("update_kernel", "update, next message network", atoms, "15", "11", "45", "25")


def fused_turn(atoms: int) -> Launch:
    h = "2*H/F"
    return _fused("turn_kernel", "last update, readout, reversed", atoms, f"20 + {h}", f"12 + {h}",
                  "45", "19")  # fmt: skip


def fused_backward(atoms: int) -> Launch:
    return _fused(
        "reverse_kernel", "message network, update, reversed", atoms, "15", "11", "27", "21"
    )


def force_launches() -> list[Launch]:
    pair = "n*(k*(R + 24 + 24) + 4*b*C*e + 12*8 + 8)"
    return [
        Launch("pair_kernel<T>", "pair gradients", "forces",
               fp64="n*(k*(28 + 4*C) + 13*5*32)", special="2*n*e",
               rows="n*((k*(R/2 + 18 + 18) + 16*w*C*e)/32 + 13*5*2 + 12)", l2=pair, dram=pair),
        Launch("finish_kernel<false>", "forces, totals", "forces",
               fp64="n*(3*k + 3*5*32 + 10)",
               # Lanes' edges lie apart (three numbers each), their indices do not; shuffles of halves.
               rows="n*(3*k + k/32 + 3*5*2 + 6 + (2 + 9*24)/32)",
               l2="n*(k*(4 + 48) + 12*8 + 24 + 8 + 96)",
               dram="n*(k*(4 + 24) + 12*8 + 24 + 8 + 96)"),
    ]  # fmt: skip


def step(interactions: int, graph: bool = True, fuse: int = 4, half: bool = False) -> list[Launch]:
    """The launches of one step with forces, list not rebuilt, in order (Network, System).

    Args:
        interactions: of the network.
        graph: the idle list is behind one conditional node.
        fuse: as :func:`fused` has it.
        half: slopes of the filters in float16.
    """
    launches = [*list_launches(graph), *geometry_launches()]
    for k in range(interactions):
        last = k + 1 == interactions
        launches.append(forward_edges(k == 0, half))
        if fuse:
            launches.append(fused_turn(fuse) if last else fused_forward(fuse))
        else:
            launches += update_forward(last)
            launches += [*readout(), *update_adjoint(True)] if last else next_message()
    for k in reversed(range(interactions)):
        launches.append(backward_edges(k == 0, add=k + 1 != interactions))
        if k > 0 and fuse:
            launches.append(fused_backward(fuse))
        elif k > 0:
            launches += [*message_adjoint(), *update_adjoint(False)]
    return launches + force_launches()


SPLITS = ("kernel", "producer", "product")


def split_products(launches: list[Launch], where: str) -> list[Launch]:
    """What the engine does not do: products as accurate as float32's on tensor cores. Each is one of TF32,
    three times as deep, [hi hi lo] [hi; lo; hi] of factors hi + lo; weights are split when they are loaded.

    Args:
        launches: of a step with products one by one.
        where: the other factors are split by a ``kernel`` of its own; by their ``producer``, which writes three
            numbers for one (and would have to write four where float32 arithmetic reads the number, too); or
            by the ``product`` itself, in registers, which no function of cuBLAS does on these cards.
    """
    found = []
    for x in launches:
        if x.multiply is None:
            found.append(x)
            continue
        m, n, k, add = x.multiply
        deep = _product(x.what, m, n, f"3*({k})", add)
        factor = f"({m})*({k})"
        if where == "kernel":  # reads one, writes three
            moved = f"4*b*{factor}"
            found.append(
                Launch("split_kernel", f"factors of {x.what}", "split",
                       rows=f"4*w*{factor}/32", l2=moved, dram=moved)
            )  # fmt: skip
        elif where == "producer":
            moved = f" + 2*b*{factor}"
            deep = replace(deep, l2=deep.l2 + moved, dram=deep.dram + moved)
        else:
            deep = replace(deep, l2=x.l2, dram=x.dram)
        found.append(deep)
    return found


def total_shares(atoms: int) -> int:
    """Blocks that share the totals, which the host adds up."""
    return min(max(ceil(atoms / 512), 1), 64)


def bus_bytes(atoms: int) -> tuple[int, int]:
    """Up (cell, positions) and down (energies, forces, totals, state of the list), per step."""
    totals = 8 * TOTALS * total_shares(atoms)
    return BOX_BYTES + 24 * atoms, 32 * atoms + totals + STATE_BYTES


COPIES = 6
"""Of a step; a graph has a conditional node besides."""


#: Box and state of the neighbour list, bytes.
LIST_RECORDS = 600


def memory_bytes(shapes: Shapes) -> dict[str, int]:
    """Device memory of a system (System::memory_bytes): by what it grows with."""
    n, f, b, cap = shapes.atoms, shapes.channels, shapes.itemsize, shapes.edge_capacity
    inner, h, kinds = shapes.interactions - 1, shapes.readout, shapes.species
    per_atom_features = 10 * f * shapes.interactions + 10 * f * inner + 10 * f + 2 * h
    per_atom_features += (8 if inner else 4) * f + 18 * f  # of the reverse pass
    atoms = n * b * per_atom_features
    atoms += n * (8 * (6 + 12 + 1 + 3) + 4 * 13) + 3 * 4 * max(n, 64) + 4 * 3  # lists, sums, forces
    record = 32 if b == 4 else 48
    edges = cap * (record + 24 + 24 + f // CHANNELS * 4 * b + 7 * 4)
    matrices = sum(  # both ways: mix, update in, update out
        2 * (2 * f * f + 2 * f * f + (2 if k == inner else 3) * f * f)
        + f + (2 if k == inner else 3) * f
        for k in range(shapes.interactions)
    )  # fmt: skip
    matrices += inner * (2 * (f * f + 3 * f * f) + 4 * f)  # message
    matrices += 2 * f * h + (1 + kinds) * h  # readout, one last layer per species
    matrices += kinds * 3 * f  # embedding, features of species
    table = 2 * (shapes.intervals + 2) * f * (2 + 3 * inner)
    if shapes.half:
        table += (shapes.intervals + 2) * f * (3 + 5 * inner)
    fixed = b * (matrices + table) + 8 * (kinds + TOTALS * total_shares(n)) + LIST_RECORDS
    return {"atoms": atoms, "edges": edges, "fixed": fixed}
