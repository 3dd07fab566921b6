"""Model directories to `ModelSettings`: `model-settings.json` in MLServer's form, bare model files, folders of folders.

Source: MLServer 1.7, "Model settings reference" (`mlserver.settings.ModelSettings`). A key that neither MLServer nor
serinus knows is refused with the nearest name; a key of MLServer's that has no meaning here is accepted with a warning that
says what takes its place, so that a directory made for it starts. Keys of `parameters` that MLServer does not know
either belong to the runtime, as in MLServer, and the runtime refuses those that it does not know.

A model directory chooses no code. `implementation` names an installed runtime, or what the operator's `--allow_implementation`
matches; the check is on the name, before anything is imported. `parameters.uri` stays in the folder of the file, or in one of
`--allow_uri`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import leads_out
from ..errors import ConfigError
from ..protocol.datatypes import DATATYPES
from ..protocol.types import NO_PARAMETERS, TensorSpec
from ..settings import DATA_FOLDERS, PROBABILITY_BINS, BatchSettings, ModelSettings, ScoreSettings
from ..small_file import is_there, read_text
from .model_folders import model_folders
from .model_formats import MLSERVER_IMPLEMENTATIONS, RUNTIMES, infer_implementation, is_runtime
from .version_policy import saved_model_versions

__all__ = ["SETTINGS_FILE", "DirectorySettings", "folder_name", "settings_from_directory"]

SETTINGS_FILE = "model-settings.json"

_log = logging.getLogger("serinus.hosts")

_OWN_KEYS = ("execution", "instances", "threads", "warmup", "batch", "batchable", "score", "version")
_MLSERVER_KEYS = (
    "name",
    "implementation",
    "platform",
    "inputs",
    "outputs",
    "max_batch_size",
    "max_batch_time",
    "parameters",
)
_INERT = {
    "versions": "the versions served are those of the model folders",
    "cache_enabled": "there is no response cache",
    "parallel_workers": "use --workers",
    "warm_workers": "warm-up is always on; --warmup false turns it off",
}
_INERT_PARAMETERS = {
    "environment_path": "install what the model needs in the image",
    "environment_tarball": "install what the model needs in the image",
    "inference_pool_gid": "use --workers",
    "autogenerate_inference_pool_gid": "use --workers",
}
_PARAMETER_KEYS = ("uri", "version", "format", "content_type", "extra")

_SERINUS_RUNTIME = "serinus.hosts.mlserver_host.SerinusRuntime"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySettings(ModelSettings):
    """The settings of a `model-settings.json`, and where that file is."""

    source: Path
    """The file itself: MLServer's own classes are given its whole content again."""
    is_own_choice: bool = False
    """The file itself names the implementation: only a class of models will do."""


def settings_from_directory(
    path: Path,
    implementation: str = "",
    extra: Mapping[str, Any] = NO_PARAMETERS,
    *,
    allow_implementation: Sequence[str] = (),
    allow_uri: Sequence[Path] = DATA_FOLDERS,
) -> list[ModelSettings]:
    """Read what a path holds: a model file, a model folder, or a folder of model folders.

    Args:
        path: a model file, a `model-settings.json`, or a folder.
        implementation: the class that was named on the command line; it takes precedence over the file's own.
        extra: settings of the runtime's own from the command line, where they say which versions to serve (`versions`).
        allow_implementation: patterns of the code that the files may choose beside the installed runtimes (`ModelSettings.allows`).
        allow_uri: folders that they may lead to beside their own.

    Returns:
        One entry for each model and version. `name` is empty where nothing but the files is there to name it.

    Raises:
        ConfigError: with every problem of every file.
    """
    path = Path(path)
    if not is_there(path):
        raise ConfigError(f"{path}: no such file or directory")
    allowed = ModelSettings(name="", allow_implementation=tuple(allow_implementation), allow_uri=tuple(allow_uri))
    try:
        found = _found(path, implementation, allowed)
        return [version for settings in found for version in saved_model_versions(settings, extra)]
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def folder_name(settings: ModelSettings) -> str:
    """Name a model whose `model-settings.json` does not as MLServer does, by the folder; empty where there is no such file."""
    return settings.source.resolve().parent.name if isinstance(settings, DirectorySettings) else ""


