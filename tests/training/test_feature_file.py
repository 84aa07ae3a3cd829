"""Features on disk: the numbers of those in memory, however often writing them was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunefuse import features, models
from prunefuse.errors import DamagedFileError
from prunefuse.extrapolation import KNN
from prunefuse.training import Recipe, read_features
from prunefuse.training import _feature_file as feature_file

IMAGES = torch.randn(45, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Stop(Exception):
    """Raised in the middle."""


class Stops:
    """A progress callback that raises at a number of samples."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))
        if done == self.at:
            raise Stop


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = models.build("resnet8", 10, 1)
    net.train()
    net(IMAGES)  # running statistics that are not the first
    return net


def begin(model: nn.Module, out: Path, at: int = 20, **options: Any) -> None:
    """Leave a part of a file."""
    with pytest.raises(Stop):
        features(model, IMAGES, batch_size=10, on_progress=Stops(at), out=out, **options)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_numbers_of_those_in_memory(model: nn.Module, tmp_path: Path) -> None:
    order = torch.randperm(45, generator=torch.Generator().manual_seed(1))[:33]
    for options in ({}, {"indices": order}, {"module": "stage2"}, {"recipe": Recipe(autocast=True)}):
        out = tmp_path / "deep" / f"{len(list(tmp_path.rglob('*')))}.npy"
        expected = features(model, IMAGES, batch_size=10, **options)
        found = features(model, IMAGES, batch_size=10, out=str(out), **options)
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, expected.numpy())
        loaded = np.load(out)
        assert loaded.dtype == np.float32
        assert loaded.flags.c_contiguous
        np.testing.assert_array_equal(loaded, expected.numpy())
    assert all(path.suffix == ".npy" for path in (tmp_path / "deep").iterdir())


@pytest.mark.parametrize("at", [10, 30, 45])
def test_it_goes_on_where_it_was_stopped(model: nn.Module, tmp_path: Path, at: int) -> None:
    out = tmp_path / "features.npy"
    modes = [m.training for m in model.modules()]
    begin(model, out, at)
    assert names(tmp_path) == {"features.npy.partial", "features.npy.partial.json"}
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())
    told = Stops(-1)
    found = features(model, IMAGES, batch_size=10, on_progress=told, out=out)
    assert told.seen == [(n, 45) for n in (10, 20, 30, 40, 45) if n > at]
    np.testing.assert_array_equal(found, features(model, IMAGES, batch_size=10).numpy())
    assert names(tmp_path) == {"features.npy"}
    assert [m.training for m in model.modules()] == modes


def test_what_follows_the_last_record_is_done_again(model: nn.Module, tmp_path: Path) -> None:
    """As after a kill in the middle of a write."""
    out = tmp_path / "features.npy"
    begin(model, out)
    with (tmp_path / "features.npy.partial").open("ab") as file:
        file.write(b"half a row, and more" * 1000)
    features(model, IMAGES, batch_size=10, out=out)
    features(model, IMAGES, batch_size=10, out=tmp_path / "at once.npy")
    assert out.read_bytes() == (tmp_path / "at once.npy").read_bytes()


def test_batches_are_whole_also_where_a_part_was_cut(model: nn.Module, tmp_path: Path) -> None:
    out, told = tmp_path / "features.npy", Stops(-1)
    begin(model, out, 30)
    os.truncate(tmp_path / "features.npy.partial", 128 + 23 * 64 * 4)
    features(model, IMAGES, batch_size=10, out=out, on_progress=told)
    assert told.seen[0] == (30, 45)
    features(model, IMAGES, batch_size=10, out=tmp_path / "at once.npy")
    assert out.read_bytes() == (tmp_path / "at once.npy").read_bytes()


@pytest.mark.parametrize("row", [3, 14, 29])
def test_rows_that_were_changed_meanwhile_are_not_gone_on_from(
    model: nn.Module, tmp_path: Path, row: int
) -> None:
    out, partial = tmp_path / "features.npy", tmp_path / "features.npy.partial"
    begin(model, out, 30)
    content = bytearray(partial.read_bytes())
    content[128 + row * 64 * 4 + 7] ^= 1
    partial.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"features\.npy\.partial was changed or is damaged"):
        features(model, IMAGES, batch_size=10, out=out)
    assert partial.read_bytes() == content


