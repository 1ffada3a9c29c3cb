"""Values that are pydantic's, or have some of them: as JSON, by ``TypeAdapter``. Nothing here imports pydantic."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mpgroupcache.functions.formats import Format
from mpgroupcache.functions.returned import bare
from mpgroupcache.late import importing

_FOR_PEOPLE: Final = frozenset({"title", "description", "default", "examples", "deprecated"})
_OF_NAMES: Final = frozenset({"properties", "patternProperties", "$defs"})


def is_model(kind: Any) -> bool:
    """Whether it is a class of pydantic's models."""
    pydantic: Any = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def has_model(annotation: Any) -> bool:
    """Whether ``annotation`` names a model, as ``list[Model]`` does."""
    annotation = bare(annotation)
    return is_model(annotation) or any(map(has_model, typing.get_args(annotation)))


def model_format(annotation: Any) -> Format:
    """Raises what pydantic raises for what it cannot do: ``NameError`` where a model names what is not there."""
    pydantic: Any = sys.modules["pydantic"]
    with importing:  # pydantic imports its parts late
        adapter = pydantic.TypeAdapter(annotation)
        json_schema = pydantic.json_schema
    adapter.rebuild(raise_errors=True)

    class Schema(json_schema.GenerateJsonSchema):  # type: ignore[misc, name-defined]
        ignored_warning_kinds: typing.ClassVar = {"skipped-choice", "non-serializable-default"}

    schema = adapter.json_schema(schema_generator=Schema)
    dump, validate = adapter.dump_json, adapter.validate_json
    return Format(
        # Its fields as validation calls them. Of values of other types it would warn: these do not come back equal.
        lambda value: dump(value, by_alias=True, round_trip=True, warnings=False),
        lambda view: validate(bytes(view)),
        b"pydantic:" + msgspec.json.encode(_shape(schema), order="sorted"),
        exact=False,
    )


def _shape(schema: Any, names: bool = False) -> Any:
    """A JSON schema without what is for people, and without defaults. In ``names`` keys are an application's."""
    if isinstance(schema, Mapping):
        return {
            key: _shape(value, not names and key in _OF_NAMES)
            for key, value in schema.items()
            if names or key not in _FOR_PEOPLE
        }
    return [*map(_shape, schema)] if isinstance(schema, list) else schema
