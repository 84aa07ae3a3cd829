"""Families of torchvision, timm and transformers, cut at one half: the oracle, a training step, and fused back.

The members are the smallest of their families, some with fewer blocks of each kind; `make coverage` runs all. Those
of timm and transformers are skipped where the package is not installed.
"""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from peer_packages import skip_without
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


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()


def assert_pruned_without_repair(
    dense: nn.Module, inputs: torch.Tensor, stays: float, tolerance: float = 1e-9
) -> nn.Module:
    """Returns the small model; ``stays``: the largest fraction of the parameters that may."""
    plan = plan_pruning(dense, inputs[:1])
    assert not [note for note in plan.notes if "no rule" in note or "its forward" in note]
    assert plan.params[1] / plan.params[0] < stays
    small = assert_pruning_is_masking(dense, plan, inputs, tolerance=tolerance)
    outputs = [x for x in tree_leaves(small.train()(inputs)) if isinstance(x, torch.Tensor)]
    sum(x.square().mean() for x in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    back = plan.extract(fuse_(copy.deepcopy(dense), small, plan)).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())
    assert not plan.not_preserved
    kept = fuse_(copy.deepcopy(dense), scramble_(small, seed=1), plan, "preserve")
    with torch.no_grad():
        for one, other in zip(
            tree_leaves(kept.eval()(inputs)), tree_leaves(small.eval()(inputs)), strict=True
        ):
            assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())
    return small


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_pruned_without_repair(family):
    factory, size = FAMILIES[family]
    inputs = images(size)
    dense = scramble_(factory()).double()
    small = assert_pruned_without_repair(dense, inputs, STAYS_MORE.get(family, 0.35))
    assert {x.shape for x in tree_leaves(small(inputs)) if isinstance(x, torch.Tensor)} == {(2, CLASSES)}


TIMM = {
    "focalnet": ("focalnet.FocalNet", 64, {"depths": (1, 1), "embed_dim": 24}),  # a list of unequal parts
    "inception_next": ("inception_next.MetaNeXt", 64, {"depths": (1, 1), "dims": (24, 48)}),
    "poolformer": ("metaformer.MetaFormer", 64, {"depths": (1, 1), "dims": (16, 32)}),
    "pvt": (
        "pvt_v2.PyramidVisionTransformerV2",
        64,
        {"depths": (1,) * 4, "embed_dims": (8, 16, 32, 64), "num_heads": (2, 2, 4, 8)},
    ),
    "rexnet": (
        "rexnet.RexNet",
        32,
        {"width_mult": 0.5, "depth_mult": 0.5},
    ),  # parts of channels at places that the module holds
    "sequencer": ("sequencer.Sequencer2d", 56, {"layers": (1,) * 4, "embed_dims": (16, 32, 32, 32)}),  # LSTM
    "xcit": ("xcit.Xcit", 32, {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4}),
}


@pytest.mark.parametrize("family", TIMM)
def test_timm(family):
    skip_without("timm")
    name, size, options = TIMM[family]
    module, _, function = name.partition(".")
    module = importlib.import_module(f"timm.models.{module}")
    if family == "poolformer":
        options = {**options, "token_mixers": module.Pooling, "use_mlp_head": False}
    dense = getattr(module, function)(num_classes=CLASSES, **options)
    assert_pruned_without_repair(scramble_(dense).double(), images(size), 0.45)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        if self.model.config.is_encoder_decoder:
            return self.model(input_ids=x, decoder_input_ids=x, use_cache=False).logits
        return self.model(x).logits


WIDE = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "hidden_size": 32}
GROUPED = {**WIDE, "num_attention_heads": 8, "num_key_value_heads": 4}
TRANSFORMERS = {
    "BertForSequenceClassification": WIDE,
    "DistilBertForSequenceClassification": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "ViTForImageClassification": {**WIDE, "image_size": 16, "patch_size": 4},
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "T5ForConditionalGeneration": {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "LlamaForCausalLM": GROUPED,
    "Qwen2ForCausalLM": GROUPED,
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    skip_without("transformers")
    transformers = importlib.import_module("transformers")
    config = name.partition("For")[0].removesuffix("LMHeadModel") + "Config"
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "vocab_size": 24, "use_cache": False}
    if name.startswith(("Bert", "GPT2", "Dist", "Llama", "Qwen2")):
        tokens["max_position_embeddings"] = 12
    settings = getattr(transformers, config)(**TRANSFORMERS[name], **tokens)
    dense = scramble_(Logits(getattr(transformers, name)(settings))).double()
    inputs = images(16) if name.startswith("ViT") else torch.arange(1, 21).view(2, 10)
    small = assert_pruned_without_repair(dense, inputs, 0.4, tolerance=1e-5)  # float32 is in their code
    if "num_key_value_heads" in TRANSFORMERS[name]:  # whole groups of query heads leave with their key
        attention = small.model.model.layers[0].self_attn
        widths = [len(p.weight) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert widths == [16, 8, 8]
