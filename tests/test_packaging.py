"""What is shipped: the source distribution builds by itself, and the wheel holds the package and nothing else."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # a whole build


def run(*command, cwd, **environment):
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built (without CUDA, for time) from an unpacked source distribution, in a folder of its own."""
    pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("packaging")
    build = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    run(sys.executable, "-c", build, "build_sdist", str(folder), cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = next(path for path in folder.iterdir() if path.is_dir())
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ["PATH"]])
    run(sys.executable, "-c", build, "build_wheel", str(folder), cwd=source, PRUNEFUSE_CUDA="0", PATH=path)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_libraries_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"prunefuse"}
    assert "prunefuse/py.typed" in names
    assert "prunefuse/lib/libprunefuse_ops.so" in names
    assert "prunefuse/experiment/report/page.html.j2" in names
    assert "prunefuse/experiment/study/_settings.toml" in names
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".h")) or "test" in name]
    assert "-cp3" in wheel.name
    assert "linux" in wheel.name


def test_the_wheel_works_where_it_is_unpacked(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import torch, prunefuse; from prunefuse.ops import loader; "
        "print(prunefuse.__file__); print(prunefuse.score(torch.zeros(1, 4)).item()); print(loader.why_no_cuda)"
    )
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert printed[0].startswith(str(tmp_path))
    assert float(printed[1]) == pytest.approx(1.3862944)
    assert printed[2].startswith("not built")


def test_a_missing_native_library_is_explained(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (tmp_path / "prunefuse/lib/libprunefuse_ops.so").unlink()
    result = subprocess.run(
        [sys.executable, "-c", "import prunefuse; prunefuse.score"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "Likely causes" in result.stderr
    assert "pip install ." in result.stderr
