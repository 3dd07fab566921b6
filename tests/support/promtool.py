"""Prometheus' own tools, and our rules as they read them; Debian's package `prometheus` has both programs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ALERTS", "MONITORING", "alerting_rules", "has_prometheus", "promtool", "rules", "write_rules"]

MONITORING = Path(__file__).resolve().parents[2] / "manifests" / "monitoring"
ALERTS = MONITORING / "alerts" / "prometheusrule.yaml"


def has_prometheus() -> bool:
    """Whether both programs are on the PATH."""
    return all(map(shutil.which, ("prometheus", "promtool")))


def rules() -> dict[str, Any]:
    """The `spec` of our PrometheusRule, which is a rule file of Prometheus."""
    return yaml.safe_load(ALERTS.read_text())["spec"]


def alerting_rules() -> list[dict[str, Any]]:
    """Our alerts, in their order."""
    return [rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule]


def write_rules(folder: Path, *, alert: str | None = None) -> Path:
    """Write the rule file that the operator makes of our PrometheusRule.

    Args:
        folder: where.
        alert: leave out every other one, which a unit test would evaluate all the same: no rule reads an alert. None: none is left out.
    """
    path = folder / "rules.yaml"
    groups = rules()["groups"]
    if alert is not None:
        groups = [
            {**group, "rules": [rule for rule in group["rules"] if rule.get("alert", alert) == alert]}
            for group in groups
        ]
    path.write_text(yaml.safe_dump({"groups": groups}, sort_keys=False))
    return path


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool; both streams as text."""
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False, timeout=120)
