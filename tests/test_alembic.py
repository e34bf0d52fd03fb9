"""Alembic leaves the schema `outbox` alone, and a revision of it brings the schema up to date."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.pool import NullPool

from outbox.alembic import include_object
from outbox.database import migrations

PAGE = (Path(__file__).parents[1] / "docs" / "alembic.md").read_text(encoding="utf-8")
CONFIGURE, REVISION = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TEMPLATES = {
    "psycopg": "generic",
    "psycopg2": "generic",
    "pg8000": "generic",
    "asyncpg": "async",
    "psycopg_async": "async",
}
DROPS = "op.drop_table"


@pytest.fixture
def project(empty_dsn: str, tmp_path: Path) -> Callable[..., Config]:
    """Makes a project of Alembic's own template, with what docs/alembic.md says."""

    def make(driver: str = "psycopg", *, configure: str = CONFIGURE, revision: str = REVISION) -> Config:
        folder, config = tmp_path / "migrations", Config(stdout=io.StringIO())
        config.config_file_name = str(tmp_path / "alembic.ini")
        command.init(config, str(folder), template=TEMPLATES[driver])
        config = Config(config.config_file_name, stdout=io.StringIO(), output_buffer=io.StringIO())
        at = conninfo_to_dict(empty_dsn)
        config.set_main_option(
            "sqlalchemy.url", f"postgresql+{driver}://{at['user']}@{at['host']}:{at['port']}/{at['dbname']}"
        )
        env = (folder / "env.py").read_text(encoding="utf-8")
        imported, called = configure.strip().split("\n\n")
        ours = re.sub(r"\s+", " ", called)
        calls = r"context\.configure\(\s*connection=connection,\s*target_metadata=target_metadata,?\s*\)"
        assert len(re.findall(calls, env)) == 1
        env = re.sub(calls, ours, env).replace("fileConfig(config.config_file_name)", "pass")
        env = env.replace("target_metadata = None", "import sqlalchemy\ntarget_metadata = sqlalchemy.MetaData()")
        (folder / "env.py").write_text(f"{imported}\n{env}", encoding="utf-8")
        text = f"{revision}\n\nrevision = '1'\ndown_revision = None\nbranch_labels = depends_on = None\n"
        (folder / "versions" / "1_outbox.py").write_text(text, encoding="utf-8")
        return config

    return make


@pytest.fixture(autouse=True)
def admin(empty_dsn: str) -> None:
    """Lets Alembic have its table of versions: the tests' role owns nothing but the schema `outbox`."""
    with psycopg.connect(re.sub("//[^@]*@", "//postgres@", empty_dsn)) as conn:
        conn.execute("GRANT CREATE ON SCHEMA public TO outbox_owner")


def pending(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        return len(migrations.pending(conn))


@pytest.mark.parametrize("driver", TEMPLATES)
def test_the_page_s_revision_migrates_on_each_driver_and_nothing_is_left_to_do(
    project: Callable[..., Config], empty_dsn: str, driver: str
) -> None:
    config = project(driver)
    command.upgrade(config, "head")
    assert pending(empty_dsn) == 0
    command.check(config)
    command.downgrade(config, "base")
    assert pending(empty_dsn) == 0


@pytest.mark.filterwarnings("ignore:Did not recognize type")
def test_without_the_filter_autogenerate_would_drop_it_all(project: Callable[..., Config]) -> None:
    config = project(configure=CONFIGURE.replace("    include_name=include_name,\n", ""))
    command.upgrade(config, "head")
    script = command.revision(config, autogenerate=True)
    assert script is not None
    assert DROPS in Path(script.path).read_text(encoding="utf-8")  # type: ignore[union-attr]


def test_a_revision_that_fails_leaves_nothing(project: Callable[..., Config], empty_dsn: str) -> None:
    config = project(
        "asyncpg", revision=REVISION.replace("    migrate(op)\n", "    migrate(op)\n    op.execute('SELECT 1/0')\n")
    )
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        command.upgrade(config, "head")
    assert pending(empty_dsn) == len(migrations.all_migrations())


def test_offline_it_is_refused_and_says_how_to_print_it(project: Callable[..., Config]) -> None:
    config = project()
    with pytest.raises(CommandError, match="Print it with: outbox migrate --sql"):
        command.upgrade(config, "head", sql=True)


@pytest.mark.filterwarnings("ignore:Did not recognize type")
def test_models_of_our_tables_are_left_out_too(dsn: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    ours = sqlalchemy.MetaData(schema="outbox")
    sqlalchemy.Table("workflow_states", ours, sqlalchemy.Column("id", sqlalchemy.Uuid, index=True))
    sqlalchemy.Table("mine", ours, sqlalchemy.Column("id", sqlalchemy.Uuid), schema="public")
    at = conninfo_to_dict(dsn)
    url = f"postgresql+psycopg://{at['user']}@{at['host']}:{at['port']}/{at['dbname']}"
    with sqlalchemy.create_engine(url, poolclass=NullPool).connect() as conn:
        options: dict[str, Any] = {"include_schemas": True, "include_object": include_object}
        found = compare_metadata(MigrationContext.configure(conn, opts=options), ours)
    assert [(what, table.name) for what, table in found] == [("add_table", "mine")]
