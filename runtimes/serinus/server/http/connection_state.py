"""The states of one HTTP/1.1 connection and every step between them. Pure: no socket, no parser, no clock.

Theory of operation. A connection has two sides, as a TCP stream has, and each is in one state. What happens is an event: a table
from the state before it to the state after it. A connection changes state in one way only:

    self.reading = HEAD_COMPLETE[self.reading]

so what can follow what is read off the tables below, and what cannot happen has no entry: looking it up raises `ImpossibleStep`.
A table is a dict and a state an int, so a step costs a look-up and no call of a Python function: this is the hot path.

*The reading side* is about requests: which part of one is being read, and whether another is taken after it.

    IDLE --message_begin--> HEAD --head_complete--> BODY --message_complete--> IDLE

A client that waits for `100 Continue` makes a stop in AWAITED. UPGRADE is where llhttp stops at the end of a head that asks for
another protocol; the connection reads the same head again without that wish. DISCARD reads off the body of a request that
has been refused, if the framing is sound, so that the connection lives on.

From `LAST` on (`reading >= LAST`) no further request is taken and nothing more is parsed. LAST: the client knows that it is the end, because it
asked for it or was told so. BROKEN: it does not know, or where a next request would begin is unknown; it may go on sending, so
we must not simply close (see the writing side). INPUT_ENDED: the client has shut down its side, and may still be
reading. PROBED: the same, and it has been sent something to see whether it is still there. CLOSED: the connection is gone.

*The writing side* is about the client taking our answers. OPEN and FULL: it takes them, or its window is full. Closing a socket
with unread input resets the connection, and destroys the last answer on its way. So after the last answer to a client that may
still be sending we shut down our side (SHUT), and read and drop what comes until the client closes (RFC 9112, 9.6);
SHUTTING is the same while that answer still waits for the client's window. A connection that can be closed at once needs no state:
its transport is closing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, TypeVar

__all__ = [
    "AWAITED",
    "AWAIT_CONTINUE",
    "BODY",
    "BROKEN",
    "CONTINUE_SENT",
    "DATA_AFTER_LAST",
    "DISCARD",
    "FULL",
    "HEAD",
    "HEAD_COMPLETE",
    "IDLE",
    "INPUT_END",
    "INPUT_ENDED",
    "ImpossibleStep",
    "LAST",
    "LAST_REQUEST",
    "MESSAGE_BEGIN",
    "MESSAGE_COMPLETE",
    "OPEN",
    "PAUSE_WRITING",
    "PROBE",
    "PROBED",
    "READING_EVENTS",
    "READING_LOST",
    "REFUSED",
    "REFUSED_SOUNDLY",
    "RESUME_WRITING",
    "Reading",
    "SHUT",
    "SHUTTING",
    "SHUT_DOWN",
    "Steps",
    "UPGRADE",
    "UPGRADE_ASKED",
    "WRITING_EVENTS",
    "WRITING_LOST",
    "Writing",
]


class Reading(IntEnum):
    """What is read from the client; from LAST on no further request is taken."""

    IDLE = 0
    """Between requests."""
    HEAD = 1
    """In a request line or header section."""
    BODY = 2
    """In a body, or at its beginning."""
    AWAITED = 3
    """As BODY, and the client is due a `100 Continue` before it sends it."""
    DISCARD = 4
    """In the body of a request that has been refused."""
    UPGRADE = 5
    """At the end of a head that asks for another protocol."""
    LAST = 6
    """The last request has been read, and the client knows that it is."""
    BROKEN = 7
    """The last request has been read or refused, and the client may go on sending."""
    INPUT_ENDED = 8
    """The client has shut down its side."""
    PROBED = 9
    """As INPUT_ENDED, and it has been sent something since."""
    CLOSED = 10
    """The connection is gone."""


class Writing(IntEnum):
    """How the client takes what is written."""

    OPEN = 0
    FULL = 1
    """It takes nothing just now: what is written waits in the transport."""
    SHUTTING = 2
    """As FULL, and after what waits our side is shut down."""
    SHUT = 3
    """Our side is shut down; what still comes is dropped."""
    CLOSED = 4
    """The connection is gone."""


# Names of the module are found faster than members of an enum, and the connection compares at every event.
IDLE: Final = Reading.IDLE
HEAD: Final = Reading.HEAD
BODY: Final = Reading.BODY
AWAITED: Final = Reading.AWAITED
DISCARD: Final = Reading.DISCARD
UPGRADE: Final = Reading.UPGRADE
LAST: Final = Reading.LAST
BROKEN: Final = Reading.BROKEN
INPUT_ENDED: Final = Reading.INPUT_ENDED
PROBED: Final = Reading.PROBED
OPEN: Final = Writing.OPEN
FULL: Final = Writing.FULL
SHUTTING: Final = Writing.SHUTTING
SHUT: Final = Writing.SHUT


class ImpossibleStep(RuntimeError):
    """An event in a state in which it cannot happen: a mistake of ours, never of the client."""


_State = TypeVar("_State", bound=IntEnum)


class Steps(dict[_State, _State]):
    """What one event does: state before to state after.

    Args:
        event: its name, for the message.
        steps: the entries.
    """

    def __init__(self, event: str, steps: Mapping[_State, _State]) -> None:
        super().__init__(steps)
        self.event = event

    def __missing__(self, state: _State) -> _State:
        side = type(state).__name__.lower()
        raise ImpossibleStep(f"{self.event} cannot happen while the {side} side is {state.name}; see its table")


# The reading side ----------------------------------------------------------------------------------------------------

# llhttp cannot be stopped within one read, so its events go on after a refusal or the last answer; what they say is dropped.
MESSAGE_BEGIN: Final = Steps("message_begin", {IDLE: HEAD, UPGRADE: HEAD, LAST: BROKEN, BROKEN: BROKEN})
"""The first byte of a request line; of the head that is read again after UPGRADE, too."""

HEAD_COMPLETE: Final = Steps("head_complete", {HEAD: BODY, BROKEN: BROKEN})
"""The empty line after the header section."""

AWAIT_CONTINUE: Final = Steps("await_continue", {BODY: AWAITED})
"""The head says `Expect: 100-continue` (RFC 9110, 10.1.1)."""

CONTINUE_SENT: Final = Steps("continue_sent", {AWAITED: BODY})
"""The interim answer that it waits for was written."""

UPGRADE_ASKED: Final = Steps("upgrade_asked", {BODY: UPGRADE, BROKEN: BROKEN})
"""The head asks for another protocol, or is CONNECT (RFC 9110, 7.8 and 9.3.6)."""

MESSAGE_COMPLETE: Final = Steps(
    "message_complete", {BODY: IDLE, AWAITED: IDLE, DISCARD: IDLE, UPGRADE: UPGRADE, LAST: LAST, BROKEN: BROKEN}
)
"""The last byte of a request. A client may send its body without waiting for `100 Continue`."""

LAST_REQUEST: Final = Steps(
    "last_request",
    {
        IDLE: LAST, HEAD: LAST, BODY: LAST, AWAITED: LAST, DISCARD: LAST,
        LAST: LAST, BROKEN: BROKEN, INPUT_ENDED: INPUT_ENDED, PROBED: PROBED,
    },
)  # fmt: skip
"""A request said `Connection: close`, or an answer that says so was written, whatever has come since."""

REFUSED: Final = Steps("refused", {IDLE: BROKEN, HEAD: BROKEN, BODY: BROKEN, AWAITED: BROKEN, UPGRADE: BROKEN})
"""A request was refused, and where the next one would begin is unknown, or too far away."""

REFUSED_SOUNDLY: Final = Steps("refused_soundly", {BODY: DISCARD})
"""A request was refused whose end will be seen."""

DATA_AFTER_LAST: Final = Steps("data_after_last", {LAST: BROKEN, BROKEN: BROKEN})
"""More came after the last request."""

INPUT_END: Final = Steps(
    "input_end",
    {
        IDLE: INPUT_ENDED, HEAD: INPUT_ENDED, BODY: INPUT_ENDED, AWAITED: INPUT_ENDED, DISCARD: INPUT_ENDED,
        LAST: INPUT_ENDED, BROKEN: INPUT_ENDED, Reading.CLOSED: Reading.CLOSED,
    },
)  # fmt: skip
"""The client shut down its side; a request of which a part is missing is no request."""

PROBE: Final = Steps("probe", {INPUT_ENDED: PROBED})
"""A client that sends no more was sent something, to see whether it is still there."""

READING_LOST: Final = Steps("lost", {state: Reading.CLOSED for state in Reading if state is not Reading.CLOSED})
"""The connection is gone."""

READING_EVENTS: Final = (
    MESSAGE_BEGIN, HEAD_COMPLETE, AWAIT_CONTINUE, CONTINUE_SENT, UPGRADE_ASKED, MESSAGE_COMPLETE, LAST_REQUEST, REFUSED,
    REFUSED_SOUNDLY, DATA_AFTER_LAST, INPUT_END, PROBE, READING_LOST,
)  # fmt: skip

# The writing side ----------------------------------------------------------------------------------------------------

# A transport may tell late: uvloop writes at the end of a turn of the loop, a TLS layer goes on after its end.
PAUSE_WRITING: Final = Steps("pause_writing", {OPEN: FULL, SHUT: SHUTTING, Writing.CLOSED: Writing.CLOSED})
"""asyncio: the transport's buffer is above its high-water mark."""

RESUME_WRITING: Final = Steps("resume_writing", {FULL: OPEN, SHUTTING: SHUT, Writing.CLOSED: Writing.CLOSED})
"""asyncio: it is below the low-water mark."""

SHUT_DOWN: Final = Steps("shut_down", {OPEN: SHUT, FULL: SHUTTING})
"""The last answer was written to a client that may still be sending."""

WRITING_LOST: Final = Steps("lost", {state: Writing.CLOSED for state in Writing if state is not Writing.CLOSED})
"""The connection is gone."""

WRITING_EVENTS: Final = (PAUSE_WRITING, RESUME_WRITING, SHUT_DOWN, WRITING_LOST)
