"""Files of rows through models: the answers are the wire's, runs go on where they ended, and what is wrong is said."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import warm_start
from deferred import Deferred
from depth import some_of
from serinus.bulk.finished_parts import FinishedParts
from serinus.bulk.table_files import TableReader
from serinus.cli import main
from serinus.client import Client
from serinus.errors import ConfigError
from serve_support import serving
from waiting import wait_until

pa = Deferred("pyarrow")
csv = Deferred("pyarrow.csv")
parquet = Deferred("pyarrow.parquet")
xgboost = Deferred("xgboost")

SCRIPT = """
import os, time
import numpy as np
from serinus import Model, TensorSpec


class Sums(Model):
    '''The sum of a row, its two first values, and how it compares with 1; slow where a file says so.'''

    inputs = (TensorSpec("x", "FP32", (-1, 3)),)
    outputs = (TensorSpec("sum", "FP32", (-1, 1)), TensorSpec("head", "FP64", (-1, 2)), TensorSpec("word", "BYTES", (-1,)))

    def predict(self, inputs, call):
        x = inputs["x"]
        if (x == 666).any():
            raise ValueError("the row of the beast")
        time.sleep(float(os.environ.get("SUMS_SLEEP", "0")))
        words = np.array([b"big" if value > 1 else b"sm\\xc3\\xa4ll" for value in x.sum(1)], object)
        return {"sum": x.sum(1, keepdims=True), "head": x[:, :2].astype(np.float64), "word": words}


class Fields(Model):
    inputs = (TensorSpec("age", "INT32", (-1,)), TensorSpec("name", "BYTES", (-1, 1)), TensorSpec("v", "FP32", (-1, 2)))
    outputs = (TensorSpec("said", "BYTES", (-1,)),)

    def predict(self, inputs, call):
        rows = zip(inputs["age"], inputs["name"][:, 0], inputs["v"], strict=True)
        return {"said": np.array([f"{name.decode()} {age} {v.sum():g}".encode() for age, name, v in rows], object)}


class One(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 3)),)
    outputs = (TensorSpec("mean", "FP32", ()),)
    batchable = False

    def predict(self, inputs, call):
        return {"mean": np.float32(inputs["x"].mean())}
