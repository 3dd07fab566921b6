"""`ImagePixels`: the KServe transformer between image files and an image classifier.

Theory of operation. `preprocess` finds the pictures of a request (`pictures`), decodes them in threads, one task each (`pixels`;
Pillow lets go of the interpreter's lock while it decodes and resizes), straight into the rows of one FP32 tensor, and asks the
predictor to classify its output (the protocol's classification extension), since the predictor has the labels. `postprocess`
makes of that text what the client wants: V2 outputs `label`, `probability` and `class`, or V1 predictions. A V2 request that
names the model's own output gets that, whole or classified, as the predictor answers it.

KServe passes no request to `postprocess`; what it needs travels in a context variable, which belongs to the task that runs the
three methods of one request. All the bad pictures of a request are named in one answer, and none of its pixels is predicted.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .pictures import BadRequest, of_instances, of_tensor
from .pixels import BadImage, decode, normalise_into, shape_of
from .recipe import recipe_of

try:
    import kserve
    from kserve import InferInput, InferOutput, InferRequest, InferResponse
    from kserve.errors import InferenceError, InvalidInput
    from kserve.protocol.infer_type import RequestedOutput
except ImportError as error:  # pragma: no cover # the extra brings it
    raise ImportError("image_pixels needs KServe's SDK: pip install 'serinus[image-pixels]'") from error

__all__ = ["ImagePixels"]

_MOST_NAMED = 8
"""Bad pictures whose reasons are told in one answer."""
_TOP_OUTPUTS: Final = ("label", "probability", "class")


@dataclass(slots=True, eq=False)
class _Call:
    """What `postprocess` must know of the request."""

    rows: int
    v1: bool
    request_id: str | None
    binary: bool
    wanted: Any
    """Names of our own outputs that the client wants; None: all three."""
    passed: bool
    """The client named the model's output: it gets the predictor's answer as it is."""


_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("image_pixels_call", default=None)


class ImagePixels(kserve.Model):
    """Image files to pixels, and scores to labels.

    Takes one BYTES input of any name, or V1 instances. Needs a predictor that speaks V2 (`--predictor_protocol=grpc-v2` or `v2`).
    """

    def __init__(self, name: str, *, preset: str | None = None) -> None:
        """Construct.

        Args:
            name: of the served model.
            preset: how the model wants its pixels, see `recipe`; None: the environment's IMAGE_PIXELS_PRESET.

        Raises:
            ValueError: the preset or a variable IMAGE_PIXELS_* is wrong.
        """
        super().__init__(name)
        self.recipe = recipe_of(preset, os.environ)
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(self.recipe.threads or cpus, thread_name_prefix="image-pixels")

    def load(self) -> bool:
        """Be ready: there is nothing to read."""
        self.ready = True
        return self.ready

    def stop(self) -> None:
        """End the decoding threads."""
        self.ready = False
        self._threads.shutdown(wait=False, cancel_futures=True)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the input: one image file per row."""
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the answer: the best classes of each picture, the best first."""
        return [
            {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "class", "datatype": "INT64", "shape": [-1, -1]},
        ]

    async def preprocess(  # type: ignore[override] # KServe annotates `headers` as never None
        self, payload: Mapping[str, Any] | InferRequest, headers: Mapping[str, str] | None = None
    ) -> InferRequest:
        """Decode.

        Returns:
            One input FP32 [n, H, W, 3] or [n, 3, H, W], and the model's output as the only one wanted.

        Raises:
            InvalidInput: no pictures, too many, or bad ones; they are named by their rows.
        """
        _call.set(None)
        recipe = self.recipe
        try:
            if isinstance(payload, InferRequest):
                where, pictures = _of_request(payload)
                parameters = _plain(payload.parameters)
                outputs = payload.request_outputs or None
            else:
                where, pictures = "instances[{}]", of_instances(payload.get("instances"))
                parameters = {"top_k": payload["top_k"]} if "top_k" in payload else {}
                outputs = None
            top_k = _count(parameters.pop("top_k", recipe.top_k))
            wanted, passed = _wanted(outputs, recipe.output)
        except BadRequest as error:
            raise InvalidInput(str(error)) from None
        if len(pictures) > recipe.max_images:
            raise InvalidInput(
                f"the request holds {len(pictures)} pictures, the limit is {recipe.max_images}; send fewer at a time"
            )
        tensor = await self._decode(pictures, where)
        v2 = payload if isinstance(payload, InferRequest) else None
        _call.set(
            _Call(
                len(pictures),
                v2 is None,
                v2.id if v2 is not None else None,
                v2 is not None and bool(v2.use_binary_outputs),
                wanted,
                passed,
            )
        )
        parameters.pop("binary_data_output", None)
        return InferRequest(
            self.name,
            [InferInput(recipe.input, list(tensor.shape), "FP32", tensor)],
            v2.id if v2 is not None else None,
            parameters={key: value for key, value in parameters.items() if not isinstance(value, float)},
            request_outputs=outputs if passed else [RequestedOutput(recipe.output, {"classification": top_k})],
        )

    async def postprocess(  # type: ignore[override] # as above
        self, result: Any, headers: Any = None, response_headers: Any = None
    ) -> Any:
        """Turn classes into labels, probabilities and numbers.

        Returns:
            V2: `label` BYTES, `probability` FP32 and `class` INT64, each [n, k]; or the model's output.
            V1: for each picture a list of objects.

        Raises:
            InferenceError: the predictor answered another number of rows, or no classes.
        """
        call = _call.get()
        if call is None or call.passed:
            return result
        output = next((output for output in result.outputs if output.name == self.recipe.output), None)
        if output is None or output.datatype != "BYTES" or len(output.shape) != 2 or output.shape[0] != call.rows:
            came = f"{output.datatype} {list(output.shape)}" if output is not None else "no such output"
            raise InferenceError(
                f"output '{self.recipe.output}' of the predictor: {came} came, classes of {call.rows} rows were expected; "
                "it needs the classification extension"
            )
        best = [[_class(text) for text in row] for row in output.as_numpy().tolist()]
        if call.v1:
            return {"predictions": [[{"label": b[2], "probability": b[0], "class": b[1]} for b in row] for row in best]}
        shape = [call.rows, len(best[0]) if best else 0]
        labels = np.empty(shape, object)
        for row, column in np.ndindex(*shape):
            labels[row, column] = best[row][column][2].encode()
        values = {
            "label": InferOutput("label", shape, "BYTES", labels),
            "probability": InferOutput(
                "probability", shape, "FP32", np.array([[b[0] for b in r] for r in best], np.float32)
            ),
            "class": InferOutput("class", shape, "INT64", np.array([[b[1] for b in r] for r in best], np.int64)),
        }
        return InferResponse(
            call.request_id or result.id or "",
            result.model_name or self.name,
            [values[name] for name in call.wanted or _TOP_OUTPUTS],
            model_version=result.model_version,
            from_grpc=bool(result.from_grpc),
            parameters=result.parameters,
            use_binary_outputs=call.binary,
        )

    async def _decode(self, pictures: Sequence[bytes], where: str) -> np.ndarray:
        """Decode all pictures, as many at a time as there are threads.

        Args:
            pictures: whole files.
            where: what a row is called in messages, with {} for its number.

        Returns:
            float32 [n, *shape_of(recipe)].
        """
        tensor = np.empty((len(pictures), *shape_of(self.recipe)), np.float32)
        run = asyncio.get_running_loop().run_in_executor
        done = await asyncio.gather(
            *(run(self._threads, self._one, picture, tensor[row]) for row, picture in enumerate(pictures))
        )
        bad = [f"{where.format(row)}: {reason}" for row, reason in enumerate(done) if reason is not None]
        if bad:
            more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
            raise InvalidInput("; ".join(bad[:_MOST_NAMED]) + more)
        return tensor

    def _one(self, picture: bytes, target: np.ndarray) -> str | None:
        """Decode one picture into its row; gives the reason where it is bad."""
        try:
            normalise_into(target, decode(picture, self.recipe), self.recipe)
        except BadImage as error:
            return str(error)
        return None


def _of_request(request: InferRequest) -> tuple[str, list[bytes]]:
    if len(request.inputs) != 1:
        names = ", ".join(repr(tensor.name) for tensor in request.inputs) or "none"
        raise BadRequest(f"one input of image files was expected, there are {len(request.inputs)}: {names}")
    tensor = request.inputs[0]
    array = tensor.as_numpy() if tensor.datatype == "BYTES" else np.empty(0, object)
    name = tensor.name.replace("{", "{{").replace("}", "}}")
    return f"input '{name}', row {{}}", of_tensor(tensor.name, tensor.datatype, tensor.shape, array)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise BadRequest(f"'top_k' is {value!r}; a whole number of at least 1 was expected")
    return value


def _wanted(outputs: Any, model_output: str) -> tuple[list[str] | None, bool]:
    """Which of our outputs are wanted, and whether it is the model's own instead."""
    if not outputs:
        return None, False
    names = [output.name for output in outputs]
    if names == [model_output]:
        return None, True
    unknown = [name for name in names if name not in _TOP_OUTPUTS]
    if unknown:
        raise BadRequest(
            f"output '{unknown[0]}' is not one of {', '.join(_TOP_OUTPUTS)}, or '{model_output}' by itself"
        )
    return names, False


def _class(text: Any) -> tuple[float, int, str]:
    """Read `value:index[:label]` (extension_classification.md)."""
    value, index, *label = (text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split(":", 2)
    return float(value), int(index), label[0] if label else ""


def _plain(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters as plain values: over gRPC KServe leaves them as messages."""
    plain: dict[str, Any] = {}
    for key, value in (parameters or {}).items():
        which = value.WhichOneof("parameter_choice") if hasattr(value, "WhichOneof") else None
        plain[key] = value if which is None else getattr(value, which)
    return plain
