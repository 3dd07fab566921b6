"""What `serinus serve` is told by: its options under all their names, and the names of others that mean nothing here.

One table. An `Option` lists every flag that sets it (KServe's spelling among them) and every environment variable
(MLServer's where the meaning is the same). What KServe or MLServer offers and has no meaning here is in `INERT_FLAGS` and `INERT_ENVIRONMENT`, with
what takes its place. Who reads it all is `options`.

Source of the names: KServe 0.21 `kserve.model_server` parser; MLServer 1.7 `mlserver.settings`.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal

from ...settings import ServerSettings

__all__ = [
    "BY_THE_OPERATOR",
    "INERT_ENVIRONMENT",
    "INERT_FLAGS",
    "NO_BATCHING",
    "OPTIONS",
    "OTHER_ENVIRONMENT",
    "Option",
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

NO_BATCHING = "only requests that wait already are predicted together; --max_batch_rows 1 predicts each alone"
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
        "SERINUS_MAX_UNPACKED_BYTES",
        "SERINUS_MAX_UNPACKED_FILES",
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
