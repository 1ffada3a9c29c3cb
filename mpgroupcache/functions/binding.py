"""A function's calls as keys, and keys as calls.

All spellings of one call have one key: what is passed by position, by name, or left out where it has a default. For
each function one with its signature is generated, so that Python binds the arguments, and raises what it raises of a
wrong call. For ``def user(user_id, locale="en", *, db=None)`` and ``ignore=("db",)`` it is::

    def key(user_id, locale=_default_of_locale, *, db=_default_of_db):
        _key = None
        if _type(user_id) in _simple and _type(locale) in _simple:
            try:
                _key = _prefix + _pack((user_id, locale))
            except _refused:
                pass
        if _key is None or _len(_key) > _limit:
            _key = _encode((user_id, locale))
        return _key
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter
from textwrap import indent
from typing import Any, Final

from mpgroupcache.functions import encoding, templates
from mpgroupcache.functions.classes import Unkeyable
from mpgroupcache.functions.generating import generate, parameters_of
from mpgroupcache.keys import MAX_KEY_BYTES, decode_key

_VARIADIC: Final[dict[Any, Any]] = {Parameter.VAR_POSITIONAL: (), Parameter.VAR_KEYWORD: {}}  # what they are if ignored

_PASSED: Final[dict[Any, str]] = {  # all else by position
    Parameter.KEYWORD_ONLY: "{0}={0}",
    Parameter.VAR_POSITIONAL: "*{0}",
    Parameter.VAR_KEYWORD: "**{0}",
}

# Each body sets $key.
_BODY: Final = """\
$key = None
if {simple}:
    try:
        $key = $prefix + $pack({values})
    except $refused:
        pass
if $key is None or $len($key) > $limit:
    $key = $encode({values})"""

_LONE_TEXT: Final = """\
if $type({name}) is $str:
    $key = $encode_text({name})
else:
"""

_GET: Final = """
$view = $find($key)
if $view is None or $looks_twice:
    $view = $look_twice($key, $view, ({positional}), {{{named}}})
