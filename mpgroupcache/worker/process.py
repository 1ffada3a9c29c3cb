"""What a process keeps for all its groups: its link to the coordinator, its own flights, and what a fork does to both.

Everything here is made at first use, in the process that uses it: nothing connects, locks or starts a thread at import,
so declarations work under ``gunicorn --preload`` and before gevent's patching.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable

from mpgroupcache.errors import CacheError, CoordinatorUnavailable, describe_error
from mpgroupcache.ipc.fields import MAX_HELD, Loads
from mpgroupcache.late import importing
from mpgroupcache.shm._hold import Flights
from mpgroupcache.shm._reader import Reader, forked, renew_epoch
from mpgroupcache.shm.segment import control_name, instance_name, private_files, segment_path
from mpgroupcache.threads import Threads
from mpgroupcache.worker import config, embedded
from mpgroupcache.worker.channel import CoordinatorSilent
from mpgroupcache.worker.declared import DeclaredGroup
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.logs import date_warnings
from mpgroupcache.worker.peerloads import PeerLoads
from mpgroupcache.worker.port import Alone
from mpgroupcache.worker.waits import Attempt, Until

logger = logging.getLogger(__name__)

ATTACHING = "mpgroupcache-attach"  # the name of threads that connect, and attach
RETRY_FIRST = 0.05  # s; a coordinator that restarts is back in about this
RETRY_MOST = 5.0  # s; between two tries to reach one that stays away ...
RETRY_START = 60.0  # s; ... and to start one that does not start: each is the start of an interpreter
LIVED = 1.0  # s; a link that breaks before that was none
LOADS = min(32, (os.cpu_count() or 1) + 4)  # of aget, side by side: as many as an event loop's executor runs
# s of a private coordinator's start that its caller's company waits, too: longer than it takes on a machine that is not
# busy elsewhere, or the first gets of an application's threads would each load for themselves.
COMPANY = 0.4
SLOW = 0.02  # s; an attempt that fails later than this is not waited for the next time: it was no refusal

# What connecting and attaching are known to raise: a RuntimeError where no thread can be started. No get fails because
# of that, nor because of anything else that they raise; but that is a defect, and the log has its type and traceback.
_FORESEEN = (CacheError, OSError, ValueError, RuntimeError)


class Process:
    """This process's state. ``current()`` has it."""

    def __init__(self) -> None:
        date_warnings()
        self.flights = Flights()
        """Loads under way here: whoever misses the same key meanwhile shares one."""
        self.threads = Threads(LOADS, "mpgroupcache-aget")
        """Where ``aget`` runs what is not async."""
        self._groups: dict[str, DeclaredGroup] = {}  # that were attached, or are to be
        self.alone = Alone(self._groups)
        """The port where there is no coordinator."""
        self._loads = PeerLoads(self._groups, self.flights)
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of whoever connects and attaches
        self._link: Link | None = None
        self._linked_at: float | None = None  # until it is seen how long the link lasted
        self._broke_soon = 0  # links in a row
        self._retry_at = 0.0
        self._failures = 0
        self._missed_since: float | None = None  # there has been no coordinator; None: there is one, or nobody looked
        self._reported: set[type[Exception] | None] = set()  # since there was a link; None: of those that are foreseen
        self._refused: dict[str, float] = {}  # until when to be content without what a group was refused
        self._slow = False  # the last attempt was
        self._control: tuple[str, str] | None = None  # a socket, and the control segment of the instance there
        self._private: str | None = None  # the private coordinator's socket, where the last try was for one
        self._attempt: Attempt | None = None
        self._reattacher: threading.Thread | None = None  # at work while it lives
        self._reattach_lock = threading.Lock()
        if (util := sys.modules.get("multiprocessing.util")) is not None:  # whose children do not run what atexit knows
            util.Finalize(None, _at_exit, exitpriority=-1)

    def attach(self, *groups: DeclaredGroup, starts: bool = True) -> Until | None:
        """Begin to connect, and to attach these groups and all others, unless somebody is at it; what to wait for.

        None: there is nothing to wait for: it was tried lately, or is known to take long. A thread of its own is at it,
        so that nobody waits for longer than he will: to its end; but of those who come while a private coordinator is
        started, who began that alone, and his company for ``COMPANY``.
        ``starts``: whether a private coordinator is started where there is none.
        """
        self._groups.update({group.name: group for group in groups})
        if self._closed.is_set() or time.monotonic() < self._retry_of(groups):
            return None
        if self._is_slow() and self._is_reattaching():
            return None
        now = time.monotonic()
        attempt, moment = self._attempt, None
        if attempt is not None and not attempt.over:
            moment = attempt.began + COMPANY if config.is_private() else None
        elif (attempt := self._begin(now, starts)) is None:
            return None
        return None if self._is_slow() or (moment is not None and moment <= now) else Until(attempt, moment)

    def _begin(self, now: float, starts: bool) -> Attempt | None:
        """A new attempt; None where no thread can be started for it.

        Without a lock, for which a signal's handler that gets would wait if it interrupted the one who has it: of two
        attempts that begin at once, the second finds all done.
        """
        attempt = Attempt(now)
        thread = threading.Thread(target=self._try, args=(attempt, starts), name=ATTACHING, daemon=True)
        self._attempt = attempt
        try:
            thread.start()
        except RuntimeError as error:
            attempt.end()
            self._report(error)
            return None
        except BaseException:  # of a signal's handler: maybe nobody is at it
            attempt.end()
            raise
        return attempt

    def _retry_of(self, groups: Iterable[DeclaredGroup]) -> float:
        """When to try again."""
        if self.working_link is None:
            return self._retry_at
        return min((self._refused.get(group.name, 0.0) for group in groups), default=0.0)

    def _try(self, attempt: Attempt, starts: bool) -> None:
        try:
            self._attach_all(starts)
        finally:
            attempt.end()
        if self._slow and self._private is None:
            self._begin_reattaching()  # here, since no get is to wait for its lock

    def _attach_all(self, starts: bool = True) -> bool:
        """Connect, and attach all groups; whether all that was had. No get fails because of what this meets."""
        with self._lock:
            link = self.working_link
            if link is None and not self._closed.is_set() and time.monotonic() >= self._retry_at:
                began = time.monotonic()
                try:
                    link = self._connect(starts)
                except Exception as error:
                    self._report(error)
                if starts:  # else a get may have more to try
                    self._slow = link is None and time.monotonic() - began > SLOW
            attached = [link is not None and self._attach(link, group) for group in list(self._groups.values())]
            return link is not None and all(attached)

    def _attach(self, link: Link, group: DeclaredGroup) -> bool:
        try:
            if not group.is_attached_to(link):
                group.attach_to(link)
        except Exception as error:
            self._report(error, f"group {group.name!r} is not attached: ")
            self._refused[group.name] = self._retry_at
            return False
        self._refused.pop(group.name, None)
        return True

    def is_attached(self, *groups: DeclaredGroup) -> bool:
        """Whether there is a link, on which these groups are attached."""
        return self.working_link is not None and all(group.ready_link() is not None for group in groups)

    @property
    def alone_for(self) -> float:
        """For how many seconds no coordinator has answered."""
        if self._closed.is_set():  # there will be none any more
            return float("inf")
        since = self._missed_since
        return 0.0 if since is None or self.working_link is not None else time.monotonic() - since

    def is_served(self) -> bool:
        """Whether a coordinator serves here, or has left its memory.

        Others may change values then, and for as long as this process has not met it, it does not see that.
        """
        try:
            path = config.location().path
        except Exception:  # whoever connects has it reported
            return False
        if self._control is None or self._control[0] != path:
            with importing:
                self._control = path, segment_path(control_name(instance_name(path)))
        return os.path.exists(self._control[1])

    def retry_at(self, group: DeclaredGroup) -> float:
        """When an attempt to attach a group is of use again, of ``time.monotonic()``."""
        return self._retry_of((group,))

    @property
    def working_link(self) -> Link | None:
        """The link, where there is one now."""
        link = self._link
        return None if link is None or link.broken else link

    def _connect(self, starts: bool) -> Link | None:
        """A new link. Raises what the ways to it raise; None where nobody is to start one, or this process has left."""
        previous = None
        if (last := self._link) is not None:
            previous = last.reader
            if self._linked_at is not None:
                self._slow = self._is_slow()  # before the next lines make it the only one to say so
                broke_soon = time.monotonic() - self._linked_at < LIVED
                self._broke_soon = self._broke_soon + 1 if broke_soon else 0
                self._linked_at = None
            last.close()  # of a link that broke, one connection may live on, and its service thread with it
        location = config.location()
        self._private = location.path if location.private else None
        if location.private:
            if starts:
                embedded.ensure_running(location.path)
            elif not embedded.answers(location.path):
                return None
        on_broken = None if location.private else self._begin_reattaching
        # Closed in any case, later.
        link = self._link = Link(location.path, self._loads.submit, on_broken, self._deliver, self._waiting_here)
        link.open(previous, _readers.add)
        if self._closed.is_set():  # this process left meanwhile, and its close() may have been too early to see it
            link.close()
            return None
        if self._reported:
            logger.warning("the coordinator is back: instance %s", link.instance)
            self._reported.clear()
        self._linked_at = time.monotonic()
        self._failures = 0
        self._missed_since = None
        self.alone.clear()
        # As where the coordinator has a descriptor for one connection, and not for two.
        if self._broke_soon > 2:
            self._wait(self._broke_soon)
        for tell in _on_link:
            tell(link)
        return link

    def _waiting_here(self) -> Loads:
        """Of each lease of this process, how many of its callers wait beside the one who loads."""
        led = [(flight.leader, len(flight.waiting)) for flight in self.flights]
        return tuple([(seat.lease, waiting) for seat, waiting in led if seat is not None and seat.lease][:MAX_HELD])

    def _is_slow(self) -> bool:
        """Whether to connect is known to take long: nobody waits for that again."""
        if (link := self._link) is not None and self._linked_at is not None:  # nobody has tried since it broke
            return isinstance(link.channel.broken, CoordinatorSilent)
        return self._slow

    def _begin_reattaching(self) -> bool:
        """Come back without a get: peers' requests are loaded by idle workers too. Returns whether somebody is at it.

        In a thread of its own, one at a time: the link's waits for nothing while somebody joins it.
        """
        with self._reattach_lock:
            if self._is_reattaching():
                return True
            thread = threading.Thread(target=self._reattach, name=ATTACHING, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be started: the next get attaches
                return False
            self._reattacher = thread
        return True

    def _is_reattaching(self) -> bool:
        return self._reattacher is not None and self._reattacher.is_alive()

    def _reattach(self) -> None:
        while not self._closed.wait(max(self._retry_at - time.monotonic(), RETRY_FIRST * random.random())):
            attached = self._attach_all()
            with self._reattach_lock:  # a link that breaks from here on begins another
                if attached and self.working_link is not None:
                    self._reattacher = None
                    return

    def _report(self, error: Exception, what: str = "") -> None:
        """Try again later, each time after twice as long, and not in step with the other workers."""
        kind = None if isinstance(error, _FORESEEN) else type(error)
        if kind not in self._reported:
            self._reported.add(kind)
            reason = str(error) if kind is None else ": ".join(describe_error(error))
            if not isinstance(error, CoordinatorUnavailable):  # whose text says so
                reason = f"no coordinator: {what}{reason}"
            until = "hits go on; until it is back, what is not cached is loaded in this process, which keeps it for"
            log = "" if self._private is None else private_files(self._private)[1]
            log = f"; its log is {log}" if os.path.exists(log) else ""
            logger.warning("%s; %s %g s%s", reason, until, config.keep_alone(), log)
        if kind is not None:
            logger.debug("no coordinator: %s", what, exc_info=error)
        if self._missed_since is None:
            self._missed_since = time.monotonic()
        self._wait(self._failures)
        self._failures += 1

    def _wait(self, times: int) -> None:
        delay = min(RETRY_MOST if self._private is None else RETRY_START, RETRY_FIRST * 2.0 ** min(times, 16))
        self._retry_at = max(self._retry_at, time.monotonic() + delay * random.uniform(0.5, 1.5))

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connections without a word on them."""
        if self._link is not None:
            self._link.abandon()

    def close(self) -> None:
        """Leave the instance for good; views stay good, and what is not cached is loaded in this process."""
        self._closed.set()
        self.threads.close()
        self._loads.close()
        link, self._link = self._link, None
        if link is not None:
            if link.reader is not None:
                link.reader.claim()  # or what was counted without a region would be lost
            self._deliver()  # also where the service thread has claimed one, and was not to come to this any more
            link.close()
        _leave_instances(self._private)

    def _deliver(self) -> None:
        """There is a region for what was counted without one."""
        for group in list(self._groups.values()):
            group.deliver()


_on_link: list[Callable[[Link], None]] = []


def on_link(tell: Callable[[Link], None]) -> None:
    """Have ``tell`` called with each new link of this process, and of its children. It raises nothing."""
    _on_link.append(tell)


# The process's one, by no name but this: of threads that come first at once, ``setdefault`` gives all the same.
_process: dict[None, Process] = {}
_readers: weakref.WeakSet[Reader] = weakref.WeakSet()  # all that may hold pins, those of earlier links too


def current() -> Process:
    """The state of this process, made anew in a forked child."""
    if forked():
        _after_fork_in_child()  # a fork that ran no hooks: of a C library
    return _process.get(None) or _process.setdefault(None, Process())


def _all_readers() -> list[Reader]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread has just added one
            return list(_readers)


def _leave_instances(private_socket: str | None) -> None:
    """Remove what dead coordinators have left, if this process was the last that had to do with it."""
    with importing:
        from mpgroupcache.shm import remains  # which nobody else here asks for

    readers = _all_readers()
    for reader in readers:
        reader.leave()
    for path in {reader.path for reader in readers}:
        remains.leave(os.path.basename(path), private_socket)


def _before_fork() -> None:
    who = threading.get_ident()  # under gevent's patching, the greenlet: what other hooks wait for may switch
    for reader in _all_readers():
        reader.before_fork(who)


def _after_fork_in_parent() -> None:
    who = threading.get_ident()
    for reader in _all_readers():
        reader.after_fork_in_parent(who)


def _after_fork_in_child() -> None:
    """Let go of the parent's connections, without a word on them, and of its regions."""
    process = _process.pop(None, None)
    renew_epoch()
    who = threading.get_ident()
    for reader in _all_readers():
        reader.after_fork_in_child(who)
    if process is not None:
        process.abandon()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@atexit.register
def _at_exit() -> None:
    """End the service thread while there is an interpreter for it to end in."""
    if (process := _process.get(None)) is not None:
        process.close()
    else:
        _leave_instances(None)  # a child that has nothing but its parent's views
