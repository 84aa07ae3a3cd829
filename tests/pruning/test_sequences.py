"""Recurrent layers, attention and embeddings: what models of sequences consist of."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn

from prunefuse.fusion import fuse_
from prunefuse.pruning import plan_pruning

TOKENS = torch.arange(10).view(2, 5)


class Recurrent(nn.Module):
    def __init__(self, kind, directions: int, **options) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.layer = kind(10, 8, batch_first=True, **options)
        self.head, self.last = nn.Linear(8 * directions, 3), nn.Linear(8, 3)

    def forward(self, x):
        y, state = self.layer(self.embed(x))
        return self.head(y[:, -1]) + self.last(state[0] if isinstance(state, tuple) else state)[-1]


@pytest.mark.parametrize(
    ("kind", "directions", "options"),
    [
        (nn.LSTM, 1, {}),
        (nn.LSTM, 2, {"num_layers": 2, "bidirectional": True}),
        (nn.GRU, 1, {"num_layers": 3, "bias": False}),
        (nn.GRU, 2, {"bidirectional": True}),
        (nn.RNN, 1, {"num_layers": 2, "nonlinearity": "relu"}),
    ],
)
def test_recurrent_layers(kind, directions, options):
    model = scramble_(Recurrent(kind, directions, **options)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = plan_pruning(model, TOKENS)
    small = assert_pruning_is_masking(model, plan, TOKENS)
    assert plan.notes == ()
    assert (small.layer.input_size, small.layer.hidden_size) == (5, 4)
    assert small.embed.embedding_dim == 5
    small.train()(TOKENS).sum().backward()
    # Per token both weights of every layer and direction, and the two heads, one of them on one state.
    weights = sum(p.numel() for n, p in small.layer.named_parameters() if "weight" in n)
    states = options.get("num_layers", 1) * directions
    assert plan.flops[1] == 2 * (5 * weights + 4 * directions * 3 + 4 * 3 * states)


def test_a_recurrent_layer_that_is_given_its_state_stays_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer, self.head = nn.Embedding(20, 10), nn.GRU(10, 8), nn.Linear(8, 3)

        def forward(self, x, state):
            return self.head(self.layer(self.embed(x), state)[0])

    model = scramble_(Net()).double()
    inputs = (TOKENS, torch.randn(1, 5, 8).double())
    plan = plan_pruning(model, inputs)
    small = assert_pruning_is_masking(model, plan, *inputs)
    assert (small.layer.input_size, small.layer.hidden_size) == (5, 8)


class Attention(nn.Module):
    """Attention written by hand, with as many key and value heads as wanted, or a single projection for all."""

    def __init__(self, width: int, heads: int, dim: int, groups: int = 1, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.dim, self.groups, self.fused = heads, dim, groups, fused
        self.q = nn.Linear(width, heads * dim)
        self.k = nn.Linear(width, heads * dim // groups)
        self.v = nn.Linear(width, heads * dim // groups)
        self.out = nn.Linear(heads * dim, width)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.groups > 1)
        else:
            k, v = (y.repeat_interleave(self.groups, 1) if self.groups > 1 else y for y in (k, v))
            y = ((q @ k.transpose(-2, -1)) * self.dim**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_heads_leave_whole(fused, groups):
    model = scramble_(
        nn.Sequential(nn.Embedding(20, 12), Attention(12, 8, 3, groups, fused), nn.Linear(12, 2))
    )
    plan = plan_pruning(model.double(), TOKENS)
    small = assert_pruning_is_masking(model, plan, TOKENS)
    attention = small[1]
    assert [len(p.weight) for p in (attention.q, attention.k, attention.v)] == [
        12,
        12 // groups,
        12 // groups,
    ]
    assert attention.out.weight.shape == (6, 12)
    kept = plan.kept["1.q.weight"][0]
    assert all(kept[i] % 3 == 0 and kept[i + 2] == kept[i] + 2 for i in range(0, 12, 3))


@pytest.fixture
def no_fast_path():
    """The fused inference kernel reads the weights of the norms, whose forward the oracle replaces."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


class Encoder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(20, 12), layer, nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)))


