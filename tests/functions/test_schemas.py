"""Schemas: the same in every Python, others for other types, and what else follows of a type."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import goldenschemas
import msgspec
import pytest
from msgspec.inspect import type_info
from test_golden_keys import PYTHONS, python_of  # noqa: F401

from mpgroupcache.functions.schemas import is_immutable, text_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", goldenschemas.TYPES)
def test_a_schema_is_what_it_was(name: str) -> None:
    assert goldenschemas.schema_of(name) == goldenschemas.read()[name]


@pytest.mark.parametrize("wanted", PYTHONS)
def test_schemas_are_the_same_in_every_python(wanted: str, python_of: Callable[[str], list[str]]) -> None:  # noqa: F811
    python, target = python_of(wanted)
    path = os.pathsep.join(filter(None, [str(ROOT), str(Path(__file__).parent), target]))
    for seed in ("0", "4294967295"):
        told = subprocess.run(
            [python, "-c", "import goldenschemas; goldenschemas.main()"],
            env={"PYTHONPATH": path, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout == f"{len(goldenschemas.read())} types\n"


def dataclass_of(*fields: Any, name: str = "Point", **options: Any) -> bytes:
    return text_of(type_info(dataclasses.make_dataclass(name, fields, **options)))


def struct_of(*fields: Any, name: str = "Point", **options: Any) -> bytes:
    return text_of(type_info(msgspec.defstruct(name, fields, **options)))


def test_what_changes_stored_values_changes_the_schema() -> None:
    assert dataclass_of(("x", int), ("y", int)) == dataclass_of(("x", int), ("y", int), frozen=True)
    others = [
        dataclass_of(("x", int), ("y", int)),
        dataclass_of(("y", int), ("x", int)),
        dataclass_of(("x", int), ("z", int)),
        dataclass_of(("x", int), ("y", float)),
        dataclass_of(("x", int), ("y", int | None)),
        dataclass_of(("x", int)),
        dataclass_of(("x", int), ("y", int), name="Pair"),
        struct_of(("x", int), ("y", int)),
        struct_of(("x", int), ("y", int), array_like=True),
        struct_of(("x", int), ("y", int), rename="upper"),
        struct_of(("x", int), ("y", int), tag=True),
        struct_of(("x", int), ("y", int), tag="p"),
        struct_of(("x", int), ("y", int), tag="p", tag_field="t"),
    ]
    assert len({*others}) == len(others)


def test_a_default_counts_only_where_values_leave_it_out() -> None:
    assert struct_of(("x", int)) == struct_of(("x", int, 1)) == struct_of(("x", int, 2))
    assert struct_of(("x", int, 1), omit_defaults=True) != struct_of(("x", int, 2), omit_defaults=True)


def test_two_classes_of_one_name_are_two() -> None:
    inner = [dataclasses.make_dataclass("Point", [("x", kind)]) for kind in (int, str)]
    assert dataclass_of(("a", inner[0]), ("b", inner[1]), name="Both") != dataclass_of(
        ("a", inner[1]), ("b", inner[0]), name="Both"
    )


@pytest.mark.parametrize(
    ("name", "immutable"),
    [
        ("None", True),
        ("moments", True),
        ("numbers", True),
        ("optional", True),
        ("literal", True),
        ("annotated", True),
        ("Color", True),
        ("Point3", True),
        ("Pair", True),
        ("Renamed", True),
        ("sets", False),
        ("mapping", False),
        ("any", False),
        ("Point", False),
        ("Node", False),
        ("Row", False),
        ("Record", False),
        ("boxes", False),
    ],
)
def test_what_cannot_be_changed_is_known(name: str, immutable: bool) -> None:
    assert is_immutable(type_info(goldenschemas.TYPES[name])) is immutable


def test_one_part_that_can_be_changed_is_enough() -> None:
    def frozen(kind: Any) -> Any:
        return dataclasses.make_dataclass("Frozen", [("part", kind)], frozen=True)

    assert is_immutable(type_info(frozen(frozenset[goldenschemas.Renamed])))
    assert not is_immutable(type_info(frozen(goldenschemas.Point)))
    assert not is_immutable(type_info(frozen(tuple[list[int], ...])))
    assert not is_immutable(type_info(frozen(Any)))
    assert not is_immutable(type_info(frozen(object)))
