"""The names that options may have, apart from what they stand for: so options can be listed without loading torch.

The tables of what they stand for are held to these lists by a test.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Stochastic: TypeAlias = Literal["none", "power", "softmax", "softrank"]
Diversity: TypeAlias = Literal["none", "k_center", "k_means"]
Complement: TypeAlias = Literal["keep", "reinit", "zero", "preserve"]

Start: TypeAlias = Literal["fresh", "continue", "shrink"]
STARTS: tuple[str, ...] = get_args(Start)
Annealing: TypeAlias = Literal["none", "linear", "cosine"]
ANNEALINGS: tuple[str, ...] = get_args(Annealing)
STOCHASTIC: tuple[str, ...] = get_args(Stochastic)
DIVERSITY: tuple[str, ...] = get_args(Diversity)
DATA = (
    *("digits", "cifar10", "cifar100", "places365", "imagenet", "folder:PATH"),
    *("fashion_mnist", "svhn", "tiny_imagenet", "table:FILE", "arrays:PATH", "torchvision:NAME", "text:FILE"),
)
DATA_TASKS = ("single-label", "multi-label", "regression")
CRITERIA = ("l2", "l1", "random")
CRITERIA_WITHOUT_DATA = (*CRITERIA, "bn_scale")
ROUNDINGS = ("floor", "nearest", "ceil")
PLAN_PRESETS = ("prunefuse", "spa")
QUANTITIES = ("parameters", "flops", "memory", "latency")
TEXT_MODELS = ("text_cnn", "text_transformer")
MODELS = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164"),
    *("wide_resnet16_4", "wide_resnet28_10"),
    *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    "mlp",
    *TEXT_MODELS,
)
LOGIT_STRATEGIES = ("least_confidence", "margin", "entropy", "energy", "logit_margin")
ENSEMBLE_STRATEGIES = ("bald", "predictive_entropy", "variation_ratio", "mean_entropy")
STRATEGIES = (
    *("random", *LOGIT_STRATEGIES, "bald"),
    *("extrapolated_du", "extrapolated_dual", "extrapolated_tdds", "extrapolated_el2n", "extrapolated_loss"),
    *("k_center", "badge", "typiclust", "probcover"),
)
COLD_STARTS = ("random", "k_center", "typiclust", "probcover")
LABEL_FORMATS = ("csv", "label-studio", "cvat", "fiftyone", "huggingface")
SCORES = (
    *("du", "du:every-window", "du:paper", "dual", "dual:cifar"),
    *("tdds", "tdds:cifar100-30%", "tdds:cifar100-50%", "tdds:cifar100-70%", "tdds:cifar100-80%"),
    *("tdds:cifar100-90%", "forgetting", "el2n", "grand", "aum", "loss"),
)
