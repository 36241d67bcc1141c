"""The configuration file: read strictly, secrets resolved at once, every fault named by its key, never by a value."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from base64 import b64decode
from collections.abc import Sequence
from enum import StrEnum
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from receiver.errors import ConfigurationError
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint, Provider, ReturnEndpoint
from receiver.providers.quickstream_settlement import HEADINGS as SETTLEMENT_HEADINGS
from receiver.signing import Secret

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What people leave in place of a secret. A receiver that accepts it is open to everyone.
# Compared by their letters and digits alone: "Change-Me!" is one as well, and so is what has none, such as "...".
_PLACEHOLDERS = frozenset(
    {
        *("", "changeme", "changethis", "changeit", "replaceme", "replacethis", "todo", "tbd", "placeholder"),
        *("password", "passwd", "passphrase", "secret", "default", "defaultsecret", "example", "examplesecret"),
        *("yourpassword", "yoursecret", "yoursecretkey", "yourkey", "yourtoken", "mypassword", "mysecret"),
        *("none", "null", "undefined", "true", "false"),
    }
)
# What a template leaves where nobody gave it a value: ${QS_PASSWORD}, {{ password }}, <password>.
_UNFILLED = re.compile(r"\$\{.*\}|\$\(.*\)|\{\{.*\}\}|<.*>|%\(.*\)s", re.DOTALL)
# A reference in the place of what it refers to, and a literal that lacks its "env:".
_REFERENCE = re.compile(r"env:.*|file:.*|[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", re.DOTALL)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# Names of people may be addresses, as identity providers have them.
OPERATOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,63}", re.ASCII)
_PASSWORD_HASH = re.compile(rb"\$(scrypt|argon2id)\$[\x21-\x7e]{20,400}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_REGION = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,3})?", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
# Nothing that could be a second header or a second address.
_MAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,253}", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})\s*(B|KiB|MiB|GiB)", re.ASCII)
_PERIOD = re.compile(r"(\d{1,5})\s*(h|d|w)", re.ASCII)
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


# A batch has at most as much.
LARGEST_BODY = 4 << 20


SHORTEST_RESULT_KEY = 32
"""Characters: every customer has a result to try out a short one on."""
SHORTEST_CLIENT_KEY = 32
"""Characters: the API does not slow down whoever tries out short ones."""
SHORTEST_BODY_KEY = 32
"""Characters: whoever has a copy of the ledger can try out a short one for as long as they like."""


SHORTEST_REPEATS = 30 * 86_400


class Size(int):
    """Bytes, written as ``"256KiB"``."""


class Period(int):
    """Seconds, written as ``"400d"``."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: an unknown key is an error, since a misspelt one would be a setting without effect."""


class Receive(_Section, frozen=True):
    bind: str = "127.0.0.1:8080"
    processes: int = 1
    trusted_proxies: tuple[str, ...] = ()
    """CIDRs; forwarded headers count only from these."""
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"] | None = None
    """The one that counts; None takes either, and refuses a request in which both name different clients."""
    max_body: Size = Size(256 << 10)
    body_timeout: int = 10
    """Seconds within which the whole body must have arrived."""
    max_spool: Size = Size(1 << 30)
    max_connections: int = 5000
    """Of one accept process."""
    max_connections_per_address: int = 2000
    """An IPv6 network of 64 bits is one address; `trusted_proxies` have no such limit."""
    max_held: int = 1000
    """Unverified notifications held per endpoint within a day."""
    max_held_per_address: int = 500
    max_refused: int = 50
    """Refused requests a second that each endpoint answers with their reason and records, a hundred times as many at
    one moment."""
    max_refused_per_address: int = 10
    """The same for each address; an IPv6 network of 64 bits is one."""


