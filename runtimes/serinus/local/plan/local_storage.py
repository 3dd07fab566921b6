"""What `serinus up` takes instead of a predictor's storageUri: the annotation serinus.dev/local-storage-uri."""

from __future__ import annotations

from ...manifests.documents import Source
from ...manifests.inference_service import Component, InferenceService, StorageUri

__all__ = ["LOCAL_STORAGE", "local_storage"]

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
