"""A pod template bound to ports and folders of this machine: words, variables, probes, and whom a transformer is led to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serinus.local.plan.deployment_plan import ComponentPlan, ContainerPlan
from serinus.local.plan.image_commands import Command
from serinus.local.plan.port_binding import Ports, ProcessPlan, bind, set_flag
from serinus.manifests.documents import Source, load_text

FIRST, SECOND = Ports(20001, 20002, 20003), Ports(20011, 20012, 20013)
SOURCE = Source(((load_text("kind: A\n", "f")[0], ()),))


def container(*words: str, ours: bool = False, command: tuple[str, ...] = ("run",), **fields: Any) -> ContainerPlan:
    own = {"SERINUS_APP": "x"} if ours else {}
    given: dict[str, Any] = {
        "env": {}, "working_dir": "", "http_port": 8080, "grpc_port": 8081, "model_name": "fraud", "readiness": None,
        "liveness": None, "port_names": {}, "name": "kserve-container",
    }  # fmt: skip
    return ContainerPlan(command=Command(command, own, ours), words=words, **(given | fields))


def component(*containers: ContainerPlan, **fields: Any) -> ComponentPlan:
    given: dict[str, Any] = {
        "kind": "predictor", "service": "default/fraud", "deployment": "fraud-predictor", "namespace": "default", "entry": 0,
        "storage": (), "timeout_s": 60.0, "replicas": 1, "knative": False, "digest": "d", "source": SOURCE,
    }  # fmt: skip
    return ComponentPlan(containers=containers, **(given | fields))


def bound(
    given: ContainerPlan, folders: dict[str, Path] | None = None, predictor: str | None = None, **fields: Any
) -> ProcessPlan:
    (process,) = bind(
        component(given, **fields), ports=[FIRST], folders=folders or {}, revision="r-1", predictor=predictor
    )
    return process


@pytest.mark.parametrize(
    ("words", "expected", "found"),
    [
        (("--http_port", "1"), ("--http_port", "9"), True),
        (("--http-port=1",), ("--http-port=9",), True),
        (("--http_port=",), ("--http_port=9",), True),
        (("a", "--x", "--http-port", "1", "b"), ("a", "--x", "--http-port", "9", "b"), True),
        (("--http_port", "1", "--http_port=2"), ("--http_port", "9", "--http_port=9"), True),
        (("--http_port",), ("--http_port",), True),
        (("--http", "1"), ("--http", "1"), False),
        (("http_port", "1"), ("http_port", "1"), False),
        (("--http_ports=1",), ("--http_ports=1",), False),
        ((), (), False),
    ],
)
def test_a_flag_is_given_another_value_in_both_spellings(
    words: tuple[str, ...], expected: tuple[str, ...], found: bool
):
    assert set_flag(words, ("http_port", "port"), "9") == (expected, found)


def test_ports_are_the_processes_own_in_flags_and_variables():
    process = bound(container("run", "--http_port=8080", "--grpc_port", "8081", "--host", "0.0.0.0"))
    assert process.argv == ("run", "--http_port=20001", "--grpc_port", "20002", "--host", "0.0.0.0")
    assert process.env == {
        "SERINUS_HOST": "127.0.0.1", "SERINUS_HTTP_PORT": "20001", "SERINUS_GRPC_PORT": "20002",
        "PORT": "20001", "HTTP_PORT": "20001", "GRPC_PORT": "20002", "SERINUS_REVISION": "r-1",
    }  # fmt: skip
    assert (process.ports, process.model_name, process.cwd, process.name) == (FIRST, "fraud", None, "kserve-container")


def test_an_image_of_ours_listens_on_loopback_and_drains_at_once():
    process = bound(container("serve", "--host=0.0.0.0", ours=True))
    assert process.argv == ("serve", "--host=127.0.0.1")
    assert process.env == {
        "SERINUS_HOST": "127.0.0.1", "SERINUS_HTTP_PORT": "20001", "SERINUS_GRPC_PORT": "20002",
        "SERINUS_DRAIN_DELAY_S": "0", "SERINUS_APP": "x", "SERINUS_REVISION": "r-1",
    }  # fmt: skip


@pytest.mark.parametrize(("written", "port"), [("8081", "20002"), ("8080", "20001"), ("99", "20001")])
def test_the_variable_PORT_is_the_one_that_the_manifest_meant(written: str, port: str):
    assert bound(container("run", env={"PORT": written})).env["PORT"] == port


def test_mlserver_gets_its_own_variables_and_nobody_else():
    env = bound(container("start", command=("/opt/mlserver", "start"))).env
    assert {name: value for name, value in env.items() if name.startswith("MLSERVER")} == {
        "MLSERVER_HOST": "127.0.0.1", "MLSERVER_HTTP_PORT": "20001", "MLSERVER_GRPC_PORT": "20002", "MLSERVER_METRICS_PORT": "20003",
    }  # fmt: skip
    assert not [name for name in bound(container("mlserver")).env if name.startswith("MLSERVER")]


@pytest.mark.parametrize("knative", [True, False])
def test_knatives_variables_are_told_where_it_is_knative(knative: bool):
    env = bound(container("run"), knative=knative).env
    told = {name: value for name, value in env.items() if name.startswith("K_")}
    expected = {"K_SERVICE": "fraud-predictor", "K_CONFIGURATION": "fraud-predictor", "K_REVISION": "r-1"}
    assert told == (expected if knative else {})


def test_folders_stand_in_for_mounts_the_longest_first_and_only_whole_ones():
    folders = {"/mnt/models": Path("/here/m"), "/mnt/models/a": Path("/here/a")}
    given = container(
        "--dir=/mnt/models", "/mnt/models/a/x:/mnt/models/b", "/mnt/models2", "x/mnt/models", "/mnt/models-old",
        env={"DIR": "/mnt/models/c"}, working_dir="/mnt/models/a",
    )  # fmt: skip
    process = bound(given, folders)
    assert process.argv == (
        "--dir=/here/m", "/here/a/x:/here/m/b", "/mnt/models2", "x/mnt/models", "/mnt/models-old",
    )  # fmt: skip
    assert process.env["DIR"] == "/here/m/c"
    assert process.cwd == "/here/a"


def test_a_folder_whose_name_has_backslashes_is_written_as_it_is():
    assert bound(container("/mnt/models/x"), {"/mnt/models": Path("/a\\1b\\g<0>")}).argv == ("/a\\1b\\g<0>/x",)


@pytest.mark.parametrize(
    ("words", "ours", "folders", "told"),
    [
        (("serve",), True, True, "/here/m"),
        (("serve",), False, True, None),
        (("serve",), True, False, None),
        (("serve", "--model_dir=/mnt/models/x"), True, True, None),
        (("serve", "--model-uri", "gs://x"), True, True, None),
    ],
)
def test_an_image_of_ours_is_told_its_models_folder_unless_its_flags_do(
    words: tuple[str, ...], ours: bool, folders: bool, told: str | None
):
    process = bound(container(*words, ours=ours), {"/mnt/models": Path("/here/m")} if folders else {})
    assert process.env.get("SERINUS_MODEL_DIR") == told
    own = bound(container("serve", ours=True, env={"SERINUS_MODEL_DIR": "/own"}), {"/mnt/models": Path("/here/m")})
    assert own.env["SERINUS_MODEL_DIR"] == "/own"


def test_neighbours_find_one_another_on_their_new_ports():
    first = container("--peer=localhost:9081", "127.0.0.1:9080", "localhost:7", "xlocalhost:9081", name="a")
    second = container(
        "--peer", "localhost:8080", name="b", http_port=9080, grpc_port=9081, env={"PEER": "localhost:8081"}
    )
    one, two = bind(component(first, second), ports=[FIRST, SECOND], folders={}, revision="r")
    assert one.argv == ("--peer=127.0.0.1:20012", "127.0.0.1:20011", "127.0.0.1:7", "xlocalhost:9081")
    assert two.argv == ("--peer", "127.0.0.1:20001")
    assert two.env["PEER"] == "127.0.0.1:20002"
    assert (two.ports, two.env["HTTP_PORT"]) == (SECOND, "20011")


def test_of_two_containers_with_the_same_port_the_first_is_the_one_that_is_found():
    one, two = bind(
        component(container("localhost:8080", name="a"), container("localhost:8080", name="b")),
        ports=[FIRST, SECOND], folders={}, revision="r",
    )  # fmt: skip
    assert one.argv == two.argv == ("127.0.0.1:20001",)


def test_as_many_ports_as_containers_are_given():
    with pytest.raises(ValueError, match="shorter"):
        bind(component(container("a"), container("b")), ports=[FIRST], folders={}, revision="r")


def test_references_in_words_are_to_the_bound_variables():
    process = bound(
        container("--port=$(HTTP_PORT)", "$(A)", "$(NONE)", env={"A": "/mnt/models"}), {"/mnt/models": Path("/m")}
    )
    assert process.argv == ("--port=20001", "/m", "$(NONE)")


def test_probes_find_their_ports_by_number_and_by_name():
    process = bound(container("run", port_names={"http": 8080, "h2c": 8081, "other": 9}))
    assert process.probe_ports == {8080: 20001, 8081: 20002, "http": 20001, "h2c": 20002}


AT = "127.0.0.1:30000"
TRANSFORMER = {"kind": "transformer", "deployment": "fraud-v2-transformer"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ("--predictor_host", AT)),
        (("--predictor_host", "fraud-v2-predictor"), ("--predictor_host", AT)),
        (("--predictor-host=fraud-v2-predictor:80",), (f"--predictor-host={AT}",)),
        (("--predictor_host=http://fraud-predictor/x",), (f"--predictor_host={AT}",)),
        (("--predictor_host=fraud-predictor.default",), (f"--predictor_host={AT}",)),
        (("--predictor_host=fraud-predictor.default.svc.cluster.local:80",), (f"--predictor_host={AT}",)),
        (("--predictor_host=fraud-predictor.other",), ("--predictor_host=fraud-predictor.other",)),
        (("--predictor_host=another",), ("--predictor_host=another",)),
    ],
)
def test_a_transformer_is_led_to_the_predictor_of_its_chain_unless_it_names_somebody_elses(
    words: tuple[str, ...], expected: tuple[str, ...]
):
    assert bound(container(*words), predictor=AT, **TRANSFORMER).argv == expected
    assert bound(container(*words), **TRANSFORMER).argv == words, "without one nothing is led anywhere"


def test_a_predictors_new_address_is_not_moved_again():
    words = ("--predictor_host", "fraud-predictor")
    given = container(*words, http_port=30000)
    assert bound(given, predictor=AT, **TRANSFORMER).argv == ("--predictor_host", AT)
