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
from serinus.manifests.rules.kinds.core_rules import CORE_RULES
from serinus.manifests.rules.kinds.graph_rules import GRAPH_RULES, TRAINED_MODEL_RULES
from serinus.manifests.rules.kinds.runtime_rules import RUNTIME_RULES, shared_priorities
from serinus.manifests.rules.pods.container_rules import CONTAINER_RULES
from serinus.manifests.rules.pods.pod_rules import METADATA_RULES, POD_RULES
from serinus.manifests.rules.pods.pod_value_rules import POD_VALUE_RULES
from serinus.manifests.rules.pods.selector_rules import SELECTOR_RULES
from serinus.manifests.rules.pods.volume_rules import VOLUME_RULES
from serinus.manifests.rules.rule import Block, Finding, Rule, ServiceView
from serinus.manifests.rules.scaling_rules import SCALING_RULES
from serinus.manifests.rules.service_pitfalls import SERVICE_PITFALLS, TRANSFORMER_PITFALLS
from serinus.manifests.rules.service_rules import OBJECT_RULES, SERVICE_RULES, TRACING_PITFALLS, TRACING_RULES
from serinus.manifests.rules.storage_rules import STORAGE_RULES
from serinus.manifests.rules.worker_rules import WORKER_RULES

BLOCK_RULES = (
    *CONTAINER_RULES,
    *COMPONENT_RULES,
    *STORAGE_RULES,
    *SCALING_RULES,
    *WORKER_RULES,
    *POD_RULES,
    *POD_VALUE_RULES,
    *SELECTOR_RULES,
    *VOLUME_RULES,
    *COMPONENT_PITFALLS,
)
DOCUMENTS = (*OBJECT_RULES, *METADATA_RULES, *GRAPH_RULES, *TRAINED_MODEL_RULES, *CORE_RULES)
SERVICES = (*SERVICE_RULES, *TRACING_RULES, *CANARY_RULES, *SERVICE_PITFALLS, *TRACING_PITFALLS, *TRANSFORMER_PITFALLS)
RULES: dict[str, Rule[Any]] = {rule.id: rule for rule in (*BLOCK_RULES, *SERVICES, *DOCUMENTS, *RUNTIME_RULES)}

MODE = "{serving.kserve.io/deploymentMode: Standard}"
STANDARD_HPA = "{serving.kserve.io/deploymentMode: Standard, serving.kserve.io/autoscalerClass: hpa}"
CANARY = "canary"
KEDA = "{serving.kserve.io/deploymentMode: Standard, serving.kserve.io/autoscalerClass: keda}"
NONE = "{serving.kserve.io/autoscalerClass: none}"
HPA = "{serving.kserve.io/autoscalerClass: hpa}"
KNATIVE_HPA = "{autoscaling.knative.dev/class: hpa.autoscaling.knative.dev}"
LONG = "/" + "a" * 254
TOO_LONG = LONG + "a"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
NODE = f"affinity: {{nodeAffinity: {{{REQUIRED}: {{nodeSelectorTerms: [%s]}}}}}}"
NODE_AT = f"affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms"
PREFERRED = "affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: %s}]}}"
PREFERRED_AT = "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference"
SPREAD, SPREAD_AT = "topologySpreadConstraints: [{labelSelector: %s}]", "topologySpreadConstraints[0].labelSelector"
APART, APART_AT = f"affinity: {{podAntiAffinity: {{{REQUIRED}: [%s]}}}}", f"affinity.podAntiAffinity.{REQUIRED}[0]"
PROBE = "containers: [{readinessProbe: %s}]"
SOURCE, SOURCE_AT = "containers: [{env: [{name: A, valueFrom: %s}]}]", "containers[0].env[0].valueFrom"
PROJECTED, PROJECTED_AT = "volumes: [{name: v, projected: {sources: [%s]}}]", "volumes[0].projected.sources"


def container(**fields: str) -> str:
    return "{name: kserve-container, " + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}"


