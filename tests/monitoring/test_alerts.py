"""Each alert fires on the fault that it is named for, and is silent beside it: `promtool test rules` on made-up series.

A case gives series in promtool's notation (`0+60x120`: from 0, 60 more each minute, 120 times), and when to look.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from depth import draws
from promtool import alerting_rules, has_prometheus, promtool, write_rules

pytestmark = [
    pytest.mark.slow,  # days of samples
    pytest.mark.skipif(not has_prometheus(), reason="needs prometheus and promtool (Debian: prometheus)"),
]

SERVICE = (
    'namespace="models", inferenceservice="fraud", component="predictor", pod="fraud-0", container="kserve-container"'
)
MODEL = f'{SERVICE}, model="fraud", version="", revision="fraud-predictor"'
CANARY = MODEL.replace("fraud-predictor", "fraud-v2-predictor").replace("fraud-0", "fraud-v2-0")
POD = 'namespace="models", pod="fraud-0", container="kserve-container"'
GIB = 1 << 30


def counts(outcome: str, values: str, labels: str = MODEL) -> tuple[str, str]:
    return f'serinus_requests_total{{{labels}, outcome="{outcome}"}}', values


def buckets(family: str, fast: str, slow: str, total: str) -> list[tuple[str, str]]:
    """A histogram: what grows up to 50 ms, up to 1 s, and the sum."""
    return [
        (f'{family}_bucket{{{MODEL}, le="0.05"}}', fast),
        (f'{family}_bucket{{{MODEL}, le="1.0"}}', slow),
        (f'{family}_bucket{{{MODEL}, le="+Inf"}}', slow),
        (f"{family}_sum{{{MODEL}}}", total),
        (f"{family}_count{{{MODEL}}}", slow),
    ]


def rows(rows_a_minute: str, batches_a_minute: str) -> list[tuple[str, str]]:
    return [
        (f"serinus_batch_rows_sum{{{MODEL}}}", rows_a_minute),
        (f"serinus_batch_rows_count{{{MODEL}}}", batches_a_minute),
    ]


def memory(bytes_used: str, *, started: str = "0x600", limit: int = 4 * GIB) -> list[tuple[str, str]]:
    return [
        (f'container_memory_working_set_bytes{{{POD}, id="/kubepods/x"}}', bytes_used),
        (f'kube_pod_container_resource_limits{{{POD}, resource="memory", unit="byte"}}', f"{limit}x600"),
        (f"process_start_time_seconds{{{SERVICE}}}", started),
    ]


def cuda(**values: str) -> list[tuple[str, str]]:
    return [
        (f'serinus_cuda_memory_{name}{{{SERVICE}, device="0", worker="0"}}', value) for name, value in values.items()
    ]


def fragments(split: int, free: int) -> list[tuple[str, str]]:
    return cuda(
        inactive_split_bytes=f"{split}x60",
        reserved_bytes="100x60",
        device_free_bytes=f"{free}x60",
        device_total_bytes="100x60",
    )


def gauge(name: str, values: str) -> tuple[str, str]:
    """A series of a process, gauge or counter."""
    return f"{name}{{{SERVICE}}}", values


def restarts(reason: str, values: str) -> tuple[str, str]:
    return f'serinus_worker_restarts_total{{{SERVICE}, reason="{reason}"}}', values


def expiry(days: float) -> tuple[str, str]:
    name = f'serinus_tls_certificate_expiry_timestamp_seconds{{{SERVICE}, certificate="/etc/serinus/tls/tls.crt"}}'
    return name, f"{int(days * 86400)}x90"


def lag(in_time: str, looks: str) -> list[tuple[str, str]]:
    """Looks at the event loop: those within 10 ms, and all of them, the others within a second."""
    name = "serinus_event_loop_lag_seconds_bucket"
    return [
        (f'{name}{{{SERVICE}, le="0.01"}}', in_time),
        (f'{name}{{{SERVICE}, le="1"}}', looks),
        (f'{name}{{{SERVICE}, le="+Inf"}}', looks),
    ]


RESTARTS = f"kube_pod_container_status_restarts_total{{{POD}}}"
REASON = f"kube_pod_container_status_last_terminated_reason{{{POD}, reason="
WAITING = buckets("serinus_queue_seconds", "0x600", "0+600x600", "0+300x600")
HALF_WAITING = buckets("serinus_queue_seconds", "0+600x600", "0+600x600", "0+6x600")
LASTING = buckets("serinus_request_seconds", "0x600", "0+600x600", "0+400x600")


@dataclass(frozen=True)
class Case:
    """Series, the moment, and the labels that each firing alert of the name has beside severity; empty: it is silent."""

    alert: str
    name: str
    series: list[tuple[str, str]]
    at: str
    firing: list[dict[str, str]] = field(default_factory=list)
    every: str = "1m"
    """From a value to the next."""


WHO = {"namespace": "models", "inferenceservice": "fraud", "model": "fraud"}
PLACE = {"namespace": "models", "pod": "fraud-0", "container": "kserve-container"}
DEVICE = {"namespace": "models", "inferenceservice": "fraud", "pod": "fraud-0", "device": "0"}
PROCESS = {"namespace": "models", "inferenceservice": "fraud", "pod": "fraud-0"}
CERTIFICATE = {**PROCESS, "certificate": "/etc/serinus/tls/tls.crt"}
STABLE = {"revision": "fraud-predictor"}
STEADY = counts("success", "0+600x5000")
CASES = [
    Case("SerinusLatencyP99High", "slow", [STEADY, *LASTING], "20m", [{**WHO, **STABLE}]),
    Case("SerinusLatencyP99High", "not-yet-ten-minutes", [STEADY, *LASTING], "9m"),
    Case(
        "SerinusLatencyP99High",
        "fast",
        [STEADY, *buckets("serinus_request_seconds", "0+600x60", "0+600x60", "0+6x60")],
        "20m",
    ),
    Case(
        "SerinusLatencyP99High",
        "one-slow-request-in-quiet-hours",
        [counts("success", "0x10 1x50"), *buckets("serinus_request_seconds", "0x60", "0x10 1x50", "0x10 1x50")],
        "13m",
    ),
    # 1000 requests a minute.
    Case(
        "SerinusErrorBudgetBurn",
        "two-in-a-hundred-fail",
        [counts("success", "0+980x300"), counts("failed", "0+20x300")],
        "50m",
        [{**WHO, "window": "1h"}, {**WHO, "window": "6h"}],
    ),
    Case(
        "SerinusErrorBudgetBurn",
        "one-in-a-hundred-times-out",
        [counts("success", "0+990x600"), counts("timeout", "0+10x600")],
        "400m",
        # After 400 minutes a day's window and three days' hold no more than the six hours do.
        [{**WHO, "window": "6h"}, {**WHO, "window": "1d"}, {**WHO, "window": "3d"}],
        every="4m",
    ),
    # Without a change, windows of days hold after ten hours what they hold after their days, which DEEP=1 waits for.
    Case(
        "SerinusErrorBudgetBurn",
        "four-in-a-thousand",
        [counts("success", "0+996x5000"), counts("other", "0+4x5000")],
        f"{draws(2880, 600)}m",
        [{**WHO, "window": "1d"}, {**WHO, "window": "3d"}],
        every="4m",
    ),
    Case(
        "SerinusErrorBudgetBurn",
        "twice-the-budget",
        [counts("success", "0+998x5000"), counts("rejected", "0+2x5000")],
        f"{draws(4320, 600)}m",
        [{**WHO, "window": "3d"}],
        every="4m",
    ),
    Case(
        "SerinusErrorBudgetBurn",
        "within-the-budget",
        [counts("success", "0+9995x5000"), counts("failed", "0+5x5000")],
        f"{draws(4320, 600)}m",
        every="4m",
    ),
    Case(
        "SerinusErrorBudgetBurn",
        "over-since-ten-minutes",
        [counts("success", "0+950x300"), counts("failed", "0+50x30 1500x270")],
        "41m",
        # The hour is not over yet, its five minutes are; of six hours the thirty minutes hold it still.
        [{**WHO, "window": "6h"}],
    ),
    Case(
        "SerinusErrorBudgetBurn",
        "clients-that-send-nonsense-or-leave",
        [STEADY, counts("invalid", "0+300x600"), counts("cancelled", "0+300x600")],
        "400m",
        every="4m",
    ),
    Case(
        "SerinusErrorBudgetBurn",
        "no-requests",
        [counts("success", "5x600"), counts("failed", "5x600")],
        "400m",
        every="4m",
    ),
    Case("SerinusQueueTimeHigh", "waiting", [*WAITING, *LASTING], "25m", [{**WHO, **STABLE}]),
    Case("SerinusQueueTimeHigh", "computing", [*HALF_WAITING, *LASTING], "25m"),
    Case(
        "SerinusBatchCollapse",
        "from-32-rows-to-1",
        # 320 rows a minute in 10 batches for 200 minutes, then 10 rows in 10.
        [*rows("0+320x200 64010+10x100", "0+10x300"), *WAITING, *LASTING],
        "240m",
        [WHO],
    ),
    Case("SerinusBatchCollapse", "as-ever", [*rows("0+320x300", "0+10x300"), *WAITING, *LASTING], "240m"),
    Case(
        "SerinusBatchCollapse",
        "less-load-and-nobody-waits",
        [*rows("0+320x200 64010+10x100", "0+10x300"), *HALF_WAITING, *LASTING],
        "240m",
    ),
    Case(
        "SerinusBatchCollapse", "rows-come-singly-as-ever", [*rows("0+10x300", "0+10x300"), *WAITING, *LASTING], "240m"
    ),
    Case("SerinusRequestsRefused", "queue-full", [STEADY, counts("rejected", "0+30x60")], "20m", [WHO]),
    Case("SerinusRequestsRefused", "deadlines-pass", [STEADY, counts("timeout", "0+30x60")], "20m", [WHO]),
    Case("SerinusRequestsRefused", "one-in-a-thousand", [STEADY, counts("rejected", "0+0.6x60")], "20m"),
    Case(
        "SerinusModelNotReady",
        "never-ready",
        [(f"serinus_model_ready{{{MODEL}}}", "0x60")],
        "10m",
        [{**WHO, "pod": "fraud-0"}],
    ),
    Case("SerinusModelNotReady", "loading", [(f"serinus_model_ready{{{MODEL}}}", "0x3 1x60")], "10m"),
    Case(
        "SerinusTargetDown",
        "no-answer",
        [(f'up{{{SERVICE}, revision="fraud-predictor"}}', "1x5 0x60")],
        "15m",
        [{**PLACE, **STABLE, "inferenceservice": "fraud", "component": "predictor"}],
    ),
    Case("SerinusTargetDown", "somebody-elses", [('up{job="node"}', "0x60")], "15m"),
    Case("SerinusTargetDown", "scaled-to-zero", [(f"up{{{SERVICE}}}", "1x5 _x60")], "15m"),
    Case(
        "SerinusCanaryStuck",
        "for-two-days",
        [STEADY, counts("success", "0+60x5000", CANARY)],
        "2000m",
        [{"namespace": "models", "inferenceservice": "fraud", "component": "predictor"}],
    ),
    Case("SerinusCanaryStuck", "for-six-hours", [STEADY, counts("success", "0+60x5000", CANARY)], "360m"),
    Case(
        "SerinusCanaryStuck",
        "promoted",
        [counts("success", "0+60x600 36000x4000"), counts("success", "0+60x5000", CANARY)],
        "2400m",
    ),
    Case("SerinusCanaryStuck", "alone", [STEADY], "2400m"),
    Case(
        "SerinusCanaryWithoutTraffic",
        "bypassed",
        [STEADY, counts("success", "0x600", CANARY)],
        "150m",
        [
            {
                "namespace": "models",
                "inferenceservice": "fraud",
                "component": "predictor",
                "revision": "fraud-v2-predictor",
            }
        ],
    ),
    Case("SerinusCanaryWithoutTraffic", "with-some", [STEADY, counts("success", "0+1x600", CANARY)], "150m"),
    Case(
        "SerinusCanaryWithoutTraffic",
        "nobody-asks-either",
        [counts("success", "0x600"), counts("success", "0x600", CANARY)],
        "150m",
    ),
    # 8 MiB a minute from 2 GiB: 4 GiB after 256 minutes.
    Case("SerinusMemoryGrowth", "leaking", memory(f"{2 * GIB}+{8 << 20}x600"), "240m", [PLACE]),
    Case("SerinusMemoryGrowth", "steady", memory(f"{3 * GIB}x600"), "240m"),
    Case("SerinusMemoryGrowth", "just-started", memory(f"{2 * GIB}+{8 << 20}x600", started="7200x600"), "240m"),
    Case(
        "SerinusContainerRestarting",
        "every-five-minutes",
        [(RESTARTS, "0 0 0 0 0 1 1 1 1 1 2 2 2 2 2 3 3 3 3 3 4x20")],
        "25m",
        [PLACE],
    ),
    Case("SerinusContainerRestarting", "once", [(RESTARTS, "0x10 1x50")], "25m"),
    Case(
        "SerinusOutOfMemoryKilled",
        "killed",
        [(RESTARTS, "0x10 1x50"), (REASON + '"OOMKilled"}', "0x10 1x50")],
        "15m",
        [PLACE],
    ),
    Case(
        "SerinusOutOfMemoryKilled", "ended-by-itself", [(RESTARTS, "0x10 1x50"), (REASON + '"Error"}', "1x60")], "15m"
    ),
    Case(
        "SerinusOutOfMemoryKilled",
        "yesterday",
        [(RESTARTS, "0x10 1x500"), (REASON + '"OOMKilled"}', "0x10 1x500")],
        "300m",
    ),
    Case("SerinusGpuMemoryFragmented", "in-pieces", fragments(40, 5), "20m", [DEVICE]),
    Case("SerinusGpuMemoryFragmented", "in-pieces-with-room", fragments(40, 50), "20m"),
    Case("SerinusGpuMemoryFragmented", "full-and-whole", fragments(10, 5), "20m"),
    Case("SerinusGpuAllocationRetries", "retried", cuda(alloc_retries_total="0x5 0+1x55"), "20m", [DEVICE]),
    Case("SerinusGpuAllocationRetries", "long-ago", cuda(alloc_retries_total="7x60"), "20m"),
    Case("SerinusGpuOutOfMemory", "failed", cuda(ooms_total="0x10 1x50"), "12m", [DEVICE]),
    Case("SerinusGpuOutOfMemory", "long-ago", cuda(ooms_total="1x60"), "12m"),
    Case("SerinusMemoryRestart", "drained", [gauge("serinus_memory_restart_pending", "0x5 1 0x30")], "9m", [PROCESS]),
    Case("SerinusMemoryRestart", "a-worker", [restarts("memory", "0x5 1x30")], "9m", [PROCESS]),
    Case("SerinusMemoryRestart", "an-hour-ago", [gauge("serinus_memory_restart_pending", "0x5 1 0x90")], "60m"),
    Case("SerinusMemoryRestart", "never", [gauge("serinus_memory_restart_pending", "0x60")], "9m"),
    Case("SerinusMemoryRestart", "a-worker-for-another-reason", [restarts("ended", "0x5 1x30")], "9m"),
    Case(
        "SerinusModelHangs",
        "once",
        [(f"serinus_model_hangs_total{{{MODEL}}}", "0x5 1x30")],
        "7m",
        [{**WHO, "pod": "fraud-0"}],
    ),
    Case("SerinusModelHangs", "an-hour-ago", [(f"serinus_model_hangs_total{{{MODEL}}}", "0x5 1x90")], "60m"),
    Case("SerinusWorkersRestarting", "four-times", [restarts("silent", "0 1 1 2 2 3 3 4x30")], "15m", [PROCESS]),
    Case(
        "SerinusWorkersRestarting",
        "a-models-process",
        [(f'serinus_model_process_restarts_total{{{MODEL}, reason="ended"}}', "0 1 1 2 2 3 3 4x30")],
        "15m",
        [PROCESS],
    ),
    Case("SerinusWorkersRestarting", "once", [restarts("ended", "0 1x30")], "15m"),
    Case("SerinusWorkersRestarting", "for-memory", [restarts("memory", "0 1 1 2 2 3 3 4x30")], "15m"),
    # promtool's clock begins at 0: the number is how many seconds are left then.
    Case("SerinusCertificateExpires", "in-three-days", [expiry(3)], "70m", [{**CERTIFICATE, "window": "7d"}]),
    Case(
        "SerinusCertificateExpires",
        "in-half-a-day",
        [expiry(0.5)],
        "70m",
        [{**CERTIFICATE, "window": "7d"}, {**CERTIFICATE, "window": "1d"}],
    ),
    Case("SerinusCertificateExpires", "in-a-month", [expiry(30)], "70m"),
    Case(
        "SerinusCertificateExpires",
        "exchanged-in-time",
        [(expiry(3)[0], f"{3 * 86400}x30 {90 * 86400}x60")],
        "70m",
    ),
    Case(
        "SerinusModelUntrusted",
        "refused",
        [gauge("serinus_model_signature_refusals_total", "0x5 2x30")],
        "7m",
        [PROCESS],
    ),
    Case("SerinusModelUntrusted", "an-hour-ago", [gauge("serinus_model_signature_refusals_total", "0x5 2x90")], "60m"),
    Case("SerinusEventLoopLate", "late", lag("0+1000x60", "0+1100x60"), "20m", [PROCESS]),
    Case("SerinusEventLoopLate", "held", [gauge("serinus_loop_held_total", "0+1x60")], "20m", [PROCESS]),
    Case("SerinusEventLoopLate", "late-for-a-minute", lag("0+1000x10 10000x50", "0+1000x10 10900x50"), "20m"),
    Case(
        "SerinusEventLoopLate",
        "in-time",
        [*lag("0+1000x60", "0+1001x60"), gauge("serinus_loop_held_total", "3x60")],
        "20m",
    ),
    Case("SerinusOverloaded", "half-refused", [STEADY, counts("rejected", "0+600x60")], "25m", [WHO]),
    Case("SerinusOverloaded", "one-in-ten", [STEADY, counts("rejected", "0+66x60")], "25m"),
    Case(
        "SerinusGpuMemoryNearlyFull",
        "full",
        [
            ('DCGM_FI_DEV_FB_USED{Hostname="n1", gpu="0"}', "80000x60"),
            ('DCGM_FI_DEV_FB_FREE{Hostname="n1", gpu="0"}', "1000x60"),
        ],
        "20m",
        [{"Hostname": "n1", "gpu": "0"}],
    ),
    Case(
        "SerinusGpuMemoryNearlyFull",
        "half",
        [
            ('DCGM_FI_DEV_FB_USED{Hostname="n1", gpu="0"}', "40000x60"),
            ('DCGM_FI_DEV_FB_FREE{Hostname="n1", gpu="0"}', "40000x60"),
        ],
        "20m",
    ),
]


def severities(case: Case) -> list[str]:
    """As exp_samples of the ALERTS series want them, severity filled in from the rule."""
    found = []
    for labels in case.firing:
        severity = next(
            rule["labels"]["severity"]
            for rule in alerting_rules()
            if rule["alert"] == case.alert and rule["labels"].get("window") == labels.get("window")
        )
        all_labels = {
            "__name__": "ALERTS",
            "alertname": case.alert,
            "alertstate": "firing",
            "severity": severity,
            **labels,
        }
        inner = ", ".join(f'{name}="{value}"' for name, value in all_labels.items() if name != "__name__")
        found.append(f"ALERTS{{{inner}}}")
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.name}")
def test_an_alert_fires_on_its_fault_and_is_silent_beside_it(case: Case, tmp_path: Path):
    unit = {
        "interval": case.every,
        "input_series": [{"series": name, "values": values} for name, values in case.series],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{case.alert}", alertstate="firing"}}',
                "eval_time": case.at,
                "exp_samples": [{"labels": labels, "value": 1} for labels in severities(case)],
            }
        ],
    }
    # Days by the minute take seconds of CPU. Groups are evaluated in no order, so an alert may see what was recorded a round before: that has
    # to be younger than Prometheus' lookback of five minutes.
    every = "4m" if int(case.at[:-1]) > 600 else case.every
    test = {"rule_files": [str(write_rules(tmp_path, alert=case.alert))], "evaluation_interval": every, "tests": [unit]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test, sort_keys=False))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent():
    named = {rule["alert"] for rule in alerting_rules()}
    assert {case.alert for case in CASES if case.firing} == named
    assert {case.alert for case in CASES if not case.firing} == named


def test_the_rules_pass_promtool(tmp_path: Path):
    done = promtool("check", "rules", write_rules(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr


def test_every_alert_says_what_where_how_grave_and_what_to_do():
    for rule in alerting_rules():
        annotations = rule["annotations"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"\d+[mhd]", rule["for"])
        assert annotations["summary"].endswith(".")
        assert "$labels." in annotations["description"]
        assert annotations["runbook"] == f"manifests/monitoring/RUNBOOKS.md#{rule['alert'].lower()}"
        assert re.fullmatch(r"/d/serinus-on-call\?viewPanel=\d+", annotations["runbook_url"])


def test_a_label_that_a_description_names_is_one_of_its_expression():
    """promtool renders an unknown label as nothing."""
    for rule in alerting_rules():
        fired = [set(labels) for case in CASES if case.alert == rule["alert"] for labels in case.firing]
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["description"]):
            assert all(label in labels for labels in fired), (rule["alert"], label)
