"""`import prunefuse` by itself: what it loads, and what it offers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prunefuse


def in_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_it_loads_few_modules_and_no_torch():
    ours, others = in_new_process(
        "import sys, prunefuse; print(sum(m.startswith('prunefuse') for m in sys.modules));"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)) or 'none')"
    )
    assert int(ours) <= 40
    assert others == "none"


def test_a_scorer_pays_for_nothing_that_planning_imports():
    loaded = in_new_process(
        "import sys, torch; before = set(sys.modules); import prunefuse;"
        "prunefuse.score(torch.zeros(2, 3), 'margin'); print(*sorted(set(sys.modules) - before))"
    )
    assert "prunefuse.scoring._scores" in loaded
    others = {"scipy", "fvcore", "sympy", "torchvision", "onnx", "torch.export._trace", "torch._dynamo"}
    assert not others & set(loaded)
    assert not [module for module in loaded if module.startswith(("prunefuse.pruning", "prunefuse.onnx"))]


def test_every_name_is_there_on_first_use_and_known_to_type_checkers():
    block = next(n for n in ast.parse(Path(prunefuse.__file__).read_text()).body if isinstance(n, ast.If))
    typed = {alias.asname: statement.module for statement in block.body for alias in statement.names}
    assert {name for name in prunefuse.__all__ if name != "__version__"} == typed.keys()
    for name, module in typed.items():
        assert getattr(prunefuse, name) is getattr(sys.modules[module], name)
        assert name in dir(prunefuse)
    names = in_new_process("from prunefuse import *; print(*dir())")
    assert set(prunefuse.__all__) <= set(names)


def test_packages_are_attributes():
    assert in_new_process("import prunefuse; print(prunefuse.scoring.score is prunefuse.score)") == ["True"]
    with pytest.raises(AttributeError, match="module 'prunefuse' has no attribute 'scores'"):
        prunefuse.scores  # noqa: B018


def test_every_exception_of_a_user_is_in_one_module_and_where_it_is_raised():
    from prunefuse import errors
    from prunefuse.experiment import folder, run
    from prunefuse.experiment.extrapolate import _run as extrapolate
    from prunefuse.scoring import _files
    from prunefuse.training import TrainingDivergedError

    assert TrainingDivergedError is errors.TrainingDivergedError
    assert _files.LogitsFileError is errors.LogitsFileError
    assert (folder.RunError, folder.RunFolderError) == (errors.RunError, errors.RunFolderError)
    assert run.RunInterrupted is errors.RunInterrupted
    assert extrapolate.ExtrapolateInterrupted is errors.ExtrapolateInterrupted
    own = in_new_process(
        "import sys, prunefuse.errors; print(*(m for m in sys.modules if m.startswith('prunefuse')))"
    )
    assert not {module for module in own if module.startswith("prunefuse.experiment")}
