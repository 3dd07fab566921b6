"""What a model directory that somebody else wrote may do: it is data. Each key of each file, tried.

The frameworks' own files are tried where their runtimes are: test_lightgbm_modelfile.py, test_xgboost_soundness.py,
test_torch_archive.py, test_tensorflow_graph.py, and test_onnx_server.py for external data.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deferred import Deferred
from ensemble_support import TEXT
from ensemble_support import write as write_ensemble
from lightgbm_support import load, save, train
from serinus.artifacts import read_labels
from serinus.cli.serving.options import parse
from serinus.cli.serving.startup_models import discover, find_models
from serinus.errors import ConfigError
from serinus.hosts import build_model
from serinus.loading import settings_from_directory
from serinus.loading.construction import construct
from serinus.loading.model_formats import RUNTIMES, is_runtime
from serinus.model import Model
from serinus.settings import ModelSettings
from serve_support import serving

kserve_classes = Deferred("kserve_classes")
document = Deferred("ensemble_server.document")
Ensemble = Deferred("ensemble_server.model", "Ensemble")

made: list[str] = []
"""What was called."""


class OwnModel(Model):
    """A model of the user's own."""

    def load(self) -> None:
        made.append("loaded")


def function(name: str) -> Model:
    made.append(name)
    return OwnModel(ModelSettings(name=name))


INSTANCE = OwnModel(ModelSettings(name="instance"))


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    made.clear()


def write(folder: Path, text: str | None = None, **document: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model-settings.json").write_text(json.dumps(document) if text is None else text)
    return folder


# implementation


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "os:system",
        "subprocess.Popen",
        "antigravity",
        "mlserver_huggingface.HuggingFaceRuntime",
        "xgboost_server.legacy",
        "xgboost_server.model:np.load",
        "xgboost_server:",
        "ensemble_server.__main__",
        f"{__name__}:OwnModel",
        "mypackage",
    ],
)
def test_a_name_that_is_no_installed_runtime_is_refused_with_the_flag_and_nothing_is_imported(
    name: str, tmp_path: Path
):
    write(tmp_path, name="touch x", implementation=name)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=f"--allow_implementation '{name.replace(':', '.')}'"):
        settings_from_directory(tmp_path)
    assert {module for module in set(sys.modules) - before if not module.startswith("encodings")} == set()


