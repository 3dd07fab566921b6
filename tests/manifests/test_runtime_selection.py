"""Which runtime serves a model, as KServe's controller chooses; and what the runtime's container becomes."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.manifests import runtime_selection
from serinus.manifests.documents import Source, load_text
from serinus.manifests.inference_service import InferenceService, ModelSpec, parse_inference_service
from serinus.manifests.problems import Problems
from serinus.manifests.runtime_selection import merge_containers, runtime_containers, select_runtime
from serinus.manifests.serving_runtimes import ServingRuntime, parse_runtime


def service(model: str, metadata: str = "{name: fraud}") -> InferenceService:
    text = (
        f"apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {metadata}\nspec:\n"
        f"  predictor:\n    model: {model}\n"
    )
    return parse_inference_service(load_text(text, "isvc.yaml")[0])


def runtime(
    name: str, formats: str = "[{name: a, autoSelect: true}]", spec: str = "", **metadata: str
) -> ServingRuntime:
    kind = metadata.pop("kind", "ClusterServingRuntime")
    fields = "".join(f", {key}: '{value}'" for key, value in metadata.items())
    text = (
        f"apiVersion: serving.kserve.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}{fields}}}\n"
        f"spec: {{supportedModelFormats: {formats}, containers: [{{name: kserve-container}}]{spec and ', ' + spec}}}\n"
    )
    return parse_runtime(load_text(text, "runtimes.yaml")[0])


A = "{modelFormat: {name: a}}"


def model_of(model: str) -> ModelSpec:
    found = service(model).predictor.model
    assert found is not None
    return found


def selected(
    model: str, runtimes: list[ServingRuntime], built_in: list[ServingRuntime] | None = None, **of: str
) -> tuple[str | None, list[str]]:
    """The chosen runtime's name, and what is wrong where there is none."""
    problems, asked = Problems(), service(model, **of)
    assert asked.predictor.model is not None
    chosen = select_runtime(asked, asked.predictor.model, runtimes, built_in or [], problems)
    return chosen.name if chosen else None, [str(problem) for problem in problems.all]


@pytest.mark.parametrize(
    ("model", "candidate"),
    [
        (A, runtime("r")),
        (A, runtime("r", "[{name: b, autoSelect: true}, {name: a, autoSelect: true}]")),
        (A, runtime("r", "[{name: a, version: '2', autoSelect: true}]")),
        ("{modelFormat: {name: a, version: 2}}", runtime("r", "[{name: a, version: '2', autoSelect: true}]")),
        (A, runtime("r", spec="protocolVersions: [v2, v1]")),
        ("{modelFormat: {name: a}, protocolVersion: v2}", runtime("r", spec="protocolVersions: [v1, v2]")),
        ("{modelFormat: {name: a}, protocolVersion: v9}", runtime("r")),
        (A, runtime("r", kind="ServingRuntime")),
    ],
    ids=["one", "second", "any version", "version", "v1 unsaid", "protocol", "no protocols", "own namespace"],
)
def test_a_runtime_that_fits_is_taken(model: str, candidate: ServingRuntime):
    assert selected(model, [candidate]) == ("r", [])
    assert selected(model, [], [candidate]) == ("r", [])


@pytest.mark.parametrize(
    ("model", "candidate"),
    [
        (A, runtime("r", "[{name: b, autoSelect: true}]")),
        (A, runtime("r", "[{name: a}]")),
        (A, runtime("r", "[{name: a, autoSelect: false}]")),
        ("{modelFormat: {name: a, version: 2}}", runtime("r", "[{name: a, version: '3', autoSelect: true}]")),
        ("{modelFormat: {name: a, version: 2}}", runtime("r")),
        (A, runtime("r", spec="protocolVersions: [v2]")),
        ("{modelFormat: {name: a}, protocolVersion: v2}", runtime("r", spec="protocolVersions: [v1]")),
        (A, runtime("r", spec="disabled: true")),
        (A, runtime("r", spec="multiModel: true")),
        (A, runtime("r", spec="workerSpec: {a: 1}")),
        (A, runtime("r", kind="ServingRuntime", namespace="team")),
    ],
    ids=["format", "not auto", "auto false", "version", "no version", "v1 unsaid", "protocol", "disabled", "multi", "workers", "namespace"],
)  # fmt: skip
def test_a_runtime_that_does_not_fit_is_not_taken(model: str, candidate: ServingRuntime):
    name, problems = selected(model, [candidate])
    assert name is None
    assert len(problems) == 1
    assert "isvc.yaml:6:spec.predictor.model.modelFormat: no runtime is selected for model format a" in problems[0]


