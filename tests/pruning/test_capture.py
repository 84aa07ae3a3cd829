"""Capturing a model: what is said when it cannot be, and what is not; tensors that it does not own."""

from __future__ import annotations

import copy
import functools
import logging
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
import torchvision
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn
from torch.nn.utils import prune

from prunefuse.errors import CaptureError
from prunefuse.pruning import PruningPlan, plan_pruning


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_exported_is_named_with_the_reason():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Branches()))
    with pytest.raises(CaptureError, match=r"module '1\.1' \(Branches\): Could not guard on data") as caught:
        plan_pruning(model, torch.zeros(1, 4), expressed_by="program")
    assert caught.value.module == "1.1"


def test_a_model_that_cannot_run_is_named_with_the_reason():
    with pytest.raises(CaptureError, match=r"in module '0' \(Linear\): "):
        plan_pruning(nn.Sequential(nn.Linear(4, 4), Branches()), torch.zeros(1, 3))


class Looks(nn.Module):
    """Two layers with ``function`` between them, whose code looks at values."""

    def __init__(self, function):
        super().__init__()
        self.a, self.between, self.b = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.function = function

    def forward(self, x):
        return self.b(self.function(self, self.a(x), x))


def checks(_, h, x):
    assert torch.isfinite(h).all()
    assert x.abs().sum() > 0  # so that it does not run on zeros
    return h


def branches(_, h, x):
    return h.relu() if (x > 0).any() else h.tanh()


def some_rows(net, h, x):
    result = torch.zeros_like(h)
    rows = x.sum(-1) > 0
    result[rows] = net.between(h[rows])
    return result


def indices(_, h, x):
    return h[torch.where(x.sum(-1) > 0)].relu()


def counted(_, h, x):
    return h[:, : int((x.sum(-1) > 0).sum().clamp(1, 3))]


def through_numpy(_, h, x):
    return h * torch.from_numpy(x.numpy().sum(-1, keepdims=True))


def repeated(_, h, x):
    return h.repeat_interleave(torch.tensor([1, 2, 0, 1, 1]), 1)


LOOKS = [checks, branches, some_rows, indices, counted, through_numpy, repeated]


@pytest.mark.parametrize("function", LOOKS, ids=lambda function: function.__name__)
def test_code_that_looks_at_values_is_planned_by_a_run(function):
    model, x = scramble_(Looks(function)).double(), torch.randn(2, 5, 8).double()
    before = x.clone()
    plan = plan_pruning(model, x)
    assert plan.layers[0].width_after == 16
    # The numbers of times are written in the code, and do not depend on the inputs.
    assert ("planned by one run on the example inputs" in plan.notes[0]) == (function is not repeated)
    assert_pruning_is_masking(model, plan, x)
    assert torch.equal(x, before)
    rows = int((x.sum(-1) > 0).sum())
    if function is some_rows:
        assert plan.flops[0] * 2 == 2 * (10 * 32 * 8 + rows * 32 * 32 + 10 * 3 * 32)


def largest(_, h, x):
    return h * h.abs().max().item()


def in_numpy(_, h, x):
    return h * float(h.detach().numpy().mean())


@pytest.mark.parametrize(("function", "why"), [(largest, "reduces over"), (in_numpy, "to NumPy")])
def test_a_number_that_python_makes_of_all_channels_keeps_them(function, why):
    with pytest.raises(ValueError, match=why):
        plan_pruning(Looks(function), torch.randn(2, 5, 8))


class TrainsWithToken(nn.Module):
    """Replaces some rows by a token, in training mode only, where a mask is drawn by ``draw``."""

    def __init__(self, draw):
        super().__init__()
        self.a, self.b, self.token = nn.Linear(8, 32), nn.Linear(32, 3), nn.Parameter(torch.randn(32))
        self.draw = draw

    def forward(self, x):
        h = self.a(x)
        if self.training:
            h = torch.where(self.draw(h)[..., None], self.token, h)
        return self.b(h)


