"""Traces of real servers, as a real collector decodes them: who asked whom, how long it took, by which conventions."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import grpc
from otlp_receiver import Collector, Received, receiving
from serinus.cli.serving.log_lines import JsonLines
from serinus.protocol import _open_inference_pb2 as pb
from serve_support import Served, serving

SUPPORT = Path(__file__).parents[1] / "support"
MODEL, TRANSFORMER = f"{SUPPORT / 'traced_model.py'}:Double", f"{SUPPORT / 'traced_classes.py'}:AddOne"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{SPAN}-{flags}" for flags in ("01", "00"))
BODY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with receiving() as running:
        yield running


@pytest.fixture(scope="module")
def model(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    environment = collector.environment(OTEL_SERVICE_NAME="the-model", OTEL_RESOURCE_ATTRIBUTES="k8s.pod.name=p")
    words = [
        "--class",
        MODEL,
        "--model_name",
        "m",
        "--revision",
        "r1",
        "--access_log",
        "--log_format",
        "json",
    ]
    with serving(tmp_path_factory.mktemp("model"), *words, environment=environment) as served:
        yield served


def ask(server: Served, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **fields})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


def of_trace(collector: Collector, trace_id: str, count: int) -> dict[str, Received]:
    """Wait for the spans of a trace; by name."""
    from waiting import wait_until

    wait_until(lambda: sum(span.trace_id == trace_id for span in collector.spans) >= count, limit_s=30)
    found = [span for span in collector.spans if span.trace_id == trace_id]
    assert len(found) == count, [span.name for span in found]
    # A client's span has the name of the server's that it asks.
    return {f"{span.service}: {'to ' * (span.kind == 'client')}{span.name}": span for span in found}


def test_a_request_has_its_server_span_and_in_it_queue_batch_and_predict(model: Served, collector: Collector):
    status, headers, _ = ask(model, "/v2/models/m/infer?a=b", BODY, X_Request_Id="mine", User_Agent="me/1")
    assert status == 200
    _, trace_id, server_id, flags = headers["traceparent"].split("-")
    spans = of_trace(collector, trace_id, 4)
    server = spans["the-model: POST /v2/models/{model}/infer"]
    assert (server.kind, server.parent_id, server.span_id, flags) == ("server", "", server_id, "01")
    size = server.attributes.pop("http.response.body.size")
    assert size > 0
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": 200,
        "url.path": "/v2/models/m/infer",
        "url.query": "a=b",
        "url.scheme": "http",
        "user_agent.original": "me/1",
        "serinus.model.name": "m",
        "serinus.revision": "r1",
        "serinus.request.id": "mine",
    }
    assert server.error is None
    queue, batch, predict = (spans[f"the-model: {name} m"] for name in ("queue", "batch", "predict"))
    assert queue.parent_id == batch.parent_id == server.span_id
    assert predict.parent_id == batch.span_id
    assert {each.kind for each in (queue, batch, predict)} == {"internal"}
    assert batch.attributes["serinus.batch.rows"] == batch.attributes["serinus.rows"] == 1
    times = [
        server.start_ns,
        queue.start_ns,
        batch.start_ns,
        predict.start_ns,
        predict.end_ns,
        batch.end_ns,
        server.end_ns,
    ]
    assert times == sorted(times)
    assert queue.end_ns == batch.start_ns
    lines = [json.loads(line) for line in model.log.read_text().splitlines() if '"serinus.access"' in line]
    assert (trace_id, "mine") in [(line["trace_id"], line["request_id"]) for line in lines]


def test_a_trace_that_a_client_began_goes_on(model: Served, collector: Collector):
    _, headers, _ = ask(model, "/v2/models/m/infer", BODY, traceparent=SAMPLED)
    spans = of_trace(collector, TRACE, 4)
    assert spans["the-model: POST /v2/models/{model}/infer"].parent_id == SPAN
    assert headers["traceparent"].startswith(f"00-{TRACE}-")


def test_an_error_of_the_server_is_one_of_its_spans(model: Served, collector: Collector):
    body = {"inputs": [{**BODY["inputs"][0], "data": [-1, 2]}]}
    status, headers, told = ask(model, "/v2/models/m/infer", body)
    trace_id = headers["traceparent"].split("-")[1]
    spans = of_trace(collector, trace_id, 4)
    assert (status, told["trace_id"]) == (500, trace_id)
    server = spans["the-model: POST /v2/models/{model}/infer"]
    assert (server.error, server.attributes["error.type"]) == ("500", "500")
    predict = spans["the-model: predict m"].error
    assert predict is not None
    assert "secret" not in predict
    assert "log has the details" in predict
    lines = [json.loads(line) for line in model.log.read_text().splitlines() if '"ERROR"' in line]
    assert (trace_id, told["request_id"]) in [(line["trace_id"], line["request_id"]) for line in lines]


@pytest.mark.parametrize(
    ("path", "body", "status", "name"),
    [
        ("/v2/models/nobody/infer", BODY, 404, "POST /v2/models/{model}/infer"),
        ("/v2/models/m/infer", {"inputs": []}, 400, "POST /v2/models/{model}/infer"),
        ("/nowhere", {}, 404, "POST"),
    ],
    ids=["no model", "no input", "no path"],
)
def test_a_clients_fault_is_no_error_of_the_server(
    path: str, body: Any, status: int, name: str, model: Served, collector: Collector
):
    found, headers, _ = ask(model, path, body)
    spans = of_trace(collector, headers["traceparent"].split("-")[1], 1)
    span = spans[f"the-model: {name}"]
    assert (found, span.attributes["http.response.status_code"], span.error) == (status, status, None)


def infer_message() -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1, 2])
    return pb.ModelInferRequest(model_name="m", inputs=[tensor]).SerializeToString()


def call(server: Served, path: str, message: bytes, **metadata: str) -> tuple[dict[str, str], grpc.RpcError | None]:
    fields = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        try:
            _, done = channel.unary_unary(path).with_call(message, metadata=fields, timeout=20)
        except grpc.RpcError as error:
            return dict(error.trailing_metadata() or ()), error
        return dict(done.initial_metadata()), None


INFER = "/inference.GRPCInferenceService/ModelInfer"


def test_a_gRPC_call_has_its_spans_by_the_conventions_of_RPC(model: Served, collector: Collector):
    headers, _ = call(model, INFER, infer_message(), x_request_id="over-grpc")
    assert headers["x-request-id"] == "over-grpc"
    trace_id = headers["traceparent"].split("-")[1]
    spans = of_trace(collector, trace_id, 4)
    server = spans["the-model: inference.GRPCInferenceService/ModelInfer"]
    assert server.kind == "server"
    assert server.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "serinus.model.name": "m",
        "serinus.revision": "r1",
        "serinus.request.id": "over-grpc",
    }
    assert spans["the-model: queue m"].parent_id == server.span_id
    failed, error = call(model, INFER, pb.ModelInferRequest(model_name="nobody").SerializeToString())
    assert error is not None
    assert failed["x-request-id"]


def test_probes_are_not_traced(model: Served, collector: Collector):
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v1/models/m", "/metrics"):
        assert model.ask("GET", path)[0] == 200
    for path in ("/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerLive"):
        assert call(model, path, b"")[1] is None
    _, headers, _ = ask(model, "/v2/models/m/infer", BODY)  # what comes after them has come
    of_trace(collector, headers["traceparent"].split("-")[1], 4)
    paths = {span.attributes.get("url.path", span.attributes.get("rpc.method")) for span in collector.spans}
    assert not {path for path in paths if path and ("health" in path or "ready" in path or path in ("/", "/metrics"))}
    assert "inference.GRPCInferenceService/ServerLive" not in paths


@pytest.mark.slow
@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
def test_a_trace_goes_through_transformer_and_predictor(hop: str, model: Served, collector: Collector, tmp_path: Path):
    port = model.http_port if hop == "v2" else model.grpc_port
    words = ["--class", TRANSFORMER, "--model_name", "m", "--predictor_host", f"127.0.0.1:{port}"]
    environment = collector.environment(OTEL_SERVICE_NAME="the-transformer")
    with serving(tmp_path, *words, "--predictor_protocol", hop, environment=environment) as transformer:
        status, headers, answer = ask(transformer, "/v2/models/m/infer", BODY)
        assert (status, answer["outputs"][0]["data"]) == (200, [4.0, 6.0])
        spans = of_trace(collector, headers["traceparent"].split("-")[1], 10)
    client = next(span for span in spans.values() if span.kind == "client")
    predictor = next(span for span in spans.values() if span.kind == "server" and span.service == "the-model")
    assert spans["the-transformer: predict m"].span_id == client.parent_id
    assert predictor.parent_id == client.span_id
    assert spans["the-model: queue m"].parent_id == predictor.span_id
    own = spans["the-transformer: look up"]
    assert (own.parent_id, own.scope) == (spans["the-transformer: predict m"].span_id, "an author's")
    assert client.attributes["server.address"] == "127.0.0.1"
    assert client.attributes["server.port"] == port
    if hop == "v2":
        assert client.name == "POST /v2/models/{model}/infer"
        assert client.attributes["http.response.status_code"] == 200
        assert client.attributes["url.full"] == f"http://127.0.0.1:{port}/v2/models/m/infer"
    else:
        assert client.attributes["rpc.response.status_code"] == "OK"


@pytest.mark.slow
def test_a_trace_goes_through_the_fused_pipeline(collector: Collector, tmp_path: Path):
    words = ["--class", MODEL, "--transformer", TRANSFORMER, "--model_name", "m"]
    environment = collector.environment(OTEL_SERVICE_NAME="fused")
    with serving(tmp_path, *words, environment=environment) as fused:
        _, headers, _ = ask(fused, "/v2/models/m/infer", BODY)
        spans = of_trace(collector, headers["traceparent"].split("-")[1], 8)
    for name in ("queue", "batch"):
        assert spans[f"fused: {name} m-predictor"].parent_id == spans["fused: predict m"].span_id
    assert spans["fused: predict m-predictor"].parent_id == spans["fused: batch m-predictor"].span_id


@pytest.mark.slow
@PROTOCOLS
def test_spans_of_the_last_request_are_sent_before_the_process_ends(protocol: str, tmp_path: Path):
    with receiving(protocol) as collector:
        environment = {**collector.environment(protocol), "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        with serving(tmp_path, "--class", MODEL, "--model_name", "m", environment=environment) as server:
            ask(server, "/v2/models/m/infer", BODY)
            assert server.stop() == 0
        assert len(collector.wait(4)) == 4
        assert {span.service for span in collector.spans} == {"serinus"}


@pytest.mark.slow
def test_the_sampler_of_the_environment_decides_and_a_clients_no_is_kept(tmp_path: Path):
    with receiving() as collector:
        environment = collector.environment(OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
        with serving(tmp_path, "--class", MODEL, "--model_name", "m", environment=environment) as server:
            _, headers, _ = ask(server, "/v2/models/m/infer", BODY)
            assert headers["traceparent"].endswith("-00")
            _, headers, _ = ask(server, "/v2/models/m/infer", BODY, traceparent=UNSAMPLED)
            assert headers["traceparent"].startswith(f"00-{TRACE}")
            assert headers["traceparent"].endswith("-00")
            ask(server, "/v2/models/m/infer", BODY, traceparent=SAMPLED)
            assert {span.trace_id for span in collector.wait(4)} == {TRACE}
            assert server.stop() == 0
        assert len(collector.spans) == 4


@pytest.mark.slow
def test_a_collector_that_is_not_there_keeps_no_server_from_serving_or_ending(tmp_path: Path):
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_SAMPLER": "no such sampler"}
    with serving(tmp_path, "--class", MODEL, "--model_name", "m", environment=environment) as server:
        assert ask(server, "/v2/models/m/infer", BODY)[0] == 200
        assert server.stop() == 0


async def test_requests_of_one_batch_are_linked_in_the_trace_of_each():
    from rest_support import Raw, X, rest, wire
    from serinus.server.rest.rest_server import start_rest
    from serinus.settings import ServerSettings

    with receiving() as collector, tracer_to(collector) as tracer:
        async with rest("row") as server:
            traced = await start_rest(
                server.plane, ServerSettings(host="127.0.0.1", http_port=0), metrics=server.metrics, tracer=tracer
            )
            client = await Raw.open(traced.port)
            await client.send(wire("POST", "/v2/models/row/infer", X) * 3)
            assert [(await client.answer()).status for _ in range(3)] == [200] * 3
            await client.close()
            await traced.close()
        await asyncio.get_running_loop().run_in_executor(None, tracer.close)
        spans = collector.wait(12)
    servers = {span.trace_id: span.span_id for span in spans if span.kind == "server"}
    batches = [span for span in spans if span.name == "batch row"]
    assert len(servers) == len(batches) == 3
    for batch in batches:
        assert batch.attributes["serinus.batch.requests"] == 3
        assert set(batch.links) == set(servers.values()) - {servers[batch.trace_id]}


@contextlib.contextmanager
def tracer_to(collector: Collector) -> Iterator[Any]:
    """A tracer of this process, which is none's afterwards."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from serinus.tracing.tracer import Tracer, install

    provider = TracerProvider(resource=Resource({"service.name": "here"}), shutdown_on_exit=False)
    processor = BatchSpanProcessor(OTLPSpanExporter(collector.endpoint, insecure=True), schedule_delay_millis=20)
    tracer = Tracer(provider, [processor])
    install(tracer)
    try:
        yield tracer
    finally:
        install(None)
        provider.shutdown()


