"""Writes the dashboards beside this file: `make dashboards`.

Change them here and in the modules beside it, never in the JSON or in Grafana (they are read-only there); a test holds that both are equal.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from on_call import on_call
from panels import CHOSEN, Lines, Number, Panel, build
from queries import COUNTED, FAILED, REFUSED, SERVING, mean, quantile, rate, share

__all__ = ["dashboards"]

HERE = Path(__file__).resolve().parent


def overview() -> Dashboard:
    """The state of every service, and where the time of its requests goes."""
    name = "{{inferenceservice}} {{model}}"
    rows: list[tuple[str, list[Panel]]] = [
        (
            "Now",
            [
                Number("Requests", f"sum({rate('serinus_requests_total')})", "reqps"),
                Number(
                    "Failing",
                    f"sum({rate('serinus_requests_total', FAILED)}) / sum({rate('serinus_requests_total', COUNTED)})",
                    "percentunit",
                    "Failed, timed out or refused; what clients did wrong or gave up is not counted.",
                ),
                Number("p99", f"histogram_quantile(0.99, sum by (le) ({rate('serinus_request_seconds_bucket')}))", "s"),
                Number(
                    "Waiting, p95",
                    f"histogram_quantile(0.95, sum by (le) ({rate('serinus_queue_seconds_bucket')}))",
                    "s",
                ),
                Number("Pods scraped", f"count(up{{{CHOSEN}}} == 1)"),
                Number("Models ready", f"sum(serinus_model_ready{{{CHOSEN}}})"),
            ],
        ),
        (
            "Requests",
            [
                Lines(
                    "Requests by service",
                    [(f"sum by (inferenceservice, model) ({rate('serinus_requests_total')})", name)],
                    "reqps",
                ),
                Lines(
                    "Requests by outcome",
                    [(f"sum by (outcome) ({rate('serinus_requests_total')})", "{{outcome}}")],
                    "reqps",
                ),
                Lines("Failing", [(share("inferenceservice, model", FAILED), name)], "percentunit"),
                Lines(
                    "Latency",
                    [(quantile(q, "serinus_request_seconds"), f"p{q * 100:g} {name}") for q in (0.5, 0.95, 0.99)],
                    "s",
                    "From the data plane's door to the answer; successes only.",
                ),
                Lines(
                    "Where the time goes",
                    [
                        (
                            f"sum({rate(f'serinus_{part}_seconds_sum')}) / sum({rate('serinus_request_seconds_count')})",
                            part,
                        )
                        for part in ("queue", "compute_input", "compute_infer", "compute_output")
                    ],
                    "s",
                    "Mean of each part of a request. A wide queue asks for replicas; a wide compute_infer for the model.",
                ),
                Lines(
                    "Errors that reached no model",
                    [
                        (
                            f"sum by (transport, code) ({rate('serinus_transport_errors_total')})",
                            "{{transport}} {{code}}",
                        )
                    ],
                    "reqps",
                    "Bodies that do not decode, paths and models that are not there. The series begins with the first one.",
                ),
            ],
        ),
        (
            "Batches",
            [
                Lines("Rows a batch", [(mean("serinus_batch_rows"), name)]),
                Lines(
                    "Rows and predicts",
                    [
                        (f"sum by (inferenceservice, model) ({rate('serinus_rows_total')})", f"rows {name}"),
                        (f"sum by (inferenceservice, model) ({rate('serinus_executions_total')})", f"predicts {name}"),
                    ],
                    "ops",
                ),
                Lines(
                    "Waiting",
                    [
                        (f"sum by (inferenceservice, model) (serinus_queue_requests{{{CHOSEN}}})", f"requests {name}"),
                        (
                            f"sum by (inferenceservice, model) (serinus_requests_in_flight{{{CHOSEN}}})",
                            f"in flight {name}",
                        ),
                    ],
                ),
            ],
        ),
        (
            "Processes",
            [
                Lines(
                    "Processors", [(f"sum by (inferenceservice, pod) ({rate('process_cpu_seconds_total')})", "{{pod}}")]
                ),
                Lines(
                    "Resident memory",
                    [(f"sum by (pod, container) (process_resident_memory_bytes{{{CHOSEN}}})", "{{pod}} {{container}}")],
                    "bytes",
                ),
                Lines(
                    "Load of models",
                    [(f"max by (inferenceservice, model) (serinus_model_load_seconds{{{CHOSEN}}})", name)],
                    "s",
                ),
            ],
        ),
    ]
    return build(
        "serinus-overview", "Services", "How many requests, how fast, how many fail, and where their time goes.", rows
    )


def canary() -> Dashboard:
    """Each revision of a service beside the others."""
    by, name = "inferenceservice, component, revision", "{{revision}}"
    per_request = (
        f"sum by ({by}) ({rate('process_cpu_seconds_total')}) / sum by ({by}) ({rate('serinus_requests_total')})"
    )
    rows: list[tuple[str, list[Panel]]] = [
        (
            "Traffic",
            [
                Lines("Requests", [(f"sum by ({by}) ({rate('serinus_requests_total')})", name)], "reqps"),
                Lines(
                    "Share",
                    [
                        (
                            (
                                f"sum by ({by}) ({rate('serinus_requests_total')})"
                                f" / on (inferenceservice, component) group_left sum by (inferenceservice, component) ({rate('serinus_requests_total')})"
                            ),
                            name,
                        )
                    ],
                    "percentunit",
                    "What the gateway really gives a revision; compare it with the weight that was asked for.",
                ),
                Lines("Pods", [(f"count by ({by}) (up{{{CHOSEN}}} == 1)", name)]),
            ],
        ),
        (
            "Is it as good?",
            [
                Lines("Failing", [(share(by, FAILED), name)], "percentunit"),
                Lines(
                    "Refused by the model's checks",
                    [(share(by, 'outcome="invalid"'), name)],
                    "percentunit",
                    "Both versions get the same clients: a difference is the version's.",
                ),
                Lines("Refused or timed out", [(share(by, REFUSED), name)], "percentunit"),
                Lines("Latency p50", [(quantile(0.5, "serinus_request_seconds", by), name)], "s"),
                Lines("Latency p99", [(quantile(0.99, "serinus_request_seconds", by), name)], "s"),
                Lines("Predict, mean", [(mean("serinus_compute_infer_seconds", by), name)], "s"),
            ],
        ),
        (
            "Does it answer the same?",
            [
                Lines(
                    title,
                    [(quantile(q, "serinus_score", f"{by}, output"), f"{name} {{{{output}}}}")],
                    "short",
                    "Of the model's score, where one is declared; as exact as its bins.",
                    12,
                )
                for title, q in (("Score, median", 0.5), ("Score, p90", 0.9))
            ],
        ),
        (
            "What does it cost?",
            [
                Lines("Waiting, p95", [(quantile(0.95, "serinus_queue_seconds", by), name)], "s"),
                Lines("Processor time a request", [(per_request, name)], "s"),
                Lines(
                    "Resident memory a pod",
                    [(f"avg by ({by}) (process_resident_memory_bytes{{{CHOSEN}}})", name)],
                    "bytes",
                ),
                Lines("Rows a batch", [(mean("serinus_batch_rows", by), name)]),
            ],
        ),
    ]
    words = (
        "Revisions of a service side by side. Eyes see large differences; `serinus canary run` judges small ones too."
    )
    return build("serinus-canary", "Canary", words, rows)


def gpu() -> Dashboard:
    """What the allocator of PyTorch holds and wastes, what the driver says, and the memory of the host."""
    name = "{{pod}} {{device}}"

    def cuda(metric: str) -> str:
        return f"sum by (pod, device) (serinus_cuda_memory_{metric}{{{CHOSEN}}})"

    rows: list[tuple[str, list[Panel]]] = [
        (
            "GPU memory of a process (PyTorch)",
            [
                Lines(
                    "Allocated and reserved",
                    [(cuda(f"{part}_bytes"), f"{part} {name}") for part in ("allocated", "reserved", "peak")],
                    "bytes",
                    "Reserved minus allocated is cache, which later tensors take: no harm by itself.",
                ),
                Lines(
                    "Fragmentation",
                    [(f"{cuda('inactive_split_bytes')} / {cuda('reserved_bytes')}", name)],
                    "percentunit",
                    "Of what is reserved: free pieces of blocks that are in use. empty_cache gives none of it back.",
                ),
                Lines(
                    "Lost to rounding",
                    [(f"{cuda('allocated_bytes')} - {cuda('requested_bytes')}", name)],
                    "bytes",
                    "Allocated minus requested.",
                ),
                Lines(
                    "Largest free block",
                    [(cuda("largest_free_bytes"), name)],
                    "bytes",
                    "A larger tensor needs new memory of the driver.",
                ),
                Lines(
                    "Allocation retries",
                    [
                        (
                            f"sum by (pod, device) (increase(serinus_cuda_memory_alloc_retries_total{{{CHOSEN}}}[10m]))",
                            name,
                        )
                    ],
                    "short",
                    "In 10 minutes: the first sign of too little memory.",
                ),
                Lines(
                    "Out of memory",
                    [(f"sum by (pod, device) (increase(serinus_cuda_memory_ooms_total{{{CHOSEN}}}[10m]))", name)],
                    "short",
                    "Allocations that failed in 10 minutes.",
                ),
                Lines(
                    "Device: free",
                    [
                        (
                            f"min by (pod, device) (serinus_cuda_memory_device_free_bytes{{{CHOSEN}}} / serinus_cuda_memory_device_total_bytes{{{CHOSEN}}})",
                            name,
                        )
                    ],
                    "percentunit",
                    "As the driver says, of all processes on the device.",
                ),
            ],
        ),
        (
            "GPUs (NVIDIA's DCGM exporter)",
            [
                Lines(
                    "Utilization",
                    [("max by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL)", "{{Hostname}} {{gpu}}")],
                    "percent",
                ),
                Lines(
                    "Memory in use",
                    [
                        (
                            "max by (Hostname, gpu) (DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE))",
                            "{{Hostname}} {{gpu}}",
                        )
                    ],
                    "percentunit",
                    "The caches of PyTorch, TensorFlow and ONNX Runtime count as used.",
                ),
            ],
        ),
        (
            "Memory of the host",
            [
                Lines(
                    "Resident",
                    [(f"sum by (pod, container) (process_resident_memory_bytes{{{CHOSEN}}})", "{{pod}} {{container}}")],
                    "bytes",
                ),
                Lines(
                    "Of the container's limit",
                    [
                        (
                            (
                                f"max by (pod, container) (container_memory_working_set_bytes{{{SERVING}}})"
                                f' / on (pod, container) max by (pod, container) (kube_pod_container_resource_limits{{{SERVING}, resource="memory"}})'
                            ),
                            "{{pod}} {{container}}",
                        )
                    ],
                    "percentunit",
                    "The kernel ends the container at 100 %.",
                ),
            ],
        ),
    ]
    return build("serinus-gpu", "GPU and memory", "Whether memory is short, and why: used, cached, or in pieces.", rows)


def dashboards() -> dict[str, str]:
    """The JSON of each dashboard by the name of its file."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    boards = {"services": overview(), "canary": canary(), "gpu": gpu(), "on-call": on_call()}
    return {f"{name}.json": encoder.encode(board.build()) + "\n" for name, board in boards.items()}


if __name__ == "__main__":
    for file, content in dashboards().items():
        (HERE / file).write_text(content)
