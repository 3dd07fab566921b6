"""Traces from an image as it is, and signed models in an image that was built with the layer for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import classic_models
from image_support import DOCKER, ROOT, TAG, build, container, docker, has_engine
from otlp_receiver import receiving
from signing_support import key_pair, sign
from waiting import wait_until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not has_engine(), reason="needs a Docker engine"),
]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_an_image_sends_its_traces_to_a_collector(protocol: str):
    with receiving(protocol) as collector:
        environment = {**collector.environment(protocol), "OTEL_SERVICE_NAME": "the-image", **LABELS}
        mounts = {ROOT / "tests/support": "/mnt/models"}
        with container(
            build("serinus_base"), "--model_name", "m", mounts=mounts, environment=environment, host_network=True
        ) as started:
            scores = {"name": "scores", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
            assert started.ask("/v2/models/m/infer", {"inputs": [scores]})["outputs"]
            wait_until(lambda: any(span.kind == "server" for span in collector.spans), limit_s=60)
        (span,) = [span for span in collector.spans if span.kind == "server" and "infer" in span.name.lower()]
        assert span.service == "the-image"


LABELS = {"SERINUS_CLASS": "conformance_models:Labels", "PYTHONPATH": "/mnt/models"}


@pytest.fixture(scope="module")
def signing_image() -> Iterator[str]:
    """The base with the layer `model_signing`, as the README says."""
    tag = f"{TAG}-signing"
    done = subprocess.run(
        ["make", "image/serinus_base", "WITH=model_signing", f"TAG={tag}", f"DOCKER={DOCKER}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    yield f"serinus_base:{tag}"
    docker("rmi", f"serinus_base:{tag}")


def test_an_image_with_the_layer_serves_what_was_signed_and_nothing_else(signing_image: str, tmp_path: Path):
    models, keys = tmp_path / "models", tmp_path / "keys"
    keys.mkdir()
    private, public = key_pair(keys)
    answer = classic_models.write("xgboost", models)
    classic_models.write_record("xgboost", models)
    sign(models, private)
    mounts = {models: "/mnt/models", keys: "/keys"}
    flags = ("--class", "xgboost_server", "--model_name", "m", "--model_dir", "/mnt/models", "--verify_models")
    with container(signing_image, *flags, f"/keys/{public.name}", mounts=mounts) as started:
        metadata = started.ask("/v2/models/m")
        assert metadata["properties"]["digest"].startswith("sha256:")
        data = classic_models.rows(3)
        tensor = {**metadata["inputs"][0], "shape": list(data.shape), "data": data.reshape(-1).tolist()}
        classic_models.expected(answer, started.ask("/v2/models/m/infer", {"inputs": [tensor]})["outputs"][0]["data"])
    (models / "model.ubj").write_bytes((models / "model.ubj").read_bytes() + b" ")
    with container(signing_image, *flags, f"/keys/{public.name}", mounts=mounts, ready=None) as refused:
        assert docker("wait", refused.id) != "0"
        assert "altered since it was signed" in refused.logs()


def test_an_image_without_the_layer_says_what_is_missing(tmp_path: Path):
    (tmp_path / "key.pub").write_text("")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.sig").write_text("{}")
    mounts = {tmp_path: "/mnt/models"}
    flags = ("--class", "xgboost_server", "--model_name", "m", "--model_dir", "/mnt/models/models")
    with container(
        build("serinus_base"), *flags, "--verify_models", "/mnt/models/key.pub", mounts=mounts, ready=None
    ) as refused:
        assert docker("wait", refused.id) != "0"
        assert "--verify_models needs the package model-signing" in refused.logs()
