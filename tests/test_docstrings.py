"""Docstrings of public names: each has an example that runs, and sentences that can be read once."""

import doctest
import re
from pathlib import Path

import pytest
import torch
from prose import docstrings, of_page, public, sentences, words

import prunefuse

# Where docstrings are still to be written anew: a list that may only become shorter.
UNWRITTEN = (
    "prunefuse.experiment.",
    "prunefuse.onnx.",
    "prunefuse.pruning.",
    "prunefuse.training._recipe.",
    "prunefuse.training._train.",
)
ALL = public()
PUBLIC = {name: value for name, value in ALL.items() if not name.startswith(UNWRITTEN)}
MOST_WORDS = 25


@pytest.mark.parametrize("name", PUBLIC)
def test_its_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text, *_) = (text for _, text in docstrings(name, PUBLIC[name]))
    globs = {"prunefuse": prunefuse, "torch": torch}
    test = doctest.DocTestParser().get_doctest(text, globs, name, None, 0)
    assert test.examples, f"{name} has no example"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        failed = []
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=failed.append)
    assert not failed, "".join(failed)


def long_sentences(names):
    return {
        place: sentence
        for name in names
        for place, text in docstrings(name, ALL[name])
        for sentence in sentences(text)
        if words(sentence) > MOST_WORDS
    }


def test_no_sentence_has_more_than_25_words():
    assert not long_sentences(PUBLIC)


def test_what_is_written_anew_leaves_the_list():
    for start in UNWRITTEN:
        names = [name for name in ALL if name.startswith(start)]
        without = [name for name in names if ">>>" not in (ALL[name].__doc__ or "")]
        assert without or long_sentences(names) or not names, f"remove {start} from UNWRITTEN"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/paper.md"])
def test_no_sentence_of_a_page_has_more(page):
    found = list(of_page(Path(__file__).parent.parent / page))
    assert len(found) > 10
    assert not [sentence for sentence in found if words(sentence) > MOST_WORDS]


def test_what_is_ours_stands_in_one_page():
    texts = {place: text for name, value in PUBLIC.items() for place, text in docstrings(name, value)}
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
