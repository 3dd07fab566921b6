"""What operators write: manifests, read by the linter and by who runs them here, and kustomizations, policies, files of looks, conditions of graphs (GJSON)."""

from __future__ import annotations

from pathlib import Path

import orjson

from reliability.fuzz.targets import in_file, target
from serinus.canary.looks import parse_look
from serinus.canary.policy import parse_policy
from serinus.canary.policy_annotation import parse_annotation
from serinus.errors import ConfigError
from serinus.local.plan.deployment_plan import PlanOptions
from serinus.local.plan.plan_loader import load
from serinus.manifests.graphs import gjson_path
from serinus.manifests.kustomization import kustomization_files
from serinus.manifests.reading import check

__all__: list[str] = []

ROOT = Path(__file__).resolve().parents[3]


def _text(data: bytes) -> str:
    """As a file is read: what is not UTF-8 is refused there."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(str(error)) from None


SELDOM = b"""
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: seldom}
spec:
  predictor:
    storageUris: [{uri: "gs://bucket/one", mountPath: /mnt/one}, {uri: "gs://bucket/two", mountPath: /mnt/two}]
    containers: [{name: kserve-container, image: a/b:1, env: [{name: A, value: b}, {name: C, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]
"""
"""Fields that no manifest of this repository has."""


def _manifests() -> list[bytes]:
    found = [*(ROOT / "inferenceservices").rglob("*.yaml"), *(ROOT / "manifests" / "base").rglob("*.yaml")]
    return [SELDOM, *[path.read_bytes() for path in sorted(found) if path.stat().st_size < 4000][:40]]


def _services() -> list[bytes]:
    """Those of this repository that run on one machine, and what they seldom say."""
    canary = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: demo, annotations: {serving.kserve.io/deploymentMode: Standard}}
spec:
  predictor: {minReplicas: 4, model: {modelFormat: {name: sklearn}, storageUri: "gs://bucket/model"}}
  canary:
  - trafficPercent: 10
    predictor: {name: v2, model: {modelFormat: {name: sklearn}, storageUri: "gs://bucket/v2"}}
"""
    return [canary.encode(), *(text for text in _manifests() if b"kind: InferenceService" in text)]


def _kustomizations() -> list[bytes]:
    found = [*ROOT.glob("manifests/**/kustomization.yaml"), *ROOT.glob("inferenceservices/**/kustomization.yaml")]
    ran_together = b"resources:\n- " + b"- a.yaml " * 60  # found by atheris: longer than the name of any file
    return [*[path.read_bytes() for path in sorted(found)][:20], ran_together]


def _policies() -> list[bytes]:
    whole = (ROOT / "runtimes" / "serinus" / "canary" / "default_policy.yaml").read_bytes()
    bare = b"\n".join(line for line in whole.splitlines() if not line.lstrip().startswith(b"#"))
    return [whole, bare, b"level: 0.1\nsteps: [50, 100]\nguardrails: {errors: {margin_percentage_points: 1}}\n"]


def _looks() -> list[bytes]:
    arm = {"requests": 100, "errors": 1, "affinity_keys": 30, "rates": {"clicks": {"count": 10, "events": 4}}}
    return [
        orjson.dumps({"run": "r", "seconds": 60, "percent": 10, "stable": arm, "canary": arm}),
        orjson.dumps({"seconds": 1.5, "stable": {"requests": 1}, "canary": {"requests": 0}}),
    ]


def _gjson(data: bytes) -> object:
    """The path, and behind a zero byte the document."""
    path, _, document = data.partition(b"\0")
    try:
        value = orjson.loads(document or b'{"a":[{"b":1,"c":"x"},{"b":2}],"d":{"e":null},"f":"[1]"}')
        text = path.decode()
    except ValueError:
        return None
    gjson_path.condition_problem(text)
    return gjson_path.evaluate(value, text)


target("manifests", in_file("manifest.yaml", lambda path: check([path])), _manifests)
target("plans", in_file("service.yaml", lambda path: load(path, [Path("kserve")], PlanOptions())), _services)
target(
    "kustomization", in_file("kustomization.yaml", lambda path: list(kustomization_files(path.parent))), _kustomizations
)
target("policy", lambda data: parse_policy(_text(data)), _policies)
target("policy_annotation", lambda data: parse_annotation(_text(data), "here"), _policies)
target("looks", parse_look, _looks)
target(
    "gjson",
    _gjson,
    lambda: [
        b"a.#(b>1).c",
        b"a.#.b|@reverse",
        b"d.e",
        b'{"x":a.0.b,"y":d}',
        b'a.#(c%"x*")#|0',
        b"..0.a",
        b"f|@fromstr.0",
        b"[a,!true]",
        b'd.@keys\0{"d":{}}',
    ],
)
