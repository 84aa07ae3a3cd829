"""A small causal decoder with grouped queries and tied embeddings, on a text written here: pruned, selecting, fused back."""

import copy
import random

import pytest
import torch
from pruning_oracle import assert_pruning_is_masking, masked, scramble_
from torch import nn
from torch.nn import functional as F

import prunefuse
from prunefuse.dynamics import Dual, Loss, Recorder

WORDS, LENGTH = 128, 28
KINDS = ("story", "sums", "noise")


class Block(nn.Module):
    """Attention with two query heads to a key head, and a gated layer, both after a norm and added to the stream."""

    def __init__(self, width, heads, dim, inner):
        super().__init__()
        self.dim = dim
        self.norm, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, heads * dim, bias=False)
        self.k, self.v = (nn.Linear(width, heads * dim // 2, bias=False) for _ in "kv")
        self.out = nn.Linear(heads * dim, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in "gu")
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).unflatten(-1, (-1, self.dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self, width=32, heads=4, dim=8, inner=64, blocks=2, scale=0.1):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dim, inner) for _ in range(blocks)))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.words.weight
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=scale)

    def states(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.norm(self.blocks(self.words(tokens) + self.places(places)))

    def forward(self, tokens):
        return self.head(self.states(tokens))


def text(seed=0, **counts):
    """Lines of each kind in turn, as tokens (N, LENGTH) with 0 as padding: sums can be learned, noise cannot."""
    draw = random.Random(seed)

    def line(kind):
        if kind == "story":
            words = ("cat dog cow", "sees likes", "fish birds milk")
            return "the {} {} {}.".format(*(draw.choice(some.split()) for some in words))
        if kind == "sums":
            pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(draw.randint(2, 3))]
            return " ".join(f"{a}+{b}={a + b:02}" for a, b in pairs)
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(12, 20)))

    lines = [line(kind) for kind in KINDS for _ in range(counts.get(kind, 0))]
    return torch.tensor([list(line.encode().ljust(LENGTH, b"\0")) for line in lines])


def utilities_of(model, tokens, strategy):
    """Utilities of lines by their tokens that are no padding, without the logits."""
    targets = tokens[:, 1:]
    loss = {"targets": targets} if "loss" in strategy else {}
    with torch.no_grad():
        states = model.states(tokens)[:, :-1]
    return prunefuse.score_sequences(states, model.head.weight, None, strategy, mask=targets != 0, **loss)


def losses_of(model, tokens):
    """The same losses from logits, with gradients."""
    loss = F.cross_entropy(model(tokens)[:, :-1].mT, tokens[:, 1:], ignore_index=0, reduction="none")
    return loss.sum(1) / (tokens[:, 1:] != 0).sum(1)


def train(model, tokens, rows, epochs, recorder=None):
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(epochs):
        for part in rows[torch.randperm(len(rows))].split(32):
            losses = losses_of(model, tokens[part])
            if recorder is not None:
                recorder.update_losses(losses, part)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        if recorder is not None:
            assert len(recorder.end_epoch()) == 0


def test_a_pruned_decoder_is_the_masked_one_and_its_scores_are():
    dense, tokens = scramble_(Decoder()).double(), text(story=3, sums=4, noise=2)
    plan = prunefuse.plan_pruning(dense, (tokens[:2],), ratio=0.5)
    small = assert_pruning_is_masking(dense, plan, tokens)
    widths = [len(getattr(small.blocks[0], name).weight) for name in ("q", "k", "v", "gate")]
    assert widths == [16, 8, 8, 32]
    assert small.head.weight is small.words.weight
    assert small.head.weight.shape == (WORDS, 16)
    # From the states of either, as from the logits.
    names = ("entropy", "margin", "loss")
    got = utilities_of(small, tokens, names)
    ours, targets = masked(dense, plan), tokens[:, 1:]
    wanted = utilities_of(ours, tokens, names)
    with torch.no_grad():
        logits = small(tokens)[:, :-1]
        by_tokens = prunefuse.score_tokens(logits, names[:2], mask=targets != 0)
        by_tokens["loss"] = losses_of(small, tokens)
    for name in names:
        torch.testing.assert_close(got[name], by_tokens[name])
        torch.testing.assert_close(got[name], wanted[name])


def test_a_pruned_decoder_selects_lines_and_is_fused_back():
    tokens, test = text(story=250, sums=60, noise=40), text(seed=1, sums=60)
    kinds = torch.arange(3).repeat_interleave(torch.tensor([250, 60, 40]))
    dense = Decoder()
    plan = prunefuse.plan_pruning(dense, (tokens[:2],), ratio=0.5)
    selector, recorder = plan.extract(dense), Recorder(len(tokens), {"dual": Dual(), "last": Loss("last")})
    train(selector, tokens, torch.arange(len(tokens)), 24, recorder)
    losses, scores = utilities_of(selector, tokens, "loss"), recorder.scores()

    def share(picks, kind):
        return float((kinds[picks] == KINDS.index(kind)).float().mean())

    # What cannot be learned has the largest loss. Its probability stays where it is, and with it the score of windows.
    for utility in (losses, scores["last"]):
        assert share(prunefuse.top_b(utility, 40)[0], "noise") > 0.9
    changing = scores["dual"] > scores["dual"].quantile(0.2)
    picks, _ = prunefuse.top_b(losses.where(changing, -torch.inf), 80)
    assert share(picks, "noise") < 0.1
    assert share(picks, "sums") > 2 * 60 / len(tokens)

    after = []
    for rows in (picks, torch.randperm(len(tokens))[:80]):
        fused = copy.deepcopy(dense)
        plan.fuse_(fused, selector)
        assert fused.head.weight is fused.words.weight
        back = plan.extract(fused).state_dict()
        assert all(torch.equal(back[name], tensor) for name, tensor in selector.state_dict().items())
        train(fused, tokens, rows, 20)
        with torch.no_grad():
            after.append(float(losses_of(fused, test).mean()))
    assert after[0] < after[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_losses_of_an_evaluation_pass_are_recorded_without_logits(dtype):
    tokens = text(story=20, sums=12)
    model, recorder = Decoder().to(dtype), Recorder(len(tokens), ("loss",), forward="evaluation")
    expected = []
    for epoch in range(2):
        with torch.no_grad():
            model.words.weight.mul_(1 + epoch)
            expected.append(losses_of(model, tokens).double())
        for part in torch.arange(len(tokens)).split(10):
            recorder.update_losses(utilities_of(model, tokens[part], "loss"), part)
        recorder.end_epoch()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(
        recorder.scores()["loss"], torch.stack(expected).mean(0), rtol=tolerance, atol=tolerance
    )
