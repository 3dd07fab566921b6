"""The options of `serinus serve`: flags, environment and `settings.json`, each known by all its names.

One table. An `Option` lists every flag that sets it (KServe's spelling among them) and every environment variable
(MLServer's where the meaning is the same). What is in no table is an error that suggests the nearest name; what KServe
or MLServer offers and has no meaning here is accepted with a warning that says what takes its place, so that a manifest
written for them starts.

Source of the names: KServe 0.21 `kserve.model_server` parser; MLServer 1.7 `mlserver.settings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError
from ...settings import ServerSettings, is_service_link
from ...small_file import read_text
from .deprecations import DEPRECATIONS, Deprecation, tell_deprecation
from .numbers import number_of

__all__ = [
    "BY_THE_OPERATOR",
    "INERT_ENVIRONMENT",
    "INERT_FLAGS",
    "OPTIONS",
    "OTHER_ENVIRONMENT",
    "Option",
    "Parsed",
    "parse",
]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `name` is the canonical one, `kind` the type its text is turned into."""

    name: str
    kind: Any
    default: Any
    help: str
    group: str
    flags: tuple[str, ...] = ()
    """Further flags, without dashes, underscores and dashes alike."""
    env: tuple[str, ...] = ()
    """Further environment variables; `SERINUS_<NAME>` always is one."""
    repeat: bool = False
    """May be given several times; the values are collected."""

    def all_flags(self) -> tuple[str, ...]:
        """Every spelling, normalised (dashes)."""
        return tuple(dict.fromkeys(name.replace("_", "-") for name in (self.name, *self.flags)))

    def all_env(self) -> tuple[str, ...]:
        """Every environment variable, ours first."""
        return tuple(dict.fromkeys((f"SERINUS_{self.name.upper()}", *self.env)))


def _server_options() -> list[Option]:
    """Read the options of `ServerSettings` off its fields."""
    hints = typing.get_type_hints(ServerSettings)
    options = []
    for spec in dataclasses.fields(ServerSettings):
        if spec.name == "limits":
            continue
        meta = spec.metadata
        options.append(
            Option(
                name=spec.name,
                kind=hints[spec.name],
                default=spec.default,
                help=str(meta.get("help", "")),
                group="Server",
                flags=tuple(meta.get("flags", ())),
                env=tuple(meta.get("env", ())),
            )
        )
    return options


