"""`serinus infer`: one request, from the shell."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.table import Table

from ...client import Answer, Client
from ...errors import ConfigError, SerinusError
from ...protocol.rest_codec import RestCodec
from ...protocol.types import InferRequest, InferResponse, ModelMetadata
from ..asked_service import Headers, Model, Token, Url, find_service, parse_headers
from ..state_option import STATE_DIR, StateDir
from ..tables import make_console
from ..typed_inputs import example_inputs, fit_rows, parse_inputs, read_request

__all__ = ["infer"]

_REVISION = "x-serinus-revision"
_MOST_VALUES = 64


def infer(
    name: Annotated[
        str, typer.Argument(help="A service, NAME or NAMESPACE/NAME; with --url a model.", show_default=False)
    ],
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="NAME=VALUE: JSON, text, @FILE.npy or @FILE.json; repeatable."),
    ] = None,
    document: Annotated[
        Path | None, typer.Option("--json", help="A whole V2 request; - is standard input.", show_default=False)
    ] = None,
    url: Url = None,
    model: Model = None,
    version: Annotated[
        str, typer.Option(help="The model's version; none: the server chooses.", show_default=False)
    ] = "",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE of the request; repeatable.")
    ] = None,
    want: Annotated[
        list[str] | None, typer.Option("--want", help="An output that is wanted; repeatable. None: all.")
    ] = None,
    grpc: Annotated[bool, typer.Option("--grpc", help="Ask the local gateway over gRPC.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait, all retries included.", min=0.001)] = 30.0,
    header: Headers = None,
    token: Token = None,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="table or json.")] = "table",
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Ask a model once, and show its answer.

    Without inputs: what the model takes and gives, and a line to start from.

        serinus infer fraud --json request.json

        serinus infer doubler --input 'x=[[1, 2]]' --url http://127.0.0.1:8080

        serinus infer vision --input pixels=@cat.npy -o json
    """
    if inputs and document is not None:
        raise ConfigError("--input and --json: give one of them; the request in the JSON has inputs of its own")
    asked = find_service(name, url=url, model=model, state_dir=state_dir, over_grpc=grpc)
    given = parse_inputs(inputs or ())
    parameters = parse_inputs(parameter or ())
    request = read_request(document, asked.model) if document is not None else None
    console = make_console()
    with Client(
        asked.url, host=asked.host, headers=parse_headers(header, token), timeout_s=timeout, binary=output == "table"
    ) as client:
        try:
            if request is not None:
                values: Mapping[str, Any] = {tensor.name: tensor for tensor in request.inputs}
                parameters = {**request.parameters, **parameters}
                wanted: Sequence[Any] | None = want or request.outputs
            else:
                metadata = client.metadata(asked.model, version)
                if not given:
                    _describe(console, metadata, _as_asked(name, url, model, token))
                    raise typer.Exit(2)
                specs = {spec.name: spec for spec in metadata.inputs}
                values = {key: fit_rows(value, specs.get(key)) for key, value in given.items()}
                wanted = want
            began = time.perf_counter()
            answer = client.infer(
                asked.model,
                values,
                version=version,
                outputs=wanted or None,
                parameters=parameters,
                request_id=request.id if request is not None else None,
            )
            seconds = time.perf_counter() - began
        except ConfigError:
            raise
        except SerinusError as error:
            raise ConfigError(asked.told(error)) from error
    if output == "json":
        typer.echo(_as_json(answer))
    else:
        _show(console, answer, seconds)


def _as_json(answer: Answer) -> str:
    response = InferResponse(answer.model_name, answer.tensors, answer.model_version, answer.id, answer.parameters)
    body = RestCodec().encode_response(response, InferRequest(answer.model_name, [])).to_bytes()
    return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()


def _show(console: Console, answer: Answer, seconds: float) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("OUTPUT", "DATATYPE", "SHAPE", "VALUES"):
        table.add_column(column)
    for tensor in answer.tensors:
        shown = answer.text(tensor.name) if tensor.datatype == "BYTES" else tensor.data
        with np.printoptions(threshold=_MOST_VALUES, edgeitems=4, linewidth=100):
            values = str(shown)
        table.add_row(tensor.name, tensor.datatype, str(list(tensor.shape)), values)
    console.print(table, markup=False)
    who = f"{answer.model_name} {answer.model_version}".rstrip()
    revision = answer.headers.get(_REVISION)
    console.print(f"{who}{f', revision {revision}' if revision else ''}, in {seconds * 1e3:.1f} ms", markup=False)


def _as_asked(name: str, url: str | None, model: str | None, token: Path | None) -> str:
    """Give the words that led here, for a line to be copied."""
    given = (("--url", url), ("--model", model), ("--token", token))
    return " ".join([shlex.quote(name), *(f"{flag} {shlex.quote(str(value))}" for flag, value in given if value)])


def _describe(console: Console, metadata: ModelMetadata, asked: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "NAME", "DATATYPE", "SHAPE"):
        table.add_column(column)
    for role, specs in (("input", metadata.inputs), ("output", metadata.outputs)):
        for spec in specs:
            table.add_row(role, spec.name, spec.datatype, str(list(spec.shape)))
    for entry in _parsed(metadata, "optional_outputs"):
        table.add_row("--want", entry["name"], entry["datatype"], str(entry["shape"]))
    console.print(table, markup=False)
    names = [str(name) for name in _parsed(metadata, "feature_names")]
    if names and not set(names) <= {spec.name for spec in metadata.inputs}:
        console.print(f"or an input a column, by name: {', '.join(names)}", markup=False)
    example = example_inputs(metadata.inputs)
    console.print(f"ask it so: serinus infer {asked} {example or '--json request.json'}", markup=False, soft_wrap=True)


def _parsed(metadata: ModelMetadata, key: str) -> list[Any]:
    """A list among the properties, whose values are texts; empty where a server does not say it so."""
    value = metadata.parameters.get(key)
    try:
        parsed = orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        return []
    return parsed if isinstance(parsed, list) else []