def test_what_is_missing_is_told_with_the_version_the_protocol_and_what_there_is():
    known = [runtime("r", "[{name: b, autoSelect: true}]"), runtime("s", "[{name: c}]")]
    _, (problem,) = selected("{modelFormat: {name: a, version: 2}}", known)
    assert "for model format a version 2 over protocol v1: give a ServingRuntime with --runtimes PATH" in problem
    assert problem.endswith("formats known now: b, c")
    _, (none,) = selected(A, [])
    assert none.endswith("formats known now: none")
    speaks = [runtime("r", spec="protocolVersions: [v2]"), runtime("q", "[{name: a}]")]
    _, (told,) = selected(A, speaks)
    assert told.endswith(
        ": q, r serves the format: declare one of its protocols in protocolVersion, or name it in runtime"
    )
    _, (elsewhere,) = selected(A, [runtime("far", kind="ServingRuntime", namespace="team")])
    assert elsewhere.endswith("formats known now: none"), "another namespace's is not seen"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (runtime("z", kind="ServingRuntime"), runtime("a", "[{name: a, autoSelect: true, priority: 9}]")),
        (
            runtime("z", "[{name: a, autoSelect: true, priority: 2}]"),
            runtime("a", "[{name: a, autoSelect: true, priority: 1}]"),
        ),
        (runtime("z", "[{name: a, autoSelect: true, priority: 1}]"), runtime("a")),
        (
            runtime("z", "[{name: a, autoSelect: true, priority: 1}]"),
            runtime("a", "[{name: b, autoSelect: true, priority: 7}, {name: a, autoSelect: true}]"),
        ),
        (runtime("z", creationTimestamp="2021"), runtime("a", creationTimestamp="2020")),
        (runtime("a"), runtime("z")),
    ],
    ids=["namespace", "priority", "a priority", "its own priority", "newest", "name"],
)
def test_of_two_that_fit_the_one_that_comes_first_is_taken(first: ServingRuntime, second: ServingRuntime):
    assert selected(A, [first, second])[0] == first.name
    assert selected(A, [second, first])[0] == first.name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("[v1]", "[v2]"),
        ("[v2]", "[grpc-v1]"),
        ("[grpc-v1]", "[grpc-v2]"),
        ("[grpc-v2]", "[]"),
        ("[grpc-v2]", "[v9]"),
        ("[v2, v1]", "[v2]"),
    ],
)
def test_protocols_are_in_kserves_order_and_none_comes_last(first: str, second: str):
    runtimes = [runtime("z", spec=f"protocolVersions: {first}"), runtime("a", spec=f"protocolVersions: {second}")]
    assert runtime_selection._best(runtimes, model_of(A)).name == "z"
    assert runtime_selection._best(runtimes[::-1], model_of(A)).name == "z"


def test_of_one_formats_entries_the_first_ones_priority_counts():
    twice = "[{name: a, autoSelect: true, priority: 1}, {name: a, version: '2', autoSelect: true, priority: 9}]"
    other = runtime("z", "[{name: a, autoSelect: true, priority: 2}]")
    assert selected(A, [runtime("a", twice), other])[0] == "z"