OPTIONS: tuple[Option, ...] = (
    Option(
        "model_name",
        str | None,
        None,
        "name in URLs; default: INFERENCE_SERVICE_NAME, else the directory's settings, else the folder's name; 'model' for /mnt/models",
        "Model",
        env=("MLSERVER_MODEL_NAME", "INFERENCE_SERVICE_NAME"),
    ),
    Option(
        "model_dir",
        str | None,
        None,
        "model file or directory (default: the argument, else /mnt/models where it exists)",
        "Model",
        flags=("model_uri",),
        env=("MLSERVER_MODEL_URI",),
    ),
    Option(
        "class",
        str | None,
        None,
        "package[:Class] or file.py[:Class] of a serinus Model, a kserve.Model or an MLServer MLModel; default: from the files",
        "Model",
        flags=("implementation",),
        env=("MLSERVER_MODEL_IMPLEMENTATION",),
    ),
    Option(
        "transformer",
        str | None,
        None,
        "package[:Class] or file.py[:Class] of a kserve.Model whose preprocess and postprocess run around the model, in this process",
        "Model",
    ),
    Option("model_version", str, "", "version in URLs and responses", "Model", env=("MLSERVER_MODEL_VERSION",)),
    Option(
        "nthread", int, 0, "native threads of one predict; 0: the container's CPU limit", "Model", flags=("threads",)
    ),
    Option(
        "execution",
        Literal["auto", "inline", "thread", "process"],
        "auto",
        "where predict runs: auto measures at warm-up",
        "Model",
    ),
    Option(
        "instances", int | None, None, "predicts of one model at a time outside the event loop (default 1)", "Model"
    ),
    Option("max_concurrency", int | None, None, "requests that a model answers at a time (default 256)", "Model"),
    Option("warmup", bool, True, "warm up and time the model before ready", "Model"),
    Option("score_output", str, "", "output whose values /metrics counts for each revision (default: none)", "Model"),
    Option("score_bins", str, "", "upper bounds of its bins, separated by commas (default: ten of 0 to 1)", "Model"),
    Option(
        "score_column",
        int | None,
        None,
        "which value of a row it is, where a row has several (default: the last)",
        "Model",
    ),
    Option(
        "trial",
        bool,
        True,
        "load files that were never loaded in a process of their own first, which a damaged one ends (tensorflow_server)",
        "Model",
    ),
    Option(
        "extra",
        str,
        (),
        "KEY=VALUE for the runtime (JSON value or text); may be repeated; --class RUNTIME --help lists its keys",
        "Model",
        repeat=True,
    ),
    Option(
        "allow_implementation",
        str,
        (),
        "pattern of dotted names of classes that model directories may choose beside the installed runtimes ('mypackage.*', "
        "'*'); separated by commas, may be repeated (default: none)",
        "Model",
        repeat=True,
    ),
    Option(
        "allow_uri",
        str,
        ("/mnt/models", "/mnt/pvc"),
        "folder beside its own that a model directory's settings and links may lead to; separated by commas, may be repeated",
        "Model",
        repeat=True,
    ),
    Option(
        "model_repository",
        str | None,
        None,
        "folder of model folders, loaded and unloaded by the repository API",
        "Model",
        flags=("model_repository_root",),
        env=("MLSERVER_MODEL_REPOSITORY_ROOT", "MLSERVER_MODELS_DIR"),
    ),
    Option(
        "load_models_at_startup",
        bool,
        True,
        "load what the repository holds at start",
        "Model",
        env=("MLSERVER_LOAD_MODELS_AT_STARTUP",),
    ),
    Option(
        "exit_on_error",
        bool,
        False,
        "end the start where a model of the repository, or of a folder of models, does not load, as Triton does by default; without it that model is listed as "
        "UNAVAILABLE and the others are served",
        "Model",
    ),
    Option(
        "strict_readiness",
        bool,
        False,
        "not ready while a model of the repository that did not load at start is neither loaded nor unloaded, as Triton by default",
        "Model",
    ),
    Option(
        "batchable",
        bool | None,
        None,
        "false: each request is predicted alone; true: rows are joined unless a check finds them dependent (default: what the check says)",
        "Batching",
    ),
    Option(
        "max_batch_rows",
        int | None,
        None,
        "most rows in one predict (default 4096)",
        "Batching",
        env=("MLSERVER_MODEL_MAX_BATCH_SIZE",),
    ),
    Option(
        "max_delay_s",
        float | None,
        None,
        "longest wait for more rows, seconds (default 0: take what is queued)",
        "Batching",
        env=("MLSERVER_MODEL_MAX_BATCH_TIME",),
    ),
    Option(
        "max_queue_rows",
        int | None,
        None,
        "rows that may wait before 429 (default: what is answered within about 0.2 s, as measured)",
        "Batching",
    ),
    Option(
        "max_queue_bytes",
        int | None,
        None,
        "bytes of tensors that wait or run before 429 (default 256 MiB)",
        "Batching",
    ),
    Option("default_timeout_s", float | None, None, "deadline of a request that brings none, seconds", "Batching"),
    Option(
        "hang_timeout_s",
        float | None,
        None,
        "seconds after which a predict hangs: 504, not ready, its process is restarted; 0: never (default 300)",
        "Batching",
    ),
    Option("priority_levels", int | None, None, "levels of the schedule policy; 1 is highest (default 1)", "Batching"),
    Option("predictor_host", str | None, None, "host[:port] of the predictor behind a transformer", "Predictor"),
    Option("predictor_protocol", Literal["v1", "v2", "grpc-v2"], "v1", "protocol spoken to it", "Predictor"),
    Option("predictor_use_ssl", bool, False, "TLS to it", "Predictor"),
    Option("predictor_request_timeout_seconds", float, 600.0, "longest wait for it", "Predictor"),
    Option("predictor_request_retries", int, 0, "retries, only where it cannot have begun the work", "Predictor"),
    Option("enable_predictor_health_check", bool, False, "ready only while it is", "Predictor"),
    *_server_options(),
    Option(
        "settings",
        str | None,
        None,
        "settings.json with any of these, or MLServer's names; by default that beside the models",
        "Other",
    ),
    Option("show_settings", bool, False, "print every setting, its value and where it came from, and exit", "Other"),
)

