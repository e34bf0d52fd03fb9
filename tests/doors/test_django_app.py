"""The app `outbox.django`: `manage.py migrate` brings schema and pipelines up to date, and checks say what is wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.loader import MigrationLoader
from django.test import override_settings
from psycopg.conninfo import conninfo_to_dict

from kit import django_project
from kit.databases import OWNER
from outbox import Pipeline, SettingsError
from outbox.database import migrations
from outbox.django import dsn as dsn_of
from outbox.django import pipelines
from outbox.django.schema import MigrateOutbox


def let_django_in(dsn: str) -> str:
    """Has the owner of the schema make tables of its own, too."""
    with psycopg.connect(dsn.replace(f"{OWNER}@", "postgres@"), autocommit=True) as conn:
        conn.execute(f"GRANT ALL ON SCHEMA public TO {OWNER}")
    return dsn


@pytest.fixture
def project(empty_dsn: str) -> Iterator[str]:
    """The tests' project on a database without any migration."""
    with django_project.database(let_django_in(empty_dsn)):
        yield empty_dsn


@pytest.fixture
def migrated(dsn: str) -> Iterator[str]:
    """The tests' project on a database that has the schema, and the pipelines."""
    with django_project.database(let_django_in(dsn)):
        migrate()
        yield dsn


def migrate(app: str = "outbox", *arguments: str, **options: Any) -> str:
    """Runs `manage.py migrate outbox`; the tables of Django's own apps take longer than the schema."""
    out = io.StringIO()
    call_command("migrate", app, *arguments, stdout=out, **options)
    return out.getvalue()


def scalar(dsn: str, sql: str) -> Any:
    with psycopg.connect(dsn) as conn:
        row = conn.execute(sql.encode()).fetchone()
    return row and row[0]


def test_migrate_creates_the_schema_and_deploys_the_pipelines_of_the_apps(project: str) -> None:
    told = migrate(verbosity=1)
    assert "Applying outbox.0001_initial... OK" in told
    assert "Outbox: orders: initial status: (none) -> NEW" in told
    assert scalar(project, "SELECT count(*) FROM outbox.pipelines WHERE pipeline = 'orders'") == 1
    with psycopg.connect(project) as conn:
        assert migrations.pending(conn) == []


def test_migrate_again_changes_nothing_and_says_nothing(migrated: str) -> None:
    assert "Outbox:" not in migrate()


def test_migrate_brings_an_older_schema_up_to_date_without_a_migration_of_djangos(migrated: str) -> None:
    make_older(migrated)
    assert "Outbox: applied views/overview" in migrate()
    with psycopg.connect(migrated) as conn:
        assert migrations.pending(conn) == []


def make_older(dsn: str) -> None:
    """Leaves the schema as a release before would have: one of its views is not there."""
    with psycopg.connect(dsn) as conn:
        conn.execute("DELETE FROM outbox.schema_migrations WHERE name = 'views/overview'")


def migrate_and_fail() -> None:
    with connections["default"].schema_editor() as editor:
        MigrateOutbox().database_forwards("outbox", editor, None, None)
        raise RuntimeError("a later operation fails")


def test_the_schema_is_created_in_the_transaction_of_the_migration(project: str) -> None:
    with pytest.raises(RuntimeError, match="a later"):
        migrate_and_fail()
    assert scalar(project, "SELECT to_regclass('outbox.workflow_states')::text") is None


def test_without_migrations_the_schema_is_created_too(project: str) -> None:
    with override_settings(MIGRATION_MODULES={"outbox": None}):
        call_command("migrate", run_syncdb=True, verbosity=0)
    assert scalar(project, "SELECT count(*) FROM outbox.pipelines WHERE pipeline = 'orders'") == 1


def test_the_migration_goes_forward_only(migrated: str) -> None:
    with pytest.raises(IrreversibleError):
        migrate("outbox", "zero")
    assert scalar(migrated, "SELECT count(*) FROM outbox.pipelines") > 0


def test_migrations_of_other_apps_leave_a_database_without_the_schema_as_it_is(project: str) -> None:
    migrate("contenttypes")
    assert scalar(project, "SELECT to_regclass('outbox.workflow_states')::text") is None


def test_sqlmigrate_says_what_prints_the_sql(project: str) -> None:
    out = io.StringIO()
    call_command("sqlmigrate", "outbox", "0001", stdout=out)
    assert "manage.py outbox migrate --sql" in out.getvalue()
    assert scalar(project, "SELECT to_regclass('outbox.workflow_states')::text") is None


def test_no_model_lacks_a_migration(project: str) -> None:
    call_command("makemigrations", "outbox", check=True, dry_run=True, verbosity=0)


def test_models_of_other_apps_may_refer_to_a_workflow() -> None:
    known = MigrationLoader(None).project_state().apps.get_model("outbox", "Workflow")
    assert known._meta.pk.name == "id"


def test_another_database_gets_nothing_of_outbox(project: str, dsn: str) -> None:
    """`dsn` has the schema; as DATABASE is `other`, nothing comes to `default`."""
    with django_project.database(let_django_in(dsn), "other"), override_settings(OUTBOX={"DATABASE": "other"}):
        migrate()
        assert scalar(project, "SELECT to_regclass('outbox.workflow_states')::text") is None
        migrate(database="other")
    assert scalar(dsn, "SELECT count(*) FROM outbox.pipelines") == 3


def test_a_project_that_deploys_by_itself_only_migrates(project: str) -> None:
    with override_settings(OUTBOX={"DEPLOY": False}):
        migrate()
    assert scalar(project, "SELECT count(*) FROM outbox.pipelines") == 0