def _found(path: Path, implementation: str, allowed: ModelSettings) -> list[ModelSettings]:
    if path.name == SETTINGS_FILE:
        return [_read(path, implementation, allowed)]
    if (path / SETTINGS_FILE).is_file():
        return [_read(path / SETTINGS_FILE, implementation, allowed)]
    if implementation and (versions := _settled_versions(path)):
        _refuse_ways_out(versions, path, allowed)
        return _read_folders(versions, allowed, implementation) or []
    try:
        named = implementation or infer_implementation(path)
        return [dataclasses.replace(allowed, implementation=named, model_dir=path)]
    except ConfigError as error:
        folders = () if path.is_file() else model_folders(path).models
        if not folders:
            raise
        _refuse_ways_out(folders, path, allowed)
        found = _read_folders(folders, allowed)
        if found is None:
            raise error from None
        return found


def _settled_versions(path: Path) -> list[Path]:
    """Give the numbered folders of a folder that holds nothing else, where each has settings: MLServer's layout, and Seldon's agent's."""
    children = list(path.iterdir()) if path.is_dir() else []
    is_version = all(child.name.isdigit() and (child / SETTINGS_FILE).is_file() for child in children)
    return sorted(children) if is_version else []


def _refuse_ways_out(folders: Iterable[Path], path: Path, allowed: ModelSettings) -> None:
    out = [child for child in folders if leads_out(child, path, allowed.allow_uri)]
    if out:
        raise ConfigError(
            f"{out[0]}: leads out of {path}; to trust it, start with --allow_uri and the folder to read from"
        )


def _read_folders(
    folders: Iterable[Path], allowed: ModelSettings, implementation: str = ""
) -> list[ModelSettings] | None:
    """Read a folder of model folders; None where none of them is one. Numbered folders are versions of one model."""
    found: list[ModelSettings] = []
    problems: list[str] = []
    recognised = False
    folders = [below for folder in folders for below in _nested(folder)]
    versions = all(folder.name.isdigit() for folder in folders)
    for folder in folders:
        try:
            if (folder / SETTINGS_FILE).is_file():
                recognised = True
                settings: ModelSettings = _read(folder / SETTINGS_FILE, implementation, allowed)
                if not settings.name:
                    settings = dataclasses.replace(settings, name="" if versions else folder.name)
            else:
                implementation = infer_implementation(folder)
                settings = dataclasses.replace(
                    allowed, name="" if versions else folder.name, implementation=implementation, model_dir=folder
                )
            if versions and not settings.version:
                settings = dataclasses.replace(settings, version=folder.name)
            found.append(settings)
        except ConfigError as error:
            problems.extend(error.problems)
    if not found and not recognised:
        return None
    if problems:
        raise ConfigError(problems)
    return found


def _nested(folder: Path) -> list[Path]:
    """Give the folder, or the folders anywhere below it that have settings, where MLServer looks for them too."""
    if (folder / SETTINGS_FILE).is_file():
        return [folder]
    return [file.parent for file in sorted(folder.rglob(SETTINGS_FILE))] or [folder]


def _read(path: Path, implementation: str, allowed: ModelSettings) -> DirectorySettings:
    """Read one `model-settings.json`.

    Raises:
        ConfigError: with every problem in it.
    """
    try:
        document = json.loads(read_text(path), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep; these settings are a few objects deep") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: {type(document).__name__}, an object was expected")
    reader = _Reader(path, allowed)
    reader.unknown("", document, (*_OWN_KEYS, *_MLSERVER_KEYS, *_INERT))
    reader.inert("", document, _INERT)
    parameters = reader.take(document, "parameters", dict, {})
    reader.inert("parameters.", parameters, _INERT_PARAMETERS)
    extra = dict(reader.take(parameters, "extra", dict, {}, "parameters."))
    known = {*_PARAMETER_KEYS, *_INERT_PARAMETERS}
    extra.update({key: value for key, value in parameters.items() if key not in known})
    named = reader.take(document, "implementation", str, "")
    if named == _SERINUS_RUNTIME:
        named = extra.pop("class", "")  # the runtime's own key, no setting of the model's, whoever names the class
        if not isinstance(named, str):
            reader.problem(f"'parameters.extra.class' is {json.dumps(named)[:60]}, a string was expected")
            named = ""
    named = implementation or reader.implementation(named)
    settings = DirectorySettings(
        source=path,
        name=reader.take(document, "name", str, ""),
        version=str(document.get("version") or parameters.get("version") or ""),
        is_own_choice=not implementation,
        implementation=named,
        model_dir=reader.location(parameters, needed=_is_ours(named)),
        platform=reader.take(document, "platform", str, ""),
        inputs=reader.specs(document, "inputs"),
        outputs=reader.specs(document, "outputs"),
        execution=reader.choice(document, "execution", ("auto", "inline", "thread", "process")),
        instances=max(1, reader.take(document, "instances", int, 1)),
        threads=reader.take(document, "threads", int, 0),
        batch=reader.batch(document),
        batchable=reader.batchable(document),
        warmup=reader.take(document, "warmup", bool, True),
        score=reader.score(document),
        extra=extra,
        allow_implementation=allowed.allow_implementation,
        allow_uri=allowed.allow_uri,
    )
    if reader.problems:
        raise ConfigError(reader.problems)
    if not settings.implementation:
        return dataclasses.replace(settings, implementation=infer_implementation(settings.model_dir))
    return settings


