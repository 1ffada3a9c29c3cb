"""Keys: ``str`` or ``bytes`` outside, bytes inside. The two spellings of one key are one entry."""

from __future__ import annotations

MAX_KEY_BYTES = 64 << 10  # bytes; Go has no limit, but a key travels in a URL, where 64 KiB is already generous


def encode_key(key: str | bytes) -> bytes:
    """Return the key's bytes.

    Raises ``TypeError`` for another type, ``ValueError`` for a lone surrogate or more than ``MAX_KEY_BYTES``.
    """
    if isinstance(key, str):
        try:
            key = key.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"key: got a lone surrogate at index {error.start} of a {len(key)}-character str, expected text that "
                "encodes to UTF-8; pass bytes for a key that is not text"
            ) from None
    elif isinstance(key, bytes):
        key = bytes(key)  # itself, but for a subclass
    else:
        raise TypeError(f"key: got {type(key).__name__}, expected str or bytes")
    if len(key) > MAX_KEY_BYTES:
        raise ValueError(f"key: got {len(key)} bytes, expected at most {MAX_KEY_BYTES}; hash long keys first")
    return key


def decode_key(key: bytes) -> str | bytes:
    """Return what a loader is given for ``key``: ``str`` where it is valid UTF-8, else the bytes."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
