"""The coordinator's options: flags beat environment beats the TOML file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NoReturn

from msgspec import Struct

from mpgroupcache.limits import APPLICATION_VARIABLE, KEEP_VARIABLE, MAX_REPLICAS, SOCKET_VARIABLE, check_socket_path
from mpgroupcache.net.consistenthash import HASHES
from mpgroupcache.sizes import parse_size

PREFIX = "MPGROUPCACHE_"
LOG_LEVELS = ("debug", "info", "warning", "error")
PRIVATE_LINGER = 30.0  # s that a private one outlives its last client: longer than a deploy that replaces every worker
MAX_LOADERS = 1024
MAX_MISSPELT = 2  # letters in which a variable's name differs from what was meant


class ExitCode(IntEnum):
    """``NOTES`` has them for ``--help``. Never 3 or 4: gunicorn before 26.1 stops its server when any child of its own
    ends with one of these.
    """

    OK = 0
    BAD_OPTION = 2  # argparse's own, too
    ALREADY_RUNNING = 10
    NO_SHARED_MEMORY = 11


class Options(Struct, frozen=True):
    """What a coordinator is told. ``OPTIONS`` has their flags."""

    socket: str  # empty: none, as only --clean may have it
    group: str | None = None  # of this host, whose members may be workers, too
    max_bytes: int | None = None  # of all groups' budgets together; None: no bound but the host's
    reserve: int | None = None  # bytes of shared memory that arenas leave free; None: in proportion to it
    max_value_share: float = 0.25  # of a group's budget that one key and value may take
    checksums: bool = False  # of values, so that the next coordinator drops those that are damaged
    lease_timeout: float = 10.0  # s; longer than a loader's native call that keeps the GIL, short enough to wait out
    linger: float | None = None  # s without clients after which it ends; None: never, but for a private one
    listen: str | None = None  # where peers' requests are served; None: nowhere
    self_url: str | None = None  # as the ring knows this peer
    peers: tuple[str, ...] = ()  # the whole ring, or where it is read from, again and again
    base_path: str | None = None  # of the peers' URLs; None: Go's
    replicas: int = 50  # points of each peer in the ring; Go's default
    hash: str = "crc32"
    peer_timeout: float = 5.0  # s that a peer's answer may take: longer than a load there, short enough to wait out
    secret: str | None = None  # that the ring's peers share
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    app: str | None = None  # module of group declarations
    loaders: int = 1  # processes that load for it
    log_level: str = "info"
    clean: bool = False  # remove what dead ones have left, and no more
    embedded: bool = False  # started by an application for itself: its log and lock lie beside the socket
    detach: bool = False

    @property
    def private(self) -> bool:
        """Whether it is an application's own, or ends by itself for another reason."""
        return self.linger is not None

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for options that cannot be together."""
        if self.peers and self.self_url is None:
            raise ValueError("--self: got nothing, expected this peer's URL as the ring has it; --peer was given")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key: got one of them, expected both, or neither")


def _path(value: Any, option: str) -> str:
    return check_socket_path(str(value), option)


def _size(value: Any, option: str) -> int:
    return parse_size(int(value) if isinstance(value, str) and value.isdecimal() else value, option)


def _number(most: float, expected: str) -> Callable[[Any, str], float]:
    def convert(value: Any, option: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 < number <= most:
            raise ValueError(f"{option}: got {value!r}, expected {expected}")
        return number

    return convert


def _integer(most: int) -> Callable[[Any, str], int]:
    def convert(value: Any, option: str) -> int:
        number = int(value) if str(value).isdecimal() else 0
        if not 0 < number <= most:
            raise ValueError(f"{option}: got {value!r}, expected a number from 1 to {most}")
        return number

    return convert


def _choice(*choices: str) -> Callable[[Any, str], str]:
    def convert(value: Any, option: str) -> str:
        if value not in choices:
            raise ValueError(f"{option}: got {value!r}, expected one of {', '.join(choices)}")
        return str(value)

    return convert


def _boolean(value: Any, option: str) -> bool:
    said = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}.get(str(value).lower())
    if said is None:
        raise ValueError(f"{option}: got {value!r}, expected yes or no")
    return said


def _text(value: Any, option: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{option}: got {value!r}, expected text")
    return value


def _name(value: Any, option: str) -> str:
    return _text(str(value) if type(value) is int else value, option)


def _list(value: Any, option: str) -> tuple[str, ...]:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{option}: got {value!r}, expected URLs")
    return tuple(items)


def _base_path(value: Any, option: str) -> str:
    from mpgroupcache.net.peerwire import check_base_path  # what speaks to peers is not for those that have none

    try:
        return check_base_path(str(value))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _secret_of(value: Any, option: str) -> str:
    """The secret in a file: on a command line everybody on the host could read it."""
    from mpgroupcache.net.peerwire import encode_secret  # as for the base path

    try:
        with open(_text(value, option)) as file:
            secret = file.read().strip()
        encode_secret(secret)
    except UnicodeDecodeError:
        raise ValueError(f"{option} {value}: got bytes, expected UTF-8") from None  # and no byte of them in a log
    except OSError as error:
        raise ValueError(f"{option}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{option} {value}: {error}") from None
    return secret


class Option(Struct, frozen=True):
    """One option: its field of `Options`, and how it is said."""

    field: str
    metavar: str
    help: str
    convert: Callable[[Any, str], Any]
    repeatable: bool = False
    switch: bool = False  # its flag alone says yes


_SECONDS = _number(1e6, "seconds above 0")

OPTIONS: Mapping[str, Option] = {
    "socket": Option("socket", "PATH", "Unix socket to serve workers on (required)", _path),
    "group": Option("group", "NAME", "Unix group whose members may use the cache, too (default: none)", _name),
    "max-bytes": Option("max_bytes", "SIZE", 'bound on all budgets together, such as "512MiB"', _size),
    "reserve": Option(
        "reserve", "SIZE", "of /dev/shm that caches leave free when they grow (1/16 of it, at most 64MiB)", _size
    ),
    "max-value-share": Option(
        "max_value_share",
        "SHARE",
        "largest entry, as a share of its budget (0.25)",
        _number(1.0, "a share above 0, at most 1"),
    ),
    "checksums": Option(
        "checksums", "yes|no", "of values, so that damaged ones are not taken over (no)", _boolean, switch=True
    ),
    "lease-timeout": Option("lease_timeout", "SECONDS", "silence after which a loader's lease moves on (10)", _SECONDS),
    "linger": Option("linger", "SECONDS", "end after so long without clients (default: never)", _SECONDS),
    "listen": Option(
        "listen", "HOST:PORT", "serve peers there; without HOST, on loopback alone (default: not at all)", _text
    ),
    "self": Option("self_url", "URL", "this peer's base URL, as the ring has it", _text),
    "peer": Option(
        "peers",
        "URL",
        "a peer of the ring; repeat it for all of them, this one included. Or one of file:PATH (a URL on each line), "
        "dns:URL (each address of its host), srv:URL, looked at again and again, and on SIGHUP",
        _list,
        True,
    ),
    "base-path": Option("base_path", "PATH", "of the peers' URLs (/_groupcache/)", _base_path),
    "replicas": Option("replicas", "N", "points of each peer in the ring (50)", _integer(MAX_REPLICAS)),
    "hash": Option("hash", "NAME", f"the ring's hash, one of {', '.join(HASHES)} (crc32)", _choice(*HASHES)),
    "peer-timeout": Option("peer_timeout", "SECONDS", "that a peer's answer may take (5)", _SECONDS),
    "secret-file": Option("secret", "FILE", "holds the secret that the ring's peers share", _secret_of),
    "tls-cert": Option("tls_cert", "FILE", "this peer's certificate, for https", _text),
    "tls-key": Option("tls_key", "FILE", "its key", _text),
    "tls-ca": Option("tls_ca", "FILE", "certificates that sign the peers'; then each has to show one", _text),
    "app": Option("app", "MODULE", "declares groups, and loads for them in --loaders processes", _text),
    "loaders": Option("loaders", "N", "processes that load for --app (1)", _integer(MAX_LOADERS)),
    "log-level": Option("log_level", "LEVEL", f"one of {', '.join(LOG_LEVELS)} (info)", _choice(*LOG_LEVELS)),
}


NOTES = (
    "signals: SIGTERM and SIGINT drain and end it; SIGUSR2 has the installed program go on with the cache; SIGHUP "
    "looks at the peers now; SIGUSR1 logs its state. "
    f"exit codes: {ExitCode.OK} it was told to end, or lingered; {ExitCode.BAD_OPTION} an option that cannot be; "
    f"{ExitCode.ALREADY_RUNNING} the socket has a coordinator; {ExitCode.NO_SHARED_MEMORY} /dev/shm is of no use"
)


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Options:
    """Read the command line. Ends the process with ``BAD_OPTION`` and a line that says why for what cannot be."""
    parser = _parser()
    namespace = vars(parser.parse_args(arguments))
    try:
        return _merge(namespace, environment)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))


class _Parser(argparse.ArgumentParser):
    """``argparse`` puts the whole usage in front of each error."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.BAD_OPTION, f"{self.prog}: {message}; see --help\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # no start waits for that

        print(parser.prog, version("mpgroupcache"))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mpgroupcache-coordinator",
        epilog=NOTES,
        description="Own one host's shared cache: arenas in shared memory, singleflight, leases, its place among peers."
        f" Every option can be given as {PREFIX}<OPTION> in the environment or by its name in the --config file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, option in OPTIONS.items():
        how: dict[str, Any] = {"action": "append" if option.repeatable else "store"}
        if option.switch:
            how |= {"nargs": "?", "const": "yes"}
        parser.add_argument(f"--{name}", metavar=option.metavar, help=option.help, dest=name, **how)
    parser.add_argument("--config", metavar="FILE", help="TOML file with options")
    parser.add_argument("--version", action=_Version, nargs=0, help="say its version")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="remove what is left in shared memory of coordinators that are dead with all their workers, and end: of "
        "the one on --socket; without, of all of this user",
    )
    for name in ("--embedded", "--detach"):  # what an application says that starts one for itself
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    return parser


