"""Keys: two spellings, one entry; what is refused, and what a loader is given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.keys import MAX_KEY_BYTES, decode_key, encode_key


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_both_spellings_are_one_key(text: str) -> None:
    encoded = encode_key(text)
    assert encoded == encode_key(text.encode())
    assert decode_key(encoded) == text


@given(st.binary())
def test_bytes_come_back_as_text_or_as_they_were(key: bytes) -> None:
    decoded = decode_key(encode_key(key))
    assert encode_key(decoded) == key


@pytest.mark.parametrize(
    ("key", "decoded"),
    [
        (b"", ""),
        (b"cat.jpg", "cat.jpg"),
        ("chaton-\N{CAT}".encode(), "chaton-\N{CAT}"),
        (b"a\0b", "a\0b"),
        (b"\xff", b"\xff"),
        (b"\xed\xa0\x80", b"\xed\xa0\x80"),  # a surrogate as CESU-8 has it
        (b"\xc0\xaf", b"\xc0\xaf"),  # overlong "/"
    ],
)
def test_what_a_loader_is_given(key: bytes, decoded: str | bytes) -> None:
    assert decode_key(key) == decoded


def test_normal_forms_are_different_keys() -> None:
    assert encode_key("\N{LATIN SMALL LETTER E WITH ACUTE}") != encode_key("e\N{COMBINING ACUTE ACCENT}")


class Name(str):
    __slots__ = ()


class Blob(bytes):
    pass


@pytest.mark.parametrize("key", [Name("cat.jpg"), Blob(b"cat.jpg")])
def test_subclasses_become_plain_bytes(key: str | bytes) -> None:
    encoded = encode_key(key)
    assert encoded == b"cat.jpg"
    assert type(encoded) is bytes


@pytest.mark.parametrize("key", ["\ud800", "cat\udcff", "\udc80" * 3])
def test_lone_surrogates(key: str) -> None:
    with pytest.raises(ValueError, match=r"key: got a lone surrogate at index \d of a \d-character str.*pass bytes"):
        encode_key(key)


@pytest.mark.parametrize("key", [None, 1, 1.5, bytearray(b"k"), memoryview(b"k"), ["k"]])
def test_other_types(key: Any) -> None:
    with pytest.raises(TypeError, match=f"key: got {type(key).__name__}, expected str or bytes"):
        encode_key(key)


@pytest.mark.parametrize("key", ["k" * MAX_KEY_BYTES, b"k" * MAX_KEY_BYTES, "é" * (MAX_KEY_BYTES // 2)], ids=len)
def test_longest_keys(key: str | bytes) -> None:
    assert len(encode_key(key)) == MAX_KEY_BYTES


@pytest.mark.parametrize(
    "key",
    ["k" * (MAX_KEY_BYTES + 1), b"k" * (MAX_KEY_BYTES + 1), "é" * (MAX_KEY_BYTES // 2 + 1), "é" * MAX_KEY_BYTES],
    ids=len,
)
def test_keys_over_the_limit(key: str | bytes) -> None:
    with pytest.raises(ValueError, match=f"key: got {len(key.encode() if isinstance(key, str) else key)} bytes"):
        encode_key(key)
