"""Documents: what a field is, where it was written, what is written twice, and what a text that is no manifest is told."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from serinus.errors import ConfigError
from serinus.manifests import documents
from serinus.manifests.documents import Document, FieldPath, Place, Source, field_text, load_text
from serinus.manifests.fields import containers_of, flag_value, listed, mapping, variables_of, whole_number
from serinus.manifests.kustomization import find_kustomization, read_text
from serinus.manifests.problems import Problem, Problems, nearest
from serinus.manifests.reading import check, load_documents, read_documents

TEXT = """\
apiVersion: v1
kind: Pod

metadata:
  name: a
spec:
  list:
    - 1
    - {b: 2}
  empty:
"""


def one(text: str = TEXT) -> Document:
    (document,) = load_text(text, "f.yaml")
    return document


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("a",), "a"),
        (("a", "b", "c"), "a.b.c"),
        (("a", 0, "b"), "a[0].b"),
        (("a", 0, 12), "a[0][12]"),
        ((0, "a"), "[0].a"),
    ],
)
def test_a_path_is_written_as_kubernetes_does(path: Any, text: str):
    assert field_text(path) == text


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), 1),
        (("kind",), 2),
        (("metadata",), 4),
        (("metadata", "name"), 5),
        (("spec", "list", 0), 8),
        (("spec", "list", 1, "b"), 9),
        (("spec", "empty"), 10),
        (("spec", "empty", "x", "y"), 10),
        (("spec", "nothing"), 6),
        (("nothing", "at", "all"), 1),
    ],
)
def test_a_field_is_at_its_line_and_one_that_is_missing_at_its_nearest_parents(path: Any, line: int):
    assert one().place(path) == Place("f.yaml", line)
    assert str(one().place(path)) == f"f.yaml:{line}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metadata", "name"), "a"),
        (("spec", "list", 0), 1),
        (("spec", "list", 1), {"b": 2}),
        (("spec", "list", 1, "b"), 2),
        (("spec", "list", 2), None),
        (("spec", "list", "b"), None),
        (("metadata", 0), None),
        (("metadata", "name", "x"), None),
        (("spec", "empty"), None),
        (("nothing",), None),
    ],
)
def test_a_field_is_found_by_its_path_and_nothing_where_there_is_none(path: Any, value: Any):
    assert one().get(path) == value


def test_a_document_that_nobody_wrote_is_at_its_first_line():
    assert Document({"a": 1}, {}, "f").place(("a",)) == Place("f", 1)
    assert Document({}, {("b",): Place("f", 7)}, "f").place(("b", "c", "d")) == Place("f", 7)


def test_a_document_without_names_has_empty_ones_and_kubectls_namespace():
    bare = one("a: 1\n")
    assert (bare.kind, bare.api_version, bare.name, bare.namespace, bare.metadata) == ("", "", "", "default", {})
    odd = one("kind: A\nmetadata: [1]\n")
    assert (odd.name, odd.metadata) == ("", {})
    assert one("metadata: {namespace: team}").namespace == "team"


def test_keys_that_are_written_twice_are_told_with_their_path():
    document = one("a: 1\nb:\n  - {c: 1, c: 2, d: 3}\na: 4\n")
    assert document.duplicates == (("b", 0, "c"), ("a",))
    assert document.place(("a",)).line == 4, "the last one counts"
    assert one().duplicates == ()


def test_several_documents_are_read_and_empty_ones_are_none():
    first, second = load_text("---\n# nothing\n---\nkind: A\n---\n---\nkind: B\n", "f")
    assert (first.kind, second.kind) == ("A", "B")
    assert (first.place(()).line, second.place(("kind",)).line) == (4, 7)
    assert load_text("", "f") == []


def test_a_list_of_objects_is_opened_and_a_field_named_items_of_another_kind_is_not():
    text = "kind: {}\napiVersion: v1\nitems:\n  - kind: A\n    x: {{y: 1}}\n  - 5\n  - kind: B\n"
    first, second = load_text(text.format("PodList"), "f")
    assert (first.kind, second.kind) == ("A", "B")
    assert first.place(("x", "y")).line == 5
    assert first.place(()).line == 4
    assert second.place(("kind",)).line == 7
    assert [document.kind for document in load_text(text.format("Listing"), "f")] == ["Listing"]
    assert [document.kind for document in load_text("kind: AList\nitems: 5\n", "f")] == ["AList"]


def test_a_list_of_operations_is_passed_over_beside_manifests_and_refused_as_one():
    text = "- {op: add, path: /a}\n---\nkind: A\n"
    assert [document.kind for document in load_text(text, "f", patches=True)] == ["A"]
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f")
    assert str(caught.value) == "f:1: a manifest is a mapping, this document is a list"


ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(path for folder in ("manifests", "inferenceservices") for path in (ROOT / folder).rglob("*.yaml"))
ODD = {
    "scalars": "a: 0o17\nb: 1_000\nc: 2026-11-30\nd: yes\ne: .inf\nf: ~\ng: 0x1F\nh: 1e3\ni: '1'\nj: !!str 1\n",
    "blocks": "a: |\n  one\n   two\n\nb: >-\n  one\n  two\nc: |+\n  x\n\n",
    "anchors": "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n",
    "marks": "\ufeffa: 1\n---\n# only words\n---\nb: ä日本😀\n...\n",
}


@pytest.mark.parametrize(
    "text",
    [*(path.read_text() for path in PUBLISHED), *ODD.values()],
    ids=[*(str(path.relative_to(ROOT)) for path in PUBLISHED), *ODD],
)
def test_both_parsers_read_the_same_at_the_same_lines(text: str, monkeypatch: pytest.MonkeyPatch):
    fast, final = documents._LOADERS
    read = []
    for loader in (fast, final):
        monkeypatch.setattr(documents, "_LOADERS", (loader,))
        read.append(load_text(text, "f.yaml", patches=True))
    assert read[0] == read[1]


def test_what_libyaml_refuses_is_told_in_the_words_of_the_other_parser():
    with pytest.raises(ConfigError, match=r"^f\.yaml:2: not YAML: found character '\\t' that cannot start any token$"):
        load_text("a:\n\t- b\n", "f.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [\n", "f:3: not YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\n\tb: 2\n", "f:2: not YAML: found character '\\t' that cannot start any token"),
        ("kind: A\n---\n5\n", "f:3: a manifest is a mapping, this document is a int"),
        ("a: \x00", "f:1: not YAML: the control character U+0000 is not allowed; remove it"),
        ("a: 1\nb: x\x1by\n", "f:2: not YAML: the control character U+001B is not allowed; remove it"),
    ],
    ids=["open list", "tab", "number", "NUL", "escape"],
)
def test_a_text_that_is_no_manifest_is_told_with_its_line(text: str, said: str):
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "f:1: more than 200 levels"),
        ("a: &a {b: *a}", "f:1: more than 200 levels"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
            "f:7: more than 500,000 fields",
        ),
        (f"a: {'[' * 5000}{']' * 5000}", "nested too deep"),
        (f"a: 1\nb: {'9' * 5000}", "f:2: not YAML: a number of 5000 digits; at most 400 are read"),
        (f"a: 0x{'f' * 5000}", "f:1: not YAML: a number of 5002 digits"),
        (f"a: 1{':59' * 200_000}", "f:1: not YAML: a number of 600001 digits"),
        (f"a: 1{':59' * 200_000}.5", "f:1: not YAML: a number of 600003 digits"),
        (f"{'9' * 500}: 1", "f:1: not YAML: a number of 500 digits"),
        ("a: !!int [1]", "f:1: not YAML: a number was expected"),
        ("a: !!float x", "f:1: not YAML: no number: could not convert"),
    ],
    ids=[
        *("a list in itself", "a mapping in itself", "ten of ten of ten", "thousands of levels", "a long number"),
        *("a long number of sixteens", "a number of sixties", "a fraction of sixties", "a key", "a list for a number"),
        "a word for a number",
    ],
)
def test_a_text_without_an_end_is_refused(text: str, said: str):
    with pytest.raises(ConfigError) as refused:
        load_text(text, "f")
    assert said in str(refused.value)


def test_each_object_of_a_list_knows_its_lines_and_the_places_are_looked_through_once():
    class Places(dict[FieldPath, Place]):
        looks = 0

        def items(self) -> Any:
            self.looks += 1
            return super().items()

    places = Places({("items", number, "x"): Place("f.yaml", number + 2) for number in range(30)})
    whole = Document({"kind": "List", "items": [{"x": 1}] * 30}, places, "f.yaml")
    assert [document.place(("x",)).line for document in documents._open_list(whole)] == list(range(2, 32))
    assert places.looks == 1


def test_numbers_as_kubernetes_may_have_them_are_read():
    (document,) = load_text(f"a: {'9' * 300}\nb: -0x1F\nc: 1e3\nd: 1_000\ne: 1:30\nf: -.inf", "f")
    assert document.value == {"a": int("9" * 300), "b": -31, "c": "1e3", "d": 1000, "e": 90, "f": float("-inf")}


def test_a_value_of_several_documents_is_where_the_first_wrote_it_that_holds_it():
    over, base = one("a:\n  b: 1\n"), load_text("x:\n  b: 2\n  c: 3\n", "base")[0]
    source = Source(((over, ("a",)), (base, ("x",))))
    assert (str(source.place("b")), source.field("b")) == ("f.yaml:2", "a.b")
    assert (str(source.place("c")), source.field("c")) == ("base:3", "x.c")
    assert (str(source.place("d")), source.field("d")) == ("f.yaml:1", "a.d")
    assert (str(source.place()), source.field()) == ("f.yaml:1", "a")
    below = source.under("c")
    assert (str(below.place()), below.field()) == ("base:3", "x.c")


# Fields


def test_what_is_of_another_shape_counts_as_absent():
    assert mapping({"a": 1}) == {"a": 1}
    assert listed([1]) == [1]
    for value in (None, 5, "a", [1]):
        assert mapping(value) == {}
    for value in (None, 5, "a", {"a": 1}):
        assert listed(value) == ()
    assert [whole_number(value) for value in (0, 5, -1, True, False, 1.0, "1", None)] == [0, 5, -1] + [None] * 5


def test_containers_are_those_of_both_lists_and_the_blocks_that_are_one():
    block = {
        "containers": [{"name": "a"}, 5],
        "initContainers": [{"name": "b"}],
        "model": {"name": "c"},
        "sklearn": {"name": "d"},
        "onnx": None,
    }
    assert containers_of(("spec",), block) == [
        (("spec", "containers", 0), {"name": "a"}),
        (("spec", "containers", 1), {}),
        (("spec", "initContainers", 0), {"name": "b"}),
        (("spec", "sklearn"), {"name": "d"}),
        (("spec", "model"), {"name": "c"}),
    ]
    assert containers_of((), {}) == []
    assert variables_of(("c",), {"env": [{"name": "A"}, 5]}) == [
        (("c", "env", 0), {"name": "A"}),
        (("c", "env", 1), {}),
    ]


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--model_name", "a"], "a"),
        (["--model-name", "a"], "a"),
        (["--model_name=a=b"], "a=b"),
        (["--model-name="], ""),
        (["--model_name"], ""),
        (["--other", "x", "--model_name", 5], "5"),
        (["--model_name", "a", "--model_name", "b"], "a"),
        (["--name=z"], "z"),
        (["model_name", "a"], None),
        (["-model_name", "a"], None),
        ([5, None, "--model_names", "a"], None),
        ([], None),
    ],
    ids=str,
)
def test_a_flags_value_is_the_next_word_or_behind_the_sign(args: list[Any], value: str | None):
    assert flag_value(args, "model_name", "name") == value


# Problems


def test_problems_are_told_in_the_order_of_the_file_each_once():
    document, problems = one(), Problems()
    problems.error(document, ("spec", "list", 1), "wrong", "mend it")
    problems.warn(document, ("metadata", "name"), "odd", "look")
    problems.error(document, ("spec", "list", 1), "wrong", "mend it")
    problems.error_at(Source(((document, ("spec",)),)), ("list",), "bad", "drop it")
    assert [str(problem) for problem in problems.all] == [
        "f.yaml:5:metadata.name: warning: odd: look",
        "f.yaml:7:spec.list: bad: drop it",
        "f.yaml:9:spec.list[1]: wrong: mend it",
    ]
    assert [(problem.severity, problem.layer) for problem in problems.errors] == [
        ("error", "controller"),
        ("error", "webhook"),
    ]
    other = Problems()
    other.extend([*problems.all, Problem("a.yaml", 99, "", "m", "n")])
    assert [problem.file for problem in other.all] == ["a.yaml"] + ["f.yaml"] * 3
    assert problems.all[0].as_json() == {
        "file": "f.yaml", "line": 5, "field": "metadata.name", "message": "odd", "mend": "look", "severity": "warning", "layer": "ignored",
        "rule": "",
    }  # fmt: skip


def test_a_slip_of_structure_is_left_out_where_a_rule_has_refused_the_field_and_another_kind_is_not():
    document, problems = one(), Problems()
    problems.error(document, ("spec",), "refused", "mend", rule="component-x")
    problems.error(document, ("spec",), "unknown field", "remove", rule="structure-unknown-field")
    problems.error(document, ("spec",), "no list", "write one", rule="structure-type")
    problems.error(document, ("kind",), "unknown field", "remove", rule="structure-unknown-field", layer="server")
    assert [(problem.message, problem.rule, problem.layer) for problem in problems.all] == [
        ("unknown field", "structure-unknown-field", "server"),
        ("refused", "component-x", "webhook"),
        ("no list", "structure-type", "webhook"),
    ]


@pytest.mark.parametrize(
    ("name", "near"), [("minReplica", "minReplicas"), ("maxReplicas", "maxReplicas"), ("zzz", None), ("min", None)]
)
def test_the_nearest_name_is_one_that_looks_alike(name: str, near: str | None):
    assert nearest(name, ["maxReplicas", "minReplicas", "containers"]) == near


# Files


def test_a_folder_is_its_yaml_files_in_order_and_what_is_no_object_is_passed_over(tmp_path: Path):
    for name, text in {
        "b.yml": "apiVersion: v1\nkind: B\n",
        "a.yaml": "apiVersion: v1\nkind: A\n",
        "values.yaml": "x: 1\n",
        "half.yaml": "kind: Half\n",
        "other.yaml": "apiVersion: v1\n",
        "patch.yaml": "- {op: add}\n",
        "c.json": '{"apiVersion": "v1", "kind": "C"}',
    }.items():
        (tmp_path / name).write_text(text)
    found = load_documents(tmp_path)
    assert [(document.kind, document.file) for document in found] == [
        ("A", str(tmp_path / "a.yaml")),
        ("B", str(tmp_path / "b.yml")),
    ]
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "b.yml").unlink()
    with pytest.raises(ConfigError, match="the folder holds no YAML file with apiVersion and kind"):
        load_documents(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: A\n", ":1: apiVersion: missing; every manifest names apiVersion and kind"),
        ("apiVersion: v1\n", ":1: kind: missing; every manifest"),
        ("apiVersion: v1\nkind: A\n---\nx: 1\n", ":4: apiVersion: missing"),
        ("", ": empty; expected a manifest such as an InferenceService"),
    ],
)
def test_a_file_that_holds_no_object_is_told_what_is_missing_and_where(tmp_path: Path, text: str, said: str):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_documents(file)
    assert str(caught.value).startswith(f"{file}{said}")


def test_a_file_that_cannot_be_read_is_told_why(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_documents(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_text(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 text: invalid continuation byte at byte 3"):
        read_text(latin)


@pytest.mark.parametrize("name", ["kustomization.yaml", "kustomization.yml", "Kustomization"])
def test_a_kustomization_is_found_by_each_of_its_names(tmp_path: Path, name: str):
    assert find_kustomization(tmp_path) is None
    (tmp_path / name).mkdir()
    assert find_kustomization(tmp_path) is None, "it is a file"
    (tmp_path / name).rmdir()
    (tmp_path / name).write_text("resources: []\n")
    assert find_kustomization(tmp_path) == tmp_path / name


def test_what_cannot_be_read_is_a_problem_and_the_rest_is_read(tmp_path: Path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("apiVersion: v1\nkind: A\n")
    bad.write_text("a: 1\nb: [\n")
    problems = Problems()
    documents = read_documents([tmp_path / "none", bad, good], problems)
    assert [document.kind for document in documents] == ["A"]
    first, second = problems.all
    assert (first.file, first.line, first.field, first.mend) == (str(bad), 3, "", "mend the file")
    assert first.message.startswith("not YAML: ")
    assert (second.file, second.line, second.message, second.mend) == (
        str(tmp_path / "none"), 1, "no such file or folder", "mend the path or the file",
    )  # fmt: skip
    checked = check([bad, tmp_path / "none", good])
    assert [(problem.file, problem.mend) for problem in checked.problems if problem.severity == "error"] == [
        (first.file, first.mend),
        (second.file, second.mend),
    ]


def test_merge_keys_that_multiply_are_refused_before_anything_is_made_of_them():
    lines = ["a0: &a0 {x: 1, y: 2, z: 3}"]
    lines += [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 14)]
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="more than 500,000 fields"):
            load_text("\n".join(lines), "f.yaml")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    (honest,) = load_text("base: &b {x: 1, y: 2}\nkind: A\nspec: {<<: *b, y: 3}", "f.yaml")
    assert honest.value["spec"] == {"x": 1, "y": 3}