def test_a_deploy_that_is_refused_says_who_would_be_stranded(migrated: str) -> None:
    with psycopg.connect(migrated) as conn:
        conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('orders', 'o-1')")
    later = Pipeline("orders", initial="OPEN", final={"PAID"})
    later.allow("OPEN", to="PAID")
    with consisting_of(later), pytest.raises(CommandError) as refused:
        migrate()
    assert str(refused.value).startswith("the pipelines were not deployed: ")
    assert "NEW" in str(refused.value)


@contextmanager
def consisting_of(*found: Pipeline[Any], also: tuple[str, ...] = ()) -> Iterator[None]:
    """Has the project consist of these pipelines."""
    module = ModuleType("pipelines_of_a_test")
    vars(module).update({f"_{number}": each for number, each in enumerate(found)})
    with pytest.MonkeyPatch.context() as patch, override_settings(OUTBOX={"PIPELINES": [*also, module.__name__]}):
        patch.setitem(sys.modules, module.__name__, module)
        yield


# The checks.


def problems(**setting: Any) -> list[str]:
    with override_settings(OUTBOX=setting):
        return [f"{each.id} {each.msg}" for each in checks.run_checks() if str(each.id).startswith("outbox.")]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"DATABASES": "default"}, "OUTBOX has no key 'DATABASES'; the keys are DATABASE, DEPLOY, LISTEN_DATABASE"),
        ({"DATABASE": "gone"}, "OUTBOX[\"DATABASE\"] is 'gone', and DATABASES has no such alias"),
        ({"DATABASE": None}, 'OUTBOX["DATABASE"] must be an alias in DATABASES'),
        ({"LISTEN_DATABASE": "gone"}, "OUTBOX[\"LISTEN_DATABASE\"] is 'gone'"),
        ({"DEPLOY": "yes"}, 'OUTBOX["DEPLOY"] must be True or False'),
        ({"PIPELINES": "apps.cli"}, 'OUTBOX["PIPELINES"] must be a list of "module" or "module:object"'),
    ],
)
def test_a_setting_that_cannot_be_is_an_error_that_names_it(setting: dict[str, Any], told: str) -> None:
    (found,) = problems(**setting)
    assert found.startswith(f"outbox.E001 {told}")


def test_checks_find_pipelines_that_cannot_be_imported_and_names_that_are_there_twice() -> None:
    assert problems(PIPELINES=["apps.plain", "apps.limits"]) == []
    (gone,) = problems(PIPELINES=["apps.no_such"])
    assert gone.startswith("outbox.E003 the pipelines of apps.no_such: there is no module 'apps.no_such'")
    twin = Pipeline("orders", initial="A", final={"B"})
    twin.allow("A", to="B")
    with consisting_of(twin, also=("apps.django_shop.pipelines",)):
        (twice,) = problems(**settings.OUTBOX)
    assert 'two pipelines are named "orders": one of apps.django_shop.pipelines' in twice


def test_a_database_of_another_kind_is_an_error() -> None:
    connection = connections["other"]
    kept = type(connection).vendor
    try:
        type(connection).vendor = "sqlite"
        assert problems(DATABASE="other")[0].startswith('outbox.E001 DATABASES["other"] has the engine')
    finally:
        type(connection).vendor = kept


class Elsewhere:
    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool | None:
        return False if app_label == "outbox" else None


def test_routers_that_keep_the_app_away_are_an_error_and_are_respected(project: str) -> None:
    with override_settings(DATABASE_ROUTERS=[Elsewhere()]):
        assert problems()[0].startswith('outbox.E002 DATABASE_ROUTERS keep the app "outbox" from')
        call_command("migrate", skip_checks=True, verbosity=0)
    assert scalar(project, "SELECT to_regclass('outbox.workflow_states')::text") is None


def test_a_schema_that_is_older_is_a_warning_of_the_database_checks(project: str) -> None:
    def warnings() -> list[str]:
        found = checks.run_checks(tags=[checks.Tags.database], databases=["default"])
        return [str(each.msg) for each in found if each.id == "outbox.W001"]

    assert warnings() == []  # Django says itself that a migration is to be applied
    migrate()
    assert warnings() == []
    make_older(project)
    (told,) = warnings()
    assert "views/overview" in told
    assert told.endswith("Run: manage.py migrate.")


# The pipelines and the DSN.


def test_pipelines_are_those_of_the_apps_or_those_that_are_named() -> None:
    assert [each.name for each in pipelines()] == ["orders", "tasks", "tasks:emails"]
    with override_settings(OUTBOX={"PIPELINES": ["apps.cli:posts"]}):
        assert [each.name for each in pipelines()] == ["posts", "tasks", "tasks:emails"]


def test_the_dsn_has_what_libpq_knows_of_the_database(project: str) -> None:
    options = {"sslmode": "disable", "options": "-c statement_timeout=5000", "pool": False, "assume_role": "a b"}
    with django_project.database(project, "other", PASSWORD="s3cret '", OPTIONS=options):
        found = conninfo_to_dict(dsn_of("other"))
    at = conninfo_to_dict(project)
    assert found == {
        "dbname": at["dbname"], "user": at["user"], "host": at["host"], "port": at["port"], "password": "s3cret '",
        "sslmode": "disable", "options": "-c statement_timeout=5000 -c role=a\\ b",
    }  # fmt: skip
    with django_project.database(project, "other", OPTIONS={"service": "shop"}):
        connections["other"].settings_dict.update(NAME="", USER="", HOST="", PORT="")
        assert conninfo_to_dict(dsn_of("other")) == {"service": "shop"}
    with pytest.raises((SettingsError, ImproperlyConfigured), match="Please supply the NAME"):
        dsn_of("other")
