"""`postback init`, `doctor`, `migrate` and `health`: setting up, and asking whether all is well."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options, output
from workers.cli.finding import Finding

if TYPE_CHECKING:
    from pathlib import Path

    from receiver.settings import Settings


def register(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(doctor)
    app.command()(migrate)
    app.command()(health)


def init(config: options.Config = None) -> None:
    """Write a starter postback.toml with generated secrets."""
    from receiver import settings as configuration
    from workers.cli import starter

    path = configuration.find(config)
    password = starter.write(path)
    configuration.load(path)
    print(f"Wrote {path} and {path.parent / 'secrets'}{'/'}. `postback up --demo` tries it.")
    print(f"Sign in to the console as {starter.OPERATOR} with the password, shown this once: {password}")


def doctor(config: options.Config = None, as_json: options.AsJson = False) -> None:
    """Check configuration, secrets, Redis durability, database and migrations; exit 1 on a fault."""
    from receiver import settings as configuration
    from receiver.errors import ConfigurationError

    try:
        settings = options.settings(config)
    except ConfigurationError as error:
        findings = [Finding("configuration", "fault", str(error))]
    else:
        folder = configuration.find(config).resolve().parent
        findings = [Finding("configuration", "ok", f"{len(settings.endpoint)} endpoints"), *_examine(settings, folder)]
    if as_json:
        output.json_lines(finding._asdict() for finding in findings)
    else:
        output.table((finding._asdict() for finding in findings), ("check", "verdict", "detail"), empty="")
    sys.exit(1 if any(finding.verdict == "fault" for finding in findings) else 0)


def migrate(
    config: options.Config = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing when all went well.")] = False,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Then move the SQLite ledger in this file into it, which must be empty."),
    ] = None,
) -> None:
    """Bring the ledger's schema up to date."""
    from workers.cli.processes import using_data_dir
    from workers.ledger import database

    settings = options.settings(config)
    with using_data_dir():
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = database.url(settings)
    database.migrate(url)
    moved = _move(source, url, quiet) if source is not None else None
    if not quiet:
        print(f"The ledger is at revision {database.schema(url).current}.")
    if moved is not None and not quiet:
        print(f"{moved} rows were moved; `postback payments rebuild --check` says whether all of them are right.")


def _move(source: str, url: str, quiet: bool) -> int:
    from pathlib import Path

    from workers.ledger import moving

    path = Path(source).resolve()
    with output.bar(moving.size(path), "moved", hidden=quiet) as told:
        return moving.move(path, url, told)


def health(config: options.Config = None) -> None:
    """Print one JSON object for monitoring; exit 1 when something is wrong."""
    from workers.health import examine

    state = examine(options.settings(config))
    output.json_lines([state])
    sys.exit(0 if state["status"] == "ok" else 1)


def _examine(settings: Settings, folder: Path) -> Iterator[Finding]:
    from datetime import UTC, datetime

    from workers.cli import alarms, machine, sources

    yield from _endpoints(settings)
    yield from sources.examine(settings, datetime.now(UTC).date())
    yield _queue(settings)
    yield from _older_secrets(settings)
    yield (ledger := _ledger(settings))
    if ledger.verdict == "ok":
        yield _body_keys(settings)
        yield from _second_factors(settings)
    yield from alarms.examine(settings)
    yield _disk(settings)
    yield from machine.examine(settings, folder)
    if settings.tracing.endpoint is not None:
        yield _tracing(settings)


def _tracing(settings: Settings) -> Finding:
    from receiver.errors import ConfigurationError

    try:
        import receiver.tracing  # noqa: F401
    except ConfigurationError as error:
        return Finding("tracing", "fault", str(error))
    return Finding("tracing", "ok", f"{settings.tracing.sample * 100:g}% of the traces are kept")


def _endpoints(settings: Settings) -> Iterator[Finding]:
    from receiver.providers import PROVIDERS
    from receiver.settings import allowed_networks

    for endpoint in settings.endpoint:
        networks = allowed_networks(endpoint, PROVIDERS[endpoint.provider])
        if networks and all(network.is_loopback for network in networks):
            yield Finding(
                endpoint.path, "note", "only this machine may send; leave allowed_sources out for the sender's own"
            )
        else:
            yield Finding(endpoint.path, "ok", f"{endpoint.environment}, from {_networks(networks)}")
        if not getattr(endpoint, "hmac_passwords", True):
            yield Finding(endpoint.path, "note", "hmac_passwords: there is none, so browser returns show no result")
    if not settings.endpoint:
        yield Finding("endpoints", "fault", "endpoint: there is none, so nothing would be accepted")
    if not settings.security.api_keys:
        yield Finding("api keys", "note", "security.api_keys: there is none, so nothing can be registered over HTTP")


def _networks(networks: tuple[object, ...]) -> str:
    return ", ".join(str(network) for network in networks) or "any address"


