"""Which models `serinus serve` loads at start, under which names: paths, a class, a repository.

*Names.* A model is called what `--model_name` says where it is the only one, else what its own `model-settings.json` says, else as its
folder or file (without the suffix); what lies at /mnt/models itself, where KServe puts a model whatever it is, and a class without
a path, are called "model".

*A repository* (`--model_repository`) may be the root of a volume. Folders that hold no models by their names (`lost+found`, `__pycache__`,
those that begin with a dot), and those that cannot be read, are left out, and told of. A model in it that cannot be read does not
keep the others from being served: it is `broken`, with the reason, unless `--exit_on_error` says that the start is to fail. The same holds
for a folder of several models that is named by its path: its models are found, not named.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...artifacts import leads_out
from ...errors import ConfigError, UntrustedModel
from ...loading.directory import folder_name, settings_from_directory
from ...loading.model_folders import Folders, model_folders, why_unreadable
from ...loading.model_formats import installed
from ...loading.model_signature import Signers, verified_copy
from ...settings import ModelSettings, ScoreSettings
from ...small_file import read_text
from .options import Parsed

__all__ = ["Chosen", "discover", "find_models", "own_name", "repository_names"]

_DEFAULT_MODEL_DIR = Path("/mnt/models")
"""Where KServe's storage initializer puts a model (kserve.constants)."""
_UNNAMED = "model"
"""KServe's name for a model that nobody names (kserve.model_server, `--model_name`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is to be loaded at start."""

    models: list[ModelSettings]
    spared: frozenset[str] = frozenset()
    """Names of a repository's models: one that does not load is listed as unavailable, and the others are served."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Name to reason of what a repository holds and cannot even be read."""
    left_out: tuple[str, ...] = ()
    """What a folder of models holds beside them, each with the reason where there is one to tell."""


def find_models(parsed: Parsed, repository: Path | None) -> Chosen:
    """Settle which models to load at start.

    Raises:
        ConfigError: no model was named, a directory that was named holds none, or two models have one name.
    """
    values = parsed.values
    paths = [Path(path) for path in parsed.paths]
    if values["model_dir"]:
        paths.append(Path(values["model_dir"].removeprefix("file://")))
    there = Folders((), ())
    if repository is not None:
        if not repository.is_dir():
            raise ConfigError(f"--model_repository {repository}: no such folder")
        if values["load_models_at_startup"]:
            there = _folders(repository)
        elif not paths:
            # A class, which an image of ours always names, is that of the models that will be loaded; alone it is none.
            return Chosen(models=[])
    # A volume may mount the one file there: KServe's pvc:// does where the path names a file.
    mounted = _DEFAULT_MODEL_DIR.is_file() or (_DEFAULT_MODEL_DIR.is_dir() and any(_DEFAULT_MODEL_DIR.iterdir()))
    if not paths and not there.models and mounted:
        paths.append(_DEFAULT_MODEL_DIR)
    if not paths and not there.models and not values["class"]:
        if repository is not None:
            return Chosen(models=[], left_out=there.left_out)
        raise ConfigError(
            "nothing to serve: name a model directory (serinus serve ./model), a class (--class package.module:Class) "
            "or a repository (--model_repository ./models)"
        )
    # MLServer's images say the same folder twice, as an argument and in MLSERVER_MODEL_URI.
    named = list({path.resolve(): path for path in paths}.values())
    models: list[ModelSettings] = []
    found: list[ModelSettings] = []
    broken: dict[str, str] = {}
    try:
        if named or (values["class"] and not there.models):
            models = _of_paths(named, parsed, repository, alone=not there.models)
    except ConfigError:
        if len(named) != 1 or not _is_folder_of_models(named[0], parsed):
            raise
        found, broken = _of_repository(model_folders(named[0]).models, parsed, named[0], alone=not there.models)
        if len({settings.name for settings in found}) < 2:
            raise  # what lies beside one model is its own data more likely than another
    found += [settings for settings in models if _is_found_below(named, settings, models)]
    of_repository, unread = _of_repository(there.models, parsed, repository, alone=not (models or found))
    models = [*(models or found), *of_repository]
    _check_names(models)
    return Chosen(
        models=models,
        spared=frozenset() if values["exit_on_error"] else frozenset(s.name for s in (*found, *of_repository)),
        broken={**broken, **unread},
        left_out=(*(text for path in named for text in _beside_models(path, models)), *there.left_out),
    )


def discover(parsed: Parsed, repository: Path | None, name: str) -> list[ModelSettings] | None:
    """Find a model by name as it is on the disk now, in all its versions; None where there is none of this name.

    Raises:
        ConfigError: its files are wrong, or several folders have that name.
    """
    if repository is None:
        return [settings for settings in find_models(parsed, None).models if settings.name == name] or None
    there = _folders(repository).models
    folders = [folder for folder in there if own_name(folder) == name]
    if not folders:
        return None
    found = _of_paths(folders, parsed, repository, alone=len(there) == 1)
    found = [dataclasses.replace(settings, name=name) for settings in found]
    _check_names(found)
    return found or None


