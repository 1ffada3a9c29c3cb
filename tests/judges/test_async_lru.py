"""async-lru's own tests, with ``@cached`` in its place."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import judging
import pytest
from tools import missing
from workers import Daemon

VERSION = "2.4.0"
SHA256 = "b0b0077d9b7596615b3c12d0aad4f6aeccaaa0ac75ceae472608ede89e764c08"
FILES = ("conftest.py", "test_basic.py", "test_exception.py", "test_ttl.py", "test_cache_invalidate.py")

COPIES = "it wants the very object that was returned; processes share its bytes, and each caller has one of its own"
CLASS_METHOD = "it wants class methods; they are refused where they are declared"
PLAIN = "it wants a plain function to be refused; those are cached, too"
JITTER = "it wants seconds on top of ttl, checked before there is a function; here it is a fraction, checked with one"
EXPIRED = "it wants what has expired to be counted no more; here it is, until its memory is taken back"

REASONS = {
    "test_alru_cache_await_same_result_async": COPIES,
    "test_alru_cache_await_same_result_coroutine": COPIES,
    "test_alru_cache_classmethod": CLASS_METHOD,
    "test_alru_cache_dict_not_shared": "it looks into a dict of tasks; there is none here",
    "test_alru_cache_method_is_coroutine_function": CLASS_METHOD,
    "test_alru_cache_not_callable": "it wants a NotImplementedError of what is no function; it is a TypeError here",
    "test_alru_cache_not_coroutine": PLAIN,
    "test_alru_exception": "it wants who waits for another's load to be a hit; it found nothing, and is a miss here",
    "test_jitter_negative_raises_error": JITTER,
    "test_jitter_without_ttl_raises_error": JITTER,
    "test_ttl_limited_cache": "it wants a bound on entries; ours is one on bytes, and evicts nothing so soon",
}
SOMETIMES = {
    "test_ttl_infinite_cache": EXPIRED,
    "test_ttl_with_explicit_invalidation": "it wants a tenth of a second to pass in less than two",
    "test_ttl_with_jitter_basic": EXPIRED,
    "test_ttl_with_jitter_zero": EXPIRED,
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The directory of the files, out of async-lru's sdist."""
    wanted = tmp_path / "requirements.txt"
    wanted.write_text(f"async-lru=={VERSION} --hash=sha256:{SHA256}\n")
    options = ["--quiet", "--no-deps", "--no-binary=:all:", "--require-hashes"]
    download = [sys.executable, "-m", "pip", "download", *options, "-r", str(wanted), "-d", str(tmp_path)]
    done = subprocess.run(download, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"no sdist of async-lru {VERSION} here: {done.stderr.strip()[-500:]}")
    (tests := tmp_path / "tests").mkdir()
    with tarfile.open(tmp_path / f"async_lru-{VERSION}.tar.gz") as archive:
        for name in FILES:
            file = archive.extractfile(f"async_lru-{VERSION}/tests/{name}")
            assert file is not None
            (tests / name).write_bytes(file.read())
    return tests


@pytest.mark.slow
def test_alru_cache(start_coordinator: Callable[..., Daemon], sources: Path, tmp_path: Path) -> None:
    configuration, report = tmp_path / "pytest.ini", tmp_path / "report.xml"
    configuration.write_text("[pytest]\nfilterwarnings = error\n")
    environment = judging.environment_of(start_coordinator(), Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", configuration, "-p", "judge_async_lru", f"--junitxml={report}", sources],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    tests = list(ElementTree.parse(report).iter("testcase"))
    failed = {test.attrib["name"]: "".join(test.itertext()) for test in tests if len(test)}
    judging.check({test.attrib["name"] for test in tests}, failed, REASONS, SOMETIMES)
