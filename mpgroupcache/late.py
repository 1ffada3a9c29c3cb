"""Imports that come late: of what most processes do without, or need only after a group is declared.

A child that is forked while another thread imports a module would wait for that thread at its own import of it, and for
ever, since the thread is not in the child. So what may be imported late in an application's process is imported under a
lock, for which forks wait::

    with importing:
        import subprocess
"""

from __future__ import annotations

import os
from _thread import RLock  # of Python itself: this module is imported by all who import the package

importing = RLock()

os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=importing.release)
