"""Plans: what KServe's controller would inject, which runtime it would choose, who gets which share, where models are."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
from pathlib import Path

import pytest

from local_support import container, manifest
from serinus.errors import ConfigError
from serinus.local.plan import envoy_config as envoy
from serinus.local.plan.container_environment import ConfigData, config_data, expand
from serinus.local.plan.deployment_plan import PlanOptions, ServicePlan, service_hosts
from serinus.local.plan.image_commands import Command, resolve_image
from serinus.local.plan.planner import Planner
from serinus.local.plan.port_binding import Ports, ProcessPlan, bind, set_flag
from serinus.local.plan.rollout import Rollout, Share, advance, shares, standard_shares
from serinus.local.run.storage import fetch, parse_mounts
from serinus.manifests.containers import parse_container
from serinus.manifests.documents import Source, load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems
from serinus.manifests.quantities import parse_quantity
from serinus.manifests.runtime_selection import merge_containers, runtime_containers, select_runtime
from serinus.manifests.serving_runtimes import parse_runtime

PORTS = Ports(20001, 20002, 20003)


def planned(text: str, *, runtimes: str = "", images: dict[str, tuple[str, ...]] | None = None) -> ServicePlan:
    problems = Problems()
    documents = load_text(text, "isvc.yaml")
    known = [parse_runtime(document) for document in load_text(runtimes, "runtimes.yaml")]
    options = PlanOptions(images=images or {})
    plan = Planner(known, [], config_data(documents), options, problems).plan(parse_inference_service(documents[0]))
    assert plan is not None, problems.all
    return plan


def launched(plan: ServicePlan, *, folders: dict[str, Path] | None = None) -> tuple[ProcessPlan, ...]:
    track = plan.stable
    ports = [Ports(20001 + 10 * i, 20002 + 10 * i, 20003 + 10 * i) for i in range(len(track.predictor.containers))]
    return bind(track.predictor, ports=ports, folders=folders or {}, revision="fraud-predictor-00001")


def test_a_transformer_gets_the_arguments_that_the_controller_injects_and_none_twice() -> None:
    plan = planned(manifest(transformer=["--predictor_protocol=v2"]))
    assert plan.stable.transformer is not None
    (launch,) = bind(plan.stable.transformer, ports=[PORTS], folders={}, revision="r", predictor="127.0.0.1:20009")
    words = " ".join(launch.argv)
    assert "--model_name fraud" in words
    assert "--predictor_host 127.0.0.1:20009" in words
    assert "--http_port 20001" in words
    assert launch.env["INFERENCE_SERVICE_NAME"] == "fraud"
    assert "--workers" not in words
    text = manifest(transformer=["--model_name=x", "--predictor_host=fraud-predictor.default:80", "--http_port=8080"])
    text = text.replace("  transformer:\n", "  transformer:\n    containerConcurrency: 3\n")
    given = planned(text).stable.transformer
    assert given is not None
    (launch,) = bind(given, ports=[PORTS], folders={}, revision="r", predictor="127.0.0.1:20009")
    assert sum("model_name" in word for word in launch.argv) == 1
    assert {"--predictor_host=127.0.0.1:20009", "--http_port=20001"} <= set(launch.argv)
    assert launch.argv[-2:] == ("--workers", "3")
    foreign = planned(manifest(transformer=["--predictor_host=other.example:81"])).stable.transformer
    assert foreign is not None
    (launch,) = bind(foreign, ports=[PORTS], folders={}, revision="r", predictor="127.0.0.1:20009")
    assert "--predictor_host=other.example:81" in launch.argv


def test_a_predictor_gets_no_arguments_but_its_ports_and_its_model_folder(tmp_path: Path) -> None:
    text = manifest("--model_dir=/mnt/models/a", "--other=/mnt/modelsx", "--x=$(WHERE)/$(NOBODY)/$$(WHERE)")
    text = text.replace("value: v2}]", "value: v2}, {name: WHERE, value: /mnt/models}]")
    (launch,) = launched(planned(text), folders={"/mnt/models": tmp_path})
    assert launch.argv[-3:] == (
        f"--model_dir={tmp_path}/a",
        "--other=/mnt/modelsx",
        f"--x={tmp_path}/$(NOBODY)/$(WHERE)",
    )
    assert "--http_port=20001" in launch.argv
    assert "--grpc_port=20002" in launch.argv
    assert launch.env["K_REVISION"] == launch.env["SERINUS_REVISION"] == "fraud-predictor-00001"
    assert launch.env["PROTOCOL"] == "v2"
    assert launch.env["SERINUS_HOST"] == "127.0.0.1"


@pytest.mark.parametrize("share", ["trafficPercent: null, ", ""])
def test_a_canary_that_says_no_percentage_gets_no_traffic_as_admission_writes_it(share: str) -> None:
    text = manifest("--tag=a").rstrip() + f"\n  canary:\n  - {{{share}predictor: {{name: v2}}}}\n"
    (document,) = load_text(text, "isvc.yaml")
    assert [(canary.predictor.name, canary.percent) for canary in parse_inference_service(document).canaries] == [
        ("v2", 0)
    ]


def test_what_listens_everywhere_in_its_pod_listens_on_loopback_here() -> None:
    folder = Path(__file__).parents[2] / "inferenceservices" / "fraud"
    runtime = (folder / "runtime" / "servingruntime.yaml").read_text()
    (launch,) = launched(planned((folder / "fused" / "inferenceservice.yaml").read_text(), runtimes=runtime))
    assert "--host=0.0.0.0" in runtime
    assert [word for word in launch.argv if "host" in word] == ["--host=127.0.0.1"]


def test_a_collocated_transformer_finds_its_neighbour_on_the_neighbours_new_port() -> None:
    text = manifest()
    side = (
        container("--predictor_host=localhost:8081", name="transformer-container")
        .replace("8080", "8000")
        .replace("=8081]", "=8001]")
    )
    plan = planned(text + "      " + side)
    predictor, transformer = launched(plan)
    assert plan.stable.predictor.entry == 1
    assert "--predictor_host=127.0.0.1:20002" in transformer.argv
    assert {"--http_port=20011", "--grpc_port=20012"} <= set(transformer.argv)
    assert {"--http_port=20001", "--grpc_port=20002"} <= set(predictor.argv)


def test_the_same_template_is_the_same_revision_and_traffic_is_no_part_of_it() -> None:
    features = ["--predictor_protocol=v2"]
    one = planned(manifest("--tag=a", transformer=features)).stable
    canary = planned(manifest("--tag=a", percent=10, transformer=features)).stable
    other = planned(manifest("--tag=b", transformer=features)).stable
    assert one.predictor.digest == canary.predictor.digest != other.predictor.digest
    assert one.entry.digest == canary.entry.digest
    assert one.entry.digest != other.entry.digest, "each predictor revision has a transformer of its own"
    assert planned(manifest("--tag=a", name="b")).stable.predictor.digest != one.predictor.digest


RUNTIMES = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: wide}
spec:
  supportedModelFormats: [{name: xgboost, autoSelect: true, priority: 9}]
  protocolVersions: [v2]
  containers:
    - name: kserve-container
      image: wide
      args: ["--model_name={{.Name}}", "--zone={{.Labels.zone}}"]
      env: [{name: A, value: "1"}]
---
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: low}
spec:
  supportedModelFormats: [{name: xgboost, autoSelect: true, priority: 1}, {name: onnx}]
  protocolVersions: [v2, grpc-v2]
  containers: [{name: kserve-container, image: low}]
---
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: high}
spec:
  supportedModelFormats: [{name: xgboost, autoSelect: true, priority: 2}]
  protocolVersions: [v2]
  containers: [{name: kserve-container, image: high}]
---
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: idle}
spec:
  disabled: true
  supportedModelFormats: [{name: xgboost, autoSelect: true, priority: 99}]
  containers: [{name: kserve-container, image: idle}]
"""


