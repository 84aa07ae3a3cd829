"""Seconds of training and scoring beside a plain loop, which computes the same."""

import loop_speed
import pytest
import torch


@pytest.mark.parametrize("setting", loop_speed.SETTINGS)
def test_seconds_of_the_loop(setting, benchmark, loops):
    found = loop_speed.contenders(setting)
    plain, ours, *_ = found
    torch.testing.assert_close(ours.score(), plain.score(), atol=1e-4, rtol=1e-4)  # before they are trained
    loop_speed.turn(found)
    for one in found:
        one.train_seconds.clear()
        one.score_seconds.clear()
    benchmark.pedantic(loop_speed.turn, (found,), rounds=5)
    loops[setting] = loop_speed.ratios(found)
    benchmark.extra_info.update(loops[setting])
