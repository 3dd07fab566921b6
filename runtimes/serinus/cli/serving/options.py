"""The options of `serinus serve`, read: flags, environment and `settings.json`, each known by all its names (`option_table`).

What is in no table is an error that suggests the nearest name; what KServe or MLServer offers and has no meaning here is accepted with a warning that
says what takes its place, so that a manifest written for them starts.
"""

from __future__ import annotations

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
from ...settings import is_service_link
from ...small_file import read_text
from .deprecations import DEPRECATIONS, Deprecation, tell_deprecation
from .numbers import number_of
from .option_table import (
    BY_THE_OPERATOR,
    INERT_ENVIRONMENT,
    INERT_FLAGS,
    NO_BATCHING,
    OPTIONS,
    OTHER_ENVIRONMENT,
    Option,
)

__all__ = ["Parsed", "parse"]

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
            warnings.append(f"{variable} has no effect here: {NO_BATCHING}")
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
