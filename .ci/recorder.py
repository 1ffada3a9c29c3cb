"""A plugin of pytest for `rerun.py`: ``-p recorder --record=FILE`` writes how each test ended, and what else failed."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

ORDER = ["skipped", "passed", "failed"]  # a test is the worst of its setup, call and teardown


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="FILE", type=Path, help="write to FILE how each test ended")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int, int]:
    """Write when pytest is through with everything: of one that crashes, whenever that is, there is no record."""
    path = config.getoption("--record")
    if path is None or hasattr(config, "workerinput"):  # xdist's workers report to the main process
        return (yield)
    recorder = Recorder()
    config.pluginmanager.register(recorder)
    status = yield
    path.write_text(json.dumps({"status": int(status), "broken": recorder.broken, "outcomes": recorder.outcomes}))
    return status


class Recorder:
    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.broken: list[str] = []

    def pytest_internalerror(self) -> None:
        self.broken.append("an internal error of pytest")  # a worker's does not always show in the exit status

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(f"an error of collection: {report.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:  # where a worker crashed there is no phase
            outcome = self.outcomes.get(report.nodeid, ORDER[0])
            self.outcomes[report.nodeid] = max(outcome, report.outcome, key=ORDER.index)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (ended := len(self.outcomes)) != session.testscollected:
            self.broken.append(f"{ended} tests came to an end, of {session.testscollected}")
