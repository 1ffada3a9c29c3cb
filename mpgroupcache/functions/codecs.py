"""How the values of a function are stored, and what callers are given: by its annotation, or by name.

What is returned decides, as type checkers see it:

- ``bytes``, ``bytearray``, ``str`` and ``int`` are stored as groups have them: bytes, UTF-8, and decimal digits.
- A class of protobuf messages: its wire format.
- ``numpy.ndarray``, ``NDArray[...]``, numpy's scalars: a .npy file. An array is read-only, on the bytes themselves.
- Pydantic models, and what is made of them: JSON, by ``TypeAdapter``.
- No annotation, ``Any``, ``object``, a bare ``dict`` or ``list``: MessagePack of None, bool, int, float, str, bytes,
  and lists and dicts of these.
- All else: MessagePack, of what msgspec encodes and decodes: dataclasses, Structs, ``TypedDict``, ``NamedTuple``,
  enums, dates and times, UUID, Decimal, tuples, sets, unions.

``codec="view"``: bytes that callers get as a `ByteView`. ``codec="pickle"``: whatever can be pickled. Or an object with
``encode(value) -> bytes`` and ``decode(view)``, and a ``schema`` if there may be another one of its class.

Guarantee: what callers get is equal to what the function returned; where it would not be, `Codec.checked` raises. So a
moment in another time zone comes back in UTC, and none has its ``fold``; an ``OrderedDict`` under ``dict[...]`` comes
back as a dict, a ``numpy.float64`` under ``float`` as a float; but an object of a subclass of the annotated dataclass
is refused.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import inspect as kinds

from mpgroupcache.functions import arrays, formats, models, packed, schemas
from mpgroupcache.functions.classes import full_name
from mpgroupcache.functions.comparing import difference
from mpgroupcache.functions.formats import Format
from mpgroupcache.functions.returned import Unresolved, bare, return_type
from mpgroupcache.shm._view import ByteView

if TYPE_CHECKING:
    from typing_extensions import Buffer

_REMEDY = "return what is annotated, annotate what is returned, or say codec='pickle'"


class Codec:
    """How the values of one function are stored. Where its annotation names what is not there yet, the first attribute
    that is asked for finds out, or is a ``TypeError``."""

    __slots__ = (
        "_codec",
        "_exact",
        "_expected",
        "_function",
        "_name",
        "decode",
        "encode",
        "runs_code",
        "schema",
        "shareable",
        "zero_copy",
    )

    decode: Callable[[Buffer], Any]
    """Return the value that a `ByteView`, or bytes, are of: as direct as it can be."""

    encode: Callable[[Any], Buffer]
    """Return what is stored of a value. For values of anybody's, `checked`."""

    schema: bytes
    """What values of another type or another codec do not have: the same in every process."""

    shareable: bool
    """Whether one decoded value can be given to many callers: nothing in it can be changed."""

    zero_copy: bool
    """Whether a decoded value refers to the bytes that it was decoded from, and holds them."""

    runs_code: bool
    """Whether to decode is to run what the bytes name: never do it with what a peer sent."""

    def __init__(self, function: Callable[..., Any], codec: object) -> None:
        self._function = function
        self._name = str(getattr(function, "__qualname__", type(function).__qualname__))
        self._codec = codec

    def _resolve(self, late: bool) -> None:
        """Raises `Unresolved` for an annotation that names what is not there, ``TypeError`` for what cannot be."""
        made, annotation = _format(self._function, self._name, self._codec, late)
        self.encode, self.decode, self.schema = made.encode, made.decode, made.schema
        self.shareable, self.zero_copy, self.runs_code = made.shareable, made.zero_copy, made.runs_code
        self._exact, self._expected = made.exact, made.expected or annotation
        self.__class__ = Codec

    def checked(self, value: Any) -> tuple[Buffer, Any]:
        """Return what is stored of ``value``, and what callers get for it.

        Raises ``TypeError`` where that would not be equal to ``value``, or not be at all.
        """
        encode, decode = self.encode, self.decode
        try:
            encoded = encode(value)
            back = decode(encoded)
        except formats.Unencodable as error:
            raise self._refusal(value, str(error)) from None
        except Exception as error:
            raise self._refusal(value, f"{error}; {_REMEDY}" if str(error) else _REMEDY) from error
        if not self._exact and (found := difference(value, back)) is not None:
            raise self._refusal(value, f"{found}; {_REMEDY}")
        return encoded, back

    def _refusal(self, value: object, why: str) -> TypeError:
        return TypeError(f"{self._name}: got {full_name(type(value))}, expected {self._expected}: {why}")


