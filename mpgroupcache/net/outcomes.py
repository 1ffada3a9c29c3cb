"""How a fetch from a peer ends, and what a response or a failure means for it."""

from __future__ import annotations

import ssl
from collections.abc import Container
from typing import ClassVar, Final, NamedTuple, TypeAlias

from msgspec import Struct

from mpgroupcache.errors import ProtocolError
from mpgroupcache.limits import MAX_TEXT, MAX_TYPE_NAME, usable_rate
from mpgroupcache.net.ages import ages_of, read_ages
from mpgroupcache.net.batches import ANSWERS_TYPE, Absence, Alone, Answer, Failure, Refusal, Value, decode_answers
from mpgroupcache.net.peerwire import CONTENT_TYPE, Ability, absence, decode_response, loader_error

_MAX_QUOTED: Final = 1000  # characters of a peer's text in a reason


class Fetched(Struct, frozen=True):
    """The owner answered with the value."""

    value: bytes
    minute_qps: float | None  # how often the owner is asked for this key, each minute; None: it does not say (Go's)
    fresh: float | None = None  # s until the value is stale, below 0: since when; None: it never is
    dead: float | None = None  # s until it is dead; None: it never is
    version: int | None = None  # None: the owner does not say
    says_ages: bool = False  # whether the owner would have said ages; else nobody knows them (Go's)


class Absent(Struct, frozen=True):
    """The owner's loader says that there is no such thing. To load here would ask it a second time for the same."""

    text: str
    dead: float | None  # s for which that may be kept; None: for ever
    says_ages: ClassVar[bool] = True

    @property
    def fresh(self) -> float | None:
        """It is never stale."""
        return self.dead


class OwnerError(Struct, frozen=True):
    """The owner's loader raised. To load here would run it a second time for the same error."""

    type_name: str
    text: str


class Unreached(Struct, frozen=True):
    """The peer failed, or cannot say what failed. Load here."""

    reason: str  # for people; names the peer


Outcome: TypeAlias = Fetched | Absent | OwnerError | Unreached


class Reply(NamedTuple):
    """A complete response. An error's body may have been cut off at ``MAX_ERROR_BYTES``."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes:
        """Return the first header of that name, which is in small letters; empty if there is none."""
        return next((value for got, value in self.headers if got.lower() == name), b"")


def outcome_of(url: str, reply: Reply, abilities: Container[Ability] | None) -> Outcome:
    """Return what the response of the peer at ``url`` means. ``abilities``: what that response says it can do."""
    if reply.status == 200:
        kind = reply.header(b"content-type")
        if kind.partition(b";")[0].strip().lower() != CONTENT_TYPE:  # a web server's empty page is no empty value
            return Unreached(f"{url}: got the content type {kind!r}, expected {CONTENT_TYPE!r}; is this a peer's URL?")
        try:
            value, minute_qps = decode_response(reply.body)
            fresh, dead, version = read_ages(reply.headers)
        except ProtocolError as error:
            return Unreached(f"{url}: {error}")
        return Fetched(value, minute_qps, fresh, dead, version, Ability.AGES in (abilities or ()))
    if (text := absence(reply.status, reply.headers, reply.body)) is not None:
        try:
            return Absent(text, read_ages(reply.headers).dead)
        except ProtocolError as error:
            return Unreached(f"{url}: {error}")
    if loader := loader_error(reply.status, reply.headers, reply.body):
        return OwnerError(loader.type_name, loader.message)
    if 300 <= reply.status < 400:
        place = reply.header(b"location").decode(errors="replace")[:_MAX_QUOTED]
        return Unreached(
            f"{url}: answered {reply.status}, a redirect to {place!r}, which is not followed since it may be another "
            "key; Go's http.ServeMux redirects keys with // and dots: serve the HTTPPool without it"
        )
    return Unreached(_describe(url, reply))


def _describe(url: str, reply: Reply) -> str:
    return f"{url}: answered {reply.status}: {reply.body.decode(errors='replace').strip()[:_MAX_QUOTED]}"


def outcomes_of(url: str, reply: Reply, count: int) -> list[Outcome | None]:
    """Return what the reply of the peer at ``url`` means for each of so many keys; None: to be asked for alone.

    Raises ``ProtocolError`` for what is no answer for many keys.
    """
    kind = reply.header(b"content-type")
    if reply.status != 200:
        raise ProtocolError(_describe(url, reply))
    if kind != ANSWERS_TYPE:
        raise ProtocolError(f"{url}: got the content type {kind!r}, expected {ANSWERS_TYPE!r}")
    try:
        answers = decode_answers(reply.body, count)
    except ProtocolError as error:
        raise ProtocolError(f"{url}: {error}") from None
    return [_outcome_in(url, answer) for answer in answers]


def _outcome_in(url: str, answer: Answer) -> Outcome | None:
    match answer:
        case Value(value, rate, fresh, dead, version):
            ages = ages_of(fresh, dead, version)
            return Fetched(value, None if rate is None else usable_rate(rate), *ages, says_ages=True)
        case Absence(text, dead):
            return Absent(text[:MAX_TEXT], None if dead is None else dead / 1000)
        case Failure(type_name, text):
            return OwnerError(type_name[:MAX_TYPE_NAME], text[:MAX_TEXT])
        case Refusal(text):
            return Unreached(f"{url}: {text[:_MAX_QUOTED]}")
        case Alone():
            return None


def explain(error: BaseException) -> str:
    """Say what is wrong with a connection, and for certificates what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        todo = "name its CA, and in --peer the host that it is for"
        return f"the peer's certificate is not trusted: {error.verify_message}; {todo}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error}; if the peer asks for certificates, this host needs one of its CA"
    return str(error) or type(error).__name__
