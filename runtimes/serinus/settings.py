"""Every setting of a server and of a model: its unit, its default and the reason for it.

A setting has one canonical name (the field), and is read, first found first taken, from
  1. a command-line flag: `--http-port 8080`, `--http_port=8080`; KServe's own names are flags too;
  2. the environment: `SERINUS_HTTP_PORT`, or MLServer's or KServe's name where the meaning is the same;
  3. a file: `settings.json` (server) or `model-settings.json` (model), in MLServer's form;
  4. the default.
An unknown flag, `SERINUS_*` or `MLSERVER_*` variable or file key is an error that suggests the right one: a setting that
is silently ignored is a setting that somebody believes in.

The command line and the environment are parsed in `serinus.cli.serving.serve`; this module holds only the values and their rules.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .bounds import BOUNDS, INSTANCES
from .native_pools import cpu_limit
from .protocol.documents.json_values import NotFinite
from .protocol.types import Limits, TensorSpec

__all__ = [
    "DATA_FOLDERS",
    "PROBABILITY_BINS",
    "UNVERSIONED",
    "BatchSettings",
    "ModelSettings",
    "PredictorSettings",
    "ScoreSettings",
    "ServerSettings",
    "cpu_limit",
    "is_loopback",
    "is_service_link",
]

PROBABILITY_BINS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

MOST_SCORE_BINS = 64
"""Each is a series for each model and revision; a canary is judged by ten or twenty."""

DATA_FOLDERS = (Path("/mnt/models"), Path("/mnt/pvc"))
"""Where KServe puts models and mounts their volumes (kserve.constants DEFAULT_MODEL_LOCAL_DIR; storage_initializer_injector.go
PvcSourceMountPath, to which its storage initializer makes links). A model's settings and links may lead there."""

UNVERSIONED: Final = "1"
"""What the version of an unversioned model is called where one must be: Triton's first (extension_statistics.md wants a version, and
perf_analyzer a number). It is found under it too; its metadata and responses name none."""

_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT(_.*)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?$")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_service_link(variable: str, value: str, known: Collection[str] = ()) -> bool:
    """Tell a variable that the kubelet sets for a Service of that name from a setting (Kubernetes, "Accessing the Service").

    A Service `serinus` gives SERINUS_PORT_80_TCP_ADDR; `serinus-metrics` gives SERINUS_METRICS_PORT, which is a setting's name too: there
    the value tells, `tcp://10.96.13.7:9000`, which is no port.

    Args:
        variable: its name.
        value: its text.
        known: names of settings.
    """
    if variable in known:
        return variable.endswith("_PORT") and _LINK_VALUE.fullmatch(value.strip()) is not None
    return _LINK_NAME.search(variable) is not None


