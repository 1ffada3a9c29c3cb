"""The build backend, over a setuptools that only notes that it was asked."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).parent.parent / "build_backend" / "mpgroupcache_build.py"
BUILDS = ("build_wheel", "build_editable")


@pytest.fixture
def asked() -> list[str]:
    """The hooks of setuptools that were called."""
    return []


@pytest.fixture
def backend(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def hook(name: str) -> Callable[..., str]:
        return lambda *_arguments: asked.append(name) or name

    setuptools, meta = ModuleType("setuptools"), ModuleType("setuptools.build_meta")
    for prefix in ("get_requires_for_build_", "prepare_metadata_for_build_", "build_"):
        for kind in ("sdist", "wheel", "editable"):
            setattr(meta, prefix + kind, hook(prefix + kind))
    setuptools.build_meta = meta  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    monkeypatch.setitem(sys.modules, "setuptools.build_meta", meta)
    for name in ("CFLAGS", "CPPFLAGS", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CC", "cc")  # which is kept as it is
    spec = importlib.util.spec_from_file_location("mpgroupcache_build", PATH)
    assert spec is not None
    assert spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return backend


@pytest.fixture
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory where Python says that its headers are."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("build", BUILDS)
def test_a_build_without_pythons_headers_says_what_to_install(
    backend: Any, asked: list[str], include: Path, build: str
) -> None:
    version = sysconfig.get_python_version()
    with pytest.raises(SystemExit) as raised:
        getattr(backend, build)("wheels")
    said = str(raised.value)
    assert f"got no Python.h in {include}, expected those of Python {version}. Install python3-dev (Debian" in said
    assert "python3-devel (Fedora)" in said
    assert asked == []


@pytest.mark.parametrize("build", BUILDS)
def test_a_build_with_pythons_headers_is_setuptools(backend: Any, asked: list[str], include: Path, build: str) -> None:
    (include / "Python.h").touch()
    assert getattr(backend, build)("wheels") == build
    assert asked == [build]


@pytest.mark.parametrize(
    ("name", "value"), [("CPATH", "/headers"), ("C_INCLUDE_PATH", "/headers"), ("CFLAGS", "-O2 -I/headers")]
)
def test_headers_may_be_where_the_compiler_is_told(
    backend: Any, asked: list[str], include: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    backend.build_wheel("wheels")
    assert asked == ["build_wheel"]


def test_other_flags_are_no_headers(backend: Any, include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-O2")
    with pytest.raises(SystemExit, match="got no Python.h"):
        backend.build_wheel("wheels")


def test_metadata_needs_no_headers(backend: Any, include: Path) -> None:
    assert backend.prepare_metadata_for_build_wheel("wheels") == "prepare_metadata_for_build_wheel"
    backend.build_sdist("sdists")
