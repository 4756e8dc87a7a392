"""The wire format by example: what travels, what flow control allows, and which rule each refusal stands for."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghost_mcp.warden import wire

ROOT = Path(__file__).parents[2]


def frame(kind: int, stream: int, payload: bytes = b"", channel: int = 0) -> bytes:
    return struct.pack("!IIBB", len(payload), stream, kind, channel) + payload


def message(head: bytes = b"{}", body: bytes = b"") -> bytes:
    return struct.pack("!I", len(head)) + head + body


HELLO = frame(wire.HELLO, 0, b'{"version":1}')


def greeted(*, hub: bool) -> wire.Connection:
    connection = wire.Connection(hub=hub)
    assert [f.kind for f in connection.receive(HELLO)] == [wire.HELLO]
    return connection


def pair() -> tuple[wire.Connection, wire.Connection]:
    return greeted(hub=True), greeted(hub=False)


def one(connection: wire.Connection, data: bytes) -> wire.Frame:
    (only,) = connection.receive(data)
    return only


# --- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"a": None, "b": True, "c": -1, "d": 1.5, "e": "", "f": [1, [2]], "g": {"h": {}}},
        {"text": 'quote " backslash \\ newline \n NUL \0 é 漢 🦇'},
        {"not utf-8": os.fsdecode(b"\xff\xfe")},
        {"large": 1 << 80, "small": 1e-300},
    ],
)
def test_heads_come_back_as_they_were(head: dict[str, Any]) -> None:
    raw = wire.dumps(head)
    assert raw.isascii()
    assert wire.loads(raw) == head


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", {1, 2}])
def test_heads_hold_only_json(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        wire.dumps({"value": value})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b"{} ",
        b" {}",
        b"{}{}",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":"\x01"}',
        b'{"a":' + b"[" * 50_000,
        b'{"a":' * 50_000,
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_bad_heads_are_value_errors(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (any ValueError: the class is the contract)
        wire.loads(raw)


def test_the_module_needs_no_json_and_no_re() -> None:
    code = (
        "import sys; from warden import wire\n"
        "assert wire.loads(wire.dumps({'a': [1.5]})) == {'a': [1.5]}\n"
        "for bad in (b'{', b'nul', b'{\"a\":'):\n"
        "    try: wire.loads(bad)\n"
        "    except ValueError: continue\n"
        "    raise AssertionError(bad)\n"
        "assert not {'json', 're', 'enum', 'typing'} & set(sys.modules), sys.modules.keys()\n"
    )
    path = str(ROOT / "ghost_mcp")
    program = [sys.executable, "-S", "-B", "-c", code]
    subprocess.run(program, env={"PYTHONPATH": path}, check=True, timeout=60)


# --- a conversation ------------------------------------------------------------------------------


def test_hello_carries_the_version_and_what_the_side_says() -> None:
    hub, warden = wire.Connection(hub=True), wire.Connection(hub=False)
    heard = one(hub, warden.send_hello({"boot": 1.5}))
    assert (heard.kind, heard.stream, heard.head) == (wire.HELLO, 0, {"version": 1, "boot": 1.5})
    assert one(warden, hub.send_hello({})).head == {"version": 1}


def test_a_call_from_open_to_close() -> None:
    hub, warden = pair()
    stream, data = hub.open({"op": "read"}, b"body")
    assert stream == 1
    assert hub.is_open(1)
    opened = one(warden, data)
    assert (opened.kind, opened.stream, opened.head, opened.body) == (
        wire.OPEN,
        1,
        {"op": "read"},
        b"body",
    )
    note = one(hub, warden.send_note(1, {"n": 1}, b"x"))
    assert (note.kind, note.head, note.body) == (wire.NOTE, {"n": 1}, b"x")
    piece = one(hub, warden.send_data(1, b"out", channel=2))
    assert (piece.kind, piece.channel, piece.body) == (wire.DATA, 2, b"out")
    eof = one(warden, hub.send_eof(1, channel=3))
    assert (eof.kind, eof.channel, eof.body) == (wire.EOF, 3, b"")
    close = one(hub, warden.send_close(1, {"ok": True}, b"tail"))
    assert (close.kind, close.head, close.body) == (wire.CLOSE, {"ok": True}, b"tail")
    assert not hub.is_open(1)
    assert not warden.is_open(1)
    assert hub.streams == warden.streams == 0


def test_ids_are_odd_for_the_hub_and_even_for_the_warden() -> None:
    hub, warden = pair()
    assert [hub.open({})[0] for _ in range(3)] == [1, 3, 5]
    assert [warden.open({})[0] for _ in range(3)] == [2, 4, 6]


def test_a_reset_ends_both_ends_and_what_crosses_it_is_dropped() -> None:
    hub, warden = pair()
    stream, data = hub.open({})
    warden.receive(data)
    reset = hub.send_reset(stream)
    late = warden.send_data(stream, b"late") + warden.send_close(stream, {})
    assert hub.receive(late) == []
    assert warden.receive(reset) == []  # the close of its own came first

    stream, data = hub.open({})
    warden.receive(data)
    assert one(warden, hub.send_reset(stream)).kind == wire.RESET
    assert not warden.is_open(stream)


def test_pings_are_echoed_by_their_bytes() -> None:
    hub, warden = pair()
    ping = one(warden, hub.send_ping(b"x" * 100))
    assert (ping.kind, ping.body) == (wire.PING, b"x" * 64)
    pong = one(hub, warden.send_pong(ping.body))
    assert (pong.kind, pong.body) == (wire.PONG, b"x" * 64)
    assert one(hub, warden.send_ping()).body == b""


def test_frames_split_anywhere_are_the_same_frames() -> None:
    hub = greeted(hub=True)
    traffic = hub.open({"op": "a"}, b"1" * 300)[1] + hub.send_data(1, b"22") + hub.send_ping(b"3")
    whole = [repr(f) for f in greeted(hub=False).receive(traffic)]
    warden = greeted(hub=False)
    assert [repr(f) for byte in traffic for f in warden.receive(bytes([byte]))] == whole
    assert len(whole) == 3


def test_a_frame_says_what_it_is() -> None:
    text = repr(wire.Frame(wire.CLOSE, 3, 0, {"ok": True}, b"12"))
    assert text == "<CLOSE stream=3 channel=0 head={'ok': True} +2>"


# --- flow control --------------------------------------------------------------------------------


def test_data_needs_credit_and_consuming_gives_it_back() -> None:
    hub, warden = pair()
    stream, data = hub.open({})
    warden.receive(data)
    assert warden.credit(stream) == wire.WINDOW
    sent = 0
    while warden.credit(stream):
        piece = bytes(min(wire.MAX_DATA, warden.credit(stream)))
        hub.receive(warden.send_data(stream, piece))
        sent += len(piece)
    assert sent == wire.WINDOW
    with pytest.raises(wire.LocalProtocolError, match="no credit for 1 bytes"):
        warden.send_data(stream, b"x")

    assert hub.consumed(stream, wire.WINDOW // 4 - 1) == b""  # small amounts are saved up
    credit = hub.consumed(stream, 1)
    assert one(warden, credit).kind == wire.CREDIT
    assert warden.credit(stream) == wire.WINDOW // 4
    assert hub.consumed(stream, wire.WINDOW // 4 - 1) == b""
    warden.receive(hub.consumed(stream, 2))
    assert warden.credit(stream) == wire.WINDOW // 2 + 1
    hub.receive(warden.send_data(stream, b"x" * 10))


def test_credit_of_nothing_and_of_closed_streams_is_silent() -> None:
    hub, warden = pair()
    stream, data = hub.open({})
    warden.receive(data)
    assert warden.consumed(stream, 0) == b""
    assert warden.consumed(stream, -1) == b""
    warden.send_close(stream, {})
    assert warden.consumed(stream, wire.WINDOW) == b""
    assert warden.credit(stream) == 0


def test_a_window_is_one_streams_own() -> None:
    hub, warden = pair()
    first, second = hub.open({}), hub.open({})
    warden.receive(first[1] + second[1])
    while warden.credit(1):
        hub.receive(warden.send_data(1, bytes(wire.MAX_DATA)))
    assert warden.credit(3) == wire.WINDOW


# --- what this side may not do -------------------------------------------------------------------


def test_messages_are_bounded() -> None:
    hub = greeted(hub=True)
    with pytest.raises(wire.LocalProtocolError, match="too large"):
        hub.open({"a": "x" * wire.MAX_HEAD})
    with pytest.raises(wire.LocalProtocolError, match="too large"):
        hub.open({}, bytes(wire.MAX_PAYLOAD - 5))
    assert hub.streams == 0
    assert hub.open({}, bytes(wire.MAX_PAYLOAD - 6))[0] == 1  # nothing was lost by the refusals


def test_streams_are_bounded_in_number_and_in_ids() -> None:
    hub = greeted(hub=True)
    for _ in range(wire.MAX_STREAMS):
        hub.open({})
    with pytest.raises(wire.LocalProtocolError, match="too many streams"):
        hub.open({})
    used_up = greeted(hub=True)
    used_up._next = (1 << 32) - 1
    assert used_up.open({})[0] == (1 << 32) - 1
    with pytest.raises(wire.LocalProtocolError, match="too many streams"):
        used_up.open({})


@pytest.mark.parametrize("size", [0, wire.MAX_DATA + 1])
def test_data_has_a_size(size: int) -> None:
    hub = greeted(hub=True)
    stream, _ = hub.open({})
    with pytest.raises(wire.LocalProtocolError, match="no credit"):
        hub.send_data(stream, bytes(size))
    assert hub.credit(stream) == wire.WINDOW


@pytest.mark.parametrize(
    "send",
    [
        lambda c: c.send_data(1, b"x"),
        lambda c: c.send_eof(1),
        lambda c: c.send_note(1, {}),
        lambda c: c.send_close(1, {}),
        lambda c: c.send_reset(1),
    ],
)
def test_nothing_is_sent_on_a_closed_stream(send: Callable[[wire.Connection], bytes]) -> None:
    with pytest.raises(wire.LocalProtocolError):
        send(greeted(hub=False))


def test_the_opener_does_not_close() -> None:
    hub = greeted(hub=True)
    stream, _ = hub.open({})
    with pytest.raises(wire.LocalProtocolError, match="the side that opened"):
        hub.send_close(stream, {})
    assert hub.is_open(stream)


# --- what the peer may not do --------------------------------------------------------------------

# To a hub that has one stream (1) of its own open, and none of the warden's.
BROKEN: dict[str, bytes] = {
    "kind 0": frame(0, 0),
    "kind 11": frame(11, 0),
    "kind 255": frame(255, 1),
    "payload too long": struct.pack("!IIBB", wire.MAX_PAYLOAD + 1, 1, wire.DATA, 0),
    "payload of 4 GB": b"\xff" * 4 + frame(wire.DATA, 1)[4:],
    "a second HELLO": HELLO,
    "PING on a stream": frame(wire.PING, 1),
    "PING too long": frame(wire.PING, 0, bytes(65)),
    "PONG too long": frame(wire.PONG, 0, bytes(65)),
    "OPEN with our parity": frame(wire.OPEN, 3, message()),
    "OPEN of stream 0": frame(wire.OPEN, 0, message()),
    "OPEN without a head": frame(wire.OPEN, 2),
    "OPEN with a cut head": frame(wire.OPEN, 2, b"\0\0\0\5{}"),
    "OPEN with a huge head": frame(wire.OPEN, 2, b"\xff\xff\xff\xff{}"),
    "OPEN with a head over the bound": frame(
        wire.OPEN, 2, message(b'{"a":"' + b"x" * wire.MAX_HEAD + b'"}')
    ),
    "OPEN with bad JSON": frame(wire.OPEN, 2, message(b"{]")),
    "OPEN with a list": frame(wire.OPEN, 2, message(b"[]")),
    "OPEN twice": frame(wire.OPEN, 2, message()) * 2,
    "OPEN backwards": frame(wire.OPEN, 4, message()) + frame(wire.OPEN, 2, message()),
    "DATA on stream 0": frame(wire.DATA, 0, b"x"),
    "DATA before its stream": frame(wire.DATA, 2, b"x"),
    "DATA on our next stream": frame(wire.DATA, 3, b"x"),
    "DATA without bytes": frame(wire.DATA, 1),
    "DATA too long": frame(wire.DATA, 1, bytes(wire.MAX_DATA + 1)),
    "DATA beyond the window": frame(wire.DATA, 1, bytes(wire.MAX_DATA)) * 17,
    "CREDIT of zero": frame(wire.CREDIT, 1, bytes(4)),
    "CREDIT never spent": frame(wire.CREDIT, 1, b"\0\0\0\1"),
    "CREDIT of 4 GB": frame(wire.CREDIT, 1, b"\xff" * 4),
    "CREDIT cut": frame(wire.CREDIT, 1, b"\0\0"),
    "EOF with a payload": frame(wire.EOF, 1, b"x"),
    "RESET with a payload": frame(wire.RESET, 1, b"x"),
    "RESET of a stream that never was": frame(wire.RESET, 4),
    "NOTE without a head": frame(wire.NOTE, 1),
    "CLOSE with bad UTF-8": frame(wire.CLOSE, 1, message(b'"\xff"')),
    "CLOSE of its own stream": frame(wire.OPEN, 2, message()) + frame(wire.CLOSE, 2, message()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_ends_the_connection(name: str) -> None:
    hub = greeted(hub=True)
    hub.open({})
    with pytest.raises(wire.RemoteProtocolError):
        hub.receive(BROKEN[name])
    assert not hub._buffer
    with pytest.raises(wire.RemoteProtocolError, match="already failed"):
        hub.receive(frame(wire.PING, 0))
    assert not hub._buffer


@pytest.mark.parametrize(
    "hello",
    [
        frame(wire.HELLO, 1, b'{"version":1}'),
        frame(wire.HELLO, 0, b'{"version":2}'),
        frame(wire.HELLO, 0, b"{}"),
        frame(wire.HELLO, 0, b""),
        frame(wire.HELLO, 0, b'{"version":1,"a":"' + b"x" * wire.MAX_HEAD + b'"}'),
        frame(wire.PING, 0),
        frame(wire.OPEN, 2, message()),
    ],
    ids=["on a stream", "version 2", "no version", "empty", "too long", "PING first", "OPEN first"],
)
def test_the_first_frame_is_a_hello_of_this_version(hello: bytes) -> None:
    with pytest.raises(wire.RemoteProtocolError):
        wire.Connection(hub=True).receive(hello)


def test_streams_the_peer_opens_are_bounded() -> None:
    hub = greeted(hub=True)
    opens = b"".join(frame(wire.OPEN, 2 * n, message()) for n in range(1, 2 * wire.MAX_STREAMS + 1))
    assert len(hub.receive(opens)) == 2 * wire.MAX_STREAMS
    with pytest.raises(wire.RemoteProtocolError, match="too many open streams"):
        hub.receive(frame(wire.OPEN, 4 * wire.MAX_STREAMS + 2, message()))


def test_credit_grows_up_to_the_window_and_no_further() -> None:
    hub = greeted(hub=True)
    stream, _ = hub.open({})
    hub.send_data(stream, b"12345")
    assert one(hub, frame(wire.CREDIT, stream, b"\0\0\0\5")).kind == wire.CREDIT
    assert hub.credit(stream) == wire.WINDOW
    with pytest.raises(wire.RemoteProtocolError, match="bad credit"):
        hub.receive(frame(wire.CREDIT, stream, b"\0\0\0\1"))