def repository_names(repository: Path) -> list[str]:
    """Name the models of a repository; what cannot be a model's name (see `dataplane.sizes`) is none, and no index could tell it."""
    return sorted({name for folder in _folders(repository).models if (name := own_name(folder)).isprintable()})


def own_name(folder: Path) -> str:
    """Read the name that a model folder, or one of its versions, gives itself, as MLServer does; else it is the folder's."""
    for path in (folder / "model-settings.json", *sorted(folder.glob("*/model-settings.json"))):
        try:
            document = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(document, dict) and isinstance(document.get("name"), str) and document["name"]:
            return document["name"]
    return folder.name


def _folders(repository: Path) -> Folders:
    """Find the model folders of a repository.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return model_folders(repository)
    except OSError as error:
        raise ConfigError(f"--model_repository {repository}: cannot be read: {error.strerror}") from None


def _beside_models(path: Path, models: Sequence[ModelSettings]) -> tuple[str, ...]:
    """Tell what a folder that was named holds beside models, where it is a folder of model folders."""
    if any(settings.model_dir is not None and path in settings.model_dir.parents for settings in models):
        return model_folders(path).left_out
    return ()


def _is_folder_of_models(path: Path, parsed: Parsed) -> bool:
    """Whether a path that cannot be read as a whole is a folder of several models, and no model or versions of one."""
    if parsed.values["class"] or not path.is_dir() or why_unreadable(path) or (path / "model-settings.json").is_file():
        return False
    names = {own_name(folder) for folder in model_folders(path).models}
    return len(names) > 1 and not any(name.isdecimal() for name in names)


def _is_found_below(named: Sequence[Path], settings: ModelSettings, models: Sequence[ModelSettings]) -> bool:
    """Whether a model was found, with others, in a folder that was named."""
    where = settings.model_dir
    folder = next((path for path in named if where is not None and path in where.parents), None)
    if folder is None:
        return False
    return (
        len({other.name for other in models if other.model_dir is not None and folder in other.model_dir.parents}) > 1
    )


def _of_repository(
    folders: Sequence[Path], parsed: Parsed, repository: Path | None, *, alone: bool
) -> tuple[list[ModelSettings], dict[str, str]]:
    """Read each folder of a repository by itself: models, and names to reasons of those that cannot be read.

    Raises:
        ConfigError: with `--exit_on_error`, all that is wrong with any of them.
    """
    models: list[ModelSettings] = []
    broken: dict[str, str] = {}
    problems: list[str] = []
    by_name: dict[str, list[Path]] = {}
    for folder in folders:
        by_name.setdefault(own_name(folder), []).append(folder)
    for name, own in by_name.items():
        try:
            found = _of_paths(own, parsed, repository, alone=alone and len(folders) == 1)
            _check_names(found)
            models += found
        except ConfigError as error:
            problems.extend(error.problems)
            broken[name] = "; ".join(error.problems)
    if problems and parsed.values["exit_on_error"]:
        raise ConfigError(problems)
    return models, broken


def _of_paths(
    paths: Sequence[Path], parsed: Parsed, repository: Path | None, *, alone: bool = True
) -> list[ModelSettings]:
    """Read model directories, and let the command line have the last word.

    Args:
        paths: none: the class alone.
        parsed: the command line.
        repository: the folder that they may lie in.
        alone: no other model is served beside these.

    Raises:
        ConfigError: all that is wrong with any of them.
    """
    values = parsed.values
    named = installed(values["class"] or "")
    extra = _extra(values["extra"])
    allow_implementation = _parts(values["allow_implementation"])
    allow_uri = tuple(map(Path, _parts(values["allow_uri"])))
    problems: list[str] = []
    untrusted = False
    found: list[ModelSettings] = []
    fallback: list[str] = []
    if not paths:
        found.append(ModelSettings(name="", implementation=named))
        fallback.append(_UNNAMED)
    for path in paths:
        in_repository = repository is not None and path.parent == repository
        if repository is not None and in_repository and leads_out(path, repository, allow_uri):
            problems.append(
                f"{path}: leads out of the repository; to trust it, start with --allow_uri and the folder to read from"
            )
            continue
        try:
            of_path = _read_path(
                path,
                parsed,
                implementation=named,
                extra=extra,
                allow_implementation=allow_implementation,
                allow_uri=allow_uri,
            )
        except ConfigError as error:
            problems.extend(error.problems)
            untrusted |= isinstance(error, UntrustedModel)
            continue
        found.extend(
            dataclasses.replace(settings, name=settings.name or path.name) if in_repository else settings
            for settings in of_path
        )
        fallback.extend(folder_name(settings) or _path_name(path, settings) for settings in of_path)
    if problems:
        raise UntrustedModel(problems) if untrusted else ConfigError(problems)
    return _with_options(found, fallback, parsed, extra, alone=alone)


def _read_path(path: Path, parsed: Parsed, **options: Any) -> Sequence[ModelSettings]:
    """Read one path: where signatures are wanted, from the copy that was checked, and nothing beside it.

    Raises:
        ConfigError: the signature is missing or not good, or the files are wrong.
    """
    key = parsed.values["verify_models"]
    if key is None:
        return settings_from_directory(path, **options)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    signed = verified_copy(path, Signers(Path(key), parsed.values["model_signature"]))
    found = settings_from_directory(signed.path, **{**options, "allow_uri": ()})
    # The name was read before the check, to find the folder by; it must be the one that is signed.
    if own_name(signed.path) not in (signed.path.name, own_name(path)):
        raise UntrustedModel(f"{path}: changed while its signature was checked")
    return [dataclasses.replace(settings, digest=signed.digest, files=signed.files) for settings in found]


def _score_settings(values: Mapping[str, Any]) -> ScoreSettings | None:
    """Which output is counted; None where none was named.

    Raises:
        ConfigError: bins that are no ascending numbers, or bins without an output.
    """
    output, text = values["score_output"], values["score_bins"]
    if not output:
        if text:
            raise ConfigError(f"--score_bins {text}: of which output? name it with --score_output")
        return None
    try:
        bins = tuple(float(part) for part in text.split(",")) if text else ScoreSettings(output=output).bins
    except ValueError:
        raise ConfigError(f"--score_bins {text}: numbers separated by commas were expected") from None
    settings = ScoreSettings(output=output, bins=bins, column=values["score_column"])
    if problem := settings.problem():
        raise ConfigError(f"--score_bins {text}: {problem}")
    return settings


def _with_options(
    found: Sequence[ModelSettings],
    fallback: Sequence[str],
    parsed: Parsed,
    extra: Mapping[str, Any],
    *,
    alone: bool,
) -> list[ModelSettings]:
    """Apply the options of the command line; `fallback` names what nobody has named."""
    values = parsed.values
    score = _score_settings(values)
    result = []
    names = {settings.name or other for settings, other in zip(found, fallback, strict=True)}
    one_model = alone and len(names) == 1 and len({settings.version for settings in found}) == len(found)
    for settings, other in zip(found, fallback, strict=True):
        changes: dict[str, Any] = {}
        if values["model_name"] and one_model:
            explicit = parsed.sources["model_name"] != "INFERENCE_SERVICE_NAME"
            if explicit or not settings.name or not _names_itself(settings):
                changes["name"] = values["model_name"]
        elif not settings.name:
            changes["name"] = other
        if values["model_version"] and len(found) == 1 and alone:
            changes["version"] = values["model_version"]
        changes["trial"] = values["trial"]
        if values["nthread"]:
            changes["threads"] = values["nthread"]
        for name in ("execution", "warmup", "instances", "max_concurrency", "batchable"):
            if parsed.sources[name] != "default":
                changes[name] = values[name]
        if score is not None:
            changes["score"] = score
        if extra:
            changes["extra"] = {**settings.extra, **extra}
            changes["told"] = frozenset(extra)
            if isinstance(extra.get("class"), str):  # the operator's own choice
                changes["allow_implementation"] = (*settings.allow_implementation, glob.escape(extra["class"]))
        batch = {
            name: values[name]
            for name in (
                "max_batch_rows",
                "max_delay_s",
                "max_queue_rows",
                "max_queue_bytes",
                "default_timeout_s",
                "hang_timeout_s",
                "priority_levels",
            )
            if values[name] is not None
        }
        if batch:
            changes["batch"] = dataclasses.replace(settings.batch, **batch)
        result.append(dataclasses.replace(settings, **changes))
    return result


def _check_names(models: Sequence[ModelSettings]) -> None:
    """Refuse two models of one name that are not two versions of it."""
    seen: set[tuple[str, str]] = set()
    twice: dict[str, None] = {}
    for settings in models:
        key = (settings.name, settings.version)
        if key in seen:
            twice[settings.name] = None
        seen.add(key)
    if twice:
        name = next(iter(twice))
        where = sorted({str(settings.model_dir) for settings in models if settings.name == name and settings.model_dir})
        raise ConfigError(
            f"two models are called {name!r}{': ' if where else ''}{', '.join(where)}; give each a name in its model-settings.json"
        )


def _names_itself(settings: ModelSettings) -> bool:
    """Whether the model's own directory says its name."""
    return settings.model_dir is not None and (settings.model_dir / "model-settings.json").is_file()


def _path_name(path: Path, settings: ModelSettings) -> str:
    """Name a model by the path that was given for it: the folder's name, that of the folder of a version, the file's without suffix."""
    whole = Path(os.path.abspath(path))  # not resolve(): a link is called what it is called here
    if settings.version and whole.name == settings.version and whole.is_dir():
        whole = whole.parent
    if _DEFAULT_MODEL_DIR in (whole, whole.parent if whole.is_file() else None):
        return _UNNAMED
    return (whole.stem if whole.is_file() else whole.name) or _UNNAMED


def _extra(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `--extra KEY=VALUE`: the value is JSON where it parses as JSON, else text."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--extra {pair!r}: expected KEY=VALUE, such as --extra output=margin")
        try:
            result[key] = json.loads(text)
        except ValueError:
            result[key] = text
    return result


def _parts(values: Sequence[str]) -> tuple[str, ...]:
    """Split what was given several times, or with commas."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())