def test_what_only_training_uses_is_found_by_a_run_in_training_mode():
    model, x = (
        TrainsWithToken(lambda h: torch.from_numpy(torch.rand(h.shape[:2]).numpy() < 0.5)),
        torch.randn(2, 5, 8),
    )
    state = torch.get_rng_state()
    plan = plan_pruning(model, x)
    assert torch.equal(state, torch.get_rng_state())
    small = plan.extract(model).train()
    small(x).sum().backward()
    assert (small.token.shape, plan.notes) == ((16,), ())


def test_what_only_training_uses_is_named_if_training_cannot_be_followed():
    def fails(_):
        raise RuntimeError("no targets")

    (note,) = plan_pruning(TrainsWithToken(fails), torch.randn(2, 5, 8)).notes[:1]
    assert "no targets" in note
    assert note.endswith(": token")


class Cache:
    def __init__(self, *tensors):
        self.tensors = tensors


@dataclass
class Result:
    y: torch.Tensor
    count: int = 3


@pytest.mark.parametrize(
    ("returns", "shape", "width"),
    [
        (lambda y, h: (y, Cache(h)), [2, 3], 16),
        (lambda y, h: Result(y), [2, 3], 16),
        (lambda y, h: [Result(h)], [2, 32], 32),
    ],
    ids=["a cache beside the output", "a dataclass", "a dataclass with the channels"],
)
def test_what_a_model_returns_in_objects(returns, shape, width):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 3)

        def forward(self, x):
            h = self.a(x)
            return returns(self.b(h), h)

    model, x = Net(), torch.randn(2, 8)
    small = plan_pruning(model, x).extract(model)
    assert small.a.out_features == width
    returned = small(x)
    returned = returned[0] if isinstance(returned, tuple | list) else returned
    assert list((returned.y if isinstance(returned, Result) else returned).shape) == shape


NOISY = """
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune
from prunefuse.pruning import plan_pruning

class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Loop(nn.Module):
    def forward(self, x):
        for _ in range(int(x.sum().item())):
            x = x + 1
        return x

class View(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 8)

for model, shape in [
    (nn.Sequential(nn.Linear(4, 4), Branches(), nn.Linear(3, 4)), (1, 4)),
    (nn.Sequential(nn.Linear(4, 4), Loop(), nn.Linear(3, 4)), (1, 4)),
    (nn.Linear(4, 8), (1, 3)),
    (nn.Sequential(nn.Linear(4, 8), View(), nn.Linear(8, 2)), (2, 4)),
]:
    try:
        plan_pruning(model, torch.zeros(shape)).extract(model)
        raise SystemExit("no error")
    except (RuntimeError, ValueError):
        pass
"""


def test_an_error_comes_without_the_output_of_torch():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("fails", [False, True])
def test_loggers_and_stderr_are_left_as_found(fails, capsys):
    class Talks(nn.Linear):
        def forward(self, x):
            print("mine", file=sys.stderr)
            return super().forward(x if not fails else x.flatten())

    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    before = [(logger.disabled, logger.level, list(logger.filters)) for logger in loggers]
    stream = sys.stderr
    with pytest.raises(RuntimeError) if fails else nullcontext():
        plan_pruning(nn.Sequential(Talks(4, 8), nn.Linear(8, 2)), torch.zeros(2, 4))
    assert sys.stderr is stream
    assert before == [(logger.disabled, logger.level, list(logger.filters)) for logger in loggers]
    assert ("mine" in capsys.readouterr().err) is not fails


class CopiesItself(nn.Linear):
    """Its copy has values, whatever the copies of other modules have."""

    def __deepcopy__(self, memo):
        copied = type(self)(self.in_features, self.out_features)
        copied.load_state_dict(self.state_dict())
        return copied