def _queue(settings: Settings) -> Finding:
    from redis.exceptions import RedisError

    from receiver.connection import connect, durability, replicas_confirm
    from receiver.replicas import TooFewReplicas

    embedded = settings.queue.redis_url is None
    redis, copies = connect(settings), settings.queue.replicas
    try:
        fault = durability(redis).fault
        if copies:
            replicas_confirm(redis, copies)
    except TooFewReplicas as error:
        return Finding("queue", "fault", f"queue.replicas: {error}")
    except (RedisError, OSError) as error:
        if embedded:
            return Finding("queue", "note", "embedded Valkey, not running now; `postback up` starts it")
        return Finding("queue", "fault", f"queue.redis_url: Redis does not answer ({type(error).__name__})")
    finally:
        redis.close()
    if fault is None:
        also = f" and at {copies} replica{'s' if copies > 1 else ''}" if copies else ""
        return Finding("queue", "ok", f"an answer means that it is on the disk{also}")
    strict = settings.queue.durability == "strict"
    return Finding("queue", "fault" if strict else "note", f"queue.durability: in this Redis {fault}")


def _older_secrets(settings: Settings) -> Iterator[Finding]:
    """Since when each secret that has a newer one beside it is unused."""
    from redis.exceptions import RedisError

    from receiver.connection import connect
    from receiver.notification import utc
    from receiver.secret_use import older

    redis = connect(settings)
    try:
        found = older(settings, redis)
    except (RedisError, OSError):
        return
    finally:
        redis.close()
    for each in found:
        where = f"{each.listed.provider}/{each.listed.facility}" if each.listed.provider else "api keys"
        what = f"{each.listed.place} ({each.listed.secret.origin})"
        since = f"{utc(each.since * 1_000_000):%Y-%m-%dT%H:%M:%SZ}" if each.since is not None else ""
        if not since:
            yield Finding(where, "note", f"{what} has never been in use")
        elif each.ever:
            yield Finding(where, "note", f"{what} is unused since {since}, when it last proved something")
        else:
            yield Finding(where, "note", f"{what} is unused since {since}, when it was there first")


def _ledger(settings: Settings) -> Finding:
    from receiver.errors import ConfigurationError, LedgerAway
    from workers.ledger.database import schema, url

    if settings.store.database_url is None and not (settings.data_dir / "ledger.sqlite3").exists():
        return Finding("ledger", "note", "SQLite, not made yet; `postback up` or `postback migrate` makes it")
    try:
        found = schema(url(settings))
    except (LedgerAway, ConfigurationError) as error:
        return Finding("ledger", "fault", f"store.database_url: {error}")
    if found.fault:
        return Finding("ledger", "fault", f"store.database_url: {found.fault}")
    if found.current != found.newest:
        return Finding(
            "ledger", "note", f"at revision {found.current} of a newer version; this one works on it as well"
        )
    return Finding("ledger", "ok", f"at revision {found.current}")


def _body_keys(settings: Settings) -> Finding:
    """Whether every stored body can be opened, and what a key in the configuration is still needed for."""
    from receiver.errors import ConfigurationError, LedgerAway
    from workers.cli.ledger import opened_with
    from workers.ledger.bodies import Bodies, keys_in_use

    try:
        configured = Bodies(settings.security.body_keys).key_ids
        with opened_with(settings) as connection:
            used = keys_in_use(connection)
    except (ConfigurationError, LedgerAway) as error:
        return Finding("body keys", "fault", str(error))
    if missing := sorted(used - set(configured)):
        text = f"security.body_keys: bodies are encrypted with {', '.join(missing)}, which is not there"
        return Finding("body keys", "fault", text)
    if not configured:
        return Finding("body keys", "note", "security.body_keys: there is none, so raw bodies are stored plain")
    if unused := [key for key in configured[:-1] if key not in used]:
        return Finding("body keys", "note", f"security.body_keys: {', '.join(unused)} is used by no body any more")
    return Finding("body keys", "ok", f"bodies are encrypted with {configured[-1]}")


def _second_factors(settings: Settings) -> Iterator[Finding]:
    """Who may act and has none, of those who sign in with a password. Nothing where this role of the database may not
    know: only the console's may."""
    from receiver.errors import LedgerAway, SealBroken
    from receiver.settings import Role
    from workers.console.factors import SecondFactors
    from workers.ledger.database import open_engine, url

    acting = [each for each in settings.security.operators if each.password_hash and each.role.includes(Role.OPERATOR)]
    if not acting:
        return
    engine = open_engine(url(settings))
    try:
        factors, without, unfit = SecondFactors(engine, settings.security.seal_keys), list[str](), list[str]()
        for each in acting:
            try:
                without += [] if factors.device(each.name) else [each.name]
            except SealBroken:
                unfit.append(each.name)
        if unfit:
            text = (
                f"security.seal_keys: what the ledger has of {', '.join(unfit)} fits none; `postback operator unenrol`"
            )
            yield Finding("second factors", "fault", text)
        if without:
            text = f"console.second_factor: {', '.join(without)} may replay or approve with a password alone"
            yield Finding("second factors", "note", text)
        if not unfit and not without:
            yield Finding("second factors", "ok", "whoever may replay or approve has one")
    except LedgerAway:
        return
    finally:
        engine.dispose()


def _disk(settings: Settings) -> Finding:
    import os
    import shutil

    folder = settings.data_dir if settings.data_dir.exists() else settings.data_dir.parent
    if not os.access(folder, os.W_OK):
        return Finding("data_dir", "fault", f"data_dir: {folder} cannot be written")
    free = shutil.disk_usage(folder).free
    if free < settings.receive.max_spool:
        return Finding("data_dir", "fault", f"data_dir: {free >> 20} MiB free, less than receive.max_spool")
    return Finding("data_dir", "ok", f"{free >> 20} MiB free")
