"""Requests that a model would take, as people write them: JSON, curl, Python. Pure.

Free dimensions are 1; numbers are 0. A model of many values has an example without them, which says how to make them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

import orjson

from ....protocol.documents.example_values import example_request, example_shape, example_value, is_written_out
from ....protocol.types import ModelMetadata, TensorSpec

__all__ = ["curl_example", "fits_a_page", "infer_path", "python_example"]

_NUMPY: Final = {
    "BOOL": "bool",
    "FP16": "np.float16",
    "FP32": "np.float32",
    "FP64": "np.float64",
    "BF16": "np.float32",
    **{f"{sign}INT{bits}": f"np.{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
"""Datatype to what NumPy calls it; NumPy has no bfloat16, which the client makes of float32."""


def _inputs(metadata: ModelMetadata) -> list[TensorSpec]:
    return [spec for spec in metadata.inputs if not spec.optional]


def fits_a_page(metadata: ModelMetadata) -> bool:
    """Whether the values of an example are written out."""
    return all(is_written_out(spec) for spec in _inputs(metadata))


def infer_path(metadata: ModelMetadata) -> str:
    """The path of a model's inference."""
    return f"/v2/models/{quote(metadata.name, safe='')}/infer"


def curl_example(metadata: ModelMetadata, base: str, *, token: bool = False) -> str:
    """Write a line for a shell; of many values a program makes the request.

    Args:
        metadata: of the model.
        base: `http://host:port`.
        token: requests need one; the shell has it in `TOKEN`.
    """
    url = shlex.quote(base + infer_path(metadata))
    if token:
        url += ' \\\n  -H "Authorization: Bearer $TOKEN"'
    if fits_a_page(metadata):
        body = orjson.dumps(example_request(metadata)).decode()
        return f"curl -s {url} \\\n  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"
    inputs = ", ".join(
        f'{{"name": {spec.name!r}, "shape": {example_shape(spec)}, "datatype": {spec.datatype!r}, '
        f'"data": [{example_value(spec)!r}] * {math.prod(example_shape(spec))}}}'
        for spec in _inputs(metadata)
    )
    program = f'import json; print(json.dumps({{"inputs": [{inputs}]}}))'
    return f"python3 -c {shlex.quote(program)} |\n  curl -s {url} \\\n  -H 'Content-Type: application/json' \\\n  -d @-"


def python_example(metadata: ModelMetadata, base: str, *, token: bool = False) -> str:
    """Write a program for `serinus.client`; the arguments are those of `curl_example`."""
    inputs = "".join(f"    {spec.name!r}: {_array(spec)},\n" for spec in _inputs(metadata))
    outputs: Sequence[str] = [spec.name for spec in metadata.outputs if not spec.optional]
    shown = f"answer[{outputs[0]!r}]" if outputs else "dict(answer)"
    needed, shown_token = ("import os\n\n", ', token=os.environ["TOKEN"]') if token else ("", "")
    return (
        f"{needed}import numpy as np\nfrom serinus.client import Client\n\ninputs = {{\n{inputs}}}\n"
        f"with Client({base!r}{shown_token}) as client:\n    answer = client.infer({metadata.name!r}, inputs)\n    print({shown})\n"
    )


def _array(spec: TensorSpec) -> str:
    shape = example_shape(spec)
    if spec.datatype == "BYTES":
        return f"np.full({tuple(shape)}, 'text', dtype=object)"
    dtype = _NUMPY.get(spec.datatype, "np.float32")
    return f"np.zeros({tuple(shape)}, dtype={dtype})"
