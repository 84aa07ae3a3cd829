"""Old paths of modules: they answer, with a warning that names the new one and the line that asked."""

import importlib
import subprocess
import sys

import pytest

import prunefuse
from prunefuse._moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_path_gives_what_the_new_one_has(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]};") as warned:
        module = importlib.import_module(old)
    assert len(warned) == 1
    new = importlib.import_module(MOVED[old])
    for name in (name for name in dir(new) if not name.startswith("__")):
        assert getattr(module, name) is getattr(new, name)


def test_a_function_that_had_a_module_of_its_name_goes_on_to_work():
    sys.modules.pop("prunefuse.selection.top_b", None)
    with pytest.warns(DeprecationWarning, match="is now"):
        old = importlib.import_module("prunefuse.selection.top_b")
    assert prunefuse.selection.top_b is prunefuse.top_b is old.top_b


def test_what_is_patched_under_the_old_path_is_patched(monkeypatch):
    sys.modules.pop("prunefuse.extrapolation.knn", None)
    with pytest.warns(DeprecationWarning, match="is now"):
        old = importlib.import_module("prunefuse.extrapolation.knn")
    from prunefuse.extrapolation import _knn

    monkeypatch.setattr(old, "WEIGHTINGS", ())
    assert _knn.WEIGHTINGS == ()


def test_the_warning_names_the_line_that_asked(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os\nfrom prunefuse.files import save_tensors\n")
    done = subprocess.run([sys.executable, "-W", "default", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{script}:2: DeprecationWarning: prunefuse.files is now prunefuse._files" in done.stderr


def test_the_package_itself_uses_no_old_path():
    code = """
import importlib, pkgutil, torch, prunefuse
for module in pkgutil.walk_packages(prunefuse.__path__, "prunefuse."):
    if not module.name.startswith("prunefuse.adapters.") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    only_errors = ["-W", "error::DeprecationWarning:prunefuse"]
    done = subprocess.run([sys.executable, *only_errors, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is now prunefuse" not in done.stderr
