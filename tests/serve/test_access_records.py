"""The lines of the access log and of slow requests, to the last field, in both forms."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dataplane_support import Doubler, serving
from serinus import ModelSettings
from serinus.dataplane.telemetry.request_records import RequestRecord
from serinus.server.access_log import AccessRecord, ModelServed, served_model, write_access, write_slow
from serinus.tracing.trace_context import TraceContext

TRACE = TraceContext("a" * 32, "b" * 16, True)
SERVED = ModelServed("r7", "m", "2", "sha256:abc")
LONGEST_ID = 200


def record(
    request_id: str = "mine", *, arrived: float = 10.25, batch: bool = True, traced: bool = False
) -> RequestRecord:
    """Of a request that came at 10, was queued for 0.5 s, read for 0.125, predicted for 1 and written for 0.0625."""
    found = RequestRecord(request_id, None, TRACE if traced else None)
    found.came, found.arrived, found.rows = 10.0, arrived, 3
    found.started = 10.75
    if batch:
        found.batch_rows, found.batch_requests = 8, 2
        found.infer_from, found.infer_to, found.answered = 10.875, 11.875, 11.9375
    else:
        found.answered = 10.75
    return found


def access(record: RequestRecord | None = None, served: ModelServed = SERVED, **fields: Any) -> AccessRecord:
    fields = {"status": 200, "response_bytes": 44, "seconds": 2.0001235, **fields}
    return AccessRecord("rest", "POST /v2", served=served, record=record, **fields)


BEGINS = "rest POST /v2 status 200 44 bytes 2000.123 ms"
MODEL = " model m version 2 revision r7 digest sha256:abc"
LINES: dict[str, tuple[AccessRecord, str]] = {
    "predicted": (
        access(record()),
        f"{BEGINS}{MODEL} rows 3 queue 500.000 ms batch 8 compute 1000.000 ms request_id mine",
    ),
    "traced": (
        access(record(traced=True)),
        f"{BEGINS}{MODEL} rows 3 queue 500.000 ms batch 8 compute 1000.000 ms request_id mine trace_id {'a' * 32}",
    ),
    "not predicted": (access(record(batch=False)), f"{BEGINS}{MODEL} rows 3 queue 500.000 ms request_id mine"),
    "not arrived": (access(record(arrived=0.0)), f"{BEGINS}{MODEL} request_id mine"),
    "no record": (access(), f"{BEGINS}{MODEL}"),
    "nobody": (access(served=ModelServed()), BEGINS),
    "a revision alone": (access(served=ModelServed("r7")), f"{BEGINS} revision r7"),
    "no version": (access(served=ModelServed("", "m")), f"{BEGINS} model m"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line_has_what_is_known(case: str):
    made, line = LINES[case]
    assert str(made) == line


@pytest.mark.parametrize(
    ("request_id", "told"),
    [
        ("a-b/c", "a-b/c"),
        ("!~", "!~"),
        ("a b", "'a b'"),
        ("a'b", '"a\'b"'),
        ("a\nb", "'a\\nb'"),
        ("é", "'\\xe9'"),
        ("i" * LONGEST_ID, "i" * LONGEST_ID),
        ("i" * (LONGEST_ID + 1), "i" * LONGEST_ID),
    ],
)
def test_an_id_stands_in_a_line_as_one_word(request_id: str, told: str):
    made = access(record(request_id, arrived=0.0), ModelServed())
    assert str(made) == f"{BEGINS} request_id {told}"
    assert made.fields()["request_id"] == request_id[:LONGEST_ID]


COMMON = {
    "message": "rest POST /v2",
    "transport": "rest",
    "request": "POST /v2",
    "status": 200,
    "bytes": 44,
    "request_id": "mine",
    "trace_id": "",
    "model": "m",
    "version": "2",
    "revision": "r7",
    "digest": "sha256:abc",
    "total_ms": 2000.123,
}
TIMES = {"rows": 3, "queue_ms": 500.0}
PREDICT = {"batch": 8, "compute_ms": 1000.0}
NOBODY = {**COMMON, "model": "", "version": "", "revision": ""}
del NOBODY["digest"]
FIELDS: dict[str, tuple[AccessRecord, dict[str, Any]]] = {
    "predicted": (access(record()), {**COMMON, **TIMES, **PREDICT}),
    "traced": (access(record(traced=True)), {**COMMON, **TIMES, **PREDICT, "trace_id": "a" * 32}),
    "not predicted": (access(record(batch=False)), {**COMMON, **TIMES}),
    "not arrived": (access(record(arrived=0.0)), COMMON),
    "no record": (access(), {**COMMON, "request_id": ""}),
    "nobody": (access(record(arrived=0.0), ModelServed()), NOBODY),
}


@pytest.mark.parametrize("case", FIELDS)
def test_the_JSON_form_has_a_field_for_what_is_known(case: str):
    made, fields = FIELDS[case]
    assert made.fields() == fields


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(0.0, 0.0), (0.0000004, 0.0), (0.0000014, 0.001), (0.0012345, 1.234), (1.0, 1000.0)]
)
def test_times_are_in_milliseconds_to_the_microsecond(seconds: float, milliseconds: float):
    assert access(seconds=seconds).fields()["total_ms"] == pytest.approx(milliseconds, abs=0.00051)
    assert len(str(access(seconds=seconds).fields()["total_ms"]).partition(".")[2]) <= 3


def slow(caplog: pytest.LogCaptureFixture, made: AccessRecord) -> Any:
    write_slow(made, 1.5)
    (found,) = (one for one in caplog.records if one.name == "serinus.slow")
    assert found.levelno == logging.WARNING
    return found


def test_a_slow_request_says_where_all_of_its_time_went(caplog: pytest.LogCaptureFixture):
    made = access(record(), seconds=2.0)
    found = slow(caplog, made)
    parts = {
        "before_queue": 250.0,
        "queue": 500.0,
        "compute_input": 125.0,
        "compute": 1000.0,
        "compute_output": 62.5,
        "answer": 62.5,
    }
    assert sum(parts.values()) == 2000
    text = ", ".join(f"{name} {value} ms" for name, value in parts.items())
    assert found.getMessage() == f"slower than 1.5 s: {made}: {text}; 2 requests in its batch"
    fields = found.structured.fields()
    assert fields == {
        **made.fields(),
        "message": "slower than 1.5 s: rest POST /v2",
        "slower_than_s": 1.5,
        **{f"{name}_ms": value for name, value in parts.items()},
        "batch_requests": 2,
    }


def test_one_that_was_not_predicted_has_waited_and_been_answered(caplog: pytest.LogCaptureFixture):
    made = access(record(batch=False), seconds=2.0)
    found = slow(caplog, made)
    text = "before_queue 250.0 ms, queue 500.0 ms, answer 1250.0 ms"
    assert found.getMessage() == f"slower than 1.5 s: {made}: {text}"
    assert "batch_requests" not in found.structured.fields()


@pytest.mark.parametrize("record_of", [None, record(arrived=0.0, batch=False)])
def test_one_of_which_the_data_plane_knows_nothing_has_no_parts(
    record_of: RequestRecord | None, caplog: pytest.LogCaptureFixture
):
    made = access(record_of)
    found = slow(caplog, made)
    assert found.getMessage() == f"slower than 1.5 s: {made}"
    assert not any(name.endswith("queue_ms") for name in found.structured.fields())


def test_one_alone_in_its_batch_does_not_count_it_and_no_part_is_less_than_none(caplog: pytest.LogCaptureFixture):
    alone = record()
    alone.batch_requests, alone.infer_to = 1, 12.5
    found = slow(caplog, access(alone, seconds=1.0))
    assert found.getMessage().endswith("compute 1625.0 ms, compute_output 0.0 ms, answer 0.0 ms")
    assert found.structured.fields()["batch_requests"] == 1


def test_a_record_goes_to_the_log_with_its_fields(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "serinus.access")
    made = access(record())
    write_access(made)
    (found,) = caplog.records
    assert (found.name, found.levelno, found.getMessage()) == ("serinus.access", logging.INFO, str(made))
    assert found.__dict__["structured"] is made


async def test_who_serves_is_told_by_what_is_loaded_and_never_by_a_name_that_is_not_known():
    settings = ModelSettings(name="m", version="2", digest="sha256:abc")
    async with serving(Doubler, settings, ModelSettings(name="plain")) as plane:
        assert served_model(plane, "r7", "m") == SERVED
        assert served_model(plane, "r7", "m", "2") == SERVED
        assert served_model(plane, "", "plain") == ModelServed("", "plain", "", "")
        assert served_model(plane, "r7", "other") == ModelServed("r7")
        assert served_model(plane, "r7", "m", "3") == ModelServed("r7")
        await plane.unload("m")
        assert served_model(plane, "r7", "m", "2") == ModelServed("r7", "m", "2")
