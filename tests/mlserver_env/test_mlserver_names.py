"""Every variable that MLServer's settings read is known to `serinus serve`: it has an effect, or a word on what takes its place."""

from __future__ import annotations

import mlserver.settings as theirs
import pytest

from serinus.cli.options import INERT_ENVIRONMENT, OPTIONS, parse
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


@pytest.mark.parametrize("name", NAMES)
def test_no_variable_of_mlservers_is_called_unknown(name: str) -> None:
    try:
        parsed = parse([], {name: "1"})
    except ConfigError as error:  # "1" may be no value of it; that it is a setting was known
        assert "is not a setting" not in str(error)
    else:
        known = {variable for option in OPTIONS for variable in option.all_env()}
        assert name in known or any(name in warning for warning in parsed.warnings) or name == "MLSERVER_MODEL_EXTRA"


def test_nothing_is_called_mlservers_that_it_does_not_have() -> None:
    assert set(INERT_ENVIRONMENT) <= set(NAMES)
