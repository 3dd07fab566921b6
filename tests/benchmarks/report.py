"""Turn one run's figures into Markdown tables and plots."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PARTS", "merged", "ratios", "table", "write"]

PUBLISHED = Path(__file__).resolve().parent
PARTS = ("servers", "idle", "pipeline", "vision", "engine", "growth")
"""Sections of a run."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table; the first column is text, the others are aligned right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    lines.extend("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    mark = " *" if row["disturbed"] else ""
    errors = f" ({row['errors']} errors)" if row["errors"] else ""
    return f"{row['rps']:,.0f} / {row['p50_us']:,.0f} / {row['p99_us']:,.0f} / {row['cpu_us']:,.1f}{mark}{errors}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratios(
    servers: Sequence[Mapping[str, Any]], us: str = "serinus"
) -> list[tuple[str, int, str, float, float, float]]:
    """How many times more requests, how many times lower p50 and CPU per request than each peer.

    Returns:
        (workload, concurrency, peer, requests/s ratio, p50 ratio, CPU ratio) each.
    """
    found = []
    ours = {(row["workload"], row["concurrency"]): row for row in servers if row["peer"] == us}
    for row in servers:
        mine = ours.get((row["workload"], row["concurrency"]))
        if mine is None or row["peer"] == us:
            continue
        found.append(
            (
                row["workload"],
                row["concurrency"],
                row["peer"],
                mine["rps"] / row["rps"],
                row["p50_us"] / mine["p50_us"],
                row["cpu_us"] / mine["cpu_us"],
            )
        )
    return found


