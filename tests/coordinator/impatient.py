"""Coordinators for which moments are what minutes are to the real ones."""

from __future__ import annotations

from pathlib import Path

from workers import Daemon


class Impatient(Daemon):
    """Such a coordinator, with all options and signals of the real one."""

    program = (str(Path(__file__).with_name("impatient_coordinator.py")),)
