"""The architectures of the coverage table: torchvision's classifiers, one or more of each family in timm, transformers.

All from random weights. A name is torchvision's, ``timm:NAME``, one of these and ``@SIZE`` for images that are not
of 64 pixels, or ``hf:NAME`` for a model of Hugging Face's transformers, built small from its configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import brought

TORCHVISION_FAMILIES = (
    *("alexnet", "convnext", "densenet", "efficientnet_v2", "efficientnet", "googlenet", "inception"),
    *("maxvit", "mnasnet", "mobilenet_v2", "mobilenet_v3", "regnet_x", "regnet_y", "resnext"),
    *("wide_resnet", "resnet", "shufflenet_v2", "squeezenet", "swin_v2", "swin", "vgg", "vit"),
)
SMALLEST = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_v2_s", "efficientnet_b0", "googlenet"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnext50_32x4d", "wide_resnet50_2", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_v2_t", "swin_t", "vgg11", "vit_b_32"),
)
SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
"""Image sizes other than 64 pixels, where an architecture of torchvision has a least one or fixes it."""
TIMM = (
    *("resnet18d", "res2net50_14w_8s", "resnest14d", "skresnet18", "seresnet50", "cspresnet50", "darknet53"),
    *("dla34", "hrnet_w18_small", "selecsls42", "vovnet39a", "dpn48b", "rexnet_100", "repvgg_a0"),
    *("regnety_002", "nfnet_l0", "gernet_s", "densenet121", "efficientnet_lite0", "mobilenetv3_small_050"),
    *("ghostnet_100", "lcnet_050", "tinynet_e", "hardcorenas_a", "repvit_m1", "starnet_s1"),
    *("convnext_atto", "inception_next_atto", "focalnet_tiny_srf@224", "fastvit_t8@256", "edgenext_xx_small"),
    *("mobilevit_xxs", "efficientformer_l1@224", "poolformer_s12", "caformer_s18", "botnet26t_256@256"),
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224"),
    *("eva02_tiny_patch14_224@224", "cait_xxs24_224@224", "xcit_nano_12_p16_224", "pit_ti_224@224"),
    *("levit_128s@224", "crossvit_tiny_240@240", "tnt_s_legacy_patch16_224@224", "volo_d1_224@224"),
    *("swin_tiny_patch4_window7_224@224", "twins_svt_small@224", "pvt_v2_b0", "nest_tiny@224"),
    *("coatnet_nano_rw_224@224", "maxvit_rmlp_pico_rw_256@256", "gcvit_xxtiny@224", "visformer_tiny@224"),
    *("mixer_s32_224@224", "resmlp_12_224@224", "gmlp_s16_224@224", "sequencer2d_s@224"),
)
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert:ForSequenceClassification", {"intermediate_size": 256}),
    "roberta": ("Roberta:ForSequenceClassification", {"intermediate_size": 256}),
    "distilbert": ("DistilBert:ForSequenceClassification", {"dim": 128, "hidden_dim": 256}),
    "vit": ("ViT:ForImageClassification", {"intermediate_size": 256, "image_size": 32, "patch_size": 4}),
    "gpt2": ("GPT2:LMHeadModel", {}),
    "t5": ("T5:ForConditionalGeneration", {"d_model": 128, "d_kv": 16, "d_ff": 256}),
    **{
        name: (f"{kind}:ForCausalLM", {"intermediate_size": 256, "num_key_value_heads": 4})
        for name, kind in (("llama", "Llama"), ("qwen2", "Qwen2"), ("mistral", "Mistral"))
    },
    "llama_100_layers": (
        "Llama:ForCausalLM",
        {"intermediate_size": 256, "num_key_value_heads": 4, "num_hidden_layers": 100},
    ),
}
"""Name -> class and configuration, beside 128 channels, 8 heads and 2 layers; where keys are fewer heads, 4."""
BROUGHT: dict[str, tuple[str, ...]] = {
    "detection": (
        *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn"),
        *("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn"),
        *("keypointrcnn_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
    ),
    "segmentation": (
        *("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"),
        "lraspp_mobilenet_v3_large",
    ),
    "video": ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t"),
    "optical_flow": ("raft_small", "raft_large"),
    "ultralytics": (
        *("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n"),
        *("yolov8n-seg", "yolo11n-seg", "yolo12n-seg", "yolov8n-pose", "yolo11n-obb", "yolo11n-cls"),
    ),
    "smp": (
        *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet"),
        *("PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer", "DPT"),
    ),
    "monai": (
        *("UNet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "SegResNet", "VNet", "AttentionUnet"),
        *("UNETR", "SwinUNETR", "HighResNet", "ViT", "DenseNet121"),
    ),
    "pyg": ("GCN", "GraphSAGE", "GIN", "GAT", "PNA", "EdgeCNN"),
    "diffusers": (
        *("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL", "VQModel", "ControlNetModel"),
        *("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel"),
        *("FluxTransformer2DModel", "UNet1DModel"),
    ),
    "hf": (
        *("detr", "conditional_detr", "rt_detr", "segformer", "clip", "siglip", "whisper", "wav2vec2"),
        *("hubert", "bart", "mbart", "mt5", "phi", "phi3", "gemma", "gemma2", "qwen3", "opt", "gpt_neox"),
        *("falcon", "bloom", "mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "mamba", "mamba2", "rwkv"),
        *("albert", "electra", "deberta_v2", "swinv2", "convnextv2", "dinov2", "mobilevit", "blip"),
    ),
    "experts": ("mixtral", "qwen2_moe", "deepseek_v3"),
    "peft": ("lora_llama", "dora_vit", "lora_t5", "ia3_bert"),
    "tied": ("llama", "gemma", "opt"),
    "frozen": ("resnet18", "vit_b_32", "hf:bert"),
    "bf16": ("resnet18", "vit_b_32", "hf:llama", "hf:mixtral"),
}
"""What people bring beside classifiers: kind -> names, which `benchmarks.brought` builds.

