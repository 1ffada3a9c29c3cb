"""The embedded default: where it is found, that there is one of it, and that it goes."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from workers import segments_of, wait_until

import mpgroupcache
from mpgroupcache.shm.segment import private_directory, private_files
from mpgroupcache.worker import config, embedded

SCRIPT = """
import sys, mpgroupcache
group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string(sys.argv[1]))
print(str(group.get("key")), flush=True)
sys.stdin.readline()
print(str(group.get("key")), flush=True)
"""

CHANGE = """
import sys, mpgroupcache
group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
if "full" in sys.argv[1]:
    group.get("key")
for _ in range(2):
    group.clear() if "clear" in sys.argv[1] else group.remove("key")
"""
WARNED = ("found nothing, and no other worker is here", "MPGROUPCACHE_APPLICATION", "MPGROUPCACHE_SOCKET")


@pytest.fixture
def directory() -> Iterator[Path]:
    """One with a short name: a socket's path is bounded."""
    with tempfile.TemporaryDirectory(prefix="mpg-") as name:
        yield Path(name)


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """An application of its own, whose coordinator ends soon after it."""
    environment = dict(os.environ, MPGROUPCACHE_APPLICATION=os.urandom(8).hex(), MPGROUPCACHE_LINGER="0.5")
    environment.pop("MPGROUPCACHE_SOCKET", None)
    yield environment
    wait_until(lambda: coordinators(environment) == [], "the end of the private coordinator")
    assert left(environment) == []


def socket_of(environment: dict[str, str]) -> str:
    """Where an application's private coordinator serves."""
    return config.private_socket(environment["MPGROUPCACHE_APPLICATION"])


