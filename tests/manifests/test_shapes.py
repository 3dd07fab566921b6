"""Shapes: what a value must be, and what one that is not is told."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.manifests.documents import Document
from serinus.manifests.problems import Problems
from serinus.manifests.schema import INFERENCE_SERVICE, SERVING_RUNTIME
from serinus.manifests.shapes import Shape, check_shape


def found(value: Any, shape: Shape) -> list[str]:
    problems = Problems()
    check_shape(Document({"x": value}, {}, "f"), ("x",), value, shape, problems)
    return [f"{problem.field}: {problem.message}: {problem.mend}" for problem in problems.all]


TEXT, WHOLE = Shape("string"), Shape("integer")


@pytest.mark.parametrize(
    ("scalar", "fits", "others"),
    [
        ("string", ["a", ""], [1, 1.5, True, [], {}]),
        ("integer", [1, 0, -1], ["1", 1.5, True, [], {}]),
        ("boolean", [True, False], ["true", 1, 0, [], {}]),
        ("quantity", [1, 1.5, "1Gi"], [True, [], {}]),
        ("any", ["a", 1, True, [], {}], []),
    ],
)
def test_a_scalar_is_of_its_kind_and_null_is_absent(scalar: Any, fits: list[Any], others: list[Any]):
    for value in [*fits, None]:
        assert found(value, Shape(scalar)) == []
    for value in others:
        assert len(found(value, Shape(scalar))) == 1


@pytest.mark.parametrize(
    ("value", "shape", "said"),
    [
        (2, TEXT, 'x: 2 is not text: write "2" in quotes'),
        ([], TEXT, "x: a list is not text: write text"),
        ({}, TEXT, "x: a mapping is not text: write text"),
        ("one", WHOLE, "x: 'one' is not a whole number: write a whole number"),
        ("a", Shape("boolean"), "x: 'a' is not true or false: write true or false"),
        (True, Shape("quantity"), "x: True is not a number or text: write a number or text"),
        ("c", Shape("string", enum=("a", "b")), "x: 'c' is not accepted: use one of a, b"),
        ({}, Shape(items=TEXT), "x: a mapping is not a list: begin each item with a dash"),
        ("a", Shape(items=TEXT), "x: 'a' is not a list: begin each item with a dash"),
        ([], Shape(fields={}), "x: a list is not a mapping: write key: value lines below it"),
        (5, Shape(values=TEXT), "x: 5 is not a mapping: write key: value lines below it"),
        (["a", 5], Shape(items=TEXT), 'x[1]: 5 is not text: write "5" in quotes'),
        ({"a": 5}, Shape(values=TEXT), 'x.a: 5 is not text: write "5" in quotes'),
        ({1: 5}, Shape(values=TEXT), 'x.1: 5 is not text: write "5" in quotes'),
        ({"a": {"b": 5}}, Shape(fields={"a": Shape(fields={"b": TEXT})}), 'x.a.b: 5 is not text: write "5" in quotes'),
        ({}, Shape(fields={"a": TEXT}, required=("a",)), "x.a: missing: add a"),
        ({"a": None}, Shape(fields={"a": TEXT}, required=("a",)), "x.a: missing: add a"),
        ({"zz": 1}, Shape(fields={"a": TEXT, "b": TEXT}), "x.zz: unknown field: remove it; known here: a, b"),
        ({"nam": 1}, Shape(fields={"name": TEXT}), "x.nam: unknown field: did you mean name?"),
        ({"nam": 1}, Shape(fields={"name": TEXT}, hints={"nam": "it there"}), "x.nam: unknown field: write it there"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_path_and_how_to_mend_it(value: Any, shape: Shape, said: str):
    assert found(value, shape) == [said]


def test_what_fits_is_told_nothing_of():
    shape = Shape(fields={"a": TEXT, "b": Shape(items=WHOLE), "c": Shape(values=WHOLE)}, required=("a",))
    for value in ({"a": "x"}, {"a": "x", "b": [1, None], "c": {"y": 1, "z": None}}, {"a": "", "b": None}, None):
        assert found(value, shape) == []
    assert found("b", Shape("string", enum=("a", "b"))) == []


@pytest.mark.parametrize(("fields", "listed"), [(11, True), (12, False)])
def test_known_fields_are_listed_where_they_are_few(fields: int, listed: bool):
    (said,) = found({"zz": 1}, Shape(fields={f"field{n}": TEXT for n in range(fields)}))
    assert ("known here: field0" in said) is listed
    assert said.startswith("x.zz: unknown field: remove it")


def test_every_finding_of_a_value_is_told():
    said = found({"a": 1, "b": "x"}, Shape(fields={"a": TEXT, "b": WHOLE, "c": TEXT}, required=("c",)))
    assert [each.partition(":")[0] for each in said] == ["x.a", "x.b", "x.c"]


SERVICE = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "a"}}


@pytest.mark.parametrize(
    ("predictor", "fields"),
    [
        ({"model": {"modelFormat": {"name": "a"}}}, []),
        ({"model": {}}, ["model.modelFormat"]),
        ({"model": {"modelFormat": {}}}, ["model.modelFormat.name"]),
        (
            {"containers": [{"name": "c", "readinessProbe": {"httpGet": {"path": "/"}}}]},
            ["containers[0].readinessProbe.httpGet.port"],
        ),
        (
            {"containers": [{"name": "c", "livenessProbe": {"tcpSocket": {}}}]},
            ["containers[0].livenessProbe.tcpSocket.port"],
        ),
        ({"containers": [{"name": "c", "startupProbe": {"grpc": {}}}]}, ["containers[0].startupProbe.grpc.port"]),
        ({"containers": [{"name": "c", "env": [{"value": "x"}]}]}, ["containers[0].env[0].name"]),
        ({"containers": [{"name": "c", "ports": [{"name": "x"}]}]}, ["containers[0].ports[0].containerPort"]),
        ({"containers": [{"name": "c", "ports": [{"containerPort": "80"}]}]}, ["containers[0].ports[0].containerPort"]),
        ({"containers": [{"name": "c", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}, []),
        ({"containers": [{"name": "c", "args": ["a", 5]}]}, ["containers[0].args[1]"]),
        ({"containers": [{"image": "a"}]}, ["containers[0].name"]),
        ({"minReplicas": "1", "maxReplicas": 1.5}, ["minReplicas", "maxReplicas"]),
        ({"storageUris": [{"mountPath": "/a"}]}, ["storageUris[0].uri"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_predictor_has_kserves_fields_of_their_types(predictor: dict[str, Any], fields: list[str]):
    value = SERVICE | {"spec": {"predictor": predictor}}
    problems = Problems()
    check_shape(Document(value, {}, "f"), (), value, INFERENCE_SERVICE, problems)
    assert [problem.field for problem in problems.all] == [f"spec.predictor.{field}" for field in fields]


def test_a_service_without_a_predictor_and_a_runtime_without_containers_are_told():
    for shape, spec, fields in (
        (INFERENCE_SERVICE, {}, ["spec.predictor"]),
        (SERVING_RUNTIME, {}, ["spec.containers"]),
        (
            SERVING_RUNTIME,
            {"containers": [], "supportedModelFormats": [{"version": "1"}]},
            ["spec.supportedModelFormats[0].name"],
        ),
    ):
        value = SERVICE | {"spec": spec}
        problems = Problems()
        check_shape(Document(value, {}, "f"), (), value, shape, problems)
        assert [problem.field for problem in problems.all] == fields
