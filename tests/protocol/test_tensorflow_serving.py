"""What TensorFlow Serving's API tells of a model, by its documents."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from serinus.protocol.datatypes import DATATYPES
from serinus.protocol.documents.tensorflow_serving import metadata_document, version_status
from serinus.protocol.types import ModelMetadata, Signature, TensorSpec

SUPPORT = Path(__file__).parents[1] / "support"
PAIR = Signature((TensorSpec("x", "FP32", (-1, 2)), TensorSpec("t", "BYTES", ())), (TensorSpec("y", "FP16", (-1,)),))


def test_a_model_without_signatures_has_the_default_one():
    metadata = ModelMetadata("m", (), "p", PAIR.inputs, PAIR.outputs)
    assert metadata_document(metadata, "") == {
        "model_spec": {"name": "m", "signature_name": "", "version": "0"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {
                            "x": {
                                "dtype": "DT_FLOAT",
                                "tensor_shape": {
                                    "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
                                    "unknown_rank": False,
                                },
                                "name": "x",
                            },
                            "t": {
                                "dtype": "DT_STRING",
                                "tensor_shape": {"dim": [], "unknown_rank": False},
                                "name": "t",
                            },
                        },
                        "outputs": {
                            "y": {
                                "dtype": "DT_HALF",
                                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                                "name": "y",
                            }
                        },
                        "method_name": "tensorflow/serving/predict",
                        "defaults": {},
                    }
                }
            }
        },
    }


READ = """
import json, sys
from bare_package import make_bare
from google.protobuf import json_format
make_bare("tensorflow")
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

def read(told):
    found = json_format.ParseDict(told, meta_graph_pb2.SignatureDef())
    kinds = {name: types_pb2.DataType.Name(tensor.dtype) for name, tensor in found.inputs.items()}
    sizes = {name: [dim.size for dim in tensor.tensor_shape.dim] for name, tensor in found.outputs.items()}
    return [found.method_name, kinds, sizes]

print(json.dumps([read(told) for told in json.load(sys.stdin)]))
"""
"""The messages alone: TensorFlow takes seconds of CPU to import."""


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed")
def test_tensorflows_own_messages_read_it():
    """SignatureDef of tensorflow/core/protobuf/meta_graph.proto, with a tensor of every datatype."""
    every = tuple(TensorSpec(name, name, (-1, 3)) for name in sorted(DATATYPES))
    metadata = ModelMetadata("m", ("7",), "p", (), (), signatures={"a": PAIR, "b": Signature(every, every)})
    document = metadata_document(metadata, "7")
    assert document["model_spec"]["version"] == "7"
    told = document["metadata"]["signature_def"]["signature_def"]
    assert list(told) == ["a", "b"]
    words, sent = [sys.executable, "-c", READ], json.dumps([told["a"], told["b"]])
    done = subprocess.run(words, input=sent, capture_output=True, text=True, check=True, cwd=SUPPORT)
    (method, inputs, _), (_, kinds, sizes) = json.loads(done.stdout)
    assert (method, sorted(inputs)) == ("tensorflow/serving/predict", ["t", "x"])
    assert kinds == {name: tensor["dtype"] for name, tensor in told["b"]["inputs"].items()}
    assert sizes["FP32"] == [-1, 3]


@pytest.mark.parametrize(
    ("state", "told"),
    [("LOADING", "LOADING"), ("READY", "AVAILABLE"), ("UNLOADING", "UNLOADING"), ("UNAVAILABLE", "END")],
)
def test_a_version_has_a_state_and_an_error_only_where_it_failed(state: str, told: str):
    entry = {"name": "m", "version": "3", "state": state, "reason": "no such file"}
    ok, failed = {"error_code": "OK", "error_message": ""}, {"error_code": "UNKNOWN", "error_message": "no such file"}
    assert version_status(entry, failed=False) == {"version": "3", "state": told, "status": ok}
    assert version_status(entry, failed=True)["status"] == failed
    assert version_status({"name": "m", "state": state}, failed=False)["version"] == "0"
