from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
import torch

from prunefuse._files import replacing, save_tensors, write_bytes, write_json, write_text


def test_text_bytes_and_json_are_written_as_given(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "één\r\nline\n")  # parents are created, line ends kept
    write_bytes(tmp_path / "c", b"\x00\xff")
    write_json(tmp_path / "d.json", {"ratio": 0.5, "name": "ü"})
    assert (tmp_path / "a" / "b.txt").read_bytes() == "één\r\nline\n".encode()
    assert (tmp_path / "c").read_bytes() == b"\x00\xff"
    assert json.loads((tmp_path / "d.json").read_text(encoding="utf-8")) == {"ratio": 0.5, "name": "ü"}


def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path):
    target = tmp_path / "metrics.csv"
    write_text(target, "old")

    def fail_half_way():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.csv"]


@pytest.mark.parametrize("name", ["folder", "x" * 300])
def test_an_error_names_the_target_alone(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=name) as caught:
        write_text(tmp_path / name, "text")
    assert ".tmp" not in str(caught.value)
    assert caught.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_target_is_untouched_until_the_block_ends(tmp_path):
    target = tmp_path / "metrics.csv"
    write_text(target, "old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_not_a_number_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_the_file_gets_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    save_tensors(tmp_path / "tensors", {"x": torch.zeros(1)})
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours", "tensors")}
    assert len(modes) == 1


def test_tensors_come_back_bit_for_bit(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    base = torch.randn(4, 6)
    tensors = {
        "transposed": base.t(),
        "same memory": base,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(7),
        "half": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "w.safetensors"
    save_tensors(path, tensors, {"format": "1"})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "1"}


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "metrics.csv"
    write_text(target, "old")
    program = (
        "import os, sys; from prunefuse.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert finished.returncode == -9
    assert target.read_text() == "old"
