"""Every family of torchvision's classifiers, cut at one half: the oracle, a training step, and fused back.

The members are the smallest of their families, some with fewer blocks of each kind; `make coverage` runs all 80.
"""

from __future__ import annotations

import copy

import pytest
import torch
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision import models
from torchvision.models import convnext, maxvit, swin_transformer

from prunefuse.fusion import fuse_
from prunefuse.pruning import plan_pruning

CLASSES = 10


def named(name: str, **options) -> nn.Module:
    return models.get_model(name, weights=None, num_classes=CLASSES, **options)


def swin(block, merging) -> nn.Module:
    return models.SwinTransformer(
        *([4, 4], 24, [2, 2], [2, 4], [4, 4]), num_classes=CLASSES, block=block, downsample_layer=merging
    )


def narrow(name: str) -> nn.Module:
    """Hidden layers of the classifier that fit a test."""
    with torch.device("meta"):
        model = named(name)
        first = next(m for m in model.classifier if isinstance(m, nn.Linear)).in_features
        model.classifier = nn.Sequential(
            *(
                nn.Linear(first, 48),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(48, 32),
                nn.ReLU(),
                nn.Linear(32, CLASSES),
            )
        )
    return model.to_empty(device="cpu")


FAMILIES = {
    "alexnet": (lambda: narrow("alexnet"), 64),
    "convnext": (
        lambda: models.ConvNeXt(
            [convnext.CNBlockConfig(*c, 2) for c in ((16, 24), (24, None))], num_classes=CLASSES
        ),
        32,
    ),
    "densenet": (lambda: models.DenseNet(12, (3, 2, 2), 16, num_classes=CLASSES), 32),
    "efficientnet": (lambda: named("efficientnet_b0"), 32),
    "efficientnet_v2": (lambda: named("efficientnet_v2_s"), 32),
    "googlenet": (lambda: named("googlenet", init_weights=False), 64),
    "inception": (lambda: named("inception_v3", init_weights=False, aux_logits=False), 80),
    "maxvit": (
        lambda: maxvit.MaxVit((64, 64), 16, 4, [16, 32], [2, 1], 8, 0.0, num_classes=CLASSES),
        64,
    ),
    "mnasnet": (lambda: named("mnasnet0_5"), 32),
    "mobilenet_v2": (lambda: named("mobilenet_v2"), 32),
    "mobilenet_v3": (lambda: named("mobilenet_v3_small"), 32),
    "regnet_x": (lambda: named("regnet_x_400mf"), 32),
    "regnet_y": (lambda: named("regnet_y_400mf"), 32),
    "resnet": (lambda: named("resnet18"), 32),
    "resnext": (lambda: named("resnext50_32x4d"), 32),
    "shufflenet": (lambda: named("shufflenet_v2_x0_5"), 32),
    "squeezenet": (lambda: named("squeezenet1_1"), 32),
    "swin": (lambda: swin(swin_transformer.SwinTransformerBlock, swin_transformer.PatchMerging), 32),
    "swin_v2": (lambda: swin(swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2), 32),
    "vgg": (lambda: narrow("vgg11_bn"), 32),
    "vit": (lambda: models.VisionTransformer(32, 8, 2, 4, 24, 40, num_classes=CLASSES), 32),
    "wide_resnet": (
        lambda: models.resnet.ResNet(models.resnet.Bottleneck, [1] * 4, CLASSES, width_per_group=128),
        32,
    ),
}
STAYS_MORE = {"shufflenet": 0.5, "mobilenet_v3": 0.45, "mobilenet_v2": 0.4, "vit": 0.4}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_pruned_without_repair(family):
    factory, size = FAMILIES[family]
    dense = scramble_(factory()).double()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    plan = plan_pruning(dense, images[:1])
    assert not [note for note in plan.notes if "no rule" in note or "its forward" in note]
    assert plan.params[1] / plan.params[0] < STAYS_MORE.get(family, 0.35)
    small = assert_pruning_is_masking(dense, plan, images)
    outputs = [x for x in tree_leaves(small.train()(images)) if isinstance(x, torch.Tensor)]
    assert {x.shape for x in outputs} == {(2, CLASSES)}
    sum(x.square().mean() for x in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    back = plan.extract(fuse_(copy.deepcopy(dense), small, plan)).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())
