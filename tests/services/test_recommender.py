"""The recommender whole: trained, behind the data plane, and as a canary behind the real gateway."""

from __future__ import annotations

import collections
import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import recommender_support as support
from deferred import Deferred
from depth import only_deep
from serinus import InferRequest, Tensor
from serinus.errors import InvalidInput
from serinus.loading import settings_from_directory
from serinus.testing import InMemoryClient

torch = Deferred("torch")

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


with_models = pytest.mark.slow  # importing PyTorch and training both models takes several seconds


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recommender")
    support.train(folder)
    return folder


def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> InMemoryClient:
    """The fused form, as `serinus serve --class torch_server --transformer recommender_features` makes it."""
    from serinus.dataplane.plane import Plane
    from serinus.dataplane.registry import Registry
    from serinus.hosts import build_model

    monkeypatch.setenv("CATALOGUE_DIR", str(folder))
    [settings] = settings_from_directory(folder, implementation="torch_server")
    client = InMemoryClient(settings)
    client.plane = Plane(Registry(lambda one: build_model(one, transformer="recommender_features")))
    return client


@with_models
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_versions_recommend_what_their_modules_score_highest(
    models: Path, version: str, monkeypatch: pytest.MonkeyPatch
):
    ratings = support.ratings()
    with served(models / version, monkeypatch) as client:
        found = client.infer({"user_id": np.array([103])}, parameters={"k": 5})
        behind = client.metadata.parameters["model"]
        assert behind["batching"] == "joined", behind["batching_reason"]
    from recommender_features.catalogue import Catalogue
    from recommender_features.features import candidates, model_inputs

    catalogue = Catalogue.load(models / version)
    offered = candidates(catalogue, np.array([3]), exclude_seen=True)
    module = torch.export.load(str(models / version / "model.pt2")).module()
    inputs = model_inputs(catalogue, np.array([3]), offered)
    scores = module(*(torch.from_numpy(np.ascontiguousarray(a)) for a in inputs.values())).detach().numpy()[0]
    scores[offered[0] == 0] = -np.inf
    best = np.argsort(-scores)[:5]
    assert found["item_id"][0].tolist() == ratings.item_ids[best].tolist()
    assert found["score"][0] == pytest.approx(scores[best], rel=1e-5)
    assert found["title"][0].tolist() == [ratings.titles[index].encode() for index in best]
    assert found["source"].tolist() == [b"model"]
    seen = set(ratings.item_ids[ratings.items[ratings.users == 3] - 1].tolist())
    assert not seen & set(found["item_id"][0].tolist())


@with_models
def test_unknown_users_get_what_most_people_liked_and_are_told_so(models: Path, monkeypatch: pytest.MonkeyPatch):
    ratings = support.ratings()
    liked = np.bincount(ratings.items[ratings.stars >= 4], minlength=support.ITEMS + 1)[1:]
    popular = ratings.item_ids[np.argsort(-liked, kind="stable")[:3]].tolist()
    with served(models / "v1", monkeypatch) as client:
        mixed = client.infer({"user_id": np.array([b"nobody", b"101", b"-4"], object)}, parameters={"k": 3})
        alone = client.infer({"user_id": np.array([b"nobody"], object)}, parameters={"k": 3})
        known = client.infer({"user_id": np.array([b"101"], object)}, parameters={"k": 3})
    assert mixed["source"].tolist() == [b"popular", b"model", b"popular"]
    assert mixed["item_id"][0].tolist() == mixed["item_id"][2].tolist() == alone["item_id"][0].tolist() == popular
    assert mixed["item_id"][1].tolist() == known["item_id"][0].tolist()


@with_models
def test_seen_items_come_back_where_they_may(models: Path, monkeypatch: pytest.MonkeyPatch):
    with served(models / "v2", monkeypatch) as client:
        everything = client.infer({"user_id": np.array([100])}, parameters={"k": 100, "exclude_seen": False})
        unseen = client.infer({"user_id": np.array([100])}, parameters={"k": 100})
    assert np.sum(everything["item_id"] >= 0) == support.ITEMS
    assert np.sum(unseen["item_id"] >= 0) == support.ITEMS - 12


@with_models
def test_requests_of_one_moment_get_each_their_own_users(models: Path, monkeypatch: pytest.MonkeyPatch):
    with served(models / "v2", monkeypatch) as client:
        alone = [client.infer({"user_id": np.array([100 + n])})["item_id"].tolist() for n in range(support.USERS)]
        requests = [
            InferRequest("recommender", [Tensor.of("user_id", np.array([100 + n]))]) for n in range(support.USERS)
        ]
        together = client.together(*requests, InferRequest("recommender", [Tensor.of("x", np.array([1]))]))
    assert isinstance(together.pop(), InvalidInput)
    assert [next(t for t in one.outputs if t.name == "item_id").data.tolist() for one in together] == alone


