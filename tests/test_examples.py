"""Every script under examples/ runs as it is, on its own, and is short."""

import subprocess
import sys
from pathlib import Path

import pytest
from peer_packages import skip_without

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEEDS = {
    "language_model": "transformers",
    "prune_onnx_int8": "torchao",
    "score_jax": "jax",
    "with_baal": "baal",
    "with_modal": "modAL",
    "with_scikit_activeml": "skactiveml",
    "with_small_text": "small_text",
}


def test_there_is_one_for_every_package():
    assert set(NEEDS) < {example.stem for example in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_runs(example, tmp_path):
    if example.stem in NEEDS:
        skip_without(NEEDS[example.stem])
    assert len(example.read_text().splitlines()) < 60
    result = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert not list(tmp_path.iterdir())
