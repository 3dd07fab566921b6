"""`/docs`: what it says of the models, that its examples work, that it needs nothing else, and how it looks in a browser."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from browser import NEEDS_CHROMIUM, Tab, opened
from depth import DEEP
from rest_support import Rest, rest
from serinus.dataplane.access.access_tokens import Tokens
from serinus.protocol.documents.example_values import example_request
from serinus.protocol.types import ModelMetadata, TensorSpec
from serinus.server.request_access import RequestAccess
from serinus.server.rest.pages.docs_page import content_security_policy, offers_docs
from serinus.server.rest.pages.request_examples import curl_example, python_example
from serinus.settings import ServerSettings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("host", "chosen", "offered"),
    [
        ("127.0.0.1", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("127.0.0.1", False, False),
        ("0.0.0.0", None, False),
        ("::", None, False),
        ("10.0.0.7", None, False),
        ("0.0.0.0", True, True),
        ("0.0.0.0", False, False),
    ],
)
def test_the_page_is_offered_on_loopback_and_elsewhere_where_it_is_asked_for(
    host: str, chosen: bool | None, offered: bool
):
    assert offers_docs(ServerSettings(host=host, enable_docs_url=chosen)) == offered


@pytest.mark.parametrize(("settings", "status"), [({}, 200), ({"enable_docs_url": False}, 404)], ids=["default", "off"])
async def test_the_page_is_there_where_it_is_offered(settings: Any, status: int):
    async with rest("row", **settings) as server:
        assert (await server.ask("GET", "/docs")).status == status


async def page_of(server: Rest) -> str:
    answer = await server.ask("GET", "/docs", headers={"Host": f"127.0.0.1:{server.port}"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.body.decode()


async def test_the_page_lists_the_models_that_are_loaded_now_with_what_they_take():
    async with rest("row", "simple") as server:
        page = await page_of(server)
        for text in (
            ">row</h2>",
            ">simple</h2>",
            "versions 1, 2",
            "INPUT0",
            "<code>[any, 16]</code>",
            "OUTPUT1",
            "test_row",
        ):
            assert text in page
        await server.plane.unload("simple")
        await server.plane.load("numbers")
        page = await page_of(server)
        assert ">simple</h2>" not in page
        assert ">numbers</h2>" in page
        await server.plane.unload("numbers")
        await server.plane.unload("row")
        assert "No model is loaded" in await page_of(server)


async def test_the_page_loads_nothing_and_lets_nothing_in():
    async with rest("row") as server:
        page = await page_of(server)
    assert content_security_policy() in page
    assert "default-src 'none'" in content_security_policy()
    outside = [
        each
        for each in re.findall(r"""(?:src|href|action)=["']([^"']*)|url\(([^)]*)\)|@import""", page)
        if not each[0].startswith(("/", "#"))
    ]
    assert outside == []


async def test_names_from_models_and_clients_are_escaped():
    bad = "<script>alert(1)</script>"
    async with rest("row") as server:
        await server.plane.load("row")
        model = server.model("row")
        model.inputs = (TensorSpec(bad, "FP32", (-1, 3)),)
        answer = await server.ask("GET", "/docs", headers={"Host": "a'b"})
    page = answer.body.decode()
    assert bad not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http://a'b" not in page


def examples(page: str, title: str) -> list[str]:
    return [unescape(text) for text in re.findall(rf"<h3>{title}</h3><pre[^>]*>(.*?)</pre>", page, re.DOTALL)]


async def run(*words: str) -> tuple[int, str]:
    """Run a program while this loop serves."""
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def test_the_examples_of_every_model_are_answered():
    names = ("row", "simple", "numbers", "one")
    async with rest(*names) as server:
        page = await page_of(server)
        lines, programs = examples(page, "curl"), examples(page, "Python")
        assert len(lines) == len(programs) == len(names)
        for line in lines:
            status, output = await run("bash", "-c", f"set -o pipefail; {line}")
            assert status == 0, output
            assert "outputs" in orjson.loads(output), line
        status, output = await run(sys.executable, "-c", "\n".join(programs))
        assert status == 0, output
        forms = re.findall(r'data-path="([^"]*)".*?<textarea[^>]*>(.*?)</textarea>', page, re.DOTALL)
        for path, text in forms:
            answer = await server.ask("POST", unescape(path), orjson.loads(unescape(text)))
            assert answer.status == 200, answer.body


SPECS = (
    TensorSpec("image", "UINT8", (-1, 224, 224, 3)),
    TensorSpec("it's", "BYTES", (-1,)),
    TensorSpec("flag", "BOOL", (1,)),
    TensorSpec("more", "FP32", (-1,), optional=True),
)


