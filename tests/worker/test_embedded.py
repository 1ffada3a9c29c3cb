"""The embedded default: where it is found, that there is one of it, and that it goes."""

from __future__ import annotations

import fcntl
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
from mpgroupcache.worker import config, embedded

SCRIPT = """
import sys, mpgroupcache
group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string(sys.argv[1]))
print(str(group.get("key")), flush=True)
sys.stdin.readline()
print(str(group.get("key")), flush=True)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """One with a short name: a socket's path is bounded."""
    with tempfile.TemporaryDirectory(prefix="mpg-") as name:
        yield Path(name)


@pytest.fixture
def environment(directory: Path) -> Iterator[dict[str, str]]:
    """An application of its own, whose coordinator ends soon after it."""
    own = {"XDG_RUNTIME_DIR": str(directory), "MPGROUPCACHE_APPLICATION": "test", "MPGROUPCACHE_LINGER": "0.5"}
    environment = dict(os.environ, **own)
    environment.pop("MPGROUPCACHE_SOCKET", None)
    yield environment
    wait_until(lambda: coordinators(directory) == [], "the end of the private coordinator")
    for path in directory.rglob("*.lock"):
        assert segments_of(str(path.with_suffix(""))) == []


def coordinators(directory: Path) -> list[psutil.Process]:
    """The coordinators whose sockets lie in a directory."""
    lines = ((process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [process for process, line in lines if "--detach" in line and str(directory) in " ".join(line)]


def start(environment: dict[str, str], value: str, script: str = SCRIPT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, value],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_that_start_at_once_share_one(environment: dict[str, str], directory: Path) -> None:
    workers = [start(environment, f"value-{number}") for number in range(5)]
    first = [worker.stdout.readline().strip() for worker in workers if worker.stdout]
    assert len(set(first)) == 1
    (coordinator,) = coordinators(directory)
    assert coordinator.ppid() not in {worker.pid for worker in workers}
    assert coordinator.status() != psutil.STATUS_ZOMBIE
    assert os.getsid(coordinator.pid) != os.getsid(0)
    for worker in workers:
        out, err = worker.communicate("\n", timeout=30)  # its pipes end with it: the coordinator holds none of them
        assert out.strip() == first[0]
        assert err == ""
        assert worker.returncode == 0


def test_a_new_one_goes_on_for_a_killed_one(environment: dict[str, str], directory: Path) -> None:
    worker = start(environment, "one")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "one\n"
    witness = start(environment, "none")
    assert witness.communicate("\n", timeout=30)[0] == "one\none\n"  # so it is stored: loading does not wait for that
    (coordinator,) = coordinators(directory)
    coordinator.kill()
    wait_until(lambda: coordinators(directory) == [])
    other = start(environment, "two")
    assert other.stdout is not None
    assert other.stdout.readline() == "one\n"  # which the new one has taken over
    other.communicate("\n", timeout=30)
    worker.communicate("\n", timeout=30)
    assert worker.returncode == other.returncode == 0


def test_one_that_cannot_start_fails_no_get(environment: dict[str, str], directory: Path) -> None:
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


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Callable[[], None]:
    for name in ("MPGROUPCACHE_SOCKET", "MPGROUPCACHE_APPLICATION"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    return mpgroupcache.configure


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


def test_a_directory_that_cannot_be_written_is_passed_over(
    unset: Callable[[], None], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    """As where the environment is another user's, or names what nobody has made."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory / "not made"))
    monkeypatch.setenv("TMPDIR", str(directory))
    assert Path(config.location().path).parent.parent == directory
    (directory / "file").write_text("")
    for variable in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(variable, str(directory / "file"))
    assert config._temporary_directory() == "/tmp"


def test_a_directory_of_somebody_else_is_refused(unset: Callable[[], None], directory: Path) -> None:
    (directory / f"mpgroupcache-{os.getuid()}").mkdir(mode=0o755)
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
