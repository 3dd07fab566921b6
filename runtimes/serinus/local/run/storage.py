"""Where a model's files are on this machine: `storageUri` fetched into a cache, local folders used where they lie.

Local paths and `file://` are never copied. `https://` is fetched by the standard library, `gs://`, `s3://`, `hf://` and
the other schemes of KServe's storage initializer by the `kserve-storage` package, `pvc://` by a mapping that the user gives.
A fetch is complete or absent: files go to a temporary folder that is renamed at the end.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import yaml

from ...errors import ConfigError
from ...manifests.documents import Document
from ...secrecy import HIDDEN, fault_without_content, hide, is_secret_name
from ...small_file import is_there
from ..plan.container_environment import config_data
from .unpacking import ARCHIVES, Bound, Refused, unpack

__all__ = ["cache_folder", "fetch", "parse_mounts", "read_storage_config"]

TIMEOUT_S = 60.0
"""Longest silence of a download; KServe's storage initializer has none."""


def cache_folder() -> Path:
    """The folder of fetched models: below SERINUS_CACHE_DIR, XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("SERINUS_CACHE_DIR")
    if root:
        return Path(root) / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serinus" / "models"


def parse_mounts(options: list[str]) -> dict[str, Path]:
    """Read `--mount NAME=FOLDER` options; NAME is a volume claim, `pvc://NAME`, or any URI prefix.

    Raises:
        ValueError: no `=`, or no such folder.
    """
    table = {}
    for option in options:
        name, equals, folder = option.rpartition("=")
        if not equals or not name or not folder:
            raise ValueError(f"--mount {option}: expected NAME=FOLDER, such as models=./models for pvc://models/...")
        path = Path(folder).expanduser().resolve()
        if not is_there(path):
            raise ValueError(f"--mount {option}: {path}: no such folder")
        table[name if "://" in name else f"pvc://{name}"] = path
    return table


def read_storage_config(file: Path) -> dict[str, str]:
    """Read a file that stands for the Secret `storage-config`: a mapping of keys to fields, or the Secret's manifest.

    Returns:
        JSON texts by key, as the Secret's data decoded.

    Raises:
        ValueError: not readable, or something else; the message names the file.
    """
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--storage-config {file}: cannot be read: {fault_without_content(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 (a file's content, as every other option's)
            f'--storage-config {file}: expected a mapping such as {{"default": {{"type": "s3", "bucket": "b"}}}}'
        )
    if value.get("kind") == "Secret":
        (entries,) = config_data([Document(value, {}, str(file))]).entries.values()
        return dict(entries)
    return {str(key): each if isinstance(each, str) else json.dumps(each) for key, each in value.items()}


def _secrets_of(settings: Mapping[str, str]) -> list[str]:
    """Give the values of a storage spec that no message may tell."""
    found = []
    for text in settings.values():
        try:
            fields = json.loads(text)
        except ValueError:
            continue
        if isinstance(fields, dict):
            found += [
                value for name, value in fields.items() if is_secret_name(name) and isinstance(value, str) and value
            ]
    return sorted(found, key=len, reverse=True)


def fetch(
    uri: str,
    *,
    base: Path,
    cache: Path,
    mounts: Mapping[str, Path],
    settings: Mapping[str, str] | None = None,
    pull: bool = False,
) -> Path:
    """Make the files of a URI available and return their folder (or the one file).

    Args:
        uri: KServe's `storageUri`.
        base: folder that relative local paths are relative to.
        cache: where fetched files are kept.
        mounts: local folders by URI prefix.
        settings: variables of the fetch, which say endpoint and credentials of a storage spec.
        pull: fetch again what is in the cache; where that fails, the cache keeps what it has.

    Raises:
        ConfigError: nothing there, not reachable, or a scheme that needs a package or a mapping.
    """
    for prefix, folder in sorted(mounts.items(), key=lambda item: -len(item[0])):
        if uri == prefix or uri.startswith(prefix.rstrip("/") + "/"):
            return _existing(folder / uri[len(prefix) :].lstrip("/"), uri)
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _existing((base / uri).resolve(), uri)
    if scheme == "file":
        return _existing(Path(urllib.parse.unquote(rest)), uri)
    if scheme == "pvc":
        claim = rest.split("/", 1)[0]
        raise ConfigError(
            f"{uri}: a volume claim lives in a cluster; say where its files are here: --mount {claim}=FOLDER"
        )
    settings = settings or {}
    target = cache / hashlib.sha256((uri + _endpoint(settings)).encode()).hexdigest()[:24]
    if (target / ".complete").is_file() and not pull:
        return target / "files"
    cache.mkdir(parents=True, exist_ok=True)
    # A folder for each fetch: two services may want the same files at the same time.
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=cache))
    try:
        (partial / "files").mkdir()
        if scheme in {"http", "https"} and ".blob.core.windows.net" not in rest:
            _download(uri, partial / "files")
        else:
            _kserve_storage(uri, scheme, partial / "files", settings)
        (partial / ".complete").write_text(hide(uri) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        try:
            partial.rename(target)
        except OSError:  # another fetch of the same files was quicker
            if not (target / ".complete").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target / "files"


def _existing(path: Path, uri: str) -> Path:
    if not is_there(path):
        raise ConfigError(f"{uri}: {path}: no such file or folder")
    return path


def _download(uri: str, folder: Path) -> None:
    """Fetch one file; archives are unpacked, as KServe's storage initializer does."""
    name = Path(urllib.parse.urlsplit(uri).path).name or "model"
    bound = Bound()
    is_archive = name.endswith(ARCHIVES)
    file = folder.parent / "archive" if is_archive else folder / name
    try:
        with urllib.request.urlopen(uri, timeout=TIMEOUT_S) as answer, file.open("wb") as out:  # noqa: S310 (http and https only, see fetch)
            while piece := answer.read(1 << 20):
                bound.piece(len(piece))
                out.write(piece)
    except Refused as error:
        raise ConfigError(f"{hide(uri)}: it is not fetched: {error}") from None
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{hide(uri)}: the server answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError) as error:
        raise ConfigError(f"{hide(uri)}: cannot be fetched: {getattr(error, 'reason', error)}") from None
    except (
        http.client.HTTPException,
        ValueError,
    ):  # of a host with a password, which urllib takes for a port and tells
        raise ConfigError(
            f"{hide(uri)}: cannot be fetched: not an address that is taken; leave out user and password"
        ) from None
    if is_archive:
        try:
            unpack(file, name, folder)
        except ConfigError as error:
            raise ConfigError(f"{hide(uri)}: {error}") from None
        file.unlink()