async def test_an_example_of_many_values_makes_them_where_it_runs():
    metadata = ModelMetadata("a/b c", ("1",), "p", SPECS, (TensorSpec("y", "FP32", (-1,)),))
    request = example_request(metadata)
    assert [entry["name"] for entry in request["inputs"]] == ["image", "it's", "flag"]
    assert "data" not in request["inputs"][0]
    assert request["inputs"][2] == {"name": "flag", "shape": [1], "datatype": "BOOL", "data": [False]}
    line = curl_example(metadata, "http://h:1")
    assert len(line) < 1000
    assert "http://h:1/v2/models/a%2Fb%20c/infer" in line
    made = line.replace("curl -s", "cat; true")
    status, output = await run("bash", "-c", made)
    assert status == 0, output
    sent = orjson.loads(output)
    assert len(sent["inputs"][0]["data"]) == 224 * 224 * 3
    assert sent["inputs"][1]["data"] == ["text"]
    code = python_example(metadata, "http://h:1")
    scope: dict[str, Any] = {}
    exec(code.partition("with Client")[0].replace("from serinus.client import Client", ""), scope)
    assert scope["inputs"]["image"].shape == (1, 224, 224, 3)
    assert scope["inputs"]["image"].dtype == np.uint8


def form(name: str, what: str = "") -> str:
    """JavaScript: a model's place to ask, or something in it."""
    found = f"document.querySelector('form[data-path*=\"/{name}/\"]')"
    return f"{found}.querySelector('{what}')" if what else found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser with one page, for all tests: their servers' ports differ, and so what it keeps for each."""
    with opened(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


async def in_a_browser(tab: Tab, use: Callable[[Tab], None]) -> None:
    """Use a page as a person would, while this loop serves."""

    def work() -> None:
        use(tab)
        tab.show("about:blank")

    await asyncio.get_running_loop().run_in_executor(None, work)


@NEEDS_CHROMIUM
async def test_try_it_asks_the_server_and_shows_its_answer(browser: Tab):
    async with rest("row", "gate", "broken", access_log=True) as server:
        server.model("gate").open.set()
        said: dict[str, str] = {}
        answered: list[Any] = []

        def use(tab: Tab) -> None:
            tab.show(f"http://127.0.0.1:{server.port}/docs")
            tab.run(f"{form('broken', 'textarea')}.value = '{{not JSON'")
            for name in ("row", "gate", "broken"):
                tab.run(f"{form(name, 'button')}.click()")
                tab.wait(f"['said good', 'said bad'].includes({form(name, '.said')}.className)")
                said[name] = tab.run(f"{form(name, '.said')}.textContent")
            answered.append(orjson.loads(tab.run(f"{form('row', '.answered')}.textContent")))

        await in_a_browser(browser, use)
    for name in ("row", "gate"):
        assert re.fullmatch(r"Status 200, [\d.]+ ms, request id [0-9a-f-]{36}", said[name])
    assert said["broken"].startswith("This is not JSON: ")
    assert answered[0]["outputs"][0]["name"] == "y"


TOKEN = "a-token-of-a-person-0123456789"
STORES = "JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}, location.href, document.documentElement.outerHTML])"


@NEEDS_CHROMIUM
async def test_try_it_asks_for_a_token_when_the_server_wants_one_and_keeps_it_in_memory(browser: Tab):
    access = RequestAccess(Tokens([TOKEN]), frozenset({"inference"}))
    stored: list[str] = []

    async with rest("row", "one", request_access=access) as server:

        def use(tab: Tab) -> None:
            tab.show(f"http://127.0.0.1:{server.port}/docs")
            assert tab.run(f"{form('row', '.token')}.hidden"), "nobody is asked before the server has asked"
            tab.run(f"{form('row', 'button')}.click()")
            tab.wait(f"!{form('row', '.token')}.hidden")
            assert tab.run(f"{form('row', '.said')}.textContent") == "The server needs a token."
            assert tab.run("document.activeElement.type") == "password"
            for typed, says in ((TOKEN[:-1], "The server takes another token."), (f" {TOKEN} ", "Status 200")):
                tab.run(f"{form('row', 'input')}.value = '{typed}'; {form('row')}.requestSubmit()")
                tab.wait(f"{form('row', '.said')}.textContent.startsWith('{says}')")
            tab.run(f"{form('one', 'button')}.click()")
            tab.wait(f"{form('one', '.said')}.textContent.startsWith('Status 200')")
            assert tab.run(f"{form('one', '.token')}.hidden"), "it is asked for once a page"
            stored.append(tab.run(STORES))
            tab.run("location.reload()")
            tab.wait(f"document.readyState === 'complete' && {form('row', '.token')}.hidden")
            tab.run(f"{form('row', 'button')}.click()")
            tab.wait(f"{form('row', '.said')}.textContent === 'The server needs a token.'")

        await in_a_browser(browser, use)
        page = await page_of(server)
    assert TOKEN not in stored[0]
    assert "Requests need a token" in page


@NEEDS_CHROMIUM
async def test_a_page_that_needs_a_token_asks_a_person_for_it_and_goes_on_with_it(browser: Tab):
    stored: list[str] = []
    async with rest("row", request_access=RequestAccess(Tokens([TOKEN]))) as server:

        def use(tab: Tab) -> None:
            tab.show(f"http://127.0.0.1:{server.port}/docs")
            assert "row" not in tab.run("document.body.innerText"), "nothing is told without a token"
            for typed in ("another-token-0123456789", TOKEN):
                tab.run(
                    f"document.querySelector('input').value = '{typed}'; document.querySelector('form').requestSubmit()"
                )
                tab.wait("document.querySelector('.said').textContent !== 'Asking …'")
            tab.wait(f"{form('row')} !== null")
            assert tab.run("document.title").startswith("Models on ")
            tab.run(f"{form('row', 'button')}.click()")
            tab.wait(f"{form('row', '.said')}.textContent.startsWith('Status 200')")
            stored.append(tab.run(STORES))

        await in_a_browser(browser, use)
    assert TOKEN not in stored[0]


async def test_only_a_browser_without_a_token_gets_the_question():
    html = {"Accept": "text/html,application/xhtml+xml"}
    async with rest("row", request_access=RequestAccess(Tokens([TOKEN]))) as server:
        question = await server.ask("GET", "/docs", headers=html)
        plain = [await server.ask("GET", path, headers=fields) for path, fields in (("/docs", {}), ("/v2", html))]
        posted = await server.ask("POST", "/docs", headers=html)
        page = await server.ask("GET", "/docs", headers={**html, "Authorization": f"Bearer {TOKEN}"})
        assert (
            b'transport="rest",code="401"} 4'
            in (await server.ask("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).body
        )
    assert (question.status, question.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert question.headers["www-authenticate"] == 'Bearer realm="serinus"'
    assert content_security_policy() in question.body.decode()
    assert "row" not in question.body.decode().partition("<main>")[2].partition("</main>")[0]
    assert all(answer.status == 401 and answer.json["error"] for answer in (*plain, posted))
    assert page.status == 200
    async with rest("row", enable_docs_url=False, request_access=RequestAccess(Tokens([TOKEN]))) as server:
        assert (await server.ask("GET", "/docs", headers=html)).json["error"].startswith("this server needs a token")


async def test_examples_carry_the_token_where_requests_need_one():
    access = RequestAccess(Tokens([TOKEN]), frozenset({"inference", "metadata"}))
    async with rest("row", "one", request_access=access) as server:
        page = await page_of(server)
        lines, programs = examples(page, "curl"), examples(page, "Python")
        for line in lines:
            status, output = await run("bash", "-c", f"export TOKEN={TOKEN}; set -o pipefail; {line}")
            assert (status, "outputs" in orjson.loads(output)) == (0, True), output
        program = f"import os; os.environ['TOKEN'] = {TOKEN!r}\n" + "\n".join(programs)
        status, output = await run(sys.executable, "-c", program)
        assert status == 0, output


def loud_specs() -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"a_rather_long_name_of_a_feature_{n:02d}", "FP32", (-1, 1)) for n in range(40))


@NEEDS_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "dark"), (1280, "light"), *([(360, "light"), (1280, "dark")] if DEEP else [])]
)
async def test_it_renders_light_and_dark_narrow_and_wide_with_long_names_and_many_inputs(
    width: int, scheme: str, browser: Tab, tmp_path: Path
):
    async with rest("row", "simple") as server:
        server.model("row").inputs = loud_specs()

        def use(tab: Tab) -> None:
            tab.show(f"http://127.0.0.1:{server.port}/docs", width=width, scheme=scheme)
            assert tab.run("document.documentElement.scrollWidth") == width, "nothing lies beside the screen"
            ground = tab.run("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
            tall = tab.run("Math.max(...[...document.querySelectorAll('.wide')].map(each => each.clientHeight))")
            assert tall < 600, "a long table scrolls in its place"
            taken = tab.picture(tmp_path / "page.png")
            assert taken[0] == width

        await in_a_browser(browser, use)
    assert (tmp_path / "page.png").stat().st_size > 20_000, "a page that shows nothing is a few kilobytes"
