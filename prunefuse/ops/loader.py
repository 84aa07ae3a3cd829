"""Loads the native libraries that stand beside this package, and says what they are.

Importing this module registers every operator as `torch.ops.prunefuse.*`. The CUDA library is loaded only where torch is
a CUDA build; without it the operators still work on CPU tensors.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import torch

from prunefuse.version import __version__

LIBRARIES = Path(__file__).resolve().parent.parent / "lib"


def _load_operators() -> ModuleType:
    path = LIBRARIES / "libprunefuse_ops.so"
    try:
        torch.ops.load_library(path)
        return importlib.import_module("prunefuse._C")
    except (OSError, ImportError) as error:
        raise ImportError(
            f"prunefuse's native library could not be loaded from {path}: {error.__cause__ or error}\n"
            "Likely causes:\n"
            "  1. The package was not built: run `pip install .` (or `pip install -e . --no-build-isolation`) in its folder.\n"
            "  2. Python imports the source folder instead of the installed package: change to another folder.\n"
            f"  3. torch is older than 2.11, for which the library is built: this is torch {torch.__version__}.\n"
            f"  4. It was built for another Python: this is {platform.python_version()} on {platform.machine()}."
        ) from error


def _load_cuda() -> tuple[ctypes.CDLL | None, str]:
    """The CUDA library, or None and the reason. Asks CUDA nothing: a process may still fork after the import."""
    path = LIBRARIES / "libprunefuse_cuda.so"
    if not path.is_file():
        reason = "not built: no nvcc was found when prunefuse was installed (or PRUNEFUSE_CUDA=0 was set)"
        return None, reason
    if torch.version.cuda is None:
        return None, f"built, but torch {torch.__version__} is a build without CUDA"
    try:
        torch.ops.load_library(path)
        return ctypes.CDLL(str(path)), ""
    except OSError as error:
        return None, f"built, but it cannot be loaded: {error.__cause__ or error}"


native = _load_operators()
cuda, why_no_cuda = _load_cuda()


def require_cuda(operator: str) -> None:
    """Raises RuntimeError, with the reason, if CUDA kernels are not there for `operator`."""
    if why_no_cuda:
        raise RuntimeError(f"prunefuse::{operator}: the CUDA library is not loaded ({why_no_cuda})")


def why_not_on(gpu: int) -> str:
    """Why the loaded CUDA library cannot serve that GPU (its driver, no code for it), or an empty string where it can.

    Operators called there raise RuntimeError with the same words.
    """
    assert cuda is not None
    ask = cuda.prunefuse_cuda_why_not
    ask.argtypes, ask.restype = [ctypes.c_int], ctypes.c_char_p
    reason: bytes = ask(gpu)
    return reason.decode()


def _state_of_cuda() -> str:
    if cuda is None:
        return f"not loaded: {why_no_cuda}"
    reasons = dict.fromkeys(filter(None, map(why_not_on, range(torch.cuda.device_count()))))
    return f"loaded, but {'; '.join(reasons)}" if reasons else "loaded"


def facts() -> dict[str, str]:
    """What a bug report needs: versions, the build, the instruction-set level, and the state of the CUDA library."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "prunefuse": f"{__version__} ({LIBRARIES.parent})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "platform": platform.platform(),
        "ABI target": f"LibTorch stable ABI {native.abi_target} (headers of torch {native.built_with_torch})",
        "compilers": f"{native.compiler}; CUDA: {native.cuda_compiler}",
        "instruction set": f"{native.isa_level()} (available: {', '.join(native.isa_levels())}"
        + (f"; PRUNEFUSE_ISA={os.environ['PRUNEFUSE_ISA']})" if os.environ.get("PRUNEFUSE_ISA") else ")"),
        "threads": str(torch.get_num_threads()),
        "CUDA library": _state_of_cuda(),
        "CUDA architectures": native.cuda_architectures,
        "GPUs": ", ".join(gpus) or "none",
    }