def test_of_one_name_the_one_that_serves_the_format_is_taken():
    wrong, right = runtime("r", "[{name: b}]"), runtime("r", "[{name: a}]")
    for order in ([wrong, right], [right, wrong]):
        assert selected(named(), order) == ("r", [])


def test_the_lowest_protocol_comes_before_the_newest():
    first = runtime("z", spec="protocolVersions: [v2, v1]", creationTimestamp="2020")
    second = runtime("a", spec="protocolVersions: [v2]", creationTimestamp="2021")
    model = "{modelFormat: {name: a}, protocolVersion: v2}"
    assert selected(model, [first, second])[0] == selected(model, [second, first])[0] == "z"


def test_a_manifests_runtime_goes_before_one_that_is_built_in():
    low, high = runtime("low"), runtime("high", "[{name: a, autoSelect: true, priority: 9}]")
    assert selected(A, [low], [high])[0] == "low"
    assert selected(A, [runtime("b", "[{name: b, autoSelect: true}]")], [high])[0] == "high"


# By name


def named(rest: str = "", version: str = "") -> str:
    return f"{{runtime: r, modelFormat: {{name: a{version}}}{rest}}}"


@pytest.mark.parametrize(
    ("model", "candidate", "said"),
    [
        (named(), runtime("r", "[{name: a}]"), None),
        (named(", protocolVersion: v2"), runtime("r", spec="protocolVersions: [v1, v2]"), None),
        (named(), runtime("r", spec="protocolVersions: [v2]"), None),
        (named(), runtime("q"), "give its manifest with --runtimes PATH, for KServe's own --runtimes kserve, or use one of q"),
        (named(), runtime("r", spec="disabled: true"), "runtime: runtime r is disabled: enable it or use another"),
        (named(), runtime("r", "[{name: b, version: '3'}, {name: c}]"),
         "runtime: runtime r does not serve a: it serves b 3, c"),
        (named(version=", version: 2"), runtime("r"), "runtime: runtime r does not serve a 2: it serves a"),
        (named(", protocolVersion: v2"), runtime("r", spec="protocolVersions: [v1, grpc-v2]"),
         "protocolVersion: runtime r does not speak v2: use one of v1, grpc-v2"),
        (named(), runtime("r", kind="ServingRuntime", namespace="team"), "no ServingRuntime is called r"),
    ],
    ids=["not auto", "protocol", "no protocol", "none", "disabled", "format", "version", "wrong protocol", "namespace"],
)  # fmt: skip
def test_a_runtime_that_is_named_is_taken_or_what_is_wrong_with_it_told(
    model: str, candidate: ServingRuntime, said: str | None
):
    name, problems = selected(model, [candidate])
    if said is None:
        assert (name, problems) == ("r", [])
    else:
        assert name is None
        assert said in problems[0]


def test_of_one_name_the_namespaces_own_is_taken_before_the_clusters():
    own, cluster = runtime("r", kind="ServingRuntime"), runtime("r", spec="disabled: true")
    for order in ([own, cluster], [cluster, own]):
        assert selected(named(), order) == ("r", [])
    assert selected(named(), [], [own])[0] == "r"
    _, (problem,) = selected(named(), [])
    assert problem.endswith("or use one of none")


