"""What messages do beside travelling: texts for people."""

from __future__ import annotations

from mpgroupcache.ipc.messages import Ask, Fail


def test_long_fields_are_cut_for_people() -> None:
    short, most = "x" * 28, "x" * 40
    middle = f"'{'x' * 12}...{'x' * 13}'"
    assert repr(Fail(1, short, most)) == f"Fail(lease=1, type_name={short!r}, message={middle})"
    assert repr(Fail(1, most + "x", most)) == f"Fail(lease=1, type_name={most!r}...41, message={middle})"
    assert repr(Ask(1, (most + "x").encode(), tuple(range(1, 9)), True, False, "get")) == (
        f"Ask(group=1, key={most.encode()!r}...41, held=(1, 2, 3, 4, 5, 6, ...), copy=True, here=False, mode='get')"
    )
