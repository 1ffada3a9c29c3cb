"""Templates of keys: ``"user:{user_id}:{locale}"``, a text with arguments in it, which peers and operators can read.

- A field is a parameter, or an attribute of one: ``{user.id}``. It may have a format: ``{day:%Y-%m}``. Parameters that
  the template does not name are left out.
- Values are ``str``, ``int``, ``float``, ``Decimal``, ``bool``, None, dates, times, UUID and paths: what has one text,
  everywhere. 1 and "1" have the same one: types are told apart where ``key=`` is None.
- In a value that text follows, ``%`` and that text's first character are percent-encoded. The key of
  ``"{folder}:{name}"`` is ``a%3Ab:c`` for "a:b" and "c", and ``a:b:c`` for "a" and "b:c". For the same reason text has
  to stand between two fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from keyword import iskeyword
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from string import Formatter
from types import NoneType
from typing import Any, Final
from uuid import UUID

from mpgroupcache.functions.classes import full_name

_TEXTS: Final = frozenset(
    {str, int, float, bool, NoneType, Decimal, date, datetime, time, timedelta, UUID}
    | {PosixPath, PurePosixPath, PureWindowsPath}
)


def compiled(template: str, names: Sequence[str], function: str) -> tuple[str, dict[str, Any]]:
    """Return the expression that makes a key of the parameters ``names``, and what it needs, for `generating`.

    Raises ``ValueError`` for a template that would not do.
    """

    def wrong(why: str) -> ValueError:
        return ValueError(f"{function}: key: got {template!r}, {why}")

    try:
        template.encode()
        parts = [*Formatter().parse(template)]
    except ValueError as error:
        raise wrong(f"which is no template: {error}") from None
    pieces: list[str] = []
    helpers: dict[str, Any] = {}
    for number, (literal, field, spec, conversion) in enumerate(parts):
        if literal:
            pieces.append(f"$text_{number}")
            helpers[f"text_{number}"] = literal
        if field is None:
            continue
        shown = f"{{{field}}}"
        if re.split(r"[.[]", field)[0] not in names:
            raise wrong(f"where {shown} is no parameter, expected one of: {', '.join(names) or 'none'}")
        if not all(part.isidentifier() and not iskeyword(part) for part in field.split(".")):
            raise wrong(f"where {shown} is no attribute, expected such as {{user.id}}; say the rest with a function")
        if conversion:
            raise wrong(
                f"where {shown} has a !{conversion}, expected a name and a format; say the rest with a function"
            )
        if spec and "{" in spec:
            raise wrong(f"where the format of {shown} has a field of its own; say it with a function")
        following, next_field = (parts[number + 1][:2]) if number + 1 < len(parts) else ("", None)
        if next_field is not None and not following:
            raise wrong(f"where another field follows {shown} at once, expected text between them to tell them apart")
        pieces.append(f"$field_{number}({field})")
        helpers[f"field_{number}"] = _field(f"{function}: key: {shown}", spec or "", following[:1])
    if names and not any(field for _, field, _, _ in parts):
        raise wrong(f"which names no parameter, expected such as {{{names[0]}}}: all calls would have one key")
    return " + ".join(pieces) or "''", helpers


def _field(what: str, spec: str, stop: str) -> Callable[[Any], str]:
    """Return what makes the text of a field's value; ``stop`` is the character that follows the field, if any."""
    escapes = str.maketrans({c: "".join(f"%{byte:02X}" for byte in c.encode()) for c in ("%", stop) if c})

    def text(value: Any) -> str:
        if type(value) not in _TEXTS:
            raise TypeError(
                f"{what}: got {full_name(type(value))}, expected str, int, float, Decimal, bool, None, a date or time, "
                "UUID or Path; name an attribute, as in {user.id}, or give key= a function"
            )
        try:
            made = format(value, spec)
        except ValueError as error:
            raise ValueError(f"{what}: got {full_name(type(value))} with the format {spec!r}: {error}") from None
        return made.translate(escapes) if stop and ("%" in made or stop in made) else made

    return text
