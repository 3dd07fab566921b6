"""What `make bench` writes of runs that measured some sections each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import merged, write

MACHINE = {"cpu": "a processor", "cores": 2, "python": "3.11.7", "system": "Linux"}


def run(day: int, **parts: Any) -> dict[str, Any]:
    when = f"2026-01-0{day}"
    return {
        "when": when,
        "machine": MACHINE,
        "runs": {part: {"when": when, "command": f"make bench {part}"} for part in parts},
        **parts,
    }


def idle(seconds: float) -> dict[str, dict[str, float]]:
    return {"serinus": {"ready_s": seconds, "memory_mb": 70.0}}


def vision(added: float) -> list[dict[str, Any]]:
    times = {"in_process_ms": 50.0, "served_ms": 51.0, "in_process_cpu_ms": 90.0, "served_cpu_ms": 91.0}
    return [{"framework": "Torch", "rows": 1, **times, "added": added, "added_low": 0.01, "added_high": 0.03}]


@pytest.mark.slow
def test_sections_of_two_runs_become_one_report_each_with_its_command_and_date(tmp_path: Path) -> None:
    both = merged(run(1, idle=idle(0.5), vision=vision(0.5)), run(2, vision=vision(0.02)))
    text = write(both, tmp_path, publish=False)
    assert "`make bench idle`, 2026-01-01." in text
    assert "`make bench vision`, 2026-01-02." in text
    assert "| Torch | 1 | 50.0 | 51.0 | +2.0% (+1.0% to +3.0%) | 90.0 | 91.0 |" in text
    assert "+50.0%" not in text
    assert (tmp_path / "RESULTS.md").read_text() == text


@pytest.mark.slow  # imports matplotlib
def test_a_section_of_another_machine_says_which(tmp_path: Path) -> None:
    other = {**run(2, vision=vision(0.02)), "machine": {**MACHINE, "cores": 64}}
    text = write(merged(run(1, idle=idle(0.5)), other), tmp_path, publish=False)
    assert "`make bench idle`, 2026-01-01, 2 cores of a processor, CPython 3.11.7." in text
    assert text.startswith("# Measured\n\n64 cores of")


@pytest.mark.slow  # imports matplotlib
def test_a_run_from_before_sections_kept_their_own_command_is_taken_too(tmp_path: Path) -> None:
    old = {"when": "2025-12-31", "command": "make bench", "machine": MACHINE, "idle": idle(0.5)}
    text = write(merged(old, run(1, vision=vision(0.02))), tmp_path, publish=False)
    assert "`make bench`, 2025-12-31." in text


@pytest.mark.slow  # matplotlib
def test_the_engine_is_shown_by_its_times_and_by_its_largest_difference(tmp_path: Path) -> None:
    cells = [{"trees": 200, "rows": rows, "forest_us": 1.0 * rows, "xgboost_us": 1000.0 * rows} for rows in (1, 64)]
    equality = [{"objective": "binary:logistic", "rows": 5_000_000, "margin": 0.0, "prediction": 6e-8}]
    text = write(run(1, engine={"lanes": 16, "speed": cells, "equality": equality}), tmp_path, publish=False)
    assert "| 200 | 1.0 / 1,000.0 | 64.0 / 64,000.0 |" in text
    assert "| binary:logistic | 5,000,000 | 0 | 6e-08 |" in text
