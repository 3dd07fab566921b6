"""`serinus serve`: run models behind the Open Inference Protocol, REST and gRPC.

Imports nothing that only operators need (typer, rich): what is imported here is paid for by every start of every container.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...bounds import BOUNDS
from ...dataplane.access.repository_access import RepositoryAccess
from ...errors import ConfigError
from ...native_pools import bound_pools, cpu_limit, describe_limit
from ...protocol.types import Limits
from ...secrecy import hide, hide_named
from ...server.port_checks import port_problems
from ...server.request_access import RequestAccess
from ...settings import PredictorSettings, ServerSettings
from .extra_settings import describe_extra
from .log_lines import JsonLines, StreamLines, TextLines, escape
from .option_table import OPTIONS, Option
from .options import Parsed, parse
from .repository_control import repository_access, request_access
from .startup_models import discover, find_models, repository_names

__all__ = ["main"]

_EXAMPLES = """\
Examples:
  serinus serve ./model                            a model file or directory; its runtime is inferred from the files
  serinus serve ./fraud ./recommender              several models at once, each under its folder's name
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

_HTTPS_PORT = 8443
"""Where KServe's server listens with TLS (kserve.constants, DEFAULT_HTTPS_PORT)."""


def main(argv: Sequence[str]) -> int:
    """Run `serinus serve` with these words.

    Returns:
        The exit status: see `serinus.server.exit_bound.ExitStatus`; 2 where the options are wrong.
    """
    started_workers = os.environ.get("SERINUS_WORKER") is not None
    try:
        parsed = parse(argv, os.environ)
        if parsed.help:
            print(_help(argv))
            return 0
        parsed = _within_grace(_with_https_port(parsed))
        server = _server_settings(parsed.values)
        access = repository_access(parsed, os.environ)
        requests = request_access(parsed, os.environ)
        _set_up_logging(server)
        if parsed.values["show_settings"]:
            _show(parsed)
            return 0
        _allow_connections()
        log = logging.getLogger("serinus")
        if not started_workers:
            for warning in parsed.warnings:
                log.warning("%s", warning)
            if parsed.values["model_repository"] and not access.is_on and server.repository_control == "auto":
                log.warning("models are not loaded and unloaded by request: %s", access.reason)
        if server.workers > 1 and not started_workers:
            from ...server.workers.supervisor import supervise

            return supervise(server, list(argv))
        # Once more, for whoever calls this from a process of another name.
        bound_pools(os.environ, cores=os.cpu_count() or 1)
        log.info("%s", describe_limit(cpu_limit()))
        return _serve(parsed, server, access, requests)
    except ConfigError as error:
        for problem in error.problems:
            print(f"serinus serve: {hide(escape(problem))}", file=sys.stderr)
        return 2


def _allow_connections() -> None:
    """Take as many descriptors as this process may have: each connection is one.

    The soft limit of 1024 that shells and systemd give is for programs with select(2).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS says "without end" and means less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve(parsed: Parsed, server: ServerSettings, access: RepositoryAccess, requests: RequestAccess | None) -> int:
    """Resolve the models and run this process as a server."""
    from ... import hosts
    from ...hosts.implementations import is_script
    from ...server.exit_bound import leave_soon
    from ...server.lifecycle import Launch, run

    values = parsed.values
    predictor = _predictor_settings(values)
    repository = Path(values["model_repository"]) if values["model_repository"] else None
    found = find_models(parsed, repository)
    models = found.models
    if os.environ.get("SERINUS_WORKER", "0") == "0":
        for left_out in found.left_out:
            logging.getLogger("serinus").info("left out, not taken for a model: %s", left_out)
    again = functools.partial(discover, parsed, repository)
    if len(models) == 1 and not values["transformer"] and is_script(models[0].implementation):
        keeps = values["model_name"] and parsed.sources["model_name"] != "INFERENCE_SERVICE_NAME"
        named = models[0] if values["model_name"] else dataclasses.replace(models[0], name="")
        from ...hosts.kserve.scripts import script_models

        script = script_models(named, predictor, keep_name=bool(keeps))
        models, again = script.models, script.discover
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
        spared=found.spared,
        broken=found.broken,
        strict_readiness=values["strict_readiness"],
        discover=again,
        index=functools.partial(repository_names, repository) if repository else None,
        access=access,
        request_access=requests,
        http_socket=socket.socket(fileno=int(http_fd)) if http_fd else None,
        grpc_port=int(grpc_port) if grpc_port else None,
        control=socket.socket(fileno=int(control_fd)) if control_fd else None,
    )
    return leave_soon(run(launch))


def _with_https_port(parsed: Parsed) -> Parsed:
    """Move REST to KServe's port for TLS where TLS is on and nothing names a port, as `kserve.ModelServer` does."""
    if not parsed.values["ssl_certfile"] or parsed.sources["http_port"] != "default":
        return parsed
    return dataclasses.replace(
        parsed,
        values={**parsed.values, "http_port": _HTTPS_PORT},
        sources={**parsed.sources, "http_port": "default with TLS"},
    )