class Console(_Section, frozen=True):
    bind: str = "127.0.0.1:8081"
    public_url: str | None = None
    """Where browsers find the console when that is not `bind`: behind a proxy with TLS, ``https://...``."""
    trusted_proxies: tuple[str, ...] = ()
    """CIDRs; forwarded headers and `sign_in_header` count only from these."""
    sign_in_header: str | None = None
    """A header in which a trusted proxy names the operator whom it has signed in."""
    idle_minutes: int = 30
    session_hours: int = 12
    max_upload: Size = Size(512 << 20)
    """Of a settlement file that an operator gives; a million rows have some 200 MB."""
    breached_passwords: Path | None = None
    """A sorted list of SHA-1 digests; no operator may choose a password that is on it."""
    second_factor: Literal["optional", "required"] = "optional"
    """Whether operators who sign in with a password must enrol a device for one-time codes before they do anything."""


class Work(_Section, frozen=True):
    metrics_bind: str | None = None
    """Where a worker shows the figures of its machine. None: an accept process or the console of the machine does."""


class Queue(_Section, frozen=True):
    redis_url: Secret | None = None
    """None: embedded Valkey under `data_dir`."""
    durability: Literal["strict", "relaxed"] = "strict"
    replicas: int = 0
    """Replicas that must have each batch before its senders are answered."""


class Store(_Section, frozen=True):
    database_url: Secret | None = None
    """None: SQLite under `data_dir`."""


class Tracing(_Section, frozen=True):
    endpoint: str | None = None
    """Where spans go, by OTLP over HTTP; None: there are no traces."""
    sample: float = 1.0
    """The share of the traces that are kept."""


class Retention(_Section, frozen=True):
    """How long what is kept besides the records themselves stays; what has no period stays for ever."""

    bodies: Period | None = None
    """Raw bodies of what was processed or resolved, and of its conflicts."""
    unresolved: Period | None = None
    """Raw bodies of what failed, is quarantined or held, and was never resolved."""
    repeats: Period | None = None
    """The records of deliveries that said the same again."""
    refusals: Period | None = None
    returns: Period | None = None
    """What customers saw when they came back from a payment page."""


class AlarmEmail(_Section, frozen=True):
    """Where alarms are mailed to, and by which server."""

    server: str
    """``host:port``."""
    sender: str
    to: tuple[str, ...]
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    """``none`` only to this very machine."""
    username: str | None = None
    password: Secret | None = None


class AlarmWebhook(_Section, frozen=True):
    """Where alarms are posted to, signed by the rules of https://www.standardwebhooks.com."""

    url: str
    secrets: tuple[Secret, ...]
    """``whsec_...``, oldest first: each message has a signature of every one."""


class Alarms(_Section, frozen=True):
    look_every: int = 5
    """Seconds between two looks."""
    confirm: int = 10
    """Seconds that a problem must last before it is an alarm."""
    calm: int = 30
    """Seconds that it must be gone before the alarm is cleared; the longer, the more often it came back."""
    quiet: Period = Period(4 * 3600)
    """Between two messages of an alarm that lasts and that nobody acknowledged."""
    time_zone: str = "UTC"
    """In whose hours and weekdays the customers pay."""
    workers: bool = True
    """Whether workers look after the alarms, as consoles do: not where they have no way to mail server and webhook."""
    holidays: tuple[str, ...] = ()
    """Whose holidays are no usual days: a country (``NZ``), or a part of one (``AU-NSW``)."""
    public_name: str | None = None
    """``host`` or ``host:port`` under which senders find this receiver: its certificate is looked after."""
    email: AlarmEmail | None = None
    webhook: AlarmWebhook | None = None


class Role(StrEnum):
    """What an operator may do; each may also do what those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"

    def includes(self, other: Role) -> bool:
        roles = list(Role)
        return roles.index(self) >= roles.index(other)


class Replay(_Section, frozen=True):
    approve_above: int = 100
    """A replay of more notifications than this needs a second operator."""
    per_second: int = 5000
    """Notifications that a replay does in a second at most; live ones always go first."""


class Operator(_Section, frozen=True):
    name: str
    password_hash: Secret | None = None
    """None: may sign in through a trusted proxy only."""
    role: Role = Role.VIEWER


class ApiClient(_Section, frozen=True):
    """A program that asks the console's API, by a key of its own."""

    name: str
    key: Secret
    role: Role = Role.VIEWER


