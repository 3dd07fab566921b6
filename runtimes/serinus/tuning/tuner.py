"""`serinus tune`: find the settings of a model's server that hold an SLO at the highest rate, on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..loading.directory import settings_from_directory
from ..settings import ModelSettings, cpu_limit
from .forms.model_forms import update_settings
from .forms.samples import generate_samples, read_samples
from .limits import Observed, Resources, binding, observe, read_metrics, resources
from .load.loadgen import Job, LoadResult
from .load.request_messages import MOST_MESSAGES, request_messages
from .load.server_under_test import ServerUnderTest, run_job
from .search import Config, Found, Trial, axes_for, describe, search
from .slo import Slo

__all__ = ["Tuned", "tune", "write_model_settings"]

_LEAST_SAMPLES = 200
_SHORTEST_S, _LONGEST_S = 2.0, 10.0
_ATTEMPTS = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was found."""

    slo: Slo
    found: Found
    start: Config
    """The settings as they were."""
    limit: tuple[str, str] | None
    """Which limit binds, and why."""
    resources: Resources | None
    """Of a pod; None where the SLO is not reached."""
    cpus: float
    rows: int
    """Of one request."""


def tune(
    model: Path,
    slo: Slo,
    *,
    rate_per_s: float | None = None,
    inputs: Path | None = None,
    rows: int = 1,
    budget_s: float = 120.0,
    arguments: Sequence[str] = (),
    say: Say,
) -> Tuned:
    """Search.

    Args:
        model: directory or file that holds one model.
        slo: must hold.
        rate_per_s: the load that all replicas together must carry; None: only the capacity of one is found.
        inputs: `.npz` or request; None: generated.
        rows: of one request.
        budget_s: time for all trials and starts.
        arguments: further words of `serinus serve`.
        say: told each trial.

    Raises:
        ConfigError: no model, unusable inputs, or the server does not start as it is.
    """
    settings = settings_from_directory(
        model, allow_implementation=("*",)
    )  # only read; the server that is started decides
    if len(settings) != 1:
        raise ConfigError(f"{model}: holds {len(settings)} models; name one of its folders")
    cpus = cpu_limit()
    bench = _Bench(model, slo, inputs, rows, arguments, say)
    start = _config_of(settings[0])
    # A trial that has begun is finished, so none begins that close to the end.
    deadline = time.monotonic() + budget_s - _SHORTEST_S
    try:
        first = bench.first_rate(start)
        axes = axes_for(max(1, math.floor(cpus)), typical_rows=rows, inline=bench.inline, limit_s=slo.strictest.limit_s)
        found = search(
            bench.measure, start, axes, slo, first_rate_per_s=first, left_s=lambda: deadline - time.monotonic()
        )
    finally:
        bench.close()
    judged = _first_broken(found, slo)
    observed: Observed | None = judged.observed
    limit = None
    if observed is not None:
        limit = binding(
            observed, cpus=cpus, memory_bytes=_memory_bytes(), mean_latency_s=judged.quantiles_s.get(0.5, 0.0)
        )
    sized = None
    if found.best is not None and found.best.observed is not None:
        sized = resources(
            found.best.observed,
            capacity_per_s=found.best.rate_per_s,
            rate_per_s=rate_per_s,
            cpus=cpus,
            latency_s=slo.strictest.limit_s,
        )
    return Tuned(slo=slo, found=found, start=start, limit=limit, resources=sized, cpus=cpus, rows=rows)


def write_model_settings(model: Path, config: Config) -> Path:
    """Write the settings into the model's `model-settings.json`, keeping what else it says; `workers` is the server's own.

    Raises:
        ConfigError: the file there is no JSON object.
    """
    changes: dict[str, Any] = {
        "execution": config.execution,
        "instances": config.instances,
        "batch": {"max_batch_rows": config.max_batch_rows, "max_delay_s": config.max_delay_s},
    }
    if config.threads:
        changes["threads"] = config.threads
    uri = f"./{model.name}" if model.is_file() and model.name != "model-settings.json" else "."
    return update_settings(model, changes, defaults={"parameters": {"uri": uri}})


