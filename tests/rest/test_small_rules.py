"""CloudEvents, paths and origins, rule by rule and without a server."""

from __future__ import annotations

import base64
import json
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

import pytest

from serinus.dataplane.access.repository_access import RepositoryAccess
from serinus.errors import Forbidden, InvalidInput, NotFound, UnsupportedMedia
from serinus.server.http.exchange import Exchange, Headers
from serinus.server.rest import router as router_module
from serinus.server.rest.cloudevents import CloudEvent, CloudEventSettings, read_event
from serinus.server.rest.origin_checks import check_change
from serinus.server.rest.router import Router

BINARY = {"ce-id": "7", "ce-source": "me", "ce-type": "ask", "ce-specversion": "1.0"}
EVENT = {"id": "7", "source": "me", "type": "ask", "specversion": "1.0"}


def headers_of(fields: dict[str, str]) -> Headers:
    return Headers(tuple((name.encode(), value.encode()) for name, value in fields.items()))


def structured(document: Any, **settings: Any) -> CloudEvent | None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    kind = {"content-type": "application/cloudevents+json; charset=utf-8"}
    return read_event(headers_of(kind), body, CloudEventSettings(**settings))


# CloudEvents


def test_a_request_without_marks_is_no_event():
    for kind in ("application/json", "", "application/cloudevents", "application/cloudevents+jsonx"):
        assert read_event(headers_of({"content-type": kind} if kind else {}), b"{}", CloudEventSettings()) is None


def test_attributes_of_headers_are_unquoted_and_the_body_is_the_data():
    event = read_event(headers_of({**BINARY, "ce-subject": '"a%20b%22"', "other": "x"}), b"data", CloudEventSettings())
    assert event is not None
    assert (event.data, event.binary) == (b"data", True)
    assert event.attributes == {**EVENT, "subject": 'a b"'}


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({"data": {"a": [1]}}, b'{"a":[1]}'),
        ({"data": "text"}, b"text"),
        ({"data": ""}, b""),
        ({"data": 0}, b"0"),
        ({"data_base64": base64.b64encode(b"\xff").decode()}, b"\xff"),
        ({"data": 1, "data_base64": ""}, b""),
    ],
)
def test_a_structured_events_data_is_the_body(fields: dict[str, Any], data: bytes):
    event = structured({**EVENT, **fields})
    assert event is not None
    assert (event.data, event.binary, event.attributes) == (data, False, EVENT)


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
@pytest.mark.parametrize("value", ["", None, 7])
def test_each_required_attribute_is_a_string_that_is_not_empty(name: str, value: Any):
    with pytest.raises(InvalidInput, match=f"CloudEvent attribute '{name}' is"):
        structured({**EVENT, "data": 1, name: value})


@pytest.mark.parametrize("name", ["id", "source", "type"])
def test_each_required_attribute_is_among_the_headers(name: str):
    without = {key: value for key, value in BINARY.items() if key != f"ce-{name}"}
    with pytest.raises(InvalidInput, match=f"CloudEvent attribute 'ce-{name}' is missing"):
        read_event(headers_of(without), b"", CloudEventSettings())


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"{", "the CloudEvent is not JSON"),
        (b"[]", "the CloudEvent is not a JSON object"),
        ({**EVENT}, "the CloudEvent has no 'data'"),
        ({**EVENT, "data": None}, "the CloudEvent has no 'data'"),
        ({**EVENT, "data_base64": "?"}, "'data_base64' of the CloudEvent is not base64"),
        ({**EVENT, "data_base64": 5}, "'data_base64' of the CloudEvent is not base64"),
        ({**EVENT, "data": 1, "specversion": "2.0"}, "'specversion' is '2.0'; expected one of 1.0, 0.3"),
    ],
)
def test_an_event_that_cannot_be_read_says_why(document: Any, said: str):
    with pytest.raises(InvalidInput) as caught:
        structured(document)
    assert said in str(caught.value)
    assert structured({**EVENT, "data": 1, "specversion": "0.3"}) is not None


def fresh(attributes: dict[str, Any]) -> dict[str, Any]:
    """Check what differs each time, and give the rest."""
    rest = dict(attributes)
    assert uuid.UUID(rest.pop("id")).version == 4
    age = datetime.now(timezone.utc) - datetime.fromisoformat(rest.pop("time"))
    assert timedelta(0) <= age < timedelta(minutes=2)
    return rest


def answered(
    event: CloudEvent, kind: str = "application/json", body: bytes = b'{"a":1}'
) -> tuple[str, Any, dict[str, str]]:
    content_type, data, fields = event.wrap("fraud", body, kind)
    return content_type, data, {name.decode(): unquote(value.decode()) for name, value in fields}


