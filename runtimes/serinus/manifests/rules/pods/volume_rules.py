"""Volumes: files that are put where they may be, and projected volumes whose sources are said.

Source: validateVolumeSource and validateProjectionSources of validation.go, Kubernetes 1.37, asked of a kube-apiserver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...documents import FieldPath
from ...fields import containers_of, listed, mapping
from ...quantities import parse_quantity
from ..rule import Block, Findings, Rule

__all__ = ["VOLUME_RULES"]

_PROJECTED = ("secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate")
_PATH_MEND = "write a path below the volume, such as config/model.json"


def _volumes(block: Block) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    for index, volume in enumerate(map(mapping, listed(block.value.get("volumes")))):
        yield (*block.path, "volumes", index), volume


def _outside(path: Any) -> str:
    """What is wrong with a path below a volume; empty: nothing."""
    if not isinstance(path, str) or not path:
        return ""
    if path.startswith("/"):
        return f"{path!r} is absolute"
    return f"{path!r} leaves the volume" if ".." in path.split("/") else ""


def _files(source: Mapping[str, Any], path: FieldPath) -> Iterator[tuple[FieldPath, Any]]:
    """Where a source puts its files."""
    for index, item in enumerate(map(mapping, listed(source.get("items")))):
        yield (*path, "items", index, "path"), item.get("path")


def paths(block: Block) -> Findings:
    """A file is put below its volume, and a mount takes a folder below it."""
    for at, volume in _volumes(block):
        sources = [(kind, (*at, kind), mapping(volume.get(kind))) for kind in ("secret", "configMap", "downwardAPI")]
        for index, item in enumerate(map(mapping, listed(mapping(volume.get("projected")).get("sources")))):
            below = (*at, "projected", "sources", index)
            sources += [(kind, (*below, kind), mapping(item.get(kind))) for kind in _PROJECTED]
        for kind, where, source in sources:
            found = [*_files(source, where)]
            if kind in ("serviceAccountToken", "clusterTrustBundle"):
                found.append(((*where, "path"), source.get("path")))
            for spot, path in found:
                if said := _outside(path):
                    yield spot, said, _PATH_MEND
        host = mapping(volume.get("hostPath")).get("path")
        if isinstance(host, str) and ".." in host.split("/"):
            yield (*at, "hostPath", "path"), f"{host!r} has .. in it", "write the whole path"
    for where, container in containers_of(block.path, block.value):
        for index, mount in enumerate(map(mapping, listed(container.get("volumeMounts")))):
            spot = (*where, "volumeMounts", index)
            if said := _outside(mount.get("subPath")):
                yield (*spot, "subPath"), said, _PATH_MEND
            if mount.get("subPath") and mount.get("subPathExpr"):
                yield (*spot, "subPathExpr"), "beside subPath", "keep one"


def projected_sources(block: Block) -> Findings:
    """An item of a projected volume is one source; a token needs a path, and no two files have one place."""
    for at, volume in _volumes(block):
        seen: dict[str, FieldPath] = {}
        for index, item in enumerate(map(mapping, listed(mapping(volume.get("projected")).get("sources")))):
            where = (*at, "projected", "sources", index)
            kinds = [kind for kind in _PROJECTED if item.get(kind) is not None]
            if len(kinds) > 1:
                yield where, f"is of {len(kinds)} kinds: {', '.join(kinds)}", "write each as an item of its own"
            for kind in kinds:
                source = mapping(item.get(kind))
                if kind == "serviceAccountToken" and not source.get("path"):
                    yield (*where, kind, "path"), "missing", "write path"
                found = [*_files(source, (*where, kind))]
                if kind in ("serviceAccountToken", "clusterTrustBundle"):
                    found.append(((*where, kind, "path"), source.get("path")))
                for spot, path in found:
                    if isinstance(path, str) and path and seen.setdefault(path, spot) != spot:
                        yield spot, f"{path!r} is written by another source already", "use another path"


def downward_items(block: Block) -> Findings:
    """A file of the downward API takes one field or one amount."""
    for at, volume in _volumes(block):
        sources = [((*at, "downwardAPI"), mapping(volume.get("downwardAPI")))]
        for index, item in enumerate(map(mapping, listed(mapping(volume.get("projected")).get("sources")))):
            sources.append(((*at, "projected", "sources", index, "downwardAPI"), mapping(item.get("downwardAPI"))))
        for where, source in sources:
            for index, item in enumerate(map(mapping, listed(source.get("items")))):
                found = [name for name in ("fieldRef", "resourceFieldRef") if item.get(name) is not None]
                if len(found) != 1:
                    yield (*where, "items", index), f"{len(found)} sources", "write one of fieldRef, resourceFieldRef"


def sizes(block: Block) -> Findings:
    """An emptyDir's limit is no less than nothing."""
    for at, volume in _volumes(block):
        written = mapping(volume.get("emptyDir")).get("sizeLimit")
        amount = None if written is None else parse_quantity(written)
        if amount is not None and amount < 0:
            yield (*at, "emptyDir", "sizeLimit"), f"{written!r} is less than 0", "use 0 or more"


VOLUME_RULES: tuple[Rule[Block], ...] = (
    Rule("pod-volume-paths", paths, layer="controller"),
    Rule("pod-projected-sources", projected_sources, layer="controller"),
    Rule("pod-downward-items", downward_items, layer="controller"),
    Rule("pod-volume-sizes", sizes, layer="controller"),
)