def _within_grace(parsed: Parsed) -> Parsed:
    """Have delay and drain together end within Kubernetes' grace, as the drain alone does, where nobody has named a time for the drain."""
    delay_s, source = parsed.values["drain_delay_s"], parsed.sources["drain_timeout_s"]
    if not delay_s or source != "default":
        return parsed
    left_s = max(_LEAST_DRAIN_S, parsed.values["drain_timeout_s"] - delay_s)
    return dataclasses.replace(
        parsed,
        values={**parsed.values, "drain_timeout_s": left_s},
        sources={**parsed.sources, "drain_timeout_s": "default with drain_delay_s"},
    )


_LEAST_DRAIN_S = 1.0
"""Where the delay alone takes the default grace: whoever set it has set a longer one."""
_ORJSON_DEPTH = 1024
_REVISION_CHARACTERS = 253
"""The longest name of a Kubernetes object (RFC 1123 subdomain)."""
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
        for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "verify_models")
        if chosen[name] and not Path(chosen[name]).is_file()
    ]
    if chosen["ssl_ca_certs"] and not chosen["ssl_certfile"]:
        problems.append("--ssl_ca_certs asks clients for certificates; that needs --ssl_certfile and --ssl_keyfile")
    name = chosen["model_signature"]
    if not name or "/" in name or name in {".", ".."}:
        problems.append(f"--model_signature {name[:80]!r}: the name of a file in the model's folder was expected")
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
    # metadata.labels['app'] is "isvc." and the Deployment's name (KServe, GetRawServiceLabel); the name alone is meant.
    chosen["revision"] = revision = chosen["revision"].strip().removeprefix("isvc.")
    if len(revision) > _REVISION_CHARACTERS or not (revision.isascii() and revision.isprintable()):
        problems.append(
            f"--revision {revision[:80]!r}: printable ASCII, at most {_REVISION_CHARACTERS} characters, was expected"
        )
    if problems:
        raise ConfigError(problems)
    chosen["limits"] = Limits(**{name.removeprefix("max_"): chosen[name] for name in _LIMITS})
    settings = ServerSettings(**chosen)
    if twice := port_problems(settings):
        raise ConfigError(twice)
    return settings


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


def _set_up_logging(server: ServerSettings) -> None:
    """Log to standard error, in text or JSON."""
    # What no line of ours shows is not looked up for each (logging HOWTO, "Optimization"): a third of what a line costs.
    for each in (
        "logThreads",
        "logProcesses",
        "logMultiprocessing",
        "logAsyncioTasks",
    ):  # the last: Python 3.12 and later
        setattr(logging, each, False)
    logging._srcfile = None  # type: ignore[attr-defined] # the HOWTO's own way
    handler = StreamLines()
    handler.setFormatter(JsonLines() if server.log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("serinus").setLevel(server.log_level.upper())


def _help(argv: Sequence[str]) -> str:
    """Write the help page from the table of options, and of what the runtime takes that the other words name."""
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
    named, paths = "", ()
    try:
        asked = parse([word for word in argv if word not in {"-h", "--help"}], os.environ)
        named, paths = asked.values["class"] or "", asked.paths or ((asked.values["model_dir"] or ""),)
    except ConfigError:  # told once they are meant
        pass
    lines += describe_extra(named, tuple(filter(None, paths)))
    return "\n".join(lines)


def _show(parsed: Parsed) -> None:
    """Print every setting with its value and source."""
    for option in OPTIONS:
        value = parsed.values[option.name]
        if option.name == "extra":  # KEY=VALUE
            value = [
                f"{key}{equals}{hide_named(key, text)}" for key, equals, text in (pair.partition("=") for pair in value)
            ]
        else:
            value = hide_named(option.name, value)
        print(f"{option.name:<36} {json.dumps(value, default=str):<28} {parsed.sources[option.name]}")
