"""How a hosted class is constructed: its own signature says what it wants, and it is given that.

KServe has no rule: authors write `Cls(name)`, `Cls(args.model_name, args.model_dir)`, `Cls(name, predictor_host=...)`,
`Cls(name, predictor_config)`, and call it in a `__main__` of their own. So arguments are found by parameter name; `--extra`
supplies every other one.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError
from ..protocol.types import NO_PARAMETERS
from ..settings import ModelSettings, PredictorSettings

__all__ = ["FILLED", "construct", "kserve_arguments"]


def kserve_arguments(settings: ModelSettings, predictor: PredictorSettings | None) -> list[str]:
    """Write the settings as KServe's own flags, for modules that parse `sys.argv` when they are imported."""
    words = ["--model_name", settings.name] if settings.name else []
    if settings.model_dir is not None:
        words += ["--model_dir", str(settings.model_dir)]
    if settings.threads:
        words += ["--nthread", str(settings.threads)]
    if predictor is not None and predictor.host:
        words += ["--predictor_host", predictor.host, "--predictor_protocol", predictor.protocol]
        words += ["--predictor_use_ssl", str(predictor.use_ssl).lower()]
        words += ["--predictor_request_timeout_seconds", str(int(predictor.timeout_s))]
        words += ["--predictor_request_retries", str(predictor.retries)]
        if predictor.health_check:
            words.append("--enable_predictor_health_check")
    for name, value in settings.extra.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _parsed(target: Any) -> set[str]:
    """Name what the command line of the module itself takes: it has parsed it into a global, as KServe's examples do."""
    module = vars(sys.modules.get(getattr(target, "__module__", ""), sys))
    return {name for value in module.values() if isinstance(value, argparse.Namespace) for name in vars(value)}


_OF_DIRECTORY = ("model_dir", "model_path", "model_uri", "model_directory", "path", "storage_path")
_OF_THREADS = ("nthread", "nthreads", "nthread_count", "threads", "num_threads", "n_threads")
_OF_PREDICTOR = (
    "predictor_host",
    "protocol",
    "predictor_protocol",
    "use_ssl",
    "predictor_use_ssl",
    "predictor_request_timeout_seconds",
    "predictor_request_retries",
    "predictor_health_check",
)
FILLED: frozenset[str] = frozenset(
    {"name", "model_name", "settings", "model_version", "predictor_config", "allow_implementation"}
    | {*_OF_DIRECTORY, *_OF_THREADS, *_OF_PREDICTOR}
)
"""Parameters that are filled by what the settings say; `extra` fills the others."""


def _known(settings: ModelSettings, predictor: PredictorSettings | None, config: Any) -> dict[str, Any]:
    directory = str(settings.model_dir) if settings.model_dir is not None else None
    known: dict[str, Any] = {
        "name": settings.name,
        "model_name": settings.name,
        "settings": settings,
        "model_version": settings.version,
        "predictor_config": config,
    }
    if directory is not None:
        known |= dict.fromkeys(_OF_DIRECTORY, directory)
    for name in _OF_THREADS:
        known[name] = settings.native_threads
    if predictor is not None and predictor.host:
        known |= {
            "predictor_host": predictor.host,
            "protocol": predictor.protocol,
            "predictor_protocol": predictor.protocol,
            "use_ssl": predictor.use_ssl,
            "predictor_use_ssl": predictor.use_ssl,
            "predictor_request_timeout_seconds": int(predictor.timeout_s),
            "predictor_request_retries": predictor.retries,
            "predictor_health_check": predictor.health_check,
        }
    return known


def construct(
    target: Callable[..., Any],
    settings: ModelSettings,
    predictor: PredictorSettings | None = None,
    config: Any = None,
    otherwise: Mapping[str, Any] = NO_PARAMETERS,
) -> Any:
    """Call a class or function with what its signature names.

    Args:
        target: what makes the model.
        settings: name, directory, threads; `extra` fills further parameters by name.
        predictor: fills `predictor_host` and its like; None leaves them to their defaults.
        config: KServe's own `PredictorConfig`, for a parameter `predictor_config`.
        otherwise: for parameters without default that nothing else fills.

    Raises:
        ConfigError: a parameter without default that nothing fills, or an `extra` that no parameter takes.
    """
    what = getattr(target, "__qualname__", repr(target))
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return target(settings.name)
    # What the operator allows comes last: `extra` may be a model directory's own.
    known = {
        **_known(settings, predictor, config),
        **settings.extra,
        "allow_implementation": settings.allow_implementation,
    }
    positional: list[Any] = []
    named: dict[str, Any] = {}
    missing: list[str] = []
    takes_any = False
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif parameter.name in known:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(known[parameter.name])
            else:
                named[parameter.name] = known[parameter.name]
        elif parameter.default is parameter.empty:
            if parameter.name in otherwise and parameter.kind is not parameter.POSITIONAL_ONLY:
                named[parameter.name] = otherwise[parameter.name]
            elif index == 0:  # the first is the name, whatever the author called it
                positional.append(settings.name)
            else:
                missing.append(parameter.name)
    names = {parameter.name for parameter in parameters}
    problems = [_missing(what, name) for name in missing]
    spare = {key: value for key, value in settings.extra.items() if key not in names}
    if takes_any:
        named |= spare
    elif spare:
        parsed = _parsed(target)
        problems += [_unknown(what, key, names | parsed) for key in spare if key not in parsed]
    if problems:
        raise ConfigError(problems)
    return target(*positional, **named)


def _missing(what: str, name: str) -> str:
    if name in ("model_dir", "model_path", "model_uri", "path"):
        return f"{what} takes {name!r} and there is no model directory: name one (--model_dir DIR)"
    if name.startswith("predictor"):
        return f"{what} takes {name!r} and no predictor was named (--predictor_host HOST:PORT)"
    return f"{what} takes {name!r}, which nothing here fills: give it with --extra {name}=VALUE"


def _unknown(what: str, key: str, names: set[str]) -> str:
    near = difflib.get_close_matches(key, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what} has no parameter {key!r} (parameters.extra, --extra){hint}"
