"""PEP 517 build backend: setuptools', plus a C compiler on machines that have none.

Where there is neither ``$CC`` nor a compiler on ``PATH``, a build asks for the PyPI package ``ziglang`` and compiles
with its ``cc``, a complete clang with headers and libraries. Python's own headers nobody can bring: where they are
missing, the build says so. Everything else is setuptools' own backend.

What cannot be built ends as in setuptools, with ``SystemExit``: pip then shows the sentence, and no traceback.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
import sysconfig
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

FALLBACK = "ziglang"

Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _compiler_requires()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _compiler_requires()


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    _check_headers()
    _choose_compiler()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _check_headers()
    _choose_compiler()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _check_headers() -> None:
    """Say in one sentence what a compiler would say in many: that Python's headers are not there."""
    directories = {sysconfig.get_path(name): None for name in ("include", "platinclude")}
    if any(os.path.exists(os.path.join(directory, "Python.h")) for directory in directories):
        return
    # Whoever names directories to the compiler may have them there.
    flags = " ".join(os.environ.get(name, "") for name in ("CC", "CFLAGS", "CPPFLAGS"))
    if os.environ.get("CPATH") or os.environ.get("C_INCLUDE_PATH") or re.search("-(I|isystem)", flags):
        return
    raise SystemExit(
        f"Python's headers: got no Python.h in {' or '.join(directories)}, expected those of Python "
        f"{sysconfig.get_python_version()}. Install python3-dev (Debian, Ubuntu) or python3-devel (Fedora), or name "
        "their directory in $CPATH"
    )


def _find_compiler() -> str | None:
    """Return the command of this machine's C compiler: ``$CC``, the one that built Python, or the first on ``PATH``."""
    if command := os.environ.get("CC"):
        return command
    candidates = (sysconfig.get_config_var("CC") or "cc", "cc", "gcc", "clang")
    return next((command for command in candidates if shutil.which(shlex.split(command)[0])), None)


def _compiler_requires() -> list[str]:
    return [] if _find_compiler() else [FALLBACK]


def _choose_compiler() -> None:
    """Tell setuptools by ``CC``, ``LDSHARED`` and ``AR`` which compiler, linker and archiver to use."""
    if command := _find_compiler():
        os.environ["CC"] = command
        return
    if importlib.util.find_spec(FALLBACK) is None:
        raise SystemExit(
            f"C compiler: got no $CC, none of cc, gcc and clang on PATH, and no {FALLBACK} package; expected one of "
            f"them. Install gcc, or build with isolation, or pip install {FALLBACK} first"
        )
    # Without -mcpu, zig compiles for the processor it runs on, and the wheel dies of SIGILL on an older one. The linker
    # is named apart because Python's own LDSHARED may hold flags that zig refuses (Debian's -Wl,-Bsymbolic-functions).
    zig = f"{shlex.quote(sys.executable)} -m {FALLBACK}"
    os.environ["CC"] = f"{zig} cc -mcpu=baseline"
    os.environ["LDSHARED"] = f"{zig} cc -mcpu=baseline -shared"
    os.environ["AR"] = f"{zig} ar"
