"""The native half of the package. Everything else is in pyproject.toml, which cannot list C sources by pattern."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SHM = Path("mpgroupcache/shm")
BINDINGS = sorted(path.stem for path in SHM.glob("*.pyx"))

# The C core is compiled once, and linked into each binding with its symbols hidden. Generated files (_reader.c) may lie
# beside it.
core = sorted(path.as_posix() for path in SHM.glob("*.c") if not path.stem.startswith("_"))
headers = sorted(path.as_posix() for pattern in ("*.h", "*.pxd") for path in SHM.glob(pattern))
flags = ["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden"]


class Build(build_ext):
    """One C compiler for each processor. Cython, which is no program for threads, comes first, and alone."""

    def build_extensions(self) -> None:
        # Generated C belongs among what is built, not among the sources.
        for extension, made in zip(self.extensions, cythonize(self.extensions, build_dir=self.build_temp), strict=True):
            extension.sources = made.sources
        self.parallel = self.parallel or True
        super().build_extensions()


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
    cmdclass={"build_ext": Build},
)
