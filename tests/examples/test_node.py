"""The example in Node starts a workflow, hears where it goes, and answers its question."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from kit import node
from kit.pipelines import drain
from kit.servers import wait_for
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
pytestmark = pytest.mark.node


@pytest.fixture
def posts(conn: Conn) -> Any:
    spec = spec_from_file_location("node_pipeline", node.EXAMPLE / "pipeline.py")
    assert spec and spec.loader  # noqa: PT018
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    deploy.deploy(conn, module.posts)
    return module.posts


def start(dsn: str, *arguments: str) -> subprocess.Popen[str]:
    at = conninfo_to_dict(dsn)
    env = {
        **os.environ,
        "DATABASE_URL": f"postgresql://{at['user']}@{at['host']}:{at['port']}/{at['dbname']}",
        "NODE_PATH": str(node.modules()),
    }
    program = node.program()
    assert program, "there is no Node: NODE=skip leaves out what needs it"
    script = [str(program), str(node.EXAMPLE / "publish.js"), *arguments]
    return subprocess.Popen(script, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], posts: Any, dsn: str) -> tuple[int, list[str], str]:
    """Works beside the program until it has ended; returns its code and what it has said."""
    try:
        wait_for(lambda: drain(posts, dsn) and process.poll() is not None, what="it ends")
    finally:
        process.kill()
        out, errors = process.communicate()
    return process.returncode, out.splitlines(), errors


def test_it_publishes_a_post(conn: Conn, dsn: str, posts: Any) -> None:
    assert ended(start(dsn, "post_7", "Hello"), posts, dsn) == (0, ["submitted", "WAITING", "PUBLISHED"], "")
    assert [(each.to_status, each.actor) for each in posts.history(conn, "post_7")][::2] == [
        ("NEW", "node"), ("APPROVED", "node"),
    ]  # fmt: skip
    assert ended(start(dsn, "post_7", "Again"), posts, dsn) == (0, ["it is there already, in PUBLISHED"], "")
    code, _, errors = ended(start(dsn, "post_8"), posts, dsn)  # without the content
    assert (code, errors[:6]) == (1, "OB040 ")
    assert json.loads(errors[6:])["field"] == "content"