def coordinators(environment: dict[str, str]) -> list[psutil.Process]:
    """An application's private coordinators."""
    lines = ((process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [process for process, line in lines if "--embedded" in line and socket_of(environment) in line]


def left(environment: dict[str, str]) -> list[str]:
    """What there is of an application's private coordinator, in files and segments."""
    path = Path(socket_of(environment))
    return [*map(str, path.parent.glob(f"{path.name}*")), *segments_of(str(path))]


def start(environment: dict[str, str], value: str, script: str = SCRIPT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, value],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_that_start_at_once_share_one(environment: dict[str, str]) -> None:
    workers = [start(environment, f"value-{number}") for number in range(5)]
    first = [worker.stdout.readline().strip() for worker in workers if worker.stdout]
    assert len(set(first)) == 1
    (coordinator,) = coordinators(environment)
    assert coordinator.ppid() not in {worker.pid for worker in workers}
    assert coordinator.status() != psutil.STATUS_ZOMBIE
    assert os.getsid(coordinator.pid) != os.getsid(0)
    for worker in workers:
        out, err = worker.communicate("\n", timeout=30)  # its pipes end with it: the coordinator holds none of them
        assert out.strip() == first[0]
        assert err == ""
        assert worker.returncode == 0


def test_a_new_one_goes_on_for_a_killed_one(environment: dict[str, str]) -> None:
    worker = start(environment, "one")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "one\n"
    witness = start(environment, "none")
    assert witness.communicate("\n", timeout=30)[0] == "one\none\n"  # so it is stored: loading does not wait for that
    (coordinator,) = coordinators(environment)
    coordinator.kill()
    wait_until(lambda: coordinators(environment) == [])
    other = start(environment, "two")
    assert other.stdout is not None
    assert other.stdout.readline() == "one\n"  # which the new one has taken over
    other.communicate("\n", timeout=30)
    worker.communicate("\n", timeout=30)
    assert worker.returncode == other.returncode == 0


def test_one_that_begins_anew_goes_on_as_it_was(environment: dict[str, str]) -> None:
    """With its log, and it ends soon after its last client, as before."""
    worker = start(environment, "one")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "one\n"
    (coordinator,) = coordinators(environment)
    coordinator.send_signal(signal.SIGUSR2)
    log = Path(private_files(socket_of(environment))[1])
    wait_until(lambda: log.read_text().count("serving on") == 2, "the next one")
    assert coordinators(environment) == [coordinator]
    assert worker.communicate("\n", timeout=30)[0] == "one\n"


def test_it_has_none_of_the_applications_secrets(environment: dict[str, str]) -> None:
    """Only what it needs: others of this user may read what a process was started with."""
    environment["DATABASE_URL"] = "postgres://user:secret@host/db"
    worker = start(environment, "one")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "one\n"
    (coordinator,) = coordinators(environment)
    assert "DATABASE_URL" not in coordinator.environ()
    assert coordinator.environ().items() <= environment.items()
    assert {"PATH", "MPGROUPCACHE_LINGER"} <= coordinator.environ().keys()
    worker.communicate("\n", timeout=30)


def test_one_name_is_one_application_whatever_directories_it_has(environment: dict[str, str], directory: Path) -> None:
    """As a login shell and a service with its own /tmp have other ones."""
    first = start(environment, "one")
    assert first.stdout is not None
    assert first.stdout.readline() == "one\n"
    there = {"XDG_RUNTIME_DIR": str(directory), "TMPDIR": str(directory)}
    other = start(environment | there, "two")
    assert other.communicate("\n", timeout=30)[0] == "one\none\n"
    first.communicate("\n", timeout=30)


def test_one_that_cannot_start_fails_no_get(environment: dict[str, str]) -> None:
    environment["MPGROUPCACHE_MAX_BYTES"] = "many"
    worker = start(environment, "value")
    out, err = worker.communicate("\n", timeout=60)
    assert out == "value\nvalue\n"
    assert "MPGROUPCACHE_MAX_BYTES" in err
    assert "until it is back, what is not cached is loaded in this process" in err


@pytest.mark.parametrize("executable", ["None", "''"])
def test_a_program_that_is_no_interpreter_fails_no_get(environment: dict[str, str], executable: str) -> None:
    """As where Python is a part of another program: nothing there can be started as one."""
    script = f"import sys; sys.executable = {executable}\n{SCRIPT}"
    worker = start(environment, "value", script)
    out, err = worker.communicate("\n", timeout=60)
    assert out == "value\nvalue\n"
    assert f"sys.executable: got {executable}, expected the interpreter" in err
    assert "start mpgroupcache-coordinator, and set MPGROUPCACHE_SOCKET" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("change", ["remove", "clear"])
def test_a_change_that_finds_nothing_and_nobody_is_warned_of_once(environment: dict[str, str], change: str) -> None:
    """As in a shell or a job, beside an application that has a coordinator of its own."""
    worker = start(environment, change, CHANGE)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert [err.count(text) for text in WARNED] == [1, 1, 1], err
    assert f"{change} found nothing" in err


@pytest.mark.parametrize("change", ["remove", "clear"])
def test_a_change_that_others_see_is_not_warned_of(environment: dict[str, str], change: str) -> None:
    witness = start(environment, "one")
    assert witness.stdout is not None
    assert witness.stdout.readline() == "one\n"
    for _ in range(2):
        worker = start(environment, change, CHANGE)
        assert worker.communicate(timeout=60) == ("", "")
        assert worker.returncode == 0
    witness.communicate("\n", timeout=30)


def test_a_change_that_finds_something_is_not_warned_of(environment: dict[str, str]) -> None:
    """Nor one that comes in one read with the value."""
    script = CHANGE.replace("range(2)", "range(1)")
    for change in ("full remove", "full clear"):
        worker = start(environment, change, script)
        assert worker.communicate(timeout=60) == ("", "")
        assert worker.returncode == 0


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    for name in ("MPGROUPCACHE_SOCKET", "MPGROUPCACHE_APPLICATION"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    reset = functools.partial(mpgroupcache.configure, socket=None)
    reset()
    yield reset
    reset()
    with contextlib.suppress(OSError):  # another test's coordinator serves in there
        os.rmdir(private_directory())


def test_location(unset: Callable[[], None], monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    private = config.location()
    assert private.private
    assert private == config.location()
    assert os.environ["MPGROUPCACHE_APPLICATION"]  # handed on to children
    monkeypatch.setenv("MPGROUPCACHE_APPLICATION", "another")
    assert config.location() != private
    monkeypatch.setenv("MPGROUPCACHE_SOCKET", "/run/a.sock")
    assert config.location() == ("/run/a.sock", False)
    mpgroupcache.configure(socket=directory / "b.sock")
    try:
        assert config.location() == (str(directory / "b.sock"), False)
    finally:
        unset()


def test_what_was_given_directories_of_its_own_is_apart(
    unset: Callable[[], None], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    """But not what has one name: a login shell, a service and a cron job differ in such directories."""
    found = set()
    for number in range(2):
        for variable in ("XDG_RUNTIME_DIR", "TMPDIR"):
            monkeypatch.setenv(variable, f"{directory}/{number}")
            monkeypatch.delenv("MPGROUPCACHE_APPLICATION", raising=False)
            found.add(config.location())
    assert len(found) == 4
    monkeypatch.setenv("MPGROUPCACHE_APPLICATION", "one")
    one = config.location()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    assert config.location() == one


def test_a_directory_of_somebody_else_is_refused(
    unset: Callable[[], None], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    directory.chmod(0o755)
    monkeypatch.setattr(config, "private_directory", lambda: str(directory))
    with pytest.raises(mpgroupcache.CoordinatorError, match="0700"):
        config.location()


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(ValueError, match=r"configure\(socket"):
        mpgroupcache.configure(socket="/" + "x" * 200)


def test_a_child_forked_while_one_is_started_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. One thread starts the coordinator under the lock. 2. Another forks: the child has the locked file open too."""
    path = str(tmp_path / "s")
    children: list[int] = []

    def start_and_fork(path: str, timeout: float) -> None:
        if (child := os.fork()) == 0:
            signal.pause()
        children.append(child)

    monkeypatch.setattr(embedded, "_start", start_and_fork)
    try:
        embedded.ensure_running(path)
        with open(f"{path}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_lock_that_is_never_given_back_fails_no_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts the coordinator may be stopped: the others go on without one."""
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
    path = str(tmp_path / "s")
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(mpgroupcache.CoordinatorUnavailable, match="another process"):
            embedded.ensure_running(path)
