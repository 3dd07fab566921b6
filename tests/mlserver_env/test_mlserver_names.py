"""Every variable that MLServer's settings read is known to `serinus serve`: it has an effect, or a word on what takes its place."""

from __future__ import annotations

import mlserver.settings as theirs
import pytest

from serinus.cli.serving.option_table import INERT_ENVIRONMENT, OPTIONS
from serinus.cli.serving.options import parse
from serinus.errors import ConfigError

PREFIXES = {
    theirs.Settings: "MLSERVER_",
    theirs.ModelSettings: "MLSERVER_MODEL_",
    theirs.ModelParameters: "MLSERVER_MODEL_",
}
NAMES = sorted(
    {f"{prefix}{field.rstrip('_').upper()}" for kind, prefix in PREFIXES.items() for field in kind.model_fields}
)
"""A trailing underscore is of a field whose variable goes without."""


def _said(name: str) -> str:
    """What `serve` says of a variable: nothing where it takes it, a warning, or what is wrong with its value."""
    try:
        return "; ".join(parse([], {name: "1"}).warnings)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("name", NAMES)
def test_no_variable_of_mlservers_is_called_unknown(name: str) -> None:
    taken = {variable for option in OPTIONS for variable in option.all_env()}
    said = _said(name)
    assert "is not a setting" not in said
    assert name in taken or name in said


def test_nothing_is_called_mlservers_that_it_does_not_have() -> None:
    assert set(INERT_ENVIRONMENT) <= set(NAMES)
