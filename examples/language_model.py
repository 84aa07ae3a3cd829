"""Data selection for a language model: a pruned decoder reads a text, picks lines, is fused back and trained on them."""

import copy
import random

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from prunefuse import plan_pruning, score_sequences, top_b
from prunefuse.dynamics import Recorder


def text(story, sums, noise=0):
    words = [of.split() for of in ("the", "cat dog cow", "sees likes", "fish birds milk")]
    digits = [[random.choices(range(10), k=2) for _ in range(3)] for _ in range(sums)]
    lines = [" ".join(map(random.choice, words)) for _ in range(story)]
    lines += [" ".join(f"{a}+{b}={a + b:02}" for a, b in pairs) for pairs in digits]
    lines += ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=20)) for _ in range(noise)]
    return torch.tensor([list(line.encode().ljust(32, b"\0")) for line in lines])


def losses_of(model, tokens):  # of each line the mean over what is no padding
    loss = cross_entropy(model(tokens).logits[:, :-1].mT, tokens[:, 1:], ignore_index=0, reduction="none")
    return loss.sum(1) / (tokens[:, 1:] != 0).sum(1)


def train(model, rows, epochs):
    optimizer, recorder = torch.optim.AdamW(model.parameters(), 3e-3), Recorder(len(pool), ("dual",))
    for _ in range(epochs):
        for part in rows[torch.randperm(len(rows))].split(32):
            losses = losses_of(model, pool[part])
            recorder.update_losses(losses, part)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        recorder.end_epoch()
    return recorder.scores()


random.seed(0), torch.manual_seed(0)
pool, test, counts = text(400, 80, 50), text(100, 100), torch.tensor([400, 80, 50])
sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
dense = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
plan = plan_pruning(dense, (pool[:2],), ratio=0.5)
selector = plan.extract(dense)
dual = train(selector, torch.arange(len(pool)), 20)["dual"]
hidden, following = selector.model(pool[:, :-1]).last_hidden_state, pool[:, 1:]
given = {"targets": following, "mask": following != 0}
loss = score_sequences(hidden, selector.lm_head.weight, None, "loss", **given)
utilities = {"loss": loss, "dual": dual, "random": torch.rand(len(pool))}
for name, utility in utilities.items():
    picks, model = top_b(utility, 130)[0], copy.deepcopy(dense)
    plan.fuse_(model, selector)
    train(model, picks, 15)
    kinds = torch.arange(3).repeat_interleave(counts)[picks].bincount(minlength=3).tolist()
    story, sums = (losses_of(model, part).mean().exp().item() for part in test.chunk(2))
    print(f"{name:6} picks {kinds} of story, sums, noise; perplexity {story:.2f} and {sums:.2f}")
