"""The native half of the package. Everything else is in pyproject.toml, which cannot list C sources by pattern."""

from pathlib import Path

from setuptools import Extension, setup

SHM = Path("mpgroupcache/shm")
BINDINGS = sorted(path.stem for path in SHM.glob("*.pyx"))

# The C core is compiled once, and linked into each binding with its symbols hidden. Generated files (_reader.c) may lie
# beside it.
core = sorted(path.as_posix() for path in SHM.glob("*.c") if not path.stem.startswith("_"))
headers = sorted(path.as_posix() for pattern in ("*.h", "*.pxd") for path in SHM.glob(pattern))
flags = ["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden"]

setup(
    libraries=[("mpgroupcache_core", {"sources": core, "obj_deps": {"": headers}, "cflags": flags})],
    ext_modules=[
        Extension(
            f"mpgroupcache.shm.{name}",
            sources=[f"{SHM.as_posix()}/{name}.pyx"],
            depends=[*core, *headers],
            include_dirs=[SHM.as_posix()],
            extra_compile_args=flags,
        )
        for name in BINDINGS
    ],
    options={"build_ext": {"cython_c_in_temp": True}},  # generated C belongs in build/, not among the sources
)
