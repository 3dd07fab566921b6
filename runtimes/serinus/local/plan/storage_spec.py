"""Where a model lies: `model.storage` as the URI that KServe's webhook makes of it, and what `serinus up` takes instead of a URI. Pure.

The first reads the fields of the secret `storage-config`, the second the annotation serinus.dev/local-storage-uri.

Source: CreateStorageSpecSecretEnvs, `pkg/credentials/service_account_credentials.go` of KServe: the entry `key` of the secret (without one, `default` or
`default_TYPE`, which may be missing), overridden by `parameters`; `TYPE://BUCKET/PATH`. The secret is one of the manifests', or a file of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...manifests.conventions import PREFIX
from ...manifests.documents import Source
from ...manifests.fields import mapping
from ...manifests.inference_service import Component, InferenceService, StorageUri
from ...manifests.problems import Problems
from .container_environment import ConfigData

__all__ = ["LOCAL_STORAGE", "local_storage", "with_storage_spec"]

_SECRET = "storage-config"  # noqa: S105 (its name)
_TYPES = ("s3", "hdfs", "webhdfs")
_NEEDS_BUCKET = ("s3",)
_CONFIG, _OVERRIDE = "STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG"
"""Variables that KServe's storage initializer, and its package kserve-storage, read."""


def with_storage_spec(
    service: InferenceService,
    component: Component,
    data: ConfigData,
    local_file: Mapping[str, str],
    problems: Problems,
) -> Component:
    """The component with the URI of its `model.storage`; as it is where it has none.

    Args:
        service: it belongs to.
        component: perhaps with a storage spec.
        data: Secrets of the manifests.
        local_file: entries of a file that stands for the secret; they win.
        problems: takes what KServe's webhook would refuse when the pod starts.
    """
    spec = component.model.storage if component.model is not None else None
    if spec is None or component.model is None or component.storage:
        return component
    source = component.model.source.under("storage")
    parameters = {str(key): str(value) for key, value in mapping(spec.get("parameters")).items()}
    path = str(spec.get("path") or "").lstrip("/")
    name = service.annotations.get(PREFIX + "storageSecretName") or _SECRET
    entries = {**data.entries.get(("Secret", service.namespace, name), {}), **local_file}
    wanted = str(spec.get("key") or "")
    key = wanted or ("default_" + parameters["type"] if parameters.get("type") else "default")
    text = entries.get(key)
    if service.annotations.get(LOCAL_STORAGE) and text is None:
        # The annotation says where the files lie; the URI is only what it stands for.
        text = json.dumps({"type": "s3", "bucket": "local"})
    if text is None and wanted:
        there = ", ".join(sorted(entries)) or "none"
        message = f"key {wanted} is not in Secret {name} of namespace {service.namespace}; keys known: {there}"
        mend = "add the Secret's manifest, or give its entries as a file: --storage-config FILE"
        problems.error_at(source, ("key",), message, mend)
        return component
    fields = _fields(text or "{}")
    if fields is None:
        message = f"entry {key} of Secret {name} is no JSON object of texts"
        problems.error_at(
            source, ("key",), message, 'write {"type": "s3", "bucket": "..."}; numbers and booleans in quotes'
        )
        return component
    kind = parameters.get("type") or fields.get("type", "")
    bucket = parameters.get("bucket") or fields.get("bucket", "")
    if kind not in _TYPES:
        message = f"storage type {kind} is not known" if kind else "nothing says the storage's type"
        mend = f"write type: one of {', '.join(_TYPES)}, in the Secret's entry or in parameters"
        problems.error_at(source, ("parameters",), message, mend)
        return component
    if kind in _NEEDS_BUCKET and not bucket:
        message = f"storage type {kind} needs a bucket, and neither the Secret's entry {key} nor parameters has one"
        problems.error_at(source, ("parameters",), message, "write bucket into one of the two")
        return component
    uri = f"{kind}://{bucket}/{path}" if kind in _NEEDS_BUCKET else f"{kind}://{path}"
    settings = {_CONFIG: json.dumps(fields)} if text is not None else {}
    if parameters:
        settings[_OVERRIDE] = json.dumps(parameters)
    found = StorageUri(uri, "/mnt/models", source, tuple(settings.items()))
    return replace(component, storage=(found,))


def _fields(text: str) -> dict[str, str] | None:
    """A secret's entry; None where Go's map[string]string would not take it."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        return None
    return value


LOCAL_STORAGE = "serinus.dev/local-storage-uri"
"""Annotation of an InferenceService: what `serinus up` takes instead of its predictor's storageUri, relative to the manifest: a
folder, or URI=FOLDER for every URI (canaries' too) that begins so."""


def local_storage(service: InferenceService, component: Component) -> tuple[StorageUri, ...]:
    """The component's storage, or what the annotation says for this machine."""
    local = service.annotations.get(LOCAL_STORAGE)
    if not local or not component.storage or component.kind != "predictor":
        return component.storage
    first = component.storage[0]
    prefix, equals, folder = local.rpartition("=")
    if equals and "://" in prefix:
        # Speaks for every URI below the prefix, canaries' as well.
        prefix = prefix.rstrip("/")
        if first.uri != prefix and not first.uri.startswith(prefix + "/"):
            return component.storage
        local = folder.rstrip("/") + first.uri[len(prefix) :]
        at = Source(((service.document, ("metadata", "annotations", LOCAL_STORAGE)),))
        return (StorageUri(local, first.mount_path, at), *component.storage[1:])
    # The annotation speaks for the stable predictor's URI; a canary that names a URI of its own keeps it.
    if service.predictor.storage and first.uri != service.predictor.storage[0].uri:
        return component.storage
    at = Source(((service.document, ("metadata", "annotations", LOCAL_STORAGE)),))
    return (StorageUri(local, first.mount_path, at), *component.storage[1:])
