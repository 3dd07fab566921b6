"""Write `runtimes/serinus/manifests/published_schemas.json` from what KServe, Seldon and Kubernetes publish.

    python tests/manifests/make_schemas.py KSERVE SELDON KUBERNETES      (with the package `kserve` installed)

KSERVE is a checkout of github.com/kserve/kserve (its `config/crd/full`), SELDON one of github.com/SeldonIO/seldon-core at a tag under
the Apache licence (v2.6.0 or before; `operator/config/crd/bases`), KUBERNETES the folder `kubernetes-json-schema/vX.Y.Z-local-strict` of the
package `kubernetes-validate`. The versions are written into the file. What the SDK of KServe knows of an InferenceService and the checkout does
not yet (`spec.tracing` of 0.21) is taken from the SDK. Descriptions, statuses and defaults other than those of list
keys are left out, and equal schemas are written once, so that 10 MB become a file of some hundred kB that is read in milliseconds.

A node of the file is a mapping with what applies of: `type` (object, array, string, integer, number, boolean, int-or-string, quantity, any),
`fields` (name -> node), `required`, `values` (node of a mapping with free keys), `items`, `enum`, `minimum`, `maximum`, `minLength`, `maxLength`,
`minItems`, `maxItems`, `pattern`, `format`, and `keys` (fields by which the items of a list are told apart, name -> default or null). `since` says of
KServe's own fields which minor version had them first (0.11 is the oldest read).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).resolve().parents[2] / "runtimes/serinus/manifests/published_schemas.json"
CORE = {
    *(
        "",
        "apps",
        "autoscaling",
        "batch",
        "networking.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "scheduling.k8s.io",
    ),
    *("storage.k8s.io", "apiextensions.k8s.io", "admissionregistration.k8s.io", "coordination.k8s.io"),
}
"""API groups of Kubernetes whose kinds lie beside InferenceServices, in their stable versions."""

KEPT = ("enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "format")
_STABLE = re.compile(r"^v\d+$")


class Pool:
    """Nodes, each once."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._known: dict[str, int] = {}

    def add(self, node: dict[str, Any]) -> int:
        """The number of a node, new or known."""
        text = json.dumps(node, sort_keys=True)
        if text not in self._known:
            self._known[text] = len(self.nodes)
            self.nodes.append(node)
        return self._known[text]

    def reserve(self) -> int:
        """A number whose node comes later: for schemas that hold themselves."""
        self.nodes.append({"type": "any"})
        return len(self.nodes) - 1