class _Unresolved(Codec):
    """A codec without attributes. As a class of its own, since a ``__getattr__`` slows the others down."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name not in Codec.__slots__:
                raise AttributeError(f"'Codec' object has no attribute {name!r}")
            try:
                self._resolve(late=True)
            except Unresolved as error:
                raise TypeError(
                    f"{self._name}: its return annotation cannot be resolved: {error}; name what its module has, not "
                    "what is defined in a function or imported for type checkers alone, or say codec="
                ) from None
            return getattr(self, name)


def codec_of(function: Callable[..., Any], codec: object = None) -> Codec:
    """Find how the values of ``function`` are stored.

    ``codec``: None, as its annotation says; "view"; "pickle"; or an object with ``encode`` and ``decode``. Raises
    ``TypeError`` for a type whose values could not come back, and ``ValueError`` for an unknown name.
    """
    made = _Unresolved(function, codec)
    with contextlib.suppress(Unresolved):  # which it may not be later: in its methods, a class has no name yet
        made._resolve(late=False)
    return made


def _format(function: Callable[..., Any], name: str, codec: object, late: bool) -> tuple[Format, str]:
    """The format of a function's values, and its annotation as errors show it."""
    if isinstance(codec, str):
        if codec == "view":
            return formats.VIEW, ""
        if codec == "pickle":
            return formats.pickle_format(_schema_if_any(function, late)), ""
        raise ValueError(
            f"{name}: codec: got {codec!r}, expected 'view', 'pickle', an object with encode and decode, or None"
        )
    if codec is not None:
        if not callable(getattr(codec, "encode", None)) or not callable(getattr(codec, "decode", None)):
            raise TypeError(
                f"{name}: codec: got {full_name(type(codec))}, expected 'view', 'pickle', an object with encode(value) "
                "and decode(view), or None"
            )
        try:
            return formats.format_of_object(codec), ""
        except TypeError as error:
            raise TypeError(f"{name}: codec: {error}") from None
    shown = "what cannot be evaluated"
    try:
        annotation = return_type(function)
        shown = inspect.formatannotation(annotation)
        return _by_annotation(annotation), shown
    except Unresolved:
        raise
    except NameError as error:  # in a class that it names, or an alias
        raise Unresolved(str(error)) from error
    except Exception as error:
        raise TypeError(
            f"{name}: its return annotation: got {shown}, expected a type whose values can be stored: {error}; "
            "annotate another one, or say codec='pickle' or codec='view'"
        ) from error


def _by_annotation(annotation: Any) -> Format:
    kind = bare(annotation)
    if isinstance(kind, type) and kind in formats.BUILT_IN:
        return formats.BUILT_IN[kind]
    if kind is ByteView:
        return formats.VIEW
    if formats.is_message(kind):
        return formats.message_format(kind)
    if arrays.is_numpy(kind):
        return arrays.numpy_format(kind)
    if models.has_model(kind):
        return models.model_format(kind)
    described = kinds.type_info(kind)
    if packed.is_plain(described):
        return packed.plain_format(described)
    unknown = [
        part.cls for part in schemas.parts(described) if isinstance(part, kinds.CustomType) and not schemas.is_any(part)
    ]
    if any(map(models.is_model, unknown)):  # in a field
        return models.model_format(kind)
    if unknown:
        remedy = " (where there is none, raise NotFound)" if isinstance(described, kinds.UnionType) else ""
        raise TypeError(f"msgspec decodes no {full_name(unknown[0])}{remedy}")
    return packed.packed_format(kind, described)


def _schema_if_any(function: Callable[..., Any], late: bool) -> bytes:
    """What can be said of the values' type, so that a class that was changed reads no old pickles."""
    try:
        return schemas.text_of(kinds.type_info(return_type(function)))
    except (Unresolved, NameError) as error:
        if not late:
            raise Unresolved(str(error)) from error
    except Exception:
        pass
    return b""
