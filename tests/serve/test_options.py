"""Flags, environment and settings file of `serinus serve`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serinus.cli.serving import serve
from serinus.cli.serving.option_table import OPTIONS
from serinus.cli.serving.options import parse
from serinus.cli.serving.startup_models import discover, find_models
from serinus.errors import ConfigError
from serinus.hosts.implementations import resolve
from serinus.settings import ModelSettings


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"http_port": 1, "grpc_port": 2, "workers": 3}))
    parsed = parse(
        ["--settings", str(file), "--http_port", "10"], {"SERINUS_HTTP_PORT": "20", "SERINUS_GRPC_PORT": "30"}
    )
    assert [parsed.values[name] for name in ("http_port", "grpc_port", "workers")] == [10, 30, 3]
    assert parsed.sources["http_port"] == "--http_port"
    assert parsed.sources["grpc_port"] == "SERINUS_GRPC_PORT"
    assert parsed.sources["workers"] == str(file)
    assert parsed.sources["log_level"] == "default"


@pytest.mark.parametrize(
    "words",
    [["--http_port", "9000"], ["--http-port", "9000"], ["--http_port=9000"], ["--http-port=9000"]],
    ids=["underscore", "dash", "underscore-equals", "dash-equals"],
)
def test_every_spelling_of_a_flag_is_the_same_flag(words: list[str]):
    assert parse(words, {}).values["http_port"] == 9000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--enable_grpc", "false"], False),
        (["--enable_grpc=False"], False),
        (["--no-enable-grpc"], False),
        (["--enable_grpc"], True),
        (["--enable_grpc", "model"], True),
    ],
    ids=["value", "equals", "negated", "bare", "bare-before-a-path"],
)
def test_a_truth_value_is_read_in_every_usual_form(words: list[str], expected: bool):
    assert parse(words, {}).values["enable_grpc"] is expected


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["--http_prot", "1"], {}, r"--http_prot is not a flag .* did you mean --http-port"),
        ([], {"MLSERVER_HTTP_PROT": "1"}, r"MLSERVER_HTTP_PROT is not a setting .* did you mean MLSERVER_HTTP_PORT"),
        ([], {"SERINUS_WORKRES": "1"}, r"SERINUS_WORKRES is not a setting .* did you mean SERINUS_WORKERS"),
        (["--http_port", "many"], {}, r"--http_port: 'many' is not a whole number"),
        (["--http_port", "70000"], {}, r"--http_port: '70000' is no port"),
        (["--workers", "-1"], {}, r"--workers: '-1' must not be negative"),
        (["--grpc_max_receive_message_length=-1"], {}, r"'-1' must not be negative; 'no limit' is 2147483647"),
        (["--max_batch_rows", "0"], {}, r"--max_batch_rows: '0' must be at least 1"),
        ([], {"MLSERVER_MODEL_EXTRA": "[1]"}, r"MLSERVER_MODEL_EXTRA: '\[1\]' is no JSON object"),
        ([], {"MLSERVER_MODEL_EXTRA": "{"}, r"MLSERVER_MODEL_EXTRA: not JSON"),
        (["--http", "unicorn"], {}, r"--http: 'unicorn' is not one of thin, uvicorn; did you mean uvicorn"),
        (["--http_port"], {}, r"--http_port needs a value"),
        (["-p", "1"], {}, r"-p: flags begin with two dashes"),
        ([], {"SERINUS_ENABLE_GRPC": "perhaps"}, r"SERINUS_ENABLE_GRPC: 'perhaps' is neither true nor false"),
    ],
    ids=lambda value: None,
)
def test_a_wrong_option_is_refused_with_the_right_one(words: list[str], environment: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        parse(words, environment)


def test_all_problems_are_shown_together():
    with pytest.raises(ConfigError) as caught:
        parse(["--http_prot", "1", "--workers", "x"], {"MLSERVER_NONSENSE": "1"})
    assert len(caught.value.problems) == 3


def test_an_unknown_key_of_the_settings_file_is_refused(tmp_path: Path):
    file = tmp_path / "settings.json"
    file.write_text('{"http_prot": 1}')
    with pytest.raises(ConfigError, match=r"http_prot is not a setting of serinus; did you mean http_port"):
        parse(["--settings", str(file)], {})


def test_mlservers_names_are_taken_where_the_meaning_is_the_same():
    parsed = parse(
        [],
        {
            "MLSERVER_HTTP_PORT": "9090",
            "MLSERVER_MODEL_NAME": "fraud",
            "MLSERVER_MODEL_URI": "/mnt/models",
            "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
        },
    )
    assert parsed.values["http_port"] == 9090
    assert parsed.values["model_name"] == "fraud"
    assert parsed.values["model_dir"] == "/mnt/models"
    assert parsed.values["load_models_at_startup"] is False


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--enable_latency_logging", "false", "--max_threads=4", "model"], {}),
        (["model"], {"MLSERVER_PARALLEL_WORKERS": "1", "MLSERVER_DEBUG": "false"}),
    ],
    ids=["kserve", "mlserver"],
)
def test_what_has_no_meaning_here_is_accepted_with_a_warning(words: list[str], environment: dict[str, str]):
    parsed = parse(words, environment)
    assert len(parsed.warnings) == 2
    assert all("has no effect here: " in warning for warning in parsed.warnings)
    assert parsed.paths == ("model",)


def test_the_kubelets_service_links_are_no_settings():
    links = {
        "SERINUS_SERVICE_HOST": "10.0.0.1",
        "SERINUS_SERVICE_PORT_HTTP": "80",
        "SERINUS_PORT": "tcp://10.0.0.1:80",
        "SERINUS_PORT_80_TCP_ADDR": "10.0.0.1",
        "MLSERVER_SERVICE_PORT": "80",
    }
    assert parse([], links).warnings == ()


@pytest.mark.parametrize(
    ("variable", "option"),
    [
        ("SERINUS_METRICS_PORT", "metrics_port"),
        ("MLSERVER_METRICS_PORT", "metrics_port"),
        ("SERINUS_HTTP_PORT", "http_port"),
        ("MLSERVER_HTTP_PORT", "http_port"),
        ("SERINUS_GRPC_PORT", "grpc_port"),
        ("MLSERVER_GRPC_PORT", "grpc_port"),
    ],
)
@pytest.mark.parametrize("value", ["tcp://10.96.13.7:9000", "udp://10.96.13.7:53", "tcp://[fd00::7]:9000"])
def test_a_service_link_that_has_a_settings_name_is_ignored_and_told(variable: str, option: str, value: str):
    parsed = parse([], {variable: value})
    assert parsed.sources[option] == "default"
    assert len(parsed.warnings) == 1
    assert f"{variable}={value} is Kubernetes' link to a Service" in parsed.warnings[0]


def test_a_service_link_hides_no_variable_of_the_same_setting():
    parsed = parse([], {"SERINUS_METRICS_PORT": "tcp://10.96.13.7:9000", "MLSERVER_METRICS_PORT": "9100"})
    assert parsed.values["metrics_port"] == 9100


def test_a_port_that_is_neither_a_number_nor_a_link_is_refused():
    with pytest.raises(ConfigError, match="'tcp:9000' is not a whole number"):
        parse([], {"SERINUS_METRICS_PORT": "tcp:9000"})


def test_our_variable_wins_over_anothers_for_the_same_option():
    parsed = parse([], {"INFERENCE_SERVICE_NAME": "a", "MLSERVER_MODEL_NAME": "b", "SERINUS_MODEL_NAME": "c"})
    assert parsed.values["model_name"] == "c"


def test_a_repeated_option_collects():
    assert parse(["--extra", "a=1", "--extra=b=2"], {}).values["extra"] == ("a=1", "b=2")


def test_kserves_whole_command_line_parses():
    words = (
        "--model_name m --model_dir /d --http_port 1 --grpc_port 2 --workers 3 --nthread 4 --predictor_host h:1 "
        "--predictor_protocol grpc-v2 --predictor_use_ssl true --predictor_request_timeout_seconds 5 "
        "--predictor_request_retries 6 --enable_predictor_health_check --enable_grpc true --enable_docs_url true "
        "--grpc_max_send_message_length 7 --grpc_max_receive_message_length 8 --timeout-keep-alive 9 "
        "--ssl_certfile c --ssl_keyfile k --max_threads 4 --max_asyncio_workers 2 --enable_latency_logging true "
        "--configure_logging true --log_config_file f --access_log_format a --event-loop auto --protocol v2"
    )
    parsed = parse(words.split(), {})
    assert parsed.values["predictor_protocol"] == "grpc-v2"
    assert parsed.values["timeout_keep_alive_s"] == 9.0
    assert parsed.paths == ()


def test_every_option_has_help_and_its_names_are_its_own():
    flags = [flag for option in OPTIONS for flag in option.all_flags()]
    variables = [name for option in OPTIONS for name in option.all_env()]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))
    assert [option.name for option in OPTIONS if not option.help] == []


def test_a_model_that_is_loaded_later_gets_the_settings_of_the_command_line_too(tmp_path: Path):
    folder = tmp_path / "later"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"")
    words = [
        "--model_repository",
        str(tmp_path),
        "--nthread",
        "3",
        "--max_batch_rows",
        "7",
        "--extra",
        "optimization=basic",
    ]
    (found,) = discover(parse(words, {}), tmp_path, "later") or ()
    assert (found.name, found.threads, found.batch.max_batch_rows) == ("later", 3, 7)
    assert found.extra == {"optimization": "basic"}


@pytest.mark.parametrize("name", ["nope", "", ".", "..", ".hidden", "../later", "/", "later/.", "n" * 300, "nul\0"])
def test_a_name_that_is_no_folder_of_the_repository_is_nothing_to_load(tmp_path: Path, name: str):
    for folder in ("later", ".hidden"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.onnx").write_bytes(b"")
    assert discover(parse(["--model_repository", str(tmp_path)], {}), tmp_path, name) is None


@pytest.mark.parametrize(("folders", "version"), [(["one"], "5"), (["one", "two"], "")])
def test_a_version_for_one_model_is_not_given_to_one_of_several_when_it_is_loaded_again(
    tmp_path: Path, folders: list[str], version: str
):
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.onnx").write_bytes(b"")
    parsed = parse(["--model_repository", str(tmp_path), "--model_version", "5"], {})
    assert {settings.version for settings in find_models(parsed, tmp_path).models} == {version}
    assert {settings.version for settings in discover(parsed, tmp_path, "one") or ()} == {version}


def test_a_named_directory_is_read_again_by_the_name_that_it_is_served_under(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"")
    parsed = parse([str(tmp_path), "--model_name", "m"], {})
    (found,) = discover(parsed, None, "m") or ()
    assert found.model_dir == tmp_path
    assert discover(parsed, None, "other") is None


def test_mlservers_extra_is_so_many_settings_of_the_runtime():
    assert parse([], {"MLSERVER_MODEL_EXTRA": '{"output": "margin", "depth": 3}'}).values["extra"] == (
        'output="margin"',
        "depth=3",
    )
    assert parse(["--extra", "a=1"], {"MLSERVER_MODEL_EXTRA": '{"b": 2}'}).values["extra"] == ("a=1",)


@pytest.mark.parametrize("size", ["0", "1"])
def test_mlservers_word_for_no_batching_changes_nothing_and_is_told(size: str):
    parsed = parse([], {"MLSERVER_MODEL_MAX_BATCH_SIZE": size})
    assert parsed.values["max_batch_rows"] is None
    assert "--max_batch_rows 1 predicts each alone" in parsed.warnings[0]
    assert parse([], {"MLSERVER_MODEL_MAX_BATCH_SIZE": "64"}).values["max_batch_rows"] == 64


def test_settings_beside_the_models_are_read_as_mlserver_reads_them(tmp_path: Path):
    (tmp_path / "settings.json").write_text('{"http_port": 40, "parallel_workers": 2}')
    assert parse([str(tmp_path)], {}).values["http_port"] == 8080  # a folder of another kind may have one of its own
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model-settings.json").write_text("{}")
    for words in ([str(tmp_path)], ["--model_repository", str(tmp_path)]):
        parsed = parse(words, {})
        assert (parsed.values["http_port"], parsed.sources["http_port"]) == (40, str(tmp_path / "settings.json"))
    assert parse([str(tmp_path), "--http_port", "50"], {}).values["http_port"] == 50
    other = tmp_path / "other"
    other.mkdir()
    for name in ("settings.json", "model-settings.json"):
        (other / name).write_text("{}")
    with pytest.raises(ConfigError, match="choose one with --settings"):
        parse([str(tmp_path), str(other)], {})
    chosen = parse([str(tmp_path), str(other), "--settings", str(other / "settings.json")], {})
    assert chosen.values["http_port"] == 8080


RUNTIMES_OF_HELP = {
    "xgboost_server": ("--extra iteration_range=...", "--extra missing=...", "--extra engine=..."),
    "lightgbm_server": ("--extra num_iteration_predict=...", "--extra input_form=..."),
    "sklearn_server": ("--extra method=...", "--extra engine=..."),
    "catboost_server": ("--extra engine=...", "--extra input_form=..."),
    "onnx_server": ("--extra providers=...", "--extra optimization=..."),
    "torch_server": ("--extra device=...", "--extra class=..."),
}


@pytest.mark.parametrize("package", RUNTIMES_OF_HELP)
@pytest.mark.parametrize("words", [["--help", "--class", "{}"], ["--class={}", "-h"]])
def test_the_help_of_a_runtime_has_its_own_settings(package: str, words: list[str], capsys: pytest.CaptureFixture[str]):
    assert serve.main([word.format(package) for word in words]) == 0
    told = capsys.readouterr().out
    assert f"Settings of {package} (--extra KEY=VALUE" in told
    for line in RUNTIMES_OF_HELP[package]:
        assert line in told


@pytest.mark.parametrize("package", RUNTIMES_OF_HELP)
@pytest.mark.slow
def test_each_setting_of_a_runtime_is_known_to_it_and_a_typo_is_told_the_nearest(package: str, tmp_path: Path):
    cls = resolve(package).target
    assert len(cls.extra_settings) > 3
    for key in cls.extra_settings:
        typo = key[:-1] + key[-1] * 2
        with pytest.raises(ConfigError, match=f"extra setting '{typo}' is unknown; .*did you mean {key}"):
            (tmp_path / "model.pt").write_bytes(b"")
            cls(ModelSettings(name="m", model_dir=tmp_path, extra={typo: 1})).load()


def test_the_help_finds_the_runtime_by_the_model_and_says_how_to_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "models").write_bytes(b"tree\nversion=v4\n")
    assert serve.main(["--help", str(tmp_path / "models")]) == 0
    assert "Settings of lightgbm_server" in capsys.readouterr().out
    assert serve.main(["--help"]) == 0
    assert "--class RUNTIME --help lists those of a runtime" in capsys.readouterr().out
    assert serve.main(["--help", "--class", "no_such_server"]) == 0
    assert "no_such_server" in capsys.readouterr().out


def test_the_help_of_a_class_has_the_arguments_that_only_extra_fills(capsys: pytest.CaptureFixture[str]):
    assert serve.main(["--help", "--class", "options_classes:Named"]) == 0
    told = capsys.readouterr().out
    assert "--extra colour=..." in told
    assert "(default 'red')" in told
    assert "--extra model_dir" not in told
