"""Edges of a plan that no service of the examples comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serinus.local.plan.arm_choice import hash_filter
from serinus.local.plan.plan_loader import _is_kserve
from serinus.local.plan.server_defaults import _tracing_arguments, with_server_defaults
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.serving_runtimes import parse_runtime


def made(server: str | None, protocol: str = "", *, has_storage: bool = True) -> tuple[dict[str, str], Any]:
    """Labels that are added to a service, and the container of its model, where its runtime says that it is such a server."""
    model = {"modelFormat": {"name": "xgboost"}, **({"protocolVersion": protocol} if protocol else {})}
    values = (
        ("serving.kserve.io/v1beta1", "InferenceService", {}, {"predictor": {"model": model}}),
        (
            "serving.kserve.io/v1alpha1",
            "ServingRuntime",
            {} if server is None else {"serving.kserve.io/server-type": server},
            {
                "supportedModelFormats": [{"name": "xgboost"}],
                "containers": [{"name": "kserve-container", "image": "x"}],
            },
        ),
    )
    service, runtime = load_text(
        yaml.safe_dump_all(
            {"apiVersion": version, "kind": kind, "metadata": {"name": "a", "annotations": annotations}, "spec": spec}
            for version, kind, annotations, spec in values
        ),
        "a.yaml",
    )
    parsed = parse_inference_service(service)
    assert parsed.predictor.model is not None
    after, container = with_server_defaults(
        parsed, parsed.predictor.model, parse_runtime(runtime), has_storage=has_storage
    )
    return dict(after.labels), container.container


@pytest.mark.parametrize(
    ("server", "protocol", "label"),
    [
        ("torchserve", "", {"serviceEnvelope": "kserve"}),
        ("torchserve", "v1", {"serviceEnvelope": "kserve"}),
        ("torchserve", "v2", {"serviceEnvelope": "kservev2"}),
        ("torchserve", "grpc-v2", {"serviceEnvelope": "kservev2"}),
        ("mlserver", "", {"modelClass": "mlserver_xgboost.XGBoostModel"}),
        ("tritonserver", "", {}),
        ("aaa", "", {}),
        ("zzz", "", {}),
        (None, "", {}),
    ],
)
def test_labels_are_those_of_the_servers_that_read_them(server: str | None, protocol: str, label: dict[str, str]):
    labels, container = made(server, protocol)
    assert labels == label
    names = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    if server == "torchserve":
        assert names == {"PROTOCOL_VERSION": protocol or "v1"}
    elif server == "mlserver":
        assert names == {"MLSERVER_MODEL_NAME": "a", "MLSERVER_MODEL_URI": "/mnt/models"}
    else:
        assert names == {}


@pytest.mark.parametrize("server", ["tritonserver", "mlserver", "torchserve", "zzz", None])
@pytest.mark.parametrize("has_storage", [True, False])
def test_a_triton_without_a_model_loads_none(server: str | None, has_storage: bool):
    _, container = made(server, has_storage=has_storage)
    is_told = "--model-control-mode=explicit" in container.get("args", [])
    assert is_told is (server == "tritonserver" and not has_storage)


@pytest.mark.parametrize(
    ("server", "flags"),
    [
        ("vllmserver", ["collect-detailed-traces", "otlp-traces-endpoint"]),
        ("tritonserver", ["trace-config"]),
        ("", []),
        ("mlserver", []),
        ("zzz", []),
    ],
)
def test_only_servers_that_read_no_variables_are_given_flags_of_tracing(server: str, flags: list[str]):
    assert sorted(_tracing_arguments("m", "http://c:4317", server)) == flags


def test_the_filter_that_hashes_keys_is_off_but_for_the_routes_that_turn_it_on():
    found = hash_filter()
    assert found["disabled"] is True
    assert found["typed_config"]["@type"].endswith("lua.v3.Lua")


def test_kserve_is_its_own_runtimes_unless_a_path_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert _is_kserve(Path("kserve"))
    assert not _is_kserve(Path("other"))
    (tmp_path / "kserve").mkdir()
    assert not _is_kserve(Path("kserve"))
