"""The coordinator's options: who says what, and who is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

import mpgroupcache
from mpgroupcache.coordinator.options import PRIVATE_LINGER, ExitCode, Options, misspelt, parse


def test_defaults() -> None:
    assert parse(["--socket", "/run/cache.sock"], {}) == Options("/run/cache.sock")


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "cache.toml"
    file.write_text('socket = "/run/file.sock"\nlinger = 1\ngroup = 1001\nlease-timeout = 1\nmax-bytes = "1MiB"\n')
    environment = {
        "MPGROUPCACHE_CONFIG": str(file),
        "MPGROUPCACHE_LINGER": "2",
        "MPGROUPCACHE_LEASE_TIMEOUT": "2",
        "MPGROUPCACHE_APPLICATION": "not an option of the coordinator's",
    }
    assert parse(["--lease-timeout", "3"], environment) == Options(
        "/run/file.sock", group="1001", max_bytes=1 << 20, lease_timeout=3.0, linger=2.0
    )


def test_a_private_one_ends_some_time_after_its_clients() -> None:
    arguments = ["--socket", "/run/cache.sock", "--embedded"]
    assert parse(arguments, {}).linger == PRIVATE_LINGER
    assert parse(arguments, {"MPGROUPCACHE_LINGER": "0.5"}).linger == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--socket: got nothing"),
        (["--socket", "/" + "x" * 200], "--socket: got a path of 201 bytes"),
        (["--socket", "/s", "--linger", "-1"], "--linger: got '-1'"),
        (["--socket", "/s", "--linger", "soon"], "--linger: got 'soon'"),
        (["--socket", "/s", "--max-bytes", "1MB"], "--max-bytes: got '1MB'"),
        (["--socket", "/s", "--max-value-share", "1.5"], "--max-value-share: got '1.5'"),
        (["--socket", "/s", "--group", ""], "--group: got ''"),
        (["--socket", "/s", "--log-level", "loud"], "--log-level: got 'loud'"),
        (["--socket", "/s", "--config", "/nonexistent"], "/nonexistent"),
        (["--socket", "/s", "--reserve", "much"], "--reserve: got 'much'"),
        (["--sokcet", "/s"], "unrecognized arguments: --sokcet /s"),
        (["--socket"], "argument --socket: expected one argument"),
    ],
)
def test_what_cannot_be_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments, {})
    assert ended.value.code == ExitCode.BAD_OPTION
    said = capsys.readouterr().err
    assert said.startswith("mpgroupcache-coordinator: ")
    assert message in said
    assert said.count("\n") == 1  # without the usage


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_what_it_says_of_itself(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([flag], {})
    assert ended.value.code == ExitCode.OK
    said = " ".join(capsys.readouterr().out.split())
    if flag == "--version":
        assert said == f"mpgroupcache-coordinator {mpgroupcache.__version__}"
    else:
        assert all(f" {code:d} " in said.partition("exit codes:")[2] for code in ExitCode)


def test_variables_that_are_misspelt() -> None:
    of_kubernetes = {
        f"MPGROUPCACHE_{name}": ""
        for name in (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_8080_TCP",
            "PORT_8080_TCP_ADDR",
            "PORT_8080_TCP_PORT",
            "PORT_8080_TCP_PROTO",
        )
    }
    known = {f"MPGROUPCACHE_{name}": "" for name in ("SOCKET", "APPLICATION", "CONFIG", "MAX_BYTES", "RESERVE")}
    others = {"PATH": "", "MPGROUPCACHE_": "", "MPGROUPCACHE_SOMETHING_ELSE": "", "MPGROUPCAHE_SOCKET": ""}
    assert misspelt(of_kubernetes | known | others) == []
    wrong = {
        "MPGROUPCACHE_SOKCET": "MPGROUPCACHE_SOCKET",  # two letters exchanged
        "MPGROUPCACHE_PEERS": "MPGROUPCACHE_PEER",
        "MPGROUPCACHE_MAXBYTES": "MPGROUPCACHE_MAX_BYTES",
        "MPGROUPCACHE_APLICATION": "MPGROUPCACHE_APPLICATION",
        "MPGROUPCACHE_KEEP_ALON": "MPGROUPCACHE_KEEP_ALONE",
        "MPGROUPCACHE_LIST": "MPGROUPCACHE_LISTEN",
    }
    assert misspelt(of_kubernetes | known | dict.fromkeys(wrong, "")) == sorted(wrong.items())


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cache.toml"
    file.write_text('sokcet = "/s"\n')
    with pytest.raises(SystemExit):
        parse(["--config", str(file)], {})
    assert "got the key 'sokcet', expected some of socket, group, max-bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "content", "text"),
    [
        ("--config", b"socket = ", "--config {path}: Invalid value (at end of document); expected TOML"),
        ("--config", b'socket = "\xff"', "--config {path}: 'utf-8' codec can't decode"),
        ("--config", None, "--config: [Errno 2] No such file or directory: '{path}'"),
        ("--secret-file", b"secret \xff", "--secret-file {path}: got bytes, expected UTF-8"),
        ("--secret-file", b"", "--secret-file {path}: "),
        ("--secret-file", None, "--secret-file: [Errno 2] No such file or directory: '{path}'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_option(
    option: str, content: bytes | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit):
        parse(["--socket", "/s", option, str(path)], {})
    said = capsys.readouterr().err
    assert text.format(path=path) in said
    assert "0xff" not in said or option == "--config"  # no byte of a secret
