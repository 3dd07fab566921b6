"""Lines and bars as inline SVG. Colours and dashes are classes of the page's style; each chart says in words what it shows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

__all__ = ["Line", "duration", "line_chart", "pair_chart"]

_WIDTH: Final = 400
_HEIGHT: Final = 220
_LEFT: Final = 52
_RIGHT: Final = 10
_TOP: Final = 12
_BOTTOM: Final = 30
_STEPS_S: Final = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200),
    *(86400, 172800, 345600, 604800, 1209600, 2592000, 7776000, 31536000),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line."""

    style: str
    """Classes: stable or canary, and thin, or limit."""
    points: Sequence[tuple[float, float | None]]
    """Seconds and value; None: a gap."""
    is_stepped: bool = False
    """A value holds from the point before to its own."""


def line_chart(
    label: str,
    lines: Sequence[Line],
    *,
    value: Callable[[float], str],
    is_log: bool = False,
    least: float | None = None,
    most: float | None = None,
    limit: tuple[float, str] | None = None,
) -> str:
    """Draw lines over time.

    Args:
        label: what it shows, in words.
        lines: what is drawn.
        value: words for a value of the y axis.
        is_log: a logarithmic y axis; values of 0 or less are gaps.
        least: the y axis begins here or lower.
        most: the y axis ends here or higher.
        limit: a value across, and what it is.

    Returns:
        An SVG; a sentence where there is nothing to draw.
    """
    scale = math.log10 if is_log else float
    drawn = [
        Line(
            line.style,
            [(x, scale(y) if y is not None and (y > 0 or not is_log) else None) for x, y in line.points],
            line.is_stepped,
        )
        for line in lines
    ]
    values = [y for line in drawn for _, y in line.points if y is not None]
    if not values:
        return '<p class="none">Not measured, or of too few requests so far.</p>'
    bounds = [scale(each) for each in (least, most, limit[0] if limit else None) if each is not None]
    low, high = min(values + bounds), max(values + bounds)
    if high - low < 1e-12:
        low, high = (low - 0.15, high + 0.15) if is_log else (min(low, 0.0), high + (abs(high) or 1.0) * 0.1)
    else:
        room = (high - low) * 0.06
        low, high = (low - room if is_log else low), high + room
    last = max(x for line in drawn for x, _ in line.points) or 1.0

    def at_x(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / last

    def at_y(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (y - low) / (high - low)

    parts = [_opened(label)]
    for tick in _log_ticks(low, high) if is_log else _ticks(low, high):
        y = at_y(tick)
        text = escape(value(10**tick if is_log else tick))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>')
    step = next((each for each in _STEPS_S if last / each <= 5), _STEPS_S[-1])
    for index in range(int(last / step) + 1):
        x = at_x(index * step)
        anchor = "end" if x > _WIDTH - _RIGHT - 24 else "middle"
        parts.append(f'<text class="{anchor}" x="{x:.1f}" y="{_HEIGHT - 10}">{duration(index * step)}</text>')
    if limit is not None:
        y = at_y(scale(limit[0]))
        above = y - 5 if y > _TOP + 14 else y + 14
        parts.append(f'<path class="limit" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="limit-text" x="{_LEFT + 6}" y="{above:.1f}">{escape(limit[1])}</text>')
    for line in drawn:
        path = _path([(at_x(x), None if y is None else at_y(y)) for x, y in line.points], is_stepped=line.is_stepped)
        parts.append(f'<path class="line {line.style}" d="{path}"/>')
        shown = [(x, y) for x, y in line.points if y is not None]
        if shown and "thin" not in line.style:
            x, y = shown[-1]
            parts.append(f'<circle class="dot {line.style}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="4"/>')
    return "".join(parts) + "</svg>"


def pair_chart(label: str, stable: Sequence[float], canary: Sequence[float]) -> str:
    """Draw two distributions over the same buckets as bars beside each other.

    Args:
        label: what it shows, in words.
        stable: shares of each bucket.
        canary: the same.
    """
    most = max([*stable, *canary, 0.0])
    if most <= 0:
        return '<p class="none">Not measured, or no score so far.</p>'
    most *= 1.05
    parts = [_opened(label)]
    height = _HEIGHT - _BOTTOM - _TOP
    for tick in _ticks(0.0, most):
        y = _HEIGHT - _BOTTOM - height * tick / most
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{100 * tick:.3g} %</text>')
    room = (_WIDTH - _LEFT - _RIGHT) / len(stable)
    every = math.ceil(len(stable) / 10)
    for index, pair in enumerate(zip(stable, canary, strict=True)):
        for place, (style, share) in enumerate(zip(("stable", "canary"), pair, strict=True)):
            tall = height * share / most
            x = _LEFT + room * (index + 0.12 + 0.38 * place)
            parts.append(
                f'<rect class="bar {style}" x="{x:.1f}" y="{_HEIGHT - _BOTTOM - tall:.1f}" width="{room * 0.36:.1f}" height="{tall:.1f}"/>'
            )
        if index % every == 0:
            x = _LEFT + room * (index + 0.5)
            parts.append(f'<text class="middle" x="{x:.1f}" y="{_HEIGHT - 10}">{index + 1}</text>')
    return "".join(parts) + "</svg>"


def duration(seconds: float) -> str:
    """Words for a time, short."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds else "0"


def _opened(label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'


def _path(points: Sequence[tuple[float, float | None]], *, is_stepped: bool) -> str:
    parts: list[str] = []
    before: float | None = None
    for x, y in points:
        if y is not None:
            if before is None:
                parts.append(f"M{x:.1f} {y:.1f}h0.1")
            else:
                parts.append(f"V{y:.1f}H{x:.1f}" if is_stepped else f"L{x:.1f} {y:.1f}")
        before = y
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Some four round values."""
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * each for each in (1, 2, 2.5, 5, 10) if size * each >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of round values: 1, 2, 5 a decade, or fewer where there are many decades."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    digits = (1, 2, 5) if high - low < 2.2 else (1,)
    every = math.ceil((high - low) / 5)
    found = [
        decade + math.log10(digit)
        for decade, digit in itertools.product(decades, digits)
        if len(digits) > 1 or decade % every == 0
    ]
    inside = [each for each in found if low - 1e-9 <= each <= high + 1e-9]
    return inside if len(inside) > 1 else [low, high]