class Security(_Section, frozen=True):
    seal_keys: tuple[Secret, ...]
    body_keys: tuple[Secret, ...] = ()
    """Encrypt raw bodies in the ledger; without one they are stored plain."""
    operators: tuple[Operator, ...] = ()
    api_keys: tuple[Secret, ...] = ()
    """The entries that are secrets: they register what is expected at the receiver, and open nothing else."""
    api_clients: tuple[ApiClient, ...] = ()
    """The entries of `api_keys` that are tables ``{ name, key, role }``: they ask the console's API."""


class Settings(_Section, frozen=True):
    security: Security
    data_dir: Path = Path("var")
    receive: Receive = Receive()
    work: Work = Work()
    console: Console = Console()
    queue: Queue = Queue()
    store: Store = Store()
    replay: Replay = Replay()
    retention: Retention = Retention()
    alarms: Alarms = Alarms()
    tracing: Tracing = Tracing()
    endpoint: tuple[Any, ...] = ()

    @property
    def endpoints(self) -> dict[tuple[str, str], Endpoint]:
        """Endpoints by (provider, facility)."""
        return {(endpoint.provider, endpoint.facility): endpoint for endpoint in self.endpoint}


def find(config: Path | None) -> Path:
    """The configuration file: the argument, then ``POSTBACK_CONFIG``, then ``./postback.toml``."""
    return config or Path(os.environ.get("POSTBACK_CONFIG") or "postback.toml")