@pytest.mark.slow  # starts a router
async def test_a_graph_s_router_goes_on_with_the_trace():
    from opentelemetry import trace  # noqa: F401 # its absence would be another failure

    from serinus.local.router.router_process import GraphRouter
    from serinus.local.router.router_settings import RouterSettings
    from serinus.manifests.graphs.inference_graph import parse_nodes

    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(2)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        writer.close()

    service = await asyncio.start_server(serve, "127.0.0.1", 0)
    gateway = ("127.0.0.1", service.sockets[0].getsockname()[1])
    step = {"serviceUrl": "http://a.default.svc.cluster.local/v2/models/a/infer", "name": "a"}
    nodes = parse_nodes({"root": {"routerType": "Sequence", "steps": [step, {**step, "name": "b"}]}})
    with receiving() as collector, tracer_to(collector) as tracer:
        router = GraphRouter(RouterSettings("default/g", nodes), gateway)
        reader, writer = await asyncio.open_connection("127.0.0.1", await router.listen(0))
        writer.write(
            b"POST /x HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\nconnection: close\r\ntraceparent: %b\r\n\r\n{}"
            % SAMPLED.encode()
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        await router.close()
        service.close()
        await asyncio.get_running_loop().run_in_executor(None, tracer.close)
        spans = collector.wait(3)
    server = next(span for span in spans if span.kind == "server")
    clients = [span for span in spans if span.kind == "client"]
    assert (server.name, server.parent_id, server.trace_id) == ("POST default/g", SPAN, TRACE)
    assert [client.parent_id for client in clients] == [server.span_id] * 2
    sent = [head.decode().split("traceparent: ")[1].split("\r\n")[0] for head in heads]
    assert sent == [f"00-{TRACE}-{client.span_id}-01" for client in clients]


@pytest.mark.slow
def test_lines_of_a_log_have_no_trace_where_there_is_none():
    record = logging.makeLogRecord({"msg": "m", "ids": {"request_id": "a"}})
    assert "trace_id" not in json.loads(JsonLines().format(record))
