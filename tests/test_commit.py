"""Files that change as one: whatever a process is killed in the middle of, a reader sees the old ones or the new ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunefuse import _commit
from prunefuse.errors import DamagedFileError

OLD = {"a.csv": b"old a", "b.json": b"old b", "same": b"same"}
NEW = {"a.csv": b"new a", "b.json": b"new b", "more": b"more"}


def contents(folder):
    found = _commit.manifest(folder)
    return {name: found.read(name) for name in found.files}, found.facts


class Killed(BaseException):
    pass


def dies_at(monkeypatch, count):
    """The process ends at its renaming number ``count``, before or after it."""
    rename, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) == abs(count) and count < 0:
            raise Killed
        done = rename(self, target)
        if len(calls) == count:
            raise Killed
        return done

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("count", [*range(-7, 0), *range(1, 8)])
def test_a_kill_leaves_all_of_the_old_or_all_of_the_new(tmp_path, monkeypatch, count):
    _commit.commit(tmp_path, OLD, {"round": 1})
    dies_at(monkeypatch, count)
    with pytest.raises(Killed):
        _commit.commit(tmp_path, NEW, {"round": 2})
    monkeypatch.undo()
    # Three staged files, the manifest, three files that get their names.
    happened = count > 3 or count < -4
    expected = (OLD | NEW, {"round": 2}) if happened else (OLD, {"round": 1})
    assert contents(tmp_path) == expected
    _commit.settle(tmp_path)
    assert contents(tmp_path) == expected
    assert {path.name for path in tmp_path.iterdir()} == {*expected[0], _commit.MANIFEST}
    for name, content in expected[0].items():
        assert (tmp_path / name).read_bytes() == content
    _commit.commit(tmp_path, NEW, {"round": 3})
    assert contents(tmp_path) == (OLD | NEW, {"round": 3})


def test_what_cannot_be_written_changes_nothing_and_is_named(tmp_path):
    _commit.commit(tmp_path, OLD)
    with pytest.raises(OSError, match=r"b\.json/c") as error:
        _commit.commit(tmp_path, {"a.csv": b"new", "b.json/c": b"x"})
    assert error.value.filename == str(tmp_path / "b.json/c")
    assert contents(tmp_path)[0] == OLD
    assert {path.name for path in tmp_path.iterdir()} == {*OLD, _commit.MANIFEST}


@pytest.mark.parametrize("name", [*OLD, _commit.MANIFEST])
@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_changed_file_is_named(tmp_path, name, place):
    _commit.commit(tmp_path, OLD)
    content = bytearray((tmp_path / name).read_bytes())
    content[place] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=name):
        _commit.manifest(tmp_path).check()


def test_a_reader_sees_what_was_committed_since_it_read_the_manifest(tmp_path):
    _commit.commit(tmp_path, OLD)
    found = _commit.manifest(tmp_path)
    _commit.commit(tmp_path, NEW)
    assert found.read("a.csv") == b"new a"
    assert found.read("same") == b"same"


def test_a_missing_file_and_one_that_is_not_in_the_manifest_are_named(tmp_path):
    assert _commit.manifest(tmp_path) is None
    _commit.commit(tmp_path, OLD)
    (tmp_path / "a.csv").unlink()
    (tmp_path / "other").write_text("mine")
    found = _commit.manifest(tmp_path)
    with pytest.raises(DamagedFileError, match=r"a\.csv is missing"):
        found.read("a.csv")
    with pytest.raises(DamagedFileError, match="other is not in manifest"):
        found.read("other")
    (tmp_path / _commit.MANIFEST).write_text(json.dumps({"files": {}}))
    with pytest.raises(DamagedFileError, match=r"manifest\.json was changed"):
        _commit.manifest(tmp_path)