@with_models
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_rest_grpc_and_v1_say_the_same_and_name_the_version(
    models: Path, version: str, monkeypatch: pytest.MonkeyPatch
):
    from serinus.protocol import proto_codec

    with served(models / version, monkeypatch) as client:
        body = {
            "inputs": [{"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["105"]}],
            "parameters": {"k": 4},
        }
        status, content, _ = client.rest(json.dumps(body).encode())
        assert status == 200, content
        rest = json.loads(content)
        request = InferRequest("recommender", [Tensor.of("user_id", np.array([b"105"], object))], parameters={"k": 4})
        code, message = client.grpc(proto_codec.encode_request(request), headers={"content-type": "application/grpc"})
        assert code == 0, message
        rpc = proto_codec.decode_response(message)
        status, v1 = client.rest_v1(json.dumps({"instances": [{"user_id": 105}], "k": 4}).encode())
        assert status == 200, v1
        v1 = json.loads(v1) if isinstance(v1, bytes) else v1
    ids = next(o["data"] for o in rest["outputs"] if o["name"] == "item_id")
    assert rest["model_version"] == rpc.model_version == v1["model_version"] == version
    assert np.ravel(rpc.output("item_id").data).tolist() == ids
    assert [item["item_id"] for item in v1["predictions"][0]["items"]] == ids
    assert v1["predictions"][0]["items"][0]["title"].startswith("Film é ")


@with_models
@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({"inputs": []}, "'inputs' is empty", id="no input"),
        pytest.param(
            {"inputs": [{"name": "user", "datatype": "INT64", "shape": [1], "data": [1]}]},
            "inputs user came",
            id="another input",
        ),
        pytest.param(
            {"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [1]}], "parameters": {"k": "x"}},
            "parameter 'k': 'x' came",
            id="k in words",
        ),
        pytest.param(
            {
                "inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [1]}],
                "outputs": [{"name": "films"}],
            },
            "films",
            id="an output that is none",
        ),
    ],
)
def test_bad_requests_are_answered_400_with_the_reason(models: Path, body, message, monkeypatch: pytest.MonkeyPatch):
    with served(models / "v1", monkeypatch) as client:
        status, content, _ = client.rest(json.dumps(body).encode())
    assert status == 400
    assert message in json.loads(content)["error"]


@with_models
def test_without_titles_ids_are_answered_and_the_lack_is_said(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(models / "v1", tmp_path / "v1")
    (tmp_path / "v1" / "titles.json").unlink()
    with served(tmp_path / "v1", monkeypatch) as client:
        answer = client.request(InferRequest("recommender", [Tensor.of("user_id", np.array([100]))]))
        status, v1 = client.rest_v1(b'{"instances": [100]}')
    assert answer.parameters["titles"].startswith("missing: titles.json")
    assert {*np.ravel(answer.output("title").data).tolist()} == {b""}
    assert np.all(answer.output("item_id").data >= 0)
    v1 = json.loads(v1) if isinstance(v1, bytes) else v1
    assert status == 200
    assert v1["predictions"][0]["items"][0]["title"] is None
    assert v1["titles"].startswith("missing")


@with_models
def test_the_example_request_is_answered_in_the_shape_of_the_example_response(
    models: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = json.loads((support.SERVICE / "response.json").read_text())
    with served(models / "v1", monkeypatch) as client:
        status, content, _ = client.rest((support.SERVICE / "request.json").read_bytes())
    found = json.loads(content)
    assert status == 200
    assert (found["id"], found["model_version"]) == (wanted["id"], wanted["model_version"])
    pick = lambda answer: [(o["name"], o["datatype"], o["shape"]) for o in answer["outputs"]]  # noqa: E731 # used twice, here
    assert pick(found) == pick(wanted)


FOLDERS = ["knative/v1", "knative/canary", "standard"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_manifests_keep_kserves_rules_without_a_warning(folder: str):
    from serinus.manifests.reading import check

    assert [str(problem) for problem in check([support.SERVICE / folder]).problems] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_predictor_finds_its_own_version_on_this_machine(folder: str):
    from serinus.local.plan.plan_loader import load
    from serinus.local.plan.planner import PlanOptions

    loaded = load(support.SERVICE / folder, (), PlanOptions())
    assert not loaded.errors
    [service] = loaded.services
    found = {}
    for track in (service.stable, *service.canaries):
        [storage] = track.predictor.storage
        base = Path(storage.source.place().file).resolve().parent
        found[track.name] = (base / storage.uri).resolve()
    cache = support.ROOT / ".cache" / "recommender"
    wanted = {"knative/v1": {"": "v1"}, "knative/canary": {"": "v2"}, "standard": {"": "v1", "v2": "v2"}}
    assert found == {name: cache / version for name, version in wanted[folder].items()}
    assert service.canary_percent == (10 if folder == "knative/canary" else None)
    assert [track.percent for track in service.canaries] == ([10] if folder == "standard" else [])


@pytest.mark.slow
@pytest.mark.timeout(300)  # two servers that import PyTorch, one after the other
@only_deep(
    "how each form is routed, tests/local; that a version names itself in its answers, test_rest_grpc_and_v1_say_the_same"
)
@pytest.mark.parametrize("form", ["knative", "standard"])
def test_version_2_gets_its_tenth_behind_the_gateway_and_header_and_body_agree(form: str, models: Path, tmp_path: Path):
    from local_support import all_ready, ask, up

    source = tmp_path / "inferenceservices" / "recommender"
    shutil.copytree(support.SERVICE, source)
    shutil.copytree(support.SERVICE.parent / "components", source.parent / "components")
    for version in ("v1", "v2"):
        shutil.copytree(models / version, tmp_path / ".cache" / "recommender" / version)
    paths = ["knative/v1", "knative/canary"] if form == "knative" else ["standard"]
    with up(tmp_path, *(str(source / path) for path in paths), "--no-watch", ready=False) as running:
        running.wait(lambda s: all_ready(s) and len(s["services"][0]["traffic"]) == 2, "both versions", 240)
        body = json.dumps({"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [104]}]}).encode()
        seen: collections.Counter[tuple[str, str]] = collections.Counter()
        for _ in range(600):
            status, headers, content = ask(
                running.gateway, "/v2/models/recommender/infer", body, host="recommender.default.localhost"
            )
            assert status == 200, content
            seen[headers["x-serinus-revision"], json.loads(content)["model_version"]] += 1
    assert sorted(version for _, version in seen) == ["v1", "v2"]
    hits = sum(count for (_, version), count in seen.items() if version == "v2")
    # Five standard deviations.
    assert abs(hits - 60) <= 5 * math.sqrt(600 * 0.1 * 0.9)