# The container


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"image": "a"}, {"image": "b", "x": 1}, {"image": "b", "x": 1}),
        ({"image": "a"}, {"image": None}, {"image": "a"}),
        ({"args": [1, 2]}, {"args": [3]}, {"args": [1, 2, 3]}),
        ({}, {"args": [3]}, {"args": [3]}),
        ({"command": [1]}, {"command": [2]}, {"command": [2]}),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "B", "valueFrom": {}}, {"name": "C"}]},
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2", "valueFrom": {}}, {"name": "C"}]},
        ),
        (
            {"ports": [{"containerPort": 1, "name": "a"}]},
            {"ports": [{"containerPort": 1, "protocol": "TCP"}, {"containerPort": 2}]},
            {"ports": [{"containerPort": 1, "name": "a", "protocol": "TCP"}, {"containerPort": 2}]},
        ),
        ({}, {"env": [{"name": "A"}]}, {"env": [{"name": "A"}]}),
        (
            {"volumeMounts": [{"mountPath": "/a", "name": "x"}]},
            {"volumeMounts": [{"mountPath": "/a", "name": "y"}]},
            {"volumeMounts": [{"mountPath": "/a", "name": "y"}]},
        ),
        (
            {"resources": {"limits": {"cpu": 1, "memory": "1Gi"}, "claims": [1]}},
            {"resources": {"limits": {"cpu": 2}, "requests": {"cpu": 1}}},
            {"resources": {"limits": {"cpu": 2, "memory": "1Gi"}, "claims": [1], "requests": {"cpu": 1}}},
        ),
        (
            {"readinessProbe": {"httpGet": {"path": "/", "port": 1}, "periodSeconds": 5}},
            {"readinessProbe": {"httpGet": {"path": "/b"}}},
            {"readinessProbe": {"httpGet": {"path": "/b", "port": 1}, "periodSeconds": 5}},
        ),
        ({"securityContext": {"a": 1}}, {"securityContext": 5}, {"securityContext": 5}),
    ],
    ids=["scalar", "null", "args", "no args", "command", "env", "ports", "no env", "mounts", "resources", "probe", "kind"],
)  # fmt: skip
def test_a_block_is_merged_over_the_runtimes_container(base: Any, over: Any, merged: Any):
    before = {key: list(value) if isinstance(value, list) else value for key, value in base.items()}
    assert merge_containers(base, over) == merged
    assert base == before, "the runtime's own stays as it is"


def containers(model: str, written: str, metadata: str = "{name: fraud}") -> tuple[list[Any], list[str]]:
    text = f"kind: ClusterServingRuntime\napiVersion: v1\nmetadata: {{name: r}}\nspec:\n  containers: {written}\n"
    asked, problems = service(model, metadata), Problems()
    assert asked.predictor.model is not None
    found = runtime_containers(
        asked, asked.predictor.model, parse_runtime(load_text(text, "runtimes.yaml")[0]), problems
    )
    return found, [str(problem) for problem in problems.all]


def test_the_models_container_comes_first_with_the_services_block_over_it():
    found, _ = containers(
        "{modelFormat: {name: a}, args: [x], image: own}",
        "[{name: side, args: [s]}, {name: kserve-container, args: [r], image: i, env: [{name: A, value: 1}]}, {name: last}]",
    )
    assert [(each.name, each.args, each.image) for each in found] == [
        ("kserve-container", ("r", "x"), "own"), ("side", ("s",), ""), ("last", (), ""),
    ]  # fmt: skip
    main, side, _ = found
    assert main.source.field("image") == "spec.predictor.model.image"
    assert main.env[0].source.field() == "spec.containers[1].env[0]"
    assert str(side.source.place("args")) == "runtimes.yaml:5"


@pytest.mark.parametrize(
    ("image", "version", "expected"),
    [
        ("i", "2", "i:2"),
        ("i:1", "2", "i:2"),
        ("host:5000/team/i", "2", "host:5000/team/i:2"),
        ("host:5000/team/i:1", "2", "host:5000/team/i:2"),
        ("i:1", "", "i:1"),
        ("i@sha256:0", "2", "i@sha256:0"),
    ],
)
def test_a_runtime_version_is_the_images_tag_unless_it_has_a_digest(image: str, version: str, expected: str):
    (found,), _ = containers(
        f"{{modelFormat: {{name: a}}, runtimeVersion: '{version}'}}", f"[{{name: kserve-container, image: '{image}'}}]"
    )
    assert found.image == expected


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ("--name={{.Name}}", "--name=fraud"),
        ("{{ .Name }}-{{.Namespace}}", "fraud-team"),
        ("{{.Labels.app}}", "x"),
        ("{{.Annotations.a/b}}", "c"),
        ('{{index .Labels "app"}}', "x"),
        ("{{ no placeholder", "{{ no placeholder"),
        ("plain", "plain"),
    ],
)
def test_a_placeholder_is_filled_from_the_service(written: str, filled: str):
    metadata = "{name: fraud, namespace: team, labels: {app: x}, annotations: {a/b: c}}"
    for name in ("kserve-container", "transformer-container"):
        (found,), problems = containers(A, f"[{{name: {name}, args: ['{written}', 5]}}]", metadata)
        assert (found.args, problems) == ((filled, "5"), [])
    (left,), _ = containers(A, f"[{{name: side, args: ['{written}']}}]", metadata)
    assert left.name == "side"
    assert left.args == (written,), "others are left alone"


