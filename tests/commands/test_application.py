"""Which pipelines `--app` names: one or several applications, never two pipelines of one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.commands import Outbox
from outbox import DefinitionError, Pipeline, SettingsError, Worker, settings
from outbox.commands import application

SALES = """
from outbox import Pipeline
orders = Pipeline("orders", initial="NEW", final={"DONE"})
orders.stage("act", on="NEW", to="DONE")(lambda run: None)
again = orders
"""
MAIL = """
from outbox import Pipeline
from sales_app import orders
letters = Pipeline("letters", initial="NEW", final={"DONE"})
listed = [letters, orders]
"""
RIVAL = """
from outbox import Pipeline
mine = Pipeline("orders", initial="OPEN", final={"SHUT"})
pair = (mine, Pipeline("orders", initial="OPEN", final={"SHUT"}))
"""


@pytest.fixture(autouse=True)
def _apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("sales_app", SALES), ("mail_app", MAIL), ("rival_app", RIVAL)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


def names(app: str) -> list[str]:
    return [pipeline.name for pipeline in application.load(app)]


@pytest.mark.parametrize(
    ("app", "found"),
    [
        ("sales_app", ["orders"]),
        ("sales_app:orders,mail_app:letters", ["orders", "letters"]),
        (" mail_app:letters , sales_app ,", ["letters", "orders"]),
        ("mail_app", ["orders", "letters"]),
        ("sales_app:orders,sales_app:again,mail_app:listed,mail_app", ["orders", "letters"]),
    ],
)
def test_several_applications_are_loaded_in_their_order_and_each_pipeline_once(app: str, found: list[str]) -> None:
    assert names(app) == found
    assert application.find(app, found[-1]).name == found[-1]


@pytest.mark.parametrize(
    ("app", "places"),
    [
        ("sales_app:orders,rival_app:mine", ["sales_app:orders", "rival_app:mine"]),
        ("mail_app,rival_app", ["mail_app:orders", "rival_app:mine"]),
        ("rival_app:pair", ["rival_app:pair[0]", "rival_app:pair[1]"]),
        ("mail_app:listed,rival_app:mine", ["mail_app:listed[1]", "rival_app:mine"]),
    ],
)
def test_two_pipelines_of_one_name_are_refused_with_both_places(app: str, places: list[str]) -> None:
    with pytest.raises(SettingsError, match="two pipelines named 'orders'") as refused:
        application.load(app)
    assert all(place in str(refused.value) for place in places)


def test_a_worker_refuses_them_too() -> None:
    first, second = (Pipeline[Any]("orders", initial="NEW", final={"DONE"}) for _ in range(2))
    first.stage("act", on="NEW", to="DONE")(lambda run: None)
    with pytest.raises(DefinitionError, match="two pipelines named 'orders'"):
        Worker([first, second], "dbname=x")
    Worker([first, first], "dbname=x")


def test_every_way_of_the_command_line_takes_several(outbox: Outbox, tmp_path: Path) -> None:
    for arguments, env in (
        (["--app", "sales_app:orders", "--app", "mail_app:letters"], {}),
        (["--app", "sales_app:orders,mail_app:letters"], {}),
        ([], {"OUTBOX_APP": "sales_app:orders,mail_app:letters"}),
    ):
        told = outbox("deploy", "--check", *arguments, env=env).out
        assert "orders: " in told, told
        assert "letters: " in told, told
    outbox("deploy", "--app", "sales_app", "--app", "mail_app")
    outbox("submit", "--pipeline", "letters", "--app", "sales_app", "--app", "mail_app", input='{"entity_id": "a"}')
    outbox("worker", "--app", "sales_app", "--app", "mail_app", "--drain")
    assert "wrong_app" in outbox.fails("deploy", "--app", "sales_app", "--app", "wrong_app")
    assert "give --app" in outbox.fails("deploy", "--app", ",")
    (tmp_path / "pyproject.toml").write_text('[tool.outbox]\napp = ["sales_app", "mail_app:letters"]\n')
    assert names(settings.load(tmp_path).app or "") == ["orders", "letters"]
    (tmp_path / "pyproject.toml").write_text("[tool.outbox]\napp = [5]\n")
    with pytest.raises(SettingsError, match="app must be a string"):
        settings.load(tmp_path)
