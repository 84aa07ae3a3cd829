"""The b best: csrc/cuda/top_b.cu, around CUB's radix sort."""

from benchmarks.sass.model import Case, Note

CASES: list[Case | Note] = [
    Note(
        "top b", "CUB sorts pairs of 4 + 8 bytes: a histogram and 4 passes that read and write them, 5 reads."
    ),
]