def _select(model: str, labels: str = "{zone: east}") -> tuple[str | None, str]:
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
        f"metadata: {{name: fraud, labels: {labels}}}\nspec:\n  predictor:\n    model: {model}\n"
    )
    service = parse_inference_service(load_text(text, "isvc.yaml")[0])
    runtimes = [parse_runtime(document) for document in load_text(RUNTIMES, "runtimes.yaml")]
    problems = Problems()
    assert service.predictor.model is not None
    found = select_runtime(service, service.predictor.model, runtimes, [], problems)
    return found.name if found else None, "\n".join(map(str, problems.all))


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        ("{modelFormat: {name: xgboost}, protocolVersion: v2}", "high", ""),
        ("{modelFormat: {name: xgboost}, protocolVersion: grpc-v2}", "low", ""),
        ("{modelFormat: {name: xgboost}}", None, "over protocol v1"),
        ("{modelFormat: {name: xgboost, version: '2'}, protocolVersion: v2}", None, "xgboost version 2"),
        ("{modelFormat: {name: onnx}, protocolVersion: v2}", None, "name it in runtime"),
        ("{modelFormat: {name: onnx}, runtime: low}", "low", ""),
        ("{modelFormat: {name: xgboost}, runtime: wide}", "wide", ""),
        ("{modelFormat: {name: xgboost}, runtime: idle}", None, "is disabled"),
        ("{modelFormat: {name: onnx}, runtime: high}", None, "does not serve onnx"),
        ("{modelFormat: {name: xgboost}, runtime: high, protocolVersion: v1}", None, "does not speak v1"),
        ("{modelFormat: {name: xgboost}, runtime: nobody}", None, "no ServingRuntime is called nobody"),
    ],
)
def test_the_runtime_is_the_one_that_kserve_would_select(model: str, name: str | None, words: str) -> None:
    found, problems = _select(model)
    assert (found, words in problems) == (name, True), problems


