"""Small pictures, as SVG text made here: no script draws them, and they are read aloud by their figures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 240, 40
_GAP = 2


class Hour(NamedTuple):
    """What one endpoint did in the hour that begins at `start`."""

    start: datetime
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    failed: int = 0

    @property
    def label(self) -> str:
        return f"{self.start:%H:%M}"

    @property
    def total(self) -> int:
        return self.accepted + self.duplicates + self.refused + self.failed


def bars(hours: Sequence[Hour], name: str) -> Markup:
    """Stacked bars, one an hour: accepted at the foot, then duplicates, refused, failed."""
    highest = max((hour.total for hour in hours), default=0)
    step = WIDTH / max(len(hours), 1)
    parts = []
    for index, hour in enumerate(hours):
        foot = float(HEIGHT)
        blocks = []
        for kind in ("accepted", "duplicates", "refused", "failed"):
            value = getattr(hour, kind)
            if not value:
                continue
            # What happened at all is seen, however small it is beside the rest.
            height = max(2.0, value / highest * (HEIGHT - 6))
            foot -= height
            blocks.append(
                f'<rect class="{kind}" x="{index * step + _GAP / 2:.1f}" y="{max(foot, 0):.1f}" '
                f'width="{step - _GAP:.1f}" height="{height:.1f}"/>'
            )
        if blocks:
            parts.append(f"<g><title>{_told(hour)}</title>{''.join(blocks)}</g>")
    # Numbers and fixed words only; the name is escaped.
    drawn = Markup("".join(parts))  # noqa: S704
    opening = Markup('<svg class="bars" viewBox="0 0 {} {}" role="img" aria-label="{}" preserveAspectRatio="none">')
    axis = Markup('<path class="axis" d="M0 {}H{}"/>').format(HEIGHT - 0.5, WIDTH)
    return opening.format(WIDTH, HEIGHT, _summary(hours, name)) + axis + drawn + Markup("</svg>")


def _told(hour: Hour) -> str:
    told = [
        f"{getattr(hour, kind)} {kind}"
        for kind in ("accepted", "duplicates", "refused", "failed")
        if getattr(hour, kind)
    ]
    return f"{hour.label}: {', '.join(told)}"


def _summary(hours: Sequence[Hour], name: str) -> str:
    if not any(hour.total for hour in hours):
        return f"{name}: nothing in the last 24 hours"
    busiest = max(hours, key=lambda hour: hour.total)
    return f"{name}, the last 24 hours by the hour; the most, {busiest.total}, at {busiest.label}"
