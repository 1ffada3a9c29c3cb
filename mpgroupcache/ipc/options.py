"""The coordinator's options: flags beat environment beats the TOML file."""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mpgroupcache.config import check_socket_path
from mpgroupcache.sizes import parse_size

PREFIX = "MPGROUPCACHE_"
LOG_LEVELS = ("debug", "info", "warning", "error")
PRIVATE_LINGER = 30.0  # s that a private one outlives its last client: longer than a deploy that replaces every worker


@dataclass(frozen=True, slots=True)
class Options:
    """What a coordinator is told. Each field has a flag, an environment name and a TOML key, all of its name."""

    socket: str
    max_bytes: int | None = None  # of all groups' budgets together; None: no bound but the host's
    max_value_share: float = 0.25  # of a group's budget that one key and value may take
    lease_timeout: float = 10.0  # s; longer than a loader's native call that keeps the GIL, short enough to wait out
    linger: float | None = None  # s without clients after which it ends; None: never, but for a private one
    log_level: str = "info"
    detach: bool = False


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Options:
    """Read the command line. Ends the process with exit code 2 and a message for what cannot be."""
    parser = _parser()
    namespace = vars(parser.parse_args(arguments))
    try:
        return _merge(namespace, environment)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpgroupcache-coordinator",
        description="Own one host's shared cache: arenas in shared memory, singleflight, leases. "
        f"Every option can be given as {PREFIX}<OPTION> in the environment or by its name in the --config file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--socket", metavar="PATH", help="Unix socket to serve workers on (required)")
    parser.add_argument("--max-bytes", metavar="SIZE", help='bound on all budgets together, such as "512MiB"')
    parser.add_argument("--max-value-share", metavar="SHARE", help="largest entry, as a share of its budget (0.25)")
    parser.add_argument("--lease-timeout", metavar="SECONDS", help="silence after which a loader's lease moves on (10)")
    parser.add_argument("--linger", metavar="SECONDS", help="end after so long without clients (default: never)")
    parser.add_argument("--log-level", metavar="LEVEL", help=f"one of {', '.join(LOG_LEVELS)} (info)")
    parser.add_argument("--config", metavar="FILE", help="TOML file with options")
    parser.add_argument("--detach", action="store_true", help=argparse.SUPPRESS)  # of the embedded default
    return parser


def _merge(flags: dict[str, Any], environment: Mapping[str, str]) -> Options:
    names = [field.name for field in fields(Options) if field.name != "detach"]
    config = flags.pop("config", None) or environment.get(f"{PREFIX}CONFIG")
    values: dict[str, tuple[Any, str]] = {}
    if config is not None:
        with Path(config).open("rb") as file:
            table = tomllib.load(file)
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in names:
                raise ValueError(f"{config}: got the key {key!r}, expected some of {', '.join(names)}")
            values[name] = value, f"{config}: {key}"
    for name in names:
        variable = PREFIX + name.upper()
        if variable in environment:
            values[name] = environment[variable], variable
    for name, value in flags.items():
        values[name] = value, "--" + name.replace("_", "-")
    if "detach" in values:
        values.setdefault("linger", (PRIVATE_LINGER, "--linger"))
    if "socket" not in values:
        raise ValueError(
            f"--socket: got nothing, expected a path; give the flag, {PREFIX}SOCKET, or socket in --config"
        )
    return Options(**{name: _convert(name, value, option) for name, (value, option) in values.items()})


def _convert(name: str, value: Any, option: str) -> Any:
    match name:
        case "socket":
            return check_socket_path(str(value), option)
        case "max_bytes":
            return parse_size(int(value) if isinstance(value, str) and value.isdecimal() else value, option)
        case "max_value_share":
            return _number(value, option, 1.0, "a share above 0, at most 1")
        case "lease_timeout" | "linger":
            return _number(value, option, 1e6, "seconds above 0")
        case "log_level":
            if value not in LOG_LEVELS:
                raise ValueError(f"{option}: got {value!r}, expected one of {', '.join(LOG_LEVELS)}")
    return value


def _number(value: Any, option: str, most: float, expected: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number <= most:
        raise ValueError(f"{option}: got {value!r}, expected {expected}")
    return number
