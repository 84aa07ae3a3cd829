"""Builds what people bring beside classifiers: detectors, segmentation, video, graphs, diffusion, language, adapters.

All are small and from random weights: nothing is downloaded. A model takes tensors alone; where it takes a list or a
dictionary, a wrapper makes it of these, and in training mode it gives targets to those that want some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Built: TypeAlias = tuple[nn.Module, tuple[Tensor, ...]]


def build(kind: str, name: str) -> Built:
    """A dense model of ``zoo.BROUGHT``, and its inputs: two samples, or one graph."""
    return _BUILDERS[kind](name)


class Keywords(nn.Module):
    """A model whose forward takes keywords: tensors by these names, and the same other arguments each time."""

    def __init__(self, model: nn.Module, names: Sequence[str], **always: Any) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.always = always

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        outputs = self.model(**dict(zip(self.names, tensors, strict=True)), **self.always)
        return _float_tensors(outputs)


def _float_tensors(outputs: Any) -> list[Tensor]:
    """The floating tensors in what a model returns, each once, in order."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() or outputs.is_complex() else []
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    elif hasattr(outputs, "__dict__") and not isinstance(outputs, list | tuple):
        outputs = list(vars(outputs).values())
    return [x for part in outputs for x in _float_tensors(part)] if isinstance(outputs, list | tuple) else []


# torchvision


