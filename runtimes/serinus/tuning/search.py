"""Which settings hold the SLO at the highest rate: a search that runs few trials.

Theory of operation. A trial is one configuration at one rate. The highest rate that holds the SLO is bracketed for the
starting configuration (double until it fails, then halve the gap in logarithms until it is below `precision`). Then one
setting at a time is challenged: a candidate first runs at a rate a step above the champion's best. Most fail there and have
cost one trial; one that holds is bracketed upwards from there and becomes the champion. Passes over the settings repeat
until one changes nothing, or the budget is spent. So a candidate must beat the champion by `precision` to take its place,
and noise below that moves nothing.

Where the champion holds the SLO at no rate, the candidates compete at the lowest rate, and the smallest excess is reported.

Nothing here knows a server or a clock: `measure` runs a trial, `left_s` says how much of the budget is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from .slo import Slo

__all__ = ["Axis", "Config", "Found", "Trial", "axes_for", "describe", "search", "verdict_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of `serinus serve` that are searched."""

    workers: int = 1
    threads: int = 0
    """Native threads of one predict; 0: the CPU limit."""
    execution: Literal["auto", "inline", "thread", "process"] = "auto"
    instances: int = 1
    max_batch_rows: int = 4096
    max_delay_s: float = 0.0


def describe(config: Config) -> str:
    """What differs from the defaults, for people."""
    parts = [
        f"{spec.name} {getattr(config, spec.name) * 1e3:g} ms"
        if spec.name == "max_delay_s"
        else f"{spec.name} {getattr(config, spec.name)}"
        for spec in fields(Config)
        if getattr(config, spec.name) != spec.default
    ]
    return ", ".join(parts).replace("max_delay_s", "max_delay") or "the defaults"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one run showed."""

    config: Config
    rate_per_s: float
    """Intended."""
    achieved_per_s: float
    sent: int
    failed: int
    quantiles_s: dict[float, float]
    kept_up: bool = True
    """The generator did; otherwise the trial says nothing of the server."""
    observed: Any = None
    """What the server's own metrics said, for `limits`."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting, or several that go together, and the values to try."""

    name: str
    changes: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The outcome."""

    config: Config
    """The champion."""
    best: Trial | None
    """Its trial at the highest rate that held; None: the SLO is not reached."""
    nearest: Trial
    """The trial of the smallest excess."""
    trials: tuple[Trial, ...]
    ended: Literal["settled", "budget", "generator", "interrupted"]
    """Why the search ended. generator: the load generator could not go higher, so the rate is a lower bound."""


def verdict_of(trial: Trial, slo: Slo) -> bool:
    """Whether a trial held the SLO: its quantiles, at most one request in a thousand lost, and no queue that only grew."""
    noise = 3 / math.sqrt(max(trial.sent, 1))
    return (
        slo.excess(trial.quantiles_s) <= 1.0
        and trial.failed <= trial.sent * 0.001
        and trial.achieved_per_s >= trial.rate_per_s * (0.95 - noise)
    )


def axes_for(cpus: int, *, typical_rows: int, inline: bool, limit_s: float) -> tuple[Axis, ...]:
    """The settings worth trying on a machine.

    Args:
        cpus: of the container.
        typical_rows: of one request.
        inline: the model predicts on the event loop, where native threads and instances do nothing.
        limit_s: the SLO's bound of the strictest quantile; delays are a share of it.
    """
    powers = tuple(n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cpus)
    found: list[Axis] = []
    if cpus > 1:
        # Processes share the CPUs, so each gets its share of native threads.
        shares = tuple({"workers": n, "threads": max(1, cpus // n)} for n in powers[1:])
        found.append(Axis("workers", shares))
    if not inline:
        found.append(Axis("threads", tuple({"threads": n} for n in powers)))
        if cpus > 1:
            found.append(
                Axis(
                    "instances",
                    tuple({"instances": n, "execution": "thread", "threads": max(1, cpus // n)} for n in powers[1:]),
                )
            )
    found.append(Axis("max_batch_rows", tuple({"max_batch_rows": typical_rows * n} for n in (1, 4, 16))))
    found.append(Axis("max_delay_s", tuple({"max_delay_s": round(limit_s * share, 6)} for share in (0.05, 0.2))))
    return tuple(found)


class _Spent(Exception):
    """The budget is."""


def search(
    measure: Callable[[Config, float], Trial],
    start: Config,
    axes: Sequence[Axis],
    slo: Slo,
    *,
    first_rate_per_s: float,
    left_s: Callable[[], float],
    precision: float = 0.1,
    most_rate_per_s: float = 1e6,
) -> Found:
    """Find the configuration of the highest rate under an SLO.

    Args:
        measure: runs one trial; a configuration that cannot start is a trial whose requests all failed.
        start: the settings as they are.
        axes: what to change, most promising first.
        slo: must hold.
        first_rate_per_s: where to begin; a rate that one request at a time would give.
        left_s: seconds left of the budget.
        precision: the bracket's relative width, and a challenger's least gain.
        most_rate_per_s: no rate above it is tried.
    """
    trials: list[Trial] = []
    ended: Literal["settled", "budget", "generator", "interrupted"] = "settled"
    champion, best = start, None
    step = 1.0 + precision
    starved: dict[Config, bool] = {}
    """Configurations of which a trial failed while the generator did not keep up: what they can do is not known."""

    def run(config: Config, rate: float) -> Trial:
        if trials and left_s() <= 0:
            raise _Spent
        trial = measure(config, rate)
        trials.append(trial)
        return trial

    def holds(config: Config, rate: float) -> bool:
        nonlocal best, champion
        trial = run(config, rate)
        if not verdict_of(trial, slo):
            starved[config] = starved.get(config, False) or not trial.kept_up
            return False
        if best is None or rate > best.rate_per_s:
            best, champion = trial, config
        return True

    def climb(config: Config, low: float) -> None:
        """Bracket upwards from a rate that holds."""
        factor = 2.0
        high = low * factor
        while high <= most_rate_per_s and holds(config, high):
            low, high = high, high * factor
        while high / low > step:
            middle = math.sqrt(low * high)
            if holds(config, middle):
                low = middle
            else:
                high = middle

    def descend(config: Config, high: float) -> bool:
        """Find a rate that holds below one that does not; below a 256th there is none to speak of."""
        low = high
        for _ in range(4):
            low /= 4
            if holds(config, low):
                while high / low > step * step:
                    middle = math.sqrt(low * high)
                    if holds(config, middle):
                        low = middle
                    else:
                        high = middle
                return True
            high = low
        return False

    def challenge(config: Config) -> bool:
        """Let a candidate meet the champion; whether it took its place."""
        if best is not None:
            rate = best.rate_per_s * step
            if not holds(config, rate):
                return False
            climb(config, rate)
            return True
        floor = min(trial.rate_per_s for trial in trials)
        if holds(config, floor):
            climb(config, floor)
            return True
        return False

    try:
        if holds(start, first_rate_per_s):
            climb(start, first_rate_per_s)
        else:
            descend(start, first_rate_per_s)
        tried: set[Config] = {start}
        changed = True
        while changed:
            changed = False
            for axis in axes:
                for change in axis.changes:
                    base = champion if best is not None else _nearest(trials, slo).config
                    candidate = replace(base, **change)
                    if candidate in tried:
                        continue
                    tried.add(candidate)
                    changed |= challenge(candidate)
            if best is None:
                break
    except _Spent:
        ended = "budget"
    except KeyboardInterrupt:
        ended = "interrupted"
        if not trials:
            raise
    if ended == "settled" and starved.get(champion, False):
        ended = "generator"
    nearest = best or _nearest(trials, slo)
    return Found(
        config=champion if best is not None else nearest.config,
        best=best,
        nearest=nearest,
        trials=tuple(trials),
        ended=ended,
    )


def _nearest(trials: Sequence[Trial], slo: Slo) -> Trial:
    return min(trials, key=lambda trial: (slo.excess(trial.quantiles_s), -trial.rate_per_s))
