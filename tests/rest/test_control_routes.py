"""Loading and unloading by request: off unless asked for, and then for whom; over both HTTP transports and both gRPC engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

import grpc
from conformance_support import Server
from grpc_support import ENGINES
from grpc_support import serving as serving_grpc
from http_support import TRANSPORTS, Raw
from rest_support import Rest, rest, wire
from serinus.cli.serving.options import parse
from serinus.cli.serving.repository_control import repository_access
from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.access.repository_access import OPEN, RepositoryAccess
from serinus.errors import ConfigError
from serinus.protocol import _open_inference_pb2 as pb
from serve_support import serving

TOKEN = "0123456789abcdef0123456789abcdef"
OFF = RepositoryAccess()
LOOPBACK = RepositoryAccess(mode="loopback")
WITH_TOKEN = RepositoryAccess(mode="token", tokens=Tokens([TOKEN]))
LOAD, UNLOAD = "/v2/repository/models/row/load", "/v2/repository/models/row/unload"

both_transports = pytest.mark.parametrize("http", TRANSPORTS)
both_engines = pytest.mark.parametrize("engine", ENGINES)


async def change(
    server: Rest, headers: Mapping[str, str | None], body: bytes | None = b"{}", path: str = UNLOAD
) -> tuple[int, str]:
    """Ask for a change with these headers (None leaves one out); the status and the error."""
    fields = {
        name: value for name, value in {"Content-Type": "application/json", **headers}.items() if value is not None
    }
    data = wire("POST", path, None, {**fields, "Content-Length": str(len(body or b""))}) + (body or b"")
    if headers.get("Content-Type", "") is None:
        data = b"\r\n".join(line for line in data.split(b"\r\n") if not line.lower().startswith(b"content-type:"))
    client = await Raw.open(server.port)
    try:
        await client.send(data)
        answer = await client.answer()
    finally:
        await client.close()
    return answer.status, answer.json.get("error", "")


async def still_served(server: Rest) -> bool:
    return (await server.ask("GET", "/v2/models/row/ready")).status == 200


@both_transports
async def test_without_being_asked_for_rest_neither_loads_nor_unloads(http: str):
    async with rest("row", http=http, access=OFF) as server:
        for path in (LOAD, UNLOAD):
            status, error = await change(server, {}, path=path)
            assert status == 403
            assert "--repository_control" in error
            assert "--model_repository" in error
        text = await change(server, {"Content-Type": "text/plain", "Origin": "http://evil.example"})
        assert text[0] == 403
        assert await still_served(server)
        index = await server.ask("POST", "/v2/repository/index", {})
        assert index.status == 200
        assert {"row"} <= {entry["name"] for entry in index.json}


@both_transports
async def test_what_is_off_is_in_neither_the_extensions_nor_the_openapi_document(http: str):
    for access, there in ((OFF, False), (LOOPBACK, True), (WITH_TOKEN, True), (OPEN, True)):
        async with rest("row", http=http, access=access) as server:
            extensions = (await server.ask("GET", "/v2")).json["extensions"]
            assert ("model_repository" in extensions, "model_repository(unload_dependents)" in extensions) == (
                there,
                there,
            )
            assert "statistics" in extensions
            paths = (await server.ask("GET", "/openapi.json")).json["paths"]
            for action in ("load", "unload"):
                assert (f"/v2/repository/models/{{model}}/{action}" in paths) == there
            assert "/v2/repository/index" in paths


FOREIGN: dict[str, tuple[dict[str, str | None], int, str]] = {
    "another origin": ({"Origin": "http://evil.example"}, 403, "evil.example"),
    "another port's origin": ({"Origin": "http://localhost:3000"}, 403, "localhost:3000"),
    "no origin at all": ({"Origin": "null"}, 403, "null"),
    "a cross-site fetch": ({"Sec-Fetch-Site": "cross-site"}, 403, "Sec-Fetch-Site"),
    "a same-site fetch": ({"Sec-Fetch-Site": "same-site"}, 403, "Sec-Fetch-Site"),
    "two origins": ({"Origin": "http://localhost, http://evil.example"}, 403, "evil.example"),
    "text": ({"Content-Type": "text/plain"}, 415, "application/json"),
    "a form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
    "text, its charset": ({"Content-Type": "text/plain;charset=UTF-8"}, 415, "application/json"),
    "json within text": ({"Content-Type": "text/plain; application/json"}, 415, "application/json"),
}


@both_transports
@pytest.mark.parametrize("case", FOREIGN)
async def test_what_a_page_of_another_origin_can_send_changes_nothing(http: str, case: str):
    headers, status, said = FOREIGN[case]
    for access in (LOOPBACK, OPEN, WITH_TOKEN):
        async with rest("row", http=http, access=access) as server:
            sent = {**headers, "Authorization": f"Bearer {TOKEN}"} if access is WITH_TOKEN else headers
            answer = await change(server, sent)
            assert answer[0] == status
            assert said in answer[1]
            assert await still_served(server)


@both_transports
async def test_a_name_that_was_made_to_lead_here_is_not_this_machine(http: str):
    """DNS rebinding: the page's origin is its own host, which an attacker's name server has pointed at 127.0.0.1."""
    rebound: dict[str, str | None] = {"Host": "evil.example:8080", "Origin": "http://evil.example:8080"}
    async with rest("row", http=http, access=LOOPBACK) as server:
        status, error = await change(server, rebound)
        assert status == 403
        assert "evil.example" in error
        for host in ("localhost", "127.0.0.1:8080", "[::1]:8080", "fraud.default.localhost", "LOCALHOST:1"):
            assert (await change(server, {"Host": host, "Origin": f"http://{host}"}, path=LOAD))[0] == 200, host
    async with rest("row", http=http, access=OPEN) as server:
        assert (await change(server, {"Host": "models.example"}, path=LOAD))[0] == 200


@both_transports
async def test_json_and_no_body_at_all_are_taken(http: str):
    async with rest("row", http=http, access=LOOPBACK) as server:
        for headers, body in (
            ({}, b"{}"),
            ({"Content-Type": "application/json; charset=utf-8"}, b"{}"),
            ({"Content-Type": None}, b"{}"),  # tritonclient names no type
            ({"Content-Type": None}, b""),
        ):
            assert (await change(server, headers, body, path=LOAD))[0] == 200, (headers, body)


@both_transports
async def test_rest_wants_the_token(http: str):
    async with rest("row", http=http, access=WITH_TOKEN) as server:
        for given in (
            None,
            "",
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer \xff",
        ):
            answer = await server.ask("POST", UNLOAD, {}, {} if given is None else {"Authorization": given})
            assert answer.status == 401, given
            assert "--repository_token_file" in answer.json["error"]
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert TOKEN not in answer.json["error"]
        assert await still_served(server)
        for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            assert (await server.ask("POST", LOAD, {}, {"Authorization": given})).status == 200


def call(
    channel: grpc.Channel, method: str, request: Any, metadata: tuple[tuple[str, str], ...] = ()
) -> grpc.StatusCode:
    code, _ = answered(channel, method, request, metadata)
    return code


def answered(
    channel: grpc.Channel, method: str, request: Any, metadata: tuple[tuple[str, str], ...] = ()
) -> tuple[grpc.StatusCode, str]:
    ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    try:
        ask(request.SerializeToString(), timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


UNLOAD_SUM = ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="sum"))
LOAD_SUM = ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="sum"))


@both_engines
def test_without_being_asked_for_grpc_neither_loads_nor_unloads(engine: str):
    with serving_grpc(engine, names=("sum",), access=OFF) as server, grpc.insecure_channel(server.address) as channel:
        for method, request in (LOAD_SUM, UNLOAD_SUM):
            code, details = answered(channel, method, request)
            assert code == grpc.StatusCode.PERMISSION_DENIED
            assert "--repository_control" in details
        assert call(channel, "RepositoryIndex", pb.RepositoryIndexRequest()) == grpc.StatusCode.OK
        assert server.plane.model_ready("sum")
        metadata = pb.ServerMetadataResponse.FromString(
            channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")(b"", timeout=20)
        )
        assert [name for name in metadata.extensions if name.startswith("model_repository")] == []


@both_engines
def test_grpc_wants_the_token(engine: str):
    with (
        serving_grpc(engine, names=("sum",), access=WITH_TOKEN) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for metadata in ((), (("authorization", f"Bearer {TOKEN}x"),), (("authorization", TOKEN),)):
            code, details = answered(channel, *UNLOAD_SUM, metadata)
            assert code == grpc.StatusCode.UNAUTHENTICATED
            assert "--repository_token_file" in details
        assert server.plane.model_ready("sum")
        assert call(channel, *UNLOAD_SUM, (("authorization", f"Bearer {TOKEN}"),)) == grpc.StatusCode.OK
        assert call(channel, *LOAD_SUM, (("authorization", f"Bearer {TOKEN}"),)) == grpc.StatusCode.OK


@both_engines
def test_grpc_loads_without_a_token_where_it_is_on_for_this_machine(engine: str):
    with (
        serving_grpc(engine, names=("sum",), access=LOOPBACK) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert call(channel, *UNLOAD_SUM) == grpc.StatusCode.OK
        assert call(channel, *LOAD_SUM) == grpc.StatusCode.OK


# Who asked for it

REPOSITORY = "--model_repository=/models"
SELDON = {
    "MLSERVER_MODELS_DIR": "/mnt/agent/models",
    "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
    "MLSERVER_HOST": "0.0.0.0",
}
"""What Seldon Core's ServerConfig `mlserver` sets, and our image."""
WIDE = "--host=0.0.0.0"