INERT_FLAGS: dict[str, str] = {
    "protocol": "both protocols are always served; for the predictor behind a transformer use --predictor_protocol",
    "max-threads": "threads are chosen by measurement; see --execution and --nthread",
    "max-asyncio-workers": "threads are chosen by measurement; see --execution and --nthread",
    "enable-latency-logging": "latencies are in /metrics; --access_log logs each request",
    "configure-logging": "use --log_level and --log_format",
    "log-config-file": "use --log_level and --log_format",
    "access-log-format": "use --access_log and --log_format json",
    "event-loop": "uvloop is used wherever it is installed",
}
"""KServe's flags that take a value and have no meaning here, each with what takes its place."""

INERT_ENVIRONMENT: dict[str, str] = {
    "MLSERVER_PARALLEL_WORKERS": "batching makes it unnecessary for most models; --workers starts whole processes",
    "MLSERVER_PARALLEL_WORKERS_TIMEOUT": "use --drain_timeout_s",
    "MLSERVER_DEBUG": "use --log_level DEBUG",
    "MLSERVER_METRICS_ENDPOINT": "metrics are at /metrics",
    "MLSERVER_METRICS_REST_SERVER_PREFIX": "metric names do not depend on it",
    "MLSERVER_METRICS_DIR": "worker processes share their metrics over pipes",
    "MLSERVER_ENVIRONMENTS_DIR": "an image holds one environment",
    "MLSERVER_SERVER_NAME": "the server's name is serinus",
    "MLSERVER_SERVER_VERSION": "the server's version is serinus's",
    "MLSERVER_EXTENSIONS": "extensions are what this server offers",
    "MLSERVER_ROOT_PATH": "let the gateway strip a path prefix",
    "MLSERVER_USE_STRUCTURED_LOGGING": "use --log_format json",
    "MLSERVER_LOGGING_SETTINGS": "use --log_level and --log_format",
    "MLSERVER_GZIP_ENABLED": "responses are compressed when the client asks",
    "MLSERVER_TRACING_SERVER": "trace headers are forwarded",
    "MLSERVER_CACHE_ENABLED": "responses are not cached",
    "MLSERVER_CACHE_SIZE": "responses are not cached",
    "MLSERVER_CORS_SETTINGS": "let the gateway answer cross-origin requests",
    "MLSERVER_KAFKA_ENABLED": "Kafka is not spoken",
    "MLSERVER_KAFKA_SERVERS": "Kafka is not spoken",
    "MLSERVER_KAFKA_TOPIC_INPUT": "Kafka is not spoken",
    "MLSERVER_KAFKA_TOPIC_OUTPUT": "Kafka is not spoken",
    "MLSERVER_MODEL_REPOSITORY_IMPLEMENTATION": "the repository is a folder; see --model_repository",
    "MLSERVER_MODEL_REPOSITORY_IMPLEMENTATION_ARGS": "the repository is a folder; see --model_repository",
    "MLSERVER_MODEL_FORMAT": "the format is read off the model's file",
    "MLSERVER_MODEL_VERSIONS": "the versions told are those that are loaded",
    "MLSERVER_MODEL_PLATFORM": "put 'platform' into model-settings.json",
    "MLSERVER_MODEL_INPUTS": "put 'inputs' into model-settings.json",
    "MLSERVER_MODEL_OUTPUTS": "put 'outputs' into model-settings.json",
    "MLSERVER_MODEL_PARAMETERS": "put 'parameters' into model-settings.json",
    "MLSERVER_MODEL_CONTENT_TYPE": "put 'parameters.content_type' into model-settings.json",
    "MLSERVER_MODEL_CACHE_ENABLED": "responses are not cached",
    "MLSERVER_MODEL_PARALLEL_WORKERS": "see --instances and --execution process",
    "MLSERVER_MODEL_WARM_WORKERS": "models are warm before they are ready; see --warmup",
    "MLSERVER_MODEL_ENVIRONMENT_PATH": "an image holds one environment",
    "MLSERVER_MODEL_ENVIRONMENT_TARBALL": "an image holds one environment",
    "MLSERVER_MODEL_INFERENCE_POOL_GID": "all models share one process; see --execution process",
    "MLSERVER_MODEL_AUTOGENERATE_INFERENCE_POOL_GID": "all models share one process; see --execution process",
}
"""MLServer's variables that have no meaning here, each with what takes its place."""

