"""Published limits of the cards in gpu_roofline.py, each with its source; bytes, seconds, per second.

Where NVIDIA publishes nothing, the best measurement known: gpu-benches (E. Ernst, github.com/te42kyfo/
gpu-benches, files of an A100-SXM4 80 GB, an H100 PCIe and an H200; H200 and H100-SXM have the same chip and
clocks, so caches and launches are taken from it; of the two only memory differs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12

#: Field of :class:`Card`: where its number comes from.
SOURCES = {
    "sms": "NVIDIA A100 and H100 Tensor Core GPU Architecture whitepapers",
    "clock": "whitepapers: boost clock (H100: that of its FP32 peak, 66.9 TFLOP/s)",
    "fp32_lanes": "whitepapers: FP32 cores of an SM; one fused multiply-add each and cycle",
    "fp64_lanes": "whitepapers: FP64 cores of an SM (without tensor cores)",
    "special_lanes": "CUDA C++ Programming Guide, throughput of arithmetic instructions",
    "issue": "whitepapers: four schedulers of an SM, one warp instruction each and cycle",
    "rows": "whitepapers, tuning guides: 128 bytes a cycle from L1 or shared memory of an SM",
    "tf32": "data sheets, dense",
    "dram": "data sheets",
    "l2": "gpu-benches/gpu-l2-cache (A100 80 GB: 5.4 TB/s, published 5120 bytes/clock; H200: 9.8 TB/s)",
    "l1_bytes": "whitepapers: L1 and shared memory of an SM together",
    "l2_bytes": "whitepapers",
    "bus": "PCIe 4.0 and 5.0, 16 lanes, one direction, after encoding",
    "l1_latency": "gpu-benches/gpu-latency, H100 PCIe (cycles)",
    "l2_latency": "gpu-benches/gpu-latency, A100 80 GB and H100 PCIe (cycles, near half of the L2)",
    "launch_graph": "gpu-benches/gpu-small-kernels: one small kernel after another in a graph",
    "launch_stream": "gpu-benches/gpu-small-kernels: the same, each launched by the host",
    "memory": "data sheets",
}


@dataclass(frozen=True)
class Card:
    """One GPU. Per SM and cycle: ``*_lanes``, ``issue``, ``rows`` (of 128 bytes)."""

    name: str
    sms: int
    clock: float
    fp32_lanes: int
    fp64_lanes: int
    special_lanes: int
    issue: int
    rows: int
    tf32: float
    dram: float
    l2: float
    l1_bytes: float
    l2_bytes: float
    bus: float
    l1_latency: float
    l2_latency: float
    launch_graph: float
    launch_stream: float
    memory: float

    def rates(self) -> dict[str, float]:
        """What a kernel can be bound by: units of work per second of the whole card."""
        cycles = self.sms * self.clock
        return {
            "FP32": cycles * self.fp32_lanes,
            "FP64": cycles * self.fp64_lanes,
            "special": cycles * self.special_lanes,
            "issue": cycles * self.issue,
            "L1": cycles * self.rows,
            "tf32": self.tf32,
            "L2": self.l2,
            "DRAM": self.dram,
            "bus": self.bus,
            "latency": self.clock,
        }


A100 = Card(
    name="A100-SXM 80GB", sms=108, clock=1.41e9, fp32_lanes=64, fp64_lanes=32, special_lanes=16,
    issue=4, rows=1, tf32=156e12, dram=2.039 * TB, l2=5.4 * TB,
    l1_bytes=192 * 1024, l2_bytes=40 * 1024**2, bus=31.5 * GB, l1_latency=34, l2_latency=211,
    launch_graph=1.34e-6, launch_stream=2.6e-6, memory=80 * GB,
)  # fmt: skip
H100 = Card(
    name="H100-SXM 80GB", sms=132, clock=1.98e9, fp32_lanes=128, fp64_lanes=64, special_lanes=16,
    issue=4, rows=1, tf32=494.7e12, dram=3.352 * TB, l2=9.8 * TB,
    l1_bytes=256 * 1024, l2_bytes=50 * 1024**2, bus=63 * GB, l1_latency=34, l2_latency=265,
    launch_graph=1.26e-6, launch_stream=2.4e-6, memory=80 * GB,
)  # fmt: skip
H200 = replace(H100, name="H200-SXM 141GB", dram=4.8 * TB, memory=141 * GB)
CARDS = (A100, H100, H200)