# Rule, part of the service (`predictor` unless it begins with another), annotations, block; then the paths that are found below it.
BLOCKS: list[tuple[str, str, str, list[str]]] = [
    ("container-pythonpath", "", "containers: [{env: [{name: PYTHONPATH}]}]", ["containers[0].env[0]"]),
    ("container-pythonpath", "", "model: {env: [{name: A}, {name: PYTHONPATH}]}", ["model.env[1]"]),
    ("container-pythonpath", "", "initContainers: [{env: [{name: PYTHONPATH}]}]", ["initContainers[0].env[0]"]),
    ("container-pythonpath", "", "containers: [{env: [{name: PATH}]}]", []),
    ("container-pythonpath", "", "workerSpec: {containers: [{env: [{name: PYTHONPATH}]}]}", ["workerSpec.containers[0].env[0]"]),
    ("container-pythonpath", CANARY, "containers: [{env: [{name: PYTHONPATH}]}]", []),
    ("container-pythonpath-of-canary", CANARY, "containers: [{env: [{name: PYTHONPATH}]}]", ["containers[0].env[0]"]),
    ("container-pythonpath-of-canary", "", "containers: [{env: [{name: PYTHONPATH}]}]", []),
    ("container-transformer-storage", "", "containers: [{name: transformer-container, env: [{name: STORAGE_URI}]}]", ["containers[0].env[0]"]),
    ("container-transformer-storage", CANARY, "containers: [{name: transformer-container, env: [{name: STORAGE_URI}]}]", []),
    ("container-transformer-storage", "", "containers: [{name: kserve-container, env: [{name: STORAGE_URI}]}]", []),
    ("container-transformer-storage", "", "containers: [{name: transformer-container, env: [{name: A}]}]", []),
    ("container-custom-protocol", "", "containers: [{env: [{name: PROTOCOL, value: grpc-v2}]}]", ["containers[0].env[0].value"]),
    ("container-custom-protocol", "", "containers: [{env: [{name: PROTOCOL, value: v2}]}, {env: [{name: PROTOCOL, value: v1}]}]", []),
    ("container-custom-protocol", "", "containers: [{}, {env: [{name: PROTOCOL, value: grpc-v2}]}]", []),
    ("container-custom-protocol", "", "containers: [{env: [{name: PROTOCOL, value: v1}, {name: PROTOCOL, value: x}]}]", []),
    ("container-custom-protocol", "", "model: {env: [{name: PROTOCOL, value: x}]}", []),
    ("container-custom-protocol", "", "model: {}\ncontainers: [{name: side, env: [{name: PROTOCOL, value: x}]}]", []),
    ("container-custom-protocol", "transformer", "containers: [{env: [{name: PROTOCOL, value: x}]}]", []),
    ("container-quantities", "", "containers: [{resources: {limits: {memory: -2Gi}}}]", ["containers[0].resources.limits.memory"]),
    ("container-quantities", "", "model: {resources: {requests: {cpu: 2}, limits: {cpu: 1}}}", ["model.resources.requests.cpu"]),
    ("container-quantities", "", "workerSpec: {containers: [{resources: {limits: {cpu: -1}}}]}", ["workerSpec.containers[0].resources.limits.cpu"]),
    ("container-quantities", "", "containers: [{resources: {limits: {memory: 2GB}}}]", []),
    ("container-quantities", "", "containers: [{resources: {limits: {memory: 2Gi, cpu: 1}}}]", []),
    ("pod-words", "", "dnsPolicy: clusterfirst", ["dnsPolicy"]),
    ("pod-words", "", "containers: [{ports: [{containerPort: 1, protocol: tcp}]}]", ["containers[0].ports[0].protocol"]),
    ("pod-words", "", "containers: [{readinessProbe: {httpGet: {scheme: http}}}]", ["containers[0].readinessProbe.httpGet.scheme"]),
    ("pod-words", "", "topologySpreadConstraints: [{whenUnsatisfiable: Never}]", ["topologySpreadConstraints[0].whenUnsatisfiable"]),
    ("pod-words", "", "volumes: [{hostPath: {type: Folder}}]", ["volumes[0].hostPath.type"]),
    ("pod-words", "", "dnsPolicy: Default\nvolumes: [{hostPath: {type: ''}}]", []),
    ("pod-ranges", "", "securityContext: {runAsUser: -1}", ["securityContext.runAsUser"]),
    ("pod-ranges", "", "containers: [{livenessProbe: {periodSeconds: -5}}]", ["containers[0].livenessProbe.periodSeconds"]),
    ("pod-ranges", "", "containers: [{livenessProbe: {httpGet: {port: 70000}}}]", ["containers[0].livenessProbe.httpGet.port"]),
    ("pod-ranges", "", "volumes: [{configMap: {name: a, defaultMode: 644}}]", ["volumes[0].configMap.defaultMode"]),
    ("pod-ranges", "", "securityContext: {runAsUser: 0}\nvolumes: [{secret: {secretName: a, defaultMode: 420}}]\nterminationGracePeriodSeconds: -1", []),
    ("pod-names", "", "serviceAccountName: Fraud_SA", ["serviceAccountName"]),
    ("pod-names", "", "volumes: [{name: my_volume}]", ["volumes[0].name"]),
    ("pod-names", "", "containers: [{env: [{valueFrom: {secretKeyRef: {name: A, key: b}}}]}]", ["containers[0].env[0].valueFrom.secretKeyRef.name"]),
    ("pod-names", "", "serviceAccountName: a.b\ncontainers: [{envFrom: [{secretRef: {name: a-}}]}]", []),
    ("pod-written", "", "volumes: [{name: a, secret: {}}]", ["volumes[0].secret.secretName"]),
    ("pod-written", "", "containers: [{startupProbe: {exec: {command: []}}}]", ["containers[0].startupProbe.exec.command"]),
    ("pod-written", "", "containers: [{volumeMounts: [{name: a, mountPath: ''}]}]", ["containers[0].volumeMounts[0].mountPath"]),
    ("pod-written", "", "volumes: [{name: a, secret: {secretName: b}}]", []),
    ("pod-volumes-apart", "", "volumes: [{name: a, emptyDir: {}}, {name: a, emptyDir: {}}]", ["volumes[1].name"]),
    ("pod-volumes-apart", "", "volumes: [{name: a, emptyDir: {}, secret: {}}]", ["volumes[0]"]),
    ("pod-volumes-apart", "", "volumes: [{name: a, emptyDir: {}}, {name: b}]", []),
    ("pod-sources", "", "containers: [{envFrom: [{prefix: A_}]}]", ["containers[0].envFrom[0]"]),
    ("pod-sources", "", "containers: [{lifecycle: {preStop: {}}}]", ["containers[0].lifecycle.preStop"]),
    ("pod-sources", "", "containers: [{lifecycle: {preStop: {sleep: {seconds: 1}}}, envFrom: [{secretRef: {name: a}}]}]", []),
    ("pod-seccomp-profiles", "", "securityContext: {seccompProfile: {type: Localhost}}", ["securityContext.seccompProfile.localhostProfile"]),
    ("pod-seccomp-profiles", "", "containers: [{securityContext: {seccompProfile: {type: RuntimeDefault}}}]", []),
    ("pod-resource-names", "", "containers: [{resources: {limits: {cpus: 1}}}]", ["containers[0].resources.limits.cpus"]),
    ("pod-resource-names", "", "model: {resources: {requests: {mem: 1Gi}}}", ["model.resources.requests.mem"]),
    ("pod-resource-names", "", "containers: [{resources: {limits: {cpu: 1, nvidia.com/gpu: 1, hugepages-2Mi: 4Mi}}}]", []),
    ("container-quantities", "", "containers: [{resources: {requests: {nvidia.com/gpu: 1}}}]", ["containers[0].resources.requests.nvidia.com/gpu"]),
    ("container-quantities", "", "containers: [{resources: {requests: {hugepages-2Mi: 4Mi}, limits: {cpu: 1}}}]",
     ["containers[0].resources.requests.hugepages-2Mi"]),
    ("container-quantities", "", "containers: [{resources: {requests: {cpu: 1}, limits: {cpu: }}}]", ["containers[0].resources.requests.cpu"]),
    ("container-quantities", "", "containers: [{resources: {requests: {nvidia.com/gpu: 1}, limits: {nvidia.com/gpu: 1}}}]", []),
    ("container-quantities", "", "model: {resources: {requests: {nvidia.com/gpu: 1}}}", []),
    ("container-quantities", "", "model: {}\ncontainers: [{resources: {requests: {nvidia.com/gpu: 1}}}]", []),
    ("pod-words", "", "topologySpreadConstraints: [{nodeTaintsPolicy: honor}]", ["topologySpreadConstraints[0].nodeTaintsPolicy"]),
    ("pod-restart-policy", "", "restartPolicy: OnFailure", ["restartPolicy"]),
    ("pod-restart-policy", "", "restartPolicy: Always", []),
    ("pod-ranges", "", "topologySpreadConstraints: [{minDomains: 0}]", ["topologySpreadConstraints[0].minDomains"]),
    ("pod-names", "", "hostname: a.b", ["hostname"]),
    ("pod-names", "", "nodeName: a.b", []),
    ("pod-written", "", SOURCE % "{configMapKeyRef: {name: a}}", [SOURCE_AT + ".configMapKeyRef.key"]),
    ("pod-written", "", "initContainers: [{image: a}]", ["initContainers[0].name"]),
    ("pod-written", "", "containers: [{image: a}]", []),
    ("pod-forms", "", PROBE % "{httpGet: {port: 1, httpHeaders: [{name: X_Y, value: a}]}}", ["containers[0].readinessProbe.httpGet.httpHeaders[0].name"]),
    ("pod-forms", "", PROBE % "{httpGet: {port: 1, httpHeaders: [{name: '', value: a}]}}", ["containers[0].readinessProbe.httpGet.httpHeaders[0].name"]),
    ("pod-forms", "", PROBE % "{httpGet: {port: 1, httpHeaders: [{name: X-Header-1, value: a b}]}}", []),
    ("pod-forms", "", PROBE % "{tcpSocket: {port: ''}}", ["containers[0].readinessProbe.tcpSocket.port"]),
    ("pod-forms", "", PROBE % "{tcpSocket: {port: '8080'}}", ["containers[0].readinessProbe.tcpSocket.port"]),
    ("pod-forms", "", PROBE % "{httpGet: {port: a--b}}", ["containers[0].readinessProbe.httpGet.port"]),
    ("pod-forms", "", PROBE % "{httpGet: {port: -a}}", ["containers[0].readinessProbe.httpGet.port"]),
    ("pod-forms", "", PROBE % "{httpGet: {port: a-}}", ["containers[0].readinessProbe.httpGet.port"]),
    ("pod-forms", "", PROBE % "{httpGet: {port: aaaaaaaaaaaaaaaa}}", ["containers[0].readinessProbe.httpGet.port"]),
    ("pod-forms", "", PROBE % "{httpGet: {port: http1-a}}", []),
    ("pod-forms", "", "containers: [{lifecycle: {preStop: {httpGet: {port: a b}}}}]", ["containers[0].lifecycle.preStop.httpGet.port"]),
    ("pod-forms", "", SOURCE % "{fieldRef: {fieldPath: status.phase}}", [SOURCE_AT + ".fieldRef.fieldPath"]),
    ("pod-forms", "", SOURCE % "{fieldRef: {fieldPath: METADATA.NAME}}", [SOURCE_AT + ".fieldRef.fieldPath"]),
    ("pod-forms", "", SOURCE % '{fieldRef: {fieldPath: "metadata.labels[\'app\']"}}', []),
    ("pod-forms", "", SOURCE % "{resourceFieldRef: {resource: limits.nvidia.com/gpu}}", [SOURCE_AT + ".resourceFieldRef.resource"]),
    ("pod-forms", "", SOURCE % "{resourceFieldRef: {resource: requests.memory}}", []),
    ("pod-forms", "", SOURCE % "{secretKeyRef: {name: a, key: a b}}", [SOURCE_AT + ".secretKeyRef.key"]),
    ("pod-forms", "", SOURCE % "{secretKeyRef: {name: a, key: ..}}", [SOURCE_AT + ".secretKeyRef.key"]),
    ("pod-forms", "", SOURCE % "{secretKeyRef: {name: a, key: ..data.json}}", []),
    ("pod-forms", "", "securityContext: {sysctls: [{name: A b, value: x}]}", ["securityContext.sysctls[0].name"]),
    ("pod-forms", "", "securityContext: {sysctls: [{name: net.core.somaxconn, value: x}, {name: kernel/shm_rmid_forced, value: y}]}", []),
    ("pod-forms", "", "containers: [{envFrom: [{prefix: a=b, secretRef: {name: a}}]}]", ["containers[0].envFrom[0].prefix"]),
    ("pod-addresses", "", "hostAliases: [{ip: 1.2.3, hostnames: [a]}]", ["hostAliases[0].ip"]),
    ("pod-addresses", "", "dnsConfig: {nameservers: [dns.example.com]}", ["dnsConfig.nameservers[0]"]),
    ("pod-addresses", "", "hostAliases: [{ip: '::1'}, {ip: 10.0.0.1}]", []),
    ("pod-dns-configured", "", "dnsPolicy: None", ["dnsConfig"]),
    ("pod-dns-configured", "", "dnsPolicy: None\ndnsConfig: {nameservers: [10.0.0.1]}", []),
    ("pod-probe-ports", MODE, PROBE % "{httpGet: {path: /}}", ["containers[0].readinessProbe.httpGet.port"]),
    ("pod-probe-ports", MODE, PROBE % "{tcpSocket: {}}", ["containers[0].readinessProbe.tcpSocket.port"]),
    ("pod-probe-ports", MODE, PROBE % "{httpGet: {port: 0}}", ["containers[0].readinessProbe.httpGet.port"]),
    ("pod-probe-ports", MODE, PROBE % "{exec: {command: [a]}}", []),
    ("pod-probe-ports", MODE, "model: {readinessProbe: {httpGet: {path: /}}}", []),
    ("pod-probe-ports", "", PROBE % "{httpGet: {path: /}}", []),
    ("pod-kernel-parameters-apart", "", "securityContext: {sysctls: [{name: a, value: x}, {name: a, value: y}]}", ["securityContext.sysctls[1].name"]),
    ("pod-kernel-parameters-apart", "", "securityContext: {sysctls: [{name: a, value: x}, {name: b, value: x}]}", []),
    ("pod-pauses", "", "containers: [{lifecycle: {preStop: {sleep: {seconds: 31}}}}]", ["containers[0].lifecycle.preStop.sleep.seconds"]),
    ("pod-pauses", "", "terminationGracePeriodSeconds: 60\ncontainers: [{lifecycle: {preStop: {sleep: {seconds: 31}}}}]", []),
    ("pod-label-selectors", "", SPREAD % "{matchLabels: {a: -b}}", [SPREAD_AT + ".matchLabels.a"]),
    ("pod-label-selectors", "", SPREAD % "{matchLabels: {-a: b}}", [SPREAD_AT + ".matchLabels.-a"]),
    ("pod-label-selectors", "", SPREAD % "{matchExpressions: [{key: a, operator: In, values: [-b]}]}", [SPREAD_AT + ".matchExpressions[0].values[0]"]),
    ("pod-label-selectors", "", SPREAD % "{matchExpressions: [{key: a, operator: NotIn}]}", [SPREAD_AT + ".matchExpressions[0].values"]),
    ("pod-label-selectors", "", SPREAD % "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}", [SPREAD_AT + ".matchExpressions[0].values"]),
    ("pod-label-selectors", "", SPREAD % "{matchExpressions: [{operator: Exists}]}", [SPREAD_AT + ".matchExpressions[0].key"]),
    ("pod-label-selectors", "", APART % "{topologyKey: -a}", [APART_AT + ".topologyKey"]),
    ("pod-label-selectors", "", APART % "{namespaceSelector: {matchLabels: {A_b/c: d}}}", [APART_AT + ".namespaceSelector.matchLabels.A_b/c"]),
    ("pod-label-selectors", "", "topologySpreadConstraints: [{matchLabelKeys: [-a]}]", ["topologySpreadConstraints[0].matchLabelKeys[0]"]),
    ("pod-label-selectors", "", SPREAD % "{matchLabels: {a.b/c: ''}, matchExpressions: [{key: a, operator: In, values: [b_c.d]}]}", []),
    ("pod-label-selectors", "", APART % "{topologyKey: topology.kubernetes.io/zone, labelSelector: {}}", []),
    ("pod-node-selectors", "", NODE % "{matchExpressions: [{key: a, operator: In, values: [-b]}]}", [NODE_AT + "[0].matchExpressions[0].values[0]"]),
    ("pod-node-selectors", "", NODE % "{matchExpressions: [{key: a, operator: In, values: []}]}", [NODE_AT + "[0].matchExpressions[0].values"]),
    ("pod-node-selectors", "", NODE % "{matchExpressions: [{key: a, operator: Gt, values: ['1', '2']}]}", [NODE_AT + "[0].matchExpressions[0].values"]),
    ("pod-node-selectors", "", NODE % "", [NODE_AT]),
    ("pod-node-selectors", "", NODE % "{matchFields: [{key: metadata.uid, operator: In, values: [a]}]}", [NODE_AT + "[0].matchFields[0].key"]),
    ("pod-node-selectors", "", NODE % "{matchFields: [{key: metadata.name, operator: Exists}]}", [NODE_AT + "[0].matchFields[0].operator"]),
    ("pod-node-selectors", "", NODE % "{matchFields: [{key: metadata.name, operator: In, values: [a, b]}]}", [NODE_AT + "[0].matchFields[0].values"]),
    ("pod-node-selectors", "", PREFERRED % "{matchExpressions: [{key: -a, operator: Exists}]}", [PREFERRED_AT + ".matchExpressions[0].key"]),
    ("pod-node-selectors", "", PREFERRED % "{matchExpressions: [{key: a, operator: In, values: [-b]}]}", []),
    ("pod-node-selectors", "", NODE % "{matchExpressions: [{key: nvidia.com/gpu, operator: In, values: [A100]}, {key: a, operator: Gt, values: ['3']}]}", []),
    ("pod-volume-paths", "", PROJECTED % "{secret: {name: a, items: [{key: a, path: /x}]}}", [PROJECTED_AT + "[0].secret.items[0].path"]),
    ("pod-volume-paths", "", PROJECTED % "{serviceAccountToken: {path: ../t}}", [PROJECTED_AT + "[0].serviceAccountToken.path"]),
    ("pod-volume-paths", "", "volumes: [{name: a, configMap: {name: b, items: [{key: k, path: ../x}]}}]", ["volumes[0].configMap.items[0].path"]),
    ("pod-volume-paths", "", "volumes: [{name: a, hostPath: {path: /a/../b}}]", ["volumes[0].hostPath.path"]),
    ("pod-volume-paths", "", "containers: [{volumeMounts: [{name: a, mountPath: /a, subPath: /x}]}]", ["containers[0].volumeMounts[0].subPath"]),
    ("pod-volume-paths", "", "containers: [{volumeMounts: [{name: a, mountPath: /a, subPath: x, subPathExpr: $(A)}]}]",
     ["containers[0].volumeMounts[0].subPathExpr"]),
    ("pod-volume-paths", "", PROJECTED % "{secret: {name: a, items: [{key: a, path: x/..y}]}}", []),
    ("pod-projected-sources", "", PROJECTED % "{secret: {name: a}, configMap: {name: b}}", [PROJECTED_AT + "[0]"]),
    ("pod-projected-sources", "", PROJECTED % "{serviceAccountToken: {}}", [PROJECTED_AT + "[0].serviceAccountToken.path"]),
    ("pod-projected-sources", "", PROJECTED % "{secret: {items: [{path: x}]}}, {configMap: {items: [{path: x}]}}",
     [PROJECTED_AT + "[1].configMap.items[0].path"]),
    ("pod-projected-sources", "", PROJECTED % "{serviceAccountToken: {path: token}}, {secret: {items: [{path: x}]}}", []),
    ("pod-projected-sources", "", "volumes: [{name: v, projected: {}}]", []),
    ("pod-downward-items", "", PROJECTED % "{downwardAPI: {items: [{path: x}]}}", [PROJECTED_AT + "[0].downwardAPI.items[0]"]),
    ("pod-downward-items", "", "volumes: [{name: v, downwardAPI: {items: [{path: x, fieldRef: {}, resourceFieldRef: {}}]}}]",
     ["volumes[0].downwardAPI.items[0]"]),
    ("pod-downward-items", "", PROJECTED % "{downwardAPI: {items: [{path: x, fieldRef: {fieldPath: metadata.name}}]}}", []),
    ("pod-volume-sizes", "", "volumes: [{name: a, emptyDir: {sizeLimit: '-1'}}]", ["volumes[0].emptyDir.sizeLimit"]),
    ("pod-volume-sizes", "", "volumes: [{name: a, emptyDir: {sizeLimit: 1Gi}}]", []),
    ("component-name-inside-model", "", "model: {name: a}", ["model.name"]),
    ("component-name-inside-model", "", "sklearn: {name: a}", ["sklearn.name"]),
    ("component-name-inside-model", "", "model: {runtime: a}", []),
    ("component-name-inside-model", "", "model: {name: ''}", []),
    ("component-name-inside-model", "transformer", "model: {name: a}", []),
    ("component-one-implementation", "", "minReplicas: 1", [""]),
    ("component-one-implementation", "", "pytorch: {}\nsklearn: {}", ["sklearn"]),
    ("component-one-implementation", "", "pytorch: {}\nsklearn: {}\nxgboost: {}", ["xgboost"]),
    ("component-one-implementation", "", "model: {}\nsklearn: {}", []),
    ("component-model-replaced", "", "model: {}\nsklearn: {}", ["model"]),
    ("component-model-replaced", "", "model: {}", []),
    ("component-model-replaced", CANARY, "model: {}\nsklearn: {}", []),
    ("component-one-implementation", CANARY, "model: {}\nsklearn: {}", ["model"]),
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
    ("storage-confidential-needs-uri", "", "model: {confidential: {enabled: true}}", ["model.confidential"]),
    ("storage-confidential-needs-uri", "", "sklearn: {confidential: {enabled: true}, storageUri: ''}", ["sklearn.confidential"]),
    ("storage-confidential-needs-uri", "", "model: {confidential: {enabled: false}}", []),
    ("storage-confidential-needs-uri", "", "model: {confidential: {enabled: true}, storageUri: gs://a}", []),
    ("storage-confidential-key", "", "model: {confidential: {enabled: true, resourceId: 'kbs:///a/b'}}", ["model.confidential.resourceId"]),
    ("storage-confidential-key", "", "model: {confidential: {enabled: true, resourceId: 'kbs:///a/b/c'}}", []),
    ("storage-confidential-key", "", "model: {confidential: {enabled: false, resourceId: x}}", []),
    *(("storage-confidential-without-effect", "", f"model: {{confidential: {{enabled: true}}, storageUri: '{scheme}://a'}}", ["model.confidential"])
        for scheme in ("oci", "pvc")),
    ("storage-confidential-without-effect", "", "model: {confidential: {enabled: true}, storageUri: 'gs://a'}", []),
    ("storage-confidential-without-effect", "", "model: {confidential: {enabled: false}, storageUri: 'oci://a'}", []),
    ("storage-uris-without-items", "", "storageUris: []", ["storageUris"]),
    ("storage-uris-without-items", "", "storageUris: [{uri: gs://a}]", []),
    ("storage-uris-not-empty", "", "storageUris: []", []),
    ("storage-uris-not-empty", "", "storageUris: [{uri: ''}]", ["storageUris[0].uri"]),
    ("storage-uris-not-empty", "", "storageUris: [{uri: gs://a}]", []),
    ("storage-uris-exclude-uri", "", "storageUris: [{uri: gs://a}]\nmodel: {storageUri: gs://b}", ["storageUris"]),
    ("storage-uris-exclude-uri", "", "storageUris: [{uri: gs://a}]\nmodel: {}", []),
    ("storage-uris-exclude-uri", "", "storageUris: [{uri: gs://a}]\ncontainers: [{env: [{name: STORAGE_URI}]}]", ["storageUris"]),
    ("storage-uris-exclude-uri", "", "storageUris: [{uri: gs://a}]\ncontainers: [{name: side, env: [{name: STORAGE_URI}]}]", []),
    ("storage-uris-exclude-uri", "", "model: {storageUri: gs://b}", []),
    *(("storage-mount-path", "", f"storageUris: [{{uri: gs://a, mountPath: {path}}}]", ["storageUris[0].mountPath"])
        for path in ("/", "a", "/a/../b", "/a..b/c", TOO_LONG)),
    *(("storage-mount-path", "", f"storageUris: [{{uri: gs://a, mountPath: {path}}}]", []) for path in ("/a", "/a.b/c", "/mnt/models/", LONG)),
    ("storage-mount-path", "", "storageUris: [{uri: gs://a}]", []),
    ("storage-volumes-apart", "", "storageUris: [{uri: pvc://a, mountPath: /m}, {uri: pvc://b, mountPath: /m/}]", ["storageUris[1].mountPath"]),
    ("storage-volumes-apart", "", "storageUris: [{uri: pvc://a, mountPath: /m}, {uri: pvc://b, mountPath: /n}]", []),
    ("storage-volumes-apart", "", "storageUris: [{uri: gs://a, mountPath: /m}, {uri: pvc://b, mountPath: /m}]", []),
    ("storage-common-parent", "", "storageUris: [{uri: gs://a, mountPath: /m/a}, {uri: s3://b, mountPath: /n/b}]", ["storageUris"]),
    ("storage-common-parent", "", "storageUris: [{uri: gs://a}, {uri: s3://b, mountPath: /mnt/models/b}]", []),
    ("storage-common-parent", "", "storageUris: [{uri: gs://a, mountPath: /m/a/x}, {uri: s3://b, mountPath: /m/b}]", []),
    ("storage-common-parent", "", "storageUris: [{uri: gs://a, mountPath: /m/a}, {uri: s3://b, mountPath: /m/b/}, {uri: pvc://c, mountPath: /n/c}]", []),
    ("scaling-hpa-metric", STANDARD_HPA, "scaleMetric: rps", ["scaleMetric"]),
    ("scaling-hpa-metric", STANDARD_HPA, "scaleMetric: memory", []),
    ("scaling-hpa-metric", STANDARD_HPA, "minReplicas: 1", []),
    ("scaling-hpa-metric", KNATIVE_HPA, "scaleMetric: rps", ["scaleMetric"]),
    ("scaling-hpa-metric", KEDA, "scaleMetric: rps", []),
    ("scaling-hpa-metric", MODE, "scaleMetric: rps", []),
    ("scaling-unsaid-metric", MODE, "scaleMetric: rps", ["scaleMetric"]),
    ("scaling-unsaid-metric", MODE, "scaleMetric: cpu", []),
    ("scaling-unsaid-metric", STANDARD_HPA, "scaleMetric: rps", []),
    ("scaling-unsaid-metric", "{}", "scaleMetric: rps", []),
    ("scaling-hpa-target", STANDARD_HPA, "scaleTarget: 101", ["scaleTarget"]),
    ("scaling-hpa-target", STANDARD_HPA, "scaleTarget: 0", ["scaleTarget"]),
    ("scaling-hpa-target", STANDARD_HPA, "scaleTarget: 1", []),
    ("scaling-hpa-target", STANDARD_HPA, "scaleTarget: 100", []),
    ("scaling-hpa-target", MODE, "scaleTarget: 101", []),
    ("scaling-unsaid-target", MODE, "scaleTarget: 150", ["scaleTarget"]),
    ("scaling-unsaid-target", MODE, "scaleTarget: 100", []),
    ("scaling-unsaid-target", "{}", "scaleTarget: 150", []),
    ("scaling-hpa-metric-types", STANDARD_HPA, "autoScaling: {metrics: [{type: Resource, resource: {}}, {type: External}]}", ["autoScaling.metrics[1].type"]),
    ("scaling-hpa-metric-types", STANDARD_HPA, "autoScaling: {metrics: [{type: Resource}]}", ["autoScaling.metrics[0].resource"]),
    ("scaling-hpa-metric-types", KEDA, "autoScaling: {metrics: [{type: External}]}", []),
    ("scaling-keda-metric", KEDA, "scaleMetric: cpu", ["scaleMetric"]),
    ("scaling-keda-metric", KEDA, "autoScaling: {metrics: []}", []),
    ("scaling-keda-metric", MODE, "scaleMetric: cpu", []),
    ("scaling-keda-metric-types", KEDA, "autoScaling: {metrics: [{type: Pods}, {}, {type: External}]}",
        ["autoScaling.metrics[0].type", "autoScaling.metrics[1].type", "autoScaling.metrics[2].external"]),
    ("scaling-keda-metric-types", KEDA,
        "autoScaling: {metrics: [{type: Resource, resource: {}}, {type: External, external: {}}, {type: PodMetric, podmetric: {}}]}", []),
    ("scaling-keda-metric-types", MODE, "autoScaling: {metrics: [{type: Pods}]}", []),
    *(("scaling-keda-resources", KEDA, f"autoScaling: {{metrics: [{{type: Resource, resource: {{name: {name}, target: {{{target}}}}}}}]}}",
        [f"autoScaling.metrics[0].resource.{found}"] if found else []) for name, target, found in (
            ("disk", "type: Utilization", "name"),
            ("cpu", "type: AverageValue, averageValue: 1", "target.type"),
            ("memory", "type: Value, value: 1Gi", "target.type"),
            ("memory", "type: AverageValue, averageValue: 500Ki", "target.averageValue"),
            ("memory", "type: AverageValue", "target.averageValue"),
            ("cpu", "type: Utilization", "target.averageUtilization"),
            ("cpu", "type: Utilization, averageUtilization: 101", "target.averageUtilization"),
            ("cpu", "type: Utilization, averageUtilization: 100", ""),
            ("memory", "type: AverageValue, averageValue: 1Mi", ""),
            ("memory", "type: Utilization, averageUtilization: 1", ""))),
    ("scaling-keda-resources", STANDARD_HPA, "autoScaling: {metrics: [{type: Resource, resource: {name: disk}}]}", []),
    *(("scaling-keda-queries", KEDA, f"autoScaling: {{metrics: [{{type: {kind}, {kind.lower()}: {{metric: {{{query}}}, target: {{{target}}}}}}}]}}",
        [f"autoScaling.metrics[0].{kind.lower()}.{found}"] if found else []) for kind in ("External", "PodMetric") for query, target, found in (
            ("", "type: Value, value: 3", "metric.query"),
            ("query: ''", "type: Value, value: 3", "metric.query"),
            ("query: a", "type: Value", "target.value"),
            ("query: a", "type: AverageValue, value: 3", "target.averageValue"),
            ("query: a", "type: Value, value: 3", ""))),
    ("scaling-keda-queries", MODE, "autoScaling: {metrics: [{type: External, external: {}}]}", []),
    ("scaling-strategy-of-deployments", "{}", "deploymentStrategy: {}", ["deploymentStrategy"]),
    ("scaling-strategy-of-deployments", MODE, "deploymentStrategy: {}", []),
    ("scaling-strategy-of-deployments", "{}", "minReplicas: 1", []),
    ("scaling-strategy-of-deployments", KNATIVE_HPA, "deploymentStrategy: {}", []),
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
    ("scaling-workers-not-scaled", HPA, "workerSpec: {}\nmodel: {}", ["workerSpec"]),
    ("scaling-workers-not-scaled", "{}", "workerSpec: {}\nmodel: {}", ["workerSpec"]),
    ("scaling-workers-not-scaled", NONE, "workerSpec: {}\nmodel: {}", []),
    ("scaling-workers-not-scaled", HPA, "workerSpec: {}", []),
    ("scaling-workers-not-scaled", HPA, "model: {}", []),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {storageUri: gs://a}", ["model.storageUri"]),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {}", ["model.storageUri"]),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {storageUri: pvc://a}", []),
    ("scaling-workers-share-storage", "", "workerSpec: {}\nmodel: {storageUri: oci://a}", []),
    ("scaling-workers-share-storage", "", "model: {storageUri: gs://a}", []),
    ("scaling-workers-one-container", "", "workerSpec: {containers: [{}, {}]}", ["workerSpec.containers"]),
    ("scaling-workers-one-container", "", "workerSpec: {containers: [{}]}", []),
    ("worker-sizes-not-in-environment", "", "workerSpec: {}\nmodel: {env: [{name: A}, {name: TENSOR_PARALLEL_SIZE}]}", ["model.env[1]"]),
    ("worker-sizes-not-in-environment", "", "workerSpec: {}\nmodel: {env: [{name: PIPELINE_PARALLEL_SIZE}]}", ["model.env[0]"]),
    ("worker-sizes-not-in-environment", "", "model: {env: [{name: PIPELINE_PARALLEL_SIZE}]}", []),
    ("worker-sizes-not-in-environment", "", "workerSpec: {}\nmodel: {env: [{name: SIZE}]}", []),
    ("worker-known-devices", "", "workerSpec: {containers: [{resources: {limits: {example.com/gpu: 1}}}]}",
        ["workerSpec.containers[0].resources.limits.example.com/gpu"]),
    ("worker-known-devices", "", "workerSpec: {}\nmodel: {resources: {requests: {example.com/gpu: 1, cpu: 1}}}",
        ["model.resources.requests.example.com/gpu"]),
    ("worker-known-devices", "", "workerSpec: {}\nmodel: {resources: {requests: {nvidia.com/gpu: 1, memory: 1}}}", []),
    ("worker-known-devices", "{serving.kserve.io/gpu-resource-types: '[\"example.com/gpu\"]'}",
        "workerSpec: {}\nmodel: {resources: {requests: {example.com/gpu: 1}}}", []),
    ("worker-known-devices", "", "model: {resources: {requests: {example.com/gpu: 1}}}", []),
    ("pod-image-written", "", "containers: [{name: kserve-container, image: a}, {name: b}]", ["containers[1].image"]),
    ("pod-image-written", "transformer", "containers: [{name: a}]", ["containers[0].image"]),
    ("pod-image-written", "", "model: {}\ncontainers: [{name: transformer-container}]", []),
    ("pod-image-written", "", "containers: [{name: a, image: b}]", []),
    ("pod-container-names", "", "containers: [{name: A_b}, {name: c}, {name: c}]", ["containers[0].name", "containers[2].name"]),
    ("pod-container-names", "", f"containers: [{{name: {'a' * 64}}}]", ["containers[0].name"]),
    ("pod-container-names", "", f"containers: [{{name: {'a' * 63}}}, {{name: b-1}}]", []),
    ("pod-variables", "", "containers: [{env: [{name: ''}, {name: a=b}]}]", ["containers[0].env[0].name", "containers[0].env[1].name"]),
    ("pod-variables", "", "model: {env: [{name: A, value: b, valueFrom: {secretKeyRef: {key: c}}}]}", ["model.env[0]"]),
    ("pod-variables", "", "containers: [{env: [{name: A, valueFrom: {}}]}]", ["containers[0].env[0].valueFrom"]),
    ("pod-variables", "", "containers: [{env: [{name: A, valueFrom: {secretKeyRef: {}, fieldRef: {}}}]}]", ["containers[0].env[0].valueFrom"]),
    ("pod-variables", "", "containers: [{env: [{name: A_b.c, value: ''}, {name: B, value: '', valueFrom: {fieldRef: {}}}]}]", []),
    ("pod-port-names", "", "containers: [{ports: [{name: Http}, {name: '1'}, {name: a--b}, {name: h}, {name: h}]}]",
        [f"containers[0].ports[{n}].name" for n in (0, 1, 2, 4)]),
    ("pod-port-names", "", "containers: [{ports: [{name: http1}, {name: grpc-v2}]}, {ports: [{name: http1}]}]", []),
    ("pod-probe-handlers", "", "containers: [{livenessProbe: {periodSeconds: 1}, readinessProbe: {httpGet: {}, grpc: {}}}]",
        ["containers[0].livenessProbe", "containers[0].readinessProbe"]),
    ("pod-probe-handlers", "", "containers: [{startupProbe: {exec: {}, successThreshold: 2}}]", ["containers[0].startupProbe.successThreshold"]),
    ("pod-probe-handlers", "", "model: {startupProbe: {exec: {}}, livenessProbe: {}, readinessProbe: {grpc: {}, successThreshold: 2}}", []),
    ("pod-mounts-have-volumes", "", "volumes: [{name: a}]\ncontainers: [{volumeMounts: [{name: a, mountPath: /x}, {name: b, mountPath: /x}]}]",
        ["containers[0].volumeMounts[1].name", "containers[0].volumeMounts[1].mountPath"]),
    ("pod-mounts-have-volumes", "",
        "volumes: [{name: a}]\ncontainers: [{volumeMounts: [{name: a, mountPath: /x}]}, {volumeMounts: [{name: a, mountPath: /x}]}]", []),
    ("pod-mounts-have-volumes", "", "model: {volumeMounts: [{name: of-the-runtime, mountPath: /x}]}", []),
    ("pod-image-pull-policy", "", "containers: [{imagePullPolicy: Sometimes}]", ["containers[0].imagePullPolicy"]),
    ("pod-image-pull-policy", "", "containers: [{imagePullPolicy: Always}, {}]", []),
    ("pod-tolerations", "", "tolerations: [{operator: In, key: a}, {effect: Never, key: a}, {operator: Exists, key: a, value: b}, {value: b}]",
        ["tolerations[0].operator", "tolerations[1].effect", "tolerations[2].value", "tolerations[3].operator"]),
    ("pod-tolerations", "", "tolerations: [{key: a, operator: Exists, effect: NoSchedule, tolerationSeconds: 3}]", ["tolerations[0].tolerationSeconds"]),
    ("pod-tolerations", "", "tolerations: [{key: -a, operator: Exists}]", ["tolerations[0]"]),
    ("pod-tolerations", "", "tolerations: [{operator: Exists}, {key: a, value: b, effect: NoSchedule}, {key: a, operator: Equal, effect: ''}]", []),
    ("pod-labels", "", "labels: {a: b c, -x: y}\nannotations: {a: any text, b/c/d: x}", ["labels.a", "labels.-x", "annotations.b/c/d"]),
    ("pod-labels", "", f"nodeSelector: {{pool: {'a' * 64}}}", ["nodeSelector.pool"]),
    ("pod-labels", "", f"labels: {{app.kubernetes.io/name: {'a' * 63}, b: ''}}\nnodeSelector: {{pool: gpu}}", []),
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
    ("component-storage-scheme", "", "containers: [{env: [{name: STORAGE_URI, value: s33://a}]}]", ["containers[0].env[0].value"]),
    ("component-storage-scheme", "", "model: {storageUri: model-registry://a}", []),
    ("component-storage-scheme-of-platform", "", "model: {storageUri: model-registry://a}", ["model.storageUri"]),
    ("component-storage-scheme-of-platform", "", "model: {storageUri: s4://a}", []),
    ("component-storage-scheme-of-platform", "", "model: {storageUri: gs://a}\ncontainers: [{env: [{name: STORAGE_URI, value: ./a}]}]", []),
    ("component-scheduling-in-knative", "{}", "nodeSelector: {a: b}\ntolerations: [{}]\naffinity: {}", ["nodeSelector", "tolerations"]),
    ("component-scheduling-in-knative", MODE, "nodeSelector: {a: b}", []),
    ("component-knative-fields-in-standard", MODE, "minReplicas: 0\ncontainerConcurrency: 4", ["minReplicas", "containerConcurrency"]),
    ("component-knative-fields-in-standard", KEDA, "minReplicas: 0\ncontainerConcurrency: 0", []),
    ("component-knative-fields-in-standard", "{}", "minReplicas: 0\ncontainerConcurrency: 4", []),
    ("component-knative-fields-in-standard", MODE, "minReplicas: 1", []),
    ("component-format-named", "", "model: {storageUri: gs://a}", ["model.modelFormat"]),
    ("component-format-named", "", "model: {runtime: a}", []),
    ("component-format-named", "", "model: {modelFormat: {name: a}}", []),
    ("component-protocol-known", "", "model: {protocolVersion: V2}\nsklearn: {protocolVersion: grpc}", ["sklearn.protocolVersion", "model.protocolVersion"]),
    *(("component-protocol-known", "", f"model: {{protocolVersion: {word}}}", []) for word in ("v1", "v2", "grpc-v1", "grpc-v2")),
    ("component-batcher-speaks-v1", "", "batcher: {}\nmodel: {protocolVersion: v2}", ["batcher"]),
    ("component-batcher-speaks-v1", "", "batcher: {}\ncontainers: [{env: [{name: PROTOCOL, value: v2}]}]", ["batcher"]),
    ("component-batcher-speaks-v1", "", "batcher: {}\nmodel: {protocolVersion: v1}", []),
    ("component-batcher-speaks-v1", "", "model: {protocolVersion: v2}", []),
    ("component-storage-scheme", "", "model: {storageUri: 'https://a.blob.core.windows.net/b'}", []),
    *(("component-storage-scheme", "", f"model: {{storageUri: '{scheme}://a/b'}}", [])
        for scheme in ("gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "oci+native", "oci+fetch", "hf", "modelscope")),
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
    at = ("spec", "canary", 0, "predictor") if where == CANARY else ("spec", part)
    block = Block(at, yaml.safe_load(text), annotations)
    found = paths(list(RULES[rule].check(block)))
    assert found == [f"{spelled(at)}.{path}".rstrip(".") for path in expected]


CLAIM = "apiVersion: v1\nkind: PersistentVolumeClaim\nspec: {%s}\n"
DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nspec: {selector: %s, template: {metadata: {labels: %s}}}\n"
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


def graph(nodes: str, name: str = "g") -> str:
    return f"apiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\nmetadata: {{name: {name}}}\nspec: {{nodes: {{{nodes}}}}}\n"


def trained(name: str, uri: str) -> str:
    head = f"apiVersion: serving.kserve.io/v1alpha1\nkind: TrainedModel\nmetadata: {{name: {name}}}\n"
    return head + f"spec: {{inferenceService: a, model: {{framework: sklearn, memory: 1Gi, storageUri: '{uri}'}}}}\n"


TRANSFORMER_ARGS = "spec.transformer.containers[0].args"
COLLOCATED_ARGS = "spec.predictor.containers[1].args"
BOTH = NAMED + "spec: {predictor: {canaryTrafficPercent: 10}, transformer: {canaryTrafficPercent: 20}}\n"
PERCENTS = ["spec.predictor.canaryTrafficPercent", "spec.transformer.canaryTrafficPercent"]
SCRAPING = "serving.kserve.io/enable-prometheus-scraping: 'true'"


def traced(fields: str) -> str:
    return NAMED + f"spec: {{predictor: {{}}, tracing: {{{fields}}}}}\n"


WHOLE: list[tuple[str, str, list[str]]] = [
    ("object-api-version", ISVC.replace("v1beta1", "v1"), ["apiVersion"]),
    ("object-api-version", ISVC, []),
    ("object-no-key-twice", ISVC + "spec:\n  a: 1\n  a: 2\n", ["spec.a"]),
    ("object-no-key-twice", ISVC + "spec:\n  a: 1\n  b: 2\n", []),
    ("core-secret-data", "apiVersion: v1\nkind: Secret\ndata: {a: 'ab c', b: YWI=, c: minio}\n", ["data.a", "data.c"]),
    ("core-secret-data", "apiVersion: v1\nkind: Secret\ndata: {a: YWI=}\nstringData: {b: 'ab c'}\n", []),
    *(  # a kind of somebody else's that has the same name
        ("core-secret-data", f"apiVersion: {version}\nkind: Secret\ndata: {{a: 'ab c'}}\n", [])
        for version in ("example.org/v1", "vault.example.org/v1")
    ),
    ("core-selectors-match", DEPLOYMENT % ("{}", "{app: a}"), ["spec.selector"]),
    ("core-selectors-match", DEPLOYMENT % ("{matchLabels: {app: a}}", "{app: b}"), ["spec.template.metadata.labels.app"]),
    ("core-selectors-match", DEPLOYMENT % ("{matchLabels: {app: a}}", "{app: a, b: c}"), []),
    ("core-claims", CLAIM % "accessModes: []", ["spec.accessModes", "spec.resources.requests.storage"]),
    ("core-claims", CLAIM % "accessModes: [rwo], resources: {requests: {storage: 0}}, volumeMode: file", [
        "spec.accessModes[0]", "spec.resources.requests.storage", "spec.volumeMode",
    ]),
    ("core-claims", CLAIM % "accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}", []),
    ("service-name", ISVC, ["metadata.name"]),
    ("service-name", ISVC + "metadata: {name: 7}\n", ["metadata.name"]),
    ("service-name", ISVC + "metadata: {name: Fraud}\n", ["metadata.name"]),
    ("service-name", ISVC + "metadata: {name: 1fraud}\n", ["metadata.name"]),
    ("service-name", NAMED, []),
    ("service-predictor", NAMED, ["spec"]),
    ("service-predictor", NAMED + "spec: {}\n", ["spec.predictor"]),
    ("service-predictor", NAMED + "spec: {predictor: }\n", ["spec.predictor"]),
    ("service-predictor", NAMED + "spec: {predictor: {model: {}}}\n", []),
    ("service-autoscaler-class", annotated("serving.kserve.io/autoscalerClass: kpa"), ["metadata.annotations.serving.kserve.io/autoscalerClass"]),
    *(("service-autoscaler-class", annotated(f"serving.kserve.io/autoscalerClass: {name}"), []) for name in ("hpa", "external", "keda", "none")),
    *(("tracing-sampler", traced(f"sampler: {name}"), ["spec.tracing.sampler"]) for name in ("jaeger_remote", "''", "Always_on")),
    *(("tracing-sampler", traced(f"sampler: {name}"), []) for name in ("always_on", "parentbased_traceidratio", "3", "")),
    *(("tracing-endpoint", traced(f"exporterEndpoint: '{url}'"), ["spec.tracing.exporterEndpoint"])
        for url in ("", "otel-collector:4317", "grpc://c:4317", "http://", "/v1/traces", "http://c:x", "http://a b:4317", "http://[::1")),
    *(("tracing-endpoint", traced(f"exporterEndpoint: '{url}'"), [])
        for url in ("http://c:4317", "HTTPS://c.ns.svc", "http://[::1]:4317", "https://u:p@c/v1")),
    ("tracing-endpoint", traced(""), []),
    *(("tracing-exporter", traced(f"exporter: '{name}'"), ["spec.tracing.exporter"]) for name in ("zipkin", "otlp,jaeger", "")),
    *(("tracing-exporter", traced(f"exporter: '{name}'"), []) for name in ("otlp", "console", "none", "otlp, Console")),
    *(("tracing-ratio", traced(f"samplerArg: '{text}'"), ["spec.tracing.samplerArg"]) for text in ("5%", "1.5", "-1", "nan", "")),
    ("tracing-ratio", traced("samplerArg: '0.5', sampler: always_on"), ["spec.tracing.samplerArg"]),
    *(("tracing-ratio", traced(f"samplerArg: '{text}'"), []) for text in ("0", "1", "0.05", "1e-3")),
    ("tracing-ratio", traced("sampler: always_on"), []),
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
    ("canary-extensions", canaries(one(1, "logger: {}, minReplicas: -1, containerConcurrency: -1")),
        [f"spec.canary[0].predictor.{key}" for key in ("containerConcurrency", "minReplicas", "logger.mode")]),
    ("canary-extensions", canaries(one(1, "logger: {mode: all}, minReplicas: 0")), []),
    ("canary-scaling-is-the-stables", canaries(one(1, "maxReplicas: 0")), []),
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
    ("service-knative-annotations", annotated("serving.kserve.io/deploymentMode: Standard, autoscaling.knative.dev/target: '5'"),
        ["metadata.annotations.autoscaling.knative.dev/target"]),
    ("service-knative-annotations", STANDARD + "spec: {transformer: {annotations: {serving.knative.dev/x: y}}}\n",
        ["spec.transformer.annotations.serving.knative.dev/x"]),
    ("service-knative-annotations", annotated("autoscaling.knative.dev/target: '5'"), []),
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
    ("transformer-collocated-predictor-host", collocated("--x").replace("{containers", "{model: {}, containers"), []),
    ("transformer-predictor-protocol", collocated("--x").replace("{containers", "{model: {}, containers"), []),
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
    ("metadata-labels", ISVC + "metadata: {labels: {a: b c}, annotations: {'a b': c}}\n", ["metadata.labels.a", "metadata.annotations.a b"]),
    ("metadata-labels", ISVC + "metadata: {labels: {a/b: c}, annotations: {a: any text}}\n", []),
    ("metadata-name", ISVC + "metadata: {name: a_b, namespace: a.b}\n", ["metadata.name", "metadata.namespace"]),
    ("metadata-name", ISVC + "metadata: {name: a.b, namespace: a-b}\n", []),
    ("graph-name", graph("root: {}", "a.b"), ["metadata.name"]),
    ("graph-name", graph("root: {}"), []),
    ("graph-root-node", graph("rot: {}"), ["spec.nodes"]),
    ("graph-root-node", graph("root: {}"), []),
    ("graph-step-names", graph("root: {steps: [{name: a}, {name: b}, {name: a}]}"), ["spec.nodes.root.steps[2].name"]),
    ("graph-step-names", graph("root: {steps: [{name: a}, {}, {}]}, x: {steps: [{name: a}]}"), []),
    ("graph-one-target", graph("root: {steps: [{}, {serviceName: a, nodeName: b}, {serviceUrl: a}]}"),
        ["spec.nodes.root.steps[0]", "spec.nodes.root.steps[1]"]),
    ("graph-one-target", graph("root: {steps: [{serviceName: a, nodeName: ''}]}"), []),
    ("graph-weights", graph("root: {routerType: Splitter, steps: [{weight: 50}, {weight: 49}]}"), ["spec.nodes.root.steps"]),
    ("graph-weights", graph("root: {routerType: Splitter, steps: [{weight: 100}, {}]}"), ["spec.nodes.root.steps[1].weight"]),
    ("graph-weights", graph("root: {routerType: Splitter, steps: [{weight: 0}, {weight: 100}]}, x: {routerType: Sequence, steps: [{}]}"), []),
    ("graph-known-nodes", graph("root: {steps: [{nodeName: b}, {nodeName: root}]}"), ["spec.nodes.root.steps[0].nodeName"]),
    ("graph-known-nodes", graph("root: {steps: [{nodeName: b}, {serviceName: c}]}, b: {}"), []),
    ("graph-ends-somewhere", graph("root: {steps: [{nodeName: b}]}, b: {steps: [{nodeName: c}]}, c: {steps: [{nodeName: b}]}"),
        ["spec.nodes.b", "spec.nodes.c"]),
    ("graph-ends-somewhere", graph("root: {steps: [{nodeName: b}, {nodeName: c}]}, b: {steps: [{nodeName: c}]}, c: {}"), []),
    ("graph-switch-has-conditions", graph("root: {routerType: Switch, steps: [{condition: a}, {}]}"), ["spec.nodes.root.steps[1].condition"]),
    ("graph-switch-has-conditions", graph("root: {routerType: Sequence, steps: [{}]}"), []),
    ("graph-condition-means-something", graph("root: {routerType: Switch, steps: [{condition: 'a.#(b>1'}]}"),
        ["spec.nodes.root.steps[0].condition"]),
    ("graph-condition-means-something", graph("root: {routerType: Switch, steps: [{condition: 'a.#(b>1)'}, {}]}"), []),
    ("graph-first-of-sequence", graph("root: {routerType: Sequence, steps: [{condition: a}, {}]}"), ["spec.nodes.root.steps[0].condition"]),
    ("graph-first-of-sequence", graph("root: {routerType: Sequence, steps: [{}, {condition: a}]}"), []),
    ("graph-node-has-steps", graph("root: {routerType: Sequence}"), ["spec.nodes.root.steps"]),
    ("graph-node-has-steps", graph("root: {routerType: Sequence, steps: [{}]}"), []),
    ("trained-model-name", trained("a.b", "gs://a"), ["metadata.name"]),
    ("trained-model-name", trained("A_b", "gs://a"), []),
    ("trained-model-storage", trained("a", "pvc://a"), ["spec.model.storageUri"]),
    *(("trained-model-storage", trained("a", f"{scheme}://a"), []) for scheme in ("gs", "s3", "http", "https")),
]  # fmt: skip


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: f"{case[0]}: {case[1][-44:]!r}")
def test_a_rule_of_services_finds_what_breaks_it_and_nothing_else(case):
    rule, text, expected = case
    (document,) = load_text(text, "isvc.yaml")
    judged = document if RULES[rule] in DOCUMENTS else ServiceView.of(document)
    assert paths(list(RULES[rule].check(judged))) == expected


HEAD = "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: %s}\nspec:\n"
FORMATS = HEAD + "  protocolVersions: [v1, v2]\n  supportedModelFormats: [%s]\n"
PRIORITY = "spec.supportedModelFormats[%d].priority"

RUNTIMES: list[tuple[str, str, list[str]]] = [
    ("runtime-name", HEAD % "''", ["metadata.name"]),
    ("runtime-name", HEAD % "a", []),
    ("runtime-model-container", HEAD % "a" + "  containers: [{name: x}, {name: kserve-containr}]\n", ["spec.containers[1].name"]),
    ("runtime-model-container", HEAD % "a" + "  containers: [{name: x}]\n", ["spec.containers[0].name"]),
    ("runtime-model-container", HEAD % "a" + "  containers: [{name: x}, {name: kserve-container}]\n", []),
    ("runtime-model-container", HEAD % "a", []),
    ("runtime-model-container", HEAD % "a" + "  multiModel: true\n  containers: [{name: x}]\n", []),
    ("runtime-priority-positive", FORMATS % ("a", "{name: x, priority: 0}, {name: y, priority: 1}"), [PRIORITY % 0]),
    ("runtime-priority-positive", FORMATS % ("a", "{name: x, priority: 1}, {name: y}"), []),
    ("runtime-priority-positive", FORMATS % ("a", "{name: x, priority: 0}") + "  disabled: true\n", []),
    ("runtime-one-priority-a-format", FORMATS % ("a", "{name: x, autoSelect: true, priority: 1}, {name: x, autoSelect: true, priority: 2}"), [PRIORITY % 1]),
    ("runtime-one-priority-a-format", FORMATS % ("a", "{name: x, autoSelect: true, priority: 1}, {name: x, priority: 2}"), []),
    ("runtime-one-priority-a-format", FORMATS % ("a", "{name: x, autoSelect: true, priority: 1}, {name: x, autoSelect: true}"), []),
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
        ((FORMATS % ("b", SHARED)).replace("[v1, v2]", "[v2]"), True),
        ((FORMATS % ("b", SHARED)).replace("[v1, v2]", "[grpc-v2]"), False),
        ((FORMATS % ("b", SHARED)).replace("[v1, v2]", "[]"), False),
        (FORMATS % ("b", SHARED.replace("name: x", "name: X")), True),
        (FORMATS % ("b", SHARED) + "  multiModel: true\n", False),
        ((FORMATS % ("b", SHARED)).replace("name: b", "name: b, namespace: other"), False),
        ((FORMATS % ("b", SHARED)).replace("kind: Serving", "kind: ClusterServing"), False),
    ],
)
def test_two_runtimes_with_one_priority_for_the_same_are_refused(other, found):
    documents = [*load_text(FORMATS % ("a", SHARED), "a.yaml"), *load_text(other, "b.yaml")]
    findings = list(shared_priorities(documents))
    assert {(document.name, spelled(path)) for document, (path, _, _) in findings} == (
        {("b", PRIORITY % 0)} if found else set()
    )


def test_every_rule_has_an_id_of_its_own_a_sentence_and_a_case_of_either_kind():
    every = (*BLOCK_RULES, *SERVICES, *DOCUMENTS, *RUNTIME_RULES)
    assert len({rule.id for rule in every}) == len(every)
    assert set(PORT_PITFALLS) <= set(COMPONENT_PITFALLS), "a runtime's ports are judged by a component's rules"
    for rule in every:
        assert rule.check.__doc__
    cases = [(rule, expected) for rule, *_, expected in (*BLOCKS, *WHOLE, *RUNTIMES)]
    assert {rule for rule, expected in cases if expected} == set(RULES)
    assert {rule for rule, expected in cases if not expected} == set(RULES)
