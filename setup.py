"""Bridges setuptools to CMake: `pip install .` configures and builds CMakeLists.txt with Ninja.

Environment: TORCH_CUDA_ARCH_LIST (GPU architectures), PRUNEFUSE_CUDA=0 (skip the CUDA library), PRUNEFUSE_WERROR=1
(warnings are errors), MAX_JOBS (parallel compile jobs).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH = "torch>=2.11"


def torch_folder() -> Path | None:
    """Where torch's headers are: the importable torch, else the one in the environment being installed into.

    Under build isolation torch is not importable, yet `sysconfig` still names the target environment, so an environment
    that has torch downloads no second one just to compile.
    """
    spec = importlib.util.find_spec("torch")
    candidates = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    candidates.append(Path(sysconfig.get_path("purelib")) / "torch")
    for folder in candidates:
        if (folder / "include/torch/csrc/stable/library.h").is_file() and torch_version(folder) >= (2, 11):
            return folder
    return None


def torch_version_text(folder: Path) -> str:
    match = re.search(r"__version__ = '([^']+)'", (folder / "version.py").read_text())
    return match.group(1) if match else "0"


def torch_version(folder: Path) -> tuple[int, int]:
    major, minor = torch_version_text(folder).split(".")[:2]
    return int(major), int(minor)


def switch(name: str, default: str) -> str:
    return "OFF" if os.environ.get(name, default).lower() in ("0", "off", "no", "false", "") else "ON"


class CMakeBuild(build_ext):
    """Builds every native library of the package in one CMake run."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        folder = torch_folder()
        if folder is None:
            raise SystemExit(f"prunefuse: {TORCH} is needed to compile: install it, or allow build isolation")
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if cmake is None or ninja is None:
            raise SystemExit("prunefuse: cmake and ninja are needed to compile: pip install cmake ninja")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPRUNEFUSE_TORCH_DIR={folder}",
            f"-DPRUNEFUSE_TORCH_VERSION={torch_version_text(folder)}",
            f"-DPRUNEFUSE_OUTPUT={output}",
            f"-DPRUNEFUSE_MODULE_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DPRUNEFUSE_PYBIND11_INCLUDE={pybind11.get_include()}",
            f"-DPRUNEFUSE_PYTHON_INCLUDE={sysconfig.get_path('include')}",
            f"-DPRUNEFUSE_WERROR={switch('PRUNEFUSE_WERROR', '0')}",
            f"-DPRUNEFUSE_CUDA={switch('PRUNEFUSE_CUDA', '1')}",
        ]  # fmt: skip
        # A cache from another environment names a cmake, a ninja and headers that are gone.
        cache = build / "CMakeCache.txt"
        if cache.is_file() and ninja not in cache.read_text():
            shutil.rmtree(build)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        for command in (configure, [cmake, "--build", str(build), "--parallel", jobs]):
            if subprocess.run(command).returncode != 0:
                raise SystemExit(
                    "prunefuse: the native build failed; the compiler's first error stands above"
                )

    def copy_extensions_to_source(self) -> None:
        # An editable install: setuptools copies the module it knows of; the libraries beside it must come too.
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "prunefuse" / "lib"
        target = ROOT / "prunefuse" / "lib"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(built, target)

    def get_source_files(self) -> list[str]:
        return []


setup(
    ext_modules=[Extension("prunefuse._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    # Asked for by pip before it builds in isolation: only an environment without torch gets one for the build.
    setup_requires=[] if torch_folder() is not None else [TORCH],
)
