"""What CI runs again, and what it says in the end: `.ci/rerun.py`, on tests made for it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

RERUN = Path(__file__).parent.parent / ".ci" / "rerun.py"
PYTEST = Path(sys.executable).with_name("pytest")
PATIENCE = 120.0  # s
PRELUDE = """
import os
import pathlib
import pytest

RUNS = pathlib.Path(__file__).with_name("runs")


def run(name):
    '''The number of this run of a test.'''
    with RUNS.open("a") as runs:
        runs.write(f"{name} {os.getpid()} {os.environ.get('PYTEST_XDIST_WORKER', 'alone')}\\n")
    return sum(line.split()[0] == name for line in RUNS.read_text().splitlines())


def test_stable():
    run("stable")
"""

Rerun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def rerun(tmp_path: Path) -> Rerun:
    """Run tests, the failed ones again: ``rerun(tests, conftest)``."""

    def rerun(tests: str, conftest: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p xdist\n")
        (tmp_path / "Makefile").write_text(f"test:\n\t{PYTEST} -n 2 $(PYTEST_ARGS)\n")
        (tmp_path / "conftest.py").write_text(conftest)
        (tmp_path / "test_it.py").write_text(PRELUDE + tests)
        # As from a shell: without what the run that this test is part of was told, and without plugins, for speed.
        inherited = {k: v for k, v in os.environ.items() if not re.match("MAKE|MFLAGS|PYTEST|PYTHONPATH", k)}
        return subprocess.run(
            [sys.executable, RERUN, PYTEST, "make", "test"],
            cwd=tmp_path,
            env=inherited | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return rerun


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], Counter[str]]:
    """How often each test ran."""
    return lambda: Counter(line.split()[0] for line in (tmp_path / "runs").read_text().splitlines())


def test_nothing_is_added_where_all_tests_pass(rerun: Rerun) -> None:
    done = rerun("")
    assert done.returncode == 0, done.stderr
    assert re.search(r"=+ 1 passed in .* =+\n\Z", done.stdout)


@pytest.mark.slow
def test_a_test_that_passes_ten_times_alone_is_listed_as_flaky(rerun: Rerun, tmp_path: Path) -> None:
    odd = "a b] - [c::d/$(e) 'f' \"g\" ü"
    done = rerun(f"@pytest.mark.parametrize('n', [1], ids=[{odd!r}])\ndef test_once(n):\n    assert run('once') > 1\n")
    assert done.returncode == 0, done.stdout + done.stderr
    end = f"\n2 passed, 0 failed\n\n== flaky\ntest_it.py::test_once[{odd}]\n"
    assert done.stdout.endswith(end.replace("ü", r"\xfc"))
    lines = [line.split() for line in (tmp_path / "runs").read_text().splitlines()]
    once = [line for line in lines if line[0] == "once"]
    assert len(lines) - len(once) == 1
    assert len({process for _, process, _ in once}) == 11  # each by itself
    assert [worker for _, _, worker in once[1:]] == ["alone"] * 10


@pytest.mark.slow
def test_a_test_that_fails_once_more_is_a_failure(rerun: Rerun, runs: Callable[[], Counter[str]]) -> None:
    done = rerun(
        "def test_always():\n    run('always')\n    raise ZeroDivisionError('always')\n"
        "def test_rarely():\n    assert run('rarely') not in (1, 11), 'rarely'\n"
    )
    assert done.returncode == 1, done.stdout
    assert done.stdout.endswith(
        "\n1 passed, 2 failed\n\n== failed alone, too\ntest_it.py::test_always\ntest_it.py::test_rarely\n"
    )
    assert runs() == {"stable": 1, "always": 2, "rarely": 11}
    assert "test_it.py::test_rarely: run 10 of 10 failed (exit status 1)" in done.stdout
    assert done.stdout.count("Error: rarely") > 1  # the output of the run that failed alone is there, too


@pytest.mark.slow
def test_errors_around_a_test_and_crashes_of_its_worker_are_failures(
    rerun: Rerun, runs: Callable[[], Counter[str]]
) -> None:
    done = rerun(
        """
