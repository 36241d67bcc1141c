"""What the pages tell people to type can be typed: every command of ours is parsed by the real command line, all else
by the shell; and every link and path leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.exceptions import TyperException

from tests.live.test_runbook import commands
from tests.workers.test_doctor import every_setting
from workers.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("deploy/**/*.md"), ROOT / "receiver" / "providers" / "README.md"]
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:    postback .*\n)+")
SPAN = re.compile(r"`([^`]+)`")
PATH = re.compile(r"(?:deploy|receiver|tests|workers)/[\w./-]*[\w/]")
# What stands before a command of ours and runs it.
WRAPPED = re.compile(
    r"([A-Z_]+=\S* )*(runuser -u \w+ -- |docker compose (exec|run( --?[\w-]+)*) \w+ |kubectl .* exec \S+ -- )?"
)
ENDS = frozenset({"&&", "||", ";", "|", "&", "(", ")"})


def text(page: Path) -> str:
    return (ROOT / page).read_text()


def scripts(page: Path) -> Iterator[str]:
    """What is to be typed into a shell."""
    for fence in FENCE.finditer(text(page)):
        if fence["kind"] in ("sh", "bash"):
            yield re.sub(rf"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE)
    for block in INDENTED.findall(FENCE.sub("", text(page))):
        yield re.sub("^    ", "", block, flags=re.MULTILINE)


def spans(page: Path) -> Iterator[str]:
    """Code within the text."""
    for span in SPAN.findall(FENCE.sub("", text(page))):
        yield " ".join(span.split())


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each command; what the shell puts in place of `$NAME` stays as it is."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a text in quotes that goes on in the next line
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word in ENDS or set(word) <= set("<>"):
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def ours(words: list[str]) -> list[str] | None:
    """The arguments of `postback` in this command; None when it is another's."""
    for position, word in enumerate(words):
        if word == "postback" and WRAPPED.fullmatch("".join(f"{before} " for before in words[:position])):
            return words[position + 1 :]
    return None


def parse(arguments: list[str], *, complete: bool) -> None:
    """Raises what the command line would say. Without `complete`, what is missing is no fault."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not arguments or arguments[0] == "--help":
            return
        assert arguments[0] in command.commands, f"there is no {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    try:
        command.make_context("postback", list(arguments), resilient_parsing=False)
    except TyperException as error:
        said = error.format_message()
        if complete or not re.search("Missing|requires an argument", said):
            raise AssertionError(said) from error


def test_the_pages_are_there() -> None:
    assert {"README.md", "deploy/README.md", "deploy/RUNBOOK.md", "deploy/UPGRADE.md"} <= {str(page) for page in PAGES}
    assert sum(1 for page in PAGES for _ in scripts(page)) > 20
    told = [words for page in PAGES for script in scripts(page) for words in simple_commands(script)]
    assert sum(1 for words in told if ours(words) is not None) > 40


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_script_is_one(page: Path) -> None:
    for script in scripts(page):
        done = subprocess.run(["/bin/bash", "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_of_ours_is_one(page: Path) -> None:
    faults = []
    for script in scripts(page):
        for words in simple_commands(script):
            if (arguments := ours(words)) is not None:
                faults += fault(arguments, " ".join(words), complete=True)
    for span in spans(page):
        if span.startswith("postback ") and not re.search(r"[…(]", span):
            for words in simple_commands(span):
                if (arguments := ours(words)) is not None:
                    faults += fault([word.strip("[]") for word in arguments], span, complete=False)
    assert faults == []


def fault(arguments: list[str], told: str, *, complete: bool) -> list[str]:
    try:
        parse(arguments, complete=complete)
    except AssertionError as error:
        return [f"{told}: {error}"]
    return []


def test_every_command_stands_on_some_page() -> None:
    """By its name, or by its last word where its group was named before: `pause`, `resume`."""
    told = "\n".join(text(page) for page in PAGES)
    known = list(commands(app))
    assert "postback replays pause" in known
    missing = []
    for command in known:
        group, _, word = command.rpartition(" ")
        if command not in told and not (group in told and re.search(rf"`{word}\b|\b{word} ID\b|\|{word}\b", told)):
            missing.append(command)
    assert missing == []


def test_every_setting_stands_in_the_readme() -> None:
    readme = text(Path("README.md"))
    assert [key for key in every_setting() if not re.search(rf"\b{key.rpartition('.')[2]}\b", readme)] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            faults.append(target)
    assert faults == []


def anchors(file: Path) -> set[str]:
    """Of its headings, as the forges make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_path_is_there(page: Path) -> None:
    """Beside the page or from the root; examples of what is yet to be made have a place in angle brackets."""
    faults = [
        span
        for span in spans(page)
        if PATH.fullmatch(span) and not (ROOT / span).exists() and not ((ROOT / page).parent / span).exists()
    ]
    assert faults == []


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("postback notificatons list", "there is no notificatons"),
        ("postback notifications show", "Missing"),
        ("postback payments list --stat failed", "No such option: --stat"),
        ("postback simulate checkout --count many", "valid integer"),
        ("runuser -u postback -- postback migrat", "there is no migrat"),
        ("docker compose exec console postback docter", "there is no docter"),
        ("kubectl -n postback exec deploy/console -- postback doctor --jason", "--jason"),
        ("ls && postback health --quick | head", "--quick"),
    ],
)
def test_a_slip_is_found(told: str, said: str) -> None:
    (arguments,) = [found for words in simple_commands(told) if (found := ours(words)) is not None]
    with pytest.raises(AssertionError, match=said):
        parse(arguments, complete=True)
