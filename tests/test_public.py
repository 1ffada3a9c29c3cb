"""The package's names: which there are, where each is at home, and that asking for one is what imports it."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mpgroupcache

# Applications rely on them: a name may be added, and none goes or moves.
NAMES = {
    "mpgroupcache.errors": {
        "AlreadyRunning",
        "ArenaError",
        "CacheError",
        "ChangeError",
        "CoordinatorError",
        "CoordinatorUnavailable",
        "DeadlineExceeded",
        "LoadCycleError",
        "LoadError",
        "LoadErrors",
        "NotFound",
        "ProtocolError",
    },
    "mpgroupcache.functions.decorator": {"cached"},
    "mpgroupcache.getters": {"Getter"},
    "mpgroupcache.group": {"Group"},
    "mpgroupcache.lru": {"lru"},
    "mpgroupcache.pickers": {
        "NoPeers",
        "PeerPicker",
        "ProtoGetter",
        "register_peer_picker",
        "register_per_group_peer_picker",
    },
    "mpgroupcache.pool": {"HTTPPool"},
    "mpgroupcache.registry": {
        "aconnect",
        "connect",
        "get_group",
        "new_group",
        "register_new_group_hook",
        "register_server_start",
    },
    "mpgroupcache.shm._view": {"ByteView"},
    "mpgroupcache.singleflight": {"singleflight"},
    "mpgroupcache.sinks": {"ByteViewSink", "BytesSink", "ProtoSink", "Sink", "StringSink", "TruncatingSink"},
    "mpgroupcache.stats": {"AtomicInt", "CacheStats", "CacheType", "Stats"},
    "mpgroupcache.worker.config": {"configure"},
}
HOMES = {name: home for home, names in NAMES.items() for name in names}

NEW_GROUP = "mpgroupcache.new_group('g', '1MiB', lambda ctx, key, dest: None)"


def imported_by(code: str) -> set[str]:
    """The modules that a statement imports, in an interpreter of its own."""
    script = f"import sys, json; before = set(sys.modules)\n{code}\nprint(json.dumps(list(set(sys.modules) - before)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_the_public_names() -> None:
    assert sorted(mpgroupcache.__all__) == mpgroupcache.__all__ == sorted(HOMES)
    assert set(dir(mpgroupcache)) > {*HOMES, "__version__", "__doc__"}
    namespace: dict[str, object] = {}
    exec("from mpgroupcache import *", namespace)
    assert set(HOMES) <= set(namespace)


@pytest.mark.parametrize("name", sorted(HOMES))
def test_each_is_at_home_where_it_was(name: str) -> None:
    value = getattr(mpgroupcache, name)
    home = importlib.import_module(HOMES[name])
    if isinstance(value, ModuleType):
        assert value is home
    else:
        assert value is getattr(home, name)
        assert value.__module__ == HOMES[name]


def test_type_checkers_are_told_the_same() -> None:
    tree = ast.parse(Path(mpgroupcache.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            told[alias.name] = f"mpgroupcache.{alias.name}" if node.module == "mpgroupcache" else node.module
    assert told == HOMES


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mpgroupcache' has no attribute 'new_grup'"):
        mpgroupcache.new_grup  # noqa: B018
    with pytest.raises(ImportError):
        exec("from mpgroupcache import new_grup")


def test_the_package_alone_imports_next_to_nothing() -> None:
    assert imported_by("import mpgroupcache") == {"mpgroupcache", "mpgroupcache.late"}


@pytest.mark.parametrize("imported", ["mpgroupcache", "mpgroupcache.shm._writer", "mpgroupcache.coordinator.main"])
def test_without_the_gil_the_package_is_refused(imported: str) -> None:
    """By what the interpreter says, for which there is a stand-in here."""
    script = f"import sys; sys._is_gil_enabled = lambda: False\nimport {imported}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: mpgroupcache: got a Python that runs without the GIL, expected one with it; say -X gil=1"
    )


def test_where_native_code_brings_the_gil_back_nothing_is_refused() -> None:
    """As an interpreter does that was not told to stay without."""
    script = "import sys; sys._is_gil_enabled = lambda: 'mpgroupcache.shm._reader' in sys.modules\n"
    subprocess.run([sys.executable, "-c", f"{script}import mpgroupcache; {NEW_GROUP}"], check=True)


@pytest.mark.parametrize("name", ["lru", "singleflight"])
def test_a_module_is_there_without_an_import_of_its_own(name: str) -> None:
    assert f"mpgroupcache.{name}" in imported_by(f"import mpgroupcache; mpgroupcache.{name}")


def test_declaring_a_group_does_without_what_only_some_processes_need() -> None:
    imported = imported_by(f"import mpgroupcache; {NEW_GROUP}")
    assert "mpgroupcache.registry" in imported
    others = {"google.protobuf", "httptools", "multiprocessing", "tempfile", "tomllib", "urllib.request"}
    assert imported & others == set()
    ours = {"coordinator", "net", "pool", "serving", "shm._writer", "shm.ownership", "singleflight"}
    assert imported & {f"mpgroupcache.{module}" for module in ours} == set()