def test_the_runtimes_container_takes_the_services_fields_and_placeholders() -> None:
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: fraud, labels: {zone: east}}\n"
        "spec:\n  predictor:\n    model: {modelFormat: {name: xgboost}, runtime: wide, runtimeVersion: '7', args: [--x],"
        " env: [{name: A, value: '2'}, {name: B, value: '3'}]}\n"
    )
    service = parse_inference_service(load_text(text, "isvc.yaml")[0])
    runtime = parse_runtime(load_text(RUNTIMES, "runtimes.yaml")[0])
    problems = Problems()
    assert service.predictor.model is not None
    (found,) = runtime_containers(service, service.predictor.model, runtime, problems)
    assert found.args == ("--model_name=fraud", "--zone=east", "--x")
    assert found.image == "wide:7"
    assert {item.name: item.value for item in found.env} == {"A": "2", "B": "3"}
    assert problems.all == ()
    bare = parse_inference_service(load_text(text.replace(", labels: {zone: east}", ""), "isvc.yaml")[0])
    assert bare.predictor.model is not None
    runtime_containers(bare, bare.predictor.model, runtime, problems)
    assert "set metadata.labels.zone there" in str(problems.all[0])


def test_lists_merge_by_their_key_and_resources_by_name() -> None:
    base = {
        "ports": [{"containerPort": 1, "name": "a"}],
        "resources": {"limits": {"cpu": 1, "memory": 2}},
        "args": ["a"],
    }
    over = {
        "ports": [{"containerPort": 1, "name": "b"}, {"containerPort": 2}],
        "resources": {"limits": {"cpu": 3}},
        "args": ["b"],
    }
    assert merge_containers(base, over) == {
        "ports": [{"containerPort": 1, "name": "b"}, {"containerPort": 2}],
        "resources": {"limits": {"cpu": 3, "memory": 2}},
        "args": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("image", "env"),
    [
        ("xgboost_server", {"SERINUS_CLASS": "xgboost_server"}),
        ("registry:5000/team/xgboost_server:1.2", {"SERINUS_CLASS": "xgboost_server"}),
        ("team/xgboost_server@sha256:00", {"SERINUS_CLASS": "xgboost_server"}),
        (
            "ensemble_server-fraud_features:2",
            {"SERINUS_CLASS": "ensemble_server", "SERINUS_TRANSFORMER": "fraud_features"},
        ),
        ("redis:7", None),
        ("xgboost_server-nobody", None),
        ("", None),
    ],
)
def test_an_image_of_ours_is_the_folder_of_its_name(image: str, env: dict[str, str] | None) -> None:
    apps = {"xgboost_server", "ensemble_server", "fraud_features"}
    problems = Problems()
    value = {"name": "kserve-container", "image": image}
    source = Source(((load_text("a: 1", "f")[0], ()),))
    found = resolve_image(
        parse_container(value, source), {}, problems, find_app=lambda name: name if name in apps else None
    )
    assert (dict(found.env) if isinstance(found, Command) else None) == env
    assert bool(problems.all) == (env is None)


