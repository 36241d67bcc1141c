"""Operators as entries of the configuration file."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from receiver import settings as configuration
from receiver.errors import ConfigurationError
from receiver.settings import Role, Settings


def require_new(settings: Settings, name: str) -> None:
    """Raises `ConfigurationError` for a name that somebody has, or that cannot be one."""
    if not configuration.OPERATOR_NAME.fullmatch(name):
        raise ConfigurationError("security.operators: a name has letters, digits, '@', '.', '_', '+' and '-' only.")
    if any(operator.name.lower() == name.lower() for operator in settings.security.operators):
        raise ConfigurationError(f"security.operators: there is an operator {name} already.")


def entry(name: str, password_hash: str, role: Role) -> str:
    return f'[[security.operators]]\nname = "{name}"\npassword_hash = "{password_hash}"\nrole = "{role}"\n'


def append(path: Path, text: str) -> bool:
    """Puts an entry at the end of the file; False, and nothing done, where that makes no valid configuration (operators
    written as one line) or the file may not be written (made by other software, mounted read-only)."""
    old = path.read_text("utf-8")
    new = old.rstrip("\n") + "\n\n" + text
    try:
        configuration.read(tomllib.loads(new), path.resolve().parent)
    except (tomllib.TOMLDecodeError, ConfigurationError):
        return False
    # In one step, so that no process ever reads half a file.
    beside = path.resolve().with_name(f".{path.name}.new")
    try:
        mode = path.stat().st_mode & 0o777
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path.resolve())
    except OSError:
        beside.unlink(missing_ok=True)
        return False
    return True
