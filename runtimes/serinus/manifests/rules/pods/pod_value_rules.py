"""Values in pods that no published schema says: words, ranges and names that the API server holds the made Deployment to.

Theory of operation. A table says where a value stands, below a pod or below each of its containers (`volumes[].hostPath.type`), and what it
must be; one function a table. What is absent, or of another shape, is judged elsewhere.
Source: validation.go of Kubernetes 1.37 (ValidatePodSpec and below), asked of a kube-apiserver with one change at a time.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...conventions import deployment_mode
from ...documents import FieldPath
from ...fields import containers_of, listed, mapping
from ..rule import Block, Findings, Rule

__all__ = ["POD_VALUE_RULES"]

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_SELECTOR = ("In", "NotIn", "Exists", "DoesNotExist")
_SECCOMP = ("Localhost", "RuntimeDefault", "Unconfined")
_REQUIRED, _PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
_NODE_TERMS = (
    f"affinity.nodeAffinity.{_REQUIRED}.nodeSelectorTerms[].matchExpressions[]",
    f"affinity.nodeAffinity.{_PREFERRED}[].preference.matchExpressions[]",
)
_POD_TERMS = tuple(
    f"affinity.{kind}.{below}"
    for kind in ("podAffinity", "podAntiAffinity")
    for below in (f"{_REQUIRED}[]", f"{_PREFERRED}[].podAffinityTerm")
)
_SELECTORS = (*(f"{term}.labelSelector" for term in _POD_TERMS), "topologySpreadConstraints[].labelSelector")

_POD_WORDS: Mapping[str, tuple[str, ...]] = {
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "securityContext.seccompProfile.type": _SECCOMP,
    "securityContext.fsGroupChangePolicy": ("OnRootMismatch", "Always"),
    "preemptionPolicy": ("PreemptLowerPriority", "Never"),
    "os.name": ("linux", "windows"),
    "topologySpreadConstraints[].whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
    **{f"topologySpreadConstraints[].{key}": ("Honor", "Ignore") for key in ("nodeAffinityPolicy", "nodeTaintsPolicy")},
    "volumes[].hostPath.type": (
        *("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"),
    ),
    **{f"{term}.operator": (*_SELECTOR, "Gt", "Lt") for term in _NODE_TERMS},
    **{f"{selector}.matchExpressions[].operator": _SELECTOR for selector in _SELECTORS},
}
_CONTAINER_WORDS: Mapping[str, tuple[str, ...]] = {
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
    "ports[].protocol": ("TCP", "UDP", "SCTP"),
    "volumeMounts[].mountPropagation": ("Bidirectional", "HostToContainer", "None"),
    "securityContext.seccompProfile.type": _SECCOMP,
    "securityContext.procMount": ("Default", "Unmasked"),
    **{f"{probe}.httpGet.scheme": ("HTTP", "HTTPS") for probe in _PROBES},
}
_ID = (0, 2**31 - 1)
_POD_RANGES: Mapping[str, tuple[int, int]] = {
    **{f"securityContext.{key}": _ID for key in ("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups[]")},
    **{f"topologySpreadConstraints[].{key}": (1, 2**31 - 1) for key in ("maxSkew", "minDomains")},
    f"affinity.nodeAffinity.{_PREFERRED}[].weight": (1, 100),
    **{f"affinity.{kind}.{_PREFERRED}[].weight": (1, 100) for kind in ("podAffinity", "podAntiAffinity")},
    "volumes[].projected.sources[].serviceAccountToken.expirationSeconds": (600, 2**32),
    **{f"volumes[].{kind}.defaultMode": (0, 0o777) for kind in ("configMap", "secret", "projected", "downwardAPI")},
    **{f"volumes[].{kind}.items[].mode": (0, 0o777) for kind in ("configMap", "secret", "downwardAPI")},
}
_TIMES = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "failureThreshold", "successThreshold")
_CONTAINER_RANGES: Mapping[str, tuple[int, int]] = {
    **{f"securityContext.{key}": _ID for key in ("runAsUser", "runAsGroup")},
    **{f"{probe}.{key}": (0, 2**31 - 1) for probe in _PROBES for key in _TIMES},
    **{f"{probe}.terminationGracePeriodSeconds": (1, 2**63 - 1) for probe in ("livenessProbe", "startupProbe")},
    **{f"{probe}.{way}.port": (1, 65535) for probe in _PROBES for way in ("httpGet", "tcpSocket", "grpc")},
}
_DOMAIN = (253, re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"))
_PREFIX = (253, re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*-*$"))
"""The server lets a name of `envFrom` end in dashes."""
_LABEL = (63, re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
_POD_NAMES: Mapping[str, tuple[int, re.Pattern[str]]] = {
    "serviceAccountName": _DOMAIN,
    "priorityClassName": _DOMAIN,
    "runtimeClassName": _DOMAIN,
    "nodeName": _DOMAIN,
    "hostname": _LABEL,
    "subdomain": _LABEL,
    "hostAliases[].hostnames[]": _DOMAIN,
    "volumes[].name": _LABEL,
}
_CONTAINER_NAMES: Mapping[str, tuple[int, re.Pattern[str]]] = {
    "env[].valueFrom.secretKeyRef.name": _DOMAIN,
    "env[].valueFrom.configMapKeyRef.name": _DOMAIN,
    "envFrom[].secretRef.name": _PREFIX,
    "envFrom[].configMapRef.name": _PREFIX,
}
_HANDLERS = (*_PROBES, "lifecycle.preStop", "lifecycle.postStart")
_VARIABLE = "env[].valueFrom"
_KEY = re.compile(r"(?!\.{1,2}$)[-._a-zA-Z0-9]{1,253}")
_KEY_MEND = "use letters, digits, - _ ."
_POD_FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "securityContext.sysctls[].name": (
        re.compile(r"(?=.{1,253}$)([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?"),
        "write a kernel parameter, such as net.core.somaxconn",
    ),
}
_CONTAINER_FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    **{
        f"{handler}.httpGet.httpHeaders[].name": (re.compile(r"[-A-Za-z0-9]+"), "use letters, digits and dashes")
        for handler in _HANDLERS
    },
    **{
        f"{handler}.{way}.port": (
            re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?!-))*(?<!-)"),
            "write a number, or the name of a port of the container",
        )
        for handler in _HANDLERS
        for way in ("httpGet", "tcpSocket")
    },
    f"{_VARIABLE}.fieldRef.fieldPath": (
        re.compile(
            r"metadata\.(name|namespace|uid|(labels|annotations)\['[^']+'\])|spec\.(nodeName|serviceAccountName)|status\.(hostIP|podIP)s?"
        ),
        "use metadata.name, .namespace, .uid, .labels['KEY'], spec.nodeName, spec.serviceAccountName, status.hostIP or status.podIP",
    ),
    f"{_VARIABLE}.resourceFieldRef.resource": (
        re.compile(r"(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-.+)"),
        "write limits or requests of cpu, memory or ephemeral-storage, such as limits.cpu",
    ),
    f"{_VARIABLE}.configMapKeyRef.key": (_KEY, _KEY_MEND),
    f"{_VARIABLE}.secretKeyRef.key": (_KEY, _KEY_MEND),
    "envFrom[].prefix": (re.compile(r"[ -<>-~]*"), "use letters, digits and underscores"),
}
_POD_WRITTEN: Mapping[str, tuple[str, ...]] = {
    "volumes[].persistentVolumeClaim": ("claimName",),
    "volumes[].configMap": ("name",),
    "volumes[].secret": ("secretName",),
    "volumes[].hostPath": ("path",),
    "volumes[].projected.sources[].secret": ("name",),
    "volumes[].projected.sources[].configMap": ("name",),
    **{f"volumes[].{kind}.items[]": ("key", "path") for kind in ("configMap", "secret")},
    "topologySpreadConstraints[]": ("topologyKey", "whenUnsatisfiable"),
    "initContainers[]": ("name",),
    "volumes[]": ("name",),
    "securityContext.sysctls[]": ("name",),
    **dict.fromkeys(_POD_TERMS, ("topologyKey",)),
}
_CONTAINER_WRITTEN: Mapping[str, tuple[str, ...]] = {
    "volumeMounts[]": ("name", "mountPath"),
    f"{_VARIABLE}.configMapKeyRef": ("name", "key"),
    f"{_VARIABLE}.secretKeyRef": ("name", "key"),
    f"{_VARIABLE}.fieldRef": ("fieldPath",),
    f"{_VARIABLE}.resourceFieldRef": ("resource",),
    "envFrom[].secretRef": ("name",),
    "envFrom[].configMapRef": ("name",),
    **{f"{probe}.exec": ("command",) for probe in _PROBES},
    **{f"lifecycle.{hook}.exec": ("command",) for hook in ("preStop", "postStart")},
}
_STANDARD = ("cpu", "memory", "ephemeral-storage")


def _find(value: Any, pattern: str, path: FieldPath) -> Iterator[tuple[FieldPath, Any]]:
    """Every value at a pattern; `[]` stands for each item of a list."""
    found: list[tuple[FieldPath, Any]] = [(path, value)]
    for part in pattern.split("."):
        name, is_list = part.removesuffix("[]"), part.endswith("[]")
        found = [((*at, name), below[name]) for at, below in found if isinstance(below, dict) and name in below]
        if is_list:
            found = [((*at, index), item) for at, items in found for index, item in enumerate(listed(items))]
        if not found:  # as of most patterns, at the first name
            return
    yield from ((at, below) for at, below in found if below is not None)


def _places(
    block: Block, of_pod: Mapping[str, Any], of_container: Mapping[str, Any]
) -> Iterator[tuple[FieldPath, Any, Any]]:
    """For each entry of both tables, the values that it speaks of, with their paths."""
    worker = ((*block.path, "workerSpec"), mapping(block.value.get("workerSpec")))
    for path, pod in ((block.path, block.value), worker):
        for pattern, entry in of_pod.items():
            yield from ((at, value, entry) for at, value in _find(pod, pattern, path))
        for where, container in containers_of(path, pod):
            for pattern, entry in of_container.items():
                yield from ((at, value, entry) for at, value in _find(container, pattern, where))


def words(block: Block) -> Findings:
    """Some fields take one of a few words."""
    for at, value, known in _places(block, _POD_WORDS, _CONTAINER_WORDS):
        if isinstance(value, str) and value not in known and (value or at[-1] == "operator"):
            yield at, f"{value!r} is not accepted", f"use one of {', '.join(word for word in known if word)}"


def restart_policy(block: Block) -> Findings:
    """A Deployment's containers are always started again, a Job's are not, and a Job says which way."""
    written = block.value.get("restartPolicy")
    if (
        isinstance(written, str | None)
        and written not in block.restarts
        and (written or "Always" not in block.restarts)
    ):
        said = f"{written!r} is not accepted" if written else "missing"
        yield (*block.path, "restartPolicy"), said, f"use {' or '.join(block.restarts)}"


def ranges(block: Block) -> Findings:
    """Some numbers have bounds."""
    for at, value, (low, high) in _places(block, _POD_RANGES, _CONTAINER_RANGES):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 and not low <= value <= high:
            said = f"less than {low}" if value < low else f"more than {high}"
            yield at, f"{value} is {said}", f"use {low} or more" if value < low else f"use {high} or less"


def names(block: Block) -> Findings:
    """Names of other objects, and of volumes, have the form of such names."""
    for at, value, (most, form) in _places(block, _POD_NAMES, _CONTAINER_NAMES):
        if isinstance(value, str) and value and (len(value) > most or not form.match(value)):
            yield at, f"{value!r} is not a name", f"use lower-case letters, digits and dashes, at most {most}"


def forms(block: Block) -> Findings:
    """Some texts have a grammar of their own."""
    for at, value, (form, mend) in _places(block, _POD_FORMS, _CONTAINER_FORMS):
        if isinstance(value, str) and not form.fullmatch(value) and (value or at[-1] in ("port", "name")):
            yield at, f"{value!r} is not accepted", mend


def addresses(block: Block) -> Findings:
    """Where an address is asked for, no name is taken."""
    for pattern in ("hostAliases[].ip", "dnsConfig.nameservers[]"):
        for at, value in _find(block.value, pattern, block.path):
            try:
                ipaddress.ip_address(value if isinstance(value, str) else "0.0.0.0")  # another type is judged elsewhere
            except ValueError:
                yield at, f"{value!r} is no IP address", "write such as 10.9.8.7"


def dns_configured(block: Block) -> Findings:
    """Without the cluster's DNS the pod's own is written."""
    if block.value.get("dnsPolicy") == "None" and not mapping(block.value.get("dnsConfig")).get("nameservers"):
        yield (*block.path, "dnsConfig"), "missing: dnsPolicy None takes nothing else", "write nameservers"


def handlers_ports(block: Block) -> Findings:
    """A probe says its port: Knative sets a missing one, a Deployment does not."""
    if deployment_mode(block.annotations) != "Standard" or block.part == "spec":
        return
    for where, container in containers_of(block.path, block.value):
        if not isinstance(where[-1], int):
            continue  # a runtime's probe may have it
        for handler in _HANDLERS:
            for way in ("httpGet", "tcpSocket", "grpc"):
                for at, value in _find(container, f"{handler}.{way}", where):
                    if isinstance(value, dict) and value.get("port") in (None, 0):
                        yield (*at, "port"), "missing: the Deployment is refused", "write the port's number or name"


def kernel_parameters_apart(block: Block) -> Findings:
    """A kernel parameter is set once."""
    seen: set[str] = set()
    for at, value in _find(block.value, "securityContext.sysctls[]", block.path):
        name = mapping(value).get("name")
        if isinstance(name, str) and name in seen:
            yield (*at, "name"), f"{name} is set twice", "keep one"
        seen.add(str(name))


def pauses(block: Block) -> Findings:
    """A hook that sleeps ends before the pod does (30 s where no grace period is written)."""
    grace = block.value.get("terminationGracePeriodSeconds")
    most = grace if isinstance(grace, int) and grace > 0 else 30
    for at, value, _ in _places(block, {}, dict.fromkeys(("lifecycle.preStop.sleep.seconds",), 0)):
        if isinstance(value, int) and not 0 <= value <= most:
            yield at, f"{value} s of a grace period of {most} s", f"use 0 to {most}"


def written(block: Block) -> Findings:
    """What a volume, a mount or a command is about has to be said."""
    runtime = block.part == "spec"
    for at, value, keys in _places(block, _POD_WRITTEN, _CONTAINER_WRITTEN):
        for key in keys:
            if isinstance(value, dict) and value.get(key) in ("", [], None):
                if runtime and value.get(key) is None and _is_required(at, key):
                    continue  # its schema says so, before any pod is made
                yield (*at, key), "missing", f"write {key}"


def _is_required(at: FieldPath, key: str) -> bool:
    """Whether the schema of a runtime asks for a field; references to objects are asked for by the server's code alone."""
    block = next((part for part in reversed(at) if isinstance(part, str)), "")
    by_name = {"volumeMounts", "sysctls", "initContainers", "volumes"}
    return key not in {"name", "secretName", "command"} or (key == "name" and block in by_name)