def test_flags_change_in_both_spellings_and_quantities_are_numbers() -> None:
    assert set_flag(["--a_b", "1", "--c=2"], ["a-b"], "9") == (("--a_b", "9", "--c=2"), True)
    assert set_flag(["--a-b=1"], ["a_b"], "9") == (("--a-b=9",), True)
    assert set_flag(["-a", "b"], ["a"], "9") == (("-a", "b"), False)
    assert [parse_quantity(text) for text in ("500m", "2", "1Gi", "x", "1e3")] == [0.5, 2.0, 2.0**30, None, 1000.0]
    assert expand("$(A)$$(A)$(B)", {"A": "x"}) == "x$(A)$(B)"
    assert service_hosts("a", "b", ["{{.Name}}.{{ .Namespace }}.x"]) == ("a.b.x",)


def test_references_are_resolved_from_the_manifests_or_told() -> None:
    text = manifest().replace(
        "env: [{name: PROTOCOL, value: v2}]",
        "env: [{name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu}}},"
        " {name: WORD, valueFrom: {secretKeyRef: {name: s, key: word}}},"
        " {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}},"
        " {name: NONE, valueFrom: {configMapKeyRef: {name: c, key: k, optional: true}}}]",
    )
    secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {word: aGVsbG8=}\n"
    (launch,) = launched(planned(text + secret))
    assert (launch.env["CPU"], launch.env["WORD"], launch.env["NS"]) == ("1", "hello", "default")
    assert "NONE" not in launch.env
    problems = Problems()
    service = parse_inference_service(load_text(text, "isvc.yaml")[0])
    assert Planner([], [], ConfigData(), PlanOptions(), problems).plan(service) is None
    assert "key word of Secret s is in no manifest" in str(problems.all[0])


def test_a_rollout_follows_knative_through_canary_promotion_and_rollback() -> None:
    books = advance(Rollout(), "a", 10)
    assert shares(books, 10) == (Share("a", 100, "latest"),)
    books = advance(books, "b", 10)
    assert shares(books, 10) == (Share("b", 10, "latest"), Share("a", 90, "prev"))
    promoted = advance(books, "b", None)
    assert promoted == Rollout("b", "b", "a")
    assert shares(promoted, None) == (Share("b", 100, "latest"),)
    back = advance(promoted, "b", 0)
    assert shares(back, 0) == (Share("b", 0, "latest"), Share("a", 100, "prev"))
    assert shares(advance(back, "c", None), None) == (Share("c", 100, "latest"),)
    assert shares(Rollout(), 10) == ()
    stable = (Share("a", 100, "latest"),)
    assert standard_shares(stable, [("v2", "b", 30), ("v3", "c", 10)]) == (
        Share("a", 60, "latest"),
        Share("b", 30, "v2"),
        Share("c", 10, "v3"),
    )


def test_a_host_without_a_ready_revision_is_503_and_arms_without_weight_are_left_out() -> None:
    hosts = [
        envoy.Host("service:a", ("a.x",), (envoy.Arm("r1", 0), envoy.Arm("r2", 100)), 5.0),
        envoy.Host("service:b", ("b.x",), (), 5.0),
    ]
    (table,) = envoy.routes(hosts)
    first, second, unknown = table["virtual_hosts"]
    clusters = [c["name"] for r in first["routes"] for c in r["route"]["weighted_clusters"]["clusters"]]
    assert clusters == ["r2/grpc", "r2/http"]
    assert second["routes"][0]["direct_response"]["status"] == 503
    assert "a.x, b.x" in unknown["routes"][0]["direct_response"]["body"]["inline_string"]
    assert first["routes"][0]["route"]["retry_policy"]["retry_on"] == "connect-failure"


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


