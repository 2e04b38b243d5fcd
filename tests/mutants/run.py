"""Puts one wrong line after the other into a copy of the package, and asks the tests.

    make mutants
    python tests/mutants/run.py --only training,md_seed --jobs 2

What was killed is remembered in build/mutants while mutation and mutated file stay the same, so an
interrupted run goes on where it stopped; survivors are asked again. ``--again`` forgets, which is
right after tests were changed. ``--write`` writes RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from mutants import rooms  # noqa: E402
from mutants.mutation import Mutation  # noqa: E402
from mutants.shadow import Shadow  # noqa: E402

CACHE = ROOT / "build" / "mutants"
REQUIRED = 0.95


def key_of(mutation: Mutation) -> str:
    return mutation.key(ROOT / "mlff_distiller")


def known() -> dict[str, dict]:
    """Key -> result of earlier runs."""
    path = CACHE / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def ask(shadow: Shadow, mutation: Mutation, timeout: float) -> dict:
    """Mutate, test, and put the file back."""
    path = mutation.place(shadow.package)
    text = path.read_text()
    start = time.monotonic()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        passed, killer = shadow.test(mutation.tests, timeout)
    finally:
        path.write_text(text)
    seconds = round(time.monotonic() - start, 1)
    return {"name": mutation.name, "killed": not passed, "by": killer, "seconds": seconds}


def baseline(shadows: list[Shadow], mutations: list[Mutation], timeout: float) -> None:
    """The tests must pass before anything is wrong: a red one would kill whatever comes."""
    words = sorted(
        {word for m in mutations for word in m.tests.split() if word.startswith("test_")}
    )
    files = {word for word in words if "::" not in word}
    words = [w for w in words if "::" not in w or w.partition("::")[0] not in files]
    print(f"without a mutation: {len(words)} selections of tests", flush=True)
    passed, failed = shadows[0].test(" ".join(words), timeout * len(words), stop=False)
    if not passed:
        sys.exit(f"{failed} fails without any mutation; mend it first")


def select(only: str) -> list[Mutation]:
    names = [name for name in only.split(",") if name]
    unknown = [
        n for n in names if n not in rooms.ALL and not any(n in m.name for m in rooms.every())
    ]
    if unknown:
        sys.exit(
            f"no room or mutation is called {', '.join(unknown)}; rooms: {', '.join(rooms.ALL)}"
        )
    return [
        m
        for room, mutations in rooms.ALL.items()
        for m in mutations
        if not names or any(name == room or name in m.name for name in names)
    ]


def table(results: dict[str, dict]) -> str:
    """RESULTS.md."""
    lines = ["# Mutations and what kills them", ""]
    lines += ["Written by `make mutants`; the list is in rooms/. Do not edit.", ""]
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    body = []
    for room, mutations in rooms.ALL.items():
        body += ["", f"## {room}", "", "| mutation | killed by | why it matters |", "|---|---|---|"]
        for m in mutations:
            result = results.get(key_of(m))
            if result is None:
                continue
            counts[room][0] += result["killed"]
            counts[room][1] += 1
            by = f"`{result['by']}`" if result["killed"] else f"**survives**: {m.survives or '?'}"
            body.append(f"| {m.name} | {by} | {m.why} |")
    killed, total = (sum(c[k] for c in counts.values()) for k in (0, 1))
    lines += ["| room | killed | of |", "|---|---|---|"]
    lines += [f"| {room} | {k} | {n} |" for room, (k, n) in counts.items()]
    asked, listed = total, len(rooms.every())
    if asked < listed:
        lines += [f"| not asked since their file last changed | | {listed - asked} |"]
    lines += [f"| **all** | **{killed}** | **{total}** ({100 * killed / max(total, 1):.1f} %) |"]
    return "\n".join([*lines, *body]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rooms or parts of names, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one mutation")
    parser.add_argument("--again", action="store_true", help="ask again what was asked before")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests unmutated")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    parser.add_argument(
        "--table", action="store_true", help="only write RESULTS.md of what is known"
    )
    options = parser.parse_args()

    if options.table:
        (HERE / "RESULTS.md").write_text(table(known()))
        return
    mutations = select(options.only)
    before = {} if options.again else known()
    keys = {m.name: key_of(m) for m in mutations}
    results = {keys[m.name]: before[keys[m.name]] for m in mutations if keys[m.name] in before}
    left = [m for m in mutations if not results.get(keys[m.name], {}).get("killed")]
    print(f"{len(mutations)} mutations, {len(mutations) - len(left)} known as killed", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    if left:
        shadows = [Shadow(CACHE / f"copy-{k}") for k in range(max(1, options.jobs))]
        if not options.no_baseline:
            baseline(shadows, left, options.timeout)
        free: Queue[Shadow] = Queue()
        for shadow in shadows:
            free.put(shadow)

        def work(mutation: Mutation) -> dict:
            shadow = free.get()
            try:
                return {"key": keys[mutation.name], **ask(shadow, mutation, options.timeout)}
            finally:
                free.put(shadow)

        with ThreadPoolExecutor(len(shadows)) as pool, (CACHE / "results.jsonl").open("a") as log:
            futures = [pool.submit(work, m) for m in left]
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    result = future.result()
                    results[result["key"]] = result
                    log.write(json.dumps(result) + "\n")
                    log.flush()
                    mark = f"killed by {result['by']}" if result["killed"] else "SURVIVED"
                    shown = f"[{done}/{len(left)}] {result['name']}: {mark}"
                    print(f"{shown} ({result['seconds']:.0f} s)", flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for shadow in shadows:
            shadow.close()
    survivors = [m for m in mutations if not results[keys[m.name]]["killed"]]
    killed = len(mutations) - len(survivors)
    print(f"{killed} of {len(mutations)} killed ({100 * killed / max(1, len(mutations)):.1f} %)")
    for m in survivors:
        print(f"  survived: {m.name} ({m.file}): {m.survives or 'NOT EXPLAINED'}")
    if options.write:
        (HERE / "RESULTS.md").write_text(table({**known(), **results}))
    unexplained = [m for m in survivors if not m.survives]
    sys.exit(bool(unexplained) or killed < REQUIRED * len(mutations))


if __name__ == "__main__":
    main()
