"""`postback operator`: who may sign in to the console."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options, output

if TYPE_CHECKING:
    from receiver.settings import Operator, Settings

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
    settings = configuration.load(path)
    entries.require_new(settings, name)
    password = passwords.generate() if generate else _ask(name, settings)
    entry = entries.entry(name, passwords.make(password), Role(role))
    written = not show and entries.append(path, entry)
    if generate:
        print(f"Password of {name}, shown this once: {password}")
    if written:
        print(f"Added {name} ({role}) to {path}. Restart the console to use it: systemctl restart postback-console.")
    else:
        print(f"Put this into {path} and restart the console:\n\n{entry}", end="")


@app.command("password")
def password_(
    name: Annotated[str, typer.Argument(help="Whose password.")],
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a password and show it once, instead of asking.")
    ] = False,
    config: options.Config = None,
) -> None:
    """Give an operator another password, as the console lets him do it himself; his sessions end."""
    from workers.audit import Action
    from workers.cli import acting
    from workers.console import passwords
    from workers.console.chosen import ChosenPasswords
    from workers.ledger.database import away_when_it_fails

    settings = options.settings(config)
    found = _known(settings, name)
    if found.password_hash is None:
        raise typer.BadParameter(f"{found.name} has no password: the proxy in front signs him in.")
    password = passwords.generate() if generate else _ask(found.name, settings)
    with acting.audited(config) as (engine, audit), away_when_it_fails(), engine.begin() as connection:
        chosen = ChosenPasswords(engine, settings.security.seal_keys)
        chosen.choose(connection, found.name, found.password_hash, passwords.make(password))
        audit.add(connection, acting.actor(), Action.PASSWORD_CHANGED, found.name)
    if generate:
        print(f"Password of {found.name}, shown this once: {password}")
    print(f"Changed the password of {found.name}. It counts from now on; no restart is needed.")


@app.command()
def unenrol(
    name: Annotated[str, typer.Argument(help="Whose device.")],
    reason: Annotated[str, typer.Option(help="Why; it stays in the audit trail.")],
    config: options.Config = None,
) -> None:
    """Take off the second factor of an operator who has lost device and recovery codes; his sessions end."""
    from receiver.errors import SealBroken
    from workers.audit import Action, reason_given
    from workers.cli import acting
    from workers.console.factors import SecondFactors
    from workers.ledger.database import away_when_it_fails

    settings = options.settings(config)
    found, reason = _known(settings, name), reason_given(reason)
    with acting.audited(config) as (engine, audit):
        factors = SecondFactors(engine, settings.security.seal_keys)
        try:
            if not factors.device(found.name):
                raise typer.BadParameter(f"{found.name} has no second factor; nothing was done.")
        except SealBroken:
            pass  # What fits no key lets nobody in: to take that off is what it is for.
        with away_when_it_fails(), engine.begin() as connection:
            factors.take_off(connection, found.name)
            audit.add(connection, acting.actor(), Action.SECOND_FACTOR_TAKEN_OFF, found.name, reason)
    print(
        f"Took off the second factor of {found.name}: the password alone signs in from now on. Was the device stolen?"
    )
    print(f"Then set another password as well: postback operator password {found.name}")


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


def _known(settings: Settings, name: str) -> Operator:
    """Wrong use for a name that no operator has."""
    found = next((each for each in settings.security.operators if each.name.lower() == name.lower()), None)
    if found is None:
        raise typer.BadParameter(f"there is no operator {name}; `postback operator list` names them.")
    return found


def _ask(name: str, settings: Settings) -> str:
    """A password typed twice on a terminal, or the first line of standard input. Wrong use for a bad one."""
    from workers.console.passwords import fault

    if sys.stdin.isatty():
        password: str = typer.prompt("Password", hide_input=True, confirmation_prompt="The same again")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if said := fault(password, name, settings.console.breached_passwords):
        raise typer.BadParameter(f"{said[0].lower()}{said[1:-1]}; --generate makes one.")
    return password
