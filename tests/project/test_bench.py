"""The bench runs, and its own check of the books with it. What it measures here means nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import psycopg
import pytest

from bench import __main__ as one
from bench import endurance, relay, scale
from bench.calls.service import answers
from bench.calls.subjects import waited
from bench.calls.work import PAUSE, path
from bench.kills.__main__ import counted
from bench.kills.agent import ASKED, POINTS, READS, REQUESTS, WRITE
from bench.kit import chains, database, history, picture
from bench.kit.database import Server, address
from bench.kit.doors import DOORS
from bench.peers.theirs import PEERS
from kit import forked
from kit.broker import Broker
from kit.commands import invoke
from kit.servers import store
from outbox import Go, Run, testing
from outbox.definition import deploy

ROOT = Path(__file__).parents[2]
Measure = Callable[..., tuple[str, dict[str, Any]]]


def program(bench: str) -> Any:
    """Returns the module that `python -m bench.NAME` runs."""
    found = find_spec(f"bench.{bench}")
    assert found is not None
    return import_module(f"bench.{bench}.__main__" if found.submodule_search_locations else f"bench.{bench}")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """The server of all benches, which each of them would start for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTBOX_BENCH_DIR", str(store()))
        with database.server() as postgres:
            yield postgres


@pytest.fixture
def measure(postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Run a bench in this process; return its standard output and the document that it writes."""

    def measure(bench: str, *options: str) -> tuple[str, dict[str, Any]]:
        module, file = program(bench), tmp_path / "figures.json"
        monkeypatch.setattr(module, "server", lambda: nullcontext(postgres))
        with forked.programs():
            done = invoke(module.main, *options, "--json", str(file))
        assert done.code == 0, done.err
        return done.out, json.loads(file.read_text())

    return measure


@pytest.fixture
def removed(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The test process's RabbitMQ in place of the bench's own; lists what is removed at the bench's end."""
    removed: list[str] = []
    own = SimpleNamespace(start=lambda: broker, remove=lambda: removed.append("the broker"))
    monkeypatch.setattr(relay, "Broker", lambda: own)
    return removed


def test_the_throughput_bench_measures_all_its_subjects_and_writes_json(measure: Measure) -> None:
    out, document = measure("throughput", "--jobs", "400", "--rounds", "1")
    assert len(document["figures"]) == 17
    assert document["figures"]["one process: WAL records/step"]["median"] < 30
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert document["machine"]["postgres"]["fsync"] == "on"
    assert "one process" in out


def document(commit: str | None, **figures: float) -> dict[str, Any]:
    """Return what a bench would have written."""
    run = {"commit": commit, "date": "2026-03-01T12:00:00+00:00", "load": [0.5, 0.4, 0.3]}
    return {"bench": "b", "settings": {"jobs": 1}, "figures": figures, "machine": {"cores": 2}, "run": run}


def test_figures_are_kept_with_their_commit_their_date_and_their_machine(tmp_path: Path) -> None:
    file = history.keep({"one": document("abc", x=1.0), "two": document("abc", y=2.0)}, tmp_path / "history")
    assert file.name == "2026-03-01-abc.json"
    kept = json.loads(file.read_text())
    assert (kept["commit"], kept["date"], kept["machine"]) == ("abc", "2026-03-01T12:00:00+00:00", {"cores": 2})
    assert kept["benches"]["two"] == {"settings": {"jobs": 1}, "load": [0.5, 0.4, 0.3], "figures": {"y": 2.0}}


@pytest.mark.parametrize("commits", [("abc+",), ("abc", "abd"), (None,), ()])
def test_figures_that_belong_to_no_commit_are_not_kept(tmp_path: Path, commits: tuple[str | None, ...]) -> None:
    documents = {str(number): document(commit) for number, commit in enumerate(commits)}
    with pytest.raises(click.ClickException, match="one commit without changes"):
        history.keep(documents, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_of_one_form() -> None:
    for file in history.FOLDER.glob("*.json"):
        kept = json.loads(file.read_text())
        assert file.name == f"{kept['date'][:10]}-{kept['commit']}.json"
        assert kept["machine"]["postgres"]["fsync"] == "on"
        assert all(bench["figures"] for bench in kept["benches"].values())


def test_the_limits_bench_measures_each_kind_beside_none(measure: Measure) -> None:
    out, document = measure("limits", "--jobs", "200", "--rounds", "1")
    assert len(document["figures"]) == 16
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "10,000 tenants in turn : no limits" in out


def test_the_sharing_bench_measures_each_handler_alone_and_shared(measure: Measure) -> None:
    out, document = measure("sharing", "--jobs", "60", "--rounds", "1")
    assert len(document["figures"]) == 3 * 4
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "one of 50 hot rows, shared : alone" in out


def test_the_lists_bench_reads_each_list_beside_a_working_engine(measure: Measure) -> None:
    out, document = measure("lists", "--workflows", "11000", "--times", "1")
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert document["figures"]["all: hundredth page, p95 ms"]
    assert "rare kind of error: first page, p95 ms" in out


def test_the_ui_bench_reads_each_page_watches_open_tabs_and_runs_the_engine_beside_one(measure: Measure) -> None:
    sizes = ("--workflows", "3000", "--times", "1", "--tabs", "20", "--seconds", "1", "--jobs", "100", "--rounds", "1")
    out, document = measure("ui", *sizes)
    figures = document["figures"]
    assert all(figure["median"] > 0 for name, figure in figures.items() if "%" not in name and "again" not in name)
    assert figures.keys() > {
        f"20 tabs, {when}: Postgres, % of a core" for when in ("beside a working engine", "nothing happens")
    }
    assert "with the page open : without" in out


def test_the_due_bench_measures_others_with_and_without_what_is_due(measure: Measure) -> None:
    sizes = ("--many", "300", "--rate", "50", "--seconds", "4", "--rounds", "1")
    out, document = measure("due", *sizes)
    assert len(document["figures"]) == 11
    assert "300 deadlines due: until the last of them has gone" in out


@pytest.mark.rabbitmq
def test_the_relay_bench_measures_all_its_subjects_and_writes_json(measure: Measure, removed: list[str]) -> None:
    sizes = ("--messages", "300", "--rounds", "1", "--single", "3", "--backlog", "1000")
    out, document = measure("relay", *sizes)
    assert len(document["figures"]) == 11
    assert all(figure["median"] > 0 for name, figure in document["figures"].items() if "CPU" not in name)
    assert "pika alone" in out
    assert removed == ["the broker"]


@pytest.mark.rabbitmq
def test_the_bench_of_a_topic_without_a_queue_counts_what_is_delivered_and_what_is_beside_the_log(
    measure: Measure, removed: list[str]
) -> None:
    out, document = measure("unroutable", "--messages", "90", "--rounds", "1")
    assert len(document["figures"]) == 10
    assert all(figure["median"] > 0 for name, figure in document["figures"].items() if "CPU" not in name)
    assert "rate beside it : alone" in out
    assert removed == ["the broker"]


def test_without_rabbitmq_the_relay_bench_says_so_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "programs", lambda: None)
    done = invoke(relay.main)
    assert done.code == 0
    assert "there is no RabbitMQ on this machine" in done.err
    assert done.out == ""


def test_the_bloat_bench_shows_dead_rows_where_rows_are_deleted_and_none_in_the_log(measure: Measure) -> None:
    sizes = ("--seconds", "3", "--slice", "1", "--rate", "500")
    out, document = measure("bloat", *sizes)
    log, plain = document["series"]["Outbox"], document["series"]["SKIP LOCKED"]
    assert [line["dead rows"] for line in log] == [0, 0, 0]
    assert plain[1]["dead rows"] > 0
    assert document["figures"]["SKIP LOCKED: dead at the end of it, rows"]["median"] == plain[1]["dead rows"]
    assert "SKIP LOCKED" in out


def test_the_endurance_bench_lets_load_come_while_the_horizon_is_held_and_counts_every_step(
    measure: Measure, tmp_path: Path
) -> None:
    sizes = ("--seconds", "8", "--slice", "2", "--rate", "100")
    out, document = measure("endurance", *sizes, "--svg", str(tmp_path / "picture.svg"))
    assert "horizon held" in (tmp_path / "picture.svg").read_text()
    for lines in document["series"].values():
        assert [line["horizon"] for line in lines] == ["", "held", "held", ""]
        # On a busy machine a slice may have no step; the bench itself says if one is missing in the end.
        worked = [line["steps/s"] > 0 for line in lines]
        assert all(line["claim ms"] > 0 for line in lines if "claim ms" in line)
        assert lines[2]["dead rows"] > 0 or not (worked[1] and worked[2])
    worked = [line["steps/s"] > 0 for line in document["series"]["Outbox"]]
    ratio = document["figures"].get("Outbox: steps/s held : before", {"median": 0.0})["median"]
    assert (ratio > 0) == (worked[0] and any(worked[1:3]))
    assert "SKIP LOCKED" in out


def test_what_the_endurance_bench_saw_nothing_of_has_no_figure() -> None:
    nothing = {"horizon": "", "steps/s": 0.0, "dead rows": 0, "MB": 1.0}
    some = {**nothing, "horizon": "held", "steps/s": 10.0, "claim ms": 2.0, "claim p99 ms": 3.0}
    assert endurance.compared([nothing, some, nothing]) == {
        "claim at the end of it, ms": 2.0, "claim p99 at the end of it, ms": 3.0,
        "dead at the end of it, rows": 0, "size at the end of it, MB": 1.0,
    }  # fmt: skip
    assert endurance.compared([some | {"horizon": ""}, some])["steps/s held : before"] == 1.0


ROWS_OF = """
    SELECT w.entity_id, w.current_status, w.metadata, w.version, c.from_status, c.to_status, c.version, split_part(c.actor, '-', 1), c.reason,
           c.stage, c.attempt, (SELECT sum(s.workflows) FROM outbox.status_counts AS s
                                WHERE s.pipeline = w.pipeline AND s.status = w.current_status),
           (SELECT count(*) FROM outbox.jobs AS j WHERE j.workflow_id = w.id)
    FROM outbox.workflow_states AS w JOIN outbox.state_changes AS c ON c.workflow_id = w.id
    WHERE w.pipeline = %s ORDER BY w.entity_id, c.version
"""


def test_the_workflows_that_the_scale_bench_makes_are_those_that_a_worker_leaves(admin_dsn: str) -> None:
    worked, made = chains.chain("worked", 3), chains.chain("made", 3)

    async def go_on(run: Run[dict[str, Any]]) -> Go[Any]:
        waits = run.entity_id in ("rest_10", "rest_20") and run.status == "STATUS_2"
        return Go(chains.WAITING if waits else chains.next_status(worked, run.status))

    for name, stage in worked.stages.items():
        worked.stages[name] = replace(stage, handler=go_on)
    with psycopg.connect(admin_dsn, autocommit=True) as conn:
        for pipeline in (worked, made):
            deploy.deploy(conn, pipeline)
        worked.submit_many(conn, [(f"rest_{number}", {"content": "thanks"}) for number in range(1, 21)])
        testing.drain(worked, admin_dsn)
        chains.fill(conn, made, 20, '{"content": "thanks"}')
        left, filled = (conn.execute(ROWS_OF, (pipeline.name,)).fetchall() for pipeline in (worked, made))
    assert len(left) == 18 * 4 + 2 * 4
    assert filled == left


def test_the_scale_bench_measures_sizes_stages_and_pipelines_side_by_side(measure: Measure) -> None:
    sizes = ("--size", "10", "--size", "1000", "--many", "1", "--many", "5", "--cycles", "2", "--rounds", "1")
    out, document = measure("scale", *sizes)
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert document["figures"]["claim and commit 200: 1,000 workflows : 10 workflows"]
    assert document["figures"]["claim and commit 200 of all stages: 5 pipelines : 1 stage"]
    assert "status" in out


def test_the_latency_bench_measures_an_idle_worker_and_three_loads(measure: Measure) -> None:
    sizes = ("--seconds", "0.3", "--single", "3", "--saturated", "200", "--rounds", "1")
    out, document = measure("latency", *sizes)
    for load in ("idle", "10 %", "50 %", "80 %"):
        assert document["figures"][f"{load}: COMMIT to final status, p99.9 ms"]["median"] > 0
    assert "COMMIT to handler" in out


def test_the_recovery_bench_kills_workers_and_sees_all_their_jobs_again(measure: Measure) -> None:
    out, document = measure("recovery", "--kills", "2", "--at-once", "2", "--peer-kills", "0")
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "to the last of its jobs" in out


def test_the_submit_bench_measures_each_way_in_with_each_size(measure: Measure) -> None:
    out, document = measure("submit", "--single", "20", "--bulk", "40", "--rounds", "1")
    assert len(document["figures"]) == 15
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "outbox submit FILE" in out


def test_the_connections_bench_submits_through_each_kind_of_connection(measure: Measure) -> None:
    out, document = measure("connections", "--calls", "5", "--rounds", "1")
    assert len(document["figures"]) == 3 * len(DOORS)
    assert all(figure["median"] > 0 for name, figure in document["figures"].items() if name.endswith(", ms"))
    assert "AsyncSession, asyncpg" in out


def test_the_agents_bench_measures_kept_calls_and_a_worker_beside_agents_that_wait(measure: Measure) -> None:
    forked.imports("outbox.agents.pydantic_ai")
    kept = ("--runs", "3", "--turns", "2", "--parallel", "3", "--rounds", "1")
    out, document = measure("agents", *kept, "--agents", "5", "--seconds", "1", "--settle", "0")
    assert len(document["figures"]) == 3 * 8 + 2 * 6
    assert document["figures"]["LangGraph, 3 at once: a kept node adds, p50 ms"]["median"] > 0
    assert document["figures"]["5 agents wait: statements/s"]["median"] > 0
    assert "5 agents ended" in out


def test_the_kills_bench_counts_what_an_agent_does_again_with_and_without_an_engine(measure: Measure) -> None:
    forked.imports("outbox.agents.pydantic_ai")
    options = ("--engine", "nothing", "--engine", "outbox", "--point", str(POINTS.index("after charge") + 1))
    _, document = measure("kills", *options)
    found = {name: figure["median"] for name, figure in document["figures"].items()}
    assert found == {
        "Nothing: model requests repeated": 2, "Nothing: reads repeated": 2, "Nothing: write made again": 1,
        "Nothing: asked about a write": 0, "Nothing: lost": 0,
        "OutboxDurability: model requests repeated": 0, "OutboxDurability: reads repeated": 0,
        "OutboxDurability: write made again": 0, "OutboxDurability: asked about a write": 1, "OutboxDurability: lost": 0,
    }  # fmt: skip


def test_what_the_kills_bench_counts_of_each_run() -> None:
    whole = [*REQUESTS, *READS, WRITE]
    again = [REQUESTS[0], *whole, READS[1], WRITE, WRITE, ASKED]
    assert counted([whole, again, whole[:-1], None]) == {
        "model requests repeated": 1, "reads repeated": 1, "write made again": 2, "asked about a write": 1, "lost": 2,
    }  # fmt: skip


def test_the_calls_bench_measures_workflows_that_wait_for_http_with_the_peers_left_out(measure: Measure) -> None:
    options = ("--workflows", "20", "--rounds", "1", "--peer", "none")
    out, document = measure("calls", *options)
    assert len(document["figures"]) == 5 + 7
    assert 0 < document["figures"]["Outbox: statements/step"]["median"] < 20
    assert "asyncio alone: workflows/s" in out


def test_the_service_of_the_calls_bench_gives_the_same_answers_again_and_the_last_one_is_no_refusal() -> None:
    given = [answers(7, path(workflow, "enrich")) for workflow in range(500)]
    assert given == [answers(7, path(workflow, "enrich")) for workflow in range(500)]
    assert given != [answers(8, path(workflow, "enrich")) for workflow in range(500)]
    assert {each[-1][0] for each in given} == {200}
    assert {status for each in given for status, _ in each[:-1]} == {429, 503}
    assert {0.05 <= seconds <= 0.5 for each in given for _, seconds in each} == {True}


def test_what_a_workflow_waits_for_is_no_time_of_the_engine() -> None:
    asked = {"/enrich/0": [0.2, 0.3], "/act/0": [0.4]}
    assert waited(asked, 0) == pytest.approx(0.9 + PAUSE)


def test_each_environment_of_the_benches_has_pinned_versions() -> None:
    files = [*ROOT.glob("bench/*/*.txt")]
    assert len({file.stem for file in files}) == len(files) > 0
    assert [line for file in files for line in file.read_text().splitlines() if "==" not in line] == []


def test_the_idle_bench_sees_what_a_worker_asks_and_takes_without_work(measure: Measure) -> None:
    sizes = ("--seconds", "1", "--settle", "0", "--rounds", "1")
    out, document = measure("idle", *sizes)
    assert document["figures"]["statements/s"]["median"] > 0
    assert document["figures"]["resident memory (RSS), MB"]["median"] > 0
    assert "CPU of the process" in out


DOCUMENT = {
    "bench": "example",
    "settings": {"seconds": 3},
    "figures": {
        "50 %: COMMIT to handler, p99 ms": {"median": 5, "min": 4, "max": 7},
        "one process : SQL alone": {"median": 0.5, "min": 0.4, "max": 0.7},
    },
    "machine": {
        "cores": 2, "cpu": "?", "memory": "4 GB", "python": "3.11",
        "postgres": {"server_version": "18", "fsync": "on", "shared_buffers": "128MB"},
    },
}  # fmt: skip
SERIES = {
    "Outbox": [{"second": second, "horizon": "held" if second == 2 else "", "claim ms": 1.5} for second in (1, 2, 3)],
    "SKIP LOCKED": [{"second": second, "horizon": "", "claim ms": 3, "MB": 7} for second in (1, 2, 3)],
}


@pytest.mark.parametrize(
    ("document", "texts"),
    [
        (DOCUMENT, ("example", "50 %", "COMMIT to handler, p99", ">ms<", "ratio", "2 cores (?) and 4 GB", "seconds 3")),
        ({**DOCUMENT, "series": SERIES}, ("claim ms", "MB", "seconds", "horizon held", "SKIP LOCKED", "fsync on")),
    ],
)
def test_a_picture_is_labelled_and_the_same_each_time(
    document: dict[str, Any], texts: tuple[str, ...], tmp_path: Path
) -> None:
    picture.draw(document, tmp_path / "first.svg")
    picture.draw(document, tmp_path / "second.svg")
    drawn = (tmp_path / "first.svg").read_text()
    assert drawn == (tmp_path / "second.svg").read_text()
    assert [text for text in texts if text not in drawn] == []


def test_without_matplotlib_a_picture_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for bench, options in ((one, ["--quick"]), (scale, ["--svg", str(tmp_path / "picture.svg")])):
        done = invoke(bench.main, *options)
        assert done.code == 1
        assert "pip install 'outbox-engine[bench]'" in done.err
        assert "is made" not in done.err


def test_one_command_runs_the_benches_says_which_failed_and_shows_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "idle.json").write_text("of an older run")
    benches = {
        "idle": one.Bench("--no-such-option"),
        "recovery": one.Bench("--kills 1 --at-once 1 --peer-kills 0", "jobs, s$"),
    }
    monkeypatch.setattr(one, "BENCHES", benches)
    monkeypatch.setenv("OUTBOX_BENCH_DIR", str(store()))
    with forked.programs():
        done = invoke(one.main, "--quick", "--out", str(tmp_path))
    assert done.code == 1
    assert done.err.rstrip().endswith("not all was measured. idle: exit code 2")
    _, _, table = done.out.partition("all benches")
    assert "to the first of its jobs, s" in table
    assert "p99" not in table
    assert sorted(file.name for file in tmp_path.iterdir()) == ["recovery.json", "recovery.svg"]
    document = json.loads((tmp_path / "recovery.json").read_text())
    assert document["machine"].keys() >= {"cores", "memory", "outbox-engine", "postgres", "engine", "payload"}


