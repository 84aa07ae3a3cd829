"""Attention that loses channels inside of its heads: the small one computes what the dense one computes with these at zero."""

import copy
import importlib
import math

import pytest
import torch
from peer_packages import skip_without
from pruning_oracle import assert_pruning_is_masking, assert_same_function, masked, scramble_
from torch import nn
from torch.nn import functional as F

import prunefuse
from prunefuse.pruning import compose, plan_pruning, prune_and_finetune

WIDTH, HEADS, DIM = 24, 3, 8
TOKENS = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).double()


class Attention(nn.Module):
    """Queries, keys and values from layers of their own; a subclass says how they mix."""

    keys = HEADS

    def __init__(self):
        super().__init__()
        self.head_dim = DIM
        self.scale = DIM**-0.5
        self.q = nn.Linear(WIDTH, HEADS * DIM)
        self.k, self.v = (nn.Linear(WIDTH, self.keys * DIM) for _ in "kv")
        self.out = nn.Linear(HEADS * DIM, WIDTH)

    def split(self, x):
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def forward(self, x):
        mixed = self.mix(*(self.split(layer(x)) for layer in (self.q, self.k, self.v)))
        return self.out(mixed.transpose(1, 2).flatten(2))


class Implied(Attention):
    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Explicit(Attention):
    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale, is_causal=True)


class Grouped(Attention):
    keys = 1

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Written(Attention):
    def mix(self, q, k, v):
        return ((q * self.scale) @ k.mT).softmax(-1) @ v


class OfItsKeys(Attention):
    """The scale is made of a size while it runs, which no plan can change."""

    def mix(self, q, k, v):
        return (q @ k.mT / math.sqrt(k.shape[-1])).softmax(-1) @ v


class InATensor(Attention):
    def mix(self, q, k, v):
        return (q @ k.mT / torch.full([], k.shape[-1] ** 0.5, dtype=q.dtype)).softmax(-1) @ v


class Einsum(Attention):
    def mix(self, q, k, v):
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * self.scale
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


class Biased(Attention):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(HEADS, 5, 5))

    def mix(self, q, k, v):
        mask = torch.ones(5, 5, dtype=torch.bool, device=q.device).triu(1)
        scores = torch.baddbmm(self.table.repeat(2, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT)
        scores = scores.unflatten(0, (-1, HEADS)).masked_fill(mask, -1e30)
        return F.dropout(scores.softmax(-1), 0.1, self.training) @ v


class Normed(Attention):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(self.norm(q), k, v)


class Turned(Attention):
    """Positions turn pairs of channels, the halves of a head."""

    def __init__(self):
        super().__init__()
        self.register_buffer(
            "angles", torch.outer(torch.arange(5.0), 10.0 ** -torch.arange(DIM // 2)).double()
        )

    def turn(self, x):
        a, b = x.chunk(2, -1)
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, scale=self.scale)


class Seen(Attention):
    """Queries serve twice: what makes them cannot be multiplied."""

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v) + q


class Linear(Attention):
    """No softmax lies between the products."""

    def mix(self, q, k, v):
        return F.elu(q).add(1) @ (F.elu(k).add(1).mT @ v)


class Cached(Attention):
    """Keys of before stand in front: at first there are none."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(WIDTH, 3 * HEADS * DIM))
        self.bias = nn.Parameter(torch.zeros(3 * HEADS * DIM))
        del self.q, self.k, self.v

    def forward(self, x):
        made = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.qkv)
        q, k, v = (self.split(part) for part in made.reshape(*x.shape[:2], -1).chunk(3, -1))
        k, v = (torch.cat([part.new_zeros(0), part], -2) for part in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Convolved(nn.Module):
    """Attention over the places of an image, by 1x1 convolutions."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(WIDTH, 3 * HEADS * DIM, 1)
        self.out = nn.Conv2d(HEADS * DIM, WIDTH, 1)

    def forward(self, x):
        image = x.mT.unflatten(2, (1, 5))
        q, k, v = self.qkv(image).flatten(2).unflatten(1, (3, HEADS, -1)).transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, (1, 5))).flatten(2).mT


class Torch(nn.Module):
    """PyTorch's own, which takes queries, keys and values from rows of one weight, or of three."""

    def __init__(self, weights=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
        self.weights = weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.weights)[0]


class Weights(Torch):
    """Asked for its weights, PyTorch's own multiplies queries by a number that it makes of their length."""

    def __init__(self):
        super().__init__(weights=True)


