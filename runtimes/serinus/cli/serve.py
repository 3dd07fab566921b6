"""`serinus serve`: run models behind the Open Inference Protocol, REST and gRPC.

Imports nothing that only operators need (typer, rich): what is imported here is paid for by every start of every container.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import leads_out
from ..bounds import BOUNDS
from ..dataplane.repository_access import RepositoryAccess
from ..errors import ConfigError
from ..protocol.types import Limits
from ..settings import ModelSettings, PredictorSettings, ServerSettings
from ..small_file import read_text
from .log_lines import JsonLines, TextLines, escape
from .options import OPTIONS, Option, Parsed, parse
from .repository_control import repository_access

__all__ = ["main"]

_EXAMPLES = """\
Examples:
  serinus serve ./model                            a model file or directory; its runtime is inferred from the files
  serinus serve ./fraud ./recommender              several models at once
  serinus serve --class mypackage.model:MyModel    a serinus Model, a kserve.Model or an MLServer MLModel of your own
  serinus serve --class model.py --model_name m    a script that ends in kserve.ModelServer().start([model]), as it is
  serinus serve --class ensemble_server --transformer fraud_features --model_dir ./model
                                                   a whole pipeline in one process
  serinus serve --class fraud_features --predictor_host 127.0.0.1:8081 --predictor_protocol grpc-v2
                                                   a transformer in front of a remote predictor
  serinus serve --model_repository ./models        a repository whose models are loaded and unloaded over the API
  serinus serve --host 0.0.0.0 ./model             for other machines, as in a container; by default this one alone is answered

Every flag is also a variable (SERINUS_HTTP_PORT=8080) and, with --settings, a key of a JSON file. KServe's flags and
MLServer's MLSERVER_* variables are accepted where the meaning is the same.
"""

_DEFAULT_MODEL_DIR = Path("/mnt/models")
"""Where KServe's storage initializer puts a model (kserve.constants)."""


_HTTPS_PORT = 8443
"""Where KServe's server listens with TLS (kserve.constants, DEFAULT_HTTPS_PORT)."""


def main(argv: Sequence[str]) -> int:
    """Run `serinus serve` with these words.

    Returns:
        The exit status: 0 after a clean stop, 1 where a model does not load, 2 where the options are wrong.
    """
    started_workers = os.environ.get("SERINUS_WORKER") is not None
    try:
        parsed = parse(argv, os.environ)
        if parsed.help:
            print(_help())
            return 0
        parsed = _with_https_port(parsed)
        server = _server_settings(parsed.values)
        access = repository_access(parsed, os.environ)
        _set_up_logging(server)
        if parsed.values["show_settings"]:
            _show(parsed)
            return 0
        log = logging.getLogger("serinus")
        if not started_workers:
            for warning in parsed.warnings:
                log.warning("%s", warning)
            if parsed.values["model_repository"] and not access.is_on and server.repository_control == "auto":
                log.warning("models are not loaded and unloaded by request: %s", access.reason)
        if server.workers > 1 and not started_workers:
            from ..server.workers import supervise

            return supervise(server, list(argv))
        return _serve(parsed, server, access)
    except ConfigError as error:
        for problem in error.problems:
            print(f"serinus serve: {escape(problem)}", file=sys.stderr)
        return 2


def _serve(parsed: Parsed, server: ServerSettings, access: RepositoryAccess) -> int:
    """Resolve the models and run this process as a server."""
    from .. import hosts
    from ..hosts.implementations import is_script
    from ..server.lifecycle import Launch, run

    values = parsed.values
    predictor = _predictor_settings(values)
    repository = Path(values["model_repository"]) if values["model_repository"] else None
    models = _models(parsed, repository)
    discover = functools.partial(_discover, parsed, repository)
    if len(models) == 1 and not values["transformer"] and is_script(models[0].implementation):
        keeps = values["model_name"] and parsed.sources["model_name"] != "INFERENCE_SERVICE_NAME"
        named = models[0] if values["model_name"] else dataclasses.replace(models[0], name="")
        from ..hosts.kserve.scripts import settings_from_script

        models = settings_from_script(named, predictor, keep_name=bool(keeps))
        discover = None
    factory = functools.partial(
        hosts.build_model,
        transformer=values["transformer"] or None,
        predictor=predictor,
    )
    handed = os.environ if os.environ.get("SERINUS_CONTROL_FD") else {}  # by the supervisor of several workers
    control_fd, http_fd = handed.get("SERINUS_CONTROL_FD"), handed.get("SERINUS_HTTP_FD")
    grpc_port = handed.get("SERINUS_GRPC_BOUND_PORT")
    launch = Launch(
        server=server,
        models=models,
        factory=factory,
        discover=discover,
        index=functools.partial(_names, repository) if repository else None,
        access=access,
        http_socket=socket.socket(fileno=int(http_fd)) if http_fd else None,
        grpc_port=int(grpc_port) if grpc_port else None,
        control=socket.socket(fileno=int(control_fd)) if control_fd else None,
    )
    return run(launch)


