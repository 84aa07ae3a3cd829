"""Small image files in the layouts of Places-365 and ImageNet."""

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import Places365


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (300, 260)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write_places365(root: Path, monkeypatch: pytest.MonkeyPatch, size: str = "256", samples: int = 4) -> None:
    """Lists with our own checksums, and their images; the last quarter is of the second class."""

    def write(name: str, lines: list[str]) -> tuple[str, str]:
        root.mkdir(exist_ok=True)
        text = "\n".join(lines).encode()
        (root / name).write_bytes(text)
        return name, hashlib.md5(text).hexdigest()

    few = samples // 4
    train = [f"/a/airfield/{i:08d}.jpg 0" for i in range(samples - few)]
    train += [f"/b/bar/{i:08d}.jpg 1" for i in range(few)]
    val = ["Places365_val_00000001.jpg 1", "Places365_val_00000002.jpg 0"]
    categories = write("categories_places365.txt", ["/a/airfield 0", "/b/bar 1"])
    monkeypatch.setattr(Places365, "_CATEGORIES_META", categories)
    lists = {
        "train-standard": write("places365_train_standard.txt", train),
        "val": write("places365_val.txt", val),
    }
    monkeypatch.setattr(Places365, "_FILE_LIST_META", lists)
    for folder, lines in ((f"data_{size}_standard", train), (f"val_{size}", val)):
        for line in lines:
            name, label = line.split()
            write_image(root / folder / name.lstrip("/"), 255 * int(label))


def write_imagenet(root: Path) -> None:
    for wnid, value in (("n01440764", 0), ("n01443537", 255)):
        for i in range(3):
            write_image(root / "train" / wnid / f"{wnid}_{i}.JPEG", value)
        write_image(root / "val" / wnid / f"ILSVRC2012_val_0000000{value % 9}.JPEG", value)
    classes = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}
    torch.save((classes, ["n01440764", "n01443537"]), root / "meta.bin")
