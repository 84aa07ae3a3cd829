"""`prunefuse bench`: picks cases by a word, prints their table, ends with 1 where a result of ours is wrong."""

import json

import pytest
from typer.testing import CliRunner

import prunefuse
from prunefuse.bench import cases, race
from prunefuse.cli.app import app


def call(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def small_top(monkeypatch):
    from functools import partial

    monkeypatch.setattr(race, "ROUNDS", (1, 1))
    case = race.Case("top 50 of 2,000", partial(cases._top_b, 2000, 50))
    monkeypatch.setattr(cases, "cases", lambda device: (case,))


def test_list_prints_the_names_of_the_cases():
    assert call("--list").output.splitlines() == [case.name for case in cases.cases("cpu")]
    assert call("--list", "k-center", "TOP").output.splitlines() == [
        "top 10,000 of 1,000,000",
        "k-center 1,000 of 50,000 x 64",
    ]


def test_it_prints_the_table_and_writes_the_file(small_top, tmp_path):
    path = tmp_path / "mine.json"
    result = call("top", "--json", path)
    assert result.exit_code == 0, result.output
    for text in ("torch.topk", "/ read once", "/ best peer", "✓", "| top 50 of 2,000 |", f"Results: {path}"):
        assert text in result.output
    assert json.loads(path.read_text())["results"][0]["case"] == "top 50 of 2,000"
    again = call("top", "--json", path)
    assert (again.exit_code, "is there already" in again.output) == (1, True)


def test_a_wrong_result_ends_with_1(small_top, monkeypatch):
    right = prunefuse.top_b
    monkeypatch.setattr(prunefuse, "top_b", lambda u, b: [one.flip(0) for one in right(u, b)])
    result = call("top")
    assert result.exit_code == 1
    assert "✗" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-case"], "no case has no-such-case in its name"),
        (["--device", "tpu"], "device must be cpu or cuda"),
    ],
)
def test_a_wrong_word_is_one_message_and_exit_code_2(arguments, message):
    result = call(*arguments)
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
    assert message in result.output
