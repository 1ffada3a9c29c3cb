"""The application's module, as the coordinator and its loader processes import it (``--app``)."""

from __future__ import annotations

import importlib
import os
import sys


def import_app(name: str) -> None:
    """Import the module that declares the groups, from the working directory too. Raises ``ValueError``."""
    if (directory := os.getcwd()) not in sys.path:
        sys.path.insert(0, directory)  # a command that was installed has its own there
    try:
        importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"--app: got {name!r}, which cannot be imported: {type(error).__name__}: {error}") from error
