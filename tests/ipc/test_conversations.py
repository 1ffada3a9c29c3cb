"""Workers of every version of the conversation that was ever spoken are served, byte for byte as they always were."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversing import CONVERSATIONS, coordinator, current, play, read, record

from mpgroupcache.ipc.messages import HIGHEST_VERSION, LOWEST_VERSION, MessageType


@pytest.mark.parametrize("path", sorted(CONVERSATIONS.iterdir()), ids=lambda path: path.stem)
def test_every_version_is_served(path: Path, socket_path: str) -> None:
    with coordinator(socket_path) as wire:
        play(read(path), wire)


def test_every_version_is_recorded() -> None:
    versions = range(LOWEST_VERSION, HIGHEST_VERSION + 1)
    assert sorted(path.name for path in CONVERSATIONS.iterdir()) == [f"v{version}.txt" for version in versions]


def test_every_message_is_recorded() -> None:
    said = {int(line.words[0][-2:], 16) for line in read(current()) if line.speaker in "<>"}
    assert said == set(MessageType)


def test_what_is_said_now_is_what_was_recorded(socket_path: str) -> None:
    """Else it is another version. Until a release has spoken this one, record it again (``conversing.py``)."""
    with coordinator(socket_path) as wire:
        assert record(wire) == current().read_text()


def test_another_answer_is_seen(socket_path: str) -> None:
    lines = read(current())
    values = [line for line in lines if line.speaker == "<" and line.words[0] == "6d670213"]
    origin = values[0].words.index("01")
    values[0].words[origin] = "03"
    with coordinator(socket_path) as wire, pytest.raises(AssertionError, match="expected 03 at 20"):
        play(lines, wire)
