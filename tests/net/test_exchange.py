"""One connection without a socket: responses in any pieces, and spoilt in any way."""

from __future__ import annotations

from fakepeers import chunked, message, response
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.net.exchange import ClientConnection, Exchange
from mpgroupcache.net.outcomes import Reply

VALUE = response(message(b"V"))


class Wire:
    """A connection without a socket: its transport and its pool, which keeps what it is told."""

    def __init__(self) -> None:
        self.news: list[object] = []
        self.closed = False
        self.connection = ClientConnection(self, 1 << 20)
        self.connection.connection_made(self)  # type: ignore[arg-type]

    def receive(self, data: bytes, cuts: list[int]) -> None:
        """Send a request; then ``data`` comes in pieces, and the end of the connection."""
        self.connection.send(Exchange(b"/", 0.0, 1.0, None), b"")
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < end and not self.closed:
                self.connection.data_received(data[start:end])

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def connected(self, connection: ClientConnection) -> None:
        pass

    def replied(self, connection: ClientConnection, exchange: Exchange, reply: Reply, free: bool) -> None:
        self.news.append((reply.status, reply.body, free))

    def broke(self, exchange: Exchange, reason: str, alive: bool) -> None:
        self.news.append(reason)

    def lost(self, connection: ClientConnection, exchange: Exchange | None, error: Exception | None) -> None:
        if exchange is not None:
            self.news.append("lost")


@st.composite
def cut_up(draw: st.DrawFn, data: bytes) -> list[int]:
    return sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))


RESPONSES = st.one_of(
    st.binary(max_size=300).map(lambda body: (response(body), body)),
    st.tuples(st.binary(max_size=300), st.integers(1, 300)).map(lambda given: (chunked(*given), given[0])),
)


@given(st.data(), st.lists(RESPONSES, min_size=1, max_size=3))
def test_responses_may_come_in_any_pieces(data: st.DataObject, responses: list[tuple[bytes, bytes]]) -> None:
    wire = Wire()
    for raw, _ in responses:
        wire.receive(raw, data.draw(cut_up(raw)))
    assert wire.news == [(200, body, True) for _, body in responses]
    wire.connection.connection_lost(None)
    assert len(wire.news) == len(responses)


def test_tiny_chunks_take_no_more_than_what_is_in_them() -> None:
    wire = Wire()
    body = bytes(range(256)) * 400
    raw = chunked(body, 1)
    head, rest = raw[:200], raw[200:]
    most = 0
    wire.connection.send(Exchange(b"/", 0.0, 1.0, None), b"")
    for data in (head, *(rest[at : at + 1000] for at in range(0, len(rest), 1000))):
        wire.connection.data_received(data)
        most = max(most, len(wire.connection._body))
    assert wire.news == [(200, body, True)]
    assert most <= 64 + len(body) // 1024


@given(st.data(), RESPONSES, st.binary(max_size=40), st.integers(0, 400))
def test_spoilt_responses_have_one_outcome(
    data: st.DataObject, given_response: tuple[bytes, bytes], junk: bytes, at: int
) -> None:
    raw, _ = given_response
    raw = raw[:at] + junk + raw[at + data.draw(st.integers(0, 9)) :]
    wire = Wire()
    wire.receive(raw, data.draw(cut_up(raw)))
    wire.connection.connection_lost(None)
    assert len(wire.news) == 1
