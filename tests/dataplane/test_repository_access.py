"""Who may load and unload: each mode with each kind of credentials, without a server."""

from __future__ import annotations

import pytest

from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.access.repository_access import OPEN, RepositoryAccess
from serinus.errors import Forbidden, Unauthenticated

TOKEN = RepositoryAccess(mode="token", tokens=Tokens(["s3cret"]), reason="none")
RIGHT = ["Bearer s3cret", "bearer s3cret", "BEARER   s3cret ", "Bearer s3cret\t"]
WRONG = [
    (None, "none"),
    ("", "none"),
    ("Bearer", "none"),
    ("Bearer ", "none"),
    ("s3cret", "none"),
    ("Bearer s3cre", "another"),
    ("Bearer s3cret2", "another"),
    ("Bearer S3CRET", "another"),
    ("Bearer s3cret s3cret", "another"),
    ("Basic s3cret", "another"),
    ("Bearers s3cret", "another"),
    ("Aearer s3cret", "another"),
    (" s3cret", "another"),
    ("Bearer \udcff", "another"),
    ("Bearer é", "another"),
]


@pytest.mark.parametrize("authorization", RIGHT)
def test_the_token_lets_through_whatever_the_case_of_its_scheme(authorization: str):
    TOKEN.check(authorization)


@pytest.mark.parametrize(("authorization", "came"), WRONG, ids=repr)
def test_without_the_token_nobody_is_let_through_and_the_token_is_not_told(authorization: str | None, came: str):
    with pytest.raises(Unauthenticated) as caught:
        TOKEN.check(authorization)
    assert str(caught.value) == (
        "loading and unloading needs the token of --repository_token_file as 'Authorization: Bearer TOKEN'; "
        f"{came} came"
    )


@pytest.mark.parametrize("authorization", [None, "", *RIGHT, "Bearer x", "Basic x"])
def test_the_other_modes_look_at_no_token(authorization: str | None):
    for access in (
        OPEN,
        RepositoryAccess(mode="open"),
        RepositoryAccess(mode="loopback"),
        RepositoryAccess(mode="open", tokens=Tokens(["s3cret"])),
    ):
        access.check(authorization)
    for off in (
        RepositoryAccess(),
        RepositoryAccess(mode="off", tokens=Tokens(["s3cret"]), reason="give --repository_control on"),
    ):
        with pytest.raises(Forbidden) as caught:
            off.check(authorization)
        assert str(caught.value) == (
            f"models are neither loaded nor unloaded by request: repository control is off; {off.reason}"
        )


def test_it_is_off_unless_it_is_switched_on_and_says_how():
    access = RepositoryAccess()
    assert (access.mode, bool(access.tokens), access.is_on) == ("off", False, False)
    assert access.reason == "start the server with --model_repository DIR or --repository_control on"
    modes = ("off", "loopback", "token", "open")
    assert [RepositoryAccess(mode=mode).is_on for mode in modes] == [False, True, True, True]
    assert OPEN.is_on is True


def test_the_token_is_in_no_text_of_the_access():
    assert "s3cret" not in repr(TOKEN)
    assert "s3cret" not in str(TOKEN)
