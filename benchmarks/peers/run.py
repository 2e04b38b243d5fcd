"""Time this package and its peers side by side, in one run.

    python benchmarks/peers/run.py                      everything
    python benchmarks/peers/run.py --quick              few repetitions, one thread, two systems
    python benchmarks/peers/run.py --peers ours,schnetpack --systems aspirin

Each peer is installed once in an environment of its own (``build/peers/venvs``). For every system and
number of threads all peers are loaded as separate processes, warmed up and stopped; then rounds go
through them in turn, only one process running at a time, so that a slow minute of the machine hits all.
Where they do not fit into memory together they go in groups, and we are measured again in each: every
ratio is within one group. A peer that cannot be measured is a row with its reason.

Both sides run with glibc told to keep large blocks (see MALLOC), which peers need and we do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from benchmarks.common import parser_of, processor, random_student
from benchmarks.peers.environments import PEERS, Peer, python_of
from benchmarks.peers.report import write
from benchmarks.peers.systems import SYSTEMS, write_system

HERE = Path(__file__).resolve().parent
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """A peer in its own process, stopped whenever it is not asked for something."""

    def __init__(
        self,
        peer: Peer,
        python: Path,
        threads: int,
        cache: Path,
        tuned: bool,
        gpu: bool = False,
    ) -> None:
        environment = dict(os.environ)
        environment.update(MALLOC if tuned else {})
        environment.update({name: str(threads) for name in THREAD_VARIABLES})
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
        environment["TORCHANI_NO_WARN_EXTENSIONS"] = "1"
        if not gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if peer.environment:
            environment.pop("PYTHONPATH", None)
        self.peer = peer
        self.threads = threads
        self.log = cache / "logs" / f"{peer.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [str(python), str(HERE / "worker.py"), peer.adapter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.seconds: list[float] = []
        self.rounds: list[float] = []
        self.cpu_s = self.wall_s = 0.0
        self.facts: dict = {}

    def ask(self, op: str, timeout: float = 600.0, **request) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps({"op": op, **request}) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        except BrokenPipeError:
            ready = []
        if not ready and self.process.poll() is None:
            raise RuntimeError(f"no answer to {op} within {timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.process.wait()}; see {self.log.name}")
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def close(self) -> None:
        """End the process and the helpers (compilers) that it started, a session of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def row(self) -> dict:
        calls = sorted(self.seconds)
        return {
            "median_s": statistics.median(calls),
            "best_s": calls[0],
            "rounds_low_s": min(self.rounds),
            "rounds_high_s": max(self.rounds),
            "calls": len(calls),
            "cpu_per_wall": self.cpu_s / self.wall_s,
            **self.facts,
        }


