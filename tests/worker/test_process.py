"""What a process keeps: no get fails because of what comes between it and the coordinator."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from workers import wait_until

import mpgroupcache
from mpgroupcache.worker import config, process


def raise_odd(*_args: object, **_options: object) -> Any:
    """What nobody expects of a connection."""
    return 1 // 0


PLACES = [(process, "Link"), (config, "location"), (mpgroupcache.Group, "attach_to")]


@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_what_nobody_foresaw_fails_no_get(
    here: Any, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mpgroupcache.worker.process")
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, raise_odd)
        assert group.get("key") == "value"
        assert group.get("key") == "value"
        assert not mpgroupcache.connect()
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "no coordinator: " in warning.getMessage()
    assert "ZeroDivisionError: integer division or modulo by zero" in warning.getMessage()
    assert warning.exc_info is None
    traced = [record for record in caplog.records if record.exc_info]
    assert traced
    assert all(record.levelno == logging.DEBUG for record in traced)
    wait_until(mpgroupcache.connect)  # it was tried again
    assert process.current().working_link is not None
    caplog.clear()


def test_each_kind_of_what_nobody_foresaw_is_reported_once(
    here: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also behind an absence that is known: it may be another defect, and the one that lasts."""
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    monkeypatch.setattr(process, "RETRY_FIRST", 0.0)
    errors = [OSError("first"), ValueError("second"), KeyError("third"), KeyError("fourth"), IndexError("fifth")]
    with monkeypatch.context() as patch:
        for error in errors:

            def fail(*_args: object, error: Exception = error) -> Any:
                raise error

            patch.setattr(config, "location", fail)
            assert group.get("key") == "value"
    reported = [record.getMessage() for record in caplog.records if "no coordinator" in record.getMessage()]
    assert [text.removeprefix("no coordinator: ").partition(";")[0] for text in reported] == [
        "first",
        "KeyError: 'third'",
        "IndexError: fifth",
    ]
    caplog.clear()
