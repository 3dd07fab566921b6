"""The shape of KServe's objects: field names, types, required fields and enumerations, checked before any rule.

Source: the CRDs of KServe 0.21 (`config/crd/full`) and the core v1 types of Kubernetes 1.37. A field that is in no table
is refused with the nearest known name: the API server prunes it silently unless the client asks for strict validation,
which is how a canary percentage one letter wrong comes to mean nothing.
"""

from __future__ import annotations

from .shapes import Shape

__all__ = [
    "INFERENCE_SERVICE",
    "INFERENCE_SERVICE_SPEC",
    "LEGACY_FRAMEWORKS",
    "MODEL",
    "PREDICTOR",
    "SERVING_RUNTIME",
    "TRANSFORMER",
]

STRING, INTEGER, BOOLEAN = Shape("string"), Shape("integer"), Shape("boolean")
QUANTITY, ANY = Shape("quantity"), Shape("any")
STRINGS = Shape(items=STRING)
LABELS = Shape(values=STRING)
OBJECT = Shape(values=ANY)
OBJECTS = Shape(items=OBJECT)


def _enum(*words: str) -> Shape:
    return Shape("string", enum=words)


def _each(names: str, shape: Shape) -> dict[str, Shape]:
    return dict.fromkeys(names.split(), shape)


def _list(shape: Shape) -> Shape:
    return Shape(items=shape)


PROBE = Shape(
    fields={
        "httpGet": Shape(
            fields={"path": STRING, "port": QUANTITY, "host": STRING, "scheme": STRING, "httpHeaders": OBJECTS},
            required=("port",),
        ),
        "tcpSocket": Shape(fields={"port": QUANTITY, "host": STRING}, required=("port",)),
        "grpc": Shape(fields={"port": INTEGER, "service": STRING}, required=("port",)),
        "exec": Shape(fields={"command": STRINGS}),
        **_each(
            "initialDelaySeconds periodSeconds timeoutSeconds successThreshold failureThreshold "
            "terminationGracePeriodSeconds",
            INTEGER,
        ),
    }
)
KEY_REF = Shape(fields={"name": STRING, "key": STRING, "optional": BOOLEAN}, required=("key",))
ENV = Shape(
    fields={
        "name": STRING,
        "value": STRING,
        "valueFrom": Shape(
            fields={
                "fieldRef": OBJECT,
                "resourceFieldRef": OBJECT,
                "configMapKeyRef": KEY_REF,
                "secretKeyRef": KEY_REF,
                "fileKeyRef": OBJECT,
            }
        ),
    },
    required=("name",),
)
PORT = Shape(
    fields={
        "name": STRING,
        "containerPort": INTEGER,
        "hostPort": INTEGER,
        "hostIP": STRING,
        "protocol": _enum("TCP", "UDP", "SCTP"),
    },
    required=("containerPort",),
)
RESOURCES = Shape(fields={"limits": Shape(values=QUANTITY), "requests": Shape(values=QUANTITY), "claims": OBJECTS})
CONTAINER_FIELDS: dict[str, Shape] = {
    **_each(
        "name image imagePullPolicy workingDir terminationMessagePath terminationMessagePolicy restartPolicy", STRING
    ),
    **_each("command args", STRINGS),
    "env": _list(ENV),
    "envFrom": OBJECTS,
    "ports": _list(PORT),
    "resources": RESOURCES,
    **_each("livenessProbe readinessProbe startupProbe", PROBE),
    **_each("lifecycle securityContext", OBJECT),
    **_each("volumeMounts volumeDevices resizePolicy restartPolicyRules", OBJECTS),
    **_each("stdin stdinOnce tty", BOOLEAN),
}
CONTAINER = Shape(fields=CONTAINER_FIELDS, required=("name",))
POD_FIELDS: dict[str, Shape] = {
    "containers": _list(CONTAINER),
    "initContainers": _list(CONTAINER),
    **_each(
        "dnsPolicy hostname nodeName preemptionPolicy priorityClassName restartPolicy runtimeClassName schedulerName "
        "serviceAccount serviceAccountName subdomain hostnameOverride",
        STRING,
    ),
    **_each("activeDeadlineSeconds priority terminationGracePeriodSeconds", INTEGER),
    **_each(
        "automountServiceAccountToken enableServiceLinks hostIPC hostNetwork hostPID hostUsers setHostnameAsFQDN "
        "shareProcessNamespace",
        BOOLEAN,
    ),
    **_each("affinity dnsConfig os securityContext resources schedulingGroup", OBJECT),
    **_each(
        "ephemeralContainers hostAliases imagePullSecrets readinessGates resourceClaims schedulingGates "
        "tolerations topologySpreadConstraints volumes",
        OBJECTS,
    ),
    "nodeSelector": LABELS,
    "overhead": Shape(values=QUANTITY),
}
STORAGE = Shape(fields={"path": STRING, "parameters": LABELS, "key": STRING, "schemaPath": STRING})
STORAGE_URIS = _list(Shape(fields={"uri": STRING, "mountPath": STRING}, required=("uri",)))
LOGGER = Shape(
    fields={
        **_each("url marshallerUrl batchInterval", STRING),
        "batchSize": INTEGER,
        "mode": _enum("all", "request", "response"),
        **_each("metadataHeaders metadataAnnotations", STRINGS),
        "storage": Shape(fields={"path": STRING, "parameters": LABELS, "key": STRING, "serviceAccountName": STRING}),
    }
)
EXTENSION_FIELDS: dict[str, Shape] = {
    **_each("minReplicas maxReplicas scaleTarget containerConcurrency timeout canaryTrafficPercent", INTEGER),
    "scaleMetric": _enum("cpu", "memory", "concurrency", "rps"),
    "scaleMetricType": _enum("Utilization", "AverageValue"),
    "autoScaling": Shape(fields={"metrics": OBJECTS, "behavior": OBJECT}),
    "logger": LOGGER,
    "batcher": Shape(fields=_each("maxBatchSize maxLatency timeout", INTEGER)),
    **_each("labels annotations", LABELS),
    "deploymentStrategy": OBJECT,
}
FRAMEWORK_FIELDS: dict[str, Shape] = {
    **CONTAINER_FIELDS,
    **_each("storageUri runtimeVersion protocolVersion", STRING),
    "storage": STORAGE,
    "confidential": OBJECT,
}
MODEL = Shape(
    fields={
        **FRAMEWORK_FIELDS,
        "modelFormat": Shape(fields={"name": STRING, "version": STRING}, required=("name",)),
        "runtime": STRING,
    },
    required=("modelFormat",),
    hints={"framework": "modelFormat.name", "uri": "storageUri", "format": "modelFormat.name"},
)
LEGACY_FRAMEWORKS = [
    "huggingface",
    "lightgbm",
    "onnx",
    "paddle",
    "pmml",
    "pytorch",
    "sklearn",
    "tensorflow",
    "triton",
    "xgboost",
]
"""Predictor blocks from before `model`; the mutating webhook rewrites them to it."""

