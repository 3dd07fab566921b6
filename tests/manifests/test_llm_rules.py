"""LLMInferenceServices: each case was asked of KServe's own webhooks (v1alpha1 and v1alpha2) behind a kube-apiserver, with this outcome."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serinus.manifests.documents import Document, load_text
from serinus.manifests.linter import check_documents
from serinus.manifests.problems import Problems
from serinus.manifests.rules.kinds.llm_rules import LLM_CONFIG_RULES, LLM_RULES
from serinus.manifests.rules.rule import Rule

# fmt: off
CASES: list[tuple[str, list[str]]] = [
    ("router: {route: {http: {refs: [{name: a}], spec: {}}}}", ["spec.router.route.http"]),
    ("router: {gateway: {}, route: {http: {refs: [{name: a}]}}}", ["spec.router.route.http.refs"]),
    ("router: {gateway: {refs: [{name: g, namespace: n}]}, route: {http: {spec: {parentRefs: [{name: h, namespace: n}]}}}}", ["spec.router.route.http.spec"]),
    ("router: {route: {group: a}}", ["spec.router.route.weight"]),
    ("router: {route: {weight: 1}}", ["spec.router.route.group"]),
    ("router: {route: {group: a, http: {}, weight: 1}}", []),
    ("router: {route: {group: a, http: {refs: [{name: x}]}, weight: 1}}", ["spec.router.route.group"]),
    ("router: {ingress: {}, route: {group: a, weight: 1}}", ["spec.router.route.group"]),
    ("worker: {containers: [{image: x, name: main}]}", ["spec.worker"]),
    ("parallelism: {tensor: 2}, worker: {containers: [{image: x, name: main}]}", ["spec.worker"]),
    ("parallelism: {pipeline: 2}, worker: {containers: [{image: x, name: main}]}", []),
    ("parallelism: {data: 2, dataLocal: 1, pipeline: 2}", ["spec.parallelism"]),
    ("parallelism: {data: 2}", ["spec.parallelism.dataLocal"]),
    ("parallelism: {dataLocal: 2}", ["spec.parallelism.data"]),
    ("parallelism: {pipeline: 0}", ["spec.parallelism.pipeline"]),
    ("parallelism: {data: -1, dataLocal: 1}", ["spec.parallelism.data"]),
    ("prefill: {parallelism: {data: 2}}", ["spec.prefill.parallelism.dataLocal"]),
    ("prefill: {worker: {containers: [{image: x, name: main}]}}", ["spec.prefill.worker"]),
    ("router: {scheduler: {replicas: 0}}", ["spec.router.scheduler.replicas"]),
    ("router: {scheduler: {config: {}}}", ["spec.router.scheduler.config"]),
    ("router: {scheduler: {config: {inline: {a: 1}, ref: {name: a}}}}", ["spec.router.scheduler.config"]),
    ("router: {scheduler: {config: {ref: {}}}}", ["spec.router.scheduler.config.ref.name"]),
    ("router: {scheduler: {config: {inline: {}}}}", ["spec.router.scheduler.config.inline"]),
    ("router: {scheduler: {config: {ref: {name: x}}}}", []),
    ("model: {lora: {adapters: [{name: m, uri: 'hf://x/y'}]}, name: m, uri: 'hf://a/b'}", ["spec.model.lora.adapters[0].name"]),
    ("model: {lora: {adapters: [{name: x, uri: 'hf://x/y'}, {name: x, uri: 'hf://x/y'}]}, name: m, uri: 'hf://a/b'}", ["spec.model.lora.adapters[1].name"]),
    ("model: {lora: {adapters: [{uri: 'hf://x/y'}]}, name: m, uri: 'hf://a/b'}", ["spec.model.lora.adapters[0].name"]),
    ("model: {lora: {adapters: [{name: .., uri: 'hf://x/y'}]}, name: m, uri: 'hf://a/b'}", ["spec.model.lora.adapters[0].name"]),
    ("model: {lora: {adapters: [{name: a, uri: 'hf://x/y'}]}, uri: 'hf://a/b'}", ["spec.model.lora.adapters[0].name"]),
    ("model: {lora: {maxRank: 0}, name: m, uri: 'hf://a/b'}", ["spec.model.lora.maxRank"]),
    *((f"model: {{lora: {{{key}: {value}}}, name: m, uri: 'hf://a/b'}}", []) for key in ("maxRank", "maxAdapters", "maxCpuAdapters") for value in (1, 2, 64)),
    ("model: {lora: {maxCpuAdapters: 0, maxRank: 0}, name: m, uri: 'hf://a/b'}", ["spec.model.lora.maxRank", "spec.model.lora.maxCpuAdapters"]),
    ("model: {lora: {adapters: [{name: m, uri: 'hf://x/y'}, {}, {name: m, uri: 'hf://x/y'}]}, name: m, uri: 'hf://a/b'}",
     ["spec.model.lora.adapters[0].name", "spec.model.lora.adapters[1].name", "spec.model.lora.adapters[2].name", "spec.model.lora.adapters[2].name"]),
    ("prefill: {worker: {containers: [{image: x, name: main}]}}, worker: {containers: [{image: x, name: main}]}", ["spec.worker", "spec.prefill.worker"]),
    ("prefill: {parallelism: {data: 2}}, worker: {containers: [{image: x, name: main}]}", ["spec.worker", "spec.prefill.parallelism.dataLocal"]),
    ("scaling: {maxReplicas: 9, minReplicas: 2, wva: {keda: {idleReplicaCount: 5}}}", ["spec.scaling.wva.keda.idleReplicaCount"]),
    ("scaling: {maxReplicas: 9, wva: {keda: {idleReplicaCount: 1}}}", ["spec.scaling.wva.keda.idleReplicaCount"]),
    ("scaling: {maxReplicas: 9, minReplicas: 2, wva: {keda: {idleReplicaCount: 1}}}", []),
    ("prefill: {scaling: {maxReplicas: 9, minReplicas: 2, wva: {keda: {idleReplicaCount: 3}}}}, scaling: {maxReplicas: 2, wva: {keda: {}}}",
     ["spec.prefill.scaling.wva.keda.idleReplicaCount"]),
    ("scaling: {maxReplicas: 2, minReplicas: 2, wva: {hpa: {}}}", []),
    ("scaling: {maxReplicas: 4, minReplicas: 9, wva: {hpa: {}}}", ["spec.scaling.minReplicas"]),
    ("scaling: {maxReplicas: 2, wva: {hpa: {}, variantCost: '-1'}}", ["spec.scaling.wva.variantCost"]),
    ("scaling: {maxReplicas: 2, wva: {hpa: {}, variantCost: '10'}}", []),
    ("router: {scheduler: {replicas: -1}}", ["spec.router.scheduler.replicas"]),
    ("router: {scheduler: {replicas: 1}}", []),
    ("router: {scheduler: {replicas: 2}}", []),
    ("parallelism: {pipeline: -1}", ["spec.parallelism.pipeline"]),
    ("parallelism: {pipeline: 1}", []),
    ("parallelism: {data: 0, dataLocal: 0}", ["spec.parallelism.data", "spec.parallelism.dataLocal"]),
    ("prefill: {parallelism: {data: 2, dataLocal: 1, pipeline: 2}}", ["spec.prefill.parallelism"]),
    ("router: {gateway: {refs: [{name: g}]}, route: {http: {refs: [{name: a}]}}}", []),
    ("router: {gateway: {refs: [{name: g}]}, route: {http: {spec: {}}}}", []),
    ("router: {route: {http: {spec: {parentRefs: [{name: g}]}}}}", []),
    ("rolloutStrategy: {maxSurge: 100%, maxUnavailable: 100%}", []),
    ("rolloutStrategy: {maxSurge: 1, maxUnavailable: 0}", []),
    ("rolloutStrategy: {maxSurge: 0}", []),
    ("prefill: {parallelism: {pipeline: 2}, rolloutStrategy: {maxUnavailable: 0}, worker: {containers: [{image: x, name: main}]}}",
     ["spec.prefill.rolloutStrategy.maxSurge"]),
    ("prefill: {scaling: {maxReplicas: 2}}, scaling: {maxReplicas: 2, minReplicas: 3, wva: {hpa: {}}}", ["spec.scaling.minReplicas", "spec.prefill.scaling"]),
    ("prefill: {scaling: {maxReplicas: 2}}", ["spec.prefill.scaling"]),
    ("prefill: {rolloutStrategy: {maxSurge: 0, maxUnavailable: 0}}, rolloutStrategy: {maxSurge: x}",
     ["spec.rolloutStrategy.maxSurge", "spec.prefill.rolloutStrategy"]),
    ("rolloutStrategy: {maxSurge: x, maxUnavailable: -1}", ["spec.rolloutStrategy.maxUnavailable", "spec.rolloutStrategy.maxSurge"]),
    ("rolloutStrategy: {maxSurge: 100%, maxUnavailable: 0}", []),
    ("rolloutStrategy: {maxSurge: 0, maxUnavailable: true}", []),
    ("model: {lora: {maxAdapters: -1}, name: m, uri: 'hf://a/b'}", ["spec.model.lora.maxAdapters"]),
    ("replicas: 1, scaling: {maxReplicas: 2, wva: {hpa: {}}}", ["spec.scaling"]),
    ("scaling: {maxReplicas: 2, minReplicas: 3, wva: {hpa: {}}}", ["spec.scaling.minReplicas"]),
    ("scaling: {maxReplicas: 2}", ["spec.scaling"]),
    ("scaling: {maxReplicas: 2, wva: {}}", ["spec.scaling.wva"]),
    ("scaling: {maxReplicas: 2, wva: {hpa: {}, keda: {}}}", ["spec.scaling.wva"]),
    ("scaling: {keda: {}, maxReplicas: 2}", ["spec.scaling.keda.triggers"]),
    ("scaling: {keda: {triggers: [{metadata: {value: '1'}, type: cpu}]}, maxReplicas: 2, wva: {hpa: {}}}", ["spec.scaling"]),
    ("scaling: {keda: {triggers: [{metadata: {value: '1'}, type: cpu}]}, maxReplicas: 2}", []),
    ("scaling: {maxReplicas: 2, wva: {hpa: {}, variantCost: x}}", ["spec.scaling.wva.variantCost"]),
    ("scaling: {maxReplicas: 2, wva: {hpa: {}, variantCost: '1.5'}}", []),
    ("scaling: {maxReplicas: 2, wva: {keda: {idleReplicaCount: 0}}}", []),
    ("scaling: {maxReplicas: 2, minReplicas: 1, wva: {keda: {idleReplicaCount: 1}}}", ["spec.scaling.wva.keda.idleReplicaCount"]),
    ("scaling: {maxReplicas: 2, minReplicas: 1, wva: {keda: {idleReplicaCount: 0}}}", []),
    ("scaling: {maxReplicas: 2, wva: {keda: {advanced: {horizontalPodAutoscalerConfig: {name: x}}}}}",
     ["spec.scaling.wva.keda.advanced.horizontalPodAutoscalerConfig.name"]),
    ("scaling: {maxReplicas: 2, wva: {keda: {advanced: {scalingModifiers: {formula: x}}}}}", ["spec.scaling.wva.keda.advanced.scalingModifiers"]),
    ("prefill: {scaling: {maxReplicas: 2, wva: {keda: {}}}}, scaling: {maxReplicas: 2, wva: {hpa: {}}}", ["spec.prefill.scaling.wva"]),
    ("prefill: {scaling: {keda: {triggers: [{metadata: {value: '1'}, type: cpu}]}, maxReplicas: 2}}, scaling: {maxReplicas: 2, wva: {hpa: {}}}",
     ["spec.prefill.scaling"]),
    ("prefill: {scaling: {maxReplicas: 2, wva: {hpa: {}}}}, scaling: {maxReplicas: 2, wva: {hpa: {}}}", []),
    ("rolloutStrategy: {maxSurge: 0, maxUnavailable: 0}", ["spec.rolloutStrategy"]),
    ("rolloutStrategy: {maxSurge: 0%, maxUnavailable: 0%}", ["spec.rolloutStrategy"]),
    ("rolloutStrategy: {maxSurge: 0, maxUnavailable: 50%}", ["spec.rolloutStrategy"]),
    ("rolloutStrategy: {maxSurge: 0, maxUnavailable: 1}", []),
    ("rolloutStrategy: {maxUnavailable: -1}", ["spec.rolloutStrategy.maxUnavailable"]),
    ("rolloutStrategy: {maxSurge: 101%}", ["spec.rolloutStrategy.maxSurge"]),
    ("rolloutStrategy: {maxSurge: x}", ["spec.rolloutStrategy.maxSurge"]),
    ("rolloutStrategy: {maxUnavailable: 0}", []),
    ("rolloutStrategy: {maxSurge: 0, maxUnavailable: 100%}", []),
    ("parallelism: {pipeline: 2}, rolloutStrategy: {maxUnavailable: 0}, worker: {containers: [{image: x, name: main}]}", ["spec.rolloutStrategy.maxSurge"]),
]
"""Fields of `spec` in either version, and where it is refused; nowhere: it is accepted."""
SECOND: list[tuple[str, list[str]]] = [
    ("router: {gateway: {refs: [{name: g, namespace: n}]}, route: {http: {spec: {parentRefs: [{name: g, namespace: n}]}}}}", []),
    ("router: {gateway: {refs: [{name: g, namespace: n}, {name: h}]}, route: {http: {spec: {parentRefs: [{name: h}, {name: g, namespace: n}]}}}}", []),
    ("router: {gateway: {refs: [{name: g}]}, route: {http: {spec: {parentRefs: [{name: g, sectionName: s}]}}}}", ["spec.router.route.http.spec"]),
    ("router: {gateway: {refs: [{name: g, namespace: n}]}, route: {http: {spec: {parentRefs: [{name: g, namespace: o}]}}}}", ["spec.router.route.http.spec"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {emptyDir: {size: 1Gi}}}]}", []),
    ("kvCacheOffloading: {secondary: [{fileSystem: {emptyDir: {size: 1Gi}}}]}", ["spec.kvCacheOffloading.cpu"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{}]}", ["spec.kvCacheOffloading.secondary[0].fileSystem"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{}, {fileSystem: {emptyDir: {size: 1Gi}}}, {fileSystem: {}}]}",
     ["spec.kvCacheOffloading.secondary[0].fileSystem", "spec.kvCacheOffloading.secondary[2].fileSystem"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {emptyDir: {}, pvc: {ref: {name: a}}}}]}", ["spec.kvCacheOffloading.secondary[0].fileSystem"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {pvc: {ref: {name: a}, spec: {}}}}]}", ["spec.kvCacheOffloading.secondary[0].fileSystem.pvc"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {pvc: {spec: {}}}}]}", []),
    ("kvCacheOffloading: {secondary: [{fileSystem: {emptyDir: {}}}]}, prefill: {kvCacheOffloading: {cpu: '0', secondary: [{fileSystem: {emptyDir: {}}}]}}",
     ["spec.kvCacheOffloading.cpu", "spec.prefill.kvCacheOffloading.cpu"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {}}]}", ["spec.kvCacheOffloading.secondary[0].fileSystem"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {pvc: {}}}]}", ["spec.kvCacheOffloading.secondary[0].fileSystem.pvc"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {pvc: {ref: {name: ''}}}}]}", ["spec.kvCacheOffloading.secondary[0].fileSystem.pvc.ref.name"]),
    ("kvCacheOffloading: {cpu: 1Gi, secondary: [{fileSystem: {pvc: {ref: {name: a}}}}]}", []),
    ("model: {confidential: {enabled: true, resourceId: x}, uri: 'hf://a/b'}", ["spec.model.confidential.resourceId"]),
    ("model: {confidential: {enabled: true, resourceId: 'kbs:///a/b/c'}, uri: 'hf://a/b'}", []),
    ("model: {confidential: {enabled: false, resourceId: x}, uri: 'hf://a/b'}", []),
]
"""The same of v1alpha2 alone."""
DEVICES: list[tuple[dict[str, str], list[str]]] = [
    ({"device-count": "1"}, ["device-class"]),
    ({"device-class": " "}, ["device-class"]),
    ({"device-class": "A B"}, ["device-class"]),
    ({"device-class": "a.b"}, []),
    ({"device-class": "a", "device-count": "0"}, ["device-count"]),
    ({"device-class": "a", "device-count": "x"}, ["device-count"]),
    ({"device-class": "a", "device-count": ""}, []),
    ({"device-class": "a", "cel-selector": ""}, ["cel-selector"]),
    ({"device-class": "a", "container-name": "A b"}, ["container-name"]),
    ({"device-class": "a", "device-count": "2", "container-name": "main"}, []),
]
# fmt: on
ANNOTATION = "serving.kserve.io/exp-dra-"


def service(spec: str, version: str = "v1alpha2", kind: str = "LLMInferenceService", **annotations: str) -> Document:
    value = {
        "apiVersion": f"serving.kserve.io/{version}",
        "kind": kind,
        "metadata": {"name": "a", "annotations": annotations},
        "spec": {"model": {"uri": "hf://a/b", "name": "m"}, **yaml.safe_load(f"{{{spec}}}")},
    }
    (document,) = load_text(yaml.safe_dump(value), "llm.yaml")
    return document


def spelled(path: tuple[Any, ...]) -> str:
    words = ""
    for part in path:
        words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else part
    return words


def found(document: Document, rules: tuple[Rule[Document], ...] = LLM_RULES) -> list[str]:
    return [spelled(path) for rule in rules for path, _, _ in rule.check(document)]


@pytest.mark.parametrize("version", ["v1alpha1", "v1alpha2"])
@pytest.mark.parametrize(("spec", "expected"), CASES, ids=[spec for spec, _ in CASES])
def test_what_the_webhook_of_either_version_refuses_is_found_where_it_is(version: str, spec: str, expected: list[str]):
    assert found(service(spec, version)) == expected


@pytest.mark.parametrize(("spec", "expected"), SECOND, ids=[spec for spec, _ in SECOND])
def test_what_the_webhook_of_the_second_version_refuses_is_found_where_it_is(spec: str, expected: list[str]):
    assert found(service(spec)) == expected


@pytest.mark.parametrize(("annotations", "expected"), DEVICES, ids=[str(given) for given, _ in DEVICES])
def test_annotations_of_managed_devices_are_judged(annotations: dict[str, str], expected: list[str]):
    document = service("", **{ANNOTATION + key: value for key, value in annotations.items()})
    assert found(document) == [f"metadata.annotations.{ANNOTATION}{key}" for key in expected]


# A part of the spec, what is said of it and how to mend it, where one thing is wrong or its opposite.
SAID: list[tuple[str, str, str]] = [
    ("router: {route: {group: a}}", "missing: group and weight go together", "write weight"),
    ("router: {route: {weight: 1}}", "missing: group and weight go together", "write group"),
    ("router: {scheduler: {config: {}}}", "is empty", "write one of inline, ref"),
    (
        "router: {scheduler: {config: {inline: {a: 1}, ref: {name: a}}}}",
        "has inline and ref",
        "write one of inline, ref",
    ),
    ("scaling: {maxReplicas: 2}", "has neither wva nor keda", "write one of them"),
    ("scaling: {maxReplicas: 2, wva: {}}", "has neither hpa nor keda", "write one of them"),
    ("scaling: {maxReplicas: 2, wva: {hpa: {}, keda: {}}}", "has hpa and keda", "write one of them"),
    (
        "scaling: {keda: {triggers: [{type: cpu}]}, maxReplicas: 2, wva: {hpa: {}}}",
        "has wva and keda",
        "write one of them",
    ),
    ("parallelism: {data: 2}", "missing beside data", "write dataLocal"),
    ("parallelism: {dataLocal: 2}", "missing beside dataLocal", "write data"),
    (
        "rolloutStrategy: {maxUnavailable: -1}",
        "-1 is less than 0",
        "write a number of 0 or more, or 0% to 100%",
    ),
    (
        "rolloutStrategy: {maxSurge: 101%}",
        "101% is more than 100%",
        "write a number of 0 or more, or 0% to 100%",
    ),
    ("rolloutStrategy: {maxSurge: x}", "'x' is no percentage", "write a number of 0 or more, or 0% to 100%"),
]


@pytest.mark.parametrize(("spec", "message", "mend"), SAID, ids=[spec for spec, _, _ in SAID])
def test_of_two_ways_to_be_wrong_the_one_that_is_there_is_told(spec: str, message: str, mend: str):
    document = service(spec)
    assert [(said, how) for rule in LLM_RULES for _, said, how in rule.check(document)] == [(message, mend)]


@pytest.mark.parametrize(
    ("parallelism", "is_parallel"),
    [
        ("{data: 2, dataLocal: 1}", True),
        ("{data: 1, dataLocal: 1}", True),
        ("{pipeline: 1}", True),
        ("{tensor: 4}", False),
        ("{data: 0, dataLocal: 0}", False),
        ("{data: 0, dataLocal: 1}", True),
        ("{data: 1, dataLocal: 0}", True),
        ("{data: 0, dataLocal: -1}", False),
        ("{pipeline: true}", False),
    ],
)
def test_workers_are_for_data_or_pipeline_parallelism_of_one_at_least(parallelism: str, is_parallel: bool):
    told = found(service(f"parallelism: {parallelism}, worker: {{containers: [{{image: x, name: main}}]}}"))
    assert ("spec.worker" not in told) is is_parallel


def test_a_config_has_no_bases_and_a_scheduler_that_runs():
    wrong = service("baseRefs: [{name: b}], router: {scheduler: {replicas: 0}}", kind="LLMInferenceServiceConfig")
    assert found(wrong, LLM_CONFIG_RULES) == ["spec.router.scheduler.replicas", "spec.baseRefs"]
    assert found(service("router: {scheduler: {replicas: 1}}"), LLM_CONFIG_RULES) == []


def test_every_rule_has_a_sentence_and_refuses_something_of_these():
    documents = [service(spec) for spec, _ in (*CASES, *SECOND)]
    documents += [service("", **{ANNOTATION + key: value for key, value in given.items()}) for given, _ in DEVICES]
    for rule in LLM_RULES:
        assert rule.check.__doc__
        assert any(list(rule.check(document)) for document in documents), rule.id
        assert any(not list(rule.check(document)) for document in documents), rule.id


def test_the_linter_asks_them_and_no_longer_says_that_the_structure_alone_was_checked():
    problems = Problems()
    check_documents([service("parallelism: {data: 2}")], problems)
    assert [(problem.rule, problem.severity) for problem in problems.all] == [("llm-parallelism", "error")]
