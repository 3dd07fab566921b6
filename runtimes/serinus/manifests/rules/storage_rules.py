"""Where a component's model lies: what the webhook refuses (validateMultipleStorageURIs and its neighbours, KServe 0.21)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..conventions import KSERVE_CONTAINER
from ..documents import FieldPath
from ..fields import LEGACY_FRAMEWORKS, listed, mapping
from .rule import Block, Findings, Rule

__all__ = ["STORAGE_RULES"]

_KEY = re.compile(r"^kbs:///[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+$")


def confidential_needs_uri(block: Block) -> Findings:
    """Only what is fetched can be decrypted (8)."""
    for name in (*LEGACY_FRAMEWORKS, "model"):
        model = block.value.get(name)
        if mapping(mapping(model).get("confidential")).get("enabled") is True and not mapping(model).get("storageUri"):
            yield (*block.path, name, "confidential"), "needs storageUri", f"add {name}.storageUri"


def confidential_key(block: Block) -> Findings:
    """A key of a Key Broker Service is named by three segments (confidential.go)."""
    for name in (*LEGACY_FRAMEWORKS, "model"):
        secret = mapping(mapping(block.value.get(name)).get("confidential"))
        key = secret.get("resourceId")
        if secret.get("enabled") is True and isinstance(key, str) and key and not _KEY.match(key):
            yield (
                (*block.path, name, "confidential", "resourceId"),
                f"{key!r} is not a key's name",
                "write kbs:///repo/type/tag",
            )


def confidential_without_effect(block: Block) -> Findings:
    """Images and volumes are not decrypted by the storage initializer."""
    for name in (*LEGACY_FRAMEWORKS, "model"):
        model = mapping(block.value.get(name))
        uri = model.get("storageUri")
        enabled = mapping(model.get("confidential")).get("enabled") is True
        if enabled and isinstance(uri, str) and uri.startswith(("oci://", "pvc://")):
            scheme = uri.partition("://")[0]
            yield (
                (*block.path, name, "confidential"),
                f"has no effect with {scheme}://",
                "remove it, or use another storage",
            )


def uris_not_empty(block: Block) -> Findings:
    """Each item of a list of URIs has one."""
    for at, uri, _ in _items(block):
        if uri == "":
            yield (*at, "uri"), "is empty", "write the model's URI"


def uris_without_items(block: Block) -> Findings:
    """The defaulting webhook leaves an empty list out, and no model is fetched."""
    if block.value.get("storageUris") == []:
        yield (*block.path, "storageUris"), "is empty: no model is fetched", "add an item with uri, or remove it"


def uris_exclude_uri(block: Block) -> Findings:
    """One URI or several (7); STORAGE_URI of a custom predictor's own container counts as one."""
    if not listed(block.value.get("storageUris")):
        return
    for index, item in enumerate(listed(block.value.get("containers"))):
        names = [mapping(variable).get("name") for variable in listed(mapping(item).get("env"))]
        if "STORAGE_URI" in names and mapping(item).get("name", KSERVE_CONTAINER) == KSERVE_CONTAINER:
            yield (
                (*block.path, "storageUris"),
                f"containers[{index}] has STORAGE_URI as well as storageUri's list",
                "keep one of the two",
            )
            return
    for name in (*LEGACY_FRAMEWORKS, "model"):
        if mapping(block.value.get(name)).get("storageUri"):
            yield (*block.path, "storageUris"), f"{name}.storageUri is set as well", "keep one of the two"
            return


def mount_path(block: Block) -> Findings:
    """A mount path is an absolute path below the root."""
    for at, uri, mount in _items(block):
        if isinstance(mount, str) and isinstance(uri, str) and not _is_mountable(mount):
            yield (
                (*at, "mountPath"),
                f"{mount!r} is not accepted",
                "use an absolute path of at most 255 characters other than /, without ..",
            )


def volumes_apart(block: Block) -> Findings:
    """Two volumes have two mount paths."""
    claims: set[str] = set()
    for at, uri, mount in _mounted(block):
        if not uri.startswith("pvc://"):
            continue
        clean = mount.rstrip("/")
        if clean in claims:
            yield (*at, "mountPath"), f"{mount!r} is taken by another volume", "use another path"
        claims.add(clean)


def common_parent(block: Block) -> Findings:
    """What the storage initializer fetches lies below one folder, which is one volume."""
    mounts = [mount for _, uri, mount in _mounted(block) if not uri.startswith("pvc://")]
    if len({mount.strip("/").split("/", 1)[0] for mount in mounts}) > 1:
        yield (
            (*block.path, "storageUris"),
            f"mount paths share no parent: {', '.join(mounts)}",
            "put them all below one folder, such as /mnt/models/a and /mnt/models/b",
        )


def _items(block: Block) -> Iterator[tuple[FieldPath, Any, Any]]:
    """Every item of storageUris: path, URI, mount path."""
    for index, item in enumerate(listed(block.value.get("storageUris"))):
        at = (*block.path, "storageUris", index)
        yield at, mapping(item).get("uri"), mapping(item).get("mountPath", "/mnt/models")


def _mounted(block: Block) -> Iterator[tuple[FieldPath, str, str]]:
    """Those of them whose mount path is accepted."""
    for at, uri, mount in _items(block):
        if isinstance(uri, str) and isinstance(mount, str) and _is_mountable(mount):
            yield at, uri, mount


def _is_mountable(mount: str) -> bool:
    return mount.startswith("/") and mount != "/" and ".." not in mount and len(mount) <= 255


STORAGE_RULES: tuple[Rule[Block], ...] = (
    Rule("storage-confidential-needs-uri", confidential_needs_uri),
    Rule("storage-confidential-key", confidential_key),
    Rule("storage-confidential-without-effect", confidential_without_effect, "warning"),
    Rule("storage-uris-not-empty", uris_not_empty),
    Rule("storage-uris-without-items", uris_without_items, "warning"),
    Rule("storage-uris-exclude-uri", uris_exclude_uri),
    Rule("storage-mount-path", mount_path),
    Rule("storage-volumes-apart", volumes_apart, layer="controller"),
    Rule("storage-common-parent", common_parent),
)
