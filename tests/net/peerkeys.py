"""Keys of all the kinds that a URL might spoil."""

from __future__ import annotations

import random

from mpgroupcache.keys import MAX_KEY_BYTES

ODD_KEYS: dict[str, bytes] = {
    "plain": b"hello",
    "empty": b"",
    "space": b"a b",
    "plus": b"a+b",
    "escaped space": b"a%20b",
    "escaped plus": b"a%2Bb",
    "percent": b"100%",
    "percent and digits": b"%41%zz",
    "slash": b"a/b",
    "escaped slash": b"a%2Fb",
    "leading slash": b"/a",
    "trailing slash": b"a/",
    "slashes": b"//a//b//",
    "only a slash": b"/",
    "dot": b".",
    "dots": b"..",
    "three dots": b"...",
    "dots inside": b"a/../b/./c",
    "dots first": b"../../etc/passwd",
    "escaped dots": b"%2E%2E",
    "question mark": b"a?b=c",
    "only a question mark": b"?",
    "hash": b"a#b",
    "url": b"http://user:pass@host:80/p;q?r=s&t=u#v",
    "star": b"*",
    "unreserved": b"azAZ09-._~",
    "other ASCII": bytes(set(range(0x20, 0x7F)) - set(b"abcdefghijklmnopqrstuvwxyz")),
    "control": b"\x00\x01\t\r\n\x7f",
    "UTF-8": "chat \N{CAT}".encode(),
    "not UTF-8": b"\xff\xfe\x80",
    "all bytes": bytes(range(256)),
    "long": b"k" * MAX_KEY_BYTES,
    "long and escaped": b"\xff" * MAX_KEY_BYTES,
}


def many_keys(count: int) -> list[bytes]:
    """Keys of all kinds, the same at each call."""
    chance = random.Random(3)
    texts = ["user:", "http://example.org/a?b=c&d=", "/img/", "..", "a b+", "caf\N{LATIN SMALL LETTER E WITH ACUTE} "]
    keys = list(ODD_KEYS.values())
    while len(keys) < count:
        if chance.random() < 0.5:
            keys.append(f"{chance.choice(texts)}{chance.getrandbits(32)}".encode())
        else:
            keys.append(chance.randbytes(chance.randrange(40)))
    return keys
