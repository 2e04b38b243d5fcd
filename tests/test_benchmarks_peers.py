"""The harness of benchmarks/peers: ours is timed, a broken peer is a row with its reason."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("run", "report", "systems", "environments")
    return [importlib.import_module(f"benchmarks.peers.{name}") for name in names]


def test_a_run_with_a_broken_peer(harness, tmp_path, monkeypatch):
    run, _, _, environments = harness
    peers = (
        environments.PEERS[0],
        environments.Peer("gone", "A peer that is gone", "no_such_adapter", ""),
        environments.Peer("ani", "ANI", "ani", "", without=("aspirin",), why_not="a reason"),
    )
    monkeypatch.setattr(run, "PEERS", peers)
    options = argparse.Namespace(
        cache=str(tmp_path),
        output=str(tmp_path / "report"),
        peers=["ours", "gone", "ani"],
        systems=["aspirin"],
        threads=[1],
        rounds=2,
        seconds_per_visit=0.01,
        seconds_per_peer=5.0,
        memory=4.0,
        load_timeout=120.0,
        no_malloc_tuning=False,
    )
    run.Benchmark(options).run()
    report = json.loads((tmp_path / "report" / "peers.json").read_text())
    rows = {row["peer"]: row for row in report["results"]}
    assert 0 < rows["ours"]["best_s"] <= rows["ours"]["median_s"] < 10
    assert rows["ours"]["calls"] >= 2
    assert 0.05 < rows["ours"]["peak_GB"] < 8
    assert "No module named" in rows["gone"]["not_measured"]
    assert rows["ani"]["not_measured"] == "a reason"
    table = (tmp_path / "report" / "peers.md").read_text()
    assert "not measured: a reason" in table
    assert "aspirin, 21 atoms, 1 thread" in table
    assert (tmp_path / "report" / "peers.png").stat().st_size > 1000


def test_ratios_stay_within_a_group(harness):
    report = harness[1]
    base = {"label": "x", "system": "s", "threads": 1, "peak_GB": 1.0}
    times = {"rounds_low_s": 1.0, "rounds_high_s": 1.0}
    results = [
        {**base, **times, "peer": "ours", "group": 0, "median_s": 1.0},
        {**base, **times, "peer": "ours", "group": 1, "median_s": 1.2},
        {**base, **times, "peer": "slow", "group": 1, "median_s": 3.6},
    ]
    lines = report.table(results, {"atoms": 10}, results)
    assert len(lines) == 4  # head, rule, ours once, the peer
    assert "3.0×" in lines[-1]
    # While other programs ran, long calls of peers suffer more than short ones of ours: no ratio.
    results[1]["median_s"] = 2.0
    assert "disturbed" in report.table(results, {"atoms": 10}, results)[-1]


def test_systems_are_the_published_ones(harness, tmp_path):
    systems = harness[2]
    facts = {name: systems.write_system(name, tmp_path) for name in systems.SYSTEMS}
    assert {n: f["atoms"] for n, f in facts.items()} == {
        "aspirin": 21,
        "water-192": 192,
        "water-1536": 1536,
        "silicon-512": 512,
    }
    assert 45 < facts["water-1536"]["neighbours_5A"] < 60
    assert all(f["closest_A"] > 0.6 for f in facts.values())