def declared_by(package: str) -> str:
    """The package's `__serinus_class__`, read: to import a runtime imports its framework."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    (declared,) = (
        ast.literal_eval(statement.value)
        for statement in ast.parse(Path(found.origin).read_text()).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__serinus_class__"
    )
    return declared


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.package)
def test_every_spelling_of_an_installed_runtime_needs_no_flag(runtime: Any, tmp_path: Path):
    declared = declared_by(runtime.package)
    assert declared == f"{runtime.package}.model:{runtime.model}"
    spellings = [runtime.package, declared, declared.replace(":", ".")]
    spellings += [f"{runtime.package}{mark}{runtime.model}" for mark in ":."]
    for name in spellings:
        assert is_runtime(name), name
        assert settings_from_directory(write(tmp_path, implementation=name))[0].implementation == name


@pytest.mark.parametrize(
    ("pattern", "is_allowed"),
    [
        ("*", True),
        (f"{__name__}.*", True),
        (f"{__name__}:OwnModel", True),
        (f"{__name__}.Own?odel", True),
        (f"{__name__}", False),
        (f"{__name__}.ownmodel", False),
        ("other.*", False),
        ("", False),
    ],
)
def test_a_pattern_allows_the_dotted_names_that_it_matches(pattern: str, is_allowed: bool, tmp_path: Path):
    write(tmp_path, name="m", implementation=f"{__name__}:OwnModel")
    if is_allowed:
        (settings,) = settings_from_directory(tmp_path, allow_implementation=[pattern])
        assert type(build_model(settings)) is OwnModel
    else:
        with pytest.raises(ConfigError, match="none of the installed runtimes"):
            settings_from_directory(tmp_path, allow_implementation=[pattern])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("os.system", "'os.system' is a function"),
        (f"{__name__}:function", "is a function"),
        (f"{__name__}:INSTANCE", "is an instance"),
        ("subprocess:Popen", "the class Popen, derived from"),
        (f"{__name__}:made", "is a list"),
    ],
)
def test_what_is_no_class_of_models_is_never_called_though_every_name_is_allowed(name: str, what: str, tmp_path: Path):
    marker = tmp_path / "called"
    (settings,) = settings_from_directory(
        write(tmp_path, name=f"touch {marker}", implementation=name), allow_implementation=["*"]
    )
    with pytest.raises(ConfigError, match=what):
        build_model(settings)
    assert not made
    assert not marker.exists()


def test_the_operator_may_name_a_function_or_an_instance_all_the_same(tmp_path: Path):
    (tmp_path / "model-settings.json").write_text('{"implementation": "os.system"}')
    for name in (f"{__name__}:function", f"{__name__}:INSTANCE"):
        (settings,) = settings_from_directory(tmp_path, implementation=name)
        assert isinstance(build_model(settings), OwnModel)


def test_the_class_under_serinus_runtime_is_held_to_the_same(tmp_path: Path):
    named = {"implementation": "serinus.hosts.mlserver_host.SerinusRuntime"}
    write(tmp_path, **named, parameters={"extra": {"class": "os.system"}})
    with pytest.raises(ConfigError, match=r"--allow_implementation 'os\.system'"):
        settings_from_directory(tmp_path)
    write(tmp_path, **named, parameters={"extra": {"class": ["os.system"]}})
    with pytest.raises(ConfigError, match="a string was expected"):
        settings_from_directory(tmp_path)


def test_a_runtime_of_mlservers_is_ours_unless_it_is_installed_and_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "m", implementation="mlserver_xgboost.XGBoostModel")
    (tmp_path / "code" / "mlserver_xgboost").mkdir(parents=True)
    (tmp_path / "code" / "mlserver_xgboost" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    with caplog.at_level(logging.INFO, "serinus.hosts"):
        assert settings_from_directory(tmp_path / "m")[0].implementation == "xgboost_server"
    assert "is not allowed by --allow_implementation, xgboost_server takes its place" in caplog.text
    (settings,) = settings_from_directory(tmp_path / "m", allow_implementation=["mlserver_*"])
    assert settings.implementation == "mlserver_xgboost.XGBoostModel"


def test_extra_settings_of_a_directory_cannot_widen_what_is_allowed(tmp_path: Path):
    write(
        tmp_path,
        name="m",
        implementation="kserve_classes.Taking",
        parameters={"extra": {"allow_implementation": ["*"]}},
    )
    (settings,) = settings_from_directory(tmp_path, allow_implementation=["kserve_classes.*"])
    assert construct(kserve_classes.Taking, settings).allowed == ("kserve_classes.*",)


def test_the_options_are_flags_variables_and_keys_and_take_several(tmp_path: Path):
    folder = write(tmp_path / "m", name="m", implementation=f"{__name__}.OwnModel")
    for words, environment in (
        (["--allow-implementation", f"x.*,{__name__}.OwnModel"], {}),
        (["--allow_implementation", "x.*", f"--allow_implementation={__name__}.*"], {}),
        ([], {"SERINUS_ALLOW_IMPLEMENTATION": f"x.*, {__name__}.*"}),
    ):
        (settings,) = find_models(parse([str(folder), *words], environment), None).models
        assert settings.implementation == f"{__name__}.OwnModel"
    (tmp_path / "own.json").write_text(json.dumps({"allow_implementation": [f"{__name__}.*"], "allow_uri": ["/data"]}))
    (settings,) = find_models(parse([str(folder), "--settings", str(tmp_path / "own.json")], {}), None).models
    assert (settings.allow_implementation, settings.allow_uri) == ((f"{__name__}.*",), (Path("/data"),))
    with pytest.raises(ConfigError, match="--allow_implementation"):
        find_models(parse([str(folder)], {}), None)


def test_a_load_from_the_repository_is_held_to_the_same(tmp_path: Path):
    write(tmp_path / "m", name="m", implementation="os.system")
    parsed = parse(["--model_repository", str(tmp_path), "--load_models_at_startup", "false"], {})
    with pytest.raises(ConfigError, match="none of the installed runtimes"):
        discover(parsed, tmp_path, "m")


@pytest.mark.slow
def test_a_server_neither_starts_with_nor_loads_what_calls_a_function(tmp_path: Path):
    marker = tmp_path / "called"
    repository = tmp_path / "repository"
    write(repository / "bad", name=f"touch {marker}", implementation="os.system")
    start = [sys.executable, "-m", "serinus.cli", "serve", str(repository / "bad")]
    ran = subprocess.run(
        [*start, "--host", "127.0.0.1", "--http_port", "0", "--grpc_port", "0"], capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert "--allow_implementation 'os.system'" in ran.stderr
    flags = ["--model_repository", str(repository), "--load_models_at_startup", "false", "--allow_implementation", "*"]
    with serving(tmp_path, *flags) as served:
        name = f"touch%20{str(marker).replace('/', '%2F')}"
        status, answer = served.ask("POST", f"/v2/repository/models/{name}/load", {})
        assert (status, "is a function" in answer["error"]) == (400, True), answer
        assert served.ask("GET", "/v2/health/live")[0] == 200
    assert not marker.exists()


# code beside the model


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.slow
def test_a_module_beside_the_model_is_never_imported_though_the_server_stands_in_its_folder(
    workers: str, tmp_path: Path
):
    folder = write(tmp_path / "m", name="m", implementation="conformance_models.Labels")
    for name in ("xgboost_server", "numpy", "orjson", "model", "sitecustomize_", "kserve", "uvloop"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\nraise SystemExit(9)\n"
        )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERINUS_", "MLSERVER_"))}
    script = Path(sys.executable).with_name("serinus")
    command = [
        str(script),
        "serve",
        ".",
        "--workers",
        workers,
        "--host",
        "127.0.0.1",
        "--http_port",
        "0",
        "--grpc_port",
        "0",
    ]
    command += ["--allow_implementation", "conformance_models.*"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[1] / "support")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        assert server.stderr is not None
        seen = ""
        try:
            for line in server.stderr:
                seen += line
                if "REST on" in line:
                    break
        finally:
            server.terminate()
            seen += server.stderr.read()
    assert "REST on" in seen, seen
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()


@pytest.mark.parametrize("key", ["environment_tarball", "environment_path"])
def test_an_environment_is_never_unpacked_and_it_is_said(key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "env.tar.gz").write_bytes(b"\x1f\x8b nothing that could be unpacked")
    before = {"env.tar.gz", "model-settings.json"}
    with caplog.at_level(logging.WARNING, "serinus.hosts"):
        settings_from_directory(write(tmp_path, implementation="xgboost_server", parameters={key: "env.tar.gz"}))
    assert "install what the model needs in the image" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "key", ["class", "transformer", "allow_implementation", "allow_uri", "extra", "model_dir", "model_implementation"]
)
def test_a_settings_json_beside_the_models_chooses_no_code_and_no_files(key: str, tmp_path: Path):
    folder = write(tmp_path / "m", name="m", implementation="xgboost_server")
    (folder / "settings.json").write_text(json.dumps({"http_port": 1, key: "os.system"}))
    with pytest.raises(ConfigError, match="is for the operator to say, not for a file beside the models"):
        parse([str(folder)], {})
    named = parse([str(folder), "--settings", str(folder / "settings.json")], {})
    assert named.values["http_port"] == 1


# model-settings.json as JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"name": "a", "implementation": "xgboost_server", "implementation": "os.system"}',
            "the key 'implementation' is there twice",
        ),
        ('{"parameters": {"uri": "a", "uri": "/etc"}}', "the key 'uri' is there twice"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"threads": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"name": "\\ud800"', "not JSON"),
        ("[]", "an object was expected"),
        ('{"parameters": {"uri": "a\\u0000b"}}', "no name of a file"),
        ("\udcff", "cannot be read"),
    ],
    ids=["twice", "twice below", "lists", "objects", "digits", "torn", "list", "zero byte", "no UTF-8"],
)
def test_json_made_to_hurt_is_refused_in_words(text: str, message: str, tmp_path: Path):
    (tmp_path / "model-settings.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        settings_from_directory(tmp_path)


def test_a_file_that_cannot_be_read_does_not_keep_a_repository_from_being_listed(tmp_path: Path):
    write(tmp_path / "deep", "[" * 100_000)
    write(tmp_path / "good", name="good", implementation="xgboost_server")
    parsed = parse(["--model_repository", str(tmp_path), "--load_models_at_startup", "false"], {})
    found = discover(parsed, tmp_path, "good")
    assert found is not None
    assert [settings.name for settings in found] == ["good"]


# parameters.uri, labels and links


@pytest.mark.parametrize(
    "uri", ["/etc", "/etc/passwd", "..", "../other/model.ubj", "a/../../other", "file:///etc/passwd", "link"]
)
def test_a_uri_that_leads_out_of_the_folder_is_refused_with_the_flag(uri: str, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.ubj").write_bytes(b"{")
    write(tmp_path / "m", implementation="xgboost_server", parameters={"uri": uri})
    (tmp_path / "m" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"leads out of .*--allow_uri"):
        settings_from_directory(tmp_path / "m")


def test_a_uri_inside_or_in_an_allowed_folder_is_followed(tmp_path: Path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "model.ubj").write_bytes(b"{")
    for uri in (str(tmp_path / "data" / "deep" / "model.ubj"), "../data/deep"):
        write(tmp_path / "m", implementation="xgboost_server", parameters={"uri": uri})
        (settings,) = settings_from_directory(tmp_path / "m", allow_uri=[tmp_path / "data"])
        assert settings.model_dir is not None
        assert settings.model_dir.exists()
    write(tmp_path / "data", implementation="xgboost_server", parameters={"uri": str(tmp_path / "data" / "deep")})
    assert settings_from_directory(tmp_path / "data")[0].model_dir == tmp_path / "data" / "deep"


def test_a_url_names_no_model_of_a_runtime_of_ours(tmp_path: Path):
    for uri in ("https://example.com/model.ubj", "s3://bucket/model.ubj"):
        write(tmp_path, implementation="xgboost_server", parameters={"uri": uri})
        with pytest.raises(ConfigError, match="no such file or directory"):
            settings_from_directory(tmp_path)


def load_error(folder: Path, package: str, **extra: Any) -> str:
    settings = ModelSettings(name="m", implementation=package, model_dir=folder, extra=extra)
    with pytest.raises(ConfigError) as caught:
        build_model(settings).load()
    return str(caught.value)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("xgboost_server", "model.ubj"),
        ("lightgbm_server", "model.txt"),
        ("sklearn_server", "model.skops"),
        ("catboost_server", "model.cbm"),
        ("onnx_server", "model.onnx"),
        pytest.param("torch_server", "model.pt", marks=pytest.mark.slow),  # importing PyTorch takes ~3 s
    ],
)
def test_a_model_file_that_is_a_link_out_of_the_folder_is_refused(package: str, name: str, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).symlink_to(tmp_path / "secret")
    assert "leads out of the model's directory" in load_error(tmp_path / "m", package)
    (tmp_path / "m" / name).unlink()
    (tmp_path / "m" / "data").write_text("no model")
    (tmp_path / "m" / name).symlink_to("data")  # as Kubernetes mounts a ConfigMap
    assert "leads out" not in load_error(tmp_path / "m", package)


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    write(tmp_path, implementation="xgboost_server", parameters={"uri": "a"})
    with pytest.raises(ConfigError, match=r"leads out|no such file"):
        settings_from_directory(tmp_path)


def test_a_folder_of_a_repository_that_is_a_link_out_of_it_is_refused(tmp_path: Path):
    write(tmp_path / "elsewhere", name="m", implementation="xgboost_server")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "m").symlink_to(tmp_path / "elsewhere")
    flags = ["--model_repository", str(tmp_path / "repository"), "--load_models_at_startup", "false"]
    with pytest.raises(ConfigError, match="leads out of the repository"):
        discover(parse(flags, {}), tmp_path / "repository", "m")
    with pytest.raises(ConfigError, match="leads out of"):
        settings_from_directory(tmp_path / "repository")
    assert discover(parse([*flags, "--allow_uri", str(tmp_path)], {}), tmp_path / "repository", "m")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.txt", "link.txt"])
def test_labels_are_read_from_the_model_s_own_folder_alone(name: str, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("a secret\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "link.txt").symlink_to(tmp_path / "secret.txt")
    settings = ModelSettings(name="m", model_dir=tmp_path / "m")
    with pytest.raises(ConfigError, match="leads out of the model's directory"):
        read_labels(settings, name)
    assert read_labels(ModelSettings(name="m", model_dir=tmp_path / "m", allow_uri=(Path("/"),)), name)


def test_labels_made_to_hurt_are_refused_in_words(tmp_path: Path):
    (tmp_path / "labels.json").write_text("[" * 100_000)
    (tmp_path / "labels.txt").write_bytes(b"\xff")
    for name in ("labels.json", "labels.txt"):
        with pytest.raises(ConfigError, match=name):
            read_labels(ModelSettings(name="m", model_dir=tmp_path), name)


# ensemble.yaml


def ensemble_problems(folder: Path, text: str, **arguments: Any) -> str:
    write_ensemble(folder, text)
    with pytest.raises(ConfigError) as caught:
        Ensemble("m", str(folder), **arguments).load()
    return str(caught.value)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "its aliases multiply them"),
        ("a: &a [*a]\n", "names itself by an alias"),
        ("a: &a {b: *a}\n", "names itself by an alias"),
        ("[" * 5000, "nested too deep|not YAML"),
        (
            "a: !!python/object/apply:os.system ['touch x']\n",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: !!python/name:os.system x\n", "could not determine a constructor"),
        ("a: !!python/object:os.Popen {}\n", "the tag"),
        ("a: !!set {b}\n", "the tag"),
        ("a: !!bool x\n", "cannot be read"),
        ("a: !!int ''\n", "cannot be read"),
        ("a: !!timestamp x\n", "cannot be read"),
        ("a: " + "x" * (1 << 20), "a description of an ensemble takes at most"),
        ("a: 1" + ":59" * 200_000, "is a number of 600001 digits"),
        ("a: 1" + ":59" * 180 + ".5", "is a number of 543 digits"),
    ],
    ids=[
        "laughs",
        "list in itself",
        "mapping in itself",
        "deep",
        "apply",
        "name",
        "object",
        "set",
        "bool",
        "int",
        "time",
        "long",
        "sixties",
        "a fraction of sixties",
    ],
)
def test_yaml_made_to_hurt_is_refused_in_words(text: str, message: str, tmp_path: Path):
    assert re.search(message, ensemble_problems(tmp_path, text))
    assert not (tmp_path / "x").exists()


def test_anchors_may_still_be_used_in_an_ensemble(tmp_path: Path):
    (tmp_path / "e.yaml").write_text("a: &shared [1, 2]\nb: *shared\n")
    assert document.load(tmp_path / "e.yaml")[0] == {"a": [1, 2], "b": [1, 2]}


def test_a_member_s_runtime_is_an_installed_one_or_allowed(tmp_path: Path):
    own = TEXT.replace("xgboost_server:XGBoostModel", f"{__name__}:OwnModel", 1)
    assert own != TEXT
    assert f"--allow_implementation '{__name__}.OwnModel'" in ensemble_problems(tmp_path, own)
    write_ensemble(tmp_path, own)
    with contextlib.suppress(ConfigError):  # it names no outputs
        Ensemble("m", str(tmp_path), allow_implementation=[f"{__name__}.*"]).load()
    assert made == ["loaded"]
    for name in (f"{__name__}:function", f"{__name__}:INSTANCE", "os:system"):
        wrong = TEXT.replace("xgboost_server:XGBoostModel", name, 1)
        assert "is " in ensemble_problems(tmp_path, wrong, allow_implementation=["*"])
    assert made == ["loaded"]


def test_a_combiner_is_one_that_an_installed_package_declares(tmp_path: Path):
    text = TEXT.replace("name: fraud", "name: os.system")
    assert text != TEXT
    assert "is no entry point of 'serinus.combiners'" in ensemble_problems(tmp_path, text)


# files that say what was verified


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "{}", '{"agrees": true, "iterations": [0, 1e99]}', "\0", '{"steps": [{}]}']
)
def test_a_verdict_that_is_not_ours_is_passed_over(content: str, tmp_path: Path):
    path = save(train(trees=2, leaves=3), tmp_path)
    path.with_name(f"{path.name}.verdict.json").write_text(content)
    assert load(path).details["engine"] == "forest"
