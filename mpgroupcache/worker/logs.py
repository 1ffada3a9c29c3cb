"""What an application sees of our warnings that has configured no logging: with the time, and whose they are."""

from __future__ import annotations

import contextlib
import logging
import sys

FORMAT = "%(asctime)s mpgroupcache[%(process)d] %(levelname)s: %(message)s"  # as the coordinator's


class LastResort(logging.Handler):
    """In the place of Python's own, which says the message alone. It is silent where anybody else hears the message."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        if sys.stderr is not None:  # print() would take stdout
            with contextlib.suppress(Exception):  # it is closed, or what is behind it is full: no get fails of that
                print(self.format(record), file=sys.stderr, flush=True)


def date_warnings() -> None:
    """Have warnings dated where nobody has configured logging."""
    logger = logging.getLogger("mpgroupcache")
    if not any(isinstance(handler, LastResort) for handler in logger.handlers):
        logger.addHandler(LastResort())