def test_a_binary_event_is_answered_in_headers_with_a_body_as_it_is():
    event = CloudEvent(b"", {"datacontenttype": "x", "subject": "s"}, True)
    kind, data, fields = answered(event, "text/plain", b"raw")
    assert (kind, data) == ("text/plain", b"raw")
    assert fresh({name.removeprefix("ce-"): value for name, value in fields.items()}) == {
        "specversion": "1.0",
        "source": "io.kserve.inference.fraud",
        "type": "io.kserve.inference.response",
    }


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("application/json", b'{"a":1}', {"data": {"a": 1}}),
        ("text/plain", b"raw", {"datacontenttype": "text/plain", "data_base64": "cmF3"}),
        ("application/octet-stream", b"\xff", {"datacontenttype": "application/octet-stream", "data_base64": "/w=="}),
        ("z/z", b"", {"datacontenttype": "z/z", "data_base64": ""}),
    ],
)
def test_a_structured_event_is_answered_in_one_document(kind: str, body: bytes, expected: dict[str, Any]):
    settings = CloudEventSettings(type="my.type", source="my.source", merge=True)
    event = CloudEvent(
        b"", {"subject": "s", "datacontenttype": "old", "id": "7", "specversion": "0.3"}, False, settings
    )
    content_type, document, fields = answered(event, kind, body)
    assert content_type == "application/cloudevents+json"
    assert fields == {}
    told = fresh(json.loads(document))
    assert told == {"specversion": "0.3", "subject": "s", "source": "my.source", "type": "my.type", **expected}


@pytest.mark.parametrize(
    ("text", "coded"),
    [
        ("!", b"!"),
        ("~", b"~"),
        (" ", b"%20"),
        ("\x7f", b"%7F"),
        ('"', b"%22"),
        ("%", b"%25"),
        ("é", b"%C3%A9"),
        ("a\r\nb", b"a%0D%0Ab"),
    ],
)
def test_a_header_value_is_percent_encoded_where_it_must_be(text: str, coded: bytes):
    event = CloudEvent(b"", {"subject": text}, True, CloudEventSettings(merge=True))
    fields = dict(event.wrap("m", b"", "text/plain")[2])
    assert fields[b"ce-subject"] == coded
    read = read_event(headers_of({**BINARY, "ce-subject": coded.decode()}), b"", CloudEventSettings())
    assert read is not None
    assert read.attributes["subject"] == text


@pytest.mark.parametrize(
    ("value", "merge"), [("true", True), ("TRUE", True), ("1", False), ("", False), ("false", False)]
)
def test_kserves_variables_are_read(value: str, merge: bool):
    assert CloudEventSettings.from_environ({"CE_MERGE": value, "CE_TYPE": ""}) == CloudEventSettings(merge=merge)


# Paths


def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:
    """Answers nothing."""


def routes(*templates: str) -> Router:
    made = Router()
    for template in templates:
        made.add("GET", template, handler)
    return made


ROUTES = routes(
    "/",
    "/v2",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/stats",
    "/v1/models/{model}:predict",
    "/v1/models/{model}",
)


@pytest.mark.parametrize(
    ("target", "template", "parameters"),
    [
        (b"/", "/", ()),
        (b"/v2", "/v2", ()),
        (b"/v2/", "/v2", ()),
        (b"/v2?a=/v3", "/v2", ()),
        (b"http://host:80/v2", "/v2", ()),
        (b"http://host", "/", ()),
        (b"/v2/models/a%2Fb", "/v2/models/{model}", ("a/b",)),
        (b"/v2/models/%C3%A9/ready/", "/v2/models/{model}/ready", ("é",)),
        (b"/v2/models/stats", "/v2/models/stats", ()),
        (b"/v1/models/m:predict", "/v1/models/{model}:predict", ("m",)),
        (b"/v1/models/m:other", "/v1/models/{model}", ("m:other",)),
        (b"/v1/models/:predict", "/v1/models/{model}", (":predict",)),
    ],
)
def test_a_path_leads_to_its_template(target: bytes, template: str, parameters: tuple[str, ...]):
    for _ in range(2):
        match = ROUTES.resolve(target)
        assert (match.template, match.parameters) == (template, parameters)


@pytest.mark.parametrize(
    "target", [b"/v3", b"/v2//", b"//v2", b"/v2/models/", b"/v2/models//ready", b"/v2/models/m/ready/x", b"/V2"]
)
def test_a_path_that_is_not_there_is_told_those_that_are(target: bytes):
    with pytest.raises(NotFound) as caught:
        ROUTES.resolve(target)
    assert "there are: /, /v1/models/{model}, /v1/models/{model}:predict, /v2, " in str(caught.value)


def test_a_path_that_is_no_utf8_is_refused_and_a_long_one_shown_in_part():
    with pytest.raises(InvalidInput, match="the path is not percent-encoded UTF-8"):
        ROUTES.resolve(b"/v2/models/%ff")
    with pytest.raises(NotFound) as caught:
        ROUTES.resolve(b"/" + b"a" * 500)
    assert "'/" + "a" * 199 + "'" in str(caught.value)


