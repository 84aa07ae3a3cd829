"""Docstrings of public names: each has an example that runs, and sentences that can be read once."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from peer_packages import skip_without
from prose import docstrings, of_page, public, sentences, words

import prunefuse
from prunefuse._options import places
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate import ExtrapolateConfig
from prunefuse.experiment.labeling.config import LabelConfig

PUBLIC = public()
MOST_WORDS = 25


@pytest.mark.parametrize("name", PUBLIC)
def test_its_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(name, PUBLIC[name], {})


def run_example(name, value, more):
    text = inspect.getdoc(value) or ""
    globs = {"prunefuse": prunefuse, "torch": torch, **more}
    test = doctest.DocTestParser().get_doctest(text, globs, name, None, 0)
    assert test.examples, f"{name} has no example"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        failed = []
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=failed.append)
    assert not failed, "".join(failed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("adapter", "package", "setup"),
    [
        ("modal", "modAL", "from modAL.models import ActiveLearner, Committee"),
        ("skactiveml", "skactiveml", "from skactiveml.classifier import SklearnClassifier"),
        ("baal", "baal", ""),
        ("small_text", "small_text", "from small_text import *"),
    ],
)
def test_adapters_of_other_packages(adapter, package, setup):
    skip_without(package)
    given: dict[str, object] = {}
    exec(ADAPTERS + setup, given)
    if adapter == "small_text":
        factory = given["SklearnClassifierFactory"](given["LogisticRegression"](), 10)
        given |= {
            "factory": factory,
            "data": given["SklearnDataset"](given["csr_matrix"](given["X"]), given["y"]),
        }
    module = importlib.import_module(f"prunefuse.adapters.{adapter}")
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    }
    classes = {name: value for name, value in own.items() if inspect.isclass(value)}
    assert classes
    for name, value in classes.items():
        run_example(name, value, given)
    assert not long_sentences(classes)


# What the examples of adapters are given: the digits, of which 99 are labeled.
ADAPTERS = """
import numpy as np
from scipy.sparse import csr_matrix
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
X, y = load_digits(return_X_y=True)
partly = np.where(np.arange(len(y)) < 99, y, np.nan)
"""


def long_sentences(values):
    return {
        place: sentence
        for name, value in values.items()
        for place, text in docstrings(name, value)
        for sentence in sentences(text)
        if words(sentence) > MOST_WORDS
    }


def test_no_sentence_has_more_than_25_words():
    assert not long_sentences(PUBLIC)


@pytest.mark.parametrize(
    "page",
    [
        *("CONTRIBUTING.md", "docs/architecture.md", "docs/labeling.md", "docs/language.md"),
        *("docs/listeners.md", "docs/paper.md", "docs/fusing.md", "docs/studies.md", "docs/speed.md"),
    ],
)
def test_no_sentence_of_a_page_has_more(page):
    found = list(of_page(Path(__file__).parent.parent / page))
    assert len(found) > 10
    assert not [sentence for sentence in found if words(sentence) > MOST_WORDS]


def test_what_is_ours_stands_in_one_page():
    texts = {place: text for name, value in PUBLIC.items() for place, text in docstrings(name, value)}
    for config in (RunConfig, ExtrapolateConfig, LabelConfig):
        texts |= {place.name: f"{place.option.help}. {place.option.more}" for place in places(config)}
    assert not {place for place, text in texts.items() if re.search(r"\bours\b", text, re.IGNORECASE)}


def test_sentences_are_found_and_counted():
    text = """What it is, e.g. a thing of `a.b`. It has two.

    >>> print("This. Is. No. Sentence.")
    This. Is. None.

    Args:
        name: One of ``a``, ``b c d``. Or
            none.
        other, more: Yes?
    """
    found = list(sentences(text))
    assert found == [
        "What it is, e.g. a thing of `a.b`.",
        "It has two.",
        "Args:",
        "One of ``a``, ``b c d``.",
        "Or none.",
        "Yes?",
    ]
    assert [words(sentence) for sentence in found] == [8, 3, 1, 4, 2, 1]
