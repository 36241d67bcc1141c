"""Which module may import which: walked over the source, so that an import inside a function counts as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PURE = {"cards", "codes", "digits", "errors", "money", "reading", "signing", "notification"}
PURE |= {"returned", "return_page", "return_result"}
FRAMEWORKS = {
    "starlette",
    "uvicorn",
    "redis",
    "rq",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "prometheus_client",
    "structlog",
}
EDGE_OF_THE_PROCESS = {"receiver.app", "receiver.accept"}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def pure_modules() -> list[Path]:
    return [
        path
        for path in modules("receiver")
        if path.parent.name == "providers" or (path.parent.name == "receiver" and path.stem in PURE)
    ]


def imports(path: Path) -> Iterator[str]:
    """Dotted names; ``from receiver import health`` gives ``receiver.health``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def ours(path: Path, package: str) -> set[str]:
    """The modules of `package` that `path` imports."""
    return {name for name in imports(path) if name.split(".")[0] == package and is_module(name)}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", modules("receiver"), ids=name_of)
def test_the_accept_side_never_imports_the_workers(path: Path) -> None:
    assert ours(path, "workers") == set()


@pytest.mark.parametrize("path", modules("receiver"), ids=name_of)
def test_the_accept_side_has_no_database(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} & {"sqlalchemy", "alembic", "psycopg"} == set()


@pytest.mark.parametrize("path", pure_modules(), ids=name_of)
def test_pure_modules_know_nothing_of_requests_queues_and_databases(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} & FRAMEWORKS == set()
    allowed = {"receiver", "receiver.providers", *(f"receiver.{name}" for name in PURE)}
    others = {name for name in ours(path, "receiver") if not name.startswith("receiver.providers.")} - allowed
    assert others == set()


def test_a_provider_imports_no_other_provider() -> None:
    for path in modules("receiver/providers"):
        if path.stem != "__init__":
            others = {name for name in ours(path, "receiver") if name.startswith("receiver.providers")}
            # A second file of one provider, such as that of its settlement file, has its name before the underscore.
            own = {name for name in others if name.split(".")[-1].partition("_")[0] == path.stem.partition("_")[0]}
            assert others - own <= {"receiver.providers", "receiver.providers.base"}, path


@pytest.mark.parametrize("path", modules("workers"), ids=name_of)
def test_workers_do_not_import_the_accept_process(path: Path) -> None:
    # The command that starts the accept process has to name it.
    allowed = {"receiver.app"} if name_of(path) == "workers.cli.processes" else set()
    assert ours(path, "receiver") & EDGE_OF_THE_PROCESS <= allowed


def test_every_pure_module_was_looked_at() -> None:
    names = {path.stem for path in pure_modules()}
    assert names >= PURE | {"base", "quickstream", "checkout", "debitsuccess", "paymentz", "__init__"}
