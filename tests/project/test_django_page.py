"""docs/django.md works as printed: what it writes is put into a project, and what it types is typed there."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from kit.databases import OWNER
from kit.manage import manage

PAGE = Path(__file__).parents[2] / "docs" / "django.md"

# What a project has before.
BEFORE = {
    "config/settings.py": "import os\nINSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth']\nSECRET_KEY = 'of a test'\nUSE_TZ = True\nDEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'\n"
    "DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': os.environ['PGDATABASE']}}\n",
    "shop/models.py": "from django.db import models\n\n\nclass Order(models.Model):\n"
    "    number = models.CharField(max_length=50)\n    shipped = models.BooleanField(default=False)\n",
    "shop/__init__.py": "",
    "shop/migrations/__init__.py": "",
}
PLACE = """
from django.test import RequestFactory
from django.contrib.auth.models import AnonymousUser
from shop.late import waiting
from shop.views import place_order
request = RequestFactory().post("/", {"number": "o-1"})
request.user = AnonymousUser()
assert place_order(request).status_code == 201
assert [each.job.stage for each in waiting("PLACED")] == ["ship"]
"""


def test_what_django_md_says_works_as_printed(empty_dsn: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    written = [(re.match(r"# (\S+)\n", text), text) for language, text in blocks if language == "python"]
    assert all(name for name, _ in written)
    for name, text in [*BEFORE.items(), *((str(name[1]), text) for name, text in written if name)]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as end:
            end.write(text)
    typed = [line for language, text in blocks if language == "sh" for line in text.splitlines()]
    assert typed[1] == "python manage.py migrate"

    dsn = empty_dsn.replace(f"{OWNER}@", "postgres@")  # who may make a test database, as on a laptop
    (tmp_path / "place.py").write_text(PLACE)
    commands = [line.removeprefix("python manage.py ") for line in typed[1:]]
    typed = ["makemigrations shop", commands[0], "place.py", *commands[1:], "test --noinput"]
    assert "Ran 1 test" in manage(tmp_path, "config.settings", conninfo_to_dict(dsn), *typed)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT current_status FROM outbox.workflow_states").fetchall() == [("SHIPPED",)]
        assert conn.execute("SELECT number, shipped FROM shop_order").fetchall() == [("o-1", True)]
