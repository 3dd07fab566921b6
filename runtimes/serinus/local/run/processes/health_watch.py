"""Whether one life of a process has started, is ready and is alive, asked as the kubelet asks.

Theory of operation. A life begins anew for its probes: until it has started, nobody asks whether it is alive, however long the life before it
was ready. It has started when its startupProbe passes, or, where none is written, when it is ready for the first time: a laptop that starts
servers slowly is no reason to kill them. A startupProbe that does not pass in initialDelaySeconds + periodSeconds x failureThreshold ends
the life; so does a livenessProbe that fails failureThreshold times in a row. Probes are asked more often than written while the process
starts, since somebody waits for it, and readiness once a second after that. An answer that says no makes it unready at once; silence only after
failureThreshold times, because a busy machine is silent at times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ...plan.port_binding import ProcessPlan
from .probe import Answer, answers_tcp, ask_probe, ask_ready

__all__ = ["watch_health"]

_FIRST_PAUSE_S, _START_PAUSE_S, _READY_PAUSE_S = 0.05, 0.5, 1.0
_SILENT_TIMES = 3
"""failureThreshold of a readiness probe that is not written (core/v1 Probe)."""
_TELL_AFTER_S = 30.0


async def watch_health(plan: ProcessPlan, *, hear: Callable[[Answer], None], note: Callable[[str], None]) -> str:
    """Ask until the process has to be ended; cancelled when it has ended by itself.

    Args:
        plan: whose probes are asked.
        hear: told of each answer that counts.
        note: gets lines for its log.

    Returns:
        Why it has to be ended.
    """
    began = time.monotonic()
    patience = asyncio.create_task(_tell_slow(plan, note), name=f"patience with {plan.name}")
    try:
        reason = await _wait_started(plan, began)
    finally:
        patience.cancel()
    if reason:
        return reason
    readiness = asyncio.create_task(_follow_readiness(plan, hear), name=f"readiness of {plan.name}")
    try:
        return await _follow_liveness(plan, began)
    finally:
        readiness.cancel()


async def _tell_slow(plan: ProcessPlan, note: Callable[[str], None]) -> None:
    await asyncio.sleep(_TELL_AFTER_S)
    port = plan.ports.http
    if await answers_tcp(port, timeout_s=1.0):
        note(f"answers, but is not ready after {_TELL_AFTER_S:.0f} s")
    else:
        note(
            f"nothing listens on 127.0.0.1:{port} after {_TELL_AFTER_S:.0f} s; its port comes by --http_port or SERINUS_HTTP_PORT"
        )


async def _wait_started(plan: ProcessPlan, began: float) -> str:
    """Wait until it has started; a reason where it is too late for that."""
    probe = plan.startup if plan.startup is not None and plan.startup.kind != "exec" else None
    limit_s = probe.initial_delay_s + probe.period_s * probe.failures if probe is not None else float("inf")
    pause = _FIRST_PAUSE_S
    while True:
        if probe is not None:
            answer = await ask_probe(probe, plan.probe_ports, plan.ports.http)
        else:
            answer = await ask_ready(plan)
        if answer == "yes":
            return ""
        took = time.monotonic() - began
        if took > limit_s:
            return f"its startupProbe did not pass within {limit_s:g} s"
        pause = min(pause * 1.3, _START_PAUSE_S)
        await asyncio.sleep(min(pause, max(0.01, limit_s - took)))


async def _follow_readiness(plan: ProcessPlan, hear: Callable[[Answer], None]) -> None:
    limit = plan.readiness.failures if plan.readiness is not None else _SILENT_TIMES
    pause, silent = _FIRST_PAUSE_S, 0
    while True:
        answer: Answer = await ask_ready(plan)
        silent = silent + 1 if answer == "silence" else 0
        if answer == "yes":
            hear(answer)
            pause = _READY_PAUSE_S
        elif answer == "no" or silent >= limit:
            hear(answer)
            pause = min(pause * 1.3, _START_PAUSE_S)
        await asyncio.sleep(pause)


async def _follow_liveness(plan: ProcessPlan, began: float) -> str:
    probe = plan.liveness
    if probe is None or probe.kind == "exec":  # there is no container to run a command in: it counts as passed
        await asyncio.Event().wait()
        return ""
    await asyncio.sleep(max(0.0, began + probe.initial_delay_s - time.monotonic()))
    failures = 0
    while True:
        asked = time.monotonic()
        answer = await ask_probe(probe, plan.probe_ports, plan.ports.http)
        failures = 0 if answer == "yes" else failures + 1
        if failures >= probe.failures:
            return f"its livenessProbe failed {failures} times"
        await asyncio.sleep(max(0.05, asked + probe.period_s - time.monotonic()))
