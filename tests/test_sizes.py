"""Sizes: every accepted spelling, every refusal, and what an operator reads in messages."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.sizes import MAX_SIZE, format_size, parse_size

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Budget(IntEnum):
    SMALL = 1 << 20


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (64 << 20, 64 << 20),
        (MAX_SIZE, MAX_SIZE),
        ("0", 0),
        ("0MiB", 0),
        ("1000", 1000),
        ("17B", 17),
        ("64MiB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("  2 GiB\n", 2 << 30),
        ("007KiB", 7 << 10),
        ("1.5KiB", 1536),
        ("0.5TiB", 1 << 39),
        ("8388607TiB", 8388607 << 40),
    ],
)
def test_parse(size: int | str, expected: int) -> None:
    assert parse_size(size) == expected


def test_parse_returns_a_plain_int() -> None:
    assert type(parse_size(Budget.SMALL)) is int


def test_fractions_are_exact() -> None:
    # A float has 53 bits: it would say 2**53 for both.
    assert parse_size("9007199254740992.0") == 1 << 53
    assert parse_size("9007199254740993.0") == (1 << 53) + 1


@pytest.mark.parametrize("size", ["0.5", "0.1B", "0.0001KiB"])
def test_a_fraction_of_a_byte_never_switches_caching_off(size: str) -> None:
    assert parse_size(size) == 1


@given(st.integers(0, 1 << 20), st.sampled_from(sorted(UNITS)))
def test_parse_any_number_in_any_unit(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * UNITS[unit]


@pytest.mark.parametrize(
    "size",
    [
        "",
        " ",
        "MiB",
        "64MB",
        "64mib",
        "64M",
        "64 Mi B",
        "-1",
        "+1",
        "1e6",
        "1_000",
        ".5MiB",
        "5.MiB",
        "1,5MiB",
        "inf",
        "٣",
    ],
)
def test_unreadable(size: str) -> None:
    with pytest.raises(ValueError, match="cache_bytes: got .*, expected bytes with one of B, KiB"):
        parse_size(size)


@pytest.mark.parametrize("size", [None, 1.5, True, b"64MiB", [1]])
def test_wrong_type(size: Any) -> None:
    with pytest.raises(TypeError, match=f"max_bytes: got {type(size).__name__}, expected an int"):
        parse_size(size, "max_bytes")


@pytest.mark.parametrize(("size", "got"), [(-1, "-1"), pytest.param(-(1 << 20_000), "an int of 20001 bits", id="huge")])
def test_negative(size: int, got: str) -> None:
    with pytest.raises(ValueError, match=rf"cache_bytes: got {got}, expected 0 \(caching off\) or more"):
        parse_size(size)


@pytest.mark.parametrize(
    "size",
    [
        MAX_SIZE + 1,
        pytest.param(1 << 20_000, id="huge"),
        "9223372036854775808",
        "8388608TiB",
        "9" * 30 + "TiB",
    ],
)
def test_beyond_any_file(size: int | str) -> None:
    with pytest.raises(ValueError, match=f"expected at most {MAX_SIZE} bytes"):
        parse_size(size)


@pytest.mark.parametrize("size", ["9" * 5000, "9" * 400 + ".0", "0." + "1" * 5000], ids=len)
def test_more_digits_than_python_reads(size: str) -> None:
    with pytest.raises(ValueError, match="cache_bytes: got '"):
        parse_size(size)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1025, "1025 B"),
        (3912, "3912 B"),
        (4096, "4 KiB"),
        (5000, "4.883 KiB"),
        ((1 << 20) - 1, "1024 KiB"),
        (1 << 20, "1 MiB"),
        (64 << 20, "64 MiB"),
        (61_000_000, "58.17 MiB"),
        (1 << 30, "1 GiB"),
        (10_000 << 40, "10000 TiB"),
        (MAX_SIZE, "8388608 TiB"),
        (-5, "-5 B"),
    ],
)
def test_format(size: int, expected: str) -> None:
    assert format_size(size) == expected


@given(st.integers(0, MAX_SIZE >> 1))
def test_format_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=1e-3)
