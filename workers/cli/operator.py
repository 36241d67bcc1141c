"""`postback operator`: who may sign in to the console."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workers.cli import options, output

app = typer.Typer(help="Who may sign in to the console.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The name to sign in with.")],
    role: Annotated[str, typer.Option(help="viewer, operator (may replay) or approver (may approve).")] = "viewer",
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a password and show it once, instead of asking.")
    ] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the entry and leave the file as it is.")] = False,
    config: options.Config = None,
) -> None:
    """Add an operator to the configuration; the password is asked for without an echo."""
    from receiver import settings as configuration
    from receiver.settings import Role
    from workers.console import entries, passwords

    options.one_of(role, [each.value for each in Role], "--role")
    path = configuration.find(config)
    entries.require_new(configuration.load(path), name)
    password = passwords.generate() if generate else _ask(name)
    entry = entries.entry(name, passwords.make(password), Role(role))
    written = not show and entries.append(path, entry)
    if generate:
        print(f"Password of {name}, shown this once: {password}")
    if written:
        print(f"Added {name} ({role}) to {path}. Restart the console to use it: systemctl restart postback-console.")
    else:
        print(f"Put this into {path} and restart the console:\n\n{entry}", end="")


@app.command("list")
def list_(as_json: options.AsJson = False, config: options.Config = None) -> None:
    """List the operators of the configuration."""
    found = [
        {"name": operator.name, "role": operator.role.value, "password": operator.password_hash is not None}
        for operator in options.settings(config).security.operators
    ]
    if as_json:
        output.json_lines(found)
    else:
        output.table(found, ("name", "role", "password"), empty="No operators; `postback operator add NAME` adds one.")


def _ask(name: str) -> str:
    """A password typed twice on a terminal, or the first line of standard input. Wrong use for a bad one."""
    from workers.console.passwords import LONGEST, SHORTEST, is_guessed_first

    if sys.stdin.isatty():
        password: str = typer.prompt("Password", hide_input=True, confirmation_prompt="The same again")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not SHORTEST <= len(password) <= LONGEST:
        raise typer.BadParameter(f"a password has between {SHORTEST} and {LONGEST} characters; --generate makes one.")
    if is_guessed_first(password, name):
        raise typer.BadParameter("this password is among the first that are guessed; --generate makes one.")
    return password
