"""The wire format against arbitrary bytes, arbitrary chunking, and arbitrary conversations of two ends."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from ghost_mcp.warden import wire

HELLO = wire.Connection(hub=True).send_hello({})
KINDS = st.one_of(st.integers(wire.HELLO, wire.PONG), st.integers(0, 255))
STREAMS = st.one_of(st.integers(0, 9), st.integers(0, (1 << 32) - 1))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
HEADS = st.dictionaries(st.text(), JSON, max_size=4)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Bytes that are nothing, or nearly a message, or a message."""
    raw = draw(st.one_of(st.binary(max_size=80), HEADS.map(wire.dumps)))
    size = draw(st.one_of(st.just(len(raw)), st.integers(0, (1 << 32) - 1)))
    body = draw(st.binary(max_size=20))
    return draw(st.sampled_from([raw, struct.pack("!I", size) + raw + body, raw[:4], b""]))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame with any kind, stream and payload; its length is sometimes a lie."""
    payload = draw(payloads())
    size = draw(
        st.one_of(st.just(len(payload)), st.just(len(payload)), st.integers(0, (1 << 32) - 1))
    )
    head = struct.pack("!IIBB", size, draw(STREAMS), draw(KINDS), draw(st.integers(0, 255)))
    return head + payload


def hostile(connection: wire.Connection, data: bytes, cuts: list[int]) -> None:
    """Feed ``data`` in pieces: only RemoteProtocolError may come, and nothing may pile up."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    failed = False
    for start, end in pairwise(edges):
        try:
            connection.receive(data[start:end])
            assert not failed, "a connection that failed took more bytes"
        except wire.RemoteProtocolError:
            failed = True
            assert not connection._buffer
        assert len(connection._buffer) < wire.HEADER_SIZE + wire.MAX_PAYLOAD
        assert connection.streams <= 3 * wire.MAX_STREAMS


CUTS = st.lists(st.integers(0, 1 << 16), max_size=8)


@given(st.binary(max_size=400), CUTS, st.booleans(), st.booleans())
def test_arbitrary_bytes(data: bytes, cuts: list[int], hub: bool, greeted: bool) -> None:
    hostile(wire.Connection(hub=hub), HELLO * greeted + data, cuts)


@given(st.lists(frames(), max_size=12), CUTS, st.booleans())
def test_arbitrary_frames(pieces: list[bytes], cuts: list[int], hub: bool) -> None:
    connection = wire.Connection(hub=hub)
    connection.receive(HELLO)
    connection.open({})
    connection.open({})
    hostile(connection, b"".join(pieces), cuts)


@given(st.binary(max_size=200))
def test_arbitrary_heads(raw: bytes) -> None:
    try:
        head = wire.loads(raw)
    except ValueError:
        return
    assert wire.loads(wire.dumps(head)) == head


@given(HEADS)
def test_heads_come_back_as_they_were(head: dict[str, Any]) -> None:
    assert wire.loads(wire.dumps(head)) == head


def traffic(choices: list[tuple[int, bytes, int]]) -> bytes:
    """Legal bytes from a hub, steered by ``choices``."""
    hub = wire.Connection(hub=True)
    hub.receive(HELLO)
    out, streams = [hub.send_hello({})], []
    for action, body, channel in choices:
        if action == 0 or not streams:
            stream, data = hub.open({"n": len(body)}, body)
            streams.append(stream)
        elif action == 1:
            data = hub.send_data(streams[-1], body + b".", channel)
        elif action == 2:
            data = hub.send_eof(streams[-1], channel)
        elif action == 3:
            data = hub.send_note(streams[0], {"text": str(channel)}, body)
        elif action == 4:
            data = hub.send_reset(streams.pop())
        else:
            data = hub.send_ping(body)
        out.append(data)
    return b"".join(out)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.binary(max_size=90), st.integers(0, 255)), max_size=20
    ),
    CUTS,
)
def test_chunking_changes_nothing(choices: list[tuple[int, bytes, int]], cuts: list[int]) -> None:
    data = traffic(choices)
    whole = [repr(f) + repr(f.body) for f in wire.Connection(hub=False).receive(data)]
    assert len(whole) == 1 + len(choices)
    chopped = wire.Connection(hub=False)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [chopped.receive(data[a:b]) for a, b in pairwise(edges)]
    assert [repr(f) + repr(f.body) for piece in pieces for f in piece] == whole


# Few and telling: a byte, a page, a whole frame; a little of it, half, all.
SIZES = st.sampled_from([1, 4096, wire.MAX_DATA])
SHARES = st.sampled_from([0.01, 0.5, 1.0])