@pytest.fixture
def fragile():
    yield
    assert run("teardown") > 2

@pytest.fixture
def absent():
    assert run("setup") > 2

def test_teardown(fragile): pass
def test_setup(absent): pass
def test_crash():
    if run("crash") == 1:
        os._exit(1)
"""
    )
    assert done.returncode == 1, done.stdout
    assert done.stdout.endswith(
        "\n2 passed, 2 failed\n"
        "\n== failed alone, too\ntest_it.py::test_setup\ntest_it.py::test_teardown\n"
        "\n== flaky\ntest_it.py::test_crash\n"
    )
    assert runs() == {"stable": 1, "teardown": 2, "setup": 2, "crash": 11}


def test_a_crash_alone_is_a_failure(rerun: Rerun) -> None:
    done = rerun("def test_crash():\n    os._exit(0 if run('crash') > 1 else 1)\n")
    assert done.returncode == 1
    assert done.stdout.endswith("\n1 passed, 1 failed\n\n== failed alone, too\ntest_it.py::test_crash\n")


def test_what_runs_again_has_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("rerun", RERUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "test_endless.py"
    path.write_text("import time\ndef test_endless():\n    time.sleep(3600)\n")
    runs = module.Runs(str(PYTEST), tmp_path)
    assert not runs.alone(f"{path}::test_endless", time.monotonic() + 2)
    assert "run 1 of 10 failed (took all of 1800 s)" in capsys.readouterr().out


FAILING_ONCE = "def test_once():\n    assert run('once') > 1\n"


@pytest.mark.parametrize(
    ("tests", "conftest", "reason"),
    [
        pytest.param(
            "@pytest.mark.parametrize('n', range(11))\ndef test_many(n):\n    assert run('many') > 11\n",
            "",
            "11 tests failed, of which 10 could be flaky",
            id="more than ten",
        ),
        pytest.param(FAILING_ONCE + "1 / 0\n", "", "an error of collection: test_it.py", id="an error of collection"),
        pytest.param(
            FAILING_ONCE,
            "import os\ndef pytest_runtest_logfinish(nodeid):\n    if 'PYTEST_XDIST_WORKER' in os.environ: 1 / 0\n",
            "an internal error of pytest",
            id="an internal error of a worker",
        ),
        pytest.param(
            FAILING_ONCE,
            "import os\n"
            "def pytest_sessionfinish(session):\n    if not hasattr(session.config, 'workerinput'): os.abort()\n",
            "no record: pytest did not come to its end",
            id="a crash",
        ),
        pytest.param(
            FAILING_ONCE,
            "def pytest_configure(config):\n    config.option.maxfail = 1\n",
            "exit status 2 of pytest",
            id="a run that is stopped",
        ),
        pytest.param(
            "@pytest.mark.parametrize('n', range(30))\ndef test_crash(n):\n    if run('crash') == 1: os._exit(1)\n",
            "def pytest_configure(config):\n    config.option.maxworkerrestart = '0'\n"
            "def pytest_runtest_teardown():\n    import time; time.sleep(0.05)\n",
            "tests came to an end, of 31",
            id="a run that ends early",
        ),
        pytest.param(
            FAILING_ONCE, "def pytest_unconfigure(config):\n    1 / 0\n", "no record", id="a crash in the end"
        ),
        pytest.param(
            FAILING_ONCE,
            "def pytest_configure(config):\n    config.add_cleanup(lambda: 1 / 0)\n",
            "no record",
            id="a crash at the very end",
        ),
        pytest.param(
            "", "def pytest_configure(config):\n    1 / 0\n", "exit status 3 of pytest", id="a crash at the beginning"
        ),
    ],
)
def test_what_is_broken_is_not_run_again(rerun: Rerun, tmp_path: Path, tests: str, conftest: str, reason: str) -> None:
    done = rerun(tests, conftest)
    assert done.returncode != 0, done.stdout
    said = done.stdout.rpartition("\n== nothing is run again\n")[2]
    assert reason in said, done.stdout
    assert "== flaky" not in done.stdout
    assert not (tmp_path / "runs").exists() or " alone\n" not in (tmp_path / "runs").read_text()