def test_a_killed_process_keeps_what_it_finished(tmp_path: Path) -> None:
    code = (
        "import os, sys, torch\n"
        "from prunefuse import features, models\n"
        "from prunefuse.training import _feature_file as feature_file\n"
        "feature_file.RECORD_SECONDS = 0\n"
        "torch.manual_seed(0)\n"
        "net = models.build('resnet8', 10, 1)\n"
        "images = torch.randn(45, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "def told(done, total):\n"
        "    print(done)\n"
        "    if done == int(sys.argv[2]): sys.stdout.flush(); os.kill(os.getpid(), 9)\n"
        "found = features(net, images, batch_size=10, out=sys.argv[1], on_progress=told)\n"
        "assert (found == features(net, images, batch_size=10).numpy()).all()\n"
    )
    out = tmp_path / "features.npy"
    for at, expected in (("30", "10 20 30"), ("0", "40 45")):
        command = [sys.executable, "-c", code, str(out), at]
        result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert result.returncode == (0 if at == "0" else -9), result.stderr
        assert result.stdout.split() == expected.split()
    assert names(tmp_path) == {"features.npy"}


def test_a_finished_file_is_not_overwritten(model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "features.npy"
    out.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"features\.npy exists"):
        features(model, IMAGES, out=out)
    assert out.read_bytes() == b"precious"
    assert names(tmp_path) == {"features.npy"}


