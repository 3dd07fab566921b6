"""Kubernetes objects as values, each field remembered with its file and line. Pure: texts in, objects out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from ..errors import ConfigError

__all__ = ["Document", "FieldPath", "Place", "Source", "field_text", "load_text"]

FieldPath = tuple[str | int, ...]


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


_RESOLVERS: Final = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: dates stay text."""


_Loader.yaml_implicit_resolvers = _RESOLVERS


def _loaders() -> tuple[type[_Loader], ...]:
    """From the fastest to the one whose word is final: what libyaml refuses, PyYAML's own parser reads or says why not.

    libyaml reads nine times as fast. Its composer is not used: it recurses without a bound, and ends the process at some ten thousand levels.
    """
    if not yaml.__with_libyaml__:
        return (_Loader,)
    from yaml.cyaml import CParser  # pyright: ignore[reportAttributeAccessIssue] # its stubs do not name it

    class Fast(Composer, CParser, SafeConstructor, Resolver):
        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    Fast.yaml_implicit_resolvers = _RESOLVERS
    return (cast("type[_Loader]", Fast), _Loader)


_MOST_DIGITS: Final = 400
"""Of a number. A float64 has 309 before its point, and Python writes no more than 4300; of sixties (`1:59:59`, YAML 1.1) each costs as much as all
before it."""


def _number(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Have a number made only of a text that can be one."""

    def constructed(loader: Any, node: Any) -> Any:
        digits = len(node.value)
        if not isinstance(node, yaml.ScalarNode):
            problem = "a number was expected"
        elif digits > _MOST_DIGITS:
            problem = f"a number of {digits} digits; at most {_MOST_DIGITS} are read (is it a text without its quotes?)"
        else:
            try:
                return construct(loader, node)
            except ValueError as error:
                problem = f"no number: {error}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    return constructed


_LOADERS: Final = _loaders()
for _loader in _LOADERS:
    _loader.add_constructor("tag:yaml.org,2002:int", _number(SafeConstructor.construct_yaml_int))
    _loader.add_constructor("tag:yaml.org,2002:float", _number(SafeConstructor.construct_yaml_float))


_MOST_DEPTH: Final = 200
"""A Kubernetes object has some twenty levels."""
_MOST_FIELDS: Final = 500_000
"""Of a document; etcd takes 1.5 MiB an object."""


@dataclass(slots=True)
class _Walk:
    """Positions collected from one composed document."""

    file: str
    places: dict[FieldPath, Place] = field(default_factory=dict)
    duplicates: list[FieldPath] = field(default_factory=list)

    def visit(self, node: yaml.Node, path: FieldPath) -> None:
        # An alias is visited wherever it stands, and one inside itself has no end.
        if len(path) > _MOST_DEPTH:
            raise _too_large(self.file, node, f"{_MOST_DEPTH} levels")
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


def _too_large(file: str, node: yaml.Node, what: str) -> ConfigError:
    return ConfigError(
        f"{file}:{node.start_mark.line + 1}: more than {what}; fewer were expected (is there an alias of itself?)"
    )


def _count_fields(node: yaml.Node, file: str, counted: dict[int, int]) -> int:
    """Fields below a node, those of an alias counted wherever it stands, though each is looked at once: a few of one another have millions.

    Args:
        node: of the composed document.
        file: its name, for the message.
        counted: of the nodes that were looked at, by their identity; one inside itself counts as 1, and is refused for its levels.

    Raises:
        ConfigError: they are more than a document may have.
    """
    known = counted.get(id(node))
    if known is not None:
        return known
    counted[id(node)] = total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_count_fields(value, file, counted) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count_fields(value, file, counted) for value in node.value)
    if total > _MOST_FIELDS:
        raise _too_large(file, node, f"{_MOST_FIELDS:,} fields")
    counted[id(node)] = total
    return total


def load_text(text: str, file: str, *, patches: bool = False, what: str = "manifest") -> list[Document]:
    """Read every object of a YAML text; a `List` is opened.

    Args:
        text: YAML, of one document or several.
        file: its name, for messages.
        patches: pass over lists of operations (JSON patches), which lie beside manifests.
        what: a document is, for messages.

    Raises:
        ConfigError: not YAML, or a document that is not a mapping; the message has file and line.
    """
    *fast, final = _LOADERS
    for loader in fast:
        try:
            return _read(loader(text), file, patches, what)
        except (yaml.YAMLError, UnicodeError):  # a lone surrogate has no UTF-8, which libyaml reads
            continue
    try:
        return _read(final(text), file, patches, what)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{file}:{line}: not YAML: the control character U+{ord(text[error.position]):04X} is not allowed; remove it"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError(f"{where}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {error}") from None


def _read(loader: _Loader, file: str, patches: bool, what: str) -> list[Document]:
    documents: list[Document] = []
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            _count_fields(node, file, {})  # first: merge keys ('<<') copy what they name when the value is made
            value = loader.construct_document(node)
            if value is None:
                continue
            line = node.start_mark.line + 1
            if isinstance(value, list) and patches:
                continue
            if not isinstance(value, dict):
                raise ConfigError(f"{file}:{line}: a {what} is a mapping, this document is a {type(value).__name__}")
            walk = _Walk(file)
            walk.visit(node, ())
            documents.append(Document(value, walk.places, file, tuple(walk.duplicates)))
    except RecursionError:
        raise ConfigError(f"{file}: nested too deep; {_MOST_DEPTH} levels at most were expected") from None
    finally:
        loader.dispose()
    return [item for document in documents for item in _open_list(document)]


def _open_list(document: Document) -> Iterator[Document]:
    items = document.value.get("items")
    if not document.kind.endswith("List") or not isinstance(items, list):
        yield document
        return
    places: dict[int, dict[FieldPath, Place]] = {}
    for path, place in document.places.items():
        if path[:1] == ("items",) and len(path) > 1:
            places.setdefault(cast("int", path[1]), {})[path[2:]] = place
    for index, item in enumerate(items):
        if isinstance(item, dict):
            yield Document(item, places.get(index, {}), document.file)