def _flags(*names: str, env: Sequence[str] = (), help: str = "") -> dict[str, Any]:
    """Metadata of a setting: further flag and environment names (beside the field's own), and its help line."""
    return {"flags": names, "env": tuple(env), "help": help}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One server process group: sockets, limits, workers, logs."""

    host: str = field(
        default="127.0.0.1",
        metadata=_flags(
            env=("MLSERVER_HOST",),
            help="address to listen on; 0.0.0.0 is every IPv4 address, as in a container, :: IPv6 too",
        ),
    )
    http_port: int = field(
        default=8080, metadata=_flags(env=("MLSERVER_HTTP_PORT",), help="REST port; 0 picks a free one; 8443 with TLS")
    )
    grpc_port: int = field(
        default=8081, metadata=_flags(env=("MLSERVER_GRPC_PORT",), help="gRPC port; 0 picks a free one")
    )
    enable_grpc: bool = field(default=True, metadata=_flags(help="serve gRPC"))
    http: Literal["thin", "uvicorn"] = field(
        default="thin", metadata=_flags(help="HTTP transport: thin (llhttp on uvloop) or uvicorn")
    )
    grpc: Literal["auto", "native", "grpcio"] = field(
        default="auto",
        metadata=_flags(help="gRPC transport: native (HTTP/2 in Rust), grpcio, or auto: native where it can serve"),
    )
    workers: int = field(
        default=1,
        metadata=_flags(env=("SERINUS_WORKERS",), help="processes that share the ports; each loads every model"),
    )
    worker_timeout_s: float = field(
        default=30.0,
        metadata=_flags(
            help="seconds without a sign of life from the event loop of one of several workers until it is killed and replaced, as "
            "gunicorn's timeout; 0: never"
        ),
    )
    metrics_port: int | None = field(
        default=None,
        metadata=_flags(
            env=("MLSERVER_METRICS_PORT",), help="port for /metrics alone; it is on the REST port in any case"
        ),
    )
    health_port: int | None = field(
        default=None,
        metadata=_flags(
            help="port for health and readiness alone, always plain HTTP and without a token: for a kubelet's httpGet probes where "
            "--ssl_ca_certs has clients bring certificates; they are on the REST port in any case"
        ),
    )
    ssl_certfile: str | None = field(
        default=None, metadata=_flags(env=("KSERVE_TLS_CERT_FILE",), help="TLS certificate chain, PEM")
    )
    ssl_keyfile: str | None = field(default=None, metadata=_flags(env=("KSERVE_TLS_KEY_FILE",), help="TLS key, PEM"))
    ssl_ca_certs: str | None = field(
        default=None,
        metadata=_flags(
            help="PEM of the CAs of clients: each must then bring a certificate of one of them, over REST and gRPC"
        ),
    )
    token_file: str | None = field(
        default=None,
        metadata=_flags(
            help="file of tokens, one a line, of which requests need one as 'Authorization: Bearer'; read again when it changes; "
            "or the variable SERINUS_TOKEN"
        ),
    )
    token_routes: str = field(
        default="inference,metadata,control,metrics,docs",
        metadata=_flags(help="which requests need a token, separated by commas; health never does"),
    )
    max_body_bytes: int = field(
        default=Limits().body_bytes,
        metadata=_flags(help="largest HTTP body; 413 above it. 64 MiB holds 100 FP32 224x224x3 images"),
    )
    max_tensor_bytes: int = field(
        default=Limits().tensor_bytes, metadata=_flags(help="largest tensor in memory, after decoding; 413 above it")
    )
    max_tensors: int = field(
        default=Limits().tensors, metadata=_flags(help="most inputs, and most requested outputs, of one request")
    )
    max_rank: int = field(
        default=Limits().rank, metadata=_flags(help="most dimensions of a tensor; NumPy 1 stops at 32")
    )
    max_json_depth: int = field(
        default=Limits().json_depth, metadata=_flags(help="deepest nesting of a JSON body; 1024 is the most")
    )
    max_name_bytes: int = field(
        default=Limits().name_bytes, metadata=_flags(help="longest name of a tensor or parameter")
    )
    max_classes: int = field(
        default=Limits().classes, metadata=_flags(help="most classes that a request may ask for of one output")
    )
    max_instances: int = field(
        default=INSTANCES,
        metadata=_flags(
            help="most instances of one model, whoever asks: a flag, model-settings.json or a load request"
        ),
    )
    grpc_max_receive_message_length: int = field(
        default=Limits().body_bytes,
        metadata=_flags(env=("MLSERVER_GRPC_MAX_MESSAGE_LENGTH",), help="largest gRPC request, bytes"),
    )
    grpc_max_send_message_length: int = field(
        default=Limits().body_bytes, metadata=_flags(help="largest gRPC response, bytes")
    )
    grpc_stream_form: Literal["auto", "triton"] = field(
        default="auto",
        metadata=_flags(
            help="messages of ModelStreamInfer: triton (ModelStreamInferResponse), or auto: MLServer's (ModelInferResponse) for a "
            "hosted MLModel that overrides predict_stream, whose clients read nothing else"
        ),
    )
    grpc_metadata_form: Literal["auto", "properties", "mlserver"] = field(
        default="auto",
        metadata=_flags(
            help="what ModelMetadata says beyond its tensors: properties (Open Inference Protocol, text by name), mlserver "
            "(MLServer's parameters under the same number, whose clients cannot decode the other), or auto: MLServer's where it is installed"
        ),
    )
    timeout_keep_alive_s: float = field(
        default=65.0,
        metadata=_flags(
            "timeout-keep-alive",
            help="seconds an idle connection is kept; KServe's 65 outlives most load balancers' 60",
        ),
    )
    request_timeout_s: float = field(
        default=60.0, metadata=_flags(help="seconds a client may take to send one whole request; 408 after that")
    )
    send_timeout_s: float = field(
        default=60.0,
        metadata=_flags(
            help="seconds in which a client may take nothing of an answer that waits for it, until it is closed; nginx's send_timeout"
        ),
    )
    max_unsent_bytes: int = field(
        default=256 * 1024 * 1024,
        metadata=_flags(
            help="bytes of large answers that may wait for slow clients of all connections; past it the slowest are closed, else a new large "
            "answer is 429"
        ),
    )
    drain_timeout_s: float = field(
        default=25.0,
        metadata=_flags(
            help="seconds after SIGTERM for requests in flight, less drain_delay_s by default; Kubernetes kills after 30 by default"
        ),
    )
    drain_delay_s: float = field(
        default=0.0,
        metadata=_flags(
            help="seconds between readiness off and listeners closed, for endpoints to propagate; 5 is usual in a cluster"
        ),
    )
    memory_limit_bytes: int | None = field(
        default=None,
        metadata=_flags(
            help="memory (resident, files not counted), that of models' processes included, past which the server drains and ends with status 75 for a clean "
            "start, workers one at a time; 0: none; by default nine tenths of the container's limit, none where that has none"
        ),
    )
    gpu_memory_limit_bytes: int = field(
        default=0,
        metadata=_flags(
            help="likewise of what PyTorch has reserved on GPUs; 0: none (a GPU is often filled on purpose)"
        ),
    )
    termination_message_path: str = field(
        default="/dev/termination-log",
        metadata=_flags(
            help="file for the reason of an end that nobody asked for, where there is one: Kubernetes' terminationMessagePath; empty: none"
        ),
    )
    revision: str = field(
        default="",
        metadata=_flags(
            env=("K_REVISION",),
            help="which deployment of the model this is: a label of every metric, in the access log, the answer's field "
            "X-Serinus-Revision; Knative says it itself, serinus up too",
        ),
    )
    access_log: bool = field(
        default=False,
        metadata=_flags(
            help="one log line per request: ids, model, rows, batch, times, status, bytes; with --log_format json a field each"
        ),
    )
    slow_request_s: float = field(
        default=0.0,
        metadata=_flags(help="log each request that takes so many seconds, with where its time went; 0: none"),
    )
    log_level: str = field(default="INFO", metadata=_flags(help="DEBUG, INFO, WARNING or ERROR"))
    log_format: Literal["text", "json"] = field(default="text", metadata=_flags(help="text or json, to standard error"))
    expose_predictor: bool = field(
        default=False,
        metadata=_flags(
            help="let clients call the model behind a transformer in this process, NAME-predictor, past that transformer"
        ),
    )
    repository_control: Literal["auto", "off", "on", "open"] = field(
        default="auto",
        metadata=_flags(
            help="load and unload by request: on (on loopback, elsewhere with a token), off, open (without a token anywhere), or "
            "auto: on with --model_repository, else off"
        ),
    )
    repository_token_file: str | None = field(
        default=None,
        metadata=_flags(
            help="file with the token that load and unload need as 'Authorization: Bearer'; or the variable SERINUS_REPOSITORY_TOKEN"
        ),
    )
    compress: Literal["json", "all", "off"] = field(
        default="json",
        metadata=_flags(
            help="which answers are compressed (gzip, deflate) for a client that asks for it: json, all (raw tensors too, which hardly "
            "shrink and cost 26 ms of CPU a MB), or off"
        ),
    )
    compress_min_bytes: int = field(
        default=16 * 1024,
        metadata=_flags(
            help="smallest answer that is compressed, bytes; 16 KiB: what is smaller fits the first flight of a TCP connection (10 "
            "segments, RFC 6928), so that compressing it saves no round trip"
        ),
    )
    json_not_finite: NotFinite = field(
        default="null",
        metadata=_flags(
            help="what stands for NaN and infinities in JSON answers: null (valid JSON, an infinity is lost), tokens (NaN and Infinity, as "
            "Python and TensorFlow Serving write), or refuse (null for NaN, an error for infinities)"
        ),
    )
    enable_docs_url: bool | None = field(
        default=None,
        metadata=_flags(
            help="serve /docs, the models with examples and a place to ask them; default: where --host is this machine's own address"
        ),
    )
    verify_models: str | None = field(
        default=None,
        metadata=_flags(
            help="PEM file of the public key, or of the certificates, by which every model must be signed (OpenSSF model signing); "
            "one that is not, or that was changed since, is not loaded"
        ),
    )
    model_signature: str = field(
        default="model.sig",
        metadata=_flags(
            help="name of the signature in a model's folder; beside a model of one file it is the file's name and .sig"
        ),
    )
    limits: Limits = field(default=Limits(), metadata=_flags(help=""))


QUEUE_ROWS: Final = 65536
"""Rows that wait at the most where no `max_queue_rows` is set: 16 full batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """How requests of one model are put together; see `serinus.dataplane.batching.batcher`."""

    max_batch_rows: int = 4096
    """Most rows in one predict. Large, because a continuous batcher only takes what is already waiting."""
    max_delay_s: float = 0.0
    """Longest wait for more rows when a worker is free. 0: none, as Triton's default: idle servers add no delay."""
    max_queue_rows: int | None = None
    """Rows that may wait; beyond it requests are refused with 429 (RESOURCE_EXHAUSTED). None: what the model answers soon enough, see
    `serinus.dataplane.batching.adaptive_limit`, and `QUEUE_ROWS` at the most."""
    max_queue_bytes: int = 256 * 1024 * 1024
    """Bytes of the tensors (or V1 bodies) that wait or run; beyond it requests are refused alike. Four of the largest bodies, of the size
    that a pod of 1 GiB can hold beside its model."""
    default_timeout_s: float | None = None
    """Deadline of a request that brings none. None: it waits as long as its client does."""
    hang_timeout_s: float = 300.0
    """A predict that takes longer hangs: its requests get 504, the model is not ready, its process is restarted. 0: never. Knative's default
    `timeoutSeconds` of a revision, so that nobody waits for it any more."""
    priority_levels: int = 1
    """Schedule policy extension: 1 is the highest. 1: all are equal."""
    default_priority: int = 1
    """Level of a request that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """Which of a model's outputs is its score, whose distribution `/metrics` then shows for each revision."""

    output: str
    """Name of a numeric output."""
    bins: tuple[float, ...] = PROBABILITY_BINS
    """Upper bounds, ascending; what is above the last has a bin of its own. The default is ten bins of a probability."""
    column: int | None = None
    """Which value of a row counts, where a row has several. None: the last, a binary classifier's positive class."""

    def problem(self) -> str | None:
        """Say what is wrong with it; None: nothing."""
        if not self.output:
            return "a score needs the name of its output"
        if not 1 <= len(self.bins) <= MOST_SCORE_BINS:
            return f"{len(self.bins)} score bins; 1 to {MOST_SCORE_BINS} were expected"
        if not all(map(math.isfinite, self.bins)) or any(a >= b for a, b in itertools.pairwise(self.bins)):
            return f"the score bins {', '.join(map(str, self.bins))} do not ascend; give upper bounds such as 0.25,0.5,0.75,1"
        return None if self.column is None else BOUNDS["score_column"].problem(self.column)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One model, as `model-settings.json` (MLServer's form) and the flags describe it."""

    name: str
    version: str = ""
    """Empty: unversioned, and left out of responses."""
    implementation: str = ""
    """`package.module:Class` or `package.module.Class`; empty: inferred from the files of `model_dir`."""
    model_dir: Path | None = None
    """Where the model's files are (`parameters.uri`, `--model_dir`). A file or a folder."""
    platform: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    """Overrides what the model says of itself; names for columns of a bare matrix, for instance."""
    outputs: tuple[TensorSpec, ...] = ()
    execution: Literal["auto", "inline", "thread", "process"] = "auto"
    instances: int = 1
    """Predicts in flight at a time: threads or processes. More than 1 in threads needs a `predict` that may run concurrently."""
    max_concurrency: int = 256
    """Requests that a `RequestModel` works on at a time; more wait in the queue. Not for other models."""
    threads: int = 0
    """Native threads of one predict (`--nthread`). 0: the container's CPU limit, at least 1."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    batchable: bool | None = None
    """The owner's word on joining rows of several requests; see `serinus.dataplane.joining.decision`. None: they leave it to the model."""
    warmup: bool = True
    """Warm up, and time, before ready."""
    score: ScoreSettings | None = None
    """The output whose values are counted for each revision. None: none is, which costs nothing."""
    trial: bool = False
    """Load files that were never loaded in a process of their own first, where the runtime's framework may end the process over a damaged
    one (`serinus.engines.load_trial`). `serinus serve` says true: there other models would end with it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """`parameters.extra` and `parameters` keys that only this runtime knows; it must refuse those that it does not."""
    told: frozenset[str] = frozenset()
    """Keys of `extra` that the operator gave (`--extra`), and no file of the model's: their values may reach beyond it."""
    allow_implementation: tuple[str, ...] = ()
    """`--allow_implementation`: patterns of the code that the model's own files may choose beside the installed runtimes; see
    `allows`."""
    allow_uri: tuple[Path, ...] = DATA_FOLDERS
    """`--allow_uri`: folders beside the model's own that its settings and links may lead to."""
    digest: str = ""
    """Of a model whose signature was checked: `sha256:` and the digest of what is signed. Empty: none was asked for."""
    files: object = None
    """What `model_dir` lasts as long as: a private copy of the files that were checked. None: they are the owner's own."""

    def allows(self, name: str) -> bool:
        """Tell whether the model's own files may choose this code.

        Args:
            name: `package.module:Class` or `package.module.Class`; patterns match the dotted name, with case.
        """
        dotted = name.replace(":", ".")
        return any(fnmatch.fnmatchcase(dotted, pattern.replace(":", ".")) for pattern in self.allow_implementation)

    @property
    def native_threads(self) -> int:
        """`threads`, or else the container's CPU limit rounded down, at least 1."""
        return self.threads or max(1, int(cpu_limit()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSettings:
    """How a transformer reaches its predictor: KServe's `--predictor_*` flags."""

    host: str | None = None
    """`--predictor_host`: host or host:port. None: the predictor is in this process, or there is none."""
    protocol: Literal["v1", "v2", "grpc-v2"] = "v1"
    """`--predictor_protocol`. v1 is KServe's default; ours are always started with v2 or grpc-v2."""
    use_ssl: bool = False
    timeout_s: float = 600.0
    """`--predictor_request_timeout_seconds`; KServe's default."""
    retries: int = 0
    """`--predictor_request_retries`, used only where the predictor cannot have begun the work."""
    health_check: bool = False
    """`--enable_predictor_health_check`: ready only while the predictor is."""