class Detector(nn.Module):
    """One of torchvision's detectors, which take a list of images, and targets in training."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        size = images.shape[-1]
        box = torch.tensor([[size / 8, size / 8, size / 2, size / 2]], dtype=images.dtype)
        point = torch.tensor([[[size / 4, size / 4, 1.0]] * 17], dtype=images.dtype)
        mask = torch.zeros(1, size, size, dtype=torch.uint8)
        target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "masks": mask, "keypoints": point}
        found = self.model(list(images), [target] * len(images) if self.training else None)
        if self.training:
            return _float_tensors(list(found.values()))
        return [x.sort(0).values for x in _float_tensors(found)]  # random weights give boxes of equal scores


def _detection(name: str) -> Built:
    import torchvision

    size = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 64)
    options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    if name.startswith(("retinanet", "fcos", "ssd")):
        options["score_thresh"] = 0.0  # random weights are sure of nothing
    classes = 2 if name.startswith("keypoint") else 4
    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes, **options
    )
    for module in model.modules() if name.startswith("ssdlite") else ():
        if isinstance(
            module, nn.Conv2d
        ):  # its own weights give most places equal scores, and any of these are found
            nn.init.kaiming_normal_(module.weight)
    return Detector(model), (torch.rand(2, 3, size, size),)


def _segmentation(name: str) -> Built:
    import torchvision

    return torchvision.models.get_model(name, weights=None, weights_backbone=None), (
        torch.randn(2, 3, 64, 64),
    )


def _video(name: str) -> Built:
    import torchvision

    frames, size = (16, 224) if name.startswith(("mvit", "s3d")) else (4, 64)
    model = torchvision.models.get_model(name, weights=None)
    return model, (torch.randn(2, 3, frames, size, size),)


def _optical_flow(name: str) -> Built:
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    return Keywords(model, ("image1", "image2"), num_flow_updates=2), tuple(torch.rand(2, 2, 3, 128, 128))


# Packages around images and graphs


def _ultralytics(name: str) -> Built:
    from ultralytics import YOLO

    return YOLO(f"{name}.yaml", verbose=False).model, (torch.rand(2, 3, 64, 64),)


def _smp(name: str) -> Built:
    import segmentation_models_pytorch as smp

    size = 128 if name == "PAN" else 64
    encoder, options = "resnet18", {}
    if name == "DPT":
        encoder, options = "tu-vit_tiny_patch16_224", {"dynamic_img_size": True}
    model = getattr(smp, name)(encoder, encoder_weights=None, classes=3, **options)
    return model, (torch.randn(2, 3, size, size),)


_MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": (
        {"spatial_dims": 3, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2},
        (16, 16, 16),
    ),
    "BasicUNet": ({"spatial_dims": 2, "features": (8, 8, 16, 32, 64, 8)}, (64, 64)),
    "BasicUNetPlusPlus": ({"spatial_dims": 2, "features": (8, 8, 16, 32, 64, 8)}, (64, 64)),
    "DynUNet": (
        {
            "spatial_dims": 2,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
        },
        (32, 32),
    ),
    "SegResNet": ({"spatial_dims": 3, "init_filters": 8}, (16, 16, 16)),
    "VNet": ({"spatial_dims": 2}, (32, 32)),
    "AttentionUnet": ({"spatial_dims": 2, "channels": (8, 16, 32), "strides": (2, 2)}, (32, 32)),
    "UNETR": (
        {
            "img_size": (32, 32),
            "spatial_dims": 2,
            "feature_size": 8,
            "hidden_size": 96,
            "mlp_dim": 192,
            "num_heads": 4,
        },
        (32, 32),
    ),
    "SwinUNETR": ({"spatial_dims": 2, "feature_size": 12}, (64, 64)),
    "HighResNet": ({"spatial_dims": 3}, (16, 16, 16)),
    "ViT": (
        {
            "img_size": (32, 32),
            "patch_size": (8, 8),
            "hidden_size": 96,
            "mlp_dim": 192,
            "num_layers": 2,
            "num_heads": 4,
            "classification": True,
            "spatial_dims": 2,
        },
        (32, 32),
    ),
    "DenseNet121": ({"spatial_dims": 3}, (32, 32, 32)),
}


def _monai(name: str) -> Built:
    from monai.networks import nets

    options, size = _MONAI[name]
    ends = {} if name == "ViT" else {"out_channels": 2}
    return getattr(nets, name)(in_channels=1, **ends, **options), (torch.randn(2, 1, *size),)


def _pyg(name: str) -> Built:
    from torch_geometric.nn import models

    options: dict[str, Any] = {}
    if name == "PNA":
        options = {
            "aggregators": ["mean", "max"],
            "scalers": ["identity", "amplification"],
            "deg": torch.tensor([0, 2, 5, 3]),
        }
    model = getattr(models, name)(16, 32, 3, out_channels=4, norm="batch_norm", **options)
    edges = torch.stack([torch.arange(20), torch.arange(20).roll(3)])
    return model, (torch.randn(20, 16), torch.cat([edges, edges.flip(0)], 1))


# diffusers

_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
_CROSS_DOWN, _CROSS_UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
_BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_HEADS = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}
_DIFFUSERS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "UNet2DModel": (
        {"sample_size": 16, "down_block_types": _DOWN, "up_block_types": _UP, **_BLOCKS},
        {"sample": (3, 16, 16), "timestep": ()},
    ),
    "UNet2DConditionModel": (
        {
            "sample_size": 16,
            "down_block_types": _CROSS_DOWN,
            "up_block_types": _CROSS_UP,
            "cross_attention_dim": 32,
            **_BLOCKS,
        },
        {"sample": (4, 16, 16), "timestep": (), "encoder_hidden_states": (7, 32)},
    ),
    "AutoencoderKL": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            **_BLOCKS,
        },
        {"sample": (3, 32, 32)},
    ),
    "VQModel": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "num_vq_embeddings": 64,
            **_BLOCKS,
        },
        {"sample": (3, 32, 32)},
    ),
    "ControlNetModel": (
        {
            "down_block_types": _CROSS_DOWN,
            "cross_attention_dim": 32,
            "conditioning_embedding_out_channels": (16, 32),
            **_BLOCKS,
        },
        {
            "sample": (4, 16, 16),
            "timestep": (),
            "encoder_hidden_states": (7, 32),
            "controlnet_cond": (3, 32, 32),
        },
    ),
    "DiTTransformer2DModel": (
        {"in_channels": 4, "sample_size": 8, "num_embeds_ada_norm": 10, **_HEADS},
        {"hidden_states": (4, 8, 8), "timestep": (), "class_labels": ()},
    ),
    "PixArtTransformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "cross_attention_dim": 64,
            "caption_channels": 32,
            "use_additional_conditions": False,
            **_HEADS,
        },
        {"hidden_states": (4, 8, 8), "timestep": (), "encoder_hidden_states": (7, 32)},
    ),
    "SD3Transformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 8,
            "joint_attention_dim": 32,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 32,
            **_HEADS,
        },
        {
            "hidden_states": (4, 8, 8),
            "timestep": (),
            "encoder_hidden_states": (7, 32),
            "pooled_projections": (32,),
        },
    ),
    "FluxTransformer2DModel": (
        {
            "in_channels": 4,
            "num_single_layers": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
            **_HEADS,
        },
        {
            "hidden_states": (9, 4),
            "timestep": (),
            "encoder_hidden_states": (7, 32),
            "pooled_projections": (32,),
        },
    ),
    "UNet1DModel": (
        {"sample_size": 32, "block_out_channels": (32, 32, 64), "extra_in_channels": 64},
        {"sample": (2, 32), "timestep": ()},
    ),
}


def _diffusers(name: str) -> Built:
    import diffusers

    options, shapes = _DIFFUSERS[name]
    inputs = {
        name: torch.tensor([3, 7]) if shape == () else torch.randn(2, *shape)
        for name, shape in shapes.items()
    }
    if name == "FluxTransformer2DModel":
        inputs["timestep"] = torch.tensor([0.3, 0.7])
        inputs["img_ids"] = torch.arange(27.0).view(9, 3) % 5
        inputs["txt_ids"] = torch.zeros(7, 3)
    model = getattr(diffusers, name)(**options)
    return Keywords(model, tuple(inputs), return_dict=False), tuple(inputs.values())


# transformers


def _tokens(length: int = 16, start: int = 3) -> Tensor:
    return (torch.arange(2 * length).view(2, length) * 7 + start) % 90 + 5


def _images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
_ENCODER = {key: value for key, value in _DECODER.items() if key != "num_key_value_heads"}
_BOTH_WAYS = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
_SPEECH = {
    **_ENCODER,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
_MIXED = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.0}
_DEEPSEEK = {
    **_DECODER,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
_TOWERS = {"text_config": {**_ENCODER, "num_attention_heads": 4}, "vision_config": {}}
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [32, 48, 64, 96],
    "depths": [1, 1, 1, 1],
}
_DETR = {**_BOTH_WAYS, "num_queries": 10, "use_timm_backbone": False, "use_pretrained_backbone": False}
_TEXT = {
    "gemma2": ("Gemma2:ForCausalLM", {**_DECODER, "head_dim": 16}),
    "gemma": ("Gemma:ForCausalLM", {**_DECODER, "head_dim": 16}),
    "phi": ("Phi:ForCausalLM", _ENCODER),
    "phi3": ("Phi3:ForCausalLM", _DECODER),
    "qwen3": ("Qwen3:ForCausalLM", {**_DECODER, "head_dim": 16}),
    "opt": (
        "OPT:ForCausalLM",
        {**_ENCODER, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
    ),
    "gpt_neox": ("GPTNeoX:ForCausalLM", _ENCODER),
    "falcon": ("Falcon:ForCausalLM", {**_ENCODER, "ffn_hidden_size": 128}),
    "bloom": ("Bloom:ForCausalLM", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    "llama": ("Llama:ForCausalLM", _DECODER),
    "mixtral": ("Mixtral:ForCausalLM", {**_DECODER, **_MIXED}),
    "qwen2_moe": (
        "Qwen2Moe:ForCausalLM",
        {
            **_DECODER,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 96,
            "decoder_sparse_step": 1,
        },
    ),
    "deepseek_v2": ("DeepseekV2:ForCausalLM", {**_DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3:ForCausalLM", _DEEPSEEK),
    "mamba": (
        "Mamba:ForCausalLM",
        {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "vocab_size": 128},
    ),
    "mamba2": (
        "Mamba2:ForCausalLM",
        {
            "hidden_size": 64,
            "state_size": 16,
            "num_hidden_layers": 2,
            "vocab_size": 128,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "rwkv": ("Rwkv:ForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}),
    "albert": ("Albert:ForSequenceClassification", {**_ENCODER, "embedding_size": 32}),
    "bert": ("Bert:ForSequenceClassification", _ENCODER),
    "electra": ("Electra:ForSequenceClassification", {**_ENCODER, "embedding_size": 32}),
    "deberta_v2": (
        "DebertaV2:ForSequenceClassification",
        {
            **_ENCODER,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "share_att_key": True,
        },
    ),
    "bart": ("Bart:ForConditionalGeneration", {**_BOTH_WAYS, "vocab_size": 128}),
    "mbart": ("MBart:ForConditionalGeneration", {**_BOTH_WAYS, "vocab_size": 128}),
    "mt5": (
        "MT5:ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 128},
    ),
    "t5": (
        "T5:ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 128},
    ),
}
_PICTURES = {
    "segformer": (
        "Segformer:ForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 64,
        },
        64,
    ),
    "detr": ("Detr:ForObjectDetection", _DETR, 64),
    "conditional_detr": ("ConditionalDetr:ForObjectDetection", _DETR, 64),
    "rt_detr": (
        "RTDetr:ForObjectDetection",
        {
            **_BOTH_WAYS,
            "encoder_hidden_dim": 64,
            "encoder_in_channels": [48, 64, 96],
            "decoder_in_channels": [64, 64, 64],
            "num_queries": 10,
            "num_denoising": 0,
            "num_labels": 4,
        },
        64,
    ),
    "vit": ("ViT:ForImageClassification", _VISION, 32),
    "swinv2": (
        "Swinv2:ForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        32,
    ),
    "convnextv2": (
        "ConvNextV2:ForImageClassification",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
        64,
    ),
    "dinov2": ("Dinov2:ForImageClassification", _VISION, 32),
    "mobilevit": (
        "MobileViT:ForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [48, 64, 80],
            "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 160],
        },
        64,
    ),
}


def _hf(name: str) -> Built:
    if name in _PICTURES:
        kind, options, size = _PICTURES[name]
        return Keywords(_pretrained(kind, options), ("pixel_values",)), (_images(size),)
    if name in _TEXT:
        kind, options = _TEXT[name]
        model = _pretrained(kind, options)
        if kind.endswith("ForConditionalGeneration"):
            names = ("input_ids", "decoder_input_ids")
            return Keywords(model, names, use_cache=False), (_tokens(), _tokens(12, 11))
        always = {"use_cache": False} if kind.endswith("CausalLM") else {}
        return Keywords(model, ("input_ids",), **always), (_tokens(),)
    return _SEVERAL_SENSES[name]()


def _pretrained(kind: str, options: Mapping[str, Any]) -> nn.Module:
    """A model of transformers from its configuration: ``Bert:ForSequenceClassification`` and what is not the default."""
    import transformers

    family, _, task = kind.partition(":")
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    if family in ("Clip", "CLIP", "Siglip", "Blip"):
        special = {}
    if family in ("Detr", "ConditionalDetr"):
        options = {
            **options,
            "backbone_config": transformers.ResNetConfig(**_RESNET, out_features=["stage4"]),
        }
    if family == "RTDetr":
        backbone = transformers.RTDetrResNetConfig(**_RESNET, out_features=["stage2", "stage3", "stage4"])
        options = {**options, "backbone_config": backbone}
    config = getattr(transformers, f"{family}Config")(**{**special, **options})
    return getattr(transformers, family + task)(config)  # type: ignore[no-any-return]


def _two_towers(family: str, tokens: int = 16) -> Built:
    text = {**_ENCODER, "max_position_embeddings": 32}
    towers = {"text_config": text, "vision_config": _VISION, "projection_dim": 32}
    model = _pretrained(f"{family}:Model", towers)
    return Keywords(model, ("input_ids", "pixel_values")), (_tokens(tokens), _images())


def _blip() -> Built:
    text = {**_ENCODER, "max_position_embeddings": 32, "encoder_hidden_size": 64}
    model = _pretrained("Blip:ForConditionalGeneration", {"text_config": text, "vision_config": _VISION})
    return Keywords(model, ("pixel_values", "input_ids")), (_images(), _tokens())


def _whisper() -> Built:
    options = {**_BOTH_WAYS, "vocab_size": 128, "num_mel_bins": 16, "max_source_positions": 20}
    model = _pretrained("Whisper:ForConditionalGeneration", options)
    names = ("input_features", "decoder_input_ids")
    return Keywords(model, names, use_cache=False), (torch.randn(2, 16, 40), _tokens(12))


def _speech(family: str) -> Built:
    return Keywords(_pretrained(f"{family}:ForCTC", _SPEECH), ("input_values",)), (torch.randn(2, 1600),)


_SEVERAL_SENSES: dict[str, Callable[[], Built]] = {
    "clip": lambda: _two_towers("CLIP"),
    "siglip": lambda: _two_towers("Siglip"),
    "blip": _blip,
    "whisper": _whisper,
    "wav2vec2": lambda: _speech("Wav2Vec2"),
    "hubert": lambda: _speech("Hubert"),
}


# States of a model


def _peft(name: str) -> Built:
    import peft

    way, _, base = name.partition("_")
    model, inputs = _hf(base)
    if way == "ia3":
        config = peft.IA3Config(
            target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
        )
    else:
        targets = {"llama": ["q_proj", "v_proj", "down_proj"], "t5": ["q", "v", "wo"], "vit": "all-linear"}
        config = peft.LoraConfig(r=4, target_modules=targets[base], use_dora=way == "dora")
    model.model = peft.get_peft_model(model.model, config)
    return model, inputs


def _tied(name: str) -> Built:
    kind, options = _TEXT[name]
    model = _pretrained(kind, {**options, "tie_word_embeddings": True})
    return Keywords(model, ("input_ids",), use_cache=False), (_tokens(),)


def _inner(name: str) -> Built:
    from benchmarks.zoo import build as any_of_zoo

    return _hf(name[3:]) if name.startswith("hf:") else any_of_zoo(name)


def _frozen(name: str) -> Built:
    model, inputs = _inner(name)
    modules = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return _with_last_alone(model, modules[-1]), inputs


def _with_last_alone(model: nn.Module, last: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    last.requires_grad_(True)
    return model


def _bf16(name: str) -> Built:
    model, inputs = _inner(name)
    return model.bfloat16(), tuple(x.bfloat16() if x.is_floating_point() else x for x in inputs)


_BUILDERS: dict[str, Callable[[str], Built]] = {
    "detection": _detection,
    "segmentation": _segmentation,
    "video": _video,
    "optical_flow": _optical_flow,
    "ultralytics": _ultralytics,
    "smp": _smp,
    "monai": _monai,
    "pyg": _pyg,
    "diffusers": _diffusers,
    "hf": _hf,
    "experts": _hf,
    "peft": _peft,
    "tied": _tied,
    "frozen": _frozen,
    "bf16": _bf16,
}
