"""The configuration file: read strictly, secrets resolved at once, every fault named by its key, never by a value."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

import msgspec

from receiver.errors import ConfigurationError
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint, Provider
from receiver.signing import Secret

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What people leave in place of a secret. A receiver that accepts it is open to everyone.
_PLACEHOLDERS = frozenset({"...", "changeme", "change-me", "change_me"})
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})\s*(B|KiB|MiB|GiB)", re.ASCII)
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


# A batch has at most as much.
LARGEST_BODY = 4 << 20


SHORTEST_BODY_KEY = 32
"""Characters: whoever has a copy of the ledger can try out a short one for as long as they like."""


class Size(int):
    """Bytes, written as ``"256KiB"``."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: an unknown key is an error, since a misspelt one would be a setting without effect."""


class Receive(_Section, frozen=True):
    bind: str = "127.0.0.1:8080"
    processes: int = 1
    trusted_proxies: tuple[str, ...] = ()
    """CIDRs; forwarded headers count only from these."""
    max_body: Size = Size(256 << 10)
    body_timeout: int = 10
    """Seconds within which the whole body must have arrived."""
    max_spool: Size = Size(1 << 30)
    max_held: int = 1000
    """Unverified notifications held per endpoint within a day."""


class Console(_Section, frozen=True):
    bind: str = "127.0.0.1:8081"


class Queue(_Section, frozen=True):
    redis_url: Secret | None = None
    """None: embedded Valkey under `data_dir`."""
    durability: Literal["strict", "relaxed"] = "strict"


class Store(_Section, frozen=True):
    database_url: Secret | None = None
    """None: SQLite under `data_dir`."""


class Operator(_Section, frozen=True):
    name: str
    password_hash: Secret


class Security(_Section, frozen=True):
    seal_keys: tuple[Secret, ...]
    body_keys: tuple[Secret, ...] = ()
    """Encrypt raw bodies in the ledger; without one they are stored plain."""
    operators: tuple[Operator, ...] = ()
    api_keys: tuple[Secret, ...] = ()


class Settings(_Section, frozen=True):
    security: Security
    data_dir: Path = Path("var")
    receive: Receive = Receive()
    console: Console = Console()
    queue: Queue = Queue()
    store: Store = Store()
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
        return _size(value) if kind is Size else _path(value)

    endpoints = document.get("endpoint", [])
    if not isinstance(endpoints, list):
        raise ConfigurationError("endpoint: write each one as [[endpoint]].")
    try:
        settings = msgspec.convert({**document, "endpoint": []}, Settings, dec_hook=convert)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_explain(error, "")) from None
    settings = msgspec.structs.replace(
        settings,
        data_dir=(folder / settings.data_dir).resolve(),
        endpoint=tuple(_endpoint(entry, index, endpoint_types, convert) for index, entry in enumerate(endpoints)),
    )
    _check(settings)
    return settings


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
    if settings.receive.max_held < 0:
        raise ConfigurationError("receive.max_held: must be 0 or more.")
    host_and_port(settings.receive.bind, "receive.bind")
    host_and_port(settings.console.bind, "console.bind")
    for index, network in enumerate(networks(settings.receive.trusted_proxies, "receive.trusted_proxies")):
        if network.prefixlen == 0:
            # Then the first address of X-Forwarded-For would count, which the sender writes.
            raise ConfigurationError(f"receive.trusted_proxies[{index}]: must not be every address.")
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
        if not _CURRENCY.fullmatch(getattr(endpoint, "currency", "AUD")):
            raise ConfigurationError(f"{place}.currency: must be three capital letters, such as AUD.")
        allowed_networks(endpoint, provider, place)


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
    if text.strip().lower() in _PLACEHOLDERS:
        raise ValueError("the secret is a placeholder")
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
