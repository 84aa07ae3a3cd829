"""Every case of the table, each contender in turn; pytest-benchmark keeps our times."""

import pytest
import torch

from prunefuse.bench.cases import cases
from prunefuse.bench.race import Race
from prunefuse.ops import loader

CUDA = pytest.mark.skipif(bool(loader.why_no_cuda) or not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize(
    ("device", "case"),
    [
        *(pytest.param("cpu", case, id=f"cpu: {case.name}") for case in cases("cpu")),
        *(pytest.param("cuda", case, id=f"cuda: {case.name}", marks=CUDA) for case in cases("cuda")),
    ],
)
def test_speed(device, case, benchmark, results):
    race = Race(case, torch.device(device))
    # The set-up of every round is a turn of all the others.
    benchmark.pedantic(race.ours, setup=race.others, rounds=race.rounds)
    result = race.result()
    results.append(result)
    benchmark.extra_info["rate"] = f"{result.work / result.ours.median / 1e9:.4g} {result.unit}"
    for line in result.lines:
        if line.seconds:
            benchmark.extra_info[line.name] = line.median
    assert result.ours.matches, f"wrong by {result.ours.error}"