_NO_BATCHING = "only requests that wait already are predicted together; --max_batch_rows 1 predicts each alone"
"""What is told where MLServer's adaptive batching is switched off, which would have requests wait for one another."""

BY_THE_OPERATOR: frozenset[str] = frozenset(
    {
        "class",
        "transformer",
        "extra",
        "allow_implementation",
        "allow_uri",
        "model_dir",
        "settings",
        "trial",
        "verify_models",
        "model_signature",
        "ssl_ca_certs",
        "token_file",
        "token_routes",
    }
)
"""Options that choose code, what may be read, or how it is guarded: never taken from a settings.json that was found beside the models."""

OTHER_ENVIRONMENT: frozenset[str] = frozenset(
    {
        "SERINUS_NATIVE",
        "SERINUS_CACHE_DIR",
        "SERINUS_PURE",
        "SERINUS_REPOSITORY_TOKEN",
        "SERINUS_TOKEN",
        "SERINUS_WORKER",
        "SERINUS_CONTROL_FD",
        "SERINUS_HTTP_FD",
        "SERINUS_GRPC_BOUND_PORT",
    }
)
"""Our variables that other parts read."""

_OURS_AND_MLSERVERS = ("MLSERVER_", "SERINUS_")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was asked for: values by canonical name, where each came from, arguments, warnings to log."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    paths: tuple[str, ...]
    warnings: tuple[str, ...]
    help: bool = False


def _kinds(kind: Any) -> tuple[tuple[Any, ...], bool]:
    """Split `int | None` into its kinds and whether None is one of them."""
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        parts = typing.get_args(kind)
        return tuple(part for part in parts if part is not type(None)), type(None) in parts
    return (kind,), False


def _is_switch(option: Option) -> bool:
    """Whether its flag alone means true."""
    return _kinds(option.kind)[0] == (bool,)


def _convert(option: Option, text: Any, where: str) -> Any:
    """Turn text (or a JSON value) into the option's kind.

    Raises:
        ConfigError: naming where it came from, what came and what is accepted.
    """
    (kind, *_), optional = _kinds(option.kind)
    if text is None and optional:
        return None
    if typing.get_origin(kind) is Literal:
        accepted = typing.get_args(kind)
        if text in accepted:
            return text
        raise ConfigError(f"{where}: {text!r} is not one of {', '.join(accepted)}{_suggest(str(text), accepted)}")
    if kind is bool:
        if isinstance(text, bool):
            return text
        lowered = str(text).strip().lower()
        if lowered in {"1", "true", "t", "yes", "y", "on"}:
            return True
        if lowered in {"0", "false", "f", "no", "n", "off"}:
            return False
        raise ConfigError(f"{where}: {text!r} is neither true nor false")
    if kind in {int, float}:
        return number_of(option.name, kind, text, where)
    return str(text)