class _Bench:
    """Keeps one server running and starts another where the settings change."""

    def __init__(
        self, model: Path, slo: Slo, inputs: Path | None, rows: int, arguments: Sequence[str], say: Say
    ) -> None:
        self._model, self._slo, self._arguments, self._say = model, slo, arguments, say
        self._given = read_samples(inputs) if inputs else None
        self._rows = rows
        self._server: ServerUnderTest | None = None
        self._config: Config | None = None
        self._messages: tuple[bytes, ...] = ()
        self._seed = 0
        self.inline = False
        self._quantiles = tuple(dict.fromkeys((0.5, 0.95, 0.99, *(o.quantile for o in slo.objectives))))

    def first_rate(self, config: Config) -> float:
        """A rate that one request at a time would give, halved: from a short run at a low rate."""
        server = self._serve(config)
        metadata = server.metadata()
        self.inline = str(metadata.parameters.get("execution", "")) == "inline"
        samples = self._given or generate_samples(metadata.inputs, MOST_MESSAGES * self._rows)
        self._messages = request_messages(samples, self._rows)
        job = self._job(10.0, 1.5, server.port)
        self._say("looking at single requests")
        result = run_job(job)
        if not result.answered:
            raise ConfigError(f"the server answers none of the requests: {_reasons(result)}; see --inputs")
        median = result.quantiles_s[0.5]
        return max(2.0, min(0.5 / median if median < math.inf else 2.0, 2000.0))

    def measure(self, config: Config, rate: float) -> Trial:
        """Run one trial."""
        try:
            server = self._serve(config)
        except ConfigError as error:
            self._say(f"{describe(config)}: does not start: {error}")
            return Trial(
                config=config,
                rate_per_s=rate,
                achieved_per_s=0.0,
                sent=1,
                failed=1,
                quantiles_s=dict.fromkeys(self._quantiles, math.inf),
            )
        duration = min(_LONGEST_S, max(_SHORTEST_S, _LEAST_SAMPLES / rate))
        # A generator that is late was kept from its CPU, and so was the server: a neighbour's fault, so it is tried again.
        for attempt in range(_ATTEMPTS):
            _wait_until_idle(server)
            before = read_metrics(server.metrics())
            result = run_job(self._job(rate, duration, server.port))
            # The server works from the first request to the last answer; starting the generator's process is no part of it.
            observed = observe(before, read_metrics(server.metrics()), result.elapsed_s)
            if result.kept_up or self._slo.excess(result.quantiles_s) <= 1 or attempt == _ATTEMPTS - 1:
                return self._trial(config, rate, result, observed)
        raise AssertionError("the last attempt returns")

    def _trial(self, config: Config, rate: float, result: LoadResult, observed: Observed) -> Trial:
        """Tell and keep what a run showed."""
        strictest = self._slo.strictest
        high = result.quantiles_s[strictest.quantile]
        shown = f"{high * 1e3:.2f} ms" if high < math.inf else "requests lost"
        note = "" if result.kept_up else "; the load generator did not keep up"
        if result.failures:
            note += f"; {_reasons(result)}"
        self._say(f"{describe(config)}: {rate:,.0f}/s, {strictest.name} {shown}{note}")
        return Trial(
            config=config,
            rate_per_s=rate,
            achieved_per_s=result.achieved_per_s,
            sent=result.sent,
            failed=result.sent - result.answered,
            quantiles_s=result.quantiles_s,
            kept_up=result.kept_up,
            observed=observed,
        )

    def close(self) -> None:
        """Stop the server."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _serve(self, config: Config) -> ServerUnderTest:
        if self._server is None or config != self._config:
            self.close()
            self._server = ServerUnderTest(self._model, config, self._arguments)
            self._config = config
        return self._server

    def _job(self, rate: float, duration: float, port: int) -> Job:
        self._seed += 1
        return Job(
            host="127.0.0.1",
            port=port,
            messages=self._messages,
            rate_per_s=rate,
            duration_s=duration,
            quantiles=self._quantiles,
            timeout_s=max(1.0, 3 * self._slo.strictest.limit_s),
            seed=self._seed,
        )


def _wait_until_idle(server: ServerUnderTest) -> None:
    """Let the server finish what an overloaded trial left on it, within reason."""
    deadline = time.monotonic() + _LONGEST_S
    while read_metrics(server.metrics()).get("serinus_requests_in_flight", 0.0) and time.monotonic() < deadline:
        time.sleep(0.05)


def _config_of(settings: ModelSettings) -> Config:
    """The settings as the model's directory has them."""
    return Config(
        threads=settings.threads,
        execution=settings.execution,
        instances=settings.instances,
        max_batch_rows=settings.batch.max_batch_rows,
        max_delay_s=settings.batch.max_delay_s,
    )


def _first_broken(found: Found, slo: Slo) -> Trial:
    """The trial that shows what binds: the champion's at the lowest rate that broke the SLO, else the nearest."""
    own = [t for t in found.trials if t.config == found.config and slo.excess(t.quantiles_s) > 1 and t.observed]
    above = [t for t in own if found.best is None or t.rate_per_s > found.best.rate_per_s]
    return min(above, key=lambda trial: trial.rate_per_s) if above else found.nearest


def _reasons(result: LoadResult) -> str:
    told = {reason: f" ({said})" if said else "" for reason, said in result.said.items()}
    return (
        ", ".join(f"{count} x {reason}{told.get(reason, '')}" for reason, count in result.failures.items())
        or "no answer"
    )


def _memory_bytes() -> float:
    """Memory that this container may use."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        if text != "max" and int(text) < 2**60:
            return float(text)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return math.inf