WORKER = Shape(fields={**POD_FIELDS, **_each("pipelineParallelSize tensorParallelSize", INTEGER)})
_MISPLACED = {
    "storageUri": "predictor.model.storageUri",
    "image": "containers[0].image",
    "env": "containers[0].env",
    "ports": "containers[0].ports",
}
PREDICTOR = Shape(
    fields={
        **POD_FIELDS,
        **EXTENSION_FIELDS,
        **_each(" ".join(LEGACY_FRAMEWORKS), Shape(fields=FRAMEWORK_FIELDS)),
        "name": STRING,
        "model": MODEL,
        "storageContainerName": STRING,
        "storageUris": STORAGE_URIS,
        "workerSpec": WORKER,
    },
    hints=_MISPLACED,
)
TRANSFORMER = Shape(fields={**POD_FIELDS, **EXTENSION_FIELDS, "storageUris": STORAGE_URIS}, hints=_MISPLACED)
EXPLAINER = Shape(
    fields={
        **POD_FIELDS,
        **EXTENSION_FIELDS,
        "art": Shape(
            fields={
                **CONTAINER_FIELDS,
                **_each("storageUri runtimeVersion", STRING),
                "storage": STORAGE,
                "type": STRING,
                "config": LABELS,
            }
        ),
        "storageUris": STORAGE_URIS,
    }
)
CANARY = _list(
    Shape(
        fields={"trafficPercent": INTEGER, "predictor": PREDICTOR},
        required=("trafficPercent", "predictor"),
        hints={"percent": "trafficPercent", "weight": "trafficPercent", "canaryTrafficPercent": "trafficPercent"},
    )
)
INFERENCE_SERVICE_SPEC = Shape(
    fields={
        "predictor": PREDICTOR,
        "transformer": TRANSFORMER,
        "explainer": EXPLAINER,
        "canary": CANARY,
        "tracing": OBJECT,
    },
    required=("predictor",),
    hints={"canaryTrafficPercent": "predictor.canaryTrafficPercent"},
)
METADATA = Shape(
    fields={
        **_each("name namespace generateName uid resourceVersion creationTimestamp selfLink deletionTimestamp", STRING),
        **_each("labels annotations", LABELS),
        "finalizers": STRINGS,
        "ownerReferences": OBJECTS,
        "managedFields": OBJECTS,
        **_each("generation deletionGracePeriodSeconds", INTEGER),
    }
)
_TOP: dict[str, Shape] = {"apiVersion": STRING, "kind": STRING, "metadata": METADATA, "status": OBJECT}
INFERENCE_SERVICE = Shape(
    fields={**_TOP, "spec": INFERENCE_SERVICE_SPEC},
    required=("metadata", "spec"),
    hints={"predictor": "spec.predictor"},
)
SERVING_RUNTIME = Shape(
    fields={
        **_TOP,
        "spec": Shape(
            fields={
                "containers": _list(CONTAINER),
                "supportedModelFormats": _list(
                    Shape(
                        fields={"name": STRING, "version": STRING, "autoSelect": BOOLEAN, "priority": INTEGER},
                        required=("name",),
                    )
                ),
                "protocolVersions": STRINGS,
                **_each("multiModel disabled hostIPC", BOOLEAN),
                **_each("labels annotations nodeSelector", LABELS),
                **_each("grpcEndpoint grpcDataEndpoint httpDataEndpoint schedulerName", STRING),
                **_each("affinity builtInAdapter storageHelper", OBJECT),
                **_each("imagePullSecrets tolerations volumes resourceClaims", OBJECTS),
                "replicas": INTEGER,
                "workerSpec": WORKER,
            },
            required=("containers",),
        ),
    },
    required=("metadata", "spec"),
)