@pytest.mark.parametrize(
    ("written", "mend"),
    [
        ("{{.Labels.none}}", "set metadata.labels.none there"),
        ("{{.Annotations.none}}", "set metadata.annotations.none there"),
        ("{{.Labels}}", "set metadata.labels there"),
        ("{{.Name.x}}", "set metadata.name.x there"),
    ],
)
def test_a_placeholder_without_a_value_is_told_and_stays(written: str, mend: str):
    (found,), (problem,) = containers(A, f"[{{name: kserve-container, args: ['{written}']}}]")
    assert found.args == (written,)
    assert f"{written} in {written!r} has no value in InferenceService fraud: {mend}" in problem


def test_the_services_transformer_is_merged_over_the_runtimes_and_comes_after_the_model():
    text = (
        "kind: ClusterServingRuntime\napiVersion: v1\nmetadata: {name: r}\nspec:\n  containers:\n"
        "    - {name: side}\n    - {name: transformer-container, image: t, args: ['{{.Name}}']}\n    - {name: kserve-container, image: i}\n"
    )
    serving = parse_runtime(load_text(text, "runtimes.yaml")[0])
    (document,) = load_text(
        "kind: A\nc: {name: transformer-container, args: [own], workingDir: '{{.Namespace}}'}\n", "isvc.yaml"
    )
    given = document.value["c"], Source(((document, ("c",)),))
    problems = Problems()
    found = runtime_containers(service(A), model_of(A), serving, problems, transformer=given)
    assert [each.name for each in found] == ["kserve-container", "transformer-container", "side"]
    assert (found[1].image, found[1].args, found[1].working_dir) == ("t", ("fraud", "own"), "default")
    assert found[1].source.field("args") == "c.args"
    assert found[1].source.field("image") == "spec.containers[1].image"
    alone = parse_runtime(load_text(text.replace("transformer-container", "other"), "runtimes.yaml")[0])
    added = runtime_containers(service(A), model_of(A), alone, problems, transformer=given)
    assert [(each.name, each.args) for each in added] == [
        ("kserve-container", ()), ("transformer-container", ("own",)), ("side", ()), ("other", ("{{.Name}}",)),
    ]  # fmt: skip
    assert problems.all == ()


@pytest.mark.parametrize(
    ("kind", "runtime"), [("paddle", "kserve-paddleserver"), ("huggingface", "kserve-huggingfaceserver"), ("pmml", "kserve-pmmlserver")]
)  # fmt: skip
def test_a_format_that_only_kserve_s_servers_serve_is_refused_with_their_name_and_a_way_out(kind: str, runtime: str):
    _, (problem,) = selected(f"{{modelFormat: {{name: {kind}}}}}", [])
    assert f"KServe's {runtime} serves it, no image here does" in problem
    assert (
        "write a command of this machine into its container and give a ServingRuntime with --runtimes PATH" in problem
    )


def test_runtimes_that_serve_by_several_images_are_named_once():
    twice = [runtime("kserve-tritonserver"), runtime("kserve-tritonserver", "[{name: b}]")]
    _, (problem,) = selected("{modelFormat: {name: a}, runtime: none}", twice)
    assert problem.count("kserve-tritonserver") == 1
