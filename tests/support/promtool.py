"""Prometheus' own tools, and our rules as they read them; Debian's package `prometheus` has both programs."""

from __future__ import annotations

import functools
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


@functools.cache
def rules() -> dict[str, Any]:
    """The `spec` of our PrometheusRule, which is a rule file of Prometheus. Read once: not to be changed."""
    return yaml.safe_load(ALERTS.read_text())["spec"]


def alerting_rules() -> list[dict[str, Any]]:
    """Our alerts, in their order."""
    return [rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule]


def write_rules(folder: Path, *, alert: str | None = None) -> Path:
    """Write the rule file that the operator makes of our PrometheusRule.

    Args:
        folder: where.
        alert: leave out what it does not read, which a unit test would evaluate all the same. None: nothing is left out.
    """
    path = folder / "rules.yaml"
    groups = rules()["groups"]
    if alert is not None:
        wanted = _read_by(alert)
        groups = [{**group, "rules": [rule for rule in group["rules"] if rule in wanted]} for group in groups]
    path.write_text(yaml.safe_dump({"groups": groups}, sort_keys=False))
    return path


def _read_by(alert: str) -> list[dict[str, Any]]:
    """The rules of an alert's name, and those that record what they read."""
    every = [rule for group in rules()["groups"] for rule in group["rules"]]
    found = [rule for rule in every if rule.get("alert") == alert]
    for reader in found:  # which grows meanwhile
        found += [rule for rule in every if rule not in found and rule.get("record", "ALERTS") in reader["expr"]]
    return found


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool; both streams as text."""
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False, timeout=120)