def _with_https_port(parsed: Parsed) -> Parsed:
    """Move REST to KServe's port for TLS where TLS is on and nothing names a port, as `kserve.ModelServer` does."""
    if not parsed.values["ssl_certfile"] or parsed.sources["http_port"] != "default":
        return parsed
    return dataclasses.replace(
        parsed,
        values={**parsed.values, "http_port": _HTTPS_PORT},
        sources={**parsed.sources, "http_port": "default with TLS"},
    )


_ORJSON_DEPTH = 1024
_LIMITS = (
    "max_body_bytes",
    "max_tensor_bytes",
    "max_tensors",
    "max_rank",
    "max_json_depth",
    "max_name_bytes",
    "max_classes",
)


def _server_settings(values: Mapping[str, Any]) -> ServerSettings:
    """Pick the server's settings out of all values.

    Raises:
        ConfigError: settings that do not go together.
    """
    fields = {spec.name for spec in dataclasses.fields(ServerSettings)} - {"limits"}
    chosen = {name: values[name] for name in fields}
    problems = [] if chosen["host"].strip() else ["--host is empty; 0.0.0.0 is every address, 127.0.0.1 this machine"]
    if (chosen["ssl_certfile"] is None) != (chosen["ssl_keyfile"] is None):
        problems.append("TLS needs both --ssl_certfile and --ssl_keyfile")
    problems += [
        f"--{name} {chosen[name]}: no such file"
        for name in ("ssl_certfile", "ssl_keyfile")
        if chosen[name] and not Path(chosen[name]).is_file()
    ]
    if chosen["ssl_certfile"] and chosen["grpc"] == "native":
        problems.append("--grpc native has no TLS; use --grpc grpcio with --ssl_certfile")
    if chosen["workers"] < 1:
        problems.append(f"--workers {chosen['workers']}: at least 1")
    if chosen["log_level"].upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        problems.append(f"--log_level {chosen['log_level']}: one of DEBUG, INFO, WARNING, ERROR")
    most = {"max_json_depth": _ORJSON_DEPTH, "max_rank": 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32}
    for name in _LIMITS:
        if not 1 <= chosen[name] <= most.get(name, chosen[name]):
            problems.append(
                f"--{name} {chosen[name]}: at least 1" + (f", at most {most[name]}" if name in most else "")
            )
    if chosen["max_instances"] < 1:
        problems.append(f"--max_instances {chosen['max_instances']}: at least 1")
    instances = values["instances"]
    if instances is not None and (problem := BOUNDS["instances"].problem(instances, most=chosen["max_instances"])):
        problems.append(f"--instances {instances}: {problem}")
    if problems:
        raise ConfigError(problems)
    chosen["limits"] = Limits(**{name.removeprefix("max_"): chosen[name] for name in _LIMITS})
    return ServerSettings(**chosen)


def _predictor_settings(values: Mapping[str, Any]) -> PredictorSettings | None:
    """How to reach the predictor; None where none was named."""
    if not values["predictor_host"]:
        return None
    return PredictorSettings(
        host=values["predictor_host"],
        protocol=values["predictor_protocol"],
        use_ssl=values["predictor_use_ssl"],
        timeout_s=values["predictor_request_timeout_seconds"],
        retries=values["predictor_request_retries"],
        health_check=values["enable_predictor_health_check"],
    )


def _models(parsed: Parsed, repository: Path | None) -> list[ModelSettings]:
    """Settle which models to load at start.

    Raises:
        ConfigError: no model was named, or a directory holds none.
    """
    values = parsed.values
    paths = [Path(path) for path in parsed.paths]
    if values["model_dir"]:
        paths.append(Path(values["model_dir"].removeprefix("file://")))
    if repository is not None:
        if not repository.is_dir():
            raise ConfigError(f"--model_repository {repository}: no such folder")
        if values["load_models_at_startup"]:
            paths.extend(_folders(repository))
        elif not paths and not values["class"]:
            return []
    if not paths and _DEFAULT_MODEL_DIR.exists() and any(_DEFAULT_MODEL_DIR.iterdir()):
        paths.append(_DEFAULT_MODEL_DIR)
    if not paths and not values["class"]:
        if repository is not None:
            return []
        raise ConfigError(
            "nothing to serve: name a model directory (serinus serve ./model), a class (--class package.module:Class) "
            "or a repository (--model_repository ./models)"
        )
    # MLServer's images say the same folder twice, as an argument and in MLSERVER_MODEL_URI.
    return _of_paths(list({path.resolve(): path for path in paths}.values()), parsed, repository)