def _endpoint(settings: Mapping[str, str]) -> str:
    """The endpoint that a storage spec names: the same bucket elsewhere is another one."""
    found = ""
    for name in ("STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG"):
        found = json.loads(settings.get(name, "{}")).get("endpoint_url", found)
    return f" at {found}" if found else ""


_FETCH = "import sys; from kserve_storage import Storage; Storage.download(sys.stdin.read(), sys.argv[1])"
"""The address comes by a pipe: anybody on this machine sees the words of a command, and it may be signed."""


def _kserve_storage(uri: str, scheme: str, folder: Path, settings: Mapping[str, str]) -> None:
    """Fetch in a process of its own: the package writes credentials into its environment, which are one service's."""
    if importlib.util.find_spec("kserve_storage") is None:
        raise ConfigError(
            f"{hide(uri)}: {scheme}:// is fetched by the package kserve-storage, which is not installed: pip install kserve-storage"
        ) from None
    done = subprocess.run(
        [sys.executable, "-c", _FETCH, str(folder)],
        env={**os.environ, **settings},
        input=uri.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        said = hide(lines[-1]) if lines else f"exit code {done.returncode}"
        for value in _secrets_of(settings):
            said = said.replace(value, HIDDEN)
        raise ConfigError(f"{hide(uri)}: kserve-storage could not fetch it: {said}")
