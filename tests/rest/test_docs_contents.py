"""What `/docs` says of each model and of the server, and how it says it: the page's HTML, without a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape, unescape
from importlib import resources
from typing import Any

import numpy as np
import orjson
import pytest

from dataplane_support import serving
from serinus import Model, ModelSettings, TensorSpec, __version__
from serinus.dataplane.plane import Plane
from serinus.errors import NotReady
from serinus.feature_columns import FeatureColumns
from serinus.protocol.documents.example_values import example_request
from serinus.server.rest.pages import docs_page
from serinus.server.rest.pages.docs_page import DocsPage, content_security_policy, offers_docs, token_question
from serinus.server.rest.pages.openapi import openapi_document, operations_html
from serinus.server.rest.pages.request_examples import curl_example, python_example
from serinus.settings import ServerSettings

HOST = "127.0.0.1:8080"


class Taker(Model):
    """Says what its test has it say."""

    platform = "a<b"
    inputs = (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("it's", "BYTES", (2,), optional=True))
    outputs = (TensorSpec("y", "FP32", (-1,), any_rank=True),)

    def predict(self, inputs: Any, call: Any) -> Any:
        return {"y": inputs["x"]}


class Silent(Taker):
    """Does not say what it takes."""

    inputs = ()


class Large(Taker):
    """Takes more than a page holds."""

    inputs = (TensorSpec("x", "FP32", (-1, 300)),)


class Columns(Taker):
    """Takes a matrix whose columns may come apart."""

    columns = FeatureColumns(("age", "<b>"), np.dtype(np.float32))


def settings(*names: str, **fields: Any) -> list[ModelSettings]:
    return [ModelSettings(name=name, warmup=False, **fields) for name in names]


def page_of(plane: Plane, host: str = HOST, **fields: Any) -> str:
    chosen = {"revision": "", "over_tls": False, **fields}
    return DocsPage(plane, openapi_document()[0], **chosen).render(host).decode()


def parts(page: str) -> list[str]:
    """The sections of the models."""
    return [part.partition("</section>")[0] for part in page.split('<section class="model">')[1:]]


@pytest.mark.parametrize(
    ("host", "chosen", "offered"),
    [
        *(("127.0.0.1", None, True), ("localhost", None, True), ("127.0.0.1", False, False)),
        *(("0.0.0.0", None, False), ("10.0.0.7", None, False), ("0.0.0.0", True, True), ("0.0.0.0", False, False)),
    ],
)
def test_the_page_is_there_on_loopback_and_elsewhere_where_it_is_asked_for(
    host: str, chosen: bool | None, offered: bool
):
    assert offers_docs(ServerSettings(host=host, enable_docs_url=chosen)) is offered


async def test_a_model_says_what_it_takes_and_answers_and_how_it_is_asked():
    async with serving(Taker, *settings("m", version="3")) as plane:
        (part,) = parts(page_of(plane))
        metadata = plane.model_metadata("m")
    assert part.startswith('<h2 id="model-0">m</h2><p class="soft">a&lt;b, version 3</p><h3>Inputs</h3>')
    table = '<div class="wide"><table><thead><tr><th>Name</th><th>Datatype</th><th>Shape</th></tr></thead><tbody>'
    assert (
        f"<h3>Inputs</h3>{table}<tr><td><code>x</code></td><td><code>FP32</code></td><td><code>[any, 3]</code></td></tr>"
        "<tr><td><code>it&#x27;s</code> (optional)</td><td><code>BYTES</code></td><td><code>[2]</code></td></tr></tbody></table></div>"
        f"<h3>Outputs</h3>{table}<tr><td><code>y</code></td><td><code>FP32</code></td><td>any</td></tr></tbody></table></div>"
    ) in part
    line, program = curl_example(metadata, f"http://{HOST}"), python_example(metadata, f"http://{HOST}")
    assert f"<h3>curl</h3><pre class='wrap'>{escape(line)}</pre>" in part
    assert f"<h3>Python</h3><pre>{escape(program)}</pre>" in part
    assert "TOKEN" not in part
    assert "Columns: " not in part
    assert "not ready" not in part


async def test_the_place_to_ask_holds_a_request_that_the_model_takes_an_input_a_line():
    async with serving(Taker, *settings("a/b")) as plane:
        (part,) = parts(page_of(plane))
        request = example_request(plane.model_metadata("a/b"))
    assert '<form class="try" hidden data-path="/v2/models/a%2Fb/infer"><h3>Try it</h3><textarea' in part
    text = unescape(part.partition("<textarea")[2].partition(">")[2].partition("</textarea>")[0])
    assert orjson.loads(text) == request
    assert text.splitlines()[:2] == ["{", '  "inputs": [']
    assert [line[:12] for line in text.splitlines()[2:]] == ['    {"name":', "  ]", "}"]
    assert 'aria-label="Request to a/b, JSON"' in part
    assert '<p class="token" hidden><label>Token <input type="password"' in part
    assert '<span class="said soft" role="status"></span><pre class="answered wrap" hidden></pre></form>' in part


async def test_a_model_that_does_not_say_what_it_takes_has_a_place_to_ask_and_no_examples():
    async with serving(Silent, *settings("m")) as plane:
        (part,) = parts(page_of(plane))
    assert "<p>This model does not say what it takes.</p><h3>Outputs</h3>" in part
    assert "Inputs" not in part
    assert "curl" not in part
    assert ">{\n  &quot;inputs&quot;: []\n}</textarea>" in part


async def test_an_input_that_no_page_holds_is_sent_without_its_values_and_the_page_says_so():
    async with serving(Large, *settings("m")) as plane:
        (part,) = parts(page_of(plane))
    assert '<h3>Try it</h3><p class="soft">An input without data is sent full of zeros.</p><textarea' in part


async def test_columns_that_may_come_apart_are_named_below_the_inputs():
    async with serving(Columns, *settings("m")) as plane:
        (part,) = parts(page_of(plane))
    said = '</table></div><p class="soft">Columns: <code>age</code>, <code>&lt;b&gt;</code></p><h3>Outputs</h3>'
    assert part.count("Columns: ") == 1
    assert said in part


async def test_models_are_listed_by_name_each_with_a_place_that_its_link_goes_to():
    async with serving(Taker, *settings("a", "<b>"), *settings("v", version="1"), *settings("v", version="2")) as plane:
        page = page_of(plane)
        names = plane.model_names()
    assert sorted(names) == ["<b>", "a", "v"]
    listed = page.partition('<ul class="models">')[2].partition("</ul>")[0]
    assert listed == "".join(f'<li><a href="#model-{n}">{escape(name)}</a></li>' for n, name in enumerate(names))
    assert re.findall(r'<h2 id="model-(\d)">([^<]*)</h2>', page) == [
        (str(n), escape(name)) for n, name in enumerate(names)
    ]
    assert '<p class="soft">a&lt;b, versions 1, 2</p>' in page
    assert '<p class="soft">a&lt;b</p>' in page, "one without a version says none"
    assert "No model is loaded." not in page


async def test_a_server_without_models_says_so():
    async with serving(Taker, *settings("m")) as plane:
        await plane.unload("m")
        page = page_of(plane)
    assert "</p><p>No model is loaded.</p><h2" in page
    assert "<ul" not in page


async def test_a_model_that_is_not_ready_is_said_to_be_so_and_one_that_has_just_gone_is_left_out():
    async with serving(Taker, *settings("a", "gone", "m")) as plane:
        assert plane.model_names() == ["a", "gone", "m"]

        class Changing:
            """The plane, a moment later."""

            def __getattr__(self, name: str) -> Any:
                return getattr(plane, name)

            def model_ready(self, name: str) -> bool:
                if name == "gone":
                    raise NotReady("gone")
                return name == "a"

        page = page_of(Changing())  # type: ignore[arg-type] # all that the page asks of it
    listed = '<li><a href="#model-0">a</a></li><li><a href="#model-1">m</a> (not ready)</li></ul>'
    assert listed in page
    assert [part.partition("</p>")[0].partition('<p class="soft">')[2] for part in parts(page)] == [
        "a&lt;b",
        'a&lt;b <strong class="bad">not ready</strong>',
    ]


@pytest.mark.parametrize(
    ("host", "over_tls", "base", "where"),
    [
        (HOST, False, f"http://{HOST}", HOST),
        ("h.example", True, "https://h.example", "h.example"),
        ("", False, "http://localhost", "this server"),
        ("<b>", False, "http://<b>", "<b>"),
    ],
)
async def test_examples_go_where_the_client_has_come_to(host: str, over_tls: bool, base: str, where: str):
    async with serving(Taker, *settings("m")) as plane:
        page = page_of(plane, host, over_tls=over_tls)
        line = curl_example(plane.model_metadata("m"), base)
    assert f"<title>Models on {escape(where)}</title>" in page
    assert f"<h1>Models on {escape(where)}</h1>" in page
    assert escape(line) in page


@pytest.mark.parametrize("needs_token", [False, True])
@pytest.mark.parametrize(("revision", "said"), [("", ""), ("<7>", ", revision &lt;7&gt;")])
async def test_the_head_says_the_version_the_revision_and_whether_a_token_is_needed(
    needs_token: bool, revision: str, said: str
):
    async with serving(Taker, *settings("m")) as plane:
        page = page_of(plane, revision=revision, needs_token=needs_token)
    assert f'</h1><p class="soft">serinus {__version__}{said}; the Open Inference Protocol (V2) and V1. ' in page
    for path in ("/v2", "/openapi.json", "/metrics", "/v2/models/stats"):
        assert f'<a href="{path}">' in page
    needed = "statistics</a></p><p>Requests need a token, as <code>Authorization: Bearer TOKEN</code>.</p>"
    assert (needed in page) is needs_token
    assert ("Bearer $TOKEN" in page) is needs_token
    assert ("token=os.environ" in page) is needs_token


def assert_is_a_document(page: str) -> None:
    style, script = (
        (resources.files("serinus.server.rest.pages") / name).read_text() for name in ("docs.css", "docs.js")
    )
    assert page.startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">')
    assert f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy()}">' in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count(f"<style>{style}</style></head><body><main>") == 1
    assert page.endswith(f"</main><script>{script}</script></body></html>\n")
    for text in (style, script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"-src 'sha256-{digest}';" in content_security_policy()


def test_the_policy_lets_in_what_the_page_has_and_nothing_else():
    words = [part.split() for part in re.sub(r"'sha256-[^']*'", "HASH", content_security_policy()).split("; ")]
    assert content_security_policy() is content_security_policy(), "it is made once, and so are its parts"
    assert docs_page._asset("docs.js") is docs_page._asset("docs.js")
    assert words == [
        ["default-src", "'none'"],
        ["style-src", "HASH"],
        ["script-src", "HASH"],
        ["connect-src", "'self'"],
        ["base-uri", "'none'"],
        ["form-action", "'none'"],
    ]


async def test_the_page_is_a_document_with_every_path_at_its_end():
    async with serving(Taker, *settings("m")) as plane:
        page = page_of(plane)
    assert_is_a_document(page)
    assert f'<h2 id="paths">Every path</h2>{operations_html(openapi_document()[0])}</main>' in page


def test_the_question_for_a_token_is_a_document_that_says_nothing_of_the_models():
    page = token_question().decode()
    assert_is_a_document(page)
    assert "<title>serinus</title>" in page
    assert '<h1>This server needs a token</h1><form class="unlock" hidden data-path="/docs">' in page
    assert (
        '</p><p class="token"><label>Token <input type="password" autocomplete="off" spellcheck="false" autocapitalize="off">'
        '</label></p><button type="submit">Show the models</button>'
    ) in page
    assert (
        "<noscript><p>Without its script, ask for this page with the header <code>Authorization: Bearer TOKEN" in page
    )
