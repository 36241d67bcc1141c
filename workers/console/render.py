"""From values to pages: Jinja2 with everything escaped, and how times, amounts and states are written."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from receiver import __version__
from receiver.providers import PROVIDERS
from workers.console import charts, words

FOLDER = Path(__file__).parent
# Amounts are written with the two that do not break.
_SPACES = "\n\t\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"


class Renderer:
    def __init__(self, provider_names: list[str], facilities: list[tuple[str, str]]) -> None:
        """`facilities` are the (provider, facility) of the configuration, for the lists to choose from."""
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            finalize=_shown,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "when": when,
            "ago": ago,
            "span": span,
            "amount": amount,
            "commands": commands,
            "number": number,
            "size": size,
            "plain": plain,
            "provider": provider,
            "query": query,
            "raw": raw,
        }
        self._environment.globals |= {
            "version": __version__,
            "providers": provider_names,
            "facilities": facilities,
            "menu": words.MENU,
            "words": words,
            "charts": charts,
            "now": lambda: datetime.now(UTC),
        }

    def load(self) -> None:
        """Reads all templates, so that nobody who looks has to wait for it."""
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._environment.get_template(template).render(values), status)


def _shown(value: Any) -> Any:
    """Whatever a template writes: no text of a sender's turns the direction of the page."""
    return visible(value, kept=_SPACES) if type(value) is str else value


def when(moment: datetime | date | None) -> Markup:
    """A time in UTC to the second, machine-readable as well."""
    if moment is None:
        return Markup('<span class="none">-</span>')
    if isinstance(moment, datetime):
        moment = moment.astimezone(UTC)
        # Where a line is short, it breaks between the two and nowhere else.
        parts = (moment.strftime(form) for form in ("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%d", "%H:%M:%S"))
        return Markup('<time datetime="{}"><span>{}</span> <span>{}</span></time>').format(*parts)
    return Markup('<time datetime="{0}">{0}</time>').format(moment.isoformat())


def ago(moment: datetime | None) -> str:
    return "never" if moment is None else f"{span((datetime.now(UTC) - moment).total_seconds())} ago"


def span(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return "never"
    whole = max(0, int(seconds))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for index, (name, size) in enumerate(units):
        if whole >= size:
            rest = whole % size // units[index + 1][1] if index + 1 < len(units) else 0
            return f"{whole // size} {name}" + (f" {rest} {units[index + 1][0]}" if rest else "")
    return "0 s"


def amount(value: str | None, currency: str | None = None) -> str | Markup:
    """Decimal text with thin spaces between thousands; nothing is rounded."""
    if value is None:
        return Markup('<span class="none">-</span>')
    whole, dot, decimals = value.partition(".")
    sign, digits = ("\N{MINUS SIGN}", whole[1:]) if whole.startswith("-") else ("", whole)
    grouped = f"{int(digits):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{sign}{grouped}{dot}{decimals}" + (f"\N{NO-BREAK SPACE}{currency}" if currency else "")


def number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def size(value: int) -> str:
    """Bytes in the largest unit that they fill."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:.1f}".removesuffix(".0") + f"\N{NO-BREAK SPACE}{name}"
    return f"{value}\N{NO-BREAK SPACE}bytes"


def plain(value: Any) -> str | Markup:
    """Any value as one line of text. What a sender wrote is data: control characters are shown, not obeyed."""
    if value is None or value == "":
        return Markup('<span class="none">-</span>')
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime | date):
        return when(value)
    if isinstance(value, dict | list):
        value = msgspec.json.encode(value).decode()
    return visible(str(value))


def visible(text: str, kept: str = "") -> str:
    """`text` with a mark in place of what does not show, or would turn the direction of the text after it."""
    return "".join(
        character if character.isprintable() or character in kept else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def commands(text: str) -> Markup:
    """A sentence of ours in which commands stand between backticks."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


def provider(name: str) -> str:
    return PROVIDERS[name].display if name in PROVIDERS else name


def query(values: dict[str, Any]) -> str:
    """A query string without what is empty."""
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})


def raw(text: str | None) -> str:
    """A body or a traceback, as it is, but for what does not show."""
    return visible(text or "", kept="\n\t")
