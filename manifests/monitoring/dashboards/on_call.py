"""The dashboard of whoever is on call: what burns, how fast, and the runbook of each alert."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import CHOSEN, Lines, Panel, Rows, Words, build
from queries import SERVING, quantile

__all__ = ["on_call"]

MONITORING = Path(__file__).resolve().parents[1]


def on_call() -> Dashboard:
    """What burns, how fast, and what to do."""
    windows = ("5m", "1h", "6h", "3d")
    name = "{{inferenceservice}} {{model}}"
    budget = f"serinus:requests:error_ratio_rate{{}}{{{{{CHOSEN}}}}} / scalar(1 - serinus:objective:availability)"
    rows: list[tuple[str, list[Panel]]] = [
        (
            "What burns",
            [
                Rows(
                    "Firing",
                    'sum by (alertname, severity, namespace, inferenceservice, model, pod) (ALERTS{alertname=~"Serinus.+", alertstate="firing"})',
                    "The runbook of each is below, under its name.",
                ),
                Lines(
                    "Pace of the error budget",
                    [(budget.format(window), f"{window} {name}") for window in windows],
                    "short",
                    "1 uses the month's budget in a month, 14.4 a fiftieth of it in an hour.",
                ),
                Lines(
                    "p99 and the objective",
                    [
                        (
                            f"serinus:request_seconds:p99_rate5m{{{CHOSEN}}}",
                            "{{inferenceservice}} {{model}} {{revision}}",
                        ),
                        ("serinus:objective:p99_seconds", "objective"),
                    ],
                    "s",
                ),
                Lines(
                    "Waiting, p95",
                    [(f"serinus:queue_seconds:p95_rate5m{{{CHOSEN}}}", "{{inferenceservice}} {{model}} {{revision}}")],
                    "s",
                ),
                Lines(
                    "Share of the time spent waiting",
                    [(f"serinus:queue_share:rate10m{{{CHOSEN}}}", name)],
                    "percentunit",
                ),
                Lines("Rows a batch", [(f"serinus:batch_rows:mean10m{{{CHOSEN}}}", name)]),
                Lines(
                    "Restarts",
                    [
                        (
                            f"sum by (pod, container) (increase(kube_pod_container_status_restarts_total{{{SERVING}}}[1h]))",
                            "{{pod}} {{container}}",
                        )
                    ],
                    "short",
                    "In the last hour.",
                ),
            ],
        ),
        (
            "Health of the processes",
            [
                Lines(
                    "Event loop, lag p99",
                    [(quantile(0.99, "serinus_event_loop_lag_seconds", "pod"), "{{pod}}")],
                    "s",
                    "How late requests, probes and metrics are begun.",
                ),
                Lines(
                    "Hangs, and the loop held",
                    [
                        (
                            f"sum by (pod, model) (increase(serinus_model_hangs_total{{{CHOSEN}}}[1h]))",
                            "hangs {{pod}} {{model}}",
                        ),
                        (f"sum by (pod) (increase(serinus_loop_held_total{{{CHOSEN}}}[1h]))", "held {{pod}}"),
                    ],
                    "short",
                    "In the last hour.",
                ),
                Lines(
                    "Processes replaced",
                    [
                        (
                            f"sum by (pod, reason) (increase(serinus_worker_restarts_total{{{CHOSEN}}}[1h]))",
                            "worker {{pod}} {{reason}}",
                        ),
                        (
                            f"sum by (pod) (max_over_time(serinus_memory_restart_pending{{{CHOSEN}}}[1h]))",
                            "for memory {{pod}}",
                        ),
                    ],
                    "short",
                    "In the last hour; workers where there are several, and servers that ended for their memory.",
                ),
                Lines(
                    "Memory, growth an hour",
                    [(f"max by (pod) (serinus_memory_growth_bytes_per_hour{{{CHOSEN}}})", "{{pod}}")],
                    "bytes",
                ),
                Lines(
                    "Certificates, days left",
                    [
                        (
                            f"(min by (pod, certificate) (serinus_tls_certificate_expiry_timestamp_seconds{{{CHOSEN}}}) - time()) / 86400",
                            "{{pod}} {{certificate}}",
                        )
                    ],
                    "short",
                    "Of servers that speak TLS themselves.",
                ),
                Lines(
                    "Loads refused for their signature",
                    [(f"sum by (pod) (increase(serinus_model_signature_refusals_total{{{CHOSEN}}}[1h]))", "{{pod}}")],
                    "short",
                    "In the last hour.",
                ),
            ],
        ),
        ("Runbooks", _runbooks()),
    ]
    return build(
        "serinus-on-call", "On call", "What burns, how fast, and for each alert what to look at and to do.", rows
    )


def _runbooks() -> list[Panel]:
    """Each alert's section of RUNBOOKS.md, under the panel id that its runbook_url names."""
    sections = dict(
        re.findall(
            r"^## (Serinus\w+)\n(.*?)(?=^## |\Z)", (MONITORING / "RUNBOOKS.md").read_text(), re.DOTALL | re.MULTILINE
        )
    )
    rules = yaml.safe_load((MONITORING / "alerts" / "prometheusrule.yaml").read_text())
    panels = {
        rule["alert"]: int(rule["annotations"]["runbook_url"].rpartition("=")[2])
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    return [Words(alert, sections[alert].strip(), number) for alert, number in panels.items()]