def load(path: Path) -> Settings:
    """The settings of `path`, with secrets resolved and relative paths taken from the file's own folder.

    Raises `ConfigurationError` for anything that is missing, unknown or cannot be used.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; `postback init` writes a starter file.") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        where = re.search(r"\(at .*\)", str(error))
        raise ConfigurationError(f"{path} is not valid TOML {where.group() if where else ''}".rstrip() + ".") from None
    return read(document, path.resolve().parent)


def read(document: dict[str, Any], folder: Path) -> Settings:
    """The settings of a parsed file; `folder` is where relative paths start. Raises `ConfigurationError`."""
    endpoint_types: Any = reduce(or_, [provider.endpoint for provider in PROVIDERS.values()])

    def convert(kind: type, value: Any) -> Any:
        if kind is Secret:
            return _secret(value, folder)
        if kind is Period:
            return _period(value)
        return _size(value) if kind is Size else (folder / _path(value)).resolve()

    endpoints = document.get("endpoint", [])
    if not isinstance(endpoints, list):
        raise ConfigurationError("endpoint: write each one as [[endpoint]].")
    document, clients = _clients(document, convert)
    try:
        settings = msgspec.convert({**document, "endpoint": []}, Settings, dec_hook=convert)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_explain(error, "")) from None
    settings = msgspec.structs.replace(
        settings,
        security=msgspec.structs.replace(settings.security, api_clients=clients),
        # The default is relative; what was read is not any more.
        data_dir=(folder / settings.data_dir).resolve(),
        endpoint=tuple(_endpoint(entry, index, endpoint_types, convert) for index, entry in enumerate(endpoints)),
    )
    _check(settings)
    return settings


def _clients(document: dict[str, Any], convert: Any) -> tuple[dict[str, Any], tuple[ApiClient, ...]]:
    """The tables among `security.api_keys`, and the document without them."""
    security = document.get("security")
    if not isinstance(security, dict):
        return document, ()
    if "api_clients" in security:
        raise ConfigurationError("security.api_clients: is not a known key.")
    keys = security.get("api_keys")
    if not isinstance(keys, list):
        return document, ()
    clients = []
    for index, entry in enumerate(keys):
        if isinstance(entry, dict):
            try:
                clients.append(msgspec.convert(entry, ApiClient, dec_hook=convert))
            except msgspec.ValidationError as error:
                raise ConfigurationError(_explain(error, f"security.api_keys[{index}]")) from None
    secrets = [entry for entry in keys if not isinstance(entry, dict)]
    return {**document, "security": {**security, "api_keys": secrets}}, tuple(clients)


def _endpoint(entry: Any, index: int, kinds: Any, convert: Any) -> Endpoint:
    if isinstance(entry, dict) and entry.get("provider") not in list(PROVIDERS):
        raise ConfigurationError(f"endpoint[{index}].provider: must be one of {', '.join(PROVIDERS)}.")
    try:
        endpoint: Endpoint = msgspec.convert(entry, kinds, dec_hook=convert)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_explain(error, f"endpoint[{index}]")) from None
    return endpoint


def _check(settings: Settings) -> None:
    """What types alone cannot say."""
    if not settings.security.seal_keys:
        raise ConfigurationError("security.seal_keys: at least one key is needed.")
    for index, key in enumerate(settings.security.body_keys):
        if len(key.reveal()) < SHORTEST_BODY_KEY:
            raise ConfigurationError(
                f"security.body_keys[{index}]: must have at least {SHORTEST_BODY_KEY} characters, as"
                " `openssl rand -hex 32` makes them."
            )
    if not 1 <= settings.receive.processes <= 64:
        raise ConfigurationError("receive.processes: must be between 1 and 64.")
    if not 1 <= settings.receive.body_timeout <= 300:
        raise ConfigurationError("receive.body_timeout: must be between 1 and 300 seconds.")
    if not 1 <= settings.receive.max_body <= LARGEST_BODY:
        raise ConfigurationError("receive.max_body: must be between 1B and 4MiB.")
    if not 0 <= settings.queue.replicas <= 16:
        raise ConfigurationError("queue.replicas: must be between 0 and 16.")
    if settings.queue.replicas and settings.queue.redis_url is None:
        raise ConfigurationError("queue.replicas: needs queue.redis_url; the embedded Valkey has no replica.")
    if not 10 <= settings.receive.max_connections <= 100_000:
        raise ConfigurationError("receive.max_connections: must be between 10 and 100000.")
    if settings.receive.max_connections_per_address < 1:
        raise ConfigurationError("receive.max_connections_per_address: must be 1 or more.")
    for name in ("max_held", "max_held_per_address"):
        if getattr(settings.receive, name) < 0:
            raise ConfigurationError(f"receive.{name}: must be 0 or more.")
    for name in ("max_refused", "max_refused_per_address"):
        if not 1 <= getattr(settings.receive, name) <= 100_000:
            raise ConfigurationError(f"receive.{name}: must be between 1 and 100000 a second.")
    if settings.replay.approve_above < 0:
        raise ConfigurationError("replay.approve_above: must be 0 or more.")
    if settings.replay.per_second < 1:
        raise ConfigurationError("replay.per_second: must be 1 or more.")
    _check_retention(settings.retention)
    _check_alarms(settings.alarms)
    if settings.tracing.endpoint is not None and not _is_http(settings.tracing.endpoint):
        raise ConfigurationError("tracing.endpoint: must be an address such as http://127.0.0.1:4318/v1/traces.")
    if not 0 <= settings.tracing.sample <= 1:
        raise ConfigurationError("tracing.sample: must be between 0 and 1.")
    host_and_port(settings.receive.bind, "receive.bind")
    if settings.work.metrics_bind is not None:
        host_and_port(settings.work.metrics_bind, "work.metrics_bind")
    _check_proxies(settings.receive.trusted_proxies, "receive.trusted_proxies")
    _check_console(settings.console)
    _check_operators(settings)
    _check_clients(settings.security)
    seen: set[str] = set()
    for index, endpoint in enumerate(settings.endpoint):
        place = f"endpoint[{index}]"
        if not _NAME.fullmatch(endpoint.facility):
            raise ConfigurationError(f"{place}.facility: use letters, digits, '.', '_' and '-' only.")
        if endpoint.path in seen:
            raise ConfigurationError(f"{place}: provider and facility are the same as another endpoint's.")
        seen.add(endpoint.path)
        provider = PROVIDERS[endpoint.provider]
        for group in provider.required_secrets:
            if not any(getattr(endpoint, name) for name in group):
                raise ConfigurationError(f"{place}.{' or '.join(group)}: at least one secret is needed.")
        if endpoint.provider == "quickstream":
            if not getattr(endpoint, "supplier_business_codes", ()):
                raise ConfigurationError(f"{place}.supplier_business_codes: at least one code is needed.")
            username = getattr(endpoint, "username", "")
            if not username.strip() or ":" in username:
                raise ConfigurationError(f"{place}.username: must not be empty and has no colon in Basic credentials.")
            _check_settlement(endpoint, place)
        if isinstance(endpoint, ReturnEndpoint):
            _check_returns(endpoint, place)
        if not _CURRENCY.fullmatch(getattr(endpoint, "currency", "AUD")):
            raise ConfigurationError(f"{place}.currency: must be three capital letters, such as AUD.")
        allowed_networks(endpoint, provider, place)
        if endpoint.proposed_sources is not None:
            if not endpoint.proposed_sources:
                raise ConfigurationError(f"{place}.proposed_sources: is empty; leave it out when nothing is on trial.")
            networks(endpoint.proposed_sources, f"{place}.proposed_sources")


def _check_proxies(proxies: Sequence[str], place: str) -> None:
    for index, network in enumerate(networks(proxies, place)):
        if network.prefixlen == 0:
            # Then the first address of X-Forwarded-For would count, which the sender writes.
            raise ConfigurationError(f"{place}[{index}]: must not be every address.")


def _check_console(console: Console) -> None:
    host, _ = host_and_port(console.bind, "console.bind")
    _check_proxies(console.trusted_proxies, "console.trusted_proxies")
    if console.public_url is not None:
        _check_public_url(console.public_url)
    elif not is_loopback(host):
        # Passwords and sessions would cross the network in clear.
        raise ConfigurationError("console.public_url: is needed when console.bind is not a loopback address.")
    if console.sign_in_header is not None:
        if not _HEADER.fullmatch(console.sign_in_header):
            raise ConfigurationError("console.sign_in_header: must be the name of a header, such as X-Remote-User.")
        if not console.trusted_proxies:
            raise ConfigurationError("console.trusted_proxies: at least one is needed with console.sign_in_header.")
    if not 1 <= console.idle_minutes <= 24 * 60:
        raise ConfigurationError("console.idle_minutes: must be between 1 and 1440.")
    if not 1 <= console.session_hours <= 7 * 24:
        raise ConfigurationError("console.session_hours: must be between 1 and 168.")
    if console.max_upload < 1:
        raise ConfigurationError("console.max_upload: must be 1B or more.")
    if console.breached_passwords is not None and not console.breached_passwords.is_file():
        raise ConfigurationError("console.breached_passwords: is no file.")


def _check_public_url(public_url: str) -> None:
    try:
        parts = urlsplit(public_url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if not host or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationError("console.public_url: must be an address without a path, https://console.example.com.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ConfigurationError("console.public_url: must be https, but for a loopback address.")


def _check_operators(settings: Settings) -> None:
    seen: set[str] = set()
    for index, operator in enumerate(settings.security.operators):
        place = f"security.operators[{index}]"
        if not OPERATOR_NAME.fullmatch(operator.name):
            raise ConfigurationError(f"{place}.name: use letters, digits, '@', '.', '_', '+' and '-' only.")
        if operator.name.lower() in seen:
            raise ConfigurationError(f"{place}.name: is the same as another operator's.")
        seen.add(operator.name.lower())
        if operator.password_hash is None:
            if settings.console.sign_in_header is None:
                raise ConfigurationError(f"{place}.password_hash: is missing; `postback operator add` makes one.")
        elif not _PASSWORD_HASH.fullmatch(operator.password_hash.reveal()):
            raise ConfigurationError(f"{place}.password_hash: is no scrypt or argon2id hash; see `postback operator`.")


def _check_clients(security: Security) -> None:
    """Each has a name and a key of its own, so that the audit trail says who it was."""
    names = {operator.name.lower() for operator in security.operators}
    keys = {key.reveal() for key in security.api_keys}
    for client in security.api_clients:
        place = "security.api_keys"
        if not OPERATOR_NAME.fullmatch(client.name):
            raise ConfigurationError(f"{place}.name: use letters, digits, '@', '.', '_', '+' and '-' only.")
        place = f"{place} of {client.name}"
        if client.name.lower() in names:
            raise ConfigurationError(f"{place}: the name is the same as another key's or an operator's.")
        if len(client.key.reveal()) < SHORTEST_CLIENT_KEY:
            raise ConfigurationError(
                f"{place}: the key must have at least {SHORTEST_CLIENT_KEY} characters, as `openssl rand -hex 32`"
                " makes them."
            )
        if client.key.reveal() in keys:
            raise ConfigurationError(f"{place}: the key is the same as another one.")
        names.add(client.name.lower())
        keys.add(client.key.reveal())


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_returns(endpoint: ReturnEndpoint, place: str) -> None:
    """Where customers are sent on to, the result must be proven to us where it can be, and to the merchant."""
    for index, key in enumerate(endpoint.result_keys):
        if len(key.reveal()) < SHORTEST_RESULT_KEY:
            raise ConfigurationError(
                f"{place}.result_keys[{index}]: must have at least {SHORTEST_RESULT_KEY} characters, as"
                " `openssl rand -hex 32` makes them."
            )
    if endpoint.return_url is None:
        return
    if not _is_web_address(endpoint.return_url):
        raise ConfigurationError(f"{place}.return_url: must be an address such as https://shop.example/paid.")
    if not endpoint.result_keys:
        raise ConfigurationError(f"{place}.result_keys: at least one key is needed for return_url.")
    if not getattr(endpoint, "hmac_passwords", True):
        raise ConfigurationError(f"{place}.hmac_passwords: at least one is needed for return_url.")


def _is_web_address(url: str) -> bool:
    """https, or http to this machine for a first try. No credentials, and no fragment: a result behind it is lost."""
    try:
        parts = urlsplit(url)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        usable = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc and "#" not in url
    except ValueError:
        return False
    printable = url.isascii() and url.isprintable() and not set(url) & set(' "<>\\^`{|}')
    return usable and printable and (parts.scheme == "https" or (parts.scheme == "http" and local))


def _is_http(url: str) -> bool:
    """In clear as well: a collector is often next door, and spans name endpoints and ids only. No credentials: a secret
    goes into OTEL_EXPORTER_OTLP_HEADERS."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        return False