def _is_ours(named: str) -> bool:
    """Tell a runtime that is here, which reads the model's files, from a class that may mean anything by its URI."""
    package = MLSERVER_IMPLEMENTATIONS.get(named, named).partition(":")[0].partition(".")[0]
    return not package or package in {runtime.package for runtime in RUNTIMES}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that says the same key twice: of two values, two readers may take different ones.

    Raises:
        ValueError: naming the key.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} is there twice")
    return found


class _Reader:
    """Reads values and collects what is wrong with them."""

    def __init__(self, path: Path, allowed: ModelSettings) -> None:
        self.path = path
        self.allowed = allowed
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        """Note one problem."""
        self.problems.append(f"{self.path}: {text}")

    def unknown(self, prefix: str, document: Mapping[str, Any], known: Iterable[str]) -> None:
        """Note keys that nobody knows, with the nearest that somebody does."""
        known = tuple(known)
        for key in document:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
                self.problem(f"unknown key {prefix + key!r}{hint}")

    def inert(self, prefix: str, document: Mapping[str, Any], inert: Mapping[str, str]) -> None:
        """Warn of keys that mean nothing here."""
        for key, instead in inert.items():
            if document.get(key):
                _log.warning("%s: %r has no effect here: %s", self.path, prefix + key, instead)

    def take(self, document: Mapping[str, Any], key: str, kind: type, default: Any, prefix: str = "") -> Any:
        """Read one value of a type; null and absence are the default."""
        value = document.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            self.problem(f"{prefix + key!r} is {json.dumps(value)[:60]}, {_NOUNS[kind]} was expected")
            return default
        return value

    def choice(self, document: Mapping[str, Any], key: str, choices: tuple[Any, ...]) -> Any:
        """Read one of several words; the first is the default."""
        value = document.get(key)
        if value is None:
            return choices[0]
        if value not in choices:
            self.problem(f"{key!r} is {json.dumps(value)[:60]}, one of {', '.join(choices)} was expected")
            return choices[0]
        return value

    def implementation(self, named: str) -> str:
        """Check what the file itself names, by name alone: nothing is imported that the operator has not allowed.

        Returns:
            The name; for one of MLServer's own runtimes that is not installed, or not allowed, that of ours.
        """
        if named.partition(":")[0].endswith(".py"):
            self.problem(
                f"'implementation': {named!r} is a file of code, and code is not loaded because a model directory says so; "
                f"to trust it, start with --class {named}"
            )
            return named
        if not named or is_runtime(named):
            return named
        is_allowed = self.allowed.allows(named)
        ours = MLSERVER_IMPLEMENTATIONS.get(named)
        if ours is not None and not (is_allowed and importlib.util.find_spec(named.partition(".")[0]) is not None):
            why = "is not installed" if is_allowed else "is not allowed by --allow_implementation"
            _log.info("%s: %s %s, %s takes its place", self.path, named, why, ours)
            return ours
        if not is_allowed:
            runtimes = [runtime.package for runtime in RUNTIMES]
            near = difflib.get_close_matches(named, runtimes, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.problem(
                f"'implementation': {named!r} is none of the installed runtimes ({', '.join(runtimes)}){hint}, and code is not "
                f"loaded because a model directory says so; to trust it, start with --allow_implementation "
                f"{named.replace(':', '.')!r}, or a pattern such as {named.partition(':')[0].partition('.')[0] + '.*'!r}"
            )
        return named

    def location(self, parameters: Mapping[str, Any], *, needed: bool) -> Path:
        """Resolve `parameters.uri` against the file's folder, as MLServer does; without one it is the folder.

        Args:
            parameters: of the settings.
            needed: what is not there is a problem.
        """
        uri = self.take(parameters, "uri", str, "", "parameters.")
        folder = self.path.parent
        if not uri:
            return folder
        location = folder / uri.removeprefix("file://")
        if "\0" in uri:
            self.problem(f"'parameters.uri' is {uri!r}: no name of a file")
            return folder
        if leads_out(location, folder, self.allowed.allow_uri):
            self.problem(
                f"'parameters.uri' is {uri!r}, which leads out of {folder}; to trust it, start with --allow_uri and the folder to read from"
            )
        elif needed and not is_there(location):
            self.problem(f"'parameters.uri' is {uri!r}: no such file or directory in {folder}")
        return location

    def specs(self, document: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
        """Read `inputs` or `outputs` metadata."""
        found = []
        for index, entry in enumerate(self.take(document, key, list, [])):
            where = f"{key}[{index}]"
            if not isinstance(entry, dict):
                self.problem(f"{where} is not an object with name, datatype and shape")
                continue
            self.unknown(f"{where}.", entry, ("name", "datatype", "shape", "parameters"))
            name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
            if not isinstance(name, str) or not name:
                self.problem(f"{where}: 'name' is missing")
            elif not isinstance(datatype, str) or datatype not in DATATYPES:
                self.problem(f"{where}: datatype {datatype!r} is none of {', '.join(sorted(DATATYPES))}")
            elif not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
                self.problem(f"{where}: shape {shape!r} is not an array of sizes (-1: any)")
            else:
                found.append(TensorSpec(name, datatype, tuple(shape)))
        return tuple(found)

    def batchable(self, document: Mapping[str, Any]) -> bool | None:
        """Read whether the owner says that rows may be joined; `max_batch_size` 0 or 1, where it is written, says no, as in MLServer."""
        said = self.take(document, "batchable", bool, None)
        size = document.get("max_batch_size")
        alone = type(size) is int and size <= 1
        if said and alone:
            self.problem(f"'batchable' is true, and 'max_batch_size' {size} says that it is not; leave one out")
        return False if alone else said

    def score(self, document: Mapping[str, Any]) -> ScoreSettings | None:
        """Read `score`: the output that is counted, its bins, and the column."""
        value = self.take(document, "score", dict, None)
        if value is None:
            return None
        self.unknown("score.", value, ("output", "bins", "column"))
        bins = self.take(value, "bins", list, list(PROBABILITY_BINS), "score.")
        numbers = [edge for edge in bins if isinstance(edge, int | float) and not isinstance(edge, bool)]
        if len(numbers) < len(bins):
            self.problem(f"'score.bins' is {json.dumps(bins)[:60]}, an array of ascending numbers was expected")
            return None
        settings = ScoreSettings(
            output=self.take(value, "output", str, "", "score."),
            bins=tuple(map(float, numbers)),
            column=self.take(value, "column", int, None, "score."),
        )
        if problem := settings.problem():
            self.problem(f"'score': {problem}")
            return None
        return settings

    def batch(self, document: Mapping[str, Any]) -> BatchSettings:
        """Read `batch`, and MLServer's `max_batch_size` and `max_batch_time`, which mean the same in rows."""
        values = dict(self.take(document, "batch", dict, {}))
        fields = {spec.name: spec for spec in dataclasses.fields(BatchSettings)}
        self.unknown("batch.", values, fields)
        if (size := self.take(document, "max_batch_size", int, 0)) > 1:
            values.setdefault("max_batch_rows", size)
        wait = self.take(document, "max_batch_time", (int, float), 0)  # type: ignore[arg-type] # isinstance takes a tuple
        if not wait <= 0:  # NaN is refused with all that is out of its range
            values.setdefault("max_delay_s", float(wait))
        for key, value in values.items():
            if key in fields and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                self.problem(f"'batch.{key}' is {json.dumps(value)[:60]}, a number of at least 0 was expected")
        return BatchSettings(**values) if not self.problems else BatchSettings()


_NOUNS: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    (int, float): "a number",
}
