"""Mutated messages of the gRPC service, some dozens at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conformance_support import infer_message
from fuzz_support import MANY_OR_FEW, PAIR, SCORES, TEXT, fuzzed, mutate, tenths
from seeded import seeded
from serinus.protocol import _open_inference_pb2 as pb

WINDOW = 32


def seeds() -> list[tuple[str, bytes]]:
    """Give the method and the bytes of good requests."""
    wanted = [{"name": "classes", "parameters": {"classification": 2}}]
    more: dict[str, Any] = {"outputs": wanted, "parameters": {"timeout": 60_000_000, "priority": 1}}
    messages = [
        *(infer_message("labels", [SCORES], raw=raw) for raw in (True, False)),
        infer_message("labels", [SCORES], id="1", **more),
        infer_message("versioned", [SCORES], version="2"),
        *(infer_message("texts", [TEXT], raw=raw) for raw in (True, False)),
        *(infer_message("simple", PAIR, raw=raw, outputs=[{"name": "OUTPUT0"}]) for raw in (True, False)),
        *(infer_message("identity", [SCORES, TEXT, *PAIR], raw=raw) for raw in (True, False)),
        infer_message("asked", [SCORES], parameters={"a": True, "b": 1.5}),
    ]
    return [
        *(("ModelInfer", message.SerializeToString()) for message in messages),
        ("ModelReady", pb.ModelReadyRequest(name="labels").SerializeToString()),
        ("ModelMetadata", pb.ModelMetadataRequest(name="versioned", version="2").SerializeToString()),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="labels").SerializeToString()),
        ("RepositoryIndex", pb.RepositoryIndexRequest(ready=True).SerializeToString()),
    ]


@MANY_OR_FEW
def test_mutated_messages(many: bool, tmp_path: Path):
    chance, total, good = seeded(13), tenths(3, many), seeds()
    fine = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    with fuzzed(many, tmp_path) as watch:
        channel = watch.server.channel
        stubs = {method: channel.unary_unary(f"/inference.GRPCInferenceService/{method}") for method, _ in good}
        while watch.asked < total:
            calls = []
            for _ in range(min(WINDOW, total - watch.asked)):
                method, message = chance.choice(good)
                changed = mutate(message, chance)
                calls.append((method, changed, stubs[method].future(changed, timeout=60)))
            for method, changed, call in calls:
                code = call.code().name
                assert code in fine, (method, changed, code, call.details())
                assert code == "OK" or call.details()
                watch.count(code, total)
