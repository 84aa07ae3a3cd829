"""Recurrent layers, attention and embeddings: what models of sequences consist of."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn

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
