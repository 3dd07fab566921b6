"""Which files of tokens are taken, up to their bounds, and when they are read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from serinus.dataplane.access.access_tokens import Tokens, has_credentials, read_tokens
from serinus.errors import ConfigError

LEAST, MOST_CHARACTERS, MOST = 16, 8192, 1024


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "tokens"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("length", [LEAST, LEAST + 1, MOST_CHARACTERS])
def test_a_token_of_a_length_within_the_bounds_is_taken(length: int, tmp_path: Path):
    assert read_tokens(file_of(tmp_path, "t" * length), "w") == ("t" * length,)


@pytest.mark.parametrize(
    "token", ["t" * (LEAST - 1), "t" * (MOST_CHARACTERS + 1), "ü" * 20, "a token with spaces", "t" * 20 + "\x7f"]
)
def test_what_is_too_short_too_long_or_cannot_be_sent_is_refused_and_not_told(token: str, tmp_path: Path):
    with pytest.raises(ConfigError) as refused:
        read_tokens(file_of(tmp_path, token), "w")
    assert str(refused.value).startswith(f"w: holds {len(token)} characters; a token is one line of at least 16 ASCII")
    assert token not in str(refused.value)


def test_the_token_that_is_wrong_is_named_by_its_place_where_there_are_several(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^w: token 2: holds 5 characters"):
        read_tokens(file_of(tmp_path, "# ours", "t" * 20, "", "short"), "w")


def test_a_file_that_is_not_there_or_no_text_is_said_to_be_so(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^w: cannot be read: No such file or directory$"):
        read_tokens(tmp_path / "tokens", "w")
    (tmp_path / "tokens").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match=r"^w: is no text in UTF-8; one token a line was expected$"):
        read_tokens(tmp_path / "tokens", "w")


@pytest.mark.parametrize("count", [1, 2, MOST])
def test_up_to_a_thousand_and_twenty_four_tokens_are_taken(count: int, tmp_path: Path):
    tokens = [f"{number:020}" for number in range(count)]
    assert read_tokens(file_of(tmp_path, *tokens), "w") == tuple(tokens)


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_none_or_more_are_refused_with_their_count(count: int, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"^w: holds {count} tokens; 1 to 1024 were expected"):
        read_tokens(file_of(tmp_path, *(f"{number:020}" for number in range(count))), "w")


def test_a_file_is_read_again_and_stays_as_it_was_where_it_holds_none(tmp_path: Path):
    old, new = "old-" * 5, "new-" * 5
    path = file_of(tmp_path, old)
    tokens = Tokens(read_tokens(path, "w"), file=path, where="w")
    path.write_text(new)
    assert tokens.accept(f"Bearer {old}"), "nothing is read until it is asked for"
    tokens.reload()
    assert (tokens.accept(f"Bearer {old}"), tokens.accept(f"Bearer {new}")) == (False, True)
    path.write_text("# none")
    with pytest.raises(ConfigError):
        tokens.reload()
    assert tokens.accept(f"bearer  {new} ")


def test_tokens_without_a_file_stay():
    tokens = Tokens(["t" * 20])
    tokens.reload()
    assert tokens.accept("Bearer " + "t" * 20)


@pytest.mark.parametrize(
    ("field", "brings"), [(None, False), ("", False), ("Bearer", False), ("Bearer x", True), ("Basic eDp5", True)]
)
def test_credentials_are_brought_or_not(field: str | None, brings: bool):
    assert has_credentials(field) is brings
    assert not Tokens(["t" * 20]).accept(field)