def _suggest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """End a message with the nearest known name, where there is one."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def parse(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    options: Sequence[Option] = OPTIONS,
    deprecations: Sequence[Deprecation] = DEPRECATIONS,
) -> Parsed:
    """Read flags, environment and settings file into one set of values.

    Args:
        argv: the words after `serinus serve`.
        environment: usually `os.environ`.
        options: the table.
        deprecations: names whose use is warned of.

    Raises:
        ConfigError: every problem found, together.
    """
    by_flag = {flag: option for option in options for flag in option.all_flags()}
    by_env = {name: option for option in options for name in option.all_env()}
    problems: list[str] = []
    warnings: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    paths: list[str] = []

    def take(option: Option, text: Any, where: str) -> None:
        try:
            value = _convert(option, text, where)
        except ConfigError as error:
            problems.extend(error.problems)
            return
        if option.repeat:
            values[option.name] = (*values.get(option.name, ()), value)
        else:
            values[option.name] = value
        sources[option.name] = where
        if (warning := tell_deprecation(where, deprecations)) is not None:
            warnings.append(warning)

    words = list(argv)
    while words:
        word = words.pop(0)
        if word in {"-h", "--help"}:
            return Parsed({}, {}, (), (), help=True)
        if word == "--":
            paths.extend(words)
            break
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                problems.append(
                    f"{word}: flags begin with two dashes{_suggest(word.lstrip('-'), by_flag, prefix='--')}"
                )
            else:
                paths.append(word)
            continue
        flag, equals, inline = word[2:].partition("=")
        name = flag.replace("_", "-")
        if name in INERT_FLAGS:
            if not equals and words and not words[0].startswith("--"):
                words.pop(0)
            warnings.append(f"--{flag} has no effect here: {INERT_FLAGS[name]}")
            continue
        negated = name.startswith("no-") and name not in by_flag
        option = by_flag.get(name[3:] if negated else name)
        if option is None or (negated and not _is_switch(option)):
            near = _suggest(name, by_flag, prefix="--")
            problems.append(f"--{flag} is not a flag of serinus serve{near} (serinus serve --help lists them)")
            if not equals and words and not words[0].startswith("-"):
                words.pop(0)
            continue
        if _is_switch(option) and not equals:
            truth = words and words[0].lower() in {"true", "false", "yes", "no", "on", "off", "0", "1"}
            text: Any = words.pop(0) if truth and not negated else not negated
        elif equals:
            text = inline
        elif words and (not words[0].startswith("--") or words[0] == "--"):
            text = words.pop(0)
        else:
            problems.append(f"--{flag} needs a value: {option.help}")
            continue
        take(option, text, f"--{flag}")

    linked = {variable for variable, text in environment.items() if is_service_link(variable, text, by_env)}
    warnings.extend(
        f"{variable}={environment[variable]} is Kubernetes' link to a Service of that name and no setting: ignored "
        "(enableServiceLinks: false in the pod leaves such variables out)"
        for variable in sorted(linked & by_env.keys())
    )
    environment = {variable: text for variable, text in environment.items() if variable not in linked}
    for variable, text in environment.items():
        option = by_env.get(variable)
        if variable == "MLSERVER_MODEL_MAX_BATCH_SIZE" and text.strip() in {"0", "1"}:
            warnings.append(f"{variable} has no effect here: {_NO_BATCHING}")
        elif variable == "MLSERVER_MODEL_EXTRA":
            if "extra" not in values:
                _take_extra(text, variable, values, sources, problems)
        elif option is not None:
            if option.name not in values:
                # Of several variables for one option ours wins, then the order of the table.
                first = next(name for name in option.all_env() if name in environment)
                if variable == first and text != "":
                    take(option, text, variable)
        elif variable in INERT_ENVIRONMENT:
            warnings.append(f"{variable} has no effect here: {INERT_ENVIRONMENT[variable]}")
        elif variable.startswith(_OURS_AND_MLSERVERS) and variable not in OTHER_ENVIRONMENT:
            problems.append(f"{variable} is not a setting of serinus{_suggest(variable, by_env)}")

    chosen = [Path(values["settings"])] if values.get("settings") else _beside_models(paths, values)
    if chosen and values.get("verify_models") and not values.get("settings"):
        # It is read before the model's signature is, or lies where none reaches, as at a repository's root.
        problems += [
            f"{path}: not taken with --verify_models, since it may be unsigned; to trust it, start with --settings {path}"
            for path in chosen
        ]
    elif len(chosen) > 1:
        problems.append(f"several settings.json: {', '.join(map(str, chosen))}; choose one with --settings")
    elif chosen:
        own = () if values.get("settings") else BY_THE_OPERATOR
        _read_file(chosen[0], options, values, sources, problems, warnings, own)
    if problems:
        raise ConfigError(problems)
    for option in options:
        if option.name not in values:
            values[option.name] = option.default
            sources[option.name] = "default"
    return Parsed(values, sources, tuple(paths), tuple(warnings))


def _take_extra(text: str, where: str, values: dict[str, Any], sources: dict[str, str], problems: list[str]) -> None:
    """Read MLServer's `MLSERVER_MODEL_EXTRA`, one JSON object, as so many `--extra KEY=VALUE`."""
    try:
        content = json.loads(text)
    except ValueError as error:
        problems.append(f"{where}: not JSON: {error}")
        return
    if not isinstance(content, dict):
        problems.append(f"{where}: {text!r} is no JSON object")
        return
    values["extra"] = tuple(f"{key}={json.dumps(value)}" for key, value in content.items())
    sources["extra"] = where