def volumes_apart(block: Block) -> Findings:
    """No two volumes have one name, and a volume is of one kind."""
    seen: list[str] = []
    for index, volume in enumerate(map(mapping, listed(block.value.get("volumes")))):
        name = volume.get("name")
        at = (*block.path, "volumes", index)
        if isinstance(name, str) and name in seen:
            yield (*at, "name"), f"{name!r} names two volumes", "use another name"
        seen.append(str(name))
        kinds = [key for key, value in volume.items() if key != "name" and value is not None]
        if len(kinds) > 1:
            yield at, f"is of {len(kinds)} kinds: {', '.join(kinds)}", "keep one"


def sources(block: Block) -> Findings:
    """Each item of `envFrom` names one source, and a hook of a container's life does one thing."""
    for where, container in containers_of(block.path, block.value):
        for index, item in enumerate(listed(container.get("envFrom"))):
            if isinstance(item, dict):
                found = [key for key in ("configMapRef", "secretRef") if item.get(key) is not None]
                if len(found) != 1:
                    yield (*where, "envFrom", index), f"{len(found)} sources", "write one of configMapRef, secretRef"
        for hook, handler in mapping(container.get("lifecycle")).items():
            if hook in ("preStop", "postStart") and isinstance(handler, dict):
                found = [key for key, value in handler.items() if value is not None]
                if len(found) != 1:
                    at = (*where, "lifecycle", hook)
                    yield at, f"{len(found)} handlers", "write one of exec, httpGet, sleep, tcpSocket"


