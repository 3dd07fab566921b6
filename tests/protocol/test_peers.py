"""Second implementations: tritonclient's and KServe's own encoders and decoders against ours.

Each peer runs in a process of its own: tritonclient.grpc and kserve register the same protobuf symbols, so no process can
hold both.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
COMMON = """
import json
import numpy as np
from serinus.protocol import _open_inference_pb2 as pb, proto_codec
from serinus.protocol.binary_codec import parse_json_length
from serinus.protocol.raw import bfloat16_values, decode, encode
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, InferResponse, Limits, Tensor

rng = np.random.default_rng(1)
ARRAYS = {
    "BOOL": rng.integers(0, 2, (2, 3)).astype(bool),
    **{f"{sign}INT{bits}": rng.integers(0, 100, (2, 3)).astype(f"{sign}int{bits}".lower())
       for sign in ("U", "") for bits in (8, 16, 32, 64)},
    "FP16": rng.normal(size=(2, 3)).astype(np.float16),
    "FP32": rng.normal(size=(2, 3)).astype(np.float32),
    "FP64": rng.normal(size=(2, 3)),
    "BF16": bfloat16_values(rng.integers(0, 0x7F00, (2, 3)).astype(np.uint16)),
    "BYTES": np.array([[b"a", b"", "é".encode()], [b"x" * 300, b"1", b"[]"]], object),
}
TENSORS = [Tensor(name.lower(), name, (2, 3), array) for name, array in ARRAYS.items()]

def their(name):
    # tritonclient carries BF16 as ml_dtypes.bfloat16, we as float32
    if name != "BF16":
        return ARRAYS[name]
    import ml_dtypes
    return ARRAYS[name].astype(ml_dtypes.bfloat16)

def same(found, expected):
    if found.dtype.name == "bfloat16":
        found = found.astype(np.float32)
    assert found.dtype == expected.dtype and found.shape == expected.shape, (found, expected)
    assert found.tolist() == expected.tolist(), (found, expected)
"""


def run(peer: str, code: str) -> None:
    """Run code with the peer imported first, warnings shown but not fatal: they are the peer's."""
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    script = COMMON + textwrap.dedent(code)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=SUPPORT)
    assert found.returncode == 0, found.stderr[-3000:]


def test_tritons_http_client_and_we_read_each_other():
    run(
        "tritonclient",
        """
        import tritonclient.http as triton

        inputs = []
        outputs = [triton.InferRequestedOutput(name, binary_data=name == "y") for name in ("y", "z")]
        for index, datatype in enumerate(ARRAYS):
            tensor = triton.InferInput(datatype.lower(), [2, 3], datatype)
            tensor.set_data_from_numpy(their(datatype), binary_data=datatype in ("FP16", "BF16") or index % 2 == 0)
            inputs.append(tensor)
        body, length = triton.InferenceServerClient.generate_request_body(
            inputs, outputs=outputs, request_id="7", priority=2, timeout=1000, parameters={"k": "v"}
        )
        for codec in (RestCodec(), RestCodec()):
            request = codec.decode_request(body, model_name="m", json_length=length)
            assert (request.id, request.parameters["timeout"], request.parameters["priority"]) == ("7", 1000, 2)
            assert [dict(output.parameters) for output in request.outputs] == [{"binary_data": True}, {"binary_data": False}]
            for tensor in request.inputs:
                same(tensor.data, ARRAYS[tensor.datatype])
            codec._kernel = None

        # Nothing asked for: tritonclient then asks for raw outputs by binary_data_output.
        body, length = triton.InferenceServerClient.generate_request_body(inputs)
        request = RestCodec().decode_request(body, model_name="m", json_length=length)
        assert request.binary
        encoded = RestCodec().encode_response(InferResponse("m", TENSORS, "1", "7"), request)
        result = triton.InferenceServerClient.parse_response_body(encoded.to_bytes(), header_length=encoded.json_length)
        assert result.get_response()["id"] == "7"
        for tensor in TENSORS:
            same(result.as_numpy(tensor.name), tensor.data)

        plain = [tensor for tensor in TENSORS if tensor.datatype not in ("BF16", "BYTES")]
        encoded = RestCodec().encode_response(InferResponse("m", plain), InferRequest("m", []))
        result = triton.InferenceServerClient.parse_response_body(encoded.to_bytes())
        for tensor in plain:
            same(result.as_numpy(tensor.name), tensor.data)
        """,
    )


@pytest.mark.slow  # a process
def test_tritons_raw_form_of_strings_and_half_floats_is_ours():
    run(
        "tritonclient",
        """
        from tritonclient import utils

        assert utils.serialize_byte_tensor(ARRAYS["BYTES"]).item() == encode(ARRAYS["BYTES"], "BYTES")
        same(utils.deserialize_bytes_tensor(encode(ARRAYS["BYTES"], "BYTES")).reshape(2, 3), ARRAYS["BYTES"])
        assert their("BF16").tobytes() == encode(ARRAYS["BF16"], "BF16")
        import ml_dtypes
        from serinus.protocol.datatypes import datatype_of
        assert datatype_of(their("BF16").dtype) == "BF16"
        assert encode(their("BF16"), "BF16") == encode(ARRAYS["BF16"], "BF16")
        wide = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
        wide = wide[np.isfinite(wide)]
        with np.errstate(over="ignore"):
            assert wide.astype(ml_dtypes.bfloat16).tobytes() == encode(wide, "BF16")
        """,
    )


