"""The counter of waits itself: one test for each kind of wait, and for what does not wait."""

import pytest
import torch
from device_waits import Counter

import prunefuse

WAITS = {
    "item": lambda x, host: x[0].item(),
    "bool": lambda x, host: bool((x > 0).any()),
    "int": lambda x, host: int(x.argmax()),
    "tolist": lambda x, host: x.tolist(),
    "cpu": lambda x, host: x.cpu(),
    "to cpu": lambda x, host: x.to("cpu", torch.float64),
    "copied to the cpu": lambda x, host: host.copy_(x),
    "nonzero": lambda x, host: (x > 0).nonzero(),
    "mask": lambda x, host: x[x > 0],
    "masked_select": lambda x, host: x.masked_select(x > 0),
    "values for a mask": lambda x, host: x.__setitem__(x > 5, x[:0]),
    "index of no dimension": lambda x, host: x[x.argmax()],
    "unique": lambda x, host: x.unique(),
    "unique_consecutive": lambda x, host: x.unique_consecutive(),
    "bincount": lambda x, host: x.long().abs().bincount(),
    "repeat_interleave": lambda x, host: x.repeat_interleave(x.long().abs()),
    "equal": lambda x, host: torch.equal(x, x),
    "allclose": lambda x, host: torch.allclose(x, x),
    "multinomial": lambda x, host: x.abs().multinomial(1),
}
UPLOADS = {
    "to": lambda x, host: host.to(x.device),
    "cuda": lambda x, host: host.cuda(),
    "pageable, though not blocking": lambda x, host: host.to(x.device, non_blocking=True),
    "pinned, but blocking": lambda x, host: host.pin_memory().to(x.device),
    "torch.tensor": lambda x, host: torch.tensor([1.0, 2.0], device=x.device),
    "a number as a tensor": lambda x, host: torch.tensor(1.0, device=x.device),
    "new_tensor": lambda x, host: x.new_tensor([1.0]),
    "copied from the cpu": lambda x, host: x.copy_(host),
    "index on the cpu": lambda x, host: x[torch.tensor([1, 0])],
}
FREE = {
    "arithmetic": lambda x, host: (x * 2 + x.sum()).clamp_min(0),
    "numbers": lambda x, host: torch.where(x > 0, x, 0.0) + torch.tensor(2.0),
    "made there": lambda x, host: torch.full((3,), -1, device=x.device) + x.new_zeros(3),
    "views": lambda x, host: x[1:][0].expand(3),
    "index on the device": lambda x, host: x[x.argsort()[:2]],
    "a number for a mask": lambda x, host: x.__setitem__(x > 0, 1.0),
    "pinned": lambda x, host: host.pin_memory().to(x.device, non_blocking=True),
    "nonzero of known size": lambda x, host: (x > 0).nonzero_static(size=2),
    "shapes": lambda x, host: (len(x), x.dtype, x.device.type == "cuda", x.numel() > 0),
    "on the cpu": lambda x, host: (host > 0).nonzero().tolist(),
}


def note(call):
    with Counter() as counter:
        call(counter.to(torch.tensor([1.0, -2.0, 3.0])), torch.tensor([1.0, -2.0, 3.0]))
    return len(counter.waits), len(counter.uploads)


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_seen(what):
    assert note(WAITS[what]) == (1, 0)


@pytest.mark.parametrize("what", UPLOADS)
def test_uploads_are_seen(what):
    assert note(UPLOADS[what]) == (0, 1)


@pytest.mark.parametrize("what", FREE)
def test_what_does_not_wait_is_not_counted(what):
    assert note(FREE[what]) == (0, 0)


def test_every_wait_counts_and_results_are_right():
    with Counter() as counter:
        x = counter.to(torch.tensor([1.0, -2.0, 3.0]))
        assert x.is_cuda
        assert (x + x).tolist() == [2, -4, 6]
        view = x[1:]
        assert view.mul_(2) is view  # in place, through a view
        assert x.sum().item() == 3
        assert counter.count == 2


def test_two_devices_do_not_mix():
    with Counter() as counter:
        x = counter.to(torch.zeros(3))
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.zeros(3)
    with pytest.raises(RuntimeError, match="outside"):
        x + 1


def test_operators_of_the_package_do_not_wait(monkeypatch):
    from prunefuse.ops import loader

    monkeypatch.setattr(loader, "why_no_cuda", "")
    logits = torch.randn(9, 4)
    with Counter() as counter:
        utilities = prunefuse.score(counter.to(logits), "entropy")
        assert utilities.is_cuda
        assert counter.count == 0
        torch.testing.assert_close(utilities.cpu(), prunefuse.score(logits, "entropy"))
