"""Messages that are small on the wire and large in memory, or in work, are refused by the setting that bounds them."""

from __future__ import annotations

import pytest

from serinus.errors import TooLarge
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol import raw
from serinus.protocol.proto_codec import decode_request
from serinus.protocol.types import Limits


def request(parameters: int, *, of: str = "request") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(1)
    place = {"request": message, "input": tensor, "output": message.outputs.add(name="y")}[of]
    for index in range(parameters):
        place.parameters[f"p{index}"].int64_param = index
    return message


@pytest.mark.parametrize("of", ["request", "input", "output"])
def test_parameters_are_counted(of):
    decode_request(request(1024, of=of).SerializeToString(), limits=Limits())
    with pytest.raises(TooLarge, match=r"1025 parameters, the limit is 1024 \(max_tensors\)"):
        decode_request(request(1025, of=of).SerializeToString(), limits=Limits())


def test_elements_of_bytes_count_with_what_they_take_in_memory():
    limits = Limits(tensor_bytes=4500)
    assert raw.decode("input 'x'", "BYTES", (100,), bytes(400), limits).size == 100
    with pytest.raises(TooLarge, match=r"max_tensor_bytes"):
        raw.decode("input 'x'", "BYTES", (101,), bytes(404), limits)
