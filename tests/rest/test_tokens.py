"""Bearer tokens over REST: every route asks but health, whatever the transport, the method and the token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from http_support import TRANSPORTS, Raw
from rest_support import X, rest, wire
from serinus.cli.serving.options import parse
from serinus.cli.serving.repository_control import repository_access, request_access
from serinus.dataplane.access.access_tokens import Tokens, read_tokens
from serinus.dataplane.access.repository_access import RepositoryAccess
from serinus.errors import ConfigError
from serinus.server.request_access import HEALTH, KINDS, RequestAccess, rest_kind
from serinus.server.rest.custom import CustomAnswer, CustomRequest

FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"
ASKED = RequestAccess(Tokens([FIRST, SECOND]))
INFER = "/v2/models/row/infer"

both = pytest.mark.parametrize("http", TRANSPORTS)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def own_route(request: CustomRequest) -> CustomAnswer:
    return 200, {}, b'{"own": true}'


@both
async def test_every_route_but_health_wants_a_token(http: str):
    """Of the router itself, so that a route that is added later is tried too."""
    own = [("GET", "/own/{thing}", own_route), ("POST", "/v2/health/live", own_route)]
    async with rest("row", http=http, request_access=ASKED, extra_routes=own, enable_docs_url=True) as server:
        templates = server.server._app.router.templates
        assert {rest_kind(template) for template in templates} == {HEALTH, *KINDS}
        for template in templates:
            path = template.replace("{model}", "row").replace("{version}", "1").replace("{label}", "stable")
            path = path.replace("{thing}", "a")
            is_open = rest_kind(template) == HEALTH and template != "/v2/health/live"
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                without = await server.ask(method, path)
                assert (without.status == 401) is not is_open, (method, path, without.status)
                assert (await server.ask(method, path, headers=bearer(FIRST))).status != 401, (method, path)


@both
async def test_what_a_refusal_says(http: str):
    async with rest("row", http=http, request_access=ASKED) as server:
        none = await server.ask("POST", INFER, X)
        other = await server.ask("POST", INFER, X, bearer("another-token-0123456789"))
        good = [await server.ask("POST", INFER, X, bearer(token)) for token in (FIRST, SECOND)]
        unknown = await server.ask("GET", "/nowhere")
        page = (await server.ask("GET", "/metrics", headers=bearer(FIRST))).body.decode()
    assert [answer.status for answer in good] == [200, 200]
    assert (none.status, other.status, unknown.status) == (401, 401, 401)
    assert none.headers["www-authenticate"] == 'Bearer realm="serinus"'
    assert other.headers["www-authenticate"] == 'Bearer realm="serinus", error="invalid_token"'
    assert none.json["error"] == "this server needs a token, as 'Authorization: Bearer TOKEN'; none came"
    assert "another came" in other.json["error"]
    assert 'serinus_transport_errors_total{transport="rest",code="401"} 3' in page


BAD_CREDENTIALS: dict[str, dict[str, str]] = {
    "no scheme": {"Authorization": FIRST},
    "another scheme": {"Authorization": f"Basic {FIRST}"},
    "cut": bearer(FIRST[:-1]),
    "longer": bearer(FIRST + "0"),
    "another case": bearer(FIRST.upper()),
    "two in one": bearer(f"{FIRST} {SECOND}"),
    "two fields": {"Authorization": f"Bearer {FIRST}", "authorization": f"Bearer {FIRST}"},
    "latin": bearer("première-0123456789"),
    "high bytes": bearer("\xff" * 40),
    "nearly all of a head": bearer("x" * 60_000),
    "in the query's place": {"Proxy-Authorization": f"Bearer {FIRST}"},
    "empty": {"Authorization": ""},
}


@both
@pytest.mark.parametrize("case", BAD_CREDENTIALS)
async def test_what_is_not_the_token_is_refused(http: str, case: str):
    async with rest("row", http=http, request_access=ASKED) as server:
        answer = await server.ask("POST", INFER + f"?access_token={FIRST}", X, BAD_CREDENTIALS[case])
        assert answer.status == 401
        assert (await server.ask("POST", INFER, X, bearer(FIRST))).status == 200


@both
async def test_a_head_that_is_too_large_is_refused_before_its_token(http: str):
    async with rest("row", http=http, request_access=ASKED) as server:
        client = await Raw.open(server.port)
        await client.send(wire("POST", INFER, X, bearer("x" * 70_000)))
        answer = await client.answer()
        await client.close()
    assert answer.status in (400, 431)  # uvicorn's parser has no word of its own for it


@pytest.mark.parametrize("kind", KINDS)
async def test_only_the_kinds_that_were_named_are_asked(kind: str):
    paths = {
        "inference": ("POST", INFER, X),
        "metadata": ("GET", "/v2/models/row", None),
        "control": ("POST", "/v2/repository/models/row/load", {}),
        "metrics": ("GET", "/metrics", None),
        "docs": ("GET", "/openapi.json", None),
    }
    async with rest("row", request_access=RequestAccess(Tokens([FIRST]), frozenset({kind}))) as server:
        for name, (method, path, body) in paths.items():
            assert ((await server.ask(method, path, body)).status == 401) is (name == kind), name


async def test_the_port_of_metrics_alone_asks_too():
    async with rest("row", request_access=ASKED, metrics_port=0) as server:
        port = server.server.metrics_port
        assert port
        client = await Raw.open(port)
        await client.send(wire("GET", "/metrics"))
        assert (await client.answer()).status == 401
        await client.send(wire("GET", "/metrics", None, bearer(FIRST)))
        assert (await client.answer()).status == 200
        await client.close()


async def test_requests_of_one_connection_are_each_asked():
    async with rest("row", request_access=ASKED) as server:
        client = await Raw.open(server.port)
        statuses = []
        for headers in (bearer(FIRST), {}, bearer(SECOND), {}):
            await client.send(wire("POST", INFER, X, headers))
            statuses.append((await client.answer()).status)
        await client.close()
    assert statuses == [200, 401, 200, 401]


def decided(*words: str, **environment: str) -> Any:
    return request_access(parse(["./m", *words], environment), environment)


def test_settings_say_who_is_asked(tmp_path: Path):
    file = tmp_path / "tokens"
    file.write_text(f"# of the gateway\n{FIRST}\n\n{SECOND}\n")
    access = decided("--token_file", str(file))
    assert access.kinds == frozenset(KINDS)
    assert [access.tokens.accept(f"Bearer {token}") for token in (FIRST, SECOND, "# of the gateway")] == [
        True,
        True,
        False,
    ]
    assert decided() is None
    assert decided(SERINUS_TOKEN=FIRST).kinds == frozenset(KINDS)
    assert decided("--token_routes", "inference, metrics", SERINUS_TOKEN=FIRST).kinds == {"inference", "metrics"}
    own = decided(SERINUS_TOKEN=FIRST, SERINUS_REPOSITORY_TOKEN=SECOND)
    assert own.kinds == frozenset(KINDS) - {"control"}
    assert "control" not in decided("--repository_control=open", SERINUS_TOKEN=FIRST).kinds


def test_a_token_for_all_requests_is_one_for_load_and_unload():
    words = ["--model_repository=/models", "--host=0.0.0.0"]
    environment = {"SERINUS_TOKEN": FIRST}
    access = repository_access(parse(words, environment), environment)
    assert access.mode == "token"
    assert access.tokens.accept(f"Bearer {FIRST}")
    without = repository_access(parse([*words, "--token_routes=inference"], environment), environment)
    assert (without.mode, bool(without.tokens)) == ("off", False)
    assert repository_access(parse(["./m"], environment), environment).mode == "off"


WRONG: dict[str, tuple[list[str], str]] = {
    "a kind that is none": (["--token_routes=inference,helth"], "'helth' is none of inference"),
    "health": (["--token_routes=health"], "health never needs a token"),
    "nothing": (["--token_routes=,"], "names nothing"),
    "kinds without tokens": (["--token_routes=metrics"], "which tokens"),
    "no file": (["--token_file=/nowhere/tokens"], "/nowhere/tokens: cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_do_not_go_together_end_the_start(case: str):
    words, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        decided(*words)


NO_TOKENS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\n",
    "comments": b"# none yet\n",
    "short": b"secret\n",
    "spaces": b"a token with spaces in it\n",
    "not ASCII": "ein-schlüssel-0123456789\n".encode(),
    "not UTF-8": b"\xff\xfe0123456789abcdef\n",
    "control characters": b"token\x00\x1b-0123456789abcdef\n",
    "one of two": f"{FIRST}\nsecret\n".encode(),
    "as long as a file": b"x" * 100_000,
    "too many": b"".join(b"token-%012d\n" % number for number in range(1025)),
}


@pytest.mark.parametrize("case", NO_TOKENS)
def test_a_file_without_good_tokens_is_refused_and_not_told(case: str, tmp_path: Path):
    file = tmp_path / "tokens"
    file.write_bytes(NO_TOKENS[case])
    with pytest.raises(ConfigError) as caught:
        read_tokens(file, "--token_file")
    assert str(caught.value).startswith("--token_file: ")
    for told in ("secret", "spaces in it", "schl", "xxxx", FIRST):
        assert told not in str(caught.value).removeprefix("--token_file").replace("without spaces", "")
    tokens = Tokens([FIRST], file=file, where="--token_file")
    with pytest.raises(ConfigError):
        tokens.reload()
    assert tokens.accept(f"Bearer {FIRST}"), "what was read before stays"


def test_files_beside_the_models_set_nothing_of_it(tmp_path: Path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model-settings.json").write_text("{}")
    (tmp_path / "m" / "settings.json").write_text('{"token_file": null, "token_routes": "docs", "verify_models": null}')
    with pytest.raises(ConfigError) as caught:
        parse([str(tmp_path / "m")], {"SERINUS_TOKEN": FIRST})
    assert [problem.count("for the operator to say") for problem in caught.value.problems] == [1, 1, 1]
    with pytest.raises(ConfigError, match="not taken with --verify_models"):
        parse([str(tmp_path / "m"), "--verify_models=signer.pub"], {})


def test_no_token_is_in_the_texts_of_what_holds_them():
    for holder in (Tokens([FIRST]), RequestAccess(Tokens([FIRST])), RepositoryAccess(tokens=Tokens([FIRST]))):
        assert FIRST not in f"{holder!r} {holder}"