def test_models_are_found_here_fetched_once_and_never_half(tmp_path: Path) -> None:
    served, cache = tmp_path / "served", tmp_path / "cache"
    (served / "m").mkdir(parents=True)
    (served / "m" / "model.json").write_text("{}")
    with tarfile.open(served / "m.tar.gz", "w:gz") as archive:
        archive.add(served / "m" / "model.json", "model.json")
    with tarfile.open(served / "bad.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("../out")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))

    def get(uri: str, **mounts: Path) -> Path:
        return fetch(uri, base=served, cache=cache, mounts={f"pvc://{name}": path for name, path in mounts.items()})

    assert get("m") == served / "m"
    assert get(f"file://{served}/m") == served / "m"
    assert get("pvc://claim/m", claim=served) == served / "m"
    with pytest.raises(ConfigError, match="--mount claim=FOLDER"):
        get("pvc://claim/m")
    with pytest.raises(ConfigError, match="no such file or folder"):
        get("nothing")
    with pytest.raises(ConfigError, match="pip install kserve-storage"):
        get("s3://bucket/m")
    handler = functools.partial(_Files, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        assert (get(f"{base}/m/model.json") / "model.json").read_text() == "{}"
        assert [file.name for file in get(f"{base}/m.tar.gz").iterdir()] == ["model.json"]
        with pytest.raises(ConfigError, match="404"):
            get(f"{base}/none")
        with pytest.raises(ConfigError, match="would leave the folder"):
            get(f"{base}/bad.tar.gz")
        server.shutdown()
    assert (get(f"{base}/m.tar.gz") / "model.json").is_file(), "from the cache: nobody serves it any more"
    assert len(list(cache.iterdir())) == 2
    assert not (tmp_path / "cache" / "out").exists()
    with pytest.raises(ValueError, match="no such folder"):
        parse_mounts(["a=/nowhere"])


@pytest.mark.parametrize(
    ("written", "most", "replicas"),
    [("0", 1, 1), ("0", 5, 1), ("1", 5, 1), ("3", 1, 1), ("3", 2, 2), ("3", 5, 3)],
)
def test_as_many_replicas_as_the_manifest_asks_for_and_the_machine_gives_but_one_at_least(
    written: str, most: int, replicas: int
) -> None:
    text = manifest().replace("  predictor:\n", f"  predictor:\n    minReplicas: {written}\n")
    service = parse_inference_service(load_text(text, "isvc.yaml")[0])
    assert service.predictor.min_replicas == int(written)
    plan = Planner([], [], ConfigData(), PlanOptions(max_replicas=most), Problems()).plan(service)
    assert plan is not None
    assert plan.stable.predictor.replicas == replicas


def test_several_storage_uris_lie_at_their_mount_paths(tmp_path: Path) -> None:
    uris = "    storageUris: [{uri: gs://b/a, mountPath: /mnt/models/a/}, {uri: 's3://c'}]\n"
    text = manifest("--x=/mnt/models/a/m.json", "--y=/mnt/models").replace("  predictor:\n", "  predictor:\n" + uris)
    plan = planned(text)
    storage = plan.stable.predictor.storage
    assert [(item.uri, item.mount_path) for item in storage] == [
        ("gs://b/a", "/mnt/models/a"),
        ("s3://c", "/mnt/models"),
    ]
    assert [item.source.field() for item in storage] == [
        "spec.predictor.storageUris[0].uri",
        "spec.predictor.storageUris[1].uri",
    ]
    (process,) = launched(plan, folders={"/mnt/models": tmp_path / "c", "/mnt/models/a": tmp_path / "a"})
    assert process.argv[-2:] == (f"--x={tmp_path}/a/m.json", f"--y={tmp_path}/c")
    other = planned(text.replace("gs://b/a", "gs://b/z")).stable.predictor
    assert other.digest != plan.stable.predictor.digest, "other files are another revision"


@pytest.mark.parametrize(
    ("annotation", "uri", "expected"),
    [
        ("./models", "gs://b/a", "./models"),
        ("gs://b=./models", "gs://b/a/1", "./models/a/1"),
        ("gs://b/=./models/", "gs://b/a", "./models/a"),
        ("gs://b=./models", "gs://b", "./models"),
        ("gs://b=./models", "gs://bb/a", "gs://bb/a"),
        ("", "gs://b/a", "gs://b/a"),
    ],
)
def test_the_annotation_for_this_machine_stands_in_for_the_storage_uri(
    annotation: str, uri: str, expected: str
) -> None:
    notes = f"  annotations: {{serinus.dev/local-storage-uri: '{annotation}'}}\n"
    text = manifest(annotations=notes).replace("name: PROTOCOL, value: v2}", f"name: STORAGE_URI, value: '{uri}'}}")
    (storage,) = planned(text).stable.predictor.storage
    assert (storage.uri, storage.mount_path) == (expected, "/mnt/models")
