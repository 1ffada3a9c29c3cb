"""Run the tests; run what failed ten times more, alone; and end with a list of what passed then, as flaky.

    python3 .ci/rerun.py .venv/bin/pytest make test

``make test`` is given, by ``PYTEST_ARGS``, a plugin of pytest that records which tests failed, by the ids that pytest
takes again, whatever is in them. All else is a failure at once: errors of collection, internal errors, a crash of
pytest, a run that ended early, and more failed tests than `MOST`, since something is broken then, and not flaky.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 10
MOST = 10  # failed tests
SECONDS = 1800.0  # for all that runs again: what has not passed by then has failed


def say(text: str) -> None:
    print(text, flush=True)


class Runs:
    """Runs of pytest that are recorded."""

    def __init__(self, pytest: str, scratch: Path) -> None:
        self._pytest = pytest
        self._record = scratch / "record"
        self._output = scratch / "output"
        self._arguments = ["-p", "recorder", f"--record={self._record}"]
        path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}

    def suite(self, command: list[str]) -> tuple[int, dict[str, str], list[str]]:
        """Return the command's exit status, how each test ended, and what else failed."""
        arguments = f"{os.environ.get('PYTEST_ARGS', '')} {shlex.join(self._arguments)}"
        done = subprocess.run(command, env=self._environment | {"PYTEST_ARGS": arguments}, check=False)
        outcomes, broken = self._take_record()
        if done.returncode and not broken and "failed" not in outcomes.values():
            broken.append(f"exit status {done.returncode} of {shlex.join(command)}, and no test that failed")
        return done.returncode, outcomes, broken

    def alone(self, test: str, deadline: float) -> bool:
        """Whether a test passes each time; if not, the output of the run that failed is shown."""
        command = [self._pytest, *self._arguments, test]
        for run in range(1, RUNS + 1):
            # To a file: what a test leaves running may keep a pipe open.
            with self._output.open("wb") as output:
                try:
                    status = subprocess.run(
                        command,
                        env=self._environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        timeout=max(deadline - time.monotonic(), 0),
                        check=False,
                    ).returncode
                except subprocess.TimeoutExpired:
                    status = None
            outcomes, broken = self._take_record()
            if status != 0 or broken or outcomes != {test: "passed"}:
                ended = f"took all of {SECONDS:.0f} s" if status is None else f"exit status {status}"
                say(self._output.read_text(errors="replace"))
                say(f"{test}: run {run} of {RUNS} failed ({ended})")
                return False
        say(f"{test}: {RUNS} of {RUNS} runs passed")
        return True

    def _take_record(self) -> tuple[dict[str, str], list[str]]:
        try:
            record = json.loads(self._record.read_text())
        except FileNotFoundError:
            return {}, ["no record: pytest did not come to its end"]
        self._record.unlink()
        if record["status"] not in (0, 1):
            record["broken"].append(f"exit status {record['status']} of pytest")
        return record["outcomes"], record["broken"]


def main(pytest: str, *command: str) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        runs = Runs(pytest, Path(scratch))
        status, outcomes, broken = runs.suite(list(command))
        failed = sorted(test for test, outcome in outcomes.items() if outcome == "failed")
        if len(failed) > MOST:
            broken.append(f"{len(failed)} tests failed, of which {MOST} could be flaky")
        if broken:
            say("\n".join(["\n== nothing is run again", *dict.fromkeys(broken)]))
            return status or 1
        if not failed:
            return 0
        say(f"\n== {len(failed)} failed: {RUNS} runs of each, alone")
        deadline = time.monotonic() + SECONDS
        flaky = [test for test in failed if runs.alone(test, deadline)]
    bad = [test for test in failed if test not in flaky]
    passed = sum(outcome == "passed" for outcome in outcomes.values()) + len(flaky)
    say(f"\n{passed} passed, {len(bad)} failed")
    for heading, tests in (("failed alone, too", bad), ("flaky", flaky)):
        if tests:
            say("\n".join([f"\n== {heading}", *tests]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