class End:
    """One end of the conversation, and what it must believe."""

    def __init__(self, *, hub: bool) -> None:
        self.wire = wire.Connection(hub=hub)
        self.outgoing = b""  # sent, not yet delivered
        self.open: set[int] = set()
        self.sent: dict[int, int] = {}  # stream -> bytes of DATA sent
        self.heard: dict[int, int] = {}  # stream -> bytes of DATA received
        self.taken: dict[int, int] = {}  # stream -> of these, consumed

    def began(self, stream: int) -> None:
        self.open.add(stream)
        for count in (self.sent, self.heard, self.taken):
            count[stream] = 0

    def receive(self, data: bytes) -> None:
        for frame in self.wire.receive(data):
            if frame.kind == wire.OPEN:
                self.began(frame.stream)
            elif frame.kind in (wire.CLOSE, wire.RESET):
                self.open.remove(frame.stream)
            elif frame.kind == wire.DATA:
                self.heard[frame.stream] += len(frame.body)


class Conversation(RuleBasedStateMachine):
    """Any legal sends, delivered in any pieces at any time: both ends agree whenever nothing is under way."""

    streams = Bundle("streams")

    @initialize(target=streams)
    def greet(self) -> int:
        self.ends = [End(hub=True), End(hub=False)]
        for end in self.ends:
            end.outgoing += end.wire.send_hello({})
        return self.begin(0, {})

    @rule(target=streams, side=st.integers(0, 1), head=HEADS)
    def start(self, side: int, head: dict[str, Any]) -> int:
        return self.begin(side, head)

    def begin(self, side: int, head: dict[str, Any]) -> int:
        end = self.ends[side]
        stream, data = end.wire.open(head)
        end.began(stream)
        end.outgoing += data
        return stream

    @rule(
        side=st.integers(0, 1),
        stream=streams,
        size=SIZES,
        times=st.integers(1, 20),
    )
    def send(self, side: int, stream: int, size: int, times: int) -> None:
        end = self.ends[side]
        for _ in range(times):
            room = min(size, end.wire.credit(stream))
            if room:
                end.outgoing += end.wire.send_data(stream, bytes(room))
                end.sent[stream] += room

    @rule(side=st.integers(0, 1), stream=streams, head=HEADS, kind=st.sampled_from(["eof", "note"]))
    def tell(self, side: int, stream: int, head: dict[str, Any], kind: str) -> None:
        end = self.ends[side]
        if end.wire.is_open(stream):
            end.outgoing += (
                end.wire.send_eof(stream) if kind == "eof" else end.wire.send_note(stream, head)
            )

    @rule(side=st.integers(0, 1), stream=streams, share=SHARES)
    def consume(self, side: int, stream: int, share: float) -> None:
        end = self.ends[side]
        if stream in end.heard:
            count = int((end.heard[stream] - end.taken[stream]) * share)
            end.taken[stream] += count
            end.outgoing += end.wire.consumed(stream, count)

    @rule(stream=streams)
    def close(self, stream: int) -> None:
        end = self.ends[stream % 2]  # the side that did not open it
        if end.wire.is_open(stream):
            end.outgoing += end.wire.send_close(stream, {})
            end.open.remove(stream)

    @rule(side=st.integers(0, 1), stream=streams)
    def reset(self, side: int, stream: int) -> None:
        end = self.ends[side]
        if end.wire.is_open(stream):
            end.outgoing += end.wire.send_reset(stream)
            end.open.remove(stream)

    @rule(side=st.integers(0, 1), share=SHARES)
    def deliver(self, side: int, share: float) -> None:
        sender, receiver = self.ends[side], self.ends[1 - side]
        size = int(len(sender.outgoing) * share)
        data, sender.outgoing = sender.outgoing[:size], sender.outgoing[size:]
        receiver.receive(data)

    @invariant()
    def beliefs_hold(self) -> None:
        for end in getattr(self, "ends", ()):
            assert end.wire.streams == len(end.open)
            for stream in end.open:
                assert end.wire.is_open(stream)
                assert 0 <= end.wire.credit(stream) <= wire.WINDOW
                assert end.wire.credit(stream) >= wire.WINDOW - end.sent[stream]

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        hub, warden = self.ends
        for end in self.ends:
            for stream in end.open:
                end.outgoing += end.wire.consumed(stream, end.heard[stream] - end.taken[stream])
                end.taken[stream] = end.heard[stream]
        while hub.outgoing or warden.outgoing:
            self.deliver(0, 1.0)
            self.deliver(1, 1.0)
        assert hub.open == warden.open
        for sender, receiver in ((hub, warden), (warden, hub)):
            for stream in sender.open:
                assert sender.sent[stream] == receiver.heard[stream]
                given_back = sender.wire.credit(stream) - (wire.WINDOW - sender.sent[stream])
                kept_back = receiver.taken[stream] - given_back
                assert 0 <= kept_back < wire.WINDOW // 4
                assert sender.wire.credit(stream) == receiver.wire._window[stream]


TestConversation = Conversation.TestCase
