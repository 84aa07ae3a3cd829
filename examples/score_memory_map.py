"""A pool on disk that need not fit in memory: logits as a memory map, taken in blocks of rows."""

import tempfile
from pathlib import Path

import numpy as np

import prunefuse
from prunefuse.scoring._files import logits_blocks

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "logits.npy")
    rows, classes = 100_000, 100
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, classes))
    random = np.random.default_rng(0)
    for start in range(0, rows, 10_000):  # 40 MB in all; as large as the disk, if you like
        array[start : start + 10_000] = random.normal(size=(10_000, classes))
    array.flush()

    keeper = prunefuse.StreamingTopB(1000, "entropy")  # memory for 1000 rows
    for block in logits_blocks(path, block_bytes=1 << 20):  # or a folder of .npy and .safetensors shards
        keeper.update(block)
    picks, utilities = keeper.result()
    print(f"{keeper.rows} rows in blocks of 1 MB; the best: {picks[:5].tolist()}")

    # Where the scores fit in memory and the logits do not, the map itself will do: it is read once.
    scores = prunefuse.score(np.load(path, mmap_mode="r"), "entropy")
    assert prunefuse.top_b(scores, 1000)[0].tolist() == picks.tolist()
