"""Operators' passwords: kept as scrypt hashes, or as argon2id hashes that another system has made.

A hash is text in the PHC form, so that its cost can be raised later without a change here:
``$scrypt$ln=15,r=8,p=3$<salt>$<digest>`` (base64 without padding).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from base64 import b64decode, b64encode
from pathlib import Path
from typing import NamedTuple

from receiver.errors import ConfigurationError

SHORTEST = 12
"""Characters of a password that a person chooses."""
LONGEST = 1024

# OWASP's scrypt figures that need the least memory: 32 MiB and a quarter of a second for each try.
_LOG_N, _R, _P = 15, 8, 3
_SALT, _DIGEST = 16, 32
_SHA1 = 40
"""Characters of its digest in hex."""
_SCRYPT = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{22,86})\$([A-Za-z0-9+/]{43,86})")
_WEAKEST, _COSTLIEST = 1 << 14, 1 << 18

# What guessing begins with: words of this place, and those that the lists of stolen passwords are full of. No list of
# them is shipped; of the passwords with 12 characters that lead such lists, these rules leave none.
_GUESSED_FIRST = (
    *("postback", "operator", "administrator", "admin", "console", "payments", "payment", "merchant", "notification"),
    *("westpac", "quickstream", "checkout", "debitsuccess", "paymentz", "octane", "password", "passwort", "passw0rd"),
    *(
        "p@ssw0rd",
        "p@ssword",
        "secret",
        "welcome",
        "letmein",
        "changeme",
        "iloveyou",
        "football",
        "baseball",
        "sunshine",
    ),
    *(
        "princess",
        "dragon",
        "monkey",
        "superman",
        "trustno1",
        "master",
        "login",
        "default",
        "winter",
        "summer",
        "spring",
    ),
    *("qwertyuiop", "qwerty", "asdfghjkl", "asdfgh", "zxcvbnm", "1q2w3e4r5t", "1q2w3e4r", "1qaz2wsx", "q1w2e3r4"),
)
_OWN = 6
"""Characters that a password must have besides those, and besides what only repeats or continues the one before."""

# Without the letters and digits that people mistake for each other.
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


class _Scrypt(NamedTuple):
    n: int
    r: int
    p: int
    salt: bytes
    digest: bytes


def make(password: str, log_n: int = _LOG_N, r: int = _R, p: int = _P) -> str:
    """A new hash, with a salt of its own."""
    salt = os.urandom(_SALT)
    digest = _scrypt(password, 1 << log_n, r, p, salt, _DIGEST)
    return f"$scrypt$ln={log_n},r={r},p={p}${_text(salt)}${_text(digest)}"


def generate() -> str:
    """A password of 100 bits in groups that can be read aloud."""
    letters = [secrets.choice(_ALPHABET) for _ in range(20)]
    return "-".join("".join(letters[start : start + 5]) for start in range(0, 20, 5))


def fault(password: str, name: str, breached: Path | None) -> str:
    """Why this cannot be the password of the operator `name`; "" when it can. `breached` is the list of
    `console.breached_passwords`."""
    if not SHORTEST <= len(password) <= LONGEST:
        return f"A password has between {SHORTEST} and {LONGEST} characters."
    if is_guessed_first(password, name):
        return "This password is among the first that are guessed."
    if breached is not None and is_breached(password, breached):
        return "This password is on the list of those that were stolen somewhere."
    return ""


def is_breached(password: str, path: Path) -> bool:
    """Whether the list at `path` has it: lines of SHA-1 digests in upper-case hex, sorted, each alone or before a
    colon, as Have I Been Pwned has them. They are of gigabytes, and not read through. Raises `ConfigurationError`."""
    # What the lists are made of; it protects nothing here.
    wanted = hashlib.sha1(password.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest().upper().encode()
    try:
        with path.open("rb") as lines:
            first, behind = 0, lines.seek(0, os.SEEK_END)
            while first < behind:
                middle = (first + behind) // 2
                lines.seek(max(middle - 1, 0))
                if middle:
                    # What is left of the line before.
                    lines.readline()
                line = lines.readline()
                if line[:_SHA1] == wanted:
                    return True
                if not line or line[:_SHA1] > wanted:
                    behind = middle
                else:
                    first = lines.tell()
    except OSError as error:
        raise ConfigurationError(f"console.breached_passwords: {path} cannot be read ({error.strerror}).") from None
    return False


def is_guessed_first(password: str, name: str) -> bool:
    """Whether an operator's `password` is little more than his name and words that everybody tries."""
    left = password.lower()
    for word in sorted((*_GUESSED_FIRST, *re.findall(r"\w{3,}", name.lower())), key=len, reverse=True):
        left = left.replace(word, "")
    left = re.sub("(?:19|20)[0-9]{2}", "", left)
    own = [now for before, now in zip(" " + left, left, strict=False) if abs(ord(now) - ord(before)) > 1]
    return len(own) < _OWN or len(set(own)) < _OWN - 2


def require_good(stored: str, place: str) -> None:
    """Raises `ConfigurationError` that names `place` for a hash that cannot be used, or that is too cheap or too
    costly to try."""
    if stored.startswith("$argon2id$"):
        _require_argon2(stored, place)
        return
    try:
        parsed = _parse(stored)
        if not (_WEAKEST <= parsed.n <= _COSTLIEST and 8 <= parsed.r <= 16 and 1 <= parsed.p <= 16):
            raise ValueError
    except ValueError:
        raise ConfigurationError(f"{place}: is no scrypt hash as `postback operator add` makes them.") from None


def verify(password: str, stored: str) -> bool:
    """Whether `password` belongs to a hash that `require_good` has passed. Takes as long whatever differs."""
    if stored.startswith("$argon2id$"):
        return _verify_argon2(password, stored)
    parsed = _parse(stored)
    digest = _scrypt(password, parsed.n, parsed.r, parsed.p, parsed.salt, len(parsed.digest))
    return hmac.compare_digest(digest, parsed.digest)


def _parse(stored: str) -> _Scrypt:
    match = _SCRYPT.fullmatch(stored)
    if match is None:
        raise ValueError
    return _Scrypt(1 << int(match[1]), int(match[2]), int(match[3]), _bytes(match[4]), _bytes(match[5]))


def _scrypt(password: str, n: int, r: int, p: int, salt: bytes, length: int) -> bytes:
    memory = 128 * r * (n + p + 2)
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=length
    )


def _text(value: bytes) -> str:
    return b64encode(value).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4), validate=True)


def _require_argon2(stored: str, place: str) -> None:
    try:
        from argon2 import extract_parameters
        from argon2.exceptions import InvalidHashError
    except ImportError:
        raise ConfigurationError(f"{place}: needs argon2 (pip install 'postback-receiver[argon2]').") from None
    try:
        cost = extract_parameters(stored)
    except (InvalidHashError, ValueError):
        raise ConfigurationError(f"{place}: is no argon2id hash.") from None
    # OWASP's least: 7 MiB with five rounds, 19 MiB with two.
    if cost.memory_cost * cost.time_cost < 35_000 or cost.memory_cost > 1 << 18 or cost.time_cost > 64:
        raise ConfigurationError(f"{place}: is too cheap or too costly an argon2id hash.")


def _verify_argon2(password: str, stored: str) -> bool:
    from argon2 import PasswordHasher
    from argon2.exceptions import Argon2Error

    try:
        return PasswordHasher().verify(stored, password.encode("utf-8", "surrogatepass"))
    except Argon2Error:
        return False
