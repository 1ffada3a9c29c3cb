"""Getters: how the log names what an application wrote."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import mpgroupcache
from mpgroupcache.getters import source_of


def load(ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
    dest.set_string(key)


class Rows:
    def get(self, ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        dest.set_string(key)

    def load(self, ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        dest.set_string(key)

    def __call__(self, ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        dest.set_string(key)


@pytest.mark.parametrize(
    ("getter", "name"),
    [
        (load, "load"),
        (functools.partial(functools.partial(load)), "load"),
        (Rows(), "Rows"),
        (Rows().load, "Rows.load"),
        (Rows, "Rows"),
    ],
)
def test_the_source_of_a_getter(getter: object, name: str) -> None:
    assert source_of(getter) == (__name__, name)


def test_the_source_of_what_no_application_wrote() -> None:
    assert source_of(print) == ("builtins", "print")
    assert source_of({}.get) == ("", "dict.get")


def page(key: str) -> str:
    return key


async def apage(key: str) -> str:
    return key


@pytest.mark.parametrize("function", [page, apage])
def test_the_source_of_a_cached_function(function: Any) -> None:
    cached = mpgroupcache.cached(f"source of {function.__name__}", 0)(function)
    assert cached.group._source == (__name__, function.__name__)
