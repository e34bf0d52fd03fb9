"""The bench runs, and its own check of the books with it. What it measures here means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120, check=False)


def run(bench: str, file: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """Run a bench; return its standard output and the document that it writes."""
    done = python("-m", f"bench.{bench}", *options, "--json", str(file))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_the_throughput_bench_measures_all_its_subjects_and_writes_json(tmp_path: Path) -> None:
    out, document = run("throughput", tmp_path / "figures.json", "--jobs", "800", "--rounds", "1")
    assert len(document["figures"]) == 5
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert document["machine"]["postgres"]["fsync"] == "on"
    assert "one process" in out


@pytest.mark.rabbitmq
def test_the_relay_bench_measures_all_its_subjects_and_writes_json(tmp_path: Path) -> None:
    sizes = ("--messages", "500", "--rounds", "1", "--single", "3", "--backlog", "2000")
    out, document = run("relay", tmp_path / "figures.json", *sizes)
    assert len(document["figures"]) == 11
    assert all(figure["median"] > 0 for name, figure in document["figures"].items() if "CPU" not in name)
    assert "pika alone" in out


def test_without_rabbitmq_the_relay_bench_says_so_and_measures_nothing() -> None:
    done = python("-c", "from bench import relay; relay.programs = lambda: None; relay.main()")
    assert done.returncode == 0
    assert "there is no RabbitMQ on this machine" in done.stderr
    assert done.stdout == ""


def test_the_bloat_bench_shows_dead_rows_where_rows_are_deleted_and_none_in_the_log(tmp_path: Path) -> None:
    sizes = ("--seconds", "3", "--slice", "1", "--rate", "500")
    out, document = run("bloat", tmp_path / "figures.json", *sizes)
    log, plain = document["series"]["Outbox"], document["series"]["SKIP LOCKED"]
    assert [line["dead rows"] for line in log] == [0, 0, 0]
    assert plain[1]["dead rows"] > 0
    assert "SKIP LOCKED" in out


def test_the_latency_bench_measures_an_idle_worker_and_three_loads(tmp_path: Path) -> None:
    sizes = ("--seconds", "1", "--single", "3", "--saturated", "400", "--rounds", "1")
    out, document = run("latency", tmp_path / "figures.json", *sizes)
    for load in ("idle", "10 %", "50 %", "80 %"):
        assert document["figures"][f"{load}: COMMIT to final status, p99.9 ms"]["median"] > 0
    assert "COMMIT to handler" in out


def test_the_recovery_bench_kills_workers_and_sees_all_their_jobs_again(tmp_path: Path) -> None:
    out, document = run("recovery", tmp_path / "figures.json", "--kills", "2", "--at-once", "2")
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "to the last of its jobs" in out


def test_the_submit_bench_measures_each_way_in_with_each_size(tmp_path: Path) -> None:
    out, document = run("submit", tmp_path / "figures.json", "--single", "20", "--bulk", "40", "--rounds", "1")
    assert len(document["figures"]) == 15
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "outbox submit FILE" in out


def test_the_idle_bench_sees_what_a_worker_asks_and_takes_without_work(tmp_path: Path) -> None:
    sizes = ("--seconds", "3", "--settle", "0", "--rounds", "1")
    out, document = run("idle", tmp_path / "figures.json", *sizes)
    assert document["figures"]["statements/s"]["median"] > 0
    assert document["figures"]["resident memory (RSS), MB"]["median"] > 0
    assert "CPU of the process" in out


def test_the_peers_bench_measures_outbox_with_the_peers_left_out(tmp_path: Path) -> None:
    sizes = ("--peer", "none", "--jobs", "200", "--rounds", "1")
    out, document = run("peers", tmp_path / "figures.json", *sizes)
    assert len(document["figures"]) == 3
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "Outbox, transaction=True, batch=100" in out


def test_each_peer_of_the_bench_has_a_module_and_pinned_requirements() -> None:
    code = "import json; from bench.peers.theirs import PEERS; print(json.dumps([(p.module, p.requirements) for p in PEERS.values()]))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    folder = ROOT / "bench" / "peers"
    for module, requirements in json.loads(done.stdout):
        assert (folder / f"{module}.py").exists()
        assert all("==" in line for line in (folder / f"{requirements}.txt").read_text().splitlines())


def test_a_socket_s_dsn_is_told_to_peers_in_the_form_that_all_their_drivers_take() -> None:
    code = "from bench.peers.theirs import address; print(address('host=/tmp/s port=5432 dbname=b user=u'))"
    assert python("-c", code).stdout == "postgresql:///b?host=/tmp/s&port=5432&user=u\n"