class Crossed(nn.Module):
    """Keys and values come from other tokens than queries."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.other = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        other = self.other(x)
        return self.attention(x, other, other, need_weights=False)[0]


def network(middle):
    """The attention between layers that other channels may leave."""
    return scramble_(nn.Sequential(nn.Linear(WIDTH, WIDTH), middle, nn.Linear(WIDTH, 4))).double()


def shortened(plan, name, axis=0):
    """How many channels the heads of a plan have, by the rows of their queries; None if heads leave."""
    rows = plan.kept.get(name, {}).get(axis, range(HEADS * DIM))
    inside = [{row % DIM for row in rows if row // DIM == head} for head in range(HEADS)]
    return len(inside[0]) if all(channels == inside[0] for channels in inside) else None


INSIDE = {
    "implied": Implied,
    "explicit": Explicit,
    "grouped": Grouped,
    "written": Written,
    "einsum": Einsum,
    "biased": Biased,
}


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("kind", INSIDE)
def test_heads_are_shortened_and_compute_as_with_masked_channels(kind, ratio):
    dense = network(INSIDE[kind]())
    plan = plan_pruning(dense, TOKENS, ratio=ratio, heads="inside")
    small = assert_pruning_is_masking(dense, plan, TOKENS)
    assert shortened(plan, "1.q.weight") == math.floor(DIM * (1 - ratio) + 1e-9)
    assert small[1].q.out_features == HEADS * small[1].head_dim
    assert not any("heads" in note for note in plan.notes)


@pytest.mark.parametrize(
    "middle",
    [Torch(), Torch(bias=False), Torch(kdim=WIDTH, vdim=WIDTH), Crossed(), Convolved(), Cached()],
    ids=["torch", "no bias", "three weights", "crossed", "convolved", "cached"],
)
def test_rows_of_one_weight_that_make_queries_are_found(middle):
    dense = network(copy.deepcopy(middle))
    plan = plan_pruning(dense, TOKENS, ratio=0.5, heads="inside")
    small = assert_pruning_is_masking(dense, plan, TOKENS)
    ends = ("qkv.weight", "in_proj_weight", "q_proj_weight", "1.qkv")
    name = next(name for name in plan.kept if name.endswith(ends))
    axis = int(name == "1.qkv")
    assert plan.scaled[name] == {axis: tuple(range(HEADS * DIM))}
    assert small.get_parameter(name).shape[axis] == dense.get_parameter(name).shape[axis] // 2
    assert shortened(plan, name, axis) == DIM // 2


@pytest.mark.parametrize("kind", [OfItsKeys, InATensor, Normed, Turned, Seen, Linear, Weights])
def test_heads_leave_whole_with_a_reason_where_they_cannot_be_shortened(kind):
    dense = network(kind())
    plan = plan_pruning(dense, TOKENS, ratio=0.5, heads="inside")
    assert_pruning_is_masking(dense, plan, TOKENS)
    assert any("whole heads leave" in note for note in plan.notes)
    assert plan.kept == plan_pruning(dense, TOKENS, ratio=0.5).kept


@pytest.mark.parametrize("kind", ["explicit", "written", "einsum"])
def test_fused_and_extracted_again_a_model_with_a_written_scale_has_the_same_bits(kind):
    dense = network(INSIDE[kind]())
    plan = plan_pruning(dense, TOKENS, ratio=0.5, heads="inside")
    small = scramble_(plan.extract(dense), 3)
    again = plan.extract(plan.fuse_(copy.deepcopy(dense), small))
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize("complement", ["keep", "zero"])
def test_fused_queries_are_divided_again(complement):
    dense = network(Torch())
    plan = plan_pruning(dense, TOKENS, ratio=0.5, heads="inside")
    small = scramble_(plan.extract(dense), 3)
    fused = plan.fuse_(copy.deepcopy(dense), small, complement)
    again = plan.extract(fused)
    for name, tensor in small.state_dict().items():
        if name in plan.scaled:
            torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-15, atol=0)
        else:
            assert torch.equal(tensor, again.state_dict()[name])
    if complement == "zero":
        assert_same_function(fused, small, TOKENS)


def test_in_steps_the_scale_is_that_of_the_dense_heads():
    dense = network(Implied())
    small, plan = prune_and_finetune(dense, TOKENS, lambda model: None, steps=2, ratio=0.5, heads="inside")
    assert small[1].head_dim == DIM // 2
    assert_same_function(small, plan.extract(dense), TOKENS)
    assert_same_function(small, masked(dense, plan), TOKENS)
    first = plan_pruning(dense, TOKENS, ratio=0)
    assert compose(first, plan_pruning(dense, TOKENS, heads="inside")).scaled


@pytest.mark.parametrize("kind", ["implied", "written"])
def test_programs_lose_the_same_channels(kind):
    dense = network(INSIDE[kind]())
    for plan in (
        plan_pruning(dense, TOKENS, heads="inside", expressed_by="program"),
        plan_pruning(dense, TOKENS, heads="inside"),
    ):
        program = plan.extract_program(dense, TOKENS).module()
        torch.testing.assert_close(program(TOKENS), masked(dense, plan).eval()(TOKENS), rtol=1e-9, atol=1e-9)
        assert shortened(plan, "1.q.weight") == DIM // 2


def test_a_loaded_plan_has_what_it_multiplies(tmp_path):
    dense = network(Implied())
    plan = plan_pruning(dense, TOKENS, heads="inside")
    plan.save(tmp_path / "plan.json")
    loaded = prunefuse.PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.heads == "inside"
    assert_same_function(loaded.extract(dense), masked(dense, plan), TOKENS)
    assert loaded.explain("1.q", model=dense, example_inputs=TOKENS) == plan.explain("1.q")


@pytest.mark.parametrize("fit_to", ["dense", "own"])
def test_refitted_queries_keep_the_scale_of_the_dense_heads(fit_to):
    dense = network(Torch())
    attention = dense[1].attention
    with torch.no_grad():  # half of all channels are nothing, so that nothing is lost with them
        for tensor in [*dense[0].parameters(), *attention.parameters()]:
            tensor.unflatten(0, (-1, DIM))[:, DIM // 2 :] = 0
    inputs = torch.randn(400, 5, WIDTH, generator=torch.Generator().manual_seed(2)).double()
    plan, small = prunefuse.prune_without_finetuning(
        dense, TOKENS, inputs, ratio=0.5, heads="inside", fit_to=fit_to, damping=1e-8
    )
    assert shortened(plan, "1.attention.in_proj_weight") == DIM // 2
    assert plan.kept["1.attention.in_proj_weight"].keys() == {0, 1}
    assert_same_function(small, dense, inputs, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype):
    dense = network(Torch()).to(dtype)
    tokens = TOKENS.to(dtype)
    plan = plan_pruning(dense, tokens, heads="inside")
    small = plan.extract(dense)
    assert small[1].attention.in_proj_weight.dtype == dtype
    assert_same_function(
        small, masked(dense, plan), tokens, tolerance=1e-5 if dtype == torch.float32 else 0.05
    )


class States(nn.Module):
    """What a model of transformers makes of tokens."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).last_hidden_state


