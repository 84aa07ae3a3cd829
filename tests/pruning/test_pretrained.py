"""Models of transformers, cut to sizes that a configuration can say, and read by ``from_pretrained`` in another process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from peer_packages import skip_without
from safetensors.torch import load_file
from torch import nn

from prunefuse import _files as files
from prunefuse import models
from prunefuse.pruning import PruningPlan, fuse_, plan_pruning

TOKENS = torch.ones(1, 8, dtype=torch.long)
IMAGE = torch.zeros(1, 3, 64, 64)
VOCABULARY = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 8}
WIDTHS = {"hidden_size": 64, "intermediate_size": 160, **HEADS}
GROUPED = {**VOCABULARY, **WIDTHS, "num_key_value_heads": 4, "max_position_embeddings": 64}
# Class, configuration -> ratio, and what the configuration of the small model says. Of 64 channels at 0.3 stay 44, of which 8
# heads of 8 can have 40.
MODELS: dict[str, tuple[str, dict[str, Any], float, dict[str, Any]]] = {
    "Llama": ("ForCausalLM", {**GROUPED, "tie_word_embeddings": True}, 0.5,
              {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}),
    "Qwen3": ("ForCausalLM", {**GROUPED, "head_dim": 16}, 0.3,
              {"hidden_size": 32, "intermediate_size": 112, "num_attention_heads": 4, "num_key_value_heads": 2,
               "head_dim": 16}),
    "Phi3": ("ForCausalLM", GROUPED, 0.3, {"hidden_size": 44, "num_attention_heads": 8, "head_dim": 8}),  # its heads stay
    "Mixtral": ("ForCausalLM", {**GROUPED, "num_local_experts": 4}, 0.5, {"num_attention_heads": 4, "hidden_size": 32}),
    "Bert": ("ForMaskedLM", {**VOCABULARY, **WIDTHS}, 0.3,
             {"hidden_size": 40, "intermediate_size": 112, "num_attention_heads": 5}),
    "GPT2": ("LMHeadModel", {**VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64}, 0.3,
             {"n_embd": 40, "n_head": 5, "n_inner": 179}),
    "ViT": ("ForImageClassification", {**WIDTHS, "image_size": 64, "patch_size": 16}, 0.5,
            {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 4}),
    "Swin": ("ForImageClassification",
             {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}, 0.5,
             {"embed_dim": 12, "num_heads": [1, 2]}),
    "ResNet": ("ForImageClassification", {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]},
               0.3, {"embedding_size": 11, "hidden_sizes": [22, 44, 89, 179]}),
}  # fmt: skip


def built(name: str, **more: Any) -> nn.Module:
    skip_without("transformers")
    import transformers

    torch.manual_seed(0)
    kind, options = MODELS[name][:2] if name in MODELS else ("ForCausalLM", GROUPED)
    return getattr(transformers, name + kind)(
        getattr(transformers, f"{name}Config")(**{**options, **more})
    ).eval()


def example(model: nn.Module) -> torch.Tensor:
    return TOKENS if hasattr(model.config, "vocab_size") else IMAGE


def test_folders_are_read_by_from_pretrained_in_a_new_process(tmp_path):
    outputs, images, tokens = {}, torch.randn(2, 3, 64, 64), torch.randint(0, 99, (2, 8))
    for name, (_, _, ratio, said) in MODELS.items():
        dense = built(name)
        plan = plan_pruning(dense, example(dense), ratio=ratio, uniform=True)
        small = plan.extract(dense)
        for parameter in small.parameters():
            nn.init.normal_(parameter, std=0.2)  # as if trained
        assert plan.save_pretrained(small, tmp_path / name) == tmp_path / name
        content = json.loads((tmp_path / name / "config.json").read_text())
        assert said.items() <= content.items(), name
        assert PruningPlan.load(tmp_path / name / "plan.json") == plan
        outputs[name] = small(images if "vocab_size" not in content else tokens).logits
    files.save_tensors(tmp_path / "x.safetensors", {"images": images, "tokens": tokens})
    (tmp_path / "read.py").write_text(
        "import sys, torch, transformers\n"
        "from safetensors.torch import load_file, save_file\n"
        "x, found = load_file('x.safetensors'), {}\n"
        "for argument in sys.argv[1:]:\n"
        "    name, kind = argument.split(':')\n"
        "    model = getattr(transformers, kind).from_pretrained(name)\n"
        "    found[name] = model(x['tokens' if hasattr(model.config, 'vocab_size') else 'images']).logits.detach()\n"
        "assert 'prunefuse' not in sys.modules\n"
        "save_file(found, 'y.safetensors')\n"
    )
    kinds = {"LMHeadModel": "AutoModelForCausalLM"}
    arguments = [f"{name}:{kinds.get(kind, 'AutoModel' + kind)}" for name, (kind, *_) in MODELS.items()]
    subprocess.run(
        [sys.executable, "read.py", *arguments], check=True, cwd=tmp_path, capture_output=True, timeout=300
    )
    read = load_file(tmp_path / "y.safetensors")
    for name, output in outputs.items():
        torch.testing.assert_close(read[name], output, msg=name)


def test_the_number_of_a_layer_is_no_size():
    # The third layer has the number 2, and two heads of keys, of which one leaves.
    dense = built("Llama", num_hidden_layers=4, num_key_value_heads=2)
    plan = plan_pruning(dense, TOKENS)
    assert not plan.notes
    small = plan.extract(dense)
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2, 3]
    assert {tuple(layer.self_attn.k_proj.weight.shape) for layer in small.model.layers} == {(8, 32)}


def test_what_was_read_is_fused_by_the_plan_beside_it(tmp_path):
    dense = built("Llama")
    transformers = importlib.import_module("transformers")
    plan = plan_pruning(dense, TOKENS, uniform=True)
    plan.save_pretrained(plan.extract(dense), tmp_path / "small")
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        small.model.norm.weight.add_(1)
    again = PruningPlan.load(tmp_path / "small" / "plan.json")
    assert torch.equal(again.extract(fuse_(dense, small, again)).model.norm.weight, small.model.norm.weight)


def test_precision_is_kept(tmp_path):
    dense = built("Llama").to(torch.bfloat16)
    transformers = importlib.import_module("transformers")
    plan = plan_pruning(dense, TOKENS, uniform=True)
    plan.save_pretrained(plan.extract(dense), tmp_path / "small")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").dtype == torch.bfloat16


def test_sizes_that_differ_by_layer_are_told_by_their_tensors(tmp_path):
    dense = built("Llama")
    nn.init.zeros_(dense.model.layers[0].mlp.gate_proj.weight)
    nn.init.zeros_(dense.model.layers[0].mlp.up_proj.weight)
    plan = plan_pruning(dense, TOKENS, ranking="global")
    told = r"got \d+ for axis \d of model\.layers\.\d\.mlp\.\w+\.weight, where the nearest .*uniform=True.*save_model"
    with pytest.raises(ValueError, match=f"small must have sizes that its configuration can say, {told}"):
        plan.save_pretrained(plan.extract(dense), tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_code_uses_as_a_number_is_told(tmp_path):
    dense = built("Gemma")  # embeddings times the root of their width
    plan = plan_pruning(dense, TOKENS, uniform=True)
    with pytest.raises(
        ValueError, match="got outputs that differ once it is read: its code uses a size as a number"
    ):
        plan.save_pretrained(plan.extract(dense), tmp_path / "small")
    assert not list(tmp_path.iterdir())
    whole = plan_pruning(dense, TOKENS, uniform=True, ignore="model.embed_tokens")
    whole.save_pretrained(whole.extract(dense), tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["intermediate_size"] == 80


def test_what_is_not_of_transformers_is_told(tmp_path):
    dense = models.resnet8()
    plan = plan_pruning(dense, torch.zeros(1, 3, 16, 16))
    with pytest.raises(
        TypeError, match=r"small must be a model of Hugging Face's transformers, .* got ResNet"
    ):
        plan.save_pretrained(plan.extract(dense), tmp_path / "small")
    with pytest.raises(ValueError, match="small must be cut by this plan"):
        plan.save_pretrained(built("Bert"), tmp_path / "small")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    bert = built("Bert")
    plan = plan_pruning(bert, TOKENS, uniform=True)
    with pytest.raises(FileExistsError, match="mine exists and is not overwritten"):
        plan.save_pretrained(plan.extract(bert), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_saving_shows_no_progress_bars(tmp_path, capfd):
    dense = built("Llama")
    plan = plan_pruning(dense, TOKENS, uniform=True)
    small = plan.extract(dense)
    capfd.readouterr()
    plan.save_pretrained(small, tmp_path / "folder")
    assert not any("0/" in text or "it/s" in text for text in capfd.readouterr())
    assert importlib.import_module("transformers.utils.logging").is_progress_bar_enabled()