def seccomp_profiles(block: Block) -> Findings:
    """A profile of the node's own is named, and no other."""
    for at, value, _ in _places(block, {"securityContext.seccompProfile": 0}, {"securityContext.seccompProfile": 0}):
        if isinstance(value, dict) and (value.get("type") == "Localhost") != bool(value.get("localhostProfile")):
            yield (*at, "localhostProfile"), "goes with type: Localhost, and that with it", "write both, or neither"


def resource_names(block: Block) -> Findings:
    """A container has resources of Kubernetes, and devices by their whole names."""
    for where, container in containers_of(block.path, block.value):
        for kind in ("requests", "limits"):
            for name in mapping(mapping(container.get("resources")).get(kind)):
                text = str(name)
                if "/" not in text and text not in _STANDARD and not text.startswith("hugepages-"):
                    at = (*where, "resources", kind, text)
                    yield at, f"{text!r} is no resource", f"use {', '.join(_STANDARD)}, or domain/name of a device"


POD_VALUE_RULES: tuple[Rule[Block], ...] = (
    Rule("pod-words", words, layer="controller"),
    Rule("pod-restart-policy", restart_policy, layer="controller"),
    Rule("pod-ranges", ranges, layer="controller"),
    Rule("pod-names", names, layer="controller"),
    Rule("pod-forms", forms, layer="controller"),
    Rule("pod-addresses", addresses, layer="controller"),
    Rule("pod-dns-configured", dns_configured, layer="controller"),
    Rule("pod-probe-ports", handlers_ports, layer="controller"),
    Rule("pod-kernel-parameters-apart", kernel_parameters_apart, layer="controller"),
    Rule("pod-pauses", pauses, layer="controller"),
    Rule("pod-written", written, layer="controller"),
    Rule("pod-volumes-apart", volumes_apart, layer="controller"),
    Rule("pod-sources", sources, layer="controller"),
    Rule("pod-seccomp-profiles", seccomp_profiles, layer="controller"),
    Rule("pod-resource-names", resource_names, layer="controller"),
)