Kinds are parts of torchvision, packages (``smp`` is segmentation_models.pytorch, ``pyg`` torch-geometric, ``hf``
transformers), and states of a model: mixtures of which whole experts leave, adapters of peft, heads tied to
embeddings, all but the head frozen, and weights in bfloat16.
"""


class _Translation(nn.Module):
    """An encoder and decoder that are given the same tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, decoder_input_ids=tokens, use_cache=False).logits


def families() -> dict[str, str]:
    """Name of every model -> its family."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return {
        **{name: next(f for f in TORCHVISION_FAMILIES if name.startswith(f)) for name in names},
        **{f"timm:{name}": "timm" for name in TIMM},
        **{f"hf:{name}": "transformers" for name in HUGGING_FACE},
        **{f"{kind}:{name}": kind for kind, names in BROUGHT.items() for name in names},
    }


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The dense model from random weights, and its inputs: two samples, or one graph."""
    source, _, rest = name.partition(":")
    if rest in BROUGHT.get(source, ()):
        return brought.build(source, rest)
    builders: dict[str, Callable[[str], tuple[nn.Module, Tensor]]]
    builders = {"timm": _timm, "hf": _hugging_face}
    model, inputs = builders[source](rest) if source in builders else _torchvision(name)
    return model, (inputs,)


def _torchvision(name: str) -> tuple[nn.Module, Tensor]:
    import torchvision

    name, _, pixels = name.partition("@")
    size = int(pixels or SIZES.get(name, 64))
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return torchvision.models.get_model(name, weights=None, **options), torch.randn(2, 3, size, size)


def _timm(name: str) -> tuple[nn.Module, Tensor]:
    import timm

    name, _, pixels = name.partition("@")
    size = int(pixels or 64)
    try:
        model = timm.create_model(name, img_size=size, num_classes=1000)  # some come without a classifier
    except TypeError:  # it takes images of any size
        model = timm.create_model(name, num_classes=1000)
    return model, torch.randn(2, 3, size, size)


def _hugging_face(name: str) -> tuple[nn.Module, Tensor]:
    import transformers

    (kind, _, task), options = HUGGING_FACE[name][0].partition(":"), HUGGING_FACE[name][1]
    width = {} if "dim" in options or "d_model" in options else {"hidden_size": 128}
    config = getattr(transformers, f"{kind}Config")(
        **width,
        **{
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "vocab_size": 512,
            "use_cache": False,
            **options,
        },
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    )
    model = getattr(transformers, kind + task)(config)
    if name == "vit":
        return model, torch.randn(2, 3, 32, 32)
    return (_Translation(model) if name == "t5" else model), torch.arange(1, 33).view(2, 16)
