"""`/docs`: the models that are loaded, how each is asked, and a place to ask it; then every path of the server.

One HTML document that needs nothing beside itself: its style and script are in it, and its content security policy lets nothing else in, and
nothing out but requests to this server. All that comes from a model or a client goes through `escape`. It is written anew for each request, since
models come and go; without its script only the places to ask are missing.

Where requests need a token, a place to ask asks for it when the server has answered 401, and where the page needs one, a browser that comes without
gets the question in its place (`token_question`). What is typed stays in the script's memory: it is in no storage, no URL and no form that is sent.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import orjson

from .... import __version__
from ....dataplane.plane import Plane
from ....errors import SerinusError
from ....protocol.documents.example_values import example_request
from ....protocol.types import ModelMetadata, TensorSpec
from ....settings import ServerSettings, is_loopback
from .openapi import operations_html
from .request_examples import curl_example, fits_a_page, infer_path, python_example

__all__ = ["DocsPage", "content_security_policy", "offers_docs", "token_question"]


def offers_docs(settings: ServerSettings) -> bool:
    """Whether a server has the page: where it is set so, or nothing is set and only this machine reaches the server."""
    chosen = settings.enable_docs_url
    return is_loopback(settings.host) if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class _Loaded:
    metadata: ModelMetadata
    is_ready: bool


class DocsPage:
    """Writes the page.

    Args:
        plane: says which models there are.
        document: the OpenAPI document, for the list of paths.
        revision: of this server; empty: it was told none.
        over_tls: its addresses begin with https.
        needs_token: a request to a model needs one, so the examples carry it.
    """

    def __init__(
        self, plane: Plane, document: Mapping[str, Any], *, revision: str, over_tls: bool, needs_token: bool = False
    ) -> None:
        self._needs_token = needs_token
        self._plane = plane
        self._operations = operations_html(document)
        self._revision = revision
        self._scheme = "https" if over_tls else "http"

    def render(self, host: str) -> bytes:
        """Write the page.

        Args:
            host: by which the client came here, for the examples.
        """
        base = f"{self._scheme}://{host or 'localhost'}"
        models = self._models()
        listed = "".join(
            f'<li><a href="#model-{number}">{escape(model.metadata.name)}</a>{"" if model.is_ready else " (not ready)"}</li>'
            for number, model in enumerate(models)
        )
        names, nothing = f'<ul class="models">{listed}</ul>', "<p>No model is loaded.</p>"
        sections = "".join(_model(number, model, base, token=self._needs_token) for number, model in enumerate(models))
        revision = f", revision {escape(self._revision)}" if self._revision else ""
        where = escape(host or "this server")
        needed = (
            "<p>Requests need a token, as <code>Authorization: Bearer TOKEN</code>.</p>" if self._needs_token else ""
        )
        return _document(
            f"Models on {where}",
            f'<h1>Models on {where}</h1><p class="soft">serinus {__version__}{revision}; '
            'the Open Inference Protocol (V2) and V1. <a href="/v2">Server metadata</a>, '
            '<a href="/openapi.json">OpenAPI document</a>, <a href="/metrics">metrics</a>, '
            f'<a href="/v2/models/stats">statistics</a></p>{needed}'
            f"{names if models else nothing}{sections}"
            f'<h2 id="paths">Every path</h2>{self._operations}',
        )

    def _models(self) -> list[_Loaded]:
        found = []
        for name in self._plane.model_names():
            try:
                found.append(_Loaded(self._plane.model_metadata(name), bool(self._plane.model_ready(name))))
            except SerinusError:  # it has just gone, or is being loaded
                continue
        return found


def token_question() -> bytes:
    """The page for a browser that has not shown its token: it asks for it, and shows nothing of the models."""
    return _document(
        "serinus",
        '<h1>This server needs a token</h1><form class="unlock" hidden data-path="/docs"><p class="soft">It is kept in the memory of this page alone.</p>'
        f'{_token_field(hidden=False)}<button type="submit">Show the models</button><span class="said soft" role="status"></span></form>'
        "<noscript><p>Without its script, ask for this page with the header <code>Authorization: Bearer TOKEN</code>.</p></noscript>",
    )


def _document(title: str, content: str) -> bytes:
    """One page; title and content are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{_asset('docs.css')}</style></head><body><main>{content}</main>"
        f"<script>{_asset('docs.js')}</script></body></html>\n"
    ).encode()


