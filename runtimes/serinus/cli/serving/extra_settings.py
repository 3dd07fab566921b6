"""What `--extra` may say, for the help page: the settings of the runtime that is asked about, by its own word."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError

__all__ = ["describe_extra"]


def describe_extra(named: str, paths: tuple[str, ...]) -> list[str]:
    """Write the settings of a runtime, a line each.

    Args:
        named: class or package, as `--class` has it; empty: the one that the first path's files belong to.
        paths: of models.

    Returns:
        Lines of the help page; how to ask where nothing says which runtime is meant.
    """
    from ...hosts.implementations import resolve
    from ...loading import infer_implementation, installed

    ask = "  serinus serve --class RUNTIME --help lists those of a runtime (xgboost_server, onnx_server, your own class, ...)"
    try:
        named = installed(named) if named else infer_implementation(Path(paths[0])) if paths else ""
        if not named or named.partition(":")[0].endswith(".py"):  # a file would be run
            return [ask]
        found = resolve(named)
    except (ConfigError, OSError) as error:
        return [f"  {error}"]
    settings = _settings_of(found.target)
    title = f"Settings of {named} (--extra KEY=VALUE, or parameters.extra of model-settings.json):"
    lines = [f"  {'--extra ' + key + '=...':<36} {text}" for key, text in settings.items()]
    return [title, *(lines or ["  none"])]


def _settings_of(target: Any) -> Mapping[str, str]:
    """What a class says of its settings; else the parameters that nothing but `--extra` fills."""
    told = getattr(target, "extra_settings", None)
    if told:
        return told
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    from ...loading.construction import FILLED

    plain = [one for one in parameters if one.name not in FILLED and one.kind is one.POSITIONAL_OR_KEYWORD]
    return {
        one.name: "an argument of its constructor" + ("" if one.default is one.empty else f" (default {one.default!r})")
        for one in plain
    }