def test_paths_are_remembered_up_to_a_number_and_a_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(router_module, "_CACHED_PATHS", 3)
    made = routes("/v2/models/{model}")
    for n in range(10):
        made.resolve(b"/v2/models/%d" % n)
        assert len(made._cache) <= 3
    made._cache.clear()
    made.resolve(b"/v2/models/" + b"a" * (1024 - 11))
    assert len(made._cache) == 1
    made.resolve(b"/v2/models/" + b"a" * (1025 - 11))
    assert len(made._cache) == 1
    made.add("POST", "/v2/models/{model}", handler)
    assert len(made._cache) == 0, "a path may lead elsewhere now"
    assert set(made.resolve(b"/v2/models/a").handlers) == {b"GET", b"POST"}


def test_methods_that_are_allowed_have_head_beside_get_and_options_always():
    made = routes("/a")
    made.add("post", "/b", handler)
    assert made.resolve(b"/a").allow == ["GET", "HEAD", "OPTIONS"]
    assert made.resolve(b"/b").allow == ["OPTIONS", "POST"]
    assert list(made.templates) == ["/a", "/b"]
    made.keep_only("/b")
    assert list(made.templates) == ["/b"]
    with pytest.raises(NotFound):
        made.resolve(b"/a")


# Origins


OPEN = RepositoryAccess(mode="open")
LOOPBACK = RepositoryAccess(mode="loopback")


@pytest.mark.parametrize(
    ("access", "fields"),
    [
        (OPEN, {}),
        (OPEN, {"host": "any.example", "content-type": "application/json; charset=utf-8"}),
        (OPEN, {"host": "A.example:8080", "origin": "http://a.example:8080"}),
        (OPEN, {"sec-fetch-site": "same-origin"}),
        (OPEN, {"sec-fetch-site": "none"}),
        *((LOOPBACK, {"host": host}) for host in (
            "localhost", "LOCALHOST:8080", "localhost.", "a.b-c.localhost", "127.0.0.1:80", "127.255.1.9", "[::1]:8080", "[::1]", "")),
    ],
    ids=lambda value: getattr(value, "mode", None) or str(value),
)  # fmt: skip
def test_a_change_from_here_is_taken(access: RepositoryAccess, fields: dict[str, str]):
    check_change(headers_of(fields), access)


@pytest.mark.parametrize(
    ("access", "fields", "said"),
    [
        (OPEN, {"host": "a.example", "origin": "http://b.example"}, "a page of 'http://b.example' may not change this server"),
        (OPEN, {"host": "a.example", "origin": "null"}, "a page of 'null'"),
        (OPEN, {"origin": "http://a.example"}, "a page of 'http://a.example'"),
        (OPEN, {"host": "a", "origin": "http://" + "b" * 200}, "'http://" + "b" * 93 + "'"),
        (OPEN, {"sec-fetch-site": "cross-site"}, "(Sec-Fetch-Site is 'cross-site')"),
        (OPEN, {"sec-fetch-site": "same-site"}, "Sec-Fetch-Site is 'same-site'"),
        *((LOOPBACK, {"host": host}, f"the header Host is '{host}'") for host in (
            "a.example", "localhost.example", "127.0.0.1.example", "128.0.0.1", "localhost:80x", "xlocalhost", "127.0.0", "[::2]")),
    ],
    ids=lambda value: getattr(value, "mode", None) or str(value)[:50],
)  # fmt: skip
def test_a_change_from_elsewhere_is_refused(access: RepositoryAccess, fields: dict[str, str], said: str):
    with pytest.raises(Forbidden) as caught:
        check_change(headers_of(fields), access)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "zzz", "application/jsonx", "a/b"],
)
def test_a_change_whose_body_is_not_json_is_refused(kind: str):
    with pytest.raises(UnsupportedMedia, match=f"the body is '{kind}'"):
        check_change(headers_of({"content-type": f"{kind}; x=y"}), OPEN)


def test_a_path_that_was_dropped_is_not_remembered_either():
    made = routes("/a", "/b")
    assert made.resolve(b"/a").template == "/a"
    made.keep_only("/b")
    with pytest.raises(NotFound):
        made.resolve(b"/a")


def test_a_long_path_is_shown_to_its_200th_byte():
    with pytest.raises(NotFound) as caught:
        ROUTES.resolve(b"/" + b"a" * 500)
    assert "there is no path '/" + "a" * 199 + "';" in str(caught.value)


@pytest.mark.parametrize(
    ("access", "fields", "shown"),
    [
        (OPEN, {"host": "a", "origin": "o" * 200}, "'" + "o" * 100 + "'"),
        (LOOPBACK, {"host": "h" * 200}, "'" + "h" * 100 + "'"),
        (OPEN, {"sec-fetch-site": "s" * 200}, "'" + "s" * 40 + "'"),
        (OPEN, {"content-type": "k" * 200}, "'" + "k" * 64 + "'"),
    ],
    ids=["origin", "host", "site", "kind"],
)
def test_what_came_is_shown_in_part(access: RepositoryAccess, fields: dict[str, str], shown: str):
    with pytest.raises((Forbidden, UnsupportedMedia)) as caught:
        check_change(headers_of(fields), access)
    assert shown in str(caught.value)