@pytest.mark.slow  # a process
def test_tritons_grpc_messages_and_ours_are_the_same_bytes():
    run(
        "tritonclient",
        """
        import tritonclient.grpc as triton
        from tritonclient.grpc import service_pb2

        inputs = []
        for datatype in ARRAYS:
            tensor = triton.InferInput(datatype.lower(), [2, 3], datatype)
            tensor.set_data_from_numpy(their(datatype))
            inputs.append(tensor)
        theirs = service_pb2.ModelInferRequest(model_name="m", model_version="2", id="7")
        for tensor in inputs:
            theirs.inputs.append(tensor._get_tensor())
            theirs.raw_input_contents.append(tensor._get_content())
        theirs.parameters["p"].double_param = 0.5
        theirs.parameters["u"].uint64_param = 2**63
        request = proto_codec.decode_request(theirs.SerializeToString())
        assert (request.id, request.model_version, request.binary, request.parameters) == ("7", "2", True, {"p": 0.5, "u": 2**63})
        for tensor in request.inputs:
            same(tensor.data, ARRAYS[tensor.datatype])
        assert service_pb2.ModelInferRequest.FromString(proto_codec.encode_request(request)) == theirs

        message = proto_codec.encode_response(InferResponse("m", TENSORS, "1", "7"), request)
        result = triton.InferResult(service_pb2.ModelInferResponse.FromString(message))
        for tensor in TENSORS:
            same(result.as_numpy(tensor.name), tensor.data)

        shared = [name for name in vars(pb) if name[:1].isupper() and hasattr(service_pb2, name)]
        assert len(shared) > 30
        for name in shared:
            ours, their = getattr(pb, name), getattr(service_pb2, name)
            if not hasattr(ours, "DESCRIPTOR") or not hasattr(ours.DESCRIPTOR, "fields_by_name"):
                continue
            for field, descriptor in ours.DESCRIPTOR.fields_by_name.items():
                other = their.DESCRIPTOR.fields_by_name.get(field)
                if other is None:  # what KServe and the protocol have and Triton has not
                    assert (name, field) in {
                        ("ModelMetadataResponse", "properties"),
                        ("RepositoryModelLoadResponse", "model_name"), ("RepositoryModelLoadResponse", "isLoaded"),
                        ("RepositoryModelUnloadResponse", "model_name"), ("RepositoryModelUnloadResponse", "isUnloaded"),
                    }, (name, field)
                    continue
                for fact in ("number", "type", "is_repeated"):
                    assert getattr(descriptor, fact) == getattr(other, fact), (name, field, fact)
        """,
    )


@pytest.mark.slow
def test_kserves_messages_and_bodies_and_ours_read_each_other():
    run(
        "kserve",
        """
        from kserve import InferInput, InferRequest as Theirs, InferResponse as TheirResponse
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_pb

        names = [name for name in ARRAYS if name != "BF16"]
        for binary in (True, False):
            inputs = []
            for name in names:
                tensor = InferInput(name.lower(), [2, 3], name)
                tensor.set_data_from_numpy(ARRAYS[name], binary_data=binary or name == "FP16")
                inputs.append(tensor)
            body, length = Theirs("m", inputs, request_id="7").to_rest()
            if length is None:
                body = json.dumps(body).encode()
            request = RestCodec().decode_request(body, model_name="m", json_length=length)
            assert request.id == "7"
            for tensor in request.inputs:
                same(tensor.data, ARRAYS[tensor.datatype])

            ours = InferRequest("m", [tensor for tensor in TENSORS if tensor.datatype in names])
            encoded = RestCodec().encode_request(ours, binary=binary)
            if binary:
                found = Theirs.from_bytes(encoded.to_bytes(), encoded.json_length, "m")
                for tensor in found.inputs:
                    if tensor.datatype != "BYTES":  # kserve keeps text, we bytes
                        same(tensor.as_numpy(), ARRAYS[tensor.datatype])

        typed = [name for name in names if name != "FP16"]
        inputs = []
        for name in typed:
            tensor = InferInput(name.lower(), [2, 3], name)
            tensor.set_data_from_numpy(ARRAYS[name], binary_data=False)
            inputs.append(tensor)
        message = Theirs("m", inputs, request_id="7").to_grpc()
        request = proto_codec.decode_request(message.SerializeToString())
        assert request.id == "7" and request.binary is False
        for tensor in request.inputs:
            same(tensor.data, ARRAYS[tensor.datatype])
        answer = proto_codec.encode_response(InferResponse("m", request.inputs, id="7"), request)
        found = TheirResponse.from_grpc(kserve_pb.ModelInferResponse.FromString(answer))
        for tensor in found.outputs:
            if tensor.datatype != "BYTES":
                same(tensor.as_numpy(), ARRAYS[tensor.datatype])

        load = kserve_pb.RepositoryModelLoadRequest(model_name="m")
        ours = pb.RepositoryModelLoadRequest.FromString(load.SerializeToString())
        assert proto_codec.decode_repository_parameters(ours) == ("m", {})
        reply = pb.RepositoryModelLoadResponse(model_name="m", isLoaded=True).SerializeToString()
        assert kserve_pb.RepositoryModelLoadResponse.FromString(reply).isLoaded
        """,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "module"), [("tritonclient", "tritonclient.grpc"), ("kserve", "kserve.protocol.grpc.grpc_predict_v2_pb2")]
)
def test_our_messages_live_beside_the_peers_that_were_there_first(peer: str, module: str):
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    # The tests above import ours first, and all of the peer; here it is about its messages alone, which take no time to import.
    imports = f"import {module}; import serinus.protocol._open_inference_pb2"
    bare = "from bare_package import make_bare; make_bare('kserve'); " if peer == "kserve" else ""
    found = subprocess.run([sys.executable, "-c", bare + imports], capture_output=True, text=True, cwd=SUPPORT)
    assert found.returncode == 0, found.stderr[-2000:]
