"""Values as keys: one value, one encoding, on every host and in every process.

A key that is made of values is 0xFF, which no UTF-8 has, and a MessagePack array of them. ``None``, ``bool``, ``int``
in 64 bits, ``float``, ``str`` and ``bytes`` are as MessagePack has them, each in its shortest form. All else is an
extension: a code, which says its type, and an array of its parts::

    f(7, "en", True)    FF 93 07 A2 65 6E C3
    f((1, 2), None)     FF 92 C7 03 03 92 01 02 C0
                                 |  |  +------ its parts: an array of two
                                 |  +--------- its code: a tuple
                                 +------------ the length of what follows the code

So every value says its type and its length, and no two values have one encoding. What follows of it:

- ``1``, ``1.0``, ``True``, ``"1"`` and ``b"1"`` have five keys; a list's is no tuple's, a set's no frozenset's.
- A float is its 64 bits: 0.0 and -0.0 have two keys, and a NaN, which equals nothing, has one: the same for each
  ``math.nan``, another where its bits are others (``-math.nan``).
- ``Decimal("1.0")`` and ``Decimal("1.00")`` have two; so has a moment in two time zones, or with another ``fold``. A
  zone is a ``datetime.timezone`` or a ``ZoneInfo``; others have no name to be known by.
- Sets and dicts are in the order of their encodings, and not of their own.
- A subclass is never taken for its base. An ``Enum``, whatever else it is, is its class and its name, a ``Flag`` its
  class and its value. A named tuple, a dataclass and a ``msgspec.Struct`` are their class, the names of their fields
  and their values, but for a dataclass's ``field(compare=False)``, at which ``==`` does not look either. A subclass
  that is none of these by itself (``OrderedDict``, ``Counter``, one of ``str``, one of a named tuple) has no key.
- A class is its module and its qualified name, and has to be found there: two that one function made would be one.
- An object whose class has a ``__mpgroupcache_key__()`` is its class's name and what that returns; it may be of a
  subclass, and its class need not be found.
- A numpy scalar is its dtype's name and its value. An array has no key.

Nothing here asks for ``repr``, ``hash`` or a pickle: they name addresses, change with PYTHONHASHSEED, or with what an
object shares with others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from types import NoneType
from typing import Any, Final, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

from msgspec import Raw
from msgspec.msgpack import Decoder, Encoder, Ext

from mpgroupcache.functions import classes
from mpgroupcache.functions.classes import Apart, Unkeyable, full_name
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.late import importing

PREFIX: Final = b"\xff"

SIMPLE: Final = frozenset({NoneType, bool, int, float, str, bytes})
"""What `pack` takes as it is, but for an int over 64 bits and a lone surrogate."""

REFUSED: Final = (OverflowError, UnicodeEncodeError)
"""What `pack` raises for these."""

pack: Final = Encoder().encode

_OBJECT: Final = 64  # the code of what is known by its class's name, and which only its own process can make
_HASHED: Final = 65  # in the array's place: the hash of a key that was too long

_MAX_DEPTH: Final = 100  # levels of extensions in a key that is decoded
_MAX_NESTED: Final = 8192  # levels that msgspec may go down, one a byte: a thread's stack holds some 20,000


class _Rule(NamedTuple):
    """How a value of just this type is taken apart, and put together."""

    kind: type
    apart: Apart
    together: Callable[..., Any]


def _in_order(values: Iterable[Any]) -> Iterator[Raw]:
    return map(Raw, sorted(pack(lowered(value)) for value in values))


def _items(mapping: dict[Any, Any]) -> Iterator[Raw]:
    for pair in sorted((pack(lowered(key)), pack(lowered(value))) for key, value in mapping.items()):
        yield from map(Raw, pair)


def _digits(number: Decimal) -> tuple[int, bytes, int | str]:
    sign, digits, exponent = number.as_tuple()
    return sign, bytes(digits), exponent


def _moment(moment: Any) -> tuple[str, int, tzinfo | None]:
    return moment.replace(tzinfo=None).isoformat(), moment.fold, moment.tzinfo


def _zone(offset: timedelta, name: str) -> timezone:
    zone = timezone(offset)
    return zone if zone.tzname(None) == name else timezone(offset, name)


# The format: a code that is taken keeps its meaning for ever.
_RULES: Final = {
    1: _Rule(
        int, lambda n: [n.to_bytes(n.bit_length() // 8 + 1, signed=True)], lambda b: int.from_bytes(b, signed=True)
    ),
    2: _Rule(str, lambda s: [s.encode("utf-8", "surrogatepass")], lambda b: b.decode("utf-8", "surrogatepass")),
    3: _Rule(tuple, lambda values: values, lambda *parts: parts),
    4: _Rule(list, lambda values: values, lambda *parts: [*parts]),
    5: _Rule(set, _in_order, lambda *parts: {*parts}),
    6: _Rule(frozenset, _in_order, lambda *parts: frozenset(parts)),
    7: _Rule(dict, _items, lambda *parts: dict(zip(parts[::2], parts[1::2], strict=True))),
    8: _Rule(complex, lambda z: [z.real, z.imag], complex),
    9: _Rule(Decimal, _digits, lambda sign, digits, exponent: Decimal((sign, tuple(digits), exponent))),
    11: _Rule(date, lambda day: [day.isoformat()], date.fromisoformat),
    12: _Rule(time, _moment, lambda text, fold, zone: time.fromisoformat(text).replace(fold=fold, tzinfo=zone)),
    13: _Rule(datetime, _moment, lambda text, fold, zone: datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)),
    14: _Rule(timedelta, lambda span: [span.days, span.seconds, span.microseconds], timedelta),
    15: _Rule(timezone, lambda zone: [zone.utcoffset(None), zone.tzname(None)], _zone),
    17: _Rule(UUID, lambda uuid: [uuid.bytes], lambda b: UUID(bytes=b)),
    18: _Rule(PurePosixPath, lambda path: [str(path)], PurePosixPath),
    19: _Rule(PosixPath, lambda path: [str(path)], PosixPath),
    20: _Rule(PureWindowsPath, lambda path: [str(path)], PureWindowsPath),
}
_LATE: Final = {10: "fractions.Fraction", 16: "zoneinfo.ZoneInfo"}  # what few processes import


def _lower(code: int, apart: Apart) -> Callable[[Any], Any]:
    return lambda value: Ext(code, pack([lowered(part) for part in apart(value)]))


def _lower_int(number: int) -> Any:
    return number if -(1 << 63) <= number < 1 << 64 else _lower_long(number)


def _lower_str(text: str) -> Any:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _lower_surrogates(text)
    return text


_lowers: dict[type, Callable[[Any], Any]] = {rule.kind: _lower(code, rule.apart) for code, rule in _RULES.items()}
_lower_long, _lower_surrogates = _lowers[int], _lowers[str]
_lowers |= dict.fromkeys((NoneType, bool, float, bytes, Raw), lambda value: value)
_lowers |= {int: _lower_int, str: _lower_str}

_lowers_of_classes: WeakKeyDictionary[type, Callable[[Any], Any]] = WeakKeyDictionary()


def lowered(value: Any) -> Any:
    """What `pack` makes the encoding of ``value`` of."""
    kind = type(value)
    return (_lowers.get(kind) or _of_class(kind))(value)


def _import_late() -> None:
    with importing:
        from fractions import Fraction
        from zoneinfo import ZoneInfo

    def name(zone: ZoneInfo) -> list[str]:
        if zone.key is None:
            raise Unkeyable(ZoneInfo, " without a key")
        return [zone.key]

    _RULES[10] = _Rule(Fraction, lambda fraction: [fraction.numerator, fraction.denominator], Fraction)
    _RULES[16] = _Rule(ZoneInfo, name, ZoneInfo)
    _lowers.update({_RULES[code].kind: _lower(code, _RULES[code].apart) for code in _LATE})


def _of_class(kind: type) -> Callable[[Any], Any]:
    lower = _lowers_of_classes.get(kind)
    if lower is None:
        if full_name(kind) in _LATE.values():
            _import_late()
            if kind in _lowers:
                return _lowers[kind]
        # Kept without the class itself, or a class that is defined again would stay.
        lower = _lowers_of_classes[kind] = _lower(_OBJECT, classes.apart(kind))
    return lower


def encode(values: Iterable[Any], names: Iterable[str], function: str) -> bytes:
    """Return the key of ``values``, the arguments ``names`` of ``function``.

    Raises ``TypeError`` for one that has no key, and ``ValueError`` for one that holds itself.
    """
    arguments = []
    for value, name in zip(values, names, strict=True):
        try:
            arguments.append(lowered(value))
        except (Unkeyable, RecursionError) as error:
            remedy = f"leave it out with ignore=({name!r},), or say what tells calls apart with key="
            raise explained(error, value, f"{function}: argument {name!r}", remedy) from None
    return within_limit(PREFIX + pack(arguments))


def explained(error: Unkeyable | RecursionError, value: object, what: str, remedy: str) -> TypeError | ValueError:
    """Return what a caller is told of an error of `lowered`."""
    kind = type(value)
    if isinstance(error, RecursionError):
        got = f"a {full_name(kind)} that holds itself or goes too deep"
        return ValueError(f"{what}: got {got}, expected some hundred levels at most; {remedy}")
    got = str(error) if error.kind is kind else f"a {full_name(kind)} that holds {error}"
    return TypeError(
        f"{what}: got {got}, expected None, bool, a number, str, bytes, a date or time, UUID, Path, Enum, dataclass, "
        "NamedTuple, Struct, numpy scalar, or a tuple, list, set or dict of these, and of no subclass; give its class "
        f"a __mpgroupcache_key__(), {remedy}"
    )


def encode_text(text: str) -> bytes:
    """Return the plain key, which means the same to peers and to ``Group.get``. Of what is no UTF-8: a value's key."""
    try:
        return within_limit(text.encode())
    except UnicodeEncodeError:
        return within_limit(PREFIX + pack([lowered(text)]))


def within_limit(key: bytes) -> bytes:
    """Return ``key``, or its blake2b-256 where it is longer than a key can be."""
    if len(key) <= MAX_KEY_BYTES:
        return key
    with importing:
        from hashlib import blake2b
    return PREFIX + pack(Ext(_HASHED, blake2b(key, digest_size=32).digest()))


def decode(key: bytes) -> list[Any]:
    """Return what `encode` was given, where all of it is of built-in types, not too deep, and the key unhashed.

    Of other keys, which may be anybody's, it returns or raises something: whether it has the key, `encode` tells.
    """
    if min(len(key), sys.getrecursionlimit()) > _MAX_NESTED:
        raise ValueError("too long where Python does not guard its stack")
    return [_together(value, _MAX_DEPTH) for value in _decode(key[len(PREFIX) :])]


_decode: Final = Decoder(list).decode


def _together(value: Any, depth: int) -> Any:
    if type(value) is not Ext:
        return value
    if not depth:
        raise ValueError("too deep")
    if value.code in _LATE and value.code not in _RULES:
        _import_late()
    return _RULES[value.code].together(*(_together(part, depth - 1) for part in _decode(value.data)))
