"""Reading logits from disk: blocks, order of shards, and files that are not what they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunefuse.scoring._files import LogitsFileError, logits_blocks, logits_files


def matrix(rows, classes=3, dtype=torch.float32):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(rows)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_every_type_comes_back_in_blocks(tmp_path, suffix, dtype):
    if suffix == ".npy" and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    logits, path = matrix(11, dtype=dtype), tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, logits.numpy())
    else:
        save_file({"logits": logits}, path)
    (file,) = logits_files([path])
    assert (file.rows, file.classes) == (11, 3)
    blocks = list(file.blocks(4 * 3 * logits.element_size() + 1))
    assert [len(block) for block in blocks] == [4, 4, 3]
    assert blocks[0].dtype == dtype
    assert torch.equal(torch.cat(blocks), logits)
    assert [len(block) for block in file.blocks(1)] == [1] * 11


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 200))
def test_blocks_are_the_rows_in_order_and_no_larger_than_asked(tmp_path_factory, sizes, block_bytes):
    folder = tmp_path_factory.mktemp("pool")
    whole = [matrix(rows) for rows in sizes]
    for i, part in enumerate(whole):
        np.save(folder / f"{i}.npy", part.numpy())
    blocks = list(logits_blocks(folder, block_bytes=block_bytes))
    assert torch.equal(torch.cat([torch.empty(0, 3), *blocks]), torch.cat(whole))
    assert all(block.nbytes <= max(block_bytes, 12) for block in blocks)


def test_other_layouts_of_npy(tmp_path):
    array = matrix(6).numpy()
    np.save(tmp_path / "fortran.npy", np.asfortranarray(array))
    np.save(tmp_path / "swapped.npy", array.astype(">f4"))
    for block in logits_blocks([tmp_path / "fortran.npy", tmp_path / "swapped.npy"]):
        assert np.array_equal(block, array)


def test_a_folder_is_read_in_natural_order_without_other_files(tmp_path):
    for name in ("shard-10.npy", "shard-2.npy", "shard-1.npy", "Shard-3.npy", ".hidden.npy"):
        np.save(tmp_path / name, matrix(1).numpy())
    save_file({"x": matrix(1)}, tmp_path / "shard-9.safetensors")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub").mkdir()
    names = [file.path.name for file in logits_files([tmp_path])]
    assert names == ["Shard-3.npy", "shard-1.npy", "shard-2.npy", "shard-9.safetensors", "shard-10.npy"]
    assert [
        file.path.name for file in logits_files([tmp_path / "shard-10.npy", tmp_path / "shard-2.npy"])
    ] == [
        "shard-10.npy",
        "shard-2.npy",
    ]


def test_generators_of_arrays_and_of_paths_are_gone_through_once(tmp_path):
    np.save(tmp_path / "x.npy", matrix(5).numpy())
    seen = []

    def source():
        for one in (matrix(5).numpy(), matrix(5), tmp_path / "x.npy"):
            seen.append(one)
            yield one

    blocks = logits_blocks(source(), block_bytes=36)
    first = next(blocks)
    assert len(seen) == 1
    assert isinstance(first, np.ndarray)
    rest = list(blocks)
    assert [len(block) for block in [first, *rest]] == [3, 2] * 3
    assert torch.equal(torch.cat(rest[1:3]), matrix(5))


def test_the_tensor_is_named_where_there_are_several(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"logits": matrix(4), "labels": torch.zeros(4)}, path)
    assert [block.shape for block in logits_blocks(path, tensor="logits")] == [(4, 3)]
    with pytest.raises(LogitsFileError, match=r"x\.safetensors: has 2 tensors, .*\['labels', 'logits'\]"):
        logits_files([path])
    with pytest.raises(
        LogitsFileError, match=r"x\.safetensors: has no tensor 'scores', but \['labels', 'logits'\]"
    ):
        logits_files([path], tensor="scores")


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("missing", [1, 11, 12 * 30, 12 * 30 + 50, 12 * 30 + 100])
def test_a_truncated_file_is_named(tmp_path, suffix, missing):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".npy":
        np.save(path, matrix(30).numpy())
    else:
        save_file({"x": matrix(30)}, path)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(LogitsFileError, match=rf"cut\{suffix}: truncated"):
        logits_files([path])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), np.int64), "values must be of float16, float32, float64, got int64"),
        (np.zeros(3, np.float32), r"must have the shape \(rows, classes\), got \(3,\)"),
        (np.zeros((3, 0), np.float32), r"must have the shape \(rows, classes\), got \(3, 0\)"),
        (np.zeros((1, 2, 3), np.float32), r"got \(1, 2, 3\)"),
        (np.array([[{}]], object), "not an array of numbers"),
    ],
)
def test_what_is_no_matrix_of_logits_is_named(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(LogitsFileError, match=rf"x\.npy: .*{message}"):
        logits_files([tmp_path / "x.npy"])


def test_missing_foreign_and_uneven_files_are_named(tmp_path):
    for name in ("none.npy", "none.safetensors"):
        with pytest.raises(LogitsFileError, match=rf"{name}: No such file"):
            logits_files([tmp_path / name])
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(
        LogitsFileError, match=r"logits must be a \.npy, .* or \.parquet file, .*got .*x\.txt"
    ):
        logits_files([tmp_path / "x.txt"])
    with pytest.raises(LogitsFileError, match=r"the folder has no \.npy, .* or \.parquet file"):
        logits_files([tmp_path])
    with pytest.raises(LogitsFileError, match="there is no file of logits"):
        logits_files([])
    np.save(tmp_path / "a.npy", matrix(2).numpy())
    np.save(tmp_path / "b.npy", matrix(2, 4).numpy())
    with pytest.raises(LogitsFileError, match=r"b\.npy: has 4 classes, where .*a\.npy has 3"):
        list(logits_blocks(tmp_path))


def test_wrong_arguments():
    with pytest.raises(TypeError, match="logits must be a torch tensor"):
        list(logits_blocks([3]))
    with pytest.raises(ValueError, match="block_bytes must be at least 1, got 0"):
        list(logits_blocks([], block_bytes=0))