DECISIONS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "nothing asks": (["./model"], {}, "off"),
    "nothing asks, for other machines": (["./model", WIDE], {}, "off"),
    "a repository": ([REPOSITORY], {}, "loopback"),
    "a repository, IPv6": ([REPOSITORY, "--host=::1"], {}, "loopback"),
    "a repository, by name": ([REPOSITORY, "--host=localhost"], {}, "loopback"),
    "a repository, for other machines": ([REPOSITORY, WIDE], {}, "off"),
    "a repository, for every machine": ([REPOSITORY, "--host=::"], {}, "off"),
    "a repository at a name that may be anybody's": ([REPOSITORY, "--host=models.example"], {}, "off"),
    "on": (["./model", "--repository_control=on"], {}, "loopback"),
    "off, with a repository": ([REPOSITORY, "--repository_control=off"], {}, "off"),
    "a token": (["./model"], {"SERINUS_REPOSITORY_TOKEN": TOKEN}, "token"),
    "a token, for other machines": ([REPOSITORY, WIDE], {"SERINUS_REPOSITORY_TOKEN": TOKEN}, "token"),
    "on with a token, for other machines": (
        ["./model", WIDE, "--repository_control=on"],
        {"SERINUS_REPOSITORY_TOKEN": TOKEN},
        "token",
    ),
    "off with a token": (["./model", "--repository_control=off"], {"SERINUS_REPOSITORY_TOKEN": TOKEN}, "off"),
    "open": (["./model", WIDE, "--repository_control=open"], {}, "open"),
    "Seldon's agent": ([], SELDON, "open"),
    "Seldon's agent, and the owner says no": (["--repository_control=off"], SELDON, "off"),
    "Seldon's agent, on loopback": ([], {**SELDON, "MLSERVER_HOST": "127.0.0.1"}, "loopback"),
    "MLServer's folder alone": ([], {"MLSERVER_MODELS_DIR": "/models", "MLSERVER_HOST": "0.0.0.0"}, "off"),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_who_may_load_and_unload_follows_from_what_was_asked_for(case: str):
    words, environment, mode = DECISIONS[case]
    assert repository_access(parse(words, environment), environment).mode == mode


WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "on, for other machines, without a token": (
        ["./m", WIDE, "--repository_control=on"],
        {},
        "--repository_token_file",
    ),
    "an empty repository that nobody may fill": (
        [REPOSITORY, WIDE, "--load_models_at_startup=false"],
        {},
        "--repository_control open",
    ),
    "open with a token": (
        ["./m", "--repository_control=open"],
        {"SERINUS_REPOSITORY_TOKEN": TOKEN},
        "takes no token",
    ),
    "a short token": (["./m"], {"SERINUS_REPOSITORY_TOKEN": "secret"}, "at least 16"),
    "no such file": (["./m", "--repository_token_file=/nowhere/token"], {}, "/nowhere/token"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_are_not_safe_end_the_start(case: str):
    words, environment, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        repository_access(parse(words, environment), environment)


def test_the_token_is_read_from_a_file_and_shown_nowhere(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    access = repository_access(parse(["./m", "--repository_token_file", str(file)], {}), {})
    assert access.mode == "token"
    assert access.tokens.accept(f"Bearer {TOKEN}")
    assert not access.tokens.accept(f"Bearer {TOKEN[:-1]}")
    assert TOKEN not in repr(access)


def test_a_file_beside_the_models_does_not_open_the_server(tmp_path: Path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model-settings.json").write_text('{"name": "m"}')
    (tmp_path / "settings.json").write_text('{"repository_control": "open"}')
    with pytest.raises(ConfigError, match="beside the models"):
        repository_access(parse([REPOSITORY.replace("/models", str(tmp_path))], {}), {})
    named = parse(["./m", "--settings", str(tmp_path / "settings.json")], {})
    assert repository_access(named, {}).mode == "open"
    (tmp_path / "settings.json").write_text('{"load_models_at_startup": false, "host": "0.0.0.0"}')
    with pytest.raises(ConfigError, match="--repository_token_file"):
        repository_access(parse([REPOSITORY.replace("/models", str(tmp_path))], {}), {})


# Whole processes

MODEL = """
from serinus import Model, TensorSpec

class Doubler(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def predict(self, inputs, call):
        return {"y": inputs["x"] * 2}
"""


def repository_of(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    (tmp_path / "controlled_model.py").write_text(MODEL)
    folder = tmp_path / "repository" / "m"
    folder.mkdir(parents=True)
    settings = {"name": "m", "implementation": "controlled_model:Doubler"}
    (folder / "model-settings.json").write_bytes(orjson.dumps(settings))
    return folder.parent, {"PYTHONPATH": str(tmp_path), "SERINUS_ALLOW_IMPLEMENTATION": "controlled_model.*"}


@pytest.mark.slow  # several processes
def test_every_worker_holds_to_the_token_and_loads_with_it(tmp_path: Path):
    repository, environment = repository_of(tmp_path)
    environment["SERINUS_REPOSITORY_TOKEN"] = TOKEN
    with serving(tmp_path, "--model_repository", str(repository), "--workers", "2", environment=environment) as served:
        for _ in range(4):  # each connection may be another worker's
            assert served.ask("POST", "/v2/repository/models/m/unload", {})[0] == 401
        token = {"Authorization": f"Bearer {TOKEN}"}
        assert served.ask("POST", "/v2/repository/models/m/unload", {}, token)[0] == 200
        assert {served.ask("GET", "/v2/models/m/ready")[0] for _ in range(4)} == {404}
        assert served.ask("POST", "/v2/repository/models/m/load", {}, token)[0] == 200
        assert {served.ask("GET", "/v2/models/m/ready")[0] for _ in range(4)} == {200}
    said = served.log.read_text()
    assert "repository control: on, with a token" in said
    assert TOKEN not in said


@pytest.mark.slow  # three starts of a server
def test_a_server_says_at_start_whether_it_is_open(tmp_path: Path):
    repository, environment = repository_of(tmp_path)
    model = str(repository / "m")
    for flags, said, status in (
        ((model,), "repository control: off", 403),
        (("--model_repository", str(repository)), "repository control: on, for this machine alone", 200),
        ((model, "--repository_control", "open"), "repository control: OPEN", 200),
    ):
        with serving(tmp_path, *flags, environment=environment) as served:
            server = Server(served)
            assert server.ask("POST", "/v2/repository/models/m/load", {}).status == status
            server.close()
        assert said in served.log.read_text()
