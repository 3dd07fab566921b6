"""The table of all metrics in METRICS.md, read off a real server's page: `make metrics-table` writes it, a test holds it.

A server of two workers with a score, a revision and models in processes exports every family but those of CUDA's memory, which are taken from the
function that writes them, and those that need a certificate or a signed model, which are found in the source.
"""

from __future__ import annotations

import ast
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from serinus.dataplane.telemetry import cuda_memory
from serinus.dataplane.telemetry.events import EVENTS
from serve_support import serving

__all__ = ["BEGIN", "END", "PAGE", "make_table"]

PAGE = Path(__file__).resolve().parents[2] / "runtimes" / "serinus" / "METRICS.md"
BEGIN, END = "<!-- metrics-table -->\n", "<!-- /metrics-table -->"
_CLASS = """
from serinus import Model, TensorSpec


class Served(Model):
    inputs = outputs = (TensorSpec("x", "FP32", (-1,)),)

    def predict(self, inputs, call):
        return inputs
"""
_LABELS = {
    "serinus_tls_certificate_expiry_timestamp_seconds": ["certificate"],
    "serinus_model_digest_info": ["model", "version", "digest"],
}
"""Of families that this server has no reason to export."""
_UNITS = (
    (r"_seconds(_total)?$|_secs$", "seconds"),
    (r"_us$", "microseconds"),
    (r"_bytes_per_hour$", "bytes per hour"),
    (r"_bytes$", "bytes"),
    (r"_rows(_total)?$|^nv_inference_count$", "rows"),
    (r"request|^serinus_transport", "requests"),
    (r"executions_total$|exec_count$", "predicts"),
    (r"_ready$|_pending$", "0 or 1"),
    (r"^serinus_score$", "the model's own"),
    (r"", "number"),
)
"""Pattern of a name, and its unit; the first that is found."""


def make_table() -> str:
    """Start the server, ask it once rightly and once wrongly, and write its families."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "served.py").write_text(_CLASS)
        flags = ["--class", f"{folder}/served.py:Served", "--model_name", "m", "--execution", "process"]
        flags += ["--workers", "2", "--revision", "r", "--score_output", "x"]
        with serving(Path(folder), *flags) as served:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}
            assert served.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]})[0] == 200
            assert served.ask("POST", "/v2/models/m/infer", b"{")[0] == 400
            with urllib.request.urlopen(f"http://127.0.0.1:{served.http_port}/metrics", timeout=30) as answer:
                page = answer.read().decode()
    rows = [*_families(page), *_events(page), *_conditional(page), *_cuda()]
    head = ["| metric | type | labels | unit | means |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _families(page: str) -> Iterator[str]:
    for name, text, kind in re.findall(r"^# HELP (\S+) (.*)\n# TYPE \S+ (\S+)$", page, re.MULTILINE):
        if name in EVENTS:
            continue  # there is a series once the model is so executed that it can happen
        sample = re.search(rf"^{name}(?:_sum)?(?:{{(.*?)}})? ", page, re.MULTILINE)
        labels = re.findall(r'(\w+)="', sample[1] or "") if sample is not None else []
        yield _row(name, kind, [label for label in labels if label != "revision"], text)


def _events(page: str) -> Iterator[str]:
    for name, (text, labels) in EVENTS.items():
        assert labels or f"# HELP {name} {text}\n" in page
        yield _row(name, "counter", list(labels), text)


def _conditional(page: str) -> Iterator[str]:
    for path in sorted((PAGE.parent).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "Family":
                continue
            told = [part.value for part in node.args[:3] if isinstance(part, ast.Constant)]
            if len(told) == 3 and told[0].startswith("serinus_") and f"# HELP {told[0]} " not in page:
                yield _row(told[0], told[2], _LABELS[told[0]], told[1])


def _cuda() -> Iterator[str]:
    counts = {key: 0 for table in (cuda_memory._GAUGES, cuda_memory._COUNTERS) for key, _ in table.values()}
    for family in cuda_memory.families(counts, (0, 0), 0, 0, "0"):
        yield _row(family.name, family.kind, list(family.samples[0][0]), family.help)


def _row(name: str, kind: str, labels: list[str], text: str) -> str:
    unit = next(unit for pattern, unit in _UNITS if re.search(pattern, name))
    return f"| `{name}` | {kind} | {', '.join(labels)} | {unit} | {text.replace('|', '/')} |"


if __name__ == "__main__":
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + make_table() + END + rest.partition(END)[2])
