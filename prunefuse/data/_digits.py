"""Handwritten digits, bundled with scikit-learn: 1797 images of 1x8x8, ten classes."""

from __future__ import annotations

import torch

from prunefuse._extras import needed_for
from prunefuse.data._tensors import Augment, TensorImages
from prunefuse.data._types import Data

TEST_SIZE = 360


def digits() -> Data:
    """1437 training and 360 test images, stratified by class; the split is fixed.

    Pixels are scaled from 0..16 to [0, 1]. Training images are shifted by up to one pixel.
    """
    with needed_for("the data set digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).float().div_(16).unsqueeze(1)
    labels = torch.from_numpy(bundle.target).long()
    train, test = (
        torch.tensor(part)
        for part in train_test_split(range(len(labels)), test_size=TEST_SIZE, random_state=0, stratify=labels)
    )
    samples = TensorImages(images[train], labels[train], augment=Augment(pad=1, flip=False))
    held, ids = TensorImages(images[test], labels[test]), tuple(map(str, train.tolist()))
    classes = tuple(map(str, range(10)))
    return Data(samples, samples.plain(), held, 10, (1, 8, 8), "digits", classes=classes, ids=ids)
