"""Places-365 and ImageNet, read by torchvision from small files in the real layout."""

from pathlib import Path

import pytest
import torch
from image_files import write_imagenet, write_places365

from prunefuse import data
from prunefuse.data._labels import OwnLabels


def check(loaded: data.Data, labels: list[int], test_labels: list[int]) -> None:
    assert (loaded.num_classes, loaded.input_shape) == (2, (3, 224, 224))
    assert OwnLabels(loaded.pool)(range(len(labels))) == labels
    assert [label for _, label in loaded.train] == labels
    assert [label for _, label in loaded.test] == test_labels
    for part in (loaded.train, loaded.pool, loaded.test):
        assert {tuple(image.shape) for image, _ in part} == {(3, 224, 224)}
    image = loaded.pool[labels.index(1)][0]
    assert image[:, 0, 0].tolist() == pytest.approx([(1 - m) / s for m, s in STATISTICS], abs=0.02)
    assert torch.equal(image, loaded.pool[labels.index(1)][0])


STATISTICS = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))


@pytest.mark.parametrize("size", ["256", "large"])
def test_places365(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    write_places365(tmp_path, monkeypatch, size)
    loaded = data.load("places365", root=tmp_path)
    assert loaded.name == "places365"
    check(loaded, [0, 0, 0, 1], [1, 0])


def test_imagenet(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    loaded = data.load("imagenet", root=tmp_path)
    assert loaded.name == "imagenet"
    check(loaded, [0, 0, 0, 1, 1, 1], [0, 1])


@pytest.mark.parametrize(("name", "expected"), [("places365", "data_256_standard"), ("imagenet", "meta.bin")])
def test_what_is_missing_is_said_with_the_layout(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*--root.*{expected}"):
        data.load(name, root=tmp_path)


def test_missing_places365_images_are_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_places365(tmp_path, monkeypatch)
    (tmp_path / "val_256" / "Places365_val_00000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="Places365_val_00000001"):
        data.load("places365", root=tmp_path)


def test_imagenet_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="download must be False for ImageNet"):
        data.load("imagenet", root=tmp_path, download=True)
