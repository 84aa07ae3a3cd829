"""Folders of images as people have them: what is read, how, and what is said of the rest."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunefuse.data import ImageFiles, OwnLabels, load
from prunefuse.data._images import _GRAY, find_broken, read_image
from prunefuse.errors import DataWarning

MEAN, STD = _GRAY


def picture(value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, (value,) * 3 if mode == "RGB" else value)


def write(root: Path, *parts: str, count: int = 2, name: str = "{}.png", image: Any = None) -> None:
    """Images in folders such as train/a."""
    for part in parts:
        (root / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            made = picture() if image is None else image
            made.save(root / part / name.format(i))


def two_by_two(root: Path, **options: Any) -> None:
    write(root, "train/a", "train/b", "test/a", "test/b", **options)


def opened(root: Path, **options: Any) -> Any:
    return load(f"folder:{root}", **options)


# --- how an image is read


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_keep_their_gray_levels(tmp_path: Path, ending: str) -> None:
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    two_by_two(tmp_path, name=f"{{}}.{ending}", image=Image.fromarray(values))
    data = opened(tmp_path)
    assert data.input_shape == (1, 8, 8)
    found = data.pool[0][0] * STD[0] + MEAN[0]
    torch.testing.assert_close(found[0], torch.from_numpy(values / 65535).float())
    # The same in three channels, for networks that take these.
    three = opened(tmp_path, channels=3).pool[0][0]
    assert three.shape == (3, 8, 8)
    torch.testing.assert_close(three[1] * 0.224 + 0.456, found[0])


def test_floating_images_are_parts_of_one_and_nothing_else(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    two_by_two(tmp_path, name="{}.tif", image=Image.fromarray(values))
    found = opened(tmp_path).pool[0][0] * STD[0] + MEAN[0]
    torch.testing.assert_close(found[0], torch.from_numpy(values))
    for wrong in (values * 255, np.full((8, 8), np.nan, np.float32)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "train" / "a" / "0.tif")
        with pytest.raises(OSError, match=r"a/0.tif cannot be read as an image: floating values must be in"):
            _ = opened(tmp_path).pool[0]


def test_thirty_two_bits_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(tmp_path / "0.tif")
    with pytest.raises(OSError, match=r"0.tif cannot be read as an image: whole numbers of 32 bits.*mode I"):
        read_image(str(tmp_path / "0.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    file = tmp_path / "0.png"
    Image.fromarray(stored).save(file, exif=exif)
    turned = {  # what a viewer shows
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }
    assert np.array_equal(np.asarray(read_image(str(file))), turned[orientation])


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_gray_stays_gray_if_all_are(tmp_path: Path, mode: str) -> None:
    two_by_two(tmp_path, image=picture(255, mode="L").convert(mode))
    data = opened(tmp_path)
    assert data.input_shape == (1, 8, 8)
    for part in (data.train, data.pool, data.test):
        assert part[0][0].shape == (1, 8, 8)
    assert data.pool[0][0].flatten().tolist() == pytest.approx([(1 - MEAN[0]) / STD[0]] * 64)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_one_image_in_color_makes_all_of_three_channels(tmp_path: Path, mode: str, part: str) -> None:
    two_by_two(tmp_path, image=picture(mode="L"), count=90)
    picture().convert(mode).save(tmp_path / part / "b" / "77.png")
    assert opened(tmp_path).input_shape == (3, 8, 8)


@pytest.mark.parametrize(("name", "kind"), [("{}.gif", "GIF"), ("{}.jfif", "JPEG"), ("{}.JPG", "JPEG")])
def test_what_pillow_reads_is_read(tmp_path: Path, name: str, kind: str) -> None:
    del kind
    two_by_two(tmp_path, name=name)
    assert len(opened(tmp_path).pool) == 4


# --- the size


def test_the_size_is_that_of_most_images_and_is_told(tmp_path: Path) -> None:
    two_by_two(tmp_path, count=20, image=picture(size=(64, 80)))
    picture(size=(1, 1)).save(tmp_path / "train" / "a" / "00.png")
    data = opened(tmp_path)
    assert data.input_shape == (3, 64, 64)
    assert "images are read as 3x64x64, from the shorter sides of 41 of them, 1 to 64" in data.notes[0]
    assert "--image-size" in data.notes[0]
    assert opened(tmp_path, image_size=24).input_shape == (3, 24, 24)
    assert opened(tmp_path, image_size=24).pool[0][0].shape == (3, 24, 24)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        opened(tmp_path, image_size=0)


def test_sizes_beyond_224_are_brought_to_it(tmp_path: Path) -> None:
    two_by_two(tmp_path, image=picture(size=(300, 260)))
    assert opened(tmp_path).input_shape == (3, 224, 224)


# --- augmentation


@pytest.mark.parametrize(
    ("flip", "crop", "views"), [(False, 0, 1), (True, 0, 2), (False, 1, 9), (None, 0, 2)]
)
def test_augmentation_can_be_chosen(tmp_path: Path, flip: bool | None, crop: int, views: int) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3 + 60
    two_by_two(tmp_path, image=Image.fromarray(values))
    data = opened(tmp_path, flip=flip, crop=crop)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seen = {tuple(data.train[0][0].flatten().tolist()) for _ in range(100)}
    assert len(seen) == views
    assert torch.equal(data.pool[0][0], data.pool[0][0])


def test_augmentation_of_images_in_memory_can_be_chosen() -> None:
    augment = load("digits", flip=True, crop=0).train.augment
    assert (augment.pad, augment.flip) == (0, True)
    usual = load("digits").train.augment
    assert (usual.pad, usual.flip) == (1, False)
    with pytest.raises(ValueError, match=r"image_size must be a divisor of 8, .* got 9"):
        load("digits", image_size=9)


# --- what a folder holds

HIDDEN = (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir")


@pytest.mark.parametrize("filled", [True, False])
def test_hidden_folders_and_files_are_nothing(tmp_path: Path, filled: bool) -> None:
    two_by_two(tmp_path)
    for part in ("", "train", "test", "train/a", "test/b"):
        for name in HIDDEN:
            (tmp_path / part / name).mkdir()
            if filled:
                picture().save(tmp_path / part / name / "0.png")
        for name in (".DS_Store", "._0.png", "Thumbs.db"):
            (tmp_path / part / name).write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = opened(tmp_path)
    assert (data.pool.classes, len(data.pool), len(data.test)) == (["a", "b"], 4, 4)


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path) -> None:
    two_by_two(tmp_path)
    for name in ("notes.txt", "more.TXT", "scan.dcm", "LICENSE"):
        (tmp_path / "train" / "a" / name).write_text("no image")
    with pytest.warns(DataWarning, match=r"left out.*: 2 of \.txt, 1 of no ending, 1 of \.dcm$"):
        data = opened(tmp_path)
    assert len(data.pool) == 4


@pytest.mark.parametrize("parts", [("train/images", "test/images"), ("images",)])
def test_one_class_is_an_error_that_explains_the_layout(tmp_path: Path, parts: tuple[str, ...]) -> None:
    write(tmp_path, *parts)
    with pytest.raises(ValueError, match=r"two classes or more, got only 'images' .*PATH/train/CLASS/IMAGE"):
        opened(tmp_path)


def test_a_folder_too_many_is_pointed_at(tmp_path: Path) -> None:
    two_by_two(tmp_path / "export")
    with pytest.raises(ValueError, match=r"got only 'export'.*are test, train in .*export the classes\?"):
        opened(tmp_path)


def test_a_class_may_lack_test_images(tmp_path: Path) -> None:
    two_by_two(tmp_path)
    write(tmp_path, "train/rare")
    with pytest.raises(
        ValueError, match=r"got rare in one only; an empty folder in the test part, or classes.txt"
    ):
        opened(tmp_path)
    (tmp_path / "test" / "rare").mkdir()
    data = opened(tmp_path)
    assert (data.num_classes, set(data.test.targets)) == (3, {0, 1})
    (tmp_path / "test" / "rare").rmdir()
    (tmp_path / "classes.txt").write_text("rare\na\nb\n")
    listed = opened(tmp_path)
    assert listed.pool.classes == ["rare", "a", "b"]
    assert set(listed.test.targets) == {1, 2}


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
def test_the_test_part_by_its_usual_names(tmp_path: Path, name: str) -> None:
    write(tmp_path, "train/a", "train/b", f"{name}/a", f"{name}/b")
    assert len(opened(tmp_path).test) == 4


def test_a_fifth_of_each_class_is_held_out_where_there_is_no_test_part(tmp_path: Path) -> None:
    write(tmp_path, "a", count=40)
    write(tmp_path, "b", count=10)
    write(tmp_path, "c", count=2)
    data = opened(tmp_path)
    assert np.bincount(data.test.targets).tolist() == [8, 2, 1]
    train, test = ([path for path, _ in part.samples] for part in (data.pool, data.test))
    assert sorted(train + test) == sorted(str(file) for file in tmp_path.rglob("*.png"))
    assert "11 of 52 images are the test part, 0.2 of each class by seed 0" in " ".join(data.notes)
    assert opened(tmp_path).test.samples == data.test.samples
    assert opened(tmp_path, seed=1).test.samples != data.test.samples
    assert np.bincount(opened(tmp_path, test_fraction=0.5).test.targets).tolist() == [20, 5, 1]
    with pytest.raises(ValueError, match=r"test_fraction must be in \(0, 1\), got 1"):
        opened(tmp_path, test_fraction=1)


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    write(tmp_path, "bus", "train", count=5)
    assert opened(tmp_path).pool.classes == ["bus", "train"]


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    two_by_two(tmp_path / "photos")
    assert len(load("folder:~/photos").pool) == 4
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/cifar"):
        load("cifar10", root="~/cifar")


def test_names_in_no_encoding_are_read(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    two_by_two(root)
    data = opened(root)
    assert data.pool[3][0].shape == (3, 8, 8)
    assert OwnLabels(data.pool)([0, 3]) == [0, 1]


def test_labels_of_a_folder_need_no_decoding_of_all(tmp_path: Path) -> None:
    two_by_two(tmp_path, count=30)
    data = opened(tmp_path)
    for path, _ in data.pool.samples[1::9]:
        Path(path).write_bytes(b"")
    assert OwnLabels(data.pool)([0, 2, 30, 32]) == [0, 0, 1, 1]


# --- broken files


def cut(file: Path) -> Path:
    """A file of which the end is missing."""
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    return file


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_broken_files_are_named_or_left_out(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    two_by_two(tmp_path, name=f"{{}}.{ending}", count=4, image=Image.fromarray(noise))
    broken = cut(tmp_path / "train" / "b" / f"2.{ending}")
    empty = tmp_path / "test" / "a" / f"3.{ending}"
    empty.write_bytes(b"")
    assert set(find_broken([str(broken), str(empty), str(empty.with_stem("0"))])) == {str(broken), str(empty)}
    with pytest.raises(OSError, match=r"2 files cannot be read: .*; skip_broken \(--skip-broken\)") as told:
        opened(tmp_path, verify=True)
    assert str(broken) in str(told.value)
    assert str(empty) in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(OSError, match=f"^{broken} cannot be read as an image: ") as alone:
        _ = opened(tmp_path).pool[6]
    assert "\n" not in str(alone.value)
    with pytest.warns(DataWarning, match="left out, as they cannot be read"):
        data = opened(tmp_path, skip_broken=True)
    assert (len(data.pool), len(data.train), len(data.test)) == (7, 7, 7)
    assert any(str(broken) in note and str(empty) in note for note in data.notes)


def test_a_class_of_broken_files_alone_is_an_error(tmp_path: Path) -> None:
    two_by_two(tmp_path)
    for file in (tmp_path / "train" / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="there is no training image of a"):
        opened(tmp_path, skip_broken=True)


def test_image_files_are_a_data_set_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "a")
    files = ImageFiles([(str(tmp_path / "a" / "0.png"), 1)], ["a", "b"])
    image, label = files[0]
    assert (image.size, image.mode, label) == ((8, 8), "RGB", 1)
