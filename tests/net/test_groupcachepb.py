"""The messages of peers: their bytes, and that the generated code is what the ``.proto`` says."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from tools import missing

from mpgroupcache.net import groupcachepb_pb2
from mpgroupcache.net.groupcachepb_pb2 import GetRequest, GetResponse

ROOT = Path(__file__).parent.parent.parent
SOURCES = [  # and the directories that they are read from
    (Path("mpgroupcache/net/groupcachepb.proto"), Path()),
    (Path("tests/go/testpb.proto"), Path("tests/go")),
]
PATIENCE = 60.0  # s


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (GetRequest(group=b"g", key=b"k"), "0a01671201" + "6b"),
        (GetRequest(group=b"", key=b"\xff\x00"), "0a00" + "1202ff00"),  # Go: not actually guaranteed to be UTF-8
        (GetResponse(value=b"V:hello"), "0a07563a68656c6c6f"),
        (GetResponse(value=b""), "0a00"),
        (GetResponse(), ""),
        (GetResponse(value=b"v", minute_qps=1.5), "0a0176" + "11000000000000f83f"),
    ],
    ids=repr,
)
def test_wire(message: GetRequest | GetResponse, wire: str) -> None:
    assert message.SerializeToString().hex() == wire
    assert type(message).FromString(bytes.fromhex(wire)) == message


def test_names_are_those_of_go() -> None:
    assert GetRequest.DESCRIPTOR.full_name == "groupcachepb.GetRequest"
    assert GetResponse.DESCRIPTOR.full_name == "groupcachepb.GetResponse"


@pytest.mark.parametrize(("source", "base"), SOURCES, ids=["groupcachepb", "testpb"])
def test_the_generated_code_is_that_of_the_proto(source: Path, base: Path, tmp_path: Path) -> None:
    protoc = Path(sysconfig.get_path("scripts")) / "protoc"
    if not protoc.exists():
        missing("no protoc in this environment; pip install 'mpgroupcache[proto]'")
    command = [protoc, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", source.relative_to(base)]
    subprocess.run(command, cwd=ROOT / base, check=True, timeout=PATIENCE)
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert [path.name for path in generated] == [f"{source.stem}_pb2.py", f"{source.stem}_pb2.pyi"]
    for path in generated:
        assert (ROOT / base / path).read_text() == (tmp_path / path).read_text(), (
            f"{path} is out of date: run make proto"
        )


def test_the_oldest_runtime_allowed_is_that_of_the_generated_code() -> None:
    code = Path(groupcachepb_pb2.__file__).read_text()
    version = re.search(r"Protobuf Python Version: (\d+\.\d+)\.0\n", code)
    assert version is not None
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [name for name in dependencies if re.match(r"protobuf\W", name)] == [f"protobuf>={version[1]}"]
