"""Every rule: what breaks it, and what does not. A rule is asked alone, so no other can stand in for it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from serinus.manifests.documents import load_text
from serinus.manifests.rules.canary_rules import CANARY_RULES
from serinus.manifests.rules.component_pitfalls import COMPONENT_PITFALLS, PORT_PITFALLS
from serinus.manifests.rules.component_rules import COMPONENT_RULES
from serinus.manifests.rules.container_rules import CONTAINER_RULES
from serinus.manifests.rules.rule import Block, Finding, Rule, ServiceView
from serinus.manifests.rules.runtime_rules import RUNTIME_RULES, shared_priorities
from serinus.manifests.rules.scaling_rules import SCALING_RULES
from serinus.manifests.rules.service_pitfalls import SERVICE_PITFALLS, TRANSFORMER_PITFALLS
from serinus.manifests.rules.service_rules import OBJECT_RULES, SERVICE_RULES
from serinus.manifests.rules.storage_rules import STORAGE_RULES

BLOCK_RULES = (*CONTAINER_RULES, *COMPONENT_RULES, *STORAGE_RULES, *SCALING_RULES, *COMPONENT_PITFALLS)
SERVICES = (*SERVICE_RULES, *CANARY_RULES, *SERVICE_PITFALLS, *TRANSFORMER_PITFALLS)
RULES: dict[str, Rule[Any]] = {rule.id: rule for rule in (*BLOCK_RULES, *SERVICES, *OBJECT_RULES, *RUNTIME_RULES)}

MODE = "{serving.kserve.io/deploymentMode: Standard}"
KEDA = "{serving.kserve.io/deploymentMode: Standard, serving.kserve.io/autoscalerClass: keda}"
NONE = "{serving.kserve.io/autoscalerClass: none}"
HPA = "{serving.kserve.io/autoscalerClass: hpa}"
KNATIVE_HPA = "{autoscaling.knative.dev/class: hpa.autoscaling.knative.dev}"
LONG = "/" + "a" * 254
TOO_LONG = LONG + "a"


def container(**fields: str) -> str:
    return "{name: kserve-container, " + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}"


# Rule, part of the service (`predictor` unless it begins with another), annotations, block; then the paths that are found below it.
BLOCKS: list[tuple[str, str, str, list[str]]] = [
    ("container-pythonpath", "", "containers: [{env: [{name: PYTHONPATH}]}]", ["containers[0].env[0]"]),
    ("container-pythonpath", "", "model: {env: [{name: A}, {name: PYTHONPATH}]}", ["model.env[1]"]),
    ("container-pythonpath", "", "initContainers: [{env: [{name: PYTHONPATH}]}]", ["initContainers[0].env[0]"]),
    ("container-pythonpath", "", "containers: [{env: [{name: PATH}]}]", []),
    ("container-transformer-storage", "", "containers: [{name: transformer-container, env: [{name: STORAGE_URI}]}]", ["containers[0].env[0]"]),
    ("container-transformer-storage", "", "containers: [{name: kserve-container, env: [{name: STORAGE_URI}]}]", []),
    ("container-transformer-storage", "", "containers: [{name: transformer-container, env: [{name: A}]}]", []),
    ("container-custom-protocol", "", "containers: [{env: [{name: PROTOCOL, value: grpc-v2}]}]", ["containers[0].env[0].value"]),
    ("container-custom-protocol", "", "containers: [{env: [{name: PROTOCOL, value: v2}]}, {env: [{name: PROTOCOL, value: v1}]}]", []),
    ("container-custom-protocol", "", "model: {env: [{name: PROTOCOL, value: x}]}", []),
    ("container-custom-protocol", "transformer", "containers: [{env: [{name: PROTOCOL, value: x}]}]", []),
    ("container-quantities", "", "containers: [{resources: {limits: {memory: 2GB}}}]", ["containers[0].resources.limits.memory"]),
    ("container-quantities", "", "model: {resources: {requests: {cpu: x}}}", ["model.resources.requests.cpu"]),
    ("container-quantities", "", "workerSpec: {containers: [{resources: {limits: {cpu: x}}}]}", ["workerSpec.containers[0].resources.limits.cpu"]),
    ("container-quantities", "", "containers: [{resources: {limits: {memory: 2Gi, cpu: 1}}}]", []),
    ("component-name-inside-model", "", "model: {name: a}", ["model.name"]),
    ("component-name-inside-model", "", "sklearn: {name: a}", ["sklearn.name"]),
    ("component-name-inside-model", "", "model: {runtime: a}", []),
    ("component-name-inside-model", "transformer", "model: {name: a}", []),
    ("component-one-implementation", "", "minReplicas: 1", [""]),
    ("component-one-implementation", "", "model: {}\nsklearn: {}", ["model"]),
    ("component-one-implementation", "", "model: {}\ncontainers: [{name: kserve-container}]", ["containers"]),
    ("component-one-implementation", "", "model: {}\ncontainers: [{name: side}]", []),
    ("component-one-implementation", "", "containers: [{name: any}]", []),
    ("component-one-implementation", "transformer", "minReplicas: 1", [""]),
    ("component-one-implementation", "transformer", "containers: [{name: a}]", []),
    ("component-one-implementation", "explainer", "art: {type: a}", []),
    ("component-one-implementation", "explainer", "art: {type: a}\ncontainers: [{name: a}]", ["containers"]),
    ("component-replicas-not-negative", "", "minReplicas: -1\nmaxReplicas: -2\ncontainerConcurrency: -3",
        ["containerConcurrency", "minReplicas", "maxReplicas"]),
    ("component-replicas-not-negative", "", "minReplicas: 0\nmaxReplicas: 0\ncontainerConcurrency: 0", []),
    ("component-replicas-in-order", "", "minReplicas: 3\nmaxReplicas: 2", ["minReplicas"]),
    ("component-replicas-in-order", "", "minReplicas: 2\nmaxReplicas: 2", []),
    ("component-replicas-in-order", "", "minReplicas: 0\nmaxReplicas: 1", []),
    ("component-replicas-in-order", "", "minReplicas: 3\nmaxReplicas: 0", []),
    ("component-replicas-in-order", "", "maxReplicas: 1", []),
    ("component-replicas-in-order", "", "minReplicas: 9", []),
    ("component-logger-mode", "", "logger: {url: a}", ["logger.mode"]),
    ("component-logger-mode", "", "logger: {mode: ''}", ["logger.mode"]),
    ("component-logger-mode", "", "logger: {mode: all}", []),
    ("component-logger-storage", "", "logger: {mode: all, storage: {}}", ["logger.storage.path", "logger.storage.parameters", "logger.storage.key"]),
    ("component-logger-storage", "", "logger: {mode: all, storage: {path: a, parameters: {b: c}, key: d}}", []),
    ("component-logger-storage", "", "logger: {mode: all}", []),
    ("component-predictor-name", "", "name: V2", ["name"]),
    ("component-predictor-name", "", "name: v-", ["name"]),
    ("component-predictor-name", "", "name: v2", []),
    ("component-predictor-name", "transformer", "name: V2", []),
    ("storage-confidential-needs-uri", "", "model: {confidential: {a: b}}", ["model.confidential"]),
    ("storage-confidential-needs-uri", "", "model: {confidential: {a: b}, storageUri: gs://a}", []),
    ("storage-uris-not-empty", "", "storageUris: []", ["storageUris"]),
    ("storage-uris-not-empty", "", "storageUris: [{uri: ''}]", ["storageUris[0].uri"]),
    ("storage-uris-not-empty", "", "storageUris: [{uri: gs://a}]", []),
    ("storage-uris-exclude-uri", "", "storageUris: [{uri: gs://a}]\nmodel: {storageUri: gs://b}", ["storageUris"]),
    ("storage-uris-exclude-uri", "", "storageUris: [{uri: gs://a}]\nmodel: {}", []),
    ("storage-uris-exclude-uri", "", "model: {storageUri: gs://b}", []),
    *(("storage-mount-path", "", f"storageUris: [{{uri: gs://a, mountPath: {path}}}]", ["storageUris[0].mountPath"])
        for path in ("/", "a", "/a/../b", TOO_LONG)),
    *(("storage-mount-path", "", f"storageUris: [{{uri: gs://a, mountPath: {path}}}]", []) for path in ("/a", "/a..b/c", "/mnt/models/", LONG)),
    ("storage-mount-path", "", "storageUris: [{uri: gs://a}]", []),
    ("storage-volumes-apart", "", "storageUris: [{uri: pvc://a, mountPath: /m}, {uri: pvc://b, mountPath: /m/}]", ["storageUris[1].mountPath"]),
    ("storage-volumes-apart", "", "storageUris: [{uri: pvc://a, mountPath: /m}, {uri: pvc://b, mountPath: /n}]", []),
    ("storage-volumes-apart", "", "storageUris: [{uri: gs://a, mountPath: /m}, {uri: pvc://b, mountPath: /m}]", []),
    ("storage-common-parent", "", "storageUris: [{uri: gs://a, mountPath: /m/a}, {uri: s3://b, mountPath: /n/b}]", ["storageUris"]),
    ("storage-common-parent", "", "storageUris: [{uri: gs://a, mountPath: /m/a}, {uri: s3://b, mountPath: /m/b/}, {uri: pvc://c, mountPath: /n/c}]", []),
    ("scaling-hpa-metric", MODE, "scaleMetric: rps", ["scaleMetric"]),
    ("scaling-hpa-metric", MODE, "scaleMetric: memory", []),
    ("scaling-hpa-metric", MODE, "minReplicas: 1", []),
    ("scaling-hpa-metric", KEDA, "scaleMetric: rps", []),
    ("scaling-hpa-metric", "{}", "scaleMetric: rps", []),
    ("scaling-hpa-target", MODE, "scaleTarget: 101", ["scaleTarget"]),
    ("scaling-hpa-target", MODE, "scaleTarget: 0", ["scaleTarget"]),
    ("scaling-hpa-target", MODE, "scaleTarget: 1", []),
    ("scaling-hpa-target", MODE, "scaleTarget: 100", []),
    ("scaling-hpa-target", "{}", "scaleTarget: 101", []),
    ("scaling-hpa-metric-types", MODE, "autoScaling: {metrics: [{type: Resource}, {type: External}]}", ["autoScaling.metrics[1].type"]),
    ("scaling-hpa-metric-types", KEDA, "autoScaling: {metrics: [{type: External}]}", []),
    ("scaling-keda-metric", KEDA, "scaleMetric: cpu", ["scaleMetric"]),
    ("scaling-keda-metric", KEDA, "autoScaling: {metrics: []}", []),
    ("scaling-keda-metric", MODE, "scaleMetric: cpu", []),
    ("scaling-keda-metric-types", KEDA, "autoScaling: {metrics: [{type: Pods}, {}]}", ["autoScaling.metrics[0].type", "autoScaling.metrics[1].type"]),
    ("scaling-keda-metric-types", KEDA, "autoScaling: {metrics: [{type: Resource}, {type: External}, {type: PodMetric}]}", []),
    ("scaling-keda-metric-types", MODE, "autoScaling: {metrics: [{type: Pods}]}", []),
    ("scaling-strategy-of-deployments", "{}", "deploymentStrategy: {}", ["deploymentStrategy"]),
    ("scaling-strategy-of-deployments", MODE, "deploymentStrategy: {}", []),
    ("scaling-strategy-of-deployments", "{}", "minReplicas: 1", []),
    ("scaling-knative-metric", "{}", "scaleMetric: cpu", ["scaleMetric"]),
    ("scaling-knative-metric", "{}", "scaleMetric: concurrency", []),
    ("scaling-knative-metric", KNATIVE_HPA, "scaleMetric: cpu", []),
    ("scaling-knative-metric", MODE, "scaleMetric: cpu", []),
    ("scaling-knative-target", "{}", "scaleMetric: rps\nscaleTarget: 0", ["scaleTarget"]),
    ("scaling-knative-target", "{}", "scaleMetric: rps\nscaleTarget: 1", []),
    ("scaling-knative-target", "{}", "scaleMetric: concurrency\nscaleTarget: 0", []),
    ("scaling-knative-target", MODE, "scaleMetric: rps\nscaleTarget: 0", []),
    ("scaling-worker-sizes", "", "workerSpec: {pipelineParallelSize: 0, tensorParallelSize: -1}",
        ["workerSpec.pipelineParallelSize", "workerSpec.tensorParallelSize"]),
    ("scaling-worker-sizes", "", "workerSpec: {pipelineParallelSize: 1, tensorParallelSize: 2}", []),
    ("scaling-workers-not-scaled", HPA, "workerSpec: {}", ["workerSpec"]),
    ("scaling-workers-not-scaled", NONE, "workerSpec: {}", []),
    ("scaling-workers-not-scaled", "{}", "workerSpec: {}", []),
    ("scaling-workers-not-scaled", HPA, "minReplicas: 1", []),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {storageUri: gs://a}", ["model.storageUri"]),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {storageUri: pvc://a}", []),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {storageUri: oci://a}", []),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {}", []),
    ("scaling-workers-share-storage", "", "model: {storageUri: gs://a}", []),
    ("scaling-workers-one-container", "", "workerSpec: {containers: [{}, {}]}", ["workerSpec.containers"]),
    ("scaling-workers-one-container", "", "workerSpec: {containers: [{}]}", []),
    ("component-model-container-there", "", "containers: [{name: a}, {name: b}]", ["containers"]),
    ("component-model-container-there", "", "containers: [{name: a}]", []),
    ("component-model-container-there", "", "containers: [{name: a}, {name: b}]\nmodel: {runtime: c}", []),
    ("component-model-container-there", "transformer", "containers: [{name: a}, {name: b}]", []),
    ("component-model-container-first", "", "containers: [{name: a}, {name: kserve-container}]", ["containers[0].name"]),
    ("component-model-container-first", "", "containers: [{name: kserve-container}, {name: a}]", []),
    ("component-resources-written", "", "containers: [{resources: {limits: {cpu: 1}}}, {}]", ["containers[0].resources", "containers[1].resources"]),
    ("component-resources-written", "", "containers: [{resources: {limits: {cpu: 1}, requests: {memory: 1}}}]", []),
    ("port-number", "", "containers: [{ports: [{containerPort: 0}, {containerPort: 65536}]}]",
        ["containers[0].ports[0].containerPort", "containers[0].ports[1].containerPort"]),
    ("port-number", "", "containers: [{ports: [{containerPort: 1}, {containerPort: 65535}]}]", []),
    ("port-grpc-named", "", "containers: [{ports: [{containerPort: 8081}, {containerPort: 9000, name: x}]}]",
        ["containers[0].ports[0]", "containers[0].ports[1]"]),
    ("port-grpc-named", "", "containers: [{ports: [{containerPort: 8081, name: grpc-a}, {containerPort: 9000, name: h2c}, {containerPort: 8080}]}]", []),
    ("port-name-short", "", "containers: [{ports: [{name: abcdefghijklmnop}]}]", ["containers[0].ports[0].name"]),
    ("port-name-short", "", "containers: [{ports: [{name: abcdefghijklmno}]}]", []),
    ("port-one-in-knative", "{}", "containers: [{ports: [{containerPort: 1}]}, {ports: [{containerPort: 2}]}]", ["containers"]),
    ("port-one-in-knative", "{}", "containers: [{ports: [{containerPort: 1}]}, {}]", []),
    ("port-one-in-knative", MODE, "containers: [{ports: [{containerPort: 1}, {containerPort: 2}]}]", []),
    ("component-storage-scheme", "", "model: {storageUri: s4://a}", ["model.storageUri"]),
    ("component-storage-scheme", "", "storageUris: [{uri: gs://a}, {uri: gcs://a}]", ["storageUris[1].uri"]),
    ("component-storage-scheme", "", "containers: [{env: [{name: STORAGE_URI, value: x://a}]}]", ["containers[0].env[0].value"]),
    ("component-storage-scheme", "", "model: {storageUri: 'https://a.blob.core.windows.net/b'}", []),
    *(("component-storage-scheme", "", f"model: {{storageUri: '{scheme}://a/b'}}", [])
        for scheme in ("gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "oci+native", "oci+fetch", "hf")),
    ("component-storage-scheme", "", "model: {storageUri: ./models}", []),
]  # fmt: skip


def spelled(path: tuple[str | int, ...]) -> str:
    return re.sub(r"\.\[", "[", ".".join(f"[{part}]" if isinstance(part, int) else part for part in path))


def paths(findings: list[Finding]) -> list[str]:
    assert all(message and mend for _, message, mend in findings)
    return [spelled(path) for path, _, _ in findings]


def case_id(case: tuple[str, str, str, list[str]]) -> str:
    return f"{case[0]}: {case[2][:48]}"


@pytest.mark.parametrize("case", BLOCKS, ids=case_id)
def test_a_rule_of_components_finds_what_breaks_it_and_nothing_else(case):
    rule, where, text, expected = case
    part = where if where in {"transformer", "explainer"} else "predictor"
    annotations = yaml.safe_load(where) if where.startswith("{") else {}
    block = Block(("spec", part), yaml.safe_load(text), annotations)
    found = paths(list(RULES[rule].check(block)))
    assert found == [f"spec.{part}.{path}".rstrip(".") for path in expected]


ISVC = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
NAMED = ISVC + "metadata: {name: fraud}\n"
STANDARD = ISVC + f"metadata: {{name: fraud, annotations: {MODE}}}\n"
STABLE = "spec:\n  predictor: {name: v1, model: {}, minReplicas: 2}\n  canary:\n"


def annotated(text: str) -> str:
    return ISVC + f"metadata: {{name: fraud, annotations: {{{text}}}}}\nspec: {{}}\n"


def split(words: str, ports: str = "", predictor: str = "") -> str:
    return (
        NAMED + f"spec:\n  transformer: {{containers: [{{args: [{words}]}}]}}\n"
        f"  predictor: {{containers: [{{name: kserve-container, ports: [{ports}]}}{predictor}]}}\n"
    )


def collocated(words: str) -> str:
    return NAMED + f"spec: {{predictor: {{containers: [{{}}, {{name: transformer-container, args: [{words}]}}]}}}}\n"


def canaries(*items: str, head: str = STANDARD, stable: str = STABLE) -> str:
    return head + stable + "".join(f"  - {{{item}}}\n" for item in items)


def one(percent: int = 10, predictor: str = "name: v2, model: {}") -> str:
    return f"trafficPercent: {percent}, predictor: {{{predictor}}}"


TRANSFORMER_ARGS = "spec.transformer.containers[0].args"
COLLOCATED_ARGS = "spec.predictor.containers[1].args"
BOTH = NAMED + "spec: {predictor: {canaryTrafficPercent: 10}, transformer: {canaryTrafficPercent: 20}}\n"
PERCENTS = ["spec.predictor.canaryTrafficPercent", "spec.transformer.canaryTrafficPercent"]
SCRAPING = "serving.kserve.io/enable-prometheus-scraping: 'true'"

WHOLE: list[tuple[str, str, list[str]]] = [
    ("object-api-version", ISVC.replace("v1beta1", "v1"), ["apiVersion"]),
    ("object-api-version", ISVC, []),
    ("object-no-key-twice", ISVC + "spec:\n  a: 1\n  a: 2\n", ["spec.a"]),
    ("object-no-key-twice", ISVC + "spec:\n  a: 1\n  b: 2\n", []),
    ("service-name", ISVC, ["metadata.name"]),
    ("service-name", ISVC + "metadata: {name: 7}\n", ["metadata.name"]),
    ("service-name", ISVC + "metadata: {name: Fraud}\n", ["metadata.name"]),
    ("service-name", ISVC + "metadata: {name: 1fraud}\n", ["metadata.name"]),
    ("service-name", NAMED, []),
    ("service-autoscaler-class", annotated("serving.kserve.io/autoscalerClass: kpa"), ["metadata.annotations.serving.kserve.io/autoscalerClass"]),
    *(("service-autoscaler-class", annotated(f"serving.kserve.io/autoscalerClass: {name}"), []) for name in ("hpa", "external", "keda", "none")),
    ("canary-standard-mode", canaries(one(), head=NAMED), ["spec.canary"]),
    ("canary-standard-mode", canaries(one()), []),
    ("canary-stable-has-storage", canaries(one(), stable="spec:\n  predictor: {containers: [{name: kserve-container}]}\n  canary:\n"), ["spec.predictor"]),
    ("canary-stable-has-storage", canaries(one(), stable="spec:\n  predictor: {containers: [{name: a, env: [{name: STORAGE_URI}]}]}\n  canary:\n"),
        ["spec.predictor"]),
    ("canary-stable-has-storage", canaries(one(),
        stable="spec:\n  predictor: {containers: [{name: kserve-container, env: [{name: STORAGE_URI}]}]}\n  canary:\n"),
        []),
    ("canary-stable-has-storage", canaries(one(), stable="spec:\n  predictor: {storageUris: [{uri: gs://a}]}\n  canary:\n"), []),
    ("canary-stable-has-storage", canaries(one()), []),
    ("canary-percent", canaries(one(-1), one(101)), ["spec.canary[0].trafficPercent", "spec.canary[1].trafficPercent"]),
    ("canary-percent", canaries(one(0), one(100)), []),
    ("canary-names", canaries(one(1, "model: {}"), one(1, "name: v1"), one(1, "name: v2"), one(1, "name: v2"), one(1, "name: V3")),
        [f"spec.canary[{n}].predictor.name" for n in (0, 1, 3, 4)]),
    ("canary-names", canaries(one(1, "name: v2"), one(1, "name: v3")), []),
    ("canary-one-implementation", canaries(one(1, "name: v2"), one(1, "model: {}, sklearn: {}")), ["spec.canary[0].predictor", "spec.canary[1].predictor"]),
    ("canary-one-implementation", canaries(one(1, "containers: [{}]"), one(1, "model: {}")), []),
    *(("canary-scaling-is-the-stables", canaries(one(1, f"{key}: 1")), [f"spec.canary[0].predictor.{key}"])
        for key in ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")),
    ("canary-scaling-is-the-stables", canaries(one(1, "minReplicas: 1")), []),
    ("canary-replicas", canaries(one(1, "minReplicas: 3")), ["spec.canary[0].predictor.minReplicas"]),
    ("canary-replicas", canaries(one(1, "minReplicas: 2")), []),
    ("canary-replicas", canaries(one(1, "minReplicas: 2"), stable="spec:\n  predictor: {model: {}}\n  canary:\n"), ["spec.canary[0].predictor.minReplicas"]),
    ("canary-replicas", canaries(one(1, "minReplicas: 1"), stable="spec:\n  predictor: {model: {}}\n  canary:\n"), []),
    ("canary-total", canaries(one(60), one(41)), ["spec.canary"]),
    ("canary-total", canaries(one(60), one(40), "predictor: {}"), []),
    ("service-known-annotations", annotated("serving.kserve.io/deploymentmode: x"), ["metadata.annotations.serving.kserve.io/deploymentmode"]),
    ("service-known-annotations", annotated("serving.kserve.io/stop: 'true', other.io/x: y"), []),
    ("service-known-mode", annotated("serving.kserve.io/deploymentMode: Raw"), ["metadata.annotations.serving.kserve.io/deploymentMode"]),
    *(("service-known-mode", annotated(f"serving.kserve.io/deploymentMode: {mode}"), [])
        for mode in ("Standard", "Knative", "ModelMesh", "RawDeployment", "Serverless")),
    ("service-scraping-needs-knative", annotated(f"serving.kserve.io/deploymentMode: Standard, {SCRAPING}"),
        ["metadata.annotations.serving.kserve.io/enable-prometheus-scraping"]),
    ("service-scraping-needs-knative", annotated(f"serving.kserve.io/deploymentMode: Standard, {SCRAPING}".replace("true", "false")), []),
    ("service-scraping-needs-knative", annotated(SCRAPING), []),
    ("traffic-percent-is-one", BOTH.replace("10", "101").replace("20", "-1"), PERCENTS),
    ("traffic-percent-is-one", BOTH.replace("10", "100").replace("20", "0"), []),
    ("traffic-percent-is-one", BOTH.replace("10", "true").replace("20", "x"), []),
    ("traffic-percent-needs-knative", BOTH.replace(NAMED, STANDARD), PERCENTS),
    ("traffic-percent-needs-knative", BOTH, []),
    ("traffic-percent-beside-transformer", BOTH, PERCENTS),
    ("traffic-percent-beside-transformer", BOTH.replace(NAMED, STANDARD), []),
    ("traffic-percent-beside-transformer", NAMED + "spec: {predictor: {canaryTrafficPercent: 10}}\n", []),
    ("traffic-canary-behind-transformer", canaries(one()) + "  transformer: {containers: [{}]}\n", ["spec.canary"]),
    ("traffic-canary-behind-transformer", canaries(one()), []),
    ("transformer-dead-protocol-flag", split("--protocol=v2"), [TRANSFORMER_ARGS]),
    ("transformer-dead-protocol-flag", collocated("--protocol, v2"), [COLLOCATED_ARGS]),
    ("transformer-dead-protocol-flag", split("--predictor_protocol=v2"), []),
    ("transformer-predictor-protocol", split("--x"), [TRANSFORMER_ARGS]),
    ("transformer-predictor-protocol", collocated("--x"), [COLLOCATED_ARGS]),
    ("transformer-predictor-protocol", split("--predictor-protocol, v2"), []),
    ("transformer-predictor-protocol", NAMED + "spec: {}\n", []),
    ("transformer-collocated-predictor-host", collocated("--x"), [COLLOCATED_ARGS]),
    ("transformer-collocated-predictor-host", collocated("--predictor_host=localhost:8080"), []),
    ("transformer-collocated-predictor-host", split("--x"), []),
    ("transformer-grpc-port-first", split("--predictor_protocol=grpc-v2", "{name: http1}"), ["spec.predictor.containers[0].ports[0]"]),
    ("transformer-grpc-port-first", split("--predictor_protocol=grpc-v2, --predictor_host=a", "{}"), ["spec.predictor.containers[0].ports[0]"]),
    ("transformer-grpc-port-first", split("--predictor_protocol=grpc-v2, --predictor_host=a:81", "{name: http1}"), []),
    ("transformer-grpc-port-first", split("--predictor_protocol=grpc-v2", "{name: grpc-a}, {name: http1}"), []),
    ("transformer-grpc-port-first", split("--predictor_protocol=grpc-v2", "{name: h2c}"), []),
    ("transformer-grpc-port-first", split("--predictor_protocol=grpc-v2"), []),
    ("transformer-grpc-port-first", split("--predictor_protocol=v2", "{name: http1}"), []),
    ("service-host-fits", NAMED.replace("fraud", "f" * 39), ["metadata.name"]),
    ("service-host-fits", NAMED.replace("fraud", "f" * 38), []),
    ("service-host-fits", NAMED.replace("fraud", "f" * 36) + "spec: {predictor: {name: v2}}\n", ["metadata.name"]),
    ("service-protocol-declared", NAMED + "spec: {predictor: {containers: [{env: [{name: A}]}]}}\n", ["spec.predictor.containers[0].env"]),
    ("service-protocol-declared", NAMED + "spec: {predictor: {containers: [{env: [{name: PROTOCOL}]}]}}\n", []),
    ("service-protocol-declared", NAMED + "spec: {predictor: {containers: [{}], model: {runtime: a}}}\n", []),
    ("service-protocol-declared", NAMED + "spec: {predictor: {}}\n", []),
]  # fmt: skip


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: f"{case[0]}: {case[1][-44:]!r}")
def test_a_rule_of_services_finds_what_breaks_it_and_nothing_else(case):
    rule, text, expected = case
    (document,) = load_text(text, "isvc.yaml")
    judged = document if rule.startswith("object-") else ServiceView.of(document)
    assert paths(list(RULES[rule].check(judged))) == expected


HEAD = "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: %s}\nspec:\n"
FORMATS = HEAD + "  supportedModelFormats: [%s]\n"
PRIORITY = "spec.supportedModelFormats[%d].priority"

RUNTIMES: list[tuple[str, str, list[str]]] = [
    ("runtime-name", HEAD % "''", ["metadata.name"]),
    ("runtime-name", HEAD % "a", []),
    ("runtime-model-container", HEAD % "a" + "  containers: [{name: x}, {name: kserve-containr}]\n", ["spec.containers[1].name"]),
    ("runtime-model-container", HEAD % "a" + "  containers: [{name: x}]\n", ["spec.containers[0].name"]),
    ("runtime-model-container", HEAD % "a" + "  containers: [{name: x}, {name: kserve-container}]\n", []),
    ("runtime-model-container", HEAD % "a", []),
    ("runtime-priority-positive", FORMATS % ("a", "{name: x, priority: 0}, {name: y, priority: 1}"), [PRIORITY % 0]),
    ("runtime-priority-positive", FORMATS % ("a", "{name: x, priority: 1}, {name: y}"), []),
    ("runtime-priority-positive", FORMATS % ("a", "{name: x, priority: 0}") + "  disabled: true\n", []),
    ("runtime-one-priority-a-format", FORMATS % ("a", "{name: x, autoSelect: true, priority: 1}, {name: x, autoSelect: true, priority: 2}"), [PRIORITY % 1]),
    ("runtime-one-priority-a-format", FORMATS % ("a", "{name: x, autoSelect: true, priority: 1}, {name: x, priority: 2}"), []),
    ("runtime-one-priority-a-format", FORMATS % ("a", "{name: x, autoSelect: true, priority: 1}, {name: y, autoSelect: true, priority: 2}"), []),
]  # fmt: skip


@pytest.mark.parametrize("case", RUNTIMES, ids=lambda case: f"{case[0]}: {case[1][-44:]!r}")
def test_a_rule_of_runtimes_finds_what_breaks_it_and_nothing_else(case):
    rule, text, expected = case
    (document,) = load_text(text, "runtime.yaml")
    assert paths(list(RULES[rule].check(document))) == expected


SHARED = "{name: x, autoSelect: true, priority: 1}"


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (FORMATS % ("b", SHARED), True),
        (FORMATS % ("a", SHARED), False),
        (FORMATS % ("b", SHARED.replace("1", "2")), False),
        (FORMATS % ("b", SHARED.replace("x", "y")), False),
        (FORMATS % ("b", SHARED.replace("}", ", version: '2'}")), False),
        (FORMATS % ("b", SHARED.replace(", autoSelect: true", "")), False),
        (FORMATS % ("b", SHARED) + "  disabled: true\n", False),
        (FORMATS % ("b", SHARED) + "  protocolVersions: [v2]\n", False),
        ((FORMATS % ("b", SHARED)).replace("name: b", "name: b, namespace: other"), False),
        ((FORMATS % ("b", SHARED)).replace("kind: Serving", "kind: ClusterServing"), False),
    ],
)
def test_two_runtimes_with_one_priority_for_the_same_are_refused(other, found):
    documents = [*load_text(FORMATS % ("a", SHARED), "a.yaml"), *load_text(other, "b.yaml")]
    findings = list(shared_priorities(documents))
    assert [(document.name, spelled(path)) for document, (path, _, _) in findings] == [("b", PRIORITY % 0)] * found


def test_every_rule_has_an_id_of_its_own_a_sentence_and_a_case_of_either_kind():
    every = (*BLOCK_RULES, *SERVICES, *OBJECT_RULES, *RUNTIME_RULES)
    assert len({rule.id for rule in every}) == len(every)
    assert set(PORT_PITFALLS) <= set(COMPONENT_PITFALLS), "a runtime's ports are judged by a component's rules"
    for rule in every:
        assert rule.check.__doc__
    cases = [(rule, expected) for rule, *_, expected in (*BLOCKS, *WHOLE, *RUNTIMES)]
    assert {rule for rule, expected in cases if expected} == set(RULES)
    assert {rule for rule, expected in cases if not expected} == set(RULES)
