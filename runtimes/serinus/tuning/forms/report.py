"""A comparison as JSON and as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

from .optimizer import Comparison, Measured

__all__ = ["as_json", "as_markdown", "columns", "markdown_table", "row"]


def columns(comparison: Comparison) -> list[str]:
    """Headings of the table."""
    sizes = comparison.options.batches
    return [
        "form",
        "served by",
        "precision",
        *(f"ms at {size}" for size in sizes),
        *(f"rows/s at {size}" for size in sizes),
        f"CPU ms/row at {sizes[-1]}",
        "RSS MiB",
        "max rel. diff.",
        "top-1",
        "verdict",
    ]


def row(comparison: Comparison, measured: Measured) -> list[str]:
    """One form's cells."""
    original, sizes = comparison.measured[0], comparison.options.batches
    latencies, rates = [], []
    for size in sizes:
        timing = measured.timings.get(size)
        latencies.append(_milliseconds(timing.latency_s) if timing else "-")
        rates.append(
            f"{size / timing.latency_s:,.0f}" if timing and timing.latency_s < size / 10 else _rate(timing, size)
        )
    last = measured.timings.get(sizes[-1])
    agreement = measured.agreement
    verdict = "differs" if not measured.accepted else "winner" if measured is comparison.winner else "agrees"
    if measured is original:
        verdict = "reference" + (", winner" if measured is comparison.winner else "")
    return [
        measured.form.name,
        measured.form.package,
        measured.form.precision,
        *latencies,
        *rates,
        _milliseconds(sorted(last.cpu_s)[len(last.cpu_s) // 2] / sizes[-1]) if last else "-",
        f"{measured.rss_bytes / 2**20:,.0f}",
        agreement.problem or f"{agreement.max_rel:.1e}",
        "-" if agreement.top1 is None else f"{agreement.top1 * 100:.1f} %",
        verdict,
    ]


def _rate(timing: Any, size: int) -> str:
    return f"{size / timing.latency_s:.1f}" if timing else "-"


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    numeric = [index > 2 and head[index] != "verdict" for index in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---:' if right else '---' for right in numeric)} |"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def as_markdown(comparison: Comparison) -> str:
    """The whole report."""
    lines = [f"# Forms of {comparison.model}", ""]
    if comparison.interrupted:
        lines += ["Interrupted: what was measured until then.", ""]
    lines += [
        markdown_table(columns(comparison), [row(comparison, measured) for measured in comparison.measured]),
        "",
        (
            f"Median call of {comparison.options.rounds} interleaved rounds, in-process, one process a form; inputs: "
            f"{comparison.inputs}. Largest difference relative to the largest output of the original."
        ),
        "",
    ]
    if comparison.skipped:
        lines += ["Not made:", "", *(f"- {item.name}: {item.reason}" for item in comparison.skipped), ""]
    return "\n".join(lines)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "model": comparison.model,
        "inputs": comparison.inputs,
        "interrupted": comparison.interrupted,
        "machine": {"processor": platform.machine(), "system": platform.platform()},
        "winner": comparison.winner.form.name if comparison.winner else None,
        "forms": [
            {
                "name": measured.form.name,
                "package": measured.form.package,
                "precision": measured.form.precision,
                "note": measured.form.note,
                "accepted": measured.accepted,
                "max_abs": _finite(measured.agreement.max_abs),
                "max_rel": _finite(measured.agreement.max_rel),
                "top1": measured.agreement.top1,
                "problem": measured.agreement.problem,
                "load_s": measured.load_s,
                "rss_bytes": measured.rss_bytes,
                "batches": {
                    str(size): {
                        "latency_s": timing.latency_s,
                        "rows_per_s": size / timing.latency_s,
                        "round_medians_s": timing.round_medians_s,
                        "cpu_s": timing.cpu_s,
                    }
                    for size, timing in measured.timings.items()
                },
            }
            for measured in comparison.measured
        ],
        "skipped": [{"name": item.name, "reason": item.reason} for item in comparison.skipped],
    }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