def other_weights(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6


def other_statistics(model: nn.Module) -> None:
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(1e-6)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (other_weights, {}, "begun with another model;"),
        (other_statistics, {}, "begun with another model;"),
        (None, {"indices": list(range(44, -1, -1))}, "begun with another samples;"),
        (None, {"indices": range(40)}, "begun with another samples;"),
        (None, {"batch_size": 5}, "begun with another batch_size;"),
        (None, {"module": "stage2"}, "begun with another module;"),
        (None, {"recipe": Recipe(autocast=True)}, "begun with another autocast;"),
        (None, {"data": IMAGES + 1}, "begun with other data"),
        (None, {"data": IMAGES.flip(0)}, "begun with other data"),
        (None, {"data": torch.cat((IMAGES, IMAGES))}, "begun with another samples;"),
    ],
)
def test_a_part_of_something_else_is_not_gone_on_with(
    model: nn.Module, tmp_path: Path, change: Any, options: dict[str, Any], message: str
) -> None:
    out = tmp_path / "features.npy"
    begin(model, out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if change is not None:
        change(model)
    with pytest.raises(ValueError, match=rf"^out must be .*features\.npy\.partial, {message}"):
        features(model, **{"data": IMAGES, "batch_size": 10, "out": out, **options})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for path in tmp_path.iterdir():
        path.unlink()
    features(model, **{"data": IMAGES, "batch_size": 10, "out": out, **options})


def test_two_processes_do_not_write_one_file(model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "features.npy"

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(BlockingIOError, match="another process"):
            features(model, IMAGES, batch_size=10, out=out)

    found = features(model, IMAGES, batch_size=10, out=out, on_progress=meanwhile)
    np.testing.assert_array_equal(found, features(model, IMAGES, batch_size=10).numpy())


def test_failures_leave_the_model_and_no_file(model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "features.npy"
    with pytest.raises(ValueError, match="at least one sample"):
        features(model, IMAGES[:0], out=out)
    with pytest.raises(ValueError, match="must be a submodule"):
        features(model, IMAGES, module="nowhere", out=out)
    assert not names(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        features(model, IMAGES, out=blocked / "features.npy")
    assert model.training


def test_records_are_kept_now_and_then(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_file, "RECORD_SECONDS", 0.0)
    record = tmp_path / "features.npy.partial.json"
    rows: list[int] = []

    def told(done: int, total: int) -> None:
        rows.append(json.loads(record.read_text())["rows"])

    features(model, IMAGES, batch_size=10, on_progress=told, out=tmp_path / "features.npy")
    assert rows == [10, 20, 30, 40, 45]


def test_scores_are_extrapolated_from_the_file(model: nn.Module, tmp_path: Path) -> None:
    mapped = features(model, IMAGES, out=tmp_path / "features.npy")
    scores = np.where(np.arange(45) < 20, np.linspace(0, 1, 45), np.nan)
    expected = KNN(3).fit(np.array(mapped), scores).predict(np.array(mapped))
    np.testing.assert_array_equal(KNN(3).fit(mapped, scores).predict(mapped), expected)


class Rows(torch.utils.data.Dataset[Tensor]):
    """A data set that is not in memory."""

    def __len__(self) -> int:
        return 45

    def __getitem__(self, index: int) -> Tensor:
        return IMAGES[index]


def test_data_that_is_read_by_workers(model: nn.Module, tmp_path: Path) -> None:
    found = features(model, Rows(), batch_size=10, workers=1, out=tmp_path / "features.npy")
    np.testing.assert_array_equal(found, features(model, IMAGES, batch_size=10).numpy())


@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_features_of_a_file_are_its_numbers(tmp_path: Path, kind: str, order: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 3))
    rows[0, 0] = 6e4  # the greatest of these types differ
    np.save(tmp_path / "f.npy", np.array(rows, dtype=kind, order=order))
    found = read_features(tmp_path / "f.npy", 7)
    assert found.dtype == (torch.float64 if kind.endswith("8") else torch.float32)
    np.testing.assert_array_equal(found.numpy(), rows.astype(kind))
    found += 1  # the file stays as it is
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), rows.astype(kind))


def test_great_numbers_are_finite_though_their_sum_is_not(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.full((2, 3), 3e38, np.float32))
    assert read_features(str(tmp_path / "f.npy"), 2).isfinite().all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((6, 3)), r"shape \(7, d\), a row for each sample, got \(6, 3\)"),
        (np.ones(7), r"shape \(7, d\), .*got \(7,\)"),
        (np.ones((7, 3, 2)), r"shape \(7, d\), .*got \(7, 3, 2\)"),
        (np.ones((7, 0)), r"shape \(7, d\), .*got \(7, 0\)"),
        (np.ones((7, 3), np.int64), "float16, float32 or float64, got int64"),
        (np.ones((7, 3), bool), "float16, float32 or float64, got bool"),
        (np.ones((7, 3), np.complex64), "float16, float32 or float64, got complex64"),
        (np.ones((7, 3), np.longdouble), "float16, float32 or float64, got float128"),
        (np.array([[1.0, None]] * 7), r"be a \.npy file of numbers, got .*f\.npy: "),
        (np.where(np.arange(21).reshape(7, 3) > 13, np.nan, 1), "finite, got 3 of 7 rows .*the first of them row 4"),
        (np.where(np.arange(21).reshape(7, 3) == 5, -np.inf, 1), "finite, got 1 of 7 rows .*the first of them row 1"),
        (b"1,2,3\n", r"be a \.npy file of numbers, got .*f\.npy: "),
        (b"", r"be a \.npy file of numbers, got .*f\.npy: "),
    ],
)  # fmt: skip
def test_features_of_a_file_that_do_not_fit(tmp_path: Path, value: Any, message: str) -> None:
    if isinstance(value, bytes):
        (tmp_path / "f.npy").write_bytes(value)
    else:
        np.save(tmp_path / "f.npy", value)
    with pytest.raises(ValueError, match=f"features must .*{message}") as caught:
        read_features(tmp_path / "f.npy", 7)
    assert "\n" not in str(caught.value)


def test_a_file_of_features_that_is_torn_has_several_or_is_not_there(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones((7, 3)))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "f.npy").read_bytes()[:-8])
    np.savez(tmp_path / "f.npz", a=np.ones((7, 3)))
    with pytest.raises(ValueError, match=r"features must be a \.npy file of numbers, got .*torn"):
        read_features(tmp_path / "torn.npy", 7)
    with pytest.raises(ValueError, match=r"features must be a \.npy file, got several arrays"):
        read_features(tmp_path / "f.npz", 7)
    for name in ("none.npy", "."):
        with pytest.raises(OSError, match=r"No such file|Is a directory"):
            read_features(tmp_path / name, 7)