def _check_settlement(endpoint: Any, place: str) -> None:
    if ":" in endpoint.community_code:
        raise ConfigurationError(f"{place}.community_code: has no colon.")
    for heading in endpoint.settlement_headings.values():
        if heading not in SETTLEMENT_HEADINGS:
            raise ConfigurationError(f"{place}.settlement_headings: must name headings such as Receipt Number.")


def _check_retention(retention: Retention) -> None:
    for name in retention.__struct_fields__:
        if getattr(retention, name) == 0:
            raise ConfigurationError(f"retention.{name}: must be above zero; leave it out to keep for ever.")
    if retention.unresolved is not None and retention.unresolved < (retention.bodies or 0):
        raise ConfigurationError("retention.unresolved: must not be shorter than retention.bodies.")
    if retention.repeats is not None and retention.repeats < SHORTEST_REPEATS:
        # A batch may wait for days; the record of a repeat is what keeps it from counting twice.
        raise ConfigurationError("retention.repeats: must be 30d or more.")


def _check_alarms(alarms: Alarms) -> None:
    for name, least, most in (("look_every", 1, 60), ("confirm", 0, 3600), ("calm", 0, 86_400)):
        if not least <= getattr(alarms, name) <= most:
            raise ConfigurationError(f"alarms.{name}: must be between {least} and {most} seconds.")
    if alarms.quiet == 0:
        raise ConfigurationError("alarms.quiet: must be above zero.")
    try:
        ZoneInfo(alarms.time_zone)
    except (OSError, ValueError, KeyError):
        raise ConfigurationError("alarms.time_zone: must be a time zone such as Australia/Sydney.") from None
    for index, region in enumerate(alarms.holidays):
        if not _REGION.fullmatch(region):
            raise ConfigurationError(f"alarms.holidays[{index}]: must be a country or a part of one: NZ, AU-NSW.")
    if alarms.public_name is not None:
        public_address(alarms.public_name)
    if alarms.email is not None:
        _check_email(alarms.email)
    if alarms.webhook is not None:
        _check_webhook(alarms.webhook)