def test_a_model_that_copies_itself():
    model = nn.Sequential(nn.Linear(4, 8), CopiesItself(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    plan = plan_pruning(model, torch.zeros(2, 4))
    assert [layer.width_after for layer in plan.layers] == [4, 3, 3, 2]


PEAK = """
import resource, torch
from torch import nn
from torch.nn.utils import prune
from prunefuse.pruning import plan_pruning
torch.set_num_threads(1)

class Flat(nn.Module):  # its small network is exported as well
    def forward(self, x):
        return x.view(-1, 4096)

def model(width):
    return nn.Sequential(nn.Linear(4, width), Flat(), nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

plan_pruning(model(4096)[2:], torch.zeros(1, 4096))
dense = model(4096)
before = peak()
for options in ({}, {"preset": "spa"}, {"criterion": "l1", "aggregation": "max"}):
    plan_pruning(dense, torch.zeros(1, 4), **options)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_planning_takes_less_memory_than_the_weights_do():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 128  # MiB: what the weights have


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.here = torch.rand(8)
        self.table = [torch.rand(8)]

    def forward(self, x):
        return x * self.here + self.table[0]


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_named():
    model = nn.Sequential(nn.Linear(4, 8), Scale(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="nothing was pruned") as error:
        plan_pruning(model, torch.zeros(1, 4))
    for part in ("'here' of module '1' (Scale)", "'table' of module '1' (Scale)", "register_buffer"):
        assert part in str(error.value)
    here = model[1].here
    del model[1].here
    model[1].register_buffer("here", here)
    model[1].table = [torch.rand(1)]
    plan = plan_pruning(model, torch.zeros(1, 4))
    assert (plan.layers[0].width_after, plan.notes) == (4, ())


def test_a_constant_that_meets_no_channel_is_not_noted():
    class Shifted(nn.Linear):
        def forward(self, x):
            return super().forward(x - torch.ones(4))

    assert plan_pruning(nn.Sequential(Shifted(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4)).notes == ()


def masked_linear(width: int) -> nn.Module:
    return prune.random_unstructured(nn.Linear(6, width), "weight", 0.3)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("wrap", [masked_linear, lambda n: torch.nn.utils.weight_norm(nn.Linear(6, n))])
def test_a_module_that_holds_a_computed_weight(wrap):
    model, x = nn.Sequential(wrap(20), nn.ReLU(), nn.Linear(20, 3)), torch.randn(4, 6)
    assert not model[0].weight.is_leaf
    small = plan_pruning(model, x, ratio=0.5).extract(model)
    assert small(x).shape == (4, 3)
    assert small[0].weight.shape == small[2].weight.T[:, :1].expand(-1, 6).shape == (10, 6)
    assert not model[0].weight.is_leaf


class WithDeadCode(nn.Module):
    def __init__(self, dead):
        super().__init__()
        self.a, self.b, self.dead = nn.Linear(6, 20), nn.Linear(20, 3), dead

    def forward(self, x):
        h = self.a(x)
        self.dead(h)
        return self.b(h.relu())


@pytest.mark.parametrize(
    "dead", [lambda h: h[:, -1].shape, lambda h: h.detach().var(1).sqrt().amax(), lambda h: h.norm(dim=1)]
)
def test_what_nobody_reads_keeps_nothing_whole(dead):
    model, x = WithDeadCode(dead), torch.randn(4, 6)
    plan = plan_pruning(model, x, ratio=0.5)
    assert plan.layers[0].width_after == 10
    assert plan.extract(model)(x).shape == (4, 3)


def test_what_nobody_reads_still_has_to_run():
    offsets = torch.randn(20)
    model, x = WithDeadCode(lambda h: h + offsets), torch.randn(4, 6)
    with pytest.raises(ValueError, match="nothing was pruned"):
        plan_pruning(model, x, ratio=0.5)


class Caches(nn.Module):
    """Keeps what it computes from parameters for later forwards."""

    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Linear(3, 16), nn.Linear(16, 3)
        self.table, self.more = nn.Parameter(torch.randn(16, 2)), nn.Parameter(torch.randn(16, 2))

    def made(self):
        return self.table.exp().select(1, 0), self.more.exp().select(1, 0)

    def forward(self, x):
        scale, shift = self.scale_and_shift(len(x))
        return self.o(self.i(x) * scale + shift)


class NoneBefore(Caches):
    cache = more_of_it = None

    def scale_and_shift(self, _):
        if self.training or self.cache is None:
            self.cache, self.more_of_it = self.made()
        return self.cache, self.more_of_it


class AbsentBefore(Caches):
    def scale_and_shift(self, _):
        if not hasattr(self, "cache"):
            self.cache = self.made()[0]
        return self.cache, self.made()[1]


class ByDictionary(Caches):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def scale_and_shift(self, size):
        if size not in self.cache:
            self.cache[size] = dict(zip("ab", self.made(), strict=True))
        return self.cache[size]["a"], self.cache[size]["b"]


class ByTuple(Caches):
    def __init__(self):
        super().__init__()
        self.cache = None

    def scale_and_shift(self, _):
        if self.cache is None:
            self.cache = self.made()
        return self.cache


class ByList(Caches):
    def __init__(self):
        super().__init__()
        self.cache = []

    def scale_and_shift(self, _):
        if not self.cache:
            self.cache.extend(self.made())
        return self.cache


class BySize(Caches):
    """As rotary embeddings do it: the size that was made last decides."""

    def __init__(self):
        super().__init__()
        self.made_for, self._scale, self._shift = 0, None, None

    def scale_and_shift(self, size):
        if size > self.made_for:
            self.made_for = size
            self._scale, self._shift = (x.expand(size, -1) for x in self.made())
        return self._scale[:size], self._shift[:size]


class Helper:
    """Keeps tensors for a module, as an object of no kind that PyTorch knows."""

    def __init__(self):
        self.cache, self.by_size, self.made_for = None, {}, 0


class Helped(Caches):
    def __init__(self):
        super().__init__()
        self.helper = Helper()


class OfHelper(Helped):
    def scale_and_shift(self, _):
        if self.helper.cache is None:
            self.helper.cache = self.made()
        return self.helper.cache


class ByDictionaryOfHelper(Helped):
    def scale_and_shift(self, size):
        if size not in self.helper.by_size:
            self.helper.by_size[size] = self.made()
        return self.helper.by_size[size]


class BySizeOfHelper(Helped):
    def scale_and_shift(self, size):
        if size > self.helper.made_for:
            self.helper.made_for = size
            self.helper.cache = [x.expand(size, -1) for x in self.made()]
        return (x[:size] for x in self.helper.cache)


class LateInHelper(Helped):
    def scale_and_shift(self, _):
        if not hasattr(self.helper, "late"):
            self.helper.late = self.made()[0]
        return self.helper.late, self.made()[1]


CACHES = [
    *(NoneBefore, AbsentBefore, ByDictionary, ByTuple, ByList, BySize),
    *(OfHelper, ByDictionaryOfHelper, BySizeOfHelper, LateInHelper),
]


@pytest.mark.parametrize("kind", CACHES)
def test_what_a_forward_after_planning_has_cached_does_not_count(kind):
    model, x = nn.Sequential(nn.Linear(4, 3), kind()).eval(), torch.randn(5, 4)
    plan = plan_pruning(model, x)
    expected = plan.extract(model)(x)
    with torch.no_grad():
        outputs = model(x)
    small = plan.extract(model)
    for _ in range(2):
        torch.testing.assert_close(small(x), expected)
    assert torch.equal(model(x), outputs)


@pytest.mark.parametrize("kind", CACHES)
def test_what_a_forward_has_cached_does_not_count(kind, tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 3), kind()).eval(), torch.randn(5, 4)
    before = plan_pruning(model, x)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        model(x[:2])
        model(x)
    plan = plan_pruning(model, x)
    assert plan.kept == before.kept
    assert model(x).shape == (5, 3)
    plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    expected = before.extract(fresh)(x)
    for dense in (model, fresh):
        small = loaded.extract(dense)
        for _ in range(2):
            torch.testing.assert_close(small(x), expected)
        torch.testing.assert_close(small(x[:2]), expected[:2])
    assert "8 of 16 stay" in loaded.explain("1.i", model=model, example_inputs=x)
    assert "held" not in loaded.explain("1.i", model=model, example_inputs=x)


@functools.cache
def lower_triangle(size):
    return torch.ones(size, size).tril()


@functools.lru_cache(maxsize=8)
def ranges(size):
    return torch.arange(size), [torch.arange(size)]


STORE: dict[int, torch.Tensor] = {}
LAST = None


def stored(size):
    if size not in STORE:
        STORE[size] = torch.ones(size, size).tril()
    return STORE[size]


def last(size):
    global LAST
    if LAST is None or len(LAST) != size:
        LAST = torch.ones(size, size).tril()
    return LAST


@pytest.mark.parametrize(
    "mask",
    [lower_triangle, lambda size: (ranges(size)[0][:, None] >= ranges(size)[1][0]).float(), stored, last],
)
def test_caches_outside_of_the_model_hold_nothing_of_planning(mask):
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.b((mask(len(x)) @ self.a(x)).relu())

    model, x = Mixes(), torch.randn(5, 8)
    small = plan_pruning(model, x, ratio=0.5).extract(model)
    assert small.a.out_features == 8
    for one in (model, small):
        expected = one.b((torch.ones(5, 5).tril() @ one.a(x)).relu())
        assert torch.equal(one(x), expected)
    plan_pruning(model, x, ratio=0.5).extract(model)  # now the cache holds one with values
    assert torch.equal(small(x), expected)


def test_a_tensor_that_a_forward_can_do_without_is_no_cache():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.rand(8)

        def forward(self, x):
            return x if self.scale is None else x * self.scale

    with pytest.raises(ValueError, match="'scale' of module '1'"):
        plan_pruning(nn.Sequential(nn.Linear(4, 8), Optional(), nn.Linear(8, 2)), torch.zeros(1, 4))


class Asserting(nn.Module):
    """Compares the number of its channels with an attribute, which no operator is given."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        assert x.shape[1] == self.channels
        return x.relu()


@pytest.mark.parametrize("other", [nn.Identity, lambda: nn.Unflatten(1, (12, 2))], ids=["alone", "beside"])
def test_a_number_of_channels_that_is_only_asserted_follows(other):
    model = nn.Sequential(
        *(nn.Conv2d(3, 24, 1), Asserting(24), nn.Conv2d(24, 24, 1), Asserting(24)),
        *(other(), nn.Flatten(1), nn.Linear(24 * 16, 2)),
    )
    x = torch.randn(2, 3, 4, 4)
    plan = plan_pruning(scramble_(model), x, ratio=0.5)
    small = assert_pruning_is_masking(model.double(), plan, x.double())
    assert (small[1].channels, small[3].channels) == (12, 12)


def test_code_that_looks_at_values_is_recorded_without_an_export(monkeypatch):
    """An export takes seconds to find out that it cannot; the note names the call that decides."""

    def refuse(*_, **__):
        raise AssertionError("torch.export was asked")

    monkeypatch.setattr("torch.export.export", refuse)
    plan = plan_pruning(nn.Sequential(Looks(some_rows)), torch.randn(2, 5, 8))
    assert plan.notes[0].endswith("these decide (index in 0)")


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "mobilenet_v3_small", "densenet121"])
def test_models_are_planned_from_shapes_without_an_export(monkeypatch, name):
    """What takes seconds there takes milliseconds, and gives the same plan."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    image = torch.zeros(1, 3, 224, 224)

    def refuse(*_, **__):
        raise AssertionError("what takes longer was asked")

    with monkeypatch.context() as patched:
        patched.setattr("torch.export.export", refuse)
        patched.setattr("torch._subclasses.fake_tensor.FakeTensorMode.__init__", refuse)
        fast = plan_pruning(model, image, ratio=0.5)
        small = fast.extract(model)  # which is tried by shapes as well
    assert sum(x.numel() for x in small.parameters()) == fast.params[1]
    slow = plan_pruning(model, image, ratio=0.5, expressed_by="program")
    assert fast.expressed_by == "module"
    if name != "vit_b_16":  # the program can lose sizes that its code has written
        assert fast.kept == slow.kept


def test_a_tensor_that_a_factory_makes_is_where_it_was_made():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.first(x)
            noise = (
                torch.zeros_like(x)
                + torch.ones(8)
                + x.new_zeros(8)
                + torch.empty_like(x).fill_(1)
                + torch.tensor(2.0)
            )
            return self.last(x + noise)

    plan = plan_pruning(Added(), torch.zeros(2, 3), ratio=0.5, expressed_by="program")
    assert plan.layers[0].width_after == 4
    with pytest.raises(ValueError, match="nothing was pruned"):
        plan_pruning(Added(), torch.zeros(2, 3), ratio=0.5)  # its code makes eight ones


class IfSo(nn.Module):
    """Loses channels where a question is answered with yes; else there would be none to lose."""

    def __init__(self, question, seen):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.ask = lambda x: (seen.append(x.is_meta), question(x))[1]

    def forward(self, x):
        return self.last(self.first(x).relu()) if self.ask(x) else x[:, :2]


def in_order(x):
    return (torch.arange(len(x), device=x.device).diff() == 1).all()


def sum_of_sizes(x):
    return (torch.tensor(x.shape).float().mean() * 2).item() == 7


def a_split(x):
    return torch.ones(4).split(2)[1].sum() == 2


@pytest.mark.parametrize("question", [in_order, a_split])
def test_what_no_input_decides_is_known_without_values(question):
    seen = []
    model = IfSo(question, seen)
    small = plan_pruning(model, torch.randn(3, 4), ratio=0.5).extract(model)
    assert seen == [True] * len(seen)
    assert small.first.out_features == 4


def written(x):
    marks = torch.zeros(3)
    marks[0] = 1
    return marks.sum() > 0


def written_through_a_view(x):
    marks = torch.zeros(3)
    marks.view(1, 3).add_(1)
    return marks.sum() > 0


def written_through_what_may_be_a_view(x):
    marks = torch.zeros(3)
    marks.type_as(marks).flatten().add_(1)
    return marks.sum() > 0


def written_after_a_first_look(x):
    marks = torch.zeros(3)
    return not bool(marks.any()) and bool(marks.add_(1).any())


def drawn(x):
    return torch.rand(1000).mean() > 0.4


def given(x):
    return x.abs().sum() > 0


@pytest.mark.parametrize(
    "question",
    [
        written,
        written_through_a_view,
        written_through_what_may_be_a_view,
        written_after_a_first_look,
        drawn,
        given,
        sum_of_sizes,
    ],
)
def test_what_is_not_known_without_values_is_asked_with_values(question):
    model = IfSo(question, [])
    small = plan_pruning(model, torch.randn(3, 4), ratio=0.5).extract(model)
    assert small.first.out_features == 4


def test_two_runs_differ_where_the_type_of_numbers_does():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            half = torch.arange(4) / 2
            if half.dtype is not torch.get_default_dtype():
                raise TypeError(half.dtype)
            return self.last(self.first(x + half.to(x.dtype)))

    model = Halves()
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            seen = plan_pruning(model, torch.randn(3, 4, dtype=torch.float32), ratio=0.5)
            assert seen.extract(model).first.out_features == 4
    finally:
        torch.set_default_dtype(before)


def test_copies_share_what_the_model_shares():
    class Sharing(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            self.known = {"all": [self, *self]}
            self.again = self.known["all"]
            self.others = (self[0],)

        def __getstate__(self):
            return {**self.__dict__, "made": [self[0]]}

    model = Sharing()
    small = plan_pruning(model, torch.zeros(1, 4), ratio=0.5).extract(model)
    assert small.again is small.known["all"]
    assert small.again[0] is small
    assert small.again[1] is small[0]
    assert small.others == (small[0],)
    assert small.made == [small[0]]
    assert small[0].out_features == 4
    assert model.again[0] is model
    assert model[0].out_features == 8