@pytest.mark.parametrize(("heads", "ratio", "left"), [(4, 0.5, 2), (6, 0.7, 1), (3, 0.5, 1), (1, 0.5, 1)])
@pytest.mark.usefixtures("no_fast_path")
def test_multihead_attention_is_as_wide_as_its_heads(heads, ratio, left):
    torch.manual_seed(0)
    model = Encoder(nn.TransformerEncoderLayer(12, heads, 16, batch_first=True))
    model = scramble_(model).double()
    plan = plan_pruning(model, TOKENS, ratio=ratio)
    small = assert_pruning_is_masking(model, plan, TOKENS)
    attention = small.layer.self_attn
    assert (attention.num_heads, attention.embed_dim) == (left, left * 12 // heads)
    assert attention.in_proj_weight.shape == (3 * attention.embed_dim, attention.embed_dim)
    assert small.layer.linear1.weight.shape[0] == max(1, int(16 * (1 - ratio)))
    small.train()(TOKENS).sum().backward()


def test_multihead_attention_on_the_input_stays_whole_and_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.a, self.b = nn.MultiheadAttention(12, 4), nn.Linear(12, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(self.attention(x, x, x, need_weights=False)[0]))

    model, x = scramble_(Net()).double(), torch.randn(3, 2, 12).double()
    plan = plan_pruning(model, x)
    small = assert_pruning_is_masking(model, plan, x)
    assert small.attention.num_heads == 4
    assert small.a.weight.shape == (4, 12)
    assert any("MultiheadAttention" in note for note in plan.notes)


class Streams(nn.Module):
    """Two streams of tokens that meet in one layer, which is given what to attend with and what to attend to."""

    def __init__(self, layer: nn.Module, *, keys: int = 12, values: int = 12) -> None:
        super().__init__()
        self.embed, self.keys, self.layer, self.head = (
            nn.Embedding(20, 12),
            nn.Embedding(20, keys),
            layer,
            nn.Linear(12, 2),
        )
        self.values = nn.Linear(keys, values) if values != keys else nn.Identity()

    def forward(self, x, y):
        x, y = self.embed(x), self.keys(y)
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.head(self.layer(x, y, self.values(y))[0])
        return self.head(self.layer(x, y))


CROSS = {
    "packed": {},
    "sequence first": {"batch_first": False},
    "no bias": {"bias": False},
    "keys of another width": {"kdim": 8, "vdim": 8},
    "values of another width": {"kdim": 8, "vdim": 10},
    "values of another width, sequence first": {"kdim": 8, "vdim": 10, "batch_first": False},
    "biases of key and value": {"add_bias_kv": True},
    "zeros to attend to": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("options", CROSS.values(), ids=CROSS.keys())
def test_attention_to_another_stream(options):
    options = {"batch_first": True, **options}
    attention = nn.MultiheadAttention(12, 4, **options)
    model = scramble_(
        Streams(attention, keys=options.get("kdim", 12), values=options.get("vdim", 12))
    ).double()
    more = torch.arange(4, 16).view(2, 6)
    inputs = (TOKENS, more) if options["batch_first"] else (TOKENS.T, more.T)
    plan = plan_pruning(model, inputs)
    small = assert_pruning_is_masking(model, plan, *inputs)
    assert plan.notes == ()
    assert (small.layer.num_heads, small.layer.embed_dim) == (2, 6)
    assert small.embed.embedding_dim == 6
    assert small.keys.embedding_dim == options.get("kdim", 12) // 2
    small.train()(*inputs).sum().backward()
    assert_fuses_back(model, small, plan)


def assert_fuses_back(model, small, plan):
    scramble_(small, seed=1)
    back = plan.extract(fuse_(model, small, plan)).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())


def test_each_part_of_a_packed_weight_counts_as_often_as_it_is_applied():
    model = Streams(nn.MultiheadAttention(12, 4, bias=False, batch_first=True))
    plan = plan_pruning(model, (TOKENS, torch.arange(4, 16).view(2, 6)))
    layer = next(layer for layer in plan.layers if layer.name == "layer")
    scores = 5 * 6  # each is a product of two heads, and each weights one
    assert layer.flops_before == 2 * ((5 + 6 + 6) * 12 * 12 + 2 * scores * 12)
    assert layer.flops_after == 2 * ((5 + 6 + 6) * 6 * 6 + 2 * scores * 6)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kind", ["layer", "decoder", "transformer"])
@pytest.mark.usefixtures("no_fast_path")
def test_transformers_with_a_decoder(kind, norm_first):
    torch.manual_seed(0)
    options = {"batch_first": True, "norm_first": norm_first}
    layer = nn.TransformerDecoderLayer(12, 4, 16, **options)
    if kind == "decoder":
        layer = nn.TransformerDecoder(layer, 2)
    elif kind == "transformer":
        layer = nn.Transformer(12, 4, 2, 2, 16, **options)
    model = scramble_(Streams(layer)).double()
    inputs = (TOKENS, torch.arange(4, 16).view(2, 6))
    plan = plan_pruning(model, inputs)
    small = assert_pruning_is_masking(model, plan, *inputs)
    assert plan.notes == ()
    attentions = [module for module in small.modules() if isinstance(module, nn.MultiheadAttention)]
    assert {(attention.num_heads, attention.embed_dim) for attention in attentions} == {(2, 6)}
    small.train()(*inputs).sum().backward()
    assert_fuses_back(model, small, plan)


def test_a_mean_that_nobody_reads_keeps_nothing_whole():
    class Net(nn.Module):
        def __init__(self, both):
            super().__init__()
            self.embed, self.layer = nn.Embedding(20, 12), nn.MultiheadAttention(12, 4, batch_first=True)
            self.head, self.both = nn.Linear(12, 2), both

        def forward(self, x):
            x = self.embed(x)
            y, weights = self.layer(x, x, x)  # the mean over the heads
            return (self.head(y), weights) if self.both else self.head(y)

    model = scramble_(Net(False)).double()
    plan = plan_pruning(model, TOKENS)
    assert assert_pruning_is_masking(model, plan, TOKENS).layer.num_heads == 2
    with pytest.raises(ValueError, match=r"nothing was pruned .*module .layer. \(MultiheadAttention\)"):
        plan_pruning(Net(True), TOKENS)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_lstm_with_projections(options):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = (
                nn.Embedding(20, 10),
                nn.LSTM(10, 8, proj_size=4, batch_first=True, **options),
            )
            self.head, self.last = nn.Linear(4 * (1 + self.layer.bidirectional), 3), nn.Linear(12, 3)

        def forward(self, x):
            y, states = self.layer(self.embed(x))
            return self.head(y[:, -1]) + self.last(torch.cat(states, -1)[-1])

    model = scramble_(Net()).double()
    plan = plan_pruning(model, TOKENS)
    small = assert_pruning_is_masking(model, plan, TOKENS)
    assert plan.notes == ()
    assert (small.layer.input_size, small.layer.hidden_size, small.layer.proj_size) == (5, 4, 2)
    small.train()(TOKENS).sum().backward()


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.cell, self.head = nn.Embedding(20, 10), kind(10, 8), nn.Linear(8, 3)

        def forward(self, x):
            state = None
            for y in self.embed(x).unbind(1):
                state = self.cell(y, state)
            return self.head(state[0] if isinstance(state, tuple) else state)

    model = scramble_(Net()).double()
    plan = plan_pruning(model, TOKENS)
    small = assert_pruning_is_masking(model, plan, TOKENS)
    assert plan.notes == ()
    assert (small.cell.input_size, small.cell.hidden_size) == (5, 4)


class Packing(Recurrent):
    packs = True

    def forward(self, x):
        if not self.packs:
            return super().forward(x)
        y = nn.utils.rnn.pack_padded_sequence(self.embed(x), torch.tensor([5, 3]), batch_first=True)
        y, (state, _) = self.layer(y)
        y = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]
        return self.head(y[:, -1]) + self.last(state)[-1]


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}])
def test_packed_sequences(options):
    model = scramble_(Packing(nn.LSTM, 1, **options)).double()
    plan = plan_pruning(model, TOKENS)
    small = assert_pruning_is_masking(model, plan, TOKENS)
    assert (small.layer.input_size, small.layer.hidden_size) == (5, 4)
    weights = sum(p.numel() for n, p in small.layer.named_parameters() if "weight" in n)
    assert plan.flops[1] * 2 == 2 * (8 * weights + 2 * 4 * 3 * (1 + options.get("num_layers", 1)))


