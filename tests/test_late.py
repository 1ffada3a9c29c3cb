"""Late imports, and forks: a child waits for no thread that is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What `slow` is imported by knows when it began, and when it may end.
SLOW = """
import __main__
__main__.begun.set()
__main__.going_on.wait()
__main__.order.append("imported")
"""

SCRIPT = """
import os, signal, sys, threading
from mpgroupcache.late import importing

sys.path.insert(0, sys.argv[1])
begun, going_on, forking = threading.Event(), threading.Event(), threading.Event()
order, status = [], []

def import_slow():
    with importing:
        import slow

def fork():
    if (child := os.fork()) == 0:
        signal.alarm(20)
        import_slow()
        os._exit(0)
    order.append("forked")
    status.append(os.waitpid(child, 0)[1])

os.register_at_fork(before=forking.set)  # hooks run from the last one to the first
threads = [threading.Thread(target=import_slow), threading.Thread(target=fork)]
threads[0].start()
begun.wait()
threads[1].start()
forking.wait()
going_on.set()
for thread in threads:
    thread.join()
print(*order, *status)
"""


def test_a_fork_waits_for_an_import_that_is_under_way(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "imported forked 0\n"


def test_a_child_imports_as_its_parent_does(tmp_path: Path) -> None:
    """The thread that forks holds the lock over the fork, on both sides."""
    script = (
        "import os; from mpgroupcache.late import importing\n"
        "child = os.fork()\n"
        "with importing: import mpgroupcache.errors\n"
        "os._exit(0) if child == 0 else print(os.waitpid(child, 0)[1])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "0\n"