class Reader:
    """Open API schemas as nodes."""

    def __init__(self, pool: Pool, definitions: dict[str, Any]) -> None:
        self._pool, self._definitions = pool, definitions
        self._referred: dict[str, int] = {}
        self._open: set[str] = set()

    def refer(self, name: str) -> int:
        """A definition by its name; a schema within itself is read as anything from there."""
        if name.endswith("resource.Quantity"):
            return self._pool.add({"type": "quantity"})
        if name.endswith("util.intstr.IntOrString"):
            return self._pool.add({"type": "int-or-string"})
        if name in self._open:
            return self._pool.add({"type": "any"})
        if name not in self._referred:
            self._open.add(name)
            self._referred[name] = self.read(self._definitions[name])
            self._open.discard(name)
        return self._referred[name]

    def read(self, schema: dict[str, Any]) -> int:
        """A schema's node."""
        if "$ref" in schema:
            return self.refer(schema["$ref"].rpartition("/")[2])
        if schema.get("x-kubernetes-int-or-string"):
            return self._pool.add(
                {"type": "quantity" if "[numkMGTPE]" in str(schema.get("pattern")) else "int-or-string"}
            )
        kind = schema.get("type")
        kind = next((word for word in kind if word != "null"), None) if isinstance(kind, list) else kind
        node: dict[str, Any] = {"type": kind or "any"}
        node.update({key: schema[key] for key in KEPT if key in schema})
        if isinstance(node.get("enum"), list):
            node["enum"] = [word for word in node["enum"] if word is not None]
        if kind == "array":
            node["items"] = self.read(schema["items"])
            if keys := schema.get("x-kubernetes-list-map-keys"):
                below = self._fields(schema["items"])
                node["keys"] = {
                    key: below.get(key, {}).get("default", "TCP" if key == "protocol" else None) for key in keys
                }
        elif schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("properties"):
            # Anything goes below an object; without a type anything goes.
            node = (
                {"type": "object", "values": self._pool.add({"type": "any"})} if kind == "object" else {"type": "any"}
            )
        elif kind == "object" or "properties" in schema:
            self._object(node, schema)
        return self._pool.add(node)

    def _fields(self, schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in schema:
            schema = self._definitions[schema["$ref"].rpartition("/")[2]]
        return schema.get("properties", {})

    def _object(self, node: dict[str, Any], schema: dict[str, Any]) -> None:
        node["type"] = "object"
        more = schema.get("additionalProperties")
        if schema.get("properties"):
            node["fields"] = {name: self.read(below) for name, below in sorted(schema["properties"].items())}
            if required := schema.get("required"):
                node["required"] = sorted(required)
            if schema.get("x-kubernetes-preserve-unknown-fields") or more is True:
                node["values"] = self._pool.add({"type": "any"})
        elif isinstance(more, dict) and more:
            node["values"] = self.read(more)
        else:
            node["values"] = self._pool.add({"type": "any"})


def custom_kinds(reader: Reader, pool: Pool, folder: Path, meta: int) -> dict[str, int]:
    """Kinds of the CustomResourceDefinitions below a folder."""
    kinds = {}
    for path in sorted(folder.rglob("*.yaml")):
        for crd in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if (
                not isinstance(crd, dict)
                or crd.get("kind") != "CustomResourceDefinition"
                or "versions" not in crd.get("spec", {})
            ):
                continue
            for version in crd["spec"]["versions"]:
                schema = version.get("schema", {}).get("openAPIV3Schema")
                if schema:
                    _bound_replicas(
                        schema, version.get("subresources", {}).get("scale", {}).get("specReplicasPath", "")
                    )
                    name = f"{crd['spec']['group']}/{version['name']}/{crd['spec']['names']['kind']}"
                    kinds[name] = top(reader, pool, schema, meta)
    return kinds


def _bound_replicas(schema: dict[str, Any], path: str) -> None:
    """Write down what the API server asks of a kind that can be scaled, and no schema says: replicas are not negative."""
    at = schema
    for name in path.split(".")[1:]:
        at = at.get("properties", {}).get(name, {})
    if path and at.get("type") == "integer":
        at.setdefault("minimum", 0)


def top(reader: Reader, pool: Pool, schema: dict[str, Any], meta: int) -> int:
    """A kind: its own fields, Kubernetes' metadata, and any status."""
    node = dict(
        pool.nodes[
            reader.read(
                {
                    **schema,
                    "properties": {k: v for k, v in schema["properties"].items() if k not in {"metadata", "status"}},
                    "required": [name for name in schema.get("required", ()) if name not in {"metadata", "status"}],
                }
            )
        ]
    )
    node["fields"] = {**node["fields"], "metadata": meta, "status": pool.add({"type": "any"})}
    return pool.add(node)


def core_kinds(reader: Reader, pool: Pool, definitions: dict[str, Any], meta: int) -> dict[str, int]:
    """Stable kinds of Kubernetes itself."""
    kinds = {}
    for schema in definitions.values():
        for known in schema.get("x-kubernetes-group-version-kind", []):
            group, version, kind = known["group"], known["version"], known["kind"]
            if (
                group in CORE
                and _STABLE.match(version)
                and not kind.endswith("List")
                and "metadata" in schema.get("properties", {})
            ):
                kinds[f"{group}/{version}/{kind}".lstrip("/")] = top(reader, pool, schema, meta)
    return kinds


_SDK_TYPES = {"str": "string", "bool": "boolean", "int": "integer", "float": "number"}


def add_tracing(pool: Pool, service: int) -> int:
    """An InferenceService with `spec.tracing`, as the SDK has it (V1beta1TracingSpec)."""
    from kserve.models import V1beta1TracingSpec

    types, names = V1beta1TracingSpec.openapi_types, V1beta1TracingSpec.attribute_map
    fields = {names[key]: pool.add({"type": _SDK_TYPES.get(kind, "any")}) for key, kind in sorted(types.items())}
    whole = dict(pool.nodes[service])
    spec = dict(pool.nodes[whole["fields"]["spec"]])
    spec["fields"] = {**spec["fields"], "tracing": pool.add({"type": "object", "fields": fields})}
    whole["fields"] = {**whole["fields"], "spec": pool.add(spec)}
    return pool.add(whole)


_SINCE_KINDS = (
    "InferenceService",
    "ServingRuntime",
    "ClusterServingRuntime",
    "InferenceGraph",
    "TrainedModel",
    "ClusterStorageContainer",
)


def field_paths(schema: dict[str, Any], known: set[str], path: str = "") -> set[str]:
    """Names of KServe's own fields below a schema; fields of pods and containers (`known`) are Kubernetes'."""
    found: set[str] = set()
    for name, below in schema.get("properties", {}).items():
        if path and name in known:
            continue
        here = f"{path}.{name}" if path else name
        found |= {here} | field_paths(below, known, here)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found |= field_paths(schema[key], known, path + "[]")
    return found


def published_fields(checkout: Path, revision: str, known: set[str]) -> dict[str, set[str]]:
    """Fields of KServe's kinds at a revision, by `group/version/kind`."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    kinds: dict[str, set[str]] = {}
    for path in git("ls-tree", "-r", "--name-only", revision, "config/crd").splitlines():
        if "/minimal/" in path or "serving.kserve.io_" not in path:
            continue
        for crd in yaml.load_all(git("show", f"{revision}:{path}"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            for version in (
                (crd or {}).get("spec", {}).get("versions", ())
                if (crd or {}).get("kind") == "CustomResourceDefinition"
                else ()
            ):
                if crd["spec"]["names"]["kind"] in _SINCE_KINDS and "schema" in version:
                    spec = version["schema"]["openAPIV3Schema"]["properties"].get("spec", {})
                    kinds[f"{crd['spec']['group']}/{version['name']}/{crd['spec']['names']['kind']}"] = field_paths(
                        {"properties": {"spec": spec}}, known
                    )
    return kinds


def since(checkout: Path, known: set[str]) -> dict[str, dict[str, str]]:
    """The first minor version of KServe that has a field, for fields that the oldest version read here lacks; the topmost field stands for all below."""
    words = subprocess.run(
        ["git", "-C", str(checkout), "tag"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    last: dict[int, int] = {}
    for match in filter(None, (re.fullmatch(r"v0\.(1[1-9]|[2-9][0-9])\.(\d+)", word) for word in words)):
        last[int(match[1])] = max(last.get(int(match[1]), 0), int(match[2]))
    minors = sorted(last)
    tables = {minor: published_fields(checkout, f"v0.{minor}.{last[minor]}", known) for minor in minors}
    tables[minors[-1] + 1] = published_fields(checkout, "HEAD", known)
    tables[minors[-1] + 1]["serving.kserve.io/v1beta1/InferenceService"].add("spec.tracing")
    found: dict[str, dict[str, str]] = {}
    for kind in tables[minors[-1] + 1]:
        first: dict[str, int] = {}
        for minor in sorted(tables, reverse=True):
            for field in tables[minor].get(kind, ()):
                first[field] = minor
        later = {
            field: minor
            for field, minor in first.items()
            if minor > minors[0] and field in tables[minors[-1] + 1][kind]
        }
        tops = {
            f: m
            for f, m in later.items()
            if later.get(f.rpartition(".")[0], later.get(f.rpartition(".")[0].removesuffix("[]"))) != m
        }
        found[kind] = {field: f"0.{minor}" for field, minor in sorted(tops.items())}
    return found


def version_of(checkout: Path) -> str:
    """A checkout's tag or commit."""
    command = ["git", "-C", str(checkout), "describe", "--tags", "--match", "v*", "--always", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def main(kserve: Path, seldon: Path, kubernetes: Path) -> None:
    """Write the file."""
    definitions = json.loads((kubernetes / "_definitions.json").read_text(encoding="utf-8"))
    definitions = definitions.get("$defs", definitions.get("definitions", definitions))
    pool = Pool()
    reader = Reader(pool, definitions)
    meta = reader.refer("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
    kinds = {
        **custom_kinds(reader, pool, kserve / "config/crd/full", meta),
        **custom_kinds(reader, pool, seldon / "operator/config/crd/bases", meta),
        **core_kinds(reader, pool, definitions, meta),
    }
    service = "serving.kserve.io/v1beta1/InferenceService"
    kinds[service] = add_tracing(pool, kinds[service])
    owned = set(definitions["io.k8s.api.core.v1.Container"]["properties"]) | set(
        definitions["io.k8s.api.core.v1.PodSpec"]["properties"]
    )
    sources = {
        "generator": "tests/manifests/make_schemas.py",
        "kserve": version_of(kserve),
        "kserve-sdk": metadata.version("kserve"),
        "seldon-core": version_of(seldon),
        "kubernetes": kubernetes.name.partition("-")[0],
        "licence": "Apache-2.0 (KServe, Seldon Core 2.6, Kubernetes)",
    }
    nodes = ",\n".join(json.dumps(node, sort_keys=True, separators=(",", ":")) for node in pool.nodes)
    head = json.dumps(
        {"sources": sources, "kinds": dict(sorted(kinds.items())), "since": since(kserve, owned)}, indent=1
    )
    TARGET.write_text(head.removesuffix("\n}") + ',\n "nodes": [\n' + nodes + "\n]}\n", encoding="utf-8")
    print(f"{TARGET.name}: {len(kinds)} kinds, {len(pool.nodes)} nodes, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*(Path(word) for word in sys.argv[1:]))