def _merge(flags: dict[str, Any], environment: Mapping[str, str]) -> Options:
    switches = {name: flags.pop(name, False) for name in ("clean", "embedded", "detach")}
    config = flags.pop("config", None) or environment.get(_variable("config"))
    said: dict[str, tuple[Any, str]] = {}
    if config is not None:
        import tomllib  # few have a file

        try:
            with open(config, "rb") as file:
                table = tomllib.load(file)
        except OSError as error:
            raise ValueError(f"--config: {error}") from None
        except ValueError as error:
            raise ValueError(f"--config {config}: {error}; expected TOML") from None
        for key, value in table.items():
            name = key.replace("_", "-")
            if name not in OPTIONS:
                raise ValueError(f"{config}: got the key {key!r}, expected some of {', '.join(OPTIONS)}")
            said[name] = value, f"{config}: {key}"
    for name in OPTIONS:
        if (variable := _variable(name)) in environment:
            said[name] = environment[variable], variable
    for name, value in flags.items():
        said[name] = value, f"--{name}"
    if switches["embedded"]:
        said.setdefault("linger", (PRIVATE_LINGER, "--linger"))
    if switches["clean"]:
        said.setdefault("socket", ("", ""))
    if "socket" not in said:
        raise ValueError(
            f"--socket: got nothing, expected a path; give the flag, {PREFIX}SOCKET, or socket in --config"
        )
    values = {
        OPTIONS[name].field: OPTIONS[name].convert(value, source) if source else value
        for name, (value, source) in said.items()
    }
    return Options(**switches, **values)


def _variable(option: str) -> str:
    return PREFIX + option.replace("-", "_").upper()


def misspelt(environment: Mapping[str, str] = os.environ) -> list[tuple[str, str]]:
    """The environment's variables that are nobody's, but within two letters of one that is known: both names.

    What is further away may be anybody's: Kubernetes sets such as ``MPGROUPCACHE_PORT`` for a service of our name.
    """
    known = {*map(_variable, (*OPTIONS, "config")), APPLICATION_VARIABLE, KEEP_VARIABLE, SOCKET_VARIABLE}
    names = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    nearest = ((name, *min((_distance(name, other), other) for other in known)) for name in names)
    return [(name, other) for name, distance, other in nearest if distance <= MAX_MISSPELT]


def _distance(one: str, other: str) -> int:
    """How many letters have to be put in, left out or exchanged to make one of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row = row, [number]
        for at, theirs in enumerate(other):
            row.append(min(before[at + 1] + 1, row[at] + 1, before[at] + (letter != theirs)))
    return row[-1]