def merged(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Take each part from the later run, or else from the earlier; each keeps its own run's command and date."""
    runs = earlier.get("runs") or {
        part: {"when": earlier["when"], "command": earlier["command"]} for part in PARTS if part in earlier
    }
    found = {**earlier, **later}
    for key in ("peers", "workloads"):
        found[key] = {**earlier.get(key, {}), **later.get(key, {})}
    if later["machine"] != earlier["machine"]:
        runs = {part: {**run, "machine": run.get("machine", earlier["machine"])} for part, run in runs.items()}
    found["runs"] = {**runs, **later["runs"]}
    return found


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores of {machine['cpu']}, CPython {machine['python']}"


def _servers(results: Mapping[str, Any]) -> list[str]:
    servers = results["servers"]
    parts = [
        "## Side by side",
        "Cells: requests/s / p50 us / p99 us / server CPU us per request. `*`: no slice was quiet; read it with care.",
    ]
    for workload, what in results["workloads"].items():
        rows = [row for row in servers if row["workload"] == workload]
        if not rows:
            continue
        levels = sorted({row["concurrency"] for row in rows})
        peers = list(dict.fromkeys(row["peer"] for row in rows))
        cells = {(row["peer"], row["concurrency"]): _cell(row) for row in rows}
        header = [workload, *(f"{level} at once" for level in levels)]
        parts += [
            f"### {workload}: {what}",
            table(header, ([peer, *(cells[peer, level] for level in levels)] for peer in peers)),
        ]
    rows = [
        (f"{workload} x{concurrency}", peer, f"{rps:.1f}x", f"{p50:.1f}x", f"{cpu:.1f}x")
        for workload, concurrency, peer, rps, p50, cpu in ratios(servers)
    ]
    parts += [
        "### How many times better serinus is (below 1: the peer wins)",
        table(["workload", "against", "requests/s", "p50", "CPU per request"], rows),
    ]
    return parts


def _plot(results: Mapping[str, Any], folder: Path) -> list[str]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    names = []
    if "servers" in results:
        servers = results["servers"]
        level = 16 if any(row["concurrency"] == 16 for row in servers) else servers[0]["concurrency"]
        workloads = [name for name in results["workloads"] if any(row["workload"] == name for row in servers)]
        figure, axes = plt.subplots(1, len(workloads), figsize=(3.4 * len(workloads), 4), squeeze=False)
        for axis, workload in zip(axes[0], workloads, strict=True):
            rows = [row for row in servers if row["workload"] == workload and row["concurrency"] == level]
            rows.sort(key=lambda row: row["rps"])
            colours = ["#d97706" if row["peer"].startswith("serinus") else "#64748b" for row in rows]
            bars = axis.barh([row["peer"] for row in rows], [row["rps"] for row in rows], color=colours)
            axis.bar_label(bars, labels=[f"{row['rps']:,.0f}" for row in rows], padding=3, fontsize=8)
            axis.set_title(f"{workload}: {results['workloads'][workload]}", fontsize=8)
            axis.set_xlabel(f"requests/s, {level} at once", fontsize=8)
            axis.margins(x=0.25)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(folder / "servers.png", dpi=110)
        plt.close(figure)
        names.append("servers.png")
    curves = results.get("growth", {})
    if curves:
        figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3.6), squeeze=False)
        for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
            for peer in dict.fromkeys(point["peer"] for point in curve["points"]):
                points = [point for point in curve["points"] if point["peer"] == peer]
                colour = "#d97706" if peer.startswith("serinus") else None
                axis.plot(
                    [p["x"] for p in points], [p["y"] for p in points], marker="o", ms=3, label=peer, color=colour
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(curve["x"], fontsize=8)
            axis.set_ylabel(curve["y"], fontsize=8)
            axis.set_title(name, fontsize=9)
            axis.tick_params(labelsize=8)
            axis.legend(fontsize=7, frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(folder / "growth.png", dpi=110)
        plt.close(figure)
        names.append("growth.png")
    return names


def write(results: Mapping[str, Any], folder: Path, *, publish: bool) -> str:
    """Write RESULTS.md and its plots.

    Args:
        results: what `__main__` gathered.
        folder: where to.
        publish: copy them beside this module too, for the repository.

    Returns:
        The Markdown.
    """
    runs = results["runs"]

    def measured(part: str) -> str:
        run = runs[part]
        where = f", {_machine(run['machine'])}" if "machine" in run else ""
        return f"`{run['command']}`, {run['when']}{where}."

    parts = [
        "# Measured",
        (
            f"{_machine(results['machine'])}; load generators (wrk, h2load) on the same machine, loopback, keep-alive. "
            "All servers of a table take turns within one run; compare within one table only."
        ),
    ]
    if results.get("peers"):
        parts.append(table(["server", "set up as"], results["peers"].items()).replace("--:|", "---|"))
    if "servers" in results:
        title, *rest = _servers(results)
        parts += [title, measured("servers"), *rest]
    if "idle" in results:
        rows = [(name, f"{row['ready_s']:.2f}", f"{row['memory_mb']:.0f}") for name, row in results["idle"].items()]
        parts += [
            "## Start and idle memory",
            measured("idle"),
            table(["server", "start to first right answer, s", "resident memory of all its processes, MB"], rows),
        ]
    if results.get("pipeline"):
        rows = [(row["peer"], _cell(row)) for row in results["pipeline"]]
        parts += [
            "## The fraud pipeline: raw transaction in, decision out",
            measured("pipeline"),
            "REST JSON, one transaction a request, 16 connections, the same classes everywhere. Cells as above.",
            table(["form", "requests/s / p50 us / p99 us / CPU us"], rows),
        ]
    if results.get("vision"):
        rows = [
            (
                row["framework"],
                row["rows"],
                *(f"{row[key]:.1f}" for key in ("in_process_ms", "served_ms")),
                f"{row['added']:+.1%} ({row['added_low']:+.1%} to {row['added_high']:+.1%})",
                *(f"{row[key]:.1f}" for key in ("in_process_cpu_ms", "served_cpu_ms")),
            )
            for row in results["vision"]
        ]
        head = ["framework", "rows", "in process, ms", "served, ms", "added", "CPU in process, ms", "CPU served, ms"]
        parts += [
            "## ResNet-50: what serving adds to the framework's own time",
            measured("vision"),
            (
                "FP32 pixels of 224 x 224 (0.6 MB a row) over REST with the binary extension, one connection, against the framework's own "
                "call in a process by itself, in turns of a second. Medians; added: over the rounds, with quartiles."
            ),
            table(head, rows),
        ]
    if results.get("engine"):
        engine = results["engine"]
        sizes = list(dict.fromkeys(cell["rows"] for cell in engine["speed"]))
        cells = {(cell["trees"], cell["rows"]): cell for cell in engine["speed"]}
        times = [
            (
                trees,
                *(
                    f"{cells[trees, rows]['forest_us']:,.1f} / {cells[trees, rows]['xgboost_us']:,.1f}"
                    for rows in sizes
                ),
            )
            for trees in dict.fromkeys(cell["trees"] for cell in engine["speed"])
        ]
        rows = [
            (row["objective"], f"{row['rows']:,}", f"{row['margin']:.2g}", f"{row['prediction']:.2g}")
            for row in engine["equality"]
        ]
        parts += [
            "## The XGBoost engine",
            measured("engine"),
            (
                "In process, one thread, 30 features, depth 6: us of a call to the compiled forest / to `Booster.inplace_predict`, the best of "
                f"several. Rows side by side in a vector here: {engine['lanes']}."
            ),
            table(["trees", *(f"{size:,} rows" for size in sizes)], times),
            "Largest difference between the two, absolute up to 1 and relative above:",
            table(["model", "rows", "in margin", "in prediction"], rows),
        ]
    if results.get("growth"):
        parts.append(f"The curves below: {measured('growth')}")
    for name, curve in results.get("growth", {}).items():
        xs = sorted({point["x"] for point in curve["points"]})
        peers = list(dict.fromkeys(point["peer"] for point in curve["points"]))
        cells = {(point["peer"], point["x"]): _short(point["y"]) for point in curve["points"]}
        parts += [
            f"## {name}",
            f"{curve['y']} by {curve['x']}.",
            table(["server", *map(str, xs)], ([peer, *(cells.get((peer, x), "") for x in xs)] for peer in peers)),
        ]
    plots = _plot(results, folder)
    parts += [f"![{name}]({name})" for name in plots]
    text = "\n\n".join(parts) + "\n"
    (folder / "RESULTS.md").write_text(text)
    if publish:
        for name in ("RESULTS.md", *plots):
            shutil.copy(folder / name, PUBLISHED / name)
    return text
