"""Where a component's model lies: what the webhook refuses (validateMultipleStorageURIs and its neighbours, KServe 0.21)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..documents import FieldPath
from ..fields import listed, mapping
from ..schema import LEGACY_FRAMEWORKS
from .rule import Block, Findings, Rule

__all__ = ["STORAGE_RULES"]


def confidential_needs_uri(block: Block) -> Findings:
    """Only what is fetched can be decrypted (8)."""
    for name in (*LEGACY_FRAMEWORKS, "model"):
        model = block.value.get(name)
        if isinstance(model, dict) and model.get("confidential") and not model.get("storageUri"):
            yield (*block.path, name, "confidential"), "needs storageUri", f"add {name}.storageUri"


def uris_not_empty(block: Block) -> Findings:
    """A list of URIs that is there has items, and each of them a URI."""
    if block.value.get("storageUris") is not None and not listed(block.value.get("storageUris")):
        yield (*block.path, "storageUris"), "is empty", "add an item with uri, or remove it"
    for at, uri, _ in _items(block):
        if uri == "":
            yield (*at, "uri"), "is empty", "write the model's URI"


def uris_exclude_uri(block: Block) -> Findings:
    """One URI or several (7)."""
    if not listed(block.value.get("storageUris")):
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
    parents = dict.fromkeys(
        mount.rstrip("/").rsplit("/", 1)[0] for _, uri, mount in _mounted(block) if not uri.startswith("pvc://")
    )
    if len(parents) > 1:
        yield (
            (*block.path, "storageUris"),
            f"mount paths share no parent: {', '.join(parent or '/' for parent in parents)}",
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
    return mount.startswith("/") and mount != "/" and ".." not in mount.split("/") and len(mount) <= 255


STORAGE_RULES: tuple[Rule[Block], ...] = (
    Rule("storage-confidential-needs-uri", confidential_needs_uri),
    Rule("storage-uris-not-empty", uris_not_empty),
    Rule("storage-uris-exclude-uri", uris_exclude_uri),
    Rule("storage-mount-path", mount_path),
    Rule("storage-volumes-apart", volumes_apart),
    Rule("storage-common-parent", common_parent),
)