def test_the_exported_program_cannot_pack():
    with pytest.raises(RuntimeError, match=r"in module 'layer' \(LSTM\).*a forward that does not pack"):
        plan_pruning(Packing(nn.LSTM, 1), TOKENS, expressed_by="program")


def test_bags_of_embeddings():
    for mode in ("mean", "sum", "max"):
        model = scramble_(nn.Sequential(nn.EmbeddingBag(20, 8, mode=mode), nn.Linear(8, 2))).double()
        plan = plan_pruning(model, TOKENS)
        assert assert_pruning_is_masking(model, plan, TOKENS)[0].embedding_dim == 4
        assert plan.notes == ()


@dataclass(frozen=True)
class Settings:
    heads: int = 4
    dim: int = 3
    width: int = 12


class Configured(nn.Module):
    """Attention that reads its sizes from an object that others hold as well."""

    def __init__(self, settings) -> None:
        super().__init__()
        self.settings = settings
        self.qkv = nn.Linear(settings.width, 3 * settings.heads * settings.dim)
        self.out = nn.Linear(settings.heads * settings.dim, settings.width)

    def forward(self, x):
        n, t, _ = x.shape
        own = self.settings
        q, k, v = self.qkv(x).view(n, t, 3, own.heads, own.dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, own.heads * own.dim))


