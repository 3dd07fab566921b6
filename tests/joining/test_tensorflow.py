"""Which SavedModels are batched: each signature by what its own rows do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus import ModelSettings
from serinus.testing import InMemoryClient

tf = Deferred("tensorflow")

pytestmark = [
    pytest.mark.slow,  # importing TensorFlow alone takes ~8 s
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TensorFlow's own
    pytest.mark.timeout(300),
]

WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "dense": (lambda x: tf.nn.softmax(x @ WEIGHTS), ""),
    "attention": (lambda x: tf.linalg.matvec(tf.nn.softmax(x[:, :, None] @ x[:, None, :]), x), ""),
    "cumsum": (lambda x: tf.cumsum(x), "differs from its answer alone"),
    "centred": (lambda x: x - tf.reduce_mean(x, 0), "differs from its answer alone"),
    "sorted": (lambda x: tf.sort(x, axis=0), "differs from its answer alone"),
    "dropout": (lambda x: tf.nn.dropout(tf.tile(x, [1, 8]), 0.5), "answers differ from call to call"),
    "found": (lambda x: tf.boolean_mask(x, x[:, 0] > 0), "output 'y'"),
}


def traced(function: Callable[[Any], Any]) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def answer(x: Any) -> dict[str, Any]:
        return {"y": function(x)}

    return answer


def save(folder: Path, **functions: Callable[[Any], Any]) -> Path:
    module = tf.Module()
    signatures = {}
    for name, function in functions.items():
        signatures[name] = traced(function)
        setattr(module, name, signatures[name])
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_saved_model_is_batched_by_what_its_rows_do(tmp_path, case):
    function, why = FUNCTIONS[case]
    folder = save(tmp_path / "1", serving_default=function)
    with InMemoryClient(ModelSettings(name="m", implementation="tensorflow_server", model_dir=folder)) as client:
        parameters = client.metadata.parameters
        assert (parameters["batching"], client.plane.model_config("m").max_batch_rows) == (
            ("alone", 0) if why else ("joined", 4096)
        )
        assert re.search(why, parameters["batching_reason"])
        assert (folder / "saved_model.pb.batching.verdict.json").is_file()


def test_a_signature_that_fails_is_predicted_alone_beside_one_that_does_not(tmp_path):
    folder = save(tmp_path / "1", serving_default=FUNCTIONS["dense"][0], sums=tf.cumsum)
    with InMemoryClient(ModelSettings(name="m", implementation="tensorflow_server", model_dir=folder)) as client:
        assert client.metadata.parameters["batching"] == "joined"
        assert list(client.model.unbatched_signatures) == ["sums"]
        x = np.ones((3, 4), np.float32)
        assert client.infer({"x": x}, parameters={"signature_name": "sums"})["y"].tolist() == np.cumsum(x, 0).tolist()
