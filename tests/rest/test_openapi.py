"""The OpenAPI document: valid, whole, true; and every operation held to it by generated requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from depth import DEEP, draws, some_of
from http_support import Raw
from rest_support import X, rest, rest_in_thread
from serinus.dataplane.access.repository_access import RepositoryAccess
from serinus.server.request_access import KINDS
from serinus.server.rest.pages.openapi import openapi_document, operations_html


async def test_the_document_describes_every_path_that_is_served():
    async with rest("row") as server:
        document = (await server.ask("GET", "/openapi.json")).json
        described = {path for path, item in document["paths"].items() if set(item) & {"get", "post"}}
        served = (await server.ask("GET", "/nowhere")).json["error"].partition("there are: ")[2].split(", ")
        assert set(served) - {"/openapi.json", "/docs"} == described
        ids = [
            item[method]["operationId"]
            for item in document["paths"].values()
            for method in ("get", "post")
            if method in item
        ]
        assert len(ids) == len(set(ids))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("need_token", "named", "open_to_all"),
    [
        (KINDS, ("/v2/models/{model}/infer", "/v2", "/metrics", "/v2/repository/index"), ("/v2/health/ready", "/")),
        (("inference",), ("/v2/models/{model}/infer", "/v1/models/{model}:predict"), ("/v2", "/metrics", "/")),
        (("control",), ("/v2/repository/models/{model}/load",), ("/v2/models/{model}/infer", "/metrics")),
    ],
)
def test_the_document_says_which_requests_need_a_token(need_token, named, open_to_all):
    document, _ = openapi_document(need_token=need_token)
    assert document["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"
    operations = {
        path: [item[method] for method in ("get", "post") if method in item] for path, item in document["paths"].items()
    }
    for path in named:
        assert all(operation["security"] == [{"bearerAuth": []}] for operation in operations[path]), path
        assert all("401" in operation["responses"] for operation in operations[path]), path
    for path in open_to_all:
        assert not any("security" in operation for operation in operations[path]), path
    pytest.importorskip("schemathesis").openapi.from_dict(document).validate()


def test_the_document_of_a_server_without_tokens_names_no_scheme():
    document, _ = openapi_document()
    assert "securitySchemes" not in document["components"]
    assert "security" not in str(document["paths"])


def test_names_of_custom_routes_are_escaped_on_the_page():
    document, _ = openapi_document(["/<b>"])
    assert "<b>" not in operations_html(document).partition("custom</h3>")[2].partition("<h3>")[0]


@pytest.mark.slow  # schemathesis
def test_the_document_is_valid_openapi():
    schemathesis = pytest.importorskip("schemathesis")
    document, _ = openapi_document()
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()


@pytest.mark.slow
@pytest.mark.timeout(600)
# An example costs 30 ms, nearly all of it to make. The tool below sends many more, but to the routes of the repository, which are shut to it.
@pytest.mark.parametrize("http", some_of(["uvicorn", "thin"], 1))  # the tool asks the thin one
def test_generated_requests_never_make_the_server_fail(http):
    """schemathesis: whatever fits the document is answered as the document says, and never by a 5xx."""
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    with rest_in_thread("row", "simple", "echo", http=http) as server:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")

        def check(case) -> None:
            if "explain" not in case.operation.path:  # no model here explains: 501 is right
                case.call_and_validate(checks=[schemathesis.checks.not_a_server_error])

        for result in schema.get_all_operations():
            operation = result.ok()
            test = hypothesis.given(case=operation.as_strategy())(check)
            test = hypothesis.settings(
                max_examples=draws(5, 2),
                deadline=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
                database=None,
            )(test)
            test()


TARGET_TOO_LONG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 414, 415, 431]
"""
"""414 is what a name of many kilobytes in the path gets (RFC 9110, 15.5.15), which the tool does not expect of its own."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "words",
    [
        # That no model here explains is 501, and rightly so. That data has as many values as its shape, and that these fit the model, no schema
        # can say: whether what fits the document is taken is asked of what does not depend on a model.
        ("--exclude-checks", "positive_data_acceptance", "--exclude-path-regex", ":explain"),
        (
            *("--checks", "positive_data_acceptance", "--mode", "positive"),
            *("--exclude-path-regex", "infer|generate|predict|explain|classify|regress"),
            *(() if DEEP else ("--phases", "coverage")),
        ),
    ],
    ids=["every other check", "what fits is taken"],
)
def test_the_tool_finds_nothing_in_a_running_server_that_departs_from_the_document(
    words: tuple[str, ...], tmp_path: Path
):
    pytest.importorskip("schemathesis")
    tool = Path(sys.executable).with_name("st")
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(TARGET_TOO_LONG)
    # Load and unload are off: in the tool's hands they would leave no model to ask.
    with rest_in_thread("row", "simple", "echo", access=RepositoryAccess()) as server:
        url, examples = f"http://127.0.0.1:{server.port}/openapi.json", str(draws(15, 2))
        done = subprocess.run(
            [tool, "--config-file", configuration, "run", url, "--seed", "1", "--max-examples", examples, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


async def test_a_good_request_is_answered_as_the_document_says():
    jsonschema = pytest.importorskip("jsonschema_rs")  # comes with schemathesis
    document, _ = openapi_document()

    def validate(name: str, value: object) -> None:
        jsonschema.validate({"$ref": f"#/components/schemas/{name}", "components": document["components"]}, value)

    async with rest("row", "simple") as server:
        client = await Raw.open(server.port)
        validate("InferRequest", X)
        for method, path, body, name in (
            ("GET", "/", None, "Alive"),
            ("GET", "/v2", None, "ServerMetadata"),
            ("GET", "/v2/health/live", None, "ServerLive"),
            ("GET", "/v2/health/ready", None, "ServerReady"),
            ("GET", "/v2/models", None, "ModelNames"),
            ("GET", "/v2/models/row", None, "ModelMetadata"),
            ("GET", "/v2/models/row/ready", None, "ModelReady"),
            ("GET", "/v2/models/row/config", None, "ModelConfig"),
            ("POST", "/v2/models/row/infer", {**X, "id": "1"}, "InferResponse"),
            ("GET", "/v2/models/row/stats", None, "ModelStatistics"),
            ("POST", "/v2/repository/index", None, "RepositoryIndex"),
            ("POST", "/v2/repository/models/simple/unload", None, "RepositoryAnswer"),
            ("POST", "/v1/models/row:predict", {"instances": [[1, 2, 3]]}, "PredictResponse"),
            ("POST", "/v2/models/row/infer", {}, "Error"),
            ("GET", "/nowhere", None, "Error"),
        ):
            validate(name, (await server.ask_on(client, method, path, body)).json)
        await client.close()
