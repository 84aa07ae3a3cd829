"""Logits in the files that other tools write: archives, tables, HDF5 and Zarr; each is written by the tool itself."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from peer_packages import skip_without

from prunefuse.scoring._files import LogitsFileError, logits_blocks, logits_files

LOGITS = np.random.default_rng(0).normal(size=(37, 4)).astype(np.float32)


def read(path, **layout):
    return torch.cat(list(logits_blocks(path, block_bytes=200, **layout))).numpy()


def refused(path, **layout):
    """The message, which is one line that names the file."""
    with pytest.raises(LogitsFileError) as error:
        read(path, **layout)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def table(path, header, rows, **how):
    with path.open("w", newline="", encoding=how.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **how)
        writer.writerows([*([header] if header else []), *rows])
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_arrays(tmp_path, save):
    path = tmp_path / "x.npz"
    wide = LOGITS.astype(">f8")
    save(
        path,
        logits=LOGITS,
        wide=wide,
        columns=np.asfortranarray(LOGITS),
        labels=np.arange(37),
        none=LOGITS[:0],
    )
    assert np.array_equal(read(path, tensor="logits"), LOGITS)
    assert np.array_equal(read(path, tensor="columns"), LOGITS)
    assert np.array_equal(read(path, tensor="wide"), wide)
    assert logits_files([path], tensor="none")[0].rows == 0
    assert "has 5 arrays, so name the one with the logits: ['columns', 'labels'," in refused(path)
    assert "values must be of float16, float32, float64, got int64" in refused(path, tensor="labels")
    assert "has no array 'scores'" in refused(path, tensor="scores")
    content = path.read_bytes()
    for cut in (content[:-1], content[:100], b"", content[:-30]):
        path.write_bytes(cut)
        assert "truncated, or not an archive of arrays" in refused(path, tensor="logits")
    save(path, LOGITS)
    assert np.array_equal(read(path), LOGITS)
    np.savez(path, logits=np.array([[{}]], object))
    assert "not an archive of arrays" in refused(path)


def test_a_damaged_archive_is_named_while_it_is_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, LOGITS)
    content = bytearray(path.read_bytes())
    content[300] ^= 255
    path.write_bytes(content)
    assert "truncated, or not an archive of arrays" in refused(path)


@pytest.mark.parametrize("how", [{}, {"delimiter": ";"}, {"delimiter": "\t"}, {"quoting": csv.QUOTE_ALL}])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_of_many_tools(tmp_path, how, encoding):
    path = table(tmp_path / "x.csv", ["cat", "dog", "a,b", "ü"], LOGITS.tolist(), encoding=encoding, **how)
    assert np.array_equal(read(path), LOGITS)
    assert np.array_equal(read(path, columns=("ü", "cat")), LOGITS[:, [3, 0]])


def test_csv_of_numpy_and_of_pandas(tmp_path):
    for name, how in (
        ("space.csv", {}),
        ("comma.csv", {"delimiter": ","}),
        ("header.csv", {"delimiter": ",", "header": "a,b,c,d"}),
        ("spaces.csv", {"header": "a b c d"}),
    ):
        np.savetxt(tmp_path / name, LOGITS, **how)
        assert np.array_equal(read(tmp_path / name), LOGITS.astype(np.float64)), name
    skip_without("pandas")
    import pandas

    frame = pandas.DataFrame(LOGITS)
    frame.to_csv(tmp_path / "index.csv")
    (file,) = logits_files([tmp_path / "index.csv"])
    assert list(file.ids()) == list(map(str, range(37)))
    assert np.array_equal(read(tmp_path / "index.csv").astype(np.float32), LOGITS)
    assert np.array_equal(read(tmp_path / "index.csv", id="").astype(np.float32), LOGITS)
    frame.to_csv(tmp_path / "plain.csv", index=False)
    assert "line 1, 0,1,2,3, may be names or numbers: say which (--header or --no-header)" in refused(
        tmp_path / "plain.csv"
    )
    assert np.array_equal(read(tmp_path / "plain.csv", header=True).astype(np.float32), LOGITS)
    assert len(read(tmp_path / "plain.csv", header=False)) == 38
    frame.iloc[3, 1] = np.nan
    frame.add_prefix("c").to_csv(tmp_path / "missing.csv", index=False)
    found = read(tmp_path / "missing.csv").astype(np.float32)
    assert np.array_equal(found, frame.to_numpy(), equal_nan=True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b", "1,2", "3,x"], "line 3, column 'b' must be a number, got 'x'"),
        (["a,b", "1,2", "", "3"], "line 4 must have 2 fields, got 1"),
        (["a,b", "1,2,3"], "line 2 must have 2 fields, got 3"),
        (["a,b", "1,2", '3,"4'], "line 3 must be CSV"),
        (["a,label", "1,2"], "column 'label' is no logit by its name"),
        (["id,a,path", "1,2,3"], "column 'id' is no logit by its name"),
        (["id", "1"], "has no column of numbers"),
        (["0,0.5,1", "1,0.5,2", "2,0.25,3"], "column '0' counts the rows, so it is no logit"),
        (["a.png,0.5,1", "b.png,0.5,2"], "line 1, column '0' must be a number, got 'a.png'"),
        (["1,5;2,5", "1,5;2,5"], "column '1' must be a number, got '5;2'"),
        (["a,b", "1_0,2"], "line 2, column 'a' must be a number, got '1_0'"),
        ([], "is empty"),
    ],
)
def test_a_csv_file_that_is_no_matrix_is_named_with_its_line(tmp_path, lines, message):
    path = tmp_path / "x.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert message in refused(path)


def test_files_with_names_of_rows_and_without_are_not_one_pool(tmp_path):
    table(tmp_path / "1.csv", ["Path", "a"], [["x.png", 0.5], ["y.png", 1.5]])
    table(tmp_path / "2.csv", ["a"], [[0.5]])
    with pytest.raises(
        LogitsFileError, match=r"2\.csv: has no names of rows, where .*1\.csv has them, as 'Path'"
    ):
        logits_files([tmp_path])
    assert [list(file.ids()) for file in logits_files([tmp_path], columns=["a"])] == [[], []]
    (file,) = logits_files([tmp_path / "1.csv"])
    assert (file.classes, list(file.ids())) == (1, ["x.png", "y.png"])


def test_columns_and_the_names_of_rows(tmp_path):
    names = [f"img/{i}, ü.png" for i in range(37)]
    path = table(tmp_path / "x.csv", ["path", "a", "b", "c", "d", "note"], [
        [name, *row, "text"] for name, row in zip(names, LOGITS.tolist(), strict=True)
    ])  # fmt: skip
    (file,) = logits_files([path], id="path", columns=["d", "a"])
    assert (file.rows, file.classes, list(file.ids())) == (37, 2, names)
    assert np.array_equal(read(path, id="path", columns=("d", "a")), LOGITS[:, [3, 0]])
    assert "column 'note' must be a number, got 'text'" in refused(path, id="path")
    assert "has no column 'e'; its columns are 'path', 'a'" in refused(path, columns=("e",))
    path = table(tmp_path / "y.tsv", None, [[name, 0.5, 1.5] for name in names], delimiter="\t")
    (file,) = logits_files([path], id="0")
    assert (file.rows, file.classes, list(file.ids())) == (37, 2, names)
    np.save(tmp_path / "x.npy", LOGITS)
    assert "has no columns to choose from (--id is for CSV and Parquet)" in refused(
        tmp_path / "x.npy", id="a"
    )


def test_parquet(tmp_path):
    skip_without("pyarrow")
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    columns = {f"c{i}": LOGITS[:, i].astype(np.float64 if i else np.float16) for i in range(4)}
    whole = np.stack([column.astype(np.float64) for column in columns.values()], 1)
    parquet.write_table(
        pyarrow.table({"path": [f"{i}.png" for i in range(37)], **columns}), path, row_group_size=10
    )
    (file,) = logits_files([path], id="path")
    assert (file.rows, file.classes, list(file.ids())[36]) == (37, 4, "36.png")
    assert np.array_equal(read(path, id="path"), whole)
    assert np.array_equal(read(path, columns=("c3", "c1")), whole[:, [3, 1]])
    assert np.array_equal(read(path), whole)
    table = pyarrow.table({"a": pyarrow.array([0.5, None, 1.5]), "b": [1.0, 2.0, 3.0], "n": [1, 2, 3]})
    parquet.write_table(table, path)
    assert "column 'n' must be of float16, float32, float64, got int64" in refused(path)
    assert np.array_equal(read(path, columns=("a", "b")), [[0.5, 1], [np.nan, 2], [1.5, 3]], equal_nan=True)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert "truncated, or not a Parquet file" in refused(path)


@pytest.mark.parametrize("kind", ["list_", "large_list", "fixed"])
def test_parquet_with_a_column_of_lists(tmp_path, kind):
    skip_without("pyarrow")
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    inner = pyarrow.float32()
    made = pyarrow.list_(inner, 4) if kind == "fixed" else getattr(pyarrow, kind)(inner)

    def write(rows):
        parquet.write_table(
            pyarrow.table({"name": ["x"] * len(rows), "emb": pyarrow.array(rows, made)}), path
        )

    write(LOGITS.tolist())
    assert np.array_equal(read(path, columns=("emb",)), LOGITS)
    assert np.array_equal(read(path, columns=("emb",), id="name"), LOGITS)
    assert "column 'emb' has lists, so it must be the only one" in refused(path, columns=("emb", "name"))
    write([[0.5] * 4, [1.5] * 4, None])
    assert "row 2, column 'emb' must be a list of numbers, got none" in refused(path, columns=("emb",))
    if kind != "fixed":
        write([[0.5] * 4, [1.5] * 4, [1.0]])
        assert "row 2, column 'emb' must have 4 numbers, got 1" in refused(path, columns=("emb",))


def test_hdf5(tmp_path):
    skip_without("h5py")
    import h5py

    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("run/logits", data=LOGITS, chunks=(10, 4), compression="gzip")
        file["wide"] = LOGITS.astype(">f8")
        file["labels"] = np.arange(37)
        file.create_dataset("half", shape=LOGITS.shape, dtype="f4", chunks=(10, 4))[:20] = LOGITS[:20]
        file.create_dataset("never", shape=LOGITS.shape, dtype="f4")
    for name, expected in (
        ("run/logits", LOGITS),
        ("/run/logits", LOGITS),
        ("wide", LOGITS.astype(np.float64)),
    ):
        assert np.array_equal(read(path, tensor=name), expected)
    assert "has 5 datasets, so name the one with the logits: ['half', 'labels', 'never'," in refused(path)
    assert "values must be of float16, float32, float64, got int64" in refused(path, tensor="labels")
    assert "2 of 4 chunks were never written" in refused(path, tensor="half")
    assert "1 of 1 chunks were never written" in refused(path, tensor="never")
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated" in refused(path, tensor="wide")
    path.write_bytes(b"hello")
    assert "file signature not found" in refused(path)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path, version):
    skip_without("zarr")
    import zarr

    old = int(zarr.__version__.partition(".")[0]) < 3
    if old and version == 3:
        pytest.skip("zarr 2 writes format 2 alone")
    how = {} if old else {"zarr_format": version}
    alone = zarr.open(str(tmp_path / "pool" / "shard-1.zarr"), mode="w", shape=LOGITS.shape, chunks=(10, 4), dtype="f4",
                      **how)  # fmt: skip
    alone[:20] = LOGITS[:20]
    assert "2 of 4 chunks were never written" in refused(tmp_path / "pool" / "shard-1.zarr")
    alone[20:] = LOGITS[20:]
    assert np.array_equal(read(tmp_path / "pool"), LOGITS)
    group = zarr.open_group(str(tmp_path / "store"), mode="w", **how)
    create = group.create_dataset if old else group.create_array
    create("in/logits", data=LOGITS, chunks=(10, 4))
    create("wide", data=LOGITS.astype(np.float64), chunks=(7, 3))
    assert np.array_equal(read(tmp_path / "store", tensor="in/logits"), LOGITS)
    assert np.array_equal(read(tmp_path / "store", tensor="/wide"), LOGITS)
    assert "has 2 arrays, so name the one with the logits: ['in/logits', 'wide']" in refused(
        tmp_path / "store"
    )
    (tmp_path / "none.zarr").mkdir()
    refused(tmp_path / "none.zarr")


def test_a_folder_with_files_of_several_kinds(tmp_path):
    for number in (10, 9):
        np.savez(tmp_path / f"{number}.npz", LOGITS[:number])
    assert [file.path.name for file in logits_files([tmp_path])] == ["9.npz", "10.npz"]
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    assert "the folder must have files of one kind, got 10.npz and labels.csv" in refused(tmp_path)
    # Beside .npy and .safetensors, other files are something else.
    np.save(tmp_path / "1.npy", LOGITS)
    assert np.array_equal(read(tmp_path), LOGITS)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".safetensors"])
def test_blocks_of_an_ensemble(tmp_path, suffix):
    passes = np.random.default_rng(1).normal(size=(3, 11, 4)).astype(np.float32)
    path = tmp_path / f"x{suffix}"

    def write(array):
        array = np.ascontiguousarray(array)
        if suffix == ".npy":
            np.save(path, array)
        elif suffix == ".npz":
            np.savez(path, array)
        elif suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file({"x": array}, path)
        else:
            skip_without("h5py")
            import h5py

            with h5py.File(path, "w") as file:
                file["x"] = array

    for axis in (0, 1):
        write(passes if axis == 0 else passes.swapaxes(0, 1))
        (file,) = logits_files([path], members=axis)
        assert (file.rows, file.classes, file.members) == (11, 4, 3)
        blocks = list(file.blocks(200))
        assert [block.shape for block in blocks] == [(3, 4, 4), (3, 4, 4), (3, 3, 4)]
        assert np.array_equal(torch.cat(blocks, 1), passes)
        message = refused(path)
        assert "of an ensemble say which axis has its members (--members 0 or 1)" in message
    write(passes[0])
    assert "must have the shape (members, rows, classes), got (11, 4)" in refused(path, members=0)
    with pytest.raises(ValueError, match="members must be 0 or 1, got 2"):
        logits_files([path], members=2)
