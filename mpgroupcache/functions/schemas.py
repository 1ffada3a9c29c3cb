"""What msgspec makes of a type: its shape as a text, and what follows of it for values that are decoded as such.

The text is the same in every process and for one type in every Python. It is JSON, for people to compare::

    {"classes":{"Point":["Dataclass","Point",["x","Int"],["y","Int"]]},"type":["List",{"item_type":"Point"}]}

Of a class it has the name, without its module, and the names and types of its fields in their order (a ``TypedDict``
has none); of an enum the names and values; of a `Struct` what msgspec is told of it, too. Defaults are not part of it,
except where values leave them out (``omit_defaults``).
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect as kinds

_CLASSES: Final = (kinds.StructType, kinds.DataclassType, kinds.NamedTupleType, kinds.TypedDictType, kinds.EnumType)

_IMMUTABLE: Final = (
    kinds.NoneType,
    kinds.BoolType,
    kinds.IntType,
    kinds.FloatType,
    kinds.StrType,
    kinds.BytesType,
    kinds.DateTimeType,
    kinds.DateType,
    kinds.TimeType,
    kinds.TimeDeltaType,
    kinds.UUIDType,
    kinds.DecimalType,
    kinds.EnumType,
    kinds.LiteralType,
    # What these are of is looked at for itself.
    kinds.UnionType,
    kinds.TupleType,
    kinds.VarTupleType,
    kinds.FrozenSetType,
    kinds.NamedTupleType,
    kinds.Metadata,
)

_json: Final = msgspec.json.Encoder(order="sorted").encode


def parts(kind: kinds.Type) -> list[kinds.Type]:
    """Return ``kind`` and all that it is made of."""
    found: dict[int, kinds.Type] = {}
    ahead = [kind]
    while ahead:
        part = ahead.pop()
        if id(part) not in found:
            found[id(part)] = part
            ahead += _children(part)
    return [*found.values()]


def _children(kind: kinds.Type) -> Iterator[kinds.Type]:
    for name in kind.__struct_fields__:
        value = getattr(kind, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, kinds.Field):
                yield part.type
            elif isinstance(part, kinds.Type):
                yield part


def is_any(kind: kinds.Type) -> bool:
    """Whether values of every type are of it. msgspec takes ``object`` for a class of the application's."""
    return isinstance(kind, kinds.AnyType) or (isinstance(kind, kinds.CustomType) and kind.cls is object)


def is_immutable(kind: kinds.Type) -> bool:
    """Whether a value of it can be given to many: nothing in it can be changed."""
    return all(isinstance(part, _IMMUTABLE) or _is_frozen(part) for part in parts(kind))


def _is_frozen(kind: kinds.Type) -> bool:
    if isinstance(kind, kinds.StructType):
        return bool(_class_of(kind).__struct_config__.frozen)
    if isinstance(kind, kinds.DataclassType):
        params = getattr(_class_of(kind), "__dataclass_params__", None)
        return params is not None and params.frozen  # a class of attrs does not tell
    return False


def _class_of(kind: Any) -> Any:
    return typing.get_origin(kind.cls) or kind.cls  # generic ones may have their parameters


def holds_bytes(kind: kinds.Type) -> bool:
    """Whether a value of it refers to the bytes that it was decoded from."""
    return any(isinstance(part, (kinds.RawType, kinds.MemoryViewType)) for part in parts(kind))


def text_of(kind: kinds.Type) -> bytes:
    """Return the shape of ``kind`` as a text."""
    return _Shape(kind).text


class _Shape:
    def __init__(self, kind: kinds.Type) -> None:
        self._names: dict[int, str] = {}  # by identity: msgspec has one description of each class
        self._classes: dict[str, Any] = {}
        whole = {"type": self._of(kind)}
        self.text: Final = _json({**whole, "classes": self._classes} if self._classes else whole)

    def _of(self, kind: kinds.Type) -> Any:
        if isinstance(kind, kinds.Metadata):  # what is said for people
            return self._of(kind.type)
        if isinstance(kind, _CLASSES):
            return self._named(kind)
        if is_any(kind):
            return "Any"
        name = type(kind).__name__.removesuffix("Type")
        if isinstance(kind, kinds.UnionType):  # in an order of ours: Python's depends on what it has cached
            return [name, *sorted(map(self._of, kind.types), key=_json)]
        said = {field: self._part(getattr(kind, field)) for field in kind.__struct_fields__}
        said = {field: value for field, value in said.items() if value is not None}
        return [name, said] if said else name

    def _part(self, value: Any) -> Any:
        if isinstance(value, kinds.Type):
            return self._of(value)
        if isinstance(value, tuple):
            return [self._part(part) for part in value]
        return value.__name__ if isinstance(value, type) else value

    def _named(self, kind: Any) -> str:
        """The name of a class, under which its shape is."""
        if id(kind) in self._names:  # a class may hold itself
            return self._names[id(kind)]
        name = base = str(_class_of(kind).__name__)
        while name in self._classes:  # another class of the name, or of other parameters
            name += "'"
        self._names[id(kind)] = name
        self._classes[name] = None
        rule = type(kind).__name__.removesuffix("Type")
        if isinstance(kind, kinds.EnumType):
            self._classes[name] = [rule, base, {key: member.value for key, member in kind.cls.__members__.items()}]
            return name
        fields = [self._field(kind, field) for field in kind.fields]
        self._classes[name] = [rule, base, *fields]
        if isinstance(kind, kinds.StructType):
            self._classes[name].append({"array_like": kind.array_like, "tag": [kind.tag_field, kind.tag]})
        return name

    def _field(self, kind: Any, field: kinds.Field) -> list[Any]:
        said = [field.name, self._of(field.type)]
        if field.encode_name != field.name:
            said.append({"as": field.encode_name})
        if isinstance(kind, kinds.TypedDictType):
            said.append({"required": field.required})
        omits = isinstance(kind, kinds.StructType) and _class_of(kind).__struct_config__.omit_defaults
        if omits and field.default is not msgspec.NODEFAULT:
            said.append({"default": field.default})
        return said