return $codec.decode($view)"""


class Calls:
    """The calls of one function.

    ``ignore``: names of parameters that its keys do not depend on. ``key``: a template (`templates`), or a function of
    the arguments but for the ignored ones, called with the defaults filled in, by position where that can be; its
    result is encoded as a lone argument is. None: the arguments are encoded, but for the ignored ones. A lone ``str``
    is a plain key.

    Raises ``TypeError`` and ``ValueError`` for what could give no call a key.
    """

    def __init__(
        self, function: Callable[..., Any], ignore: Iterable[str] = (), key: str | Callable[..., Any] | None = None
    ) -> None:
        self.name: Final = str(getattr(function, "__qualname__", type(function).__qualname__))
        """What errors call the function."""
        self._parameters = parameters_of(function, self.name)
        self._ignored = _checked(ignore, self._parameters, self.name)
        kept = [parameter for parameter in self._parameters if parameter.name not in self._ignored]
        self._lone = kept[0] if key is None and len(kept) == 1 and kept[0].kind not in _VARIADIC else None
        self.loads_from_key: Final = key is None and all(
            parameter.kind in _VARIADIC or parameter.default is not Parameter.empty
            for parameter in self._parameters
            if parameter.name in self._ignored
        )
        """Whether a key may be enough to make its call; `call` says whether it is."""
        if key is None:
            body, helpers = _by_values(kept, self.name, self._lone)
        elif isinstance(key, str):
            body, helpers = _by_template(key, kept, self.name)
        elif callable(key):
            body, helpers = _by_function(key, kept, self.name)
        else:
            raise TypeError(
                f'{self.name}: key: got {type(key).__name__}, expected a template such as "user:{{user_id}}", a '
                "function of the arguments, or None"
            )
        self._function = function
        self._body = body, helpers
        self.key: Final[Callable[..., bytes]] = self._generate("key", body + "\nreturn $key", helpers)
        """Return the key of a call: it is called as the function is. Raises ``TypeError`` for a wrong call."""

    def getter(
        self,
        find: Callable[[bytes], Any],
        looks_twice: bool,
        look_twice: Callable[[bytes, Any, tuple[Any, ...], dict[str, Any]], Any],
        codec: Any,
    ) -> Callable[..., Any]:
        """Return what is called as the function is, makes the key, finds what is there and has ``codec`` decode it.

        What `find` has not found, and all with ``looks_twice``, goes through ``look_twice``, with the arguments. In one
        function, since each call of another one would cost a good part of a hit.
        """
        body, helpers = self._body
        own = {"find": find, "looks_twice": looks_twice, "look_twice": look_twice, "codec": codec}
        positional, named = [], []
        for parameter in self._parameters:
            match parameter.kind:
                case Parameter.KEYWORD_ONLY:
                    named.append(f"{parameter.name!r}: {parameter.name}")
                case Parameter.VAR_KEYWORD:
                    named.append(f"**{parameter.name}")
                case Parameter.VAR_POSITIONAL:
                    positional.append(f"*{parameter.name},")
                case _:
                    positional.append(f"{parameter.name},")
        rest = _GET.format(positional=" ".join(positional), named=", ".join(named))
        return self._generate("get", body + rest, helpers | own)

    def _generate(self, word: str, body: str, helpers: dict[str, Any]) -> Callable[..., Any]:
        return generate(self._function, word, self.name, self._parameters, body, helpers)

    def call(self, key: bytes) -> tuple[list[Any], dict[str, Any]] | None:
        """Return the positional and the keyword arguments that ``key`` is of; None where it does not say them.

        The key may be anybody's: a peer asks for it. A plain key is the argument of a function of one: ``str`` where it
        is UTF-8, and ``bytes`` where it is not or where the parameter is annotated so.
        """
        if not self.loads_from_key:
            return None
        if self._lone is not None and not key.startswith(encoding.PREFIX):
            return self._arguments([key if self._lone.annotation in (bytes, "bytes") else decode_key(key)])
        try:
            positional, named = self._arguments(encoding.decode(key))
            return (positional, named) if self.key(*positional, **named) == key else None
        except Exception:  # of any type that the key says it is of: no call has it
            return None

    def _arguments(self, values: Iterable[Any]) -> tuple[list[Any], dict[str, Any]]:
        positional: list[Any] = []
        named: dict[str, Any] = {}
        kept = iter(values)
        for parameter in self._parameters:
            kind = parameter.kind
            value = _VARIADIC.get(kind, parameter.default) if parameter.name in self._ignored else next(kept)
            if kind is Parameter.VAR_POSITIONAL:
                positional.extend(value)
            elif kind is Parameter.VAR_KEYWORD:
                named.update(value)
            elif kind is Parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            else:
                positional.append(value)
        return positional, named


def _checked(ignore: Iterable[str], parameters: Sequence[Parameter], function: str) -> frozenset[str]:
    if isinstance(ignore, str):
        raise TypeError(f"{function}: ignore: got {ignore!r}, expected a tuple of names, such as ({ignore!r},)")
    ignored = frozenset(ignore)
    names = [parameter.name for parameter in parameters]
    for name in ignored:
        if name not in names:
            raise ValueError(f"{function}: ignore: got {name!r}, expected its parameters' names ({', '.join(names)})")
    return ignored


def _by_values(kept: Sequence[Parameter], function: str, lone: Parameter | None) -> tuple[str, dict[str, Any]]:
    """The key is that of the arguments."""
    names = [parameter.name for parameter in kept]

    def encode(values: tuple[Any, ...]) -> bytes:
        return encoding.encode(values, names, function)

    simple = " and ".join(f"$type({name}) in $simple" for name in names) or "True"
    body = _BODY.format(simple=simple, values=f"({', '.join(names)}{',' * (len(names) == 1)})")
    if lone is not None:
        body = _LONE_TEXT.format(name=lone.name) + indent(body, "    ")
    return body, {
        "type": type,
        "str": str,
        "len": len,
        "simple": encoding.SIMPLE,
        "refused": encoding.REFUSED,
        "prefix": encoding.PREFIX,
        "limit": MAX_KEY_BYTES,
        "pack": encoding.pack,
        "encode": encode,
        "encode_text": encoding.encode_text,
    }


def _by_template(template: str, kept: Sequence[Parameter], function: str) -> tuple[str, dict[str, Any]]:
    """The key is a text with some of the arguments in it."""
    names = [parameter.name for parameter in kept if parameter.kind not in _VARIADIC]
    expression, helpers = templates.compiled(template, names, function)
    return f"$key = $encode_text({expression})", {"encode_text": encoding.encode_text, **helpers}


def _by_function(key: Callable[..., Any], kept: Sequence[Parameter], function: str) -> tuple[str, dict[str, Any]]:
    """The key is that of what ``key`` makes of the arguments."""
    passed = ", ".join(_PASSED.get(parameter.kind, "{0}").format(parameter.name) for parameter in kept)
    _check_takes(key, kept, function, passed)

    def encode(result: Any) -> bytes:
        if type(result) is str:
            return encoding.encode_text(result)
        try:
            return encoding.within_limit(encoding.PREFIX + encoding.pack([encoding.lowered(result)]))
        except (Unkeyable, RecursionError) as error:
            what = f"{function}: what key= returned"
            raise encoding.explained(error, result, what, "or return what tells calls apart") from None

    return f"$key = $encode($function({passed}))", {"encode": encode, "function": key}


def _check_takes(key: Callable[..., Any], kept: Sequence[Parameter], function: str, passed: str) -> None:
    """Raise ``TypeError`` where a function ``key`` cannot be called with the arguments, or is a coroutine function."""
    if inspect.iscoroutinefunction(key):
        raise TypeError(f"{function}: key: got an async function, expected one that returns the key at once")
    try:
        signature = inspect.signature(key)
    except (TypeError, ValueError):
        return  # one of C code may not say
    positional = [None for parameter in kept if parameter.kind not in (*_VARIADIC, Parameter.KEYWORD_ONLY)]
    named = {parameter.name: None for parameter in kept if parameter.kind is Parameter.KEYWORD_ONLY}
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise TypeError(f"{function}: key: got a function that cannot be called with ({passed}): {error}") from None