def _of_paths(
    paths: Sequence[Path], parsed: Parsed, repository: Path | None, *, alone: bool = True
) -> list[ModelSettings]:
    """Read model directories, and let the command line have the last word; `alone`: no other is served beside these."""
    from .. import loading

    values = parsed.values
    named = loading.installed(values["class"] or "")
    extra = _extra(values["extra"])
    allow_implementation = _parts(values["allow_implementation"])
    allow_uri = tuple(map(Path, _parts(values["allow_uri"])))
    problems: list[str] = []
    found: list[ModelSettings] = []
    if not paths:
        found.append(ModelSettings(name="", implementation=named))
    for path in paths:
        if repository is not None and path.parent == repository and leads_out(path, repository, allow_uri):
            problems.append(
                f"{path}: leads out of the repository; to trust it, start with --allow_uri and the folder to read from"
            )
            continue
        try:
            of_path = loading.settings_from_directory(
                path,
                implementation=named,
                extra=extra,
                allow_implementation=allow_implementation,
                allow_uri=allow_uri,
            )
            own = path.name if repository is not None and path.parent == repository else ""
            found.extend(dataclasses.replace(settings, name=settings.name or own) for settings in of_path)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    result = []
    one_model = len({settings.name for settings in found}) == 1 and _versioned(found, found[0].name)
    for settings in found:
        changes: dict[str, Any] = {}
        if values["model_name"] and one_model:
            explicit = parsed.sources["model_name"] != "INFERENCE_SERVICE_NAME"
            if explicit or not settings.name or not _names_itself(settings):
                changes["name"] = values["model_name"]
        elif not settings.name:
            changes["name"] = loading.folder_name(settings) or "model"
        if values["model_version"] and len(found) == 1 and alone:
            changes["version"] = values["model_version"]
        if values["nthread"]:
            changes["threads"] = values["nthread"]
        for name in ("execution", "warmup", "instances", "max_concurrency", "batchable"):
            if parsed.sources[name] != "default":
                changes[name] = values[name]
        if extra:
            changes["extra"] = {**settings.extra, **extra}
            if isinstance(extra.get("class"), str):  # the operator's own choice
                changes["allow_implementation"] = (*settings.allow_implementation, glob.escape(extra["class"]))
        batch = {
            name: values[name]
            for name in ("max_batch_rows", "max_delay_s", "max_queue_rows", "default_timeout_s", "priority_levels")
            if values[name] is not None
        }
        if batch:
            changes["batch"] = dataclasses.replace(settings.batch, **batch)
        result.append(dataclasses.replace(settings, **changes))
    names = [settings.name for settings in result]
    twice = sorted({name for name in names if names.count(name) > 1 and not _versioned(result, name)})
    if twice:
        raise ConfigError(f"two models are called {twice[0]!r}; give each a name in its model-settings.json")
    return result


def _versioned(models: Sequence[ModelSettings], name: str) -> bool:
    """Whether the models of this name differ in their versions."""
    versions = [settings.version for settings in models if settings.name == name]
    return len(set(versions)) == len(versions)


def _names_itself(settings: ModelSettings) -> bool:
    """Whether the model's own directory says its name."""
    return settings.model_dir is not None and (settings.model_dir / "model-settings.json").is_file()


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


def _folders(repository: Path) -> list[Path]:
    """Find the model folders of a repository."""
    return sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))


def _names(repository: Path) -> list[str]:
    """Name the models of a repository; what cannot be a model's name (see `dataplane.sizes`) is none, and no index could tell it."""
    return sorted({name for folder in _folders(repository) if (name := _own_name(folder)).isprintable()})


def _own_name(folder: Path) -> str:
    """Read the name that a model folder, or one of its versions, gives itself, as MLServer does; else it is the folder's."""
    for path in (folder / "model-settings.json", *sorted(folder.glob("*/model-settings.json"))):
        try:
            document = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(document, dict) and isinstance(document.get("name"), str) and document["name"]:
            return document["name"]
    return folder.name


def _discover(parsed: Parsed, repository: Path | None, name: str) -> list[ModelSettings] | None:
    """Find a model by name as it is on the disk now, in all its versions; None where there is none of this name."""
    if repository is None:
        return [settings for settings in _models(parsed, None) if settings.name == name] or None
    there = _folders(repository)
    folders = [folder for folder in there if _own_name(folder) == name]
    if not folders:
        return None
    found = _of_paths(folders, parsed, repository, alone=len(there) == 1)
    return [dataclasses.replace(settings, name=name) for settings in found] or None


def _set_up_logging(server: ServerSettings) -> None:
    """Log to standard error, in text or JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if server.log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("serinus").setLevel(server.log_level.upper())


def _help() -> str:
    """Write the help page from the table of options."""
    lines = [
        "usage: serinus serve [MODEL ...] [--flag value ...]",
        "",
        "Serve models over the Open Inference Protocol (V2), REST and gRPC, and V1.",
        "",
        _EXAMPLES,
    ]
    groups: dict[str, list[Option]] = {}
    for option in OPTIONS:
        groups.setdefault(option.group, []).append(option)
    for group, options in groups.items():
        lines.append(f"{group}:")
        for option in options:
            flag = f"--{option.name}"
            silent = option.default is None or option.default in ("", ()) or option.default is False
            default = "" if silent or "default" in option.help else f" (default {option.default})"
            lines.append(f"  {flag:<36} {option.help}{default}")
        lines.append("")
    return "\n".join(lines)


def _show(parsed: Parsed) -> None:
    """Print every setting with its value and source."""
    for option in OPTIONS:
        value = parsed.values[option.name]
        print(f"{option.name:<36} {json.dumps(value, default=str):<28} {parsed.sources[option.name]}")