"""


@pytest.fixture(autouse=True)
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sums_of_rows.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model").mkdir()
    return tmp_path


def predict(source: str, output: str, *words: str, kind: str = "Sums") -> int:
    return main(["predict", "model", source, output, "--class", f"sums_of_rows:{kind}", *words])


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)


def write(path: str, matrix: np.ndarray, **more: Any) -> None:
    columns = {f"c{index}": matrix[:, index] for index in range(matrix.shape[1])}
    table = pa.table({**more, **columns})
    if path.endswith(".parquet"):
        parquet.write_table(table, path)
    elif path.endswith(".csv"):
        csv.write_csv(table, path)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def read(path: str) -> list[dict[str, Any]]:
    if path.endswith(".parquet"):
        return parquet.read_table(path).to_pylist()
    if path.endswith(".csv"):
        return csv.read_csv(path).to_pylist()
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["in.parquet", "in.csv", "in.jsonl"])
@pytest.mark.parametrize("output", ["out.parquet", "out.csv", "out.jsonl"])
def test_every_row_has_its_answer_in_order_whatever_the_formats(source: str, output: str):
    matrix = rows(700)
    write(source, matrix, id=[f"r{index}" for index in range(700)])
    assert predict(source, output, "--keep", "id", "--rows", "64") == 0
    found = read(output)
    assert [row["id"] for row in found] == [f"r{index}" for index in range(700)]
    np.testing.assert_allclose([row["sum"] for row in found], matrix.sum(1), rtol=1e-5)
    assert {row["word"] for row in found} == {"big", "smäll"}
    heads = [[row["head_0"], row["head_1"]] for row in found] if output == "out.csv" else [row["head"] for row in found]
    np.testing.assert_allclose(heads, matrix[:, :2], rtol=1e-6)
    assert sorted(path.name for path in Path().iterdir() if "out" in path.name) == [output]


@pytest.mark.slow
def test_the_answers_are_those_of_the_wire(tmp_path: Path):
    matrix = np.random.default_rng(5).normal(size=(300, 4)).astype(np.float32)
    booster = xgboost.train(
        {"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(matrix, np.arange(300) % 3), 4
    )
    booster.save_model("model/model.ubj")
    write("in.parquet", matrix)
    assert main(["predict", "model", "in.parquet", "out.parquet"]) == 0
    found = parquet.read_table("out.parquet")
    with serving(tmp_path, "model") as served, Client(f"http://127.0.0.1:{served.http_port}") as client:
        (answer,) = client.infer("model", {client.metadata("model").inputs[0].name: matrix}).values()
    np.testing.assert_array_equal(np.array(found.column(0).to_pylist(), np.float32), answer)


def test_columns_are_found_by_the_names_of_the_inputs():
    table = pa.table({"v": [[1.0, 2.0], [3.0, 4.0]], "age": [30, 40], "name": ["ann", "bob"], "other": [0, 0]})
    parquet.write_table(table, "in.parquet")
    assert predict("in.parquet", "out.jsonl", kind="Fields") == 0
    assert read("out.jsonl") == [{"said": "ann 30 3"}, {"said": "bob 40 7"}]


def test_the_columns_that_are_named_are_the_matrix_in_that_order():
    write("in.csv", np.array([[1, 2, 3]]), d=[9], e=["x"])
    assert predict("in.csv", "out.jsonl", "--columns", "c2,c0,d", "--want", "head") == 0
    assert read("out.jsonl") == [{"head": [3.0, 1.0]}]


def test_missing_numbers_are_nan():
    Path("in.csv").write_text("a,b,c\n1,,3\n")
    assert predict("in.csv", "out.jsonl", "--want", "head") == 0
    assert read("out.jsonl") == [{"head": [1.0, None]}]


@pytest.mark.parametrize(
    ("make", "words", "kind", "says"),
    [
        (lambda: write("in.csv", rows(2)[:, :2]), (), "Sums", "x FP32 [-1, 3]"),
        (lambda: write("in.csv", rows(2)), ("--columns", "a,b"), "Sums", "no column 'a', 'b'"),
        (lambda: write("in.csv", rows(2)), ("--columns", "c0,c0,c1"), "Sums", "different names"),
        (lambda: write("in.csv", rows(2)), ("--keep", "id"), "Sums", "no column 'id'"),
        (lambda: write("in.csv", rows(2), sum=[1, 2]), ("--keep", "sum"), "Sums", "'sum' is an output and a column"),
        (lambda: write("in.csv", np.array([[1, 2, 666]])), (), "Sums", "rows 1 to 1: "),
        (lambda: write("in.csv", rows(2)), (), "One", "output 'mean' has shape []"),
        (lambda: Path("in.csv").write_text("a,b,c\n"), (), "Sums", "no rows"),
        (lambda: Path("in.csv").write_text(""), (), "Sums", "not a table in csv"),
        (lambda: Path("in.csv").write_text("a,a,c\n1,2,3\n"), (), "Sums", "more than once"),
        (lambda: Path("in.csv").write_text("a,b,c\n1,2,3\n1,2\n"), (), "Sums", "not a table in csv"),
        (lambda: None, (), "Sums", "in.csv: no such file"),
    ],
)
def test_what_cannot_be_predicted_is_said_and_leaves_no_output(
    make: Callable[[], None], words: tuple[str, ...], kind: str, says: str, capsys: pytest.CaptureFixture[str]
):
    make()
    assert predict("in.csv", "out.csv", *words, kind=kind) == 1
    assert says in capsys.readouterr().err
    assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    ("source", "output", "says"),
    [
        ("in.csv", "out.txt", "expected a name that ends in one of .csv"),
        ("in.xls", "out.csv", "expected a name that ends in one of .csv"),
        ("in.csv", "in.csv", "is there; --overwrite replaces it"),
        ("in.csv", "nowhere/out.csv", "there is no folder nowhere"),
    ],
)
def test_files_that_cannot_be_are_refused(source: str, output: str, says: str, capsys: pytest.CaptureFixture[str]):
    write("in.csv", rows(2))
    assert predict(source, output) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"age": [1.5], "name": ["a"], "v": [[1.0, 2.0]]}, "column 'age': the model takes int32, which 1.5 is not"),
        ({"age": [None], "name": ["a"], "v": [[1.0, 2.0]]}, "column 'age': the model takes int32, which nan is not"),
        ({"age": [1], "name": [None], "v": [[1.0, 2.0]]}, "column 'name'"),
        ({"age": [1], "name": [3], "v": [[1.0, 2.0]]}, "the model takes text"),
        ({"age": ["x"], "name": ["a"], "v": [[1.0, 2.0]]}, "holds text, the model takes INT32"),
        ({"age": [1, 2], "name": ["a", "b"], "v": [[1.0, 2.0], [1.0]]}, "lists of 1 to 2 values"),
        ({"age": [1], "name": ["a"], "v": [[1.0, 2.0, 3.0]]}, "'v'"),
    ],
)
def test_a_column_that_is_no_input_is_told_with_its_rows(
    columns: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
):
    parquet.write_table(pa.table(columns), "in.parquet")
    assert predict("in.parquet", "out.jsonl", kind="Fields") == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.startswith("rows 1 to ")


def test_a_run_that_failed_goes_on_after_the_rows_that_are_done(capsys: pytest.CaptureFixture[str]):
    matrix = rows(200)
    matrix[150] = 666
    write("in.parquet", matrix)
    assert predict("in.parquet", "out.parquet", "--rows", "10", "--in-flight", "1") == 1
    assert "rows 151 to 160: " in capsys.readouterr().err
    assert not Path("out.parquet").exists()
    parts = Path("out.parquet.parts")
    assert sum(parquet.read_metadata(part).num_rows for part in parts.glob("*.parquet")) == 150
    # Another run's parts are not taken up: the file is another now.
    before = Path("in.parquet").stat()
    matrix[150] = 0
    write("in.parquet", matrix)
    assert predict("in.parquet", "out.parquet", "--rows", "10") == 1
    assert "parts of another run (different: source)" in capsys.readouterr().err
    assert predict("in.parquet", "out.parquet", "--rows", "10", "--restart") == 0
    np.testing.assert_allclose(parquet.read_table("out.parquet").column("sum").to_numpy(), matrix.sum(1), rtol=1e-5)
    assert not parts.exists()
    assert before.st_size


def test_parts_after_a_gap_or_half_written_are_not_counted(tmp_path: Path):
    parts = FinishedParts(tmp_path / "out.csv", {"a": 1})
    for value in range(3):
        parts.add(pa.table({"y": [value, value]}))
    (parts.folder / "000001.parquet").unlink()
    (parts.folder / "000003.partial").write_bytes(b"half")
    again = FinishedParts(tmp_path / "out.csv", {"a": 1})
    assert again.rows == 2
    with pytest.raises(ConfigError, match=r"another run \(different: a\)"):
        FinishedParts(tmp_path / "out.csv", {"a": 2})
    (parts.folder / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="--restart begins anew"):
        FinishedParts(tmp_path / "out.csv", {"a": 1})
    foreign = tmp_path / "mine.csv.parts"
    foreign.mkdir()
    (foreign / "diary.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not of a run of ours"):
        FinishedParts(tmp_path / "mine.csv", {})


@pytest.mark.slow
@pytest.mark.parametrize("number", some_of([signal.SIGINT, signal.SIGKILL, signal.SIGTERM], 2))
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path, number: signal.Signals):
    matrix = rows(3000)
    write("in.parquet", matrix)
    words = ["predict", "model", "in.parquet", "out.parquet"]
    words += ["--class", "sums_of_rows:Sums", "--rows", "10", "--in-flight", "2"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SUMS_SLEEP": "0.2"}
    with (tmp_path / "said").open("w") as out:
        child = warm_start.start(words, env=environment, out=out)
    try:
        wait_until(lambda: (tmp_path / "out.parquet.parts" / "run.json").is_file(), limit_s=30)
        wait_until(lambda: (tmp_path / "out.parquet.parts" / "000000.parquet").is_file(), limit_s=60)
        child.send_signal(number)
        child.wait(30)
    finally:
        child.kill()
    said = (tmp_path / "said").read_text()
    if number != signal.SIGKILL:
        assert child.returncode == 130, said
        assert "the same command goes on" in said
        assert "Traceback" not in said
    assert not Path("out.parquet").exists()
    environment["SUMS_SLEEP"] = "0"
    assert warm_start.run(words, env=environment, timeout_s=120).returncode == 0
    np.testing.assert_allclose(parquet.read_table("out.parquet").column("sum").to_numpy(), matrix.sum(1), rtol=1e-5)


def test_the_reader_gives_so_many_rows_at_a_time_from_any_place_on():
    write("in.parquet", rows(1000))
    reader = TableReader(Path("in.parquet"))
    assert reader.rows == 1000
    assert [batch.num_rows for batch in reader.batches(300)] == [300, 300, 300, 100]
    assert [batch.num_rows for batch in reader.batches(300, skip=950)] == [50]
    whole = np.concatenate([batch.column("c1").to_numpy() for batch in reader.batches(77, skip=13)])
    np.testing.assert_array_equal(whole, rows(1000)[13:, 1])


@pytest.mark.slow  # a second
def test_a_first_run_that_was_interrupted_goes_on_though_its_load_wrote_records(capsys: pytest.CaptureFixture[str]):
    matrix = rows(200)
    booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(matrix, matrix[:, 0]), 3)
    booster.save_model("model/model.json")
    write("in.parquet", matrix)
    table = parquet.read_table("in.parquet")
    parquet.write_table(table.append_column("ok", pa.array([1] * 200)), "in.parquet")
    command = ["predict", "model", "in.parquet", "out.parquet", "--columns", "c0,c1,c2", "--rows", "10"]
    assert not list(Path("model").glob("*.verdict.json"))
    # An output that cannot be put into its place at the end, when all parts are done.
    Path("out.parquet").mkdir()
    assert main([*command, "--overwrite"]) == 1
    assert list(Path("model").glob("*.verdict.json"))
    Path("out.parquet").rmdir()
    parts = sorted(Path("out.parquet.parts").glob("*.parquet"))
    assert parts
    capsys.readouterr()
    assert main(command) == 0, capsys.readouterr().err
    assert parquet.read_table("out.parquet").num_rows == 200


@pytest.mark.parametrize(
    ("source", "words"),
    [("in.parquet", ["--columns", "c0,nope"]), ("in.parquet", ["--want", "nope"]), ("empty.parquet", [])],
)
def test_a_run_that_did_no_row_leaves_nothing_behind(source: str, words: list[str]):
    write("in.parquet", rows(5))
    write("empty.parquet", rows(0))
    assert predict(source, "out.parquet", *words) == 1
    assert not list(Path().glob("out.parquet*"))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"Age": [1], "name": ["a"], "v": [[1.0, 2.0]]}, "missing are 'age' (the table has 'Age')"),
        ({" age ": [1], "v": [[1.0, 2.0]]}, "missing are 'age', 'name' (the table has ' age ')"),
        ({"x": [1]}, "missing are 'age', 'name', 'v'. "),
        ({"x": [1]}, "Give the columns the model's names"),
    ],
)
def test_columns_that_the_table_lacks_are_named(columns: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]):
    parquet.write_table(pa.table(columns), "in.parquet")
    assert predict("in.parquet", "out.jsonl", kind="Fields") == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "1\n2\nold\n",
            "rows 1 to 3: column 'age' holds text, the model takes INT32: 'old' in row 3 of these is no number",
        ),
        (
            "1\n2\n3\nold\n",
            "rows 1 to 3: column 'age' holds text, the model takes INT32; in these rows each is a number",
        ),
    ],
)
def test_the_text_that_makes_a_column_of_a_csv_one_of_text_is_told(
    text: str, says: str, capsys: pytest.CaptureFixture[str]
):
    Path("model.py").write_text(
        SCRIPT.replace('TensorSpec("name", "BYTES", (-1, 1)), TensorSpec("v", "FP32", (-1, 2))', "")
    )
    Path("in.csv").write_text("age\n" + text)
    assert main(["predict", "model", "in.csv", "out.csv", "--class", "model.py:Fields", "--rows", "3"]) == 1
    assert says in capsys.readouterr().err


def rows_of(count: int) -> None:
    parquet.write_table(pa.table({name: [1.0] * count for name in "abc"}), "in.parquet")


def test_a_link_that_lies_where_the_output_is_made_leads_to_no_other_file(tmp_path: Path):
    rows_of(3)
    (tmp_path / "precious").write_text("mine")
    Path(".out.csv.partial").symlink_to("precious")
    assert predict("in.parquet", "out.csv") == 0
    assert Path("precious").read_text() == "mine"
    assert not Path("out.csv").is_symlink()
    assert len(Path("out.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("kind", ["a link", "of another user"])
def test_parts_that_somebody_else_put_there_are_not_taken_for_answers(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rows_of(3)
    Path("elsewhere").mkdir()
    if kind == "a link":
        Path("out.csv.parts").symlink_to("elsewhere")
    else:
        Path("out.csv.parts").mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # a second user is not ours to make
    assert predict("in.parquet", "out.csv") == 1
    assert f"out.csv.parts: is {kind}" in capsys.readouterr().err
    assert not list(Path("elsewhere").iterdir())


def test_a_part_that_is_damaged_is_told_with_the_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows_of(3)
    table = pa.table({"a": [1.0, 1.0, 666.0]})
    parquet.write_table(table.append_column("b", table["a"]).append_column("c", table["a"]), "in.parquet")
    assert predict("in.parquet", "out.csv", "--rows", "1", "--in-flight", "1") != 0
    (part,) = Path("out.csv.parts").glob("000000.parquet")
    part.write_bytes(part.read_bytes()[:20])
    capsys.readouterr()
    assert predict("in.parquet", "out.csv", "--rows", "1", "--in-flight", "1") == 1
    assert "a part cannot be read" in (said := capsys.readouterr().err)
    assert "--restart begins anew" in said


def test_texts_that_a_spreadsheet_would_run_are_written_as_they_are_and_told(capsys: pytest.CaptureFixture[str]):
    names = ["=cmd|' /C calc'!A0", "+1", "-x", "@SUM(A1)", "plain", "a=b", "\tx"]
    table = pa.table({"a": [1.0] * 7, "b": [-1.0] * 7, "c": [1.0] * 7, "name": names, "=id": list(range(7))})
    parquet.write_table(table, "in.parquet")
    words = ("--columns", "a,b,c", "--keep", "name,=id")
    assert predict("in.parquet", "out.csv", *words) == 0
    assert "out.csv: 6 texts begin with =, +, - or @" in "".join(capsys.readouterr()).replace("\n", " ").replace(
        "  ", " "
    )
    assert csv.read_csv("out.csv")["name"].to_pylist() == names
    assert predict("in.parquet", "out.parquet", *words) == 0
    assert "begin with" not in "".join(capsys.readouterr())


def test_a_table_of_many_columns_is_read_in_one_look():
    count = 20_000
    Path("in.csv").write_text(",".join(f"c{number}" for number in range(count)) + "\n" + ",".join("1" * count) + "\n")
    assert len(TableReader(Path("in.csv")).schema.names) == count