def public_address(public_name: str) -> tuple[str, int]:
    """Host and port. Raises `ConfigurationError`."""
    given = public_name if ":" in public_name else f"{public_name}:443"
    host, port = host_and_port(given, "alarms.public_name")
    if not _HOST.fullmatch(host) or port == 0:
        raise ConfigurationError("alarms.public_name: must be a name such as pay.example.com or pay.example.com:443.")
    return host, port


def _check_email(email: AlarmEmail) -> None:
    host, _ = host_and_port(email.server, "alarms.email.server")
    if email.tls == "none" and not is_loopback(host):
        raise ConfigurationError("alarms.email.tls: must be starttls or implicit, but for a loopback address.")
    if (email.username is None) != (email.password is None):
        raise ConfigurationError("alarms.email.password: username and password belong together.")
    if not _MAIL.fullmatch(email.sender):
        raise ConfigurationError("alarms.email.sender: must be a mail address.")
    if not email.to:
        raise ConfigurationError("alarms.email.to: at least one mail address is needed.")
    for index, address in enumerate(email.to):
        if not _MAIL.fullmatch(address):
            raise ConfigurationError(f"alarms.email.to[{index}]: must be a mail address.")


def _check_webhook(webhook: AlarmWebhook) -> None:
    if not _is_web_address(webhook.url):
        raise ConfigurationError("alarms.webhook.url: must be https, but for a loopback address, without credentials.")
    if not webhook.secrets:
        raise ConfigurationError("alarms.webhook.secrets: at least one is needed.")
    for index, secret in enumerate(webhook.secrets):
        if webhook_key(secret) is None:
            raise ConfigurationError(
                f"alarms.webhook.secrets[{index}]: must be whsec_ and then 24 to 64 bytes in base64, as"
                ' `echo "whsec_$(openssl rand -base64 32)"` makes them.'
            )


