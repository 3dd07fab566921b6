"""What is hidden in texts for people, and what is left as it is."""

from __future__ import annotations

import logging

import pytest

from serinus.artifacts import Extra
from serinus.cli.serving.log_lines import JsonLines, TextLines
from serinus.errors import ConfigError
from serinus.local.run.storage import fetch, read_storage_config
from serinus.secrecy import hide, hide_named, is_secret_name

HIDDEN = {
    "https://me:hunter2@host/m": "https://me:***@host/m",
    "https://me:p@ss@w0rd@host/m": "https://me:***@host/m",
    "git+https://ghp_0123456789abcdef@github.com/a/b": "git+https://***@github.com/a/b",
    "host=db user=me password=hunter2 port=1": "host=db user=me password=*** port=1",
    "('aws_secret_access_key=abc/def', 1)": "('aws_secret_access_key=***', 1)",
    "redis://:hunter2@redis:6379/0": "redis://:***@redis:6379/0",
    "see https://a:b@c and s3://d:e@f.": "see https://a:***@c and s3://d:***@f.",
    "https://h/m?X-Amz-Signature=abc&X-Amz-Credential=d%2Fe&x=1": "https://h/m?X-Amz-Signature=***&X-Amz-Credential=***&x=1",
    "https://a.blob.core.windows.net/c?sv=2022&sig=ab%3D&se=1": "https://a.blob.core.windows.net/c?sv=2022&sig=***&se=1",
    "GET /v2/models/m?access_token=abc.def": "GET /v2/models/m?access_token=***",
    "GET /v2?a=b&api_key=abc HTTP/1.1": "GET /v2?a=b&api_key=*** HTTP/1.1",
    "/v2?key=AIza&x=y": "/v2?key=***&x=y",
    "Authorization: Bearer abcdef0123456789": "Authorization: Bearer ***",
    "{'authorization': 'bearer abc.def-ghi_123=='}": "{'authorization': 'bearer ***'}",
    "Basic dXNlcjpodW50ZXIy": "Basic ***",
    "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\nrest": (
        "-----BEGIN EC PRIVATE KEY-----***-----END EC PRIVATE KEY-----\nrest"
    ),
    "-----BEGIN PRIVATE KEY-----\nMHcC": "-----BEGIN PRIVATE KEY-----***",
}
PLAIN = [
    "REST on http://127.0.0.1:8080, gRPC on 127.0.0.1:8081",
    "http://[::1]:8080/v2",
    "loading needs the token as 'Authorization: Bearer TOKEN'; none came",
    "input 'x': shape [2, 3] holds 6 values",
    "GET /v2/models/m?timeout=3&page=2",
    "https://host/path@version",
    "git+ssh://git@github.com/a/b and https://me@host/",
    "a password = what nobody guesses; password: none",
    "basic statistics and bearers",
    "",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_credentials_are_hidden(text: str):
    assert hide(text) == HIDDEN[text]
    assert hide(hide(text)) == HIDDEN[text]


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_credential_stays(text: str):
    assert hide(text) == text


def test_long_texts_of_anybody_are_read_in_one_pass():
    for piece in (
        "://a:",
        "?a=",
        "?token",
        "Bearer ",
        "-----BEGIN PRIVATE KEY-----",
        "a_password=",
        "x_",
        "://aaaaaaaaaaaaaaaaaa",
    ):
        text = piece * (200_000 // len(piece))
        hide(text)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("redis_password", True),
        ("API_KEY", True),
        ("apiKey", True),
        ("secret_access_key", True),
        ("token", True),
        ("AWS_SESSION_TOKEN", True),
        ("awsSessionToken", True),
        ("token_file", False),
        ("token_routes", False),
        ("ssl_keyfile", False),
        ("model_signature", True),
        ("monkey", False),
        ("keyspace", False),
        ("author", True),
        ("tokenizer", True),
    ],
)
def test_names_of_secrets(name: str, secret: bool):
    """Rather one too many: `tokenizer` is hidden too."""
    assert is_secret_name(name) is secret


def test_values_are_hidden_by_their_names_at_any_depth():
    shown = hide_named(
        "extra", {"redis": {"password": "hunter2", "url": "redis://:hunter2@r"}, "tokens": ["hunter2"], "n": 3}
    )
    assert shown == {"redis": {"password": "***", "url": "redis://:***@r"}, "tokens": "***", "n": 3}
    assert hide_named("password", None) is None


def test_lines_of_the_log_and_tracebacks_hide_them():
    def fail() -> None:
        raise ValueError("asked https://me:hunter2@host with Bearer abcdef0123456789")

    try:
        fail()
    except ValueError:
        import sys

        record = logging.LogRecord("serinus", logging.ERROR, "", 0, "GET /?token=%s", ("hunter2",), sys.exc_info())
    for formatter in (TextLines(), JsonLines()):
        text = formatter.format(record)
        assert "hunter2" not in text
        assert "abcdef0123456789" not in text
        assert "ValueError" in text


def test_a_runtimes_own_setting_that_is_wrong_is_not_told_where_it_is_secret():
    extra = Extra({"api_key": "hunter2", "device": "tpu"}, known=("api_key", "device"))
    extra.numbers("api_key")
    extra.choice("device", ("cpu",))
    with pytest.raises(ConfigError) as caught:
        extra.close()
    assert "hunter2" not in str(caught.value)
    assert "'tpu'" in str(caught.value)


def test_a_damaged_file_of_storage_secrets_is_told_by_its_place_alone(tmp_path):
    file = tmp_path / "storage.yaml"
    file.write_text("default:\n  secret: 'hunter2\n  more: [hunter2\n")
    with pytest.raises(ValueError, match="line") as caught:
        read_storage_config(file)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://me:hunter2@127.0.0.1:1/m", "http://127.0.0.1:1/m?sig=hunter2"])
def test_an_address_with_a_secret_that_cannot_be_fetched_is_told_without_it(uri: str, tmp_path):
    with pytest.raises(ConfigError, match=r"\*\*\*") as caught:
        fetch(uri, base=tmp_path, cache=tmp_path / "cache", mounts={})
    assert "hunter2" not in str(caught.value)
