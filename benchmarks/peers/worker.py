"""One peer in its own interpreter: loads it once, then times it whenever it is asked to.

Started by ``run.py`` as ``python worker.py ADAPTER``; needs only the standard library, numpy and ase
besides what the adapter imports. Speaks one JSON object a line. An adapter is a module with

    calculator(atoms, folder, threads, options) -> ASE calculator

Every call moves all atoms by a fresh random step, so that no result and no neighbour list of an
earlier call can be reused, and asks for energy and forces through ASE, as molecular dynamics does.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

STEP = 0.02  # Å, standard deviation of the displacement from the base positions


def memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


class Session:
    """What one worker holds between two requests."""

    def __init__(self, adapter: str) -> None:
        self.adapter_name = adapter

    def load(self, request: dict) -> dict:
        import ase
        import numpy as np

        started = time.perf_counter()
        system = json.loads(Path(request["system"]).read_text())
        self.atoms = ase.Atoms(
            numbers=system["numbers"],
            positions=system["positions"],
            cell=system["cell"],
            pbc=system["pbc"],
        )
        self.base = self.atoms.positions.copy()
        self.random = np.random.default_rng(request["threads"])
        adapter = importlib.import_module(f"adapters.{self.adapter_name}")
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(request["threads"])
        before = memory_kib("VmRSS")
        self.atoms.calc = adapter.calculator(
            self.atoms, Path(request["folder"]), request["threads"], request["options"]
        )
        for _ in range(request["warm_up"]):
            seconds = self.one_call()
        return {
            "load_s": time.perf_counter() - started,
            "call_s": seconds,
            "version": getattr(adapter, "version", lambda: "")(),
            "idle_kib": before,
        }

    def one_call(self) -> float:
        moved = self.base + self.random.normal(scale=STEP, size=self.base.shape)
        started = time.perf_counter()
        self.atoms.positions = moved
        self.atoms.get_potential_energy()
        self.atoms.get_forces()
        return time.perf_counter() - started

    def measure(self, request: dict) -> dict:
        self.one_call()  # caches and clocks after the pause
        wall, cpu = time.perf_counter(), time.process_time()
        seconds = [self.one_call() for _ in range(request["calls"])]
        return {
            "seconds": seconds,
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
        }

    def result(self, _: dict) -> dict:
        self.atoms.positions = self.base
        energy = float(self.atoms.get_potential_energy())
        return {"energy": energy, "forces": self.atoms.get_forces().tolist()}

    def memory(self, _: dict) -> dict:
        return {"peak_kib": memory_kib("VmHWM"), "now_kib": memory_kib("VmRSS")}


def main() -> None:
    # Libraries print; only replies may reach the harness.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(__file__).parent))
    session = Session(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(session, request["op"])(request)
        except Exception as error:
            traceback.print_exc()
            text = (str(error) or type(error).__name__).strip().splitlines()
            reply = {"error": f"{type(error).__name__}: {text[0] if text else ''}"[:300]}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