def _token_field(*, hidden: bool) -> str:
    return (
        f'<p class="token"{" hidden" if hidden else ""}><label>Token <input type="password" autocomplete="off" spellcheck="false" '
        'autocapitalize="off"></label></p>'
    )


@cache
def _asset(name: str) -> str:
    return (resources.files("serinus.server.rest.pages") / name).read_text(encoding="utf-8")


@cache
def content_security_policy() -> str:
    """The policy that the document has."""
    style, script = (
        base64.b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode() for name in ("docs.css", "docs.js")
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def _model(number: int, model: _Loaded, base: str, *, token: bool) -> str:
    metadata = model.metadata
    versions = f", version{'s' if len(metadata.versions) > 1 else ''} {', '.join(map(escape, metadata.versions))}"
    state = "" if model.is_ready else ' <strong class="bad">not ready</strong>'
    head = (
        f'<section class="model"><h2 id="model-{number}">{escape(metadata.name)}</h2><p class="soft">'
        f"{escape(metadata.platform)}{versions if metadata.versions else ''}{state}</p>"
    )
    inputs = _tensors("Inputs", metadata.inputs, metadata.column_names)
    outputs = _tensors("Outputs", metadata.outputs, ())
    if not metadata.inputs:
        return f"{head}<p>This model does not say what it takes.</p>{outputs}{_try(metadata, example=False)}</section>"
    return (
        f'{head}{inputs}{outputs}<div class="examples">'
        f"<div><h3>curl</h3><pre class='wrap'>{escape(curl_example(metadata, base, token=token))}</pre></div>"
        f"<div><h3>Python</h3><pre>{escape(python_example(metadata, base, token=token))}</pre></div></div>"
        f"{_try(metadata, example=True)}</section>"
    )


def _try(metadata: ModelMetadata, *, example: bool) -> str:
    """A place to ask; its script shows it."""
    request = example_request(metadata) if example else {"inputs": []}
    text = orjson.dumps(request, option=orjson.OPT_INDENT_2).decode() if not example else _request_text(request)
    note = "" if fits_a_page(metadata) else '<p class="soft">An input without data is sent full of zeros.</p>'
    label = f"Request to {escape(metadata.name)}, JSON"
    return (
        f'<form class="try" hidden data-path="{escape(infer_path(metadata))}"><h3>Try it</h3>{note}'
        f'<textarea spellcheck="false" aria-label="{label}">{escape(text)}</textarea>'
        f'{_token_field(hidden=True)}<button type="submit">Send</button><span class="said soft" role="status"></span>'
        '<pre class="answered wrap" hidden></pre></form>'
    )


def _request_text(request: Mapping[str, Any]) -> str:
    """An input a line: the shortest form that is read at a glance."""
    inputs = ",\n".join(f"    {orjson.dumps(one).decode()}" for one in request["inputs"])
    return f'{{\n  "inputs": [\n{inputs}\n  ]\n}}'


def _tensors(title: str, specs: Sequence[TensorSpec], columns: Sequence[str]) -> str:
    if not specs:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(spec.name)}</code>{' (optional)' if spec.optional else ''}</td>"
        f"<td><code>{escape(spec.datatype)}</code></td><td>{_shape(spec)}</td></tr>"
        for spec in specs
    )
    named = (
        f'<p class="soft">Columns: {", ".join(f"<code>{escape(name)}</code>" for name in columns)}</p>'
        if columns
        else ""
    )
    return (
        f'<h3>{title}</h3><div class="wide"><table><thead><tr><th>Name</th><th>Datatype</th><th>Shape</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{named}"
    )


def _shape(spec: TensorSpec) -> str:
    if spec.any_rank:
        return "any"
    sizes = ", ".join("any" if size == -1 else str(size) for size in spec.shape)
    return f"<code>[{sizes}]</code>"
