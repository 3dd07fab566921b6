"""A name that goes away works, and is warned of with what takes its place, however it is written."""

from __future__ import annotations

import pytest

from serinus.cli.serving.deprecations import Deprecation, tell_deprecation
from serinus.cli.serving.options import parse

TABLE = (
    Deprecation("--http_port", "0.2.0", "0.3.0", "--rest_port"),
    Deprecation("MLSERVER_HTTP_PORT", "0.2.0", "0.3.0", "SERINUS_HTTP_PORT"),
)


@pytest.mark.parametrize(
    ("argv", "environment", "says"),
    [
        (["--http_port", "9000"], {}, "--http_port is deprecated since 0.2.0 and goes with 0.3.0: use --rest_port"),
        (["--http-port=9000"], {}, "--http-port is deprecated"),
        (
            [],
            {"MLSERVER_HTTP_PORT": "9000"},
            "MLSERVER_HTTP_PORT is deprecated since 0.2.0 and goes with 0.3.0: use SERINUS_HTTP_PORT",
        ),
        ([], {"SERINUS_HTTP_PORT": "9000"}, None),
    ],
)
def test_a_deprecated_name_works_and_is_warned_of(argv: list[str], environment: dict[str, str], says: str | None):
    parsed = parse(["./m", *argv], environment, deprecations=TABLE)
    assert parsed.values["http_port"] == 9000
    told = [warning for warning in parsed.warnings if "deprecated" in warning]
    assert len(told) == (says is not None)
    assert not says or told[0].startswith(says)


def test_what_stays_is_not_warned_of():
    assert tell_deprecation("--grpc_port", TABLE) is None
    assert parse(["./m", "--http_port", "1"], {}).warnings == ()


@pytest.mark.parametrize("goes", ["0.2.0", "0.2.9", "0.1.0"])
def test_a_name_goes_a_minor_version_after_its_first_warning_at_the_earliest(goes: str):
    with pytest.raises(ValueError, match="later minor version"):
        Deprecation("--x", "0.2.0", goes, "--y")
