"""The best of a stream that a generator makes, in two workers whose picks are merged."""

import numpy as np

import prunefuse


def batches(seed, count):
    """Logits as a model would give them, batch by batch, with a row now and then that went wrong."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        logits = random.normal(size=(512, 20)).astype(np.float32)
        logits[random.integers(512)] = np.nan
        yield logits


def worker(seed, first):
    keeper = prunefuse.StreamingTopB(10, "margin")
    for logits in batches(seed, 50):
        rows = len(logits)
        keeper.update(logits, indices=np.arange(first, first + rows))  # rows of the data set
        first += rows
    return keeper


keeper, other = worker(0, first=0), worker(1, first=50 * 512)
keeper.merge(other)  # exactly what one keeper of the whole stream holds
picks, utilities = keeper.result()
print(f"{keeper.rows} rows seen, {keeper.unselectable} of them NaN")
for pick, utility in zip(picks, utilities, strict=True):
    print(f"row {pick:6d}  utility {utility:.6f}")