SIZES = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}


@pytest.mark.parametrize("kind", ["Bert", "GPT2", "Llama"])
def test_models_of_transformers(kind):
    skip_without("transformers")
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, intermediate_size=24, n_embd=16, n_head=2, n_layer=2, num_key_value_heads=1
    )
    dense = scramble_(States(getattr(transformers, f"{kind}Model")(config))).double()
    tokens = torch.arange(8).view(1, -1)
    plan = plan_pruning(dense, tokens, heads="inside")
    assert_pruning_is_masking(dense, plan, tokens)
    if kind == "Llama":  # whose positions turn pairs of channels
        assert any("positions that turn pairs" in note for note in plan.notes)
        assert plan.kept == plan_pruning(dense, tokens).kept
        return
    assert not any("heads" in note for note in plan.notes)
    weight, axis = {
        "Bert": ("model.encoder.layer.0.attention.self.query.weight", 0),
        "GPT2": ("model.h.0.attn.c_attn.weight", 1),
    }[kind]
    queries = [row for row in plan.kept[weight][axis] if row < 16]
    assert [row // 8 for row in queries] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("options", [{"preset": "spa"}, {"uniform": True}, {"round_to": 2}])
def test_other_options_hold_inside_of_heads(options):
    dense = network(Torch())
    plan = plan_pruning(dense, TOKENS, ratio=0.4, heads="inside", **options)
    small = assert_pruning_is_masking(dense, plan, TOKENS)
    left = shortened(plan, "1.attention.in_proj_weight")
    assert left < DIM
    assert small[1].attention.in_proj_weight.shape[0] == 3 * HEADS * left
    if "round_to" in options:
        assert left % 2 == 0


def test_heads_are_whole_or_inside():
    with pytest.raises(ValueError, match="heads must be one of whole, inside, got 'half'"):
        plan_pruning(network(Implied()), TOKENS, heads="half")