def webhook_key(secret: Secret) -> bytes | None:
    """The bytes that sign; None for what is no secret of a Standard Webhook."""
    prefix, _, encoded = secret.reveal().partition(b"_")
    try:
        key = b64decode(encoded, validate=True) if prefix == b"whsec" else b""
    except ValueError:
        return None
    return key if 24 <= len(key) <= 64 else None


def allowed_networks(endpoint: Endpoint, provider: Provider, place: str = "endpoint") -> tuple[Network, ...]:
    """Networks that may send to `endpoint`; empty where the sender documents none, which allows every address."""
    if endpoint.allowed_sources is None:
        return networks(provider.sources[endpoint.environment], provider.name)
    if not endpoint.allowed_sources:
        raise ConfigurationError(f"{place}.allowed_sources: is empty; leave it out for the documented addresses.")
    return networks(endpoint.allowed_sources, f"{place}.allowed_sources")


def networks(values: Sequence[str], place: str) -> tuple[Network, ...]:
    """Parsed CIDRs. Raises `ConfigurationError` that names `place`."""
    parsed = []
    for index, value in enumerate(values):
        try:
            parsed.append(ipaddress.ip_network(value))
        except ValueError:
            raise ConfigurationError(f"{place}[{index}]: is not a CIDR such as 203.0.113.0/24.") from None
    return tuple(parsed)


