"""What the machine is and has: the GPU and its clocks, the driver, compilers, Python and its packages. Changes nothing."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

COMMANDS = (
    "nvidia-smi",
    "nvidia-smi -q -d CLOCK,POWER,PERFORMANCE,ECC",
    "nvcc --version",
    "cmake --version",
    "g++ --version",
    "compute-sanitizer --version",
    "ncu --version",
    "lscpu",
    "free -g",
)


def main() -> None:
    lines = [f"{platform.platform()}, Python {platform.python_version()} ({sys.executable})"]
    try:
        import torch

        cuda = torch.cuda.is_available()
        gpu = torch.cuda.get_device_properties(0) if cuda else None
        torch_line = f"torch {torch.__version__}, CUDA {torch.version.cuda}, {gpu or 'no GPU'}"
        lines += [torch_line, torch.__config__.show()]
    except ImportError as error:
        torch_line = f"no torch: {error}"
    print(f"> {torch_line}; Python {platform.python_version()}")
    for command in COMMANDS:
        tool, *arguments = command.split()
        if not shutil.which(tool):
            lines.append(f"$ {command}\nabsent")
            continue
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=10)
        lines.append(f"$ {command}\n{done.stdout}{done.stderr}")
    packages = sorted(f"{one.metadata['Name']}=={one.version}" for one in metadata.distributions())
    Path(sys.argv[1]).write_text("\n".join([*lines, "$ packages", *packages]) + "\n")


if __name__ == "__main__":
    main()