class Benchmark:
    """The schedule and what it has found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cache = Path(options.cache).resolve()
        self.report: dict = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "malloc_tuned": not options.no_malloc_tuning,
            "systems": {},
            "results": [],
        }
        self.broken: dict[str, str] = {}  # environment -> reason

    def run(self) -> None:
        wanted = [p for p in PEERS if p.name in self.options.peers]
        for peer in wanted:
            try:
                python_of(peer.environment, self.cache)
            except (RuntimeError, OSError) as error:
                self.broken[peer.environment] = str(error)
        self.make_our_model(any(p.environment == "schnetpack" for p in wanted))
        for name in self.options.systems:
            facts = write_system(name, self.cache / "systems")
            self.report["systems"][name] = {"label": SYSTEMS[name][1], **facts}
            for threads in self.options.threads:
                self.measure(name, threads, wanted)
                write(self.report, Path(self.options.output))

    def make_our_model(self, with_schnetpack: bool) -> None:
        """Our student is the import of SchNetPack's network, or one of random weights."""
        self.cache.mkdir(parents=True, exist_ok=True)
        source, target = self.cache / "best_model", self.cache / "student.pt"
        if with_schnetpack and not source.exists() and "schnetpack" not in self.broken:
            try:
                python = python_of("schnetpack", self.cache)
                code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); " + (
                    "from adapters.schnetpack_painn import make; make(pathlib.Path(sys.argv[2]))"
                )
                command = [str(python), "-c", code, str(HERE), str(source)]
                subprocess.run(command, check=True, capture_output=True)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                self.broken["schnetpack"] = str(error)
        if source.exists():
            from mlff_distiller.importers import convert_model

            convert_model(source, target, "eV", "Ang", "H,C,O,Si")
            self.report["weights"] = "identical to SchNetPack's"
        else:
            random_student(target, (1, 6, 8, 14))
            self.report["weights"] = "random"

    def measure(self, system: str, threads: int, peers: list[Peer]) -> None:
        """All peers on one system, in groups that fit into memory."""
        print(f"\n{SYSTEMS[system][1]}, {threads} thread(s)", flush=True)
        waiting = list(peers)
        group = 0
        while waiting:
            workers: list[Worker] = []
            used = 0.0
            try:
                if group and any(p.name == "ours" for p in peers):
                    ours = next(p for p in peers if p.name == "ours")
                    if worker := self.start(ours, system, threads, group):
                        workers.append(worker)
                while waiting and used < self.options.memory:
                    worker = self.start(waiting.pop(0), system, threads, group)
                    if worker:
                        workers.append(worker)
                        used += worker.facts["resident_GB"]
                self.rounds(workers, system, threads, group)
                self.finish(workers, system, threads, group)
            finally:
                for worker in workers:
                    worker.close()
            group += 1

    def start(self, peer: Peer, system: str, threads: int, group: int) -> Worker | None:
        reason = self.broken.get(peer.environment)
        if system in peer.without:
            reason = peer.why_not
        worker = None
        if not reason:
            try:
                python = python_of(peer.environment, self.cache)
                tuned = not self.options.no_malloc_tuning
                worker = Worker(peer, python, threads, self.cache, tuned)
                reply = worker.ask(
                    "load",
                    timeout=self.options.load_timeout,
                    system=self.report["systems"][system]["path"],
                    folder=str(self.cache),
                    threads=threads,
                    options=peer.options,
                    warm_up=peer.warm_up,
                )
                memory = worker.ask("memory")
                worker.facts = {
                    "version": reply["version"],
                    "load_s": reply["load_s"],
                    "idle_GB": reply["idle_kib"] / 2**20,
                    "resident_GB": memory["now_kib"] / 2**20,
                    "first_s": reply["call_s"],
                }
                print(f"  {peer.name}: loaded in {reply['load_s']:.0f} s", flush=True)
                return worker
            except (RuntimeError, OSError) as error:
                reason = str(error)
                if worker:
                    worker.close()
        print(f"  {peer.name}: not measured: {reason}", flush=True)
        self.add(peer, system, threads, group, {"not_measured": reason})
        return None

    def rounds(self, workers: list[Worker], system: str, threads: int, group: int) -> None:
        """Visit the workers in turn; one that fails on the way leaves with its reason."""
        spent = {id(w): 0.0 for w in workers}
        for number in range(self.options.rounds):
            for worker in list(workers):
                if number >= 2 and spent[id(worker)] > self.options.seconds_per_peer:
                    continue
                each = worker.seconds[-1] if worker.seconds else worker.facts["first_s"]
                calls = max(1, min(200, round(self.options.seconds_per_visit / each)))
                started = time.perf_counter()
                try:
                    reply = worker.ask("measure", calls=calls)
                except RuntimeError as error:
                    self.add(worker.peer, system, threads, group, {"not_measured": str(error)})
                    workers.remove(worker)
                    worker.close()
                    continue
                spent[id(worker)] += time.perf_counter() - started
                worker.seconds += reply["seconds"]
                worker.rounds.append(statistics.median(reply["seconds"]))
                worker.cpu_s += reply["cpu_s"]
                worker.wall_s += reply["wall_s"]

    def finish(self, workers: list[Worker], system: str, threads: int, group: int) -> None:
        results = {}
        for worker in workers:
            row = worker.row()
            row["peak_GB"] = worker.ask("memory")["peak_kib"] / 2**20
            if worker.peer.name in ("ours", "schnetpack"):
                results[worker.peer.name] = worker.ask("result")
            atoms = self.report["systems"][system]["atoms"]
            print(
                f"  {worker.peer.name:20s} {row['median_s'] * 1e3:10.3f} ms  "
                f"{row['median_s'] * 1e6 / atoms:9.1f} µs/atom  peak {row['peak_GB']:.2f} GB",
                flush=True,
            )
            self.add(worker.peer, system, threads, group, row)
        if len(results) == 2:
            ours, theirs = results["ours"], results["schnetpack"]
            largest = max(
                abs(a - b)
                for x, y in zip(ours["forces"], theirs["forces"], strict=True)
                for a, b in zip(x, y, strict=True)
            )
            self.report["systems"][system]["agreement_with_schnetpack"] = {
                "energy_eV_per_atom": abs(ours["energy"] - theirs["energy"]) / len(ours["forces"]),
                "force_eV_per_A": largest,
                "largest_force_eV_per_A": max(abs(a) for x in ours["forces"] for a in x),
            }

    def add(self, peer: Peer, system: str, threads: int, group: int, row: dict) -> None:
        self.report["results"].append(
            {
                "peer": peer.name,
                "label": peer.label,
                "system": system,
                "threads": threads,
                "group": group,
                **row,
            }
        )


def main() -> None:
    parser = parser_of(__doc__, quick="aspirin and small water, one thread")
    names = [p.name for p in PEERS]
    parser.add_argument("--peers", default=",".join(names), help="of: " + ", ".join(names))
    parser.add_argument("--systems", help="of: " + ", ".join(SYSTEMS))
    parser.add_argument("--threads", help="1,2 when left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds-per-visit", type=float, default=0.5)
    parser.add_argument("--seconds-per-peer", type=float, default=20.0)
    parser.add_argument("--memory", type=float, default=12.0, help="GB that one group may hold")
    parser.add_argument("--load-timeout", type=float, default=1200.0, help="s; some compile")
    parser.add_argument("--no-malloc-tuning", action="store_true")
    parser.add_argument("--cache", default="build/peers", help="environments and models")
    parser.add_argument("--output", default="build/peers/report", help="folder of the report")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds_per_visit, options.seconds_per_peer = 2, 0.1, 5.0
    every = "aspirin,water-192" if options.quick else ",".join(SYSTEMS)
    options.peers = options.peers.split(",")
    options.systems = (options.systems or every).split(",")
    threads = options.threads or ("1" if options.quick else "1,2")
    options.threads = [int(t) for t in threads.split(",")]
    for given, known in ((options.peers, names), (options.systems, list(SYSTEMS))):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    Benchmark(options).run()


if __name__ == "__main__":
    main()
