"""The image of all classic formats: each is served as the manifests run it, and a verification record takes a framework's place."""

from __future__ import annotations

from pathlib import Path

import pytest

import classic_models
import grpc
from conformance_support import infer_message, values_of
from image_support import Container, build, container, docker, has_engine
from serinus.protocol import _open_inference_pb2 as pb

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not has_engine(), reason="needs a Docker engine"),
]

MODULES = ("xgboost", "lightgbm", "sklearn", "skops", "scipy", "pandas", "catboost", "onnxruntime")


def check(started: Container, answer: object) -> None:
    """Ask over REST and gRPC, and hold the answers against the framework's own."""
    metadata = started.ask("/v2/models/m")
    data = classic_models.rows(3)
    tensor = {
        "name": metadata["inputs"][0]["name"],
        "datatype": metadata["inputs"][0]["datatype"],
        "shape": list(data.shape),
        "data": data.reshape(-1).tolist(),
    }
    found = started.ask("/v2/models/m/infer", {"inputs": [tensor]})
    classic_models.expected(answer, found["outputs"][0]["data"])  # type: ignore[arg-type] # an array
    with grpc.insecure_channel(f"127.0.0.1:{started.grpc_port}") as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        reply = pb.ModelInferResponse.FromString(method(infer_message("m", [tensor]).SerializeToString(), timeout=60))
    classic_models.expected(answer, values_of(reply))  # type: ignore[arg-type] # an array


@pytest.mark.parametrize("name", classic_models.FORMATS)
def test_it_serves_each_format_without_rights_and_by_its_content(name: str, tmp_path: Path):
    answer = classic_models.write(name, tmp_path / "made")
    (file,) = (tmp_path / "made").iterdir()
    (tmp_path / "models").mkdir()
    file.rename(tmp_path / "models" / "model")  # as a storage that keeps no suffix
    with container(
        build("classic_server"), "--model_name", "m", mounts={tmp_path / "models": "/mnt/models"}
    ) as started:
        check(started, answer)
        assert docker("exec", started.id, "id", "-u") == "1000"
        assert docker("exec", started.id, "sh", "-c", "grep CapEff /proc/1/status").split()[1].strip("0") == ""
        assert docker("inspect", "-f", "{{.HostConfig.ReadonlyRootfs}}", started.id) == "true"


@pytest.mark.parametrize("name", classic_models.WITH_RECORDS)
def test_a_model_with_a_record_is_served_by_an_image_that_has_no_framework(name: str, tmp_path: Path):
    answer = classic_models.write(name, tmp_path / "models")
    assert classic_models.write_record(name, tmp_path / "models")
    mounts = {tmp_path / "models": "/mnt/models"}
    flags = ("--class", "classic_server", "--model_name", "m", "--model_dir", "/mnt/models")
    with container(build("serinus_base"), *flags, mounts=mounts) as started:
        packages = docker("exec", started.id, "pip", "list", "--format", "freeze").lower()
        assert not {line.partition("==")[0] for line in packages.splitlines()} & {
            "xgboost", "xgboost-cpu", "lightgbm", "scikit-learn", "skops", "catboost", "scipy", "pandas", "onnxruntime",
        }  # fmt: skip
        check(started, answer)


def test_a_model_with_a_record_is_served_where_the_frameworks_cannot_be_imported(tmp_path: Path):
    """In the image that has them; without the record the same model is refused there, so that the block is seen to hold."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for module in MODULES:
        (blocked / f"{module}.py").write_text(f"raise ImportError('{module} is blocked')\n")
    answer = classic_models.write("catboost cbm", tmp_path / "models")
    image, mounts = build("classic_server"), {tmp_path / "models": "/mnt/models", blocked: "/blocked"}
    environment = {"PYTHONPATH": "/blocked"}
    with container(image, "--model_name", "m", mounts=mounts, environment=environment, ready=None) as refused:
        assert docker("wait", refused.id) != "0"
        assert "catboost is blocked" in refused.logs()
    assert classic_models.write_record("catboost cbm", tmp_path / "models")
    with container(image, "--model_name", "m", mounts=mounts, environment=environment) as started:
        check(started, answer)


def test_without_a_record_an_image_that_lacks_the_framework_says_what_is_missing(tmp_path: Path):
    classic_models.write("catboost cbm", tmp_path / "models")
    mounts = {tmp_path / "models": "/mnt/models"}
    flags = ("--class", "classic_server", "--model_name", "m", "--model_dir", "/mnt/models")
    with container(build("serinus_base"), *flags, mounts=mounts, ready=None) as started:
        docker("wait", started.id)
        assert "catboost" in started.logs()
        assert "Traceback" not in started.logs()