def host_and_port(bind: str, place: str) -> tuple[str, int]:
    """``"127.0.0.1:8080"`` or ``"[::1]:8080"``. Raises `ConfigurationError` that names `place`."""
    host, _, port = bind.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and len(port) <= 5) or int(port) > 65535:
        raise ConfigurationError(f"{place}: must be host:port, such as 127.0.0.1:8080.")
    return host.strip("[]"), int(port)


def _size(value: Any) -> Size:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a size such as 256KiB")
    return Size(int(match[1]) * _UNITS[match[2]])


def _period(value: Any) -> Period:
    match = _PERIOD.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a period such as 400d, in hours (h), days (d) or weeks (w)")
    return Period(int(match[1]) * _SECONDS[match[2]])


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("must be a path")
    return Path(value)


def _secret(value: Any, folder: Path) -> Secret:
    """The secret that `value` names, without the line end that editors and clusters add.

    The errors name an environment variable only where it looks like one, and no path: a literal secret may begin with
    ``env:`` or ``file:`` by mistake.
    """
    if not isinstance(value, str):
        raise ValueError("must be a text: env:NAME, file:PATH or a literal")
    kind, _, rest = value.partition(":")
    origin = value
    if kind == "env":
        given = os.environ.get(rest)
        if given is None:
            name = f" {rest}" if _VARIABLE.fullmatch(rest) else ""
            raise ValueError(f"the environment variable{name} is not set")
        text = given
    elif kind == "file":
        try:
            text = (folder / rest).read_bytes().decode()
        except UnicodeDecodeError:
            raise ValueError("the file is not UTF-8") from None
        except OSError as error:
            raise ValueError(f"the file cannot be read ({error.strerror})") from None
        except ValueError:
            raise ValueError("the file cannot be read") from None
    else:
        text, origin = value, "literal"
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise ValueError("the secret is empty")
    bare = text.strip()
    if "".join(filter(str.isalnum, bare.lower())) in _PLACEHOLDERS or _UNFILLED.fullmatch(bare):
        raise ValueError("the secret is a placeholder")
    if _REFERENCE.fullmatch(bare):
        raise ValueError("the secret is only the name of one; write env:NAME or file:PATH")
    try:
        return Secret(text.encode(), origin)
    except UnicodeEncodeError:
        raise ValueError("the secret is not UTF-8") from None


_UNKNOWN = re.compile(r"unknown field `(.*?)`")
_MISSING = re.compile(r"missing required field `(.*?)`")
_PLACE = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


def _explain(error: msgspec.ValidationError, prefix: str) -> str:
    """One sentence that names the key. msgspec's own texts may quote a value, so only their fixed parts are used."""
    text = str(error)
    place = match[1] if (match := _PLACE.search(text)) else ""
    text = _PLACE.sub("", text)

    def key(*names: str) -> str:
        joined = ".".join(name for name in (prefix, place, *names) if name)
        return joined.replace(".[", "[").replace("[...]", "")

    if match := _UNKNOWN.search(text):
        return f"{key(match[1])}: is not a known key."
    if match := _MISSING.search(text):
        return f"{key(match[1])}: is missing."
    if text.startswith("Invalid enum value"):
        return f"{key()}: is not one of the allowed words."
    return f"{key()}: {text}."
