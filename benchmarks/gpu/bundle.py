"""Carries the package to a machine with a GPU and no network: `make` it here, `unpack` it there, `build` the sources there.

`make` compiles the three libraries for a Python, a torch and an architecture that need not be this machine's, and adds
wheels. It and `build` call CMake themselves: setup.py wants a newer setuptools than such a machine may have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 60_000_000  # bytes of a bundle
# What the package needs and an environment made for PyTorch may lack; fvcore and iopath are published as sources alone.
PACKAGES = ("fvcore", "iopath", "yacs", "termcolor")
TREE = (
    ("prunefuse", "tests", "benchmarks", "csrc", "cmake", "examples", "docs")
    + ("CMakeLists.txt", "pyproject.toml", "setup.py", "README.md", "CHANGELOG.md", "Makefile")
)  # fmt: skip


def compile_into(
    package: Path, build: Path, torch: Path, architectures: str, *, rehearse: bool = False
) -> None:
    """Compiles the sources into a package's folder, for the Python at hand or the one in PRUNEFUSE_TARGET_PYTHON.

    A rehearsal only configures, without CUDA.
    """
    if rehearse and not (shutil.which("cmake") and shutil.which("ninja")):
        print("not rehearsed: no cmake, ninja")
        return
    include, suffix = python_of(os.environ.get("PRUNEFUSE_TARGET_PYTHON", sys.executable))
    torch_version = (torch / "version.py").read_text().split("__version__ = '")[1].split("'")[0]
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
        f"-DPRUNEFUSE_TORCH_DIR={torch}", f"-DPRUNEFUSE_TORCH_VERSION={torch_version}",
        f"-DPRUNEFUSE_OUTPUT={package}", f"-DPRUNEFUSE_MODULE_SUFFIX={suffix}",
        f"-DPRUNEFUSE_PYBIND11_INCLUDE={pybind11_include()}", f"-DPRUNEFUSE_PYTHON_INCLUDE={include}",
        f"-DPRUNEFUSE_CUDA={'OFF' if rehearse else 'ON'}",
    ]  # fmt: skip
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": architectures}
    subprocess.run(configure, check=True, env=environment)
    if not rehearse:
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)


def python_of(interpreter: str) -> tuple[str, str]:
    """Folder of the headers, and suffix of the modules, of a Python."""
    code = "import sysconfig as s; print(s.get_path('include')); print(s.get_config_var('EXT_SUFFIX'))"
    include, suffix = subprocess.check_output([interpreter, "-c", code], text=True).split()
    return include, suffix


def pybind11_include() -> str:
    import pybind11

    return pybind11.get_include()


def torch_folder() -> Path:
    import torch

    return Path(torch.__file__).parent


def digest_of_sources(root: Path = ROOT) -> str:
    """Of everything that is compiled."""
    digest = hashlib.sha256()
    files = [root / "CMakeLists.txt", *(root / "csrc").rglob("*"), *(root / "cmake").rglob("*")]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def commit() -> str:
    """Of the checkout, ``-dirty`` with changes; of the bundle where this is none; else empty."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.SubprocessError):
        facts = ROOT / "build/gpu-bundle/bundle.json"
        return json.loads(facts.read_text())["commit"] if facts.is_file() else ""


def make(folder: Path, architectures: str) -> None:
    """Compiles and gathers a bundle. SystemExit where it is larger than a machine may be given."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    compile_into(folder, folder.parent / "gpu-cmake", torch_folder(), architectures)
    if not (folder / "lib/libprunefuse_cuda.so").is_file():
        raise SystemExit("gpu-bundle: no CUDA library was built: nvcc is needed")
    wheels_into(folder / "wheels")
    facts = {
        "commit": commit(),
        "sources": digest_of_sources(),
        "torch": version("torch"),
        "architectures": architectures,
    }
    (folder / "bundle.json").write_text(json.dumps(facts, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB for {architectures}")
    if size > LARGEST:
        raise SystemExit(f"gpu-bundle: must be at most {LARGEST / 1e6:.0f} MB, got {size / 1e6:.1f} MB")


def wheels_into(folder: Path) -> None:
    """Of `PACKAGES`, as they are installed here."""
    pinned = [f"{name}=={version(name)}" for name in PACKAGES]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *pinned], check=True)


def copy_tree(to: Path) -> None:
    """The checkout without what is built, but for the emulation, which a rehearsal runs."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "lib")
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=ignored)
        elif source.is_file():
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)
    if (emulation := ROOT / "build/emulation").is_dir():
        (to / "build").mkdir()
        (to / "build/emulation").symlink_to(emulation)


def unpack(bundle: Path, tree: Path, site: Path) -> None:
    """Makes a copy of the checkout with libraries to run, the bundle's or else its own, and a folder of the bundle's packages.

    SystemExit where there are no libraries, or only such of other sources or for another Python.
    """
    copy_tree(tree)
    site.mkdir(parents=True)
    for wheel in sorted((bundle / "wheels").glob("*.whl")):
        shutil.unpack_archive(wheel, site, "zip")
    module = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    why = "is not there"
    if (bundle / "bundle.json").is_file():
        facts = json.loads((bundle / "bundle.json").read_text())
        same = facts["sources"] == digest_of_sources()
        why = f"has no {module}" if same else f"is of other sources (git {facts['commit']})"
        if same and (bundle / module).is_file():
            copy_libraries(bundle, tree / "prunefuse", module)
            print(
                f"the bundle's libraries: git {facts['commit']}, torch {facts['torch']}, {facts['architectures']}"
            )
            return
    if not (ROOT / "prunefuse" / module).is_file():
        raise SystemExit(
            f"no library to run: {bundle} {why}, nor has {ROOT / 'prunefuse'} a {module}: `make gpu-bundle`"
        )
    copy_libraries(ROOT / "prunefuse", tree / "prunefuse", module)
    print(f"the checkout's libraries: {bundle} {why}")


def copy_libraries(source: Path, package: Path, module: str) -> None:
    (package / "lib").mkdir()
    for path in (source / module, *(source / "lib").glob("*.so")):
        shutil.copy2(path, package / path.relative_to(source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--architectures", default="9.0+PTX")
    unpacking = commands.add_parser("unpack")
    for name in ("bundle", "tree", "site"):
        unpacking.add_argument(name, type=Path)
    building = commands.add_parser("build")
    building.add_argument("tree", type=Path)
    building.add_argument("--architectures", default="9.0+PTX")
    building.add_argument("--rehearse", action="store_true", help="only configure, without CUDA")
    given = parser.parse_args()
    if given.command == "make":
        make(given.folder.resolve(), given.architectures)
    elif given.command == "unpack":
        unpack(given.bundle, given.tree, given.site)
    else:
        if not given.rehearse:
            copy_tree(given.tree)
        compile_into(
            given.tree.resolve() / "prunefuse",
            given.tree.resolve().parent / "cmake",
            torch_folder(),
            given.architectures,
            rehearse=given.rehearse,
        )


if __name__ == "__main__":
    main()
