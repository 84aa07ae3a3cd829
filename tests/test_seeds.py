import random

import numpy as np
import torch

from prunefuse._seeds import derive, generator, isolated


def draw() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def test_scope_is_repeatable_and_leaves_the_generators_as_found() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    untouched = [draw(), draw()]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    first = draw()
    with isolated(7):
        inside = draw()
    assert [first, draw()] == untouched
    with isolated(7):
        assert draw() == inside
    with isolated(8):
        assert draw() != inside


def test_scope_restores_after_an_error() -> None:
    state = torch.get_rng_state()
    try:
        with isolated(7):
            draw()
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_purposes_have_streams_of_their_own() -> None:
    seeds = {
        derive(s, *p) for s in range(50) for p in (("a",), ("b",), ("a", 1), ("a", 11), ("a1",), ("a", 1, 1))
    }
    assert len(seeds) == 300
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive(0, "order") == derive(0, "order")
    assert torch.equal(torch.rand(3, generator=generator(5)), torch.rand(3, generator=generator(5)))
