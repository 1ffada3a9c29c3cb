"""What workers declare, where they do not all say the same: the first one counts, and the log says so once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from workers import PATIENCE, Daemon, HandWorker

from mpgroupcache.ages import AGELESS
from mpgroupcache.coordinator.hostgroups import MAX_TOLD
from mpgroupcache.ipc.messages import Declare, Declared, Ping, Pong

Start = Callable[..., Daemon]

SHOP = """
import multiprocessing, sys

import mpgroupcache


@mpgroupcache.cached("pages", "1MiB")
def page(key):
    return key


class Rows:
    def get(self, ctx, key, dest):
        dest.set_string(key)


rows = mpgroupcache.new_group("rows", "1MiB", Rows())


def get():
    assert page("k") == rows.get("k") == "k"
"""
RUN = """
if __name__ == "__main__":
    get()
    child = multiprocessing.get_context("spawn").Process(target=get)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
BLOG = SHOP.replace("def page", "def post").replace('page("k")', 'post("k")').replace("Rows", "Posts")


def run(socket: str, *arguments: str, cwd: Path) -> None:
    """Be an application of that coordinator's for a moment."""
    environment = dict(os.environ, MPGROUPCACHE_SOCKET=socket)
    subprocess.run([sys.executable, *arguments], check=True, timeout=PATIENCE, cwd=cwd, env=environment)


def getters_in(daemon: Daemon) -> list[str]:
    return [line for line in daemon.log if "with the getter" in line]


def test_two_applications_behind_one_socket_are_named(start_coordinator: Start, tmp_path: Path) -> None:
    """Each would get the other's values. One application is one, however its module is run or imported."""
    (tmp_path / "shop.py").write_text(SHOP + RUN)
    (tmp_path / "blog.py").write_text(BLOG)
    (tmp_path / "outlet.py").write_text(SHOP)
    daemon = start_coordinator()
    for arguments in (
        ("-c", "import shop; shop.get()"),
        ("shop.py",),
        ("-m", "shop"),
        ("-c", "import shop; shop.get()"),
    ):
        run(daemon.socket, *arguments, cwd=tmp_path)
    assert getters_in(daemon) == []
    for _ in range(2):
        run(daemon.socket, "-c", "import blog; blog.get()", cwd=tmp_path)
    page, rows = getters_in(daemon)
    assert "group 'pages': got a declaration with the getter blog.post, the first one was with shop.page" in page
    assert "group 'rows': got a declaration with the getter blog.Posts, the first one was with shop.Rows" in rows
    run(daemon.socket, "-c", "import outlet; outlet.get()", cwd=tmp_path)
    assert "the getter outlet.page" in getters_in(daemon)[2]  # the same name, and another module


@pytest.mark.parametrize("first", ["__main__", "__mp_main__", "app"])
@pytest.mark.parametrize("second", ["__main__", "__mp_main__", "app"])
def test_a_script_is_its_module(start_coordinator: Start, first: str, second: str) -> None:
    daemon = start_coordinator()
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        for module, getter in ((first, "load"), (second, "load"), ("", "")):
            assert isinstance(worker.ask(Declare("g", 0, None, False, module, getter, True, AGELESS)), Declared)
        assert worker.ask(Ping()) == Pong()
        assert getters_in(daemon) == []
        assert isinstance(worker.ask(Declare("g", 0, None, False, second, "other", True, AGELESS)), Declared)
        daemon.wait_says(f"with the getter {second}.other, the first one was with {first}.load")


def test_differences_are_said_once_and_not_without_end(start_coordinator: Start) -> None:
    daemon = start_coordinator()
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        for size in (1 << 20, *(2 << 20,) * 3):
            worker.ask(Declare("g", size, None, False, "app", "load", True, AGELESS))
        daemon.wait_says("group 'g': got cache_bytes of 2 MiB, the first declaration said 1 MiB")
        for number in range(2 * MAX_TOLD):
            worker.ask(Declare("g", 1 << 20, None, False, "app", f"load_{number}", True, AGELESS))
        daemon.wait_says("with the getter", MAX_TOLD - 1)
        worker.ask(Declare("last", 0, None, False, "", "", True, AGELESS))
        worker.ask(Declare("last", 1, None, False, "", "", True, AGELESS))
        daemon.wait_says("group 'last': got cache_bytes")
    log = "".join(daemon.log)
    assert log.count("got cache_bytes of 2 MiB") == 1
    assert log.count("with the getter") == MAX_TOLD - 1
