"""Pools that are smaller, unbalanced or redundant."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_image

from prunefuse.data import load
from prunefuse.errors import ConfigError


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:20], test_labels=labels[:20])
    return f"arrays:{path}"


@pytest.fixture
def name(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (400, 28, 28), np.uint8)
    return write(tmp_path / "a.npz", images, np.repeat(np.arange(4), 100))


def test_images_in_memory_are_averaged_to_a_divisor_of_their_side(name: str) -> None:
    whole, small = load(name), load(name, image_size=14)
    assert small.input_shape == (1, 14, 14)
    pixels = whole.pool.images[:, 0].double().reshape(400, 14, 2, 14, 2).mean((2, 4))
    assert small.pool.images.dtype == torch.uint8
    assert (small.pool.images[:, 0].double() - pixels).abs().max() <= 0.5
    assert small.test[0][0].shape == (1, 14, 14)
    assert load(name, image_size=28).pool.images.equal(whole.pool.images)
    for wrong in (13, 56):
        with pytest.raises(ValueError, match=f"image_size must be a divisor of 28, .* got {wrong}"):
            load(name, image_size=wrong)


def test_digits_are_averaged_without_rounding() -> None:
    small = load("digits", image_size=4)
    assert small.pool.images.dtype == torch.float32
    whole = load("digits").pool.images
    assert torch.equal(small.pool.images[3, 0, 1, 2], whole[3, 0, 2:4, 4:6].mean())


def test_a_long_tail_has_the_factor_that_is_asked_for(name: str) -> None:
    data = load(name, long_tail=8)
    assert torch.bincount(data.pool.labels).tolist() == [100, 50, 25, 12]  # 100, 50, 25, 12.5
    assert len(data.train) == len(data.pool) == len(data.ids)
    whole = load(name)
    for place in (0, 120, 186):
        assert torch.equal(data.pool[place][0], whole.pool[int(data.ids[place])][0])
    assert len(data.test) == 20
    assert load(name, long_tail=8).ids == data.ids != load(name, long_tail=8, seed=1).ids


def test_duplicates_are_copies_of_as_few_samples_as_asked_for(name: str) -> None:
    data = load(name, duplicates=0.9)
    assert len(data.pool) == 400
    different, counts = data.pool.images.flatten(1).unique(dim=0, return_counts=True)
    assert len(different) == 40
    assert set(counts.tolist()) == {10}
    assert len(set(data.ids)) == 400


@pytest.mark.parametrize("option", [{"long_tail": 2.0}, {"duplicates": 0.5}])
def test_only_images_in_memory_are_altered(tmp_path: Path, option: dict[str, float]) -> None:
    for part in ("train", "test"):
        for kind in ("a", "b"):
            write_image(tmp_path / part / kind / "1.png")
    [name] = option
    with pytest.raises(ConfigError, match=f"{name} must be left out with folder:"):
        load(f"folder:{tmp_path}", **option)


@pytest.mark.parametrize("option", [{"long_tail": 2.0}, {"duplicates": 0.5}])
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_only_samples_of_one_class_each_are_altered(
    tmp_path: Path, option: dict[str, float], task: str
) -> None:
    labels = np.eye(3)[np.arange(30) % 3] if task == "multi-label" else np.arange(30) / 2
    np.savez(tmp_path / "x.npz", images=np.zeros((30, 1, 4, 4), np.uint8), labels=labels)
    assert len(load(f"arrays:{tmp_path / 'x.npz'}", task=task).pool)
    [name] = option
    with pytest.raises(ConfigError, match=f"{name} must be left out with .*not one class each"):
        load(f"arrays:{tmp_path / 'x.npz'}", task=task, **option)


@pytest.mark.parametrize(
    ("option", "value"),
    [("long_tail", 0.5), ("long_tail", float("nan")), ("duplicates", 1.0), ("duplicates", -0.1)],
)
def test_values_out_of_range(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be"):
        load("digits", **{option: value})