@pytest.mark.parametrize("bench", one.BENCHES)
def test_each_bench_is_a_program_that_takes_its_quick_sizes(bench: str) -> None:
    module = program(bench)
    assert Path(module.__file__).read_text().endswith('\n\nif __name__ == "__main__":\n    main()\n')
    module.main.make_context(bench, one.BENCHES[bench].quick.split())


def test_the_peers_bench_measures_outbox_with_the_peers_left_out(measure: Measure) -> None:
    sizes = ("--peer", "none", "--jobs", "100", "--rounds", "1")
    out, document = measure("peers", *sizes)
    assert len(document["figures"]) == 4
    assert all(figure["median"] > 0 for figure in document["figures"].values())
    assert "Outbox, transaction=True, batch=100" in out


def test_each_peer_of_the_bench_has_a_module_and_pinned_requirements() -> None:
    folder = ROOT / "bench" / "peers"
    for peer in PEERS.values():
        assert (folder / f"{peer.module}.py").exists()
        assert all("==" in line for line in (folder / f"{peer.requirements}.txt").read_text().splitlines())


def test_a_socket_s_dsn_is_told_to_peers_in_the_form_that_all_their_drivers_take() -> None:
    assert address("host=/tmp/s port=5432 dbname=b user=u") == "postgresql:///b?host=/tmp/s&port=5432&user=u"
