"""`/docs`: what it says of the models, that its examples work, that it needs nothing else, and how it looks in a browser."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from browser import NEEDS_CHROMIUM, dumped, screenshot
from rest_support import Rest, rest
from serinus.protocol.types import ModelMetadata, TensorSpec
from serinus.server.rest.custom import CustomRequest
from serinus.server.rest.pages.docs_page import content_security_policy, offers_docs
from serinus.server.rest.pages.request_examples import curl_example, example_request, python_example
from serinus.settings import ServerSettings


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


CLICK = """<script>
document.querySelectorAll("form.try").forEach(function (form) {
  var area = form.querySelector("textarea");
  if (form.getAttribute("data-path").indexOf("broken") >= 0) area.value = "{not JSON";
  form.querySelector("button").click();
});
</script>"""


@NEEDS_CHROMIUM
async def test_try_it_asks_the_server_and_shows_its_answer(tmp_path: Path):
    pages: dict[str, bytes] = {}

    async def harness(request: CustomRequest) -> Any:
        return 200, {"Content-Type": "text/html; charset=utf-8"}, pages["clicked"]

    async with rest("row", "gate", "broken", access_log=True, extra_routes=[("GET", "/clicked", harness)]) as server:
        server.model("gate").open.set()
        page = await page_of(server)
        # The policy lets no other script in; the clicks are one.
        pages["clicked"] = (
            re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
            .replace("</body>", f"{CLICK}</body>")
            .encode()
        )
        loop = asyncio.get_running_loop()
        url = f"http://127.0.0.1:{server.port}/clicked"
        document = await loop.run_in_executor(None, lambda: dumped(tmp_path, url, wait_s=8.0))
    said = re.findall(r'class="said (\w+)"[^>]*>([^<]*)<', document)
    assert [kind for kind, _ in said] == ["good", "good", "bad"], said
    assert all(re.fullmatch(r"Status 200, [\d.]+ ms, request id [0-9a-f-]{36}", text) for _, text in said[:2])
    assert said[2][1].startswith("This is not JSON: ")
    answered = re.findall(r'<pre class="answered wrap">(.*?)</pre>', document, re.DOTALL)
    assert orjson.loads(unescape(answered[0]))["outputs"][0]["name"] == "y"


@NEEDS_CHROMIUM
async def test_under_its_own_policy_its_script_and_style_run(tmp_path: Path):
    async with rest("row") as server:
        loop = asyncio.get_running_loop()
        url = f"http://127.0.0.1:{server.port}/docs"
        document = await loop.run_in_executor(None, lambda: dumped(tmp_path, url, wait_s=2.0))
    assert '<form class="try" data-path' in document, "the script has shown the place to ask"


@NEEDS_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [500, 1280])
async def test_it_renders_light_and_dark_narrow_and_wide(width: int, scheme: str, tmp_path: Path):
    async with rest("row", "simple") as server:
        loop = asyncio.get_running_loop()
        url = f"http://127.0.0.1:{server.port}/docs"
        found = await loop.run_in_executor(None, lambda: screenshot(tmp_path, url, width=width, scheme=scheme))
    assert found[0] == width
    assert found[2] > 20_000, "a page that shows nothing is a few kilobytes"
