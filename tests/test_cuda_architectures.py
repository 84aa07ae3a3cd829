"""Which GPUs a build serves: cmake/cuda_architectures.cmake, run by CMake as a script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peer_packages import skip_without

skip_without("cmake")

SCRIPT = Path(__file__).parent.parent / "cmake/cuda_architectures.cmake"


@pytest.fixture
def architectures(tmp_path):
    """What the build takes from TORCH_CUDA_ARCH_LIST and from what nvidia-smi prints (None: it fails)."""

    def ask(wanted="", printed=None):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + ("exit 9\n" if printed is None else f"cat <<'.'\n{printed}\n.\n"))
        tool.chmod(0o755)
        script = tmp_path / "ask.cmake"
        script.write_text(
            f'include("{SCRIPT}")\nprunefuse_cuda_architectures(found)\nmessage("found: ${{found}}")\n'
        )
        result = subprocess.run(
            [sys.executable, "-c", "import cmake; cmake.cmake()", "-P", str(script)],
            env={
                **os.environ,
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "TORCH_CUDA_ARCH_LIST": wanted,
            },
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise ValueError(result.stderr)
        return result.stderr.strip().removeprefix("found: ").split(";")

    return ask


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("9.0", ["90-real", "90-virtual"]),
        ("9.0+PTX", ["90-real", "90-virtual"]),
        ("10.0;9.0", ["100-real", "90-real", "100-virtual"]),
        ("8.0+PTX 9.0", ["80-real", "80-virtual", "90-real", "90-virtual"]),
        ("9.0a", ["90a-real", "90-virtual"]),
    ],
)
def test_the_newest_architecture_asked_for_carries_ptx(architectures, wanted, expected):
    assert architectures(wanted, printed="7.5") == expected


def test_the_gpus_present_are_built_for_and_the_newest_carries_ptx(architectures):
    assert architectures(printed="8.6\n8.9\n8.6") == ["86-real", "89-real", "89-virtual"]


def test_without_a_gpu_a_short_list_is_built_for(architectures):
    assert architectures() == ["80-real", "90-real", "90-virtual"]


@pytest.mark.parametrize("wanted", ["sm_90", "9.0 hopper"])
def test_what_is_no_architecture_is_an_error(architectures, wanted):
    with pytest.raises(ValueError, match="is not of the form"):
        architectures(wanted)