def _beside_models(paths: Sequence[str], values: Mapping[str, Any]) -> list[Path]:
    """Find the `settings.json` of the folders to serve, where `mlserver start` reads it.

    Only in folders of MLServer's kind, which have a model-settings.json too, themselves or in their folders.
    """
    folders = dict.fromkeys(Path(path) for path in (*paths, values.get("model_repository")) if path)
    return [
        folder / "settings.json"
        for folder in folders
        # Where the folder cannot be read, who serves it says so.
        if os.path.isfile(folder / "settings.json")
        and ((folder / "model-settings.json").is_file() or any(folder.glob("*/model-settings.json")))
    ]


def _read_file(
    path: Path,
    options: Sequence[Option],
    values: dict[str, Any],
    sources: dict[str, str],
    problems: list[str],
    warnings: list[str],
    by_the_operator: Collection[str],
) -> None:
    """Fill what flags and environment left open from a `settings.json`; options `by_the_operator` are a problem there."""
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return
    except (ValueError, RecursionError) as error:
        problems.append(f"{path}: not JSON: {error}")
        return
    if not isinstance(content, dict):
        problems.append(f"{path}: a settings file holds one JSON object")
        return
    by_key: dict[str, Option] = {}
    for option in options:
        by_key[option.name] = option
        by_key.update(
            {name.removeprefix("MLSERVER_").lower(): option for name in option.env if name.startswith("MLSERVER_")}
        )
    inert = {name.removeprefix("MLSERVER_").lower(): note for name, note in INERT_ENVIRONMENT.items()}
    for key, value in content.items():
        option = by_key.get(key)
        where = f"{path}: {key}"
        if option is None and key in inert:
            warnings.append(f"{where} has no effect here: {inert[key]}")
        elif option is None:
            problems.append(f"{where} is not a setting of serinus{_suggest(key, by_key)}")
        elif option.name in by_the_operator:
            problems.append(
                f"{where} is for the operator to say, not for a file beside the models; give --{option.name}, or name the file "
                f"with --settings {path}"
            )
        elif option.name not in values:
            try:
                items = value if option.repeat and isinstance(value, list) else [value]
                converted = tuple(_convert(option, item, where) for item in items)
                values[option.name] = converted if option.repeat else converted[0]
                sources[option.name] = str(path)
            except ConfigError as error:
                problems.extend(error.problems)