@pytest.mark.parametrize("settings", [Settings(), SimpleNamespace(heads=4, dim=3, width=12)])
def test_sizes_in_an_object_that_modules_share(settings):
    layers = (
        nn.Embedding(20, 12),
        Configured(settings),
        nn.LayerNorm(12),
        Configured(settings),
        nn.Linear(12, 2),
    )
    model = scramble_(nn.Sequential(*layers)).double()
    plan = plan_pruning(model, TOKENS, ignore=["3.qkv"])
    small = assert_pruning_is_masking(model, plan, TOKENS)
    assert (small[1].settings.heads, small[3].settings.heads) == (2, 4)
    assert small[1].settings.dim == 3
    assert (settings.heads, model[1].settings is settings) == (4, True)
    assert_fuses_back(model, small, plan)


class Bucketed(nn.Module):
    """Reads one number as a size and another, as large, as what it is: T5's largest distance of two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.max_distance, self.width = 12, 12
        self.enter, self.leave = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        y = self.enter(x).reshape(*x.shape[:2], self.width) / math.log(self.max_distance)
        return self.leave(y)


def test_a_number_that_happens_to_be_as_large_as_a_size_stays():
    model = scramble_(nn.Sequential(nn.Embedding(20, 12), Bucketed(), nn.Linear(12, 2))).double()
    plan = plan_pruning(model, TOKENS)
    small = assert_pruning_is_masking(model, plan, TOKENS)
    assert (small[1].width, small[1].max_distance) == (6, 12)
    assert plan.notes == ()


class Square(nn.Module):
    """Attention whose module holds the number of heads, of key and value heads and of channels in each."""

    def __init__(self, heads: int, dim: int, groups: int = 1) -> None:
        super().__init__()
        self.heads, self.key_heads, self.dim, width = heads, heads // groups, dim, heads * dim
        self.q, self.k, self.v = (
            nn.Linear(width, n * dim) for n in (heads, heads // groups, heads // groups)
        )
        self.out = nn.Linear(width, width)

    def forward(self, x):
        counts = (self.heads, self.key_heads, self.key_heads)
        q, k, v = (
            f(x).view(*x.shape[:2], n, self.dim).transpose(1, 2)
            for f, n in zip((self.q, self.k, self.v), counts, strict=True)
        )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads > self.key_heads)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.heads * self.dim))


@pytest.mark.parametrize(("dim", "groups"), [(4, 1), (8, 1), (8, 2)])
def test_heads_leave_also_where_there_are_as_many_as_each_has_channels(dim, groups):
    tokens = torch.arange(16).view(2, 8)  # as many tokens, too
    layers = [Square(8, dim, groups), Square(8, dim, groups)]
    model = scramble_(nn.Sequential(nn.Embedding(20, 8 * dim), *layers, nn.Linear(8 * dim, 2))).double()
    plan = plan_pruning(model, tokens)
    small = assert_pruning_is_masking(model, plan, tokens)
    assert plan.notes == ()
    assert [(m.heads, m.key_heads, m.dim, m.q.out_features) for m in small[1:3]] == [
        (4, 4 // groups, dim, 4 * dim)
    ] * 2


class InHeads(nn.Module):
    """Has the width of a head written in its code."""

    def forward(self, x):
        heads = x.view(len(x), -1, 16)
        return torch.cat([heads[..., :16].sin(), heads[..., 16:]], -1).flatten(1)


def test_heads_of_a_written_width_leave_whole():
    model, x = (
        scramble_(nn.Sequential(nn.Linear(6, 64), InHeads(), nn.Linear(64, 3))).double(),
        torch.randn(2, 6),
    )
    plan = plan_pruning(model, x.double())
    small = assert_pruning_is_masking(model, plan, x.double())
    assert plan.notes == ()
    kept = torch.tensor(plan.kept["0.weight"][0]).view(2, 16)
    assert (small[0].out_features, kept.diff().unique().tolist()) == (32, [1])
