"""What holds for every operator alike, from one table: levels, threads, torch.compile, streams, graphs, wrong arguments."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prunefuse import ops
from prunefuse.ops import loader, reference
from prunefuse.ops.flops import FORMULAS

operators = torch.ops.prunefuse


def logits(*shape):
    """With special rows here and there, which must not change how the rows beside them are computed."""
    x = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    x[..., ::7, 0] = math.inf
    x[..., 3::97, :] = -math.inf
    x[..., 5::89, 1] = math.nan
    return x


def groups_mask(groups, rows):
    return torch.rand(groups, rows, generator=torch.Generator().manual_seed(rows)) < 0.7


def state(rows):
    return torch.cat([torch.full((2, rows), -math.inf), torch.zeros(4, rows)])


def neighbors():
    """Enough rows for several tiles; clusters so tight, and equals so many, that the product cannot tell them apart."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(7, 20, generator=generator)[torch.randint(7, (5300,), generator=generator)]
    x[::2] += 1e-5 * torch.randn(2650, 20, generator=generator)
    x[::50] = 0
    return x[:2300], x[2300:]


def factors(rows, *widths):
    """Of outer products: whole numbers, so that draws fall alike in any order of summation; some rows cannot be picked."""
    generator = torch.Generator().manual_seed(rows)
    made = [torch.randint(-3, 4, (rows, width), generator=generator).float() for width in widths]
    made[0][5::89, 1] = math.nan
    return (*made, torch.rand(12, dtype=torch.float64, generator=generator))


def weights(rows):
    """Whole numbers, zeros among them; some rows have none."""
    made = torch.randint(4, (rows,), generator=torch.Generator().manual_seed(rows)).double()
    made[7::101] = math.nan
    return made


def sums(rows, classes):
    return torch.zeros(rows, classes), torch.zeros(rows, classes, dtype=torch.int32), torch.zeros(rows)


def labels(rows, classes):
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(rows))


def samples(rows, of):
    return torch.randperm(of, generator=torch.Generator().manual_seed(rows))[:rows]


def kept(count, classes):
    """Logarithms of the time before; a third of the samples has none yet."""
    logs = torch.log_softmax(logits(count, classes).nan_to_num(0, 9, -9), 1)
    logs[::3] = 1
    return logs


def history(count, size):
    """Rings in every state: empty, not full yet, gone round more than once."""
    generator = torch.Generator().manual_seed(count)
    ring = torch.rand(count, size, generator=generator, dtype=torch.float64)
    counts = torch.randint(3 * size, (count,), generator=generator)
    return ring, counts, torch.rand(2, count, generator=generator, dtype=torch.float64)


def scattered():
    generator = torch.Generator().manual_seed(1)
    shapes = [((300, 200), (150, 120)), ((64, 32, 3, 3), (30, 17, 3, 3)), ((500,), (499,))]
    dense = [torch.zeros(whole) for whole, _ in shapes]
    small = [torch.randn(part, generator=generator) for _, part in shapes]
    kept, of_axis = [], []
    for whole, part in shapes:
        for n, k in zip(whole, part, strict=True):
            of_axis.append(-1 if n == k else len(kept))
            if n != k:
                kept.append(torch.randperm(n, generator=generator)[:k].sort().values)
    return dense, small, kept, of_axis


@dataclass(frozen=True)
class Op:
    """`arguments` makes a call with work for several threads, and special values in it; `wrong` are arguments by position
    that are refused, with the message. The first `writes` arguments are written (tensors, or lists of them). `matter` is
    what matters of a call's arguments afterwards, where it is not all that was written."""

    arguments: Callable[[], tuple]
    wrong: tuple[tuple[dict[int, object], str], ...]
    writes: int = 0
    matter: Callable[..., list[torch.Tensor]] | None = None


def candidates(size=3000):
    return (
        torch.zeros(size),
        torch.zeros(size, dtype=torch.int64),
        torch.tensor([-math.inf]),
        torch.tensor([0, 0, -1]),
    )


def best_kept(best, indices, threshold, counts, b, *batch):
    """Which candidates there are beside the b best, and in what order they stand, is free."""
    count = int(counts[0])
    assert int((best[:count] >= threshold).sum()) >= b
    own, order = indices[:count].sort(stable=True)
    positions, utilities = reference.top_b(best[:count][order], b)
    return [own[positions], utilities, counts[1:]]


def rows_known(state, *others):
    """What else is known of a row with a NaN, or with masked classes alone, is free."""
    return [torch.where((state[5] != 0) | (state[0] == -math.inf), 0, state[:5]), state[5]]


wrong_logits = (
    torch.zeros(3, 4, dtype=torch.int32),
    "logits must be float16, bfloat16, float32 or float64, got Int",
)
OPS = {
    "score": Op(
        lambda: (logits(5000, 40), [0, 1, 2, 3, 4], False, 0.7),
        (
            ({0: torch.zeros(3)}, r"score: logits must have 2 dimension\(s\), got 1"),
            ({0: torch.zeros(3, 0)}, "logits must have at least one class"),
            ({0: wrong_logits[0]}, wrong_logits[1]),
            ({1: []}, "strategies must name 1 to 5 strategies, got 0"),
            ({1: [5]}, "no strategy has the number 5"),
            ({1: [-1]}, "no strategy has the number -1"),
            ({3: 0.0}, "temperature must be positive"),
            ({3: math.nan}, "temperature must be positive"),
        ),
    ),
    "statistics": Op(
        lambda: (logits(4000, 130), False, 1.5),
        (
            ({0: torch.zeros(3, 4, 5)}, r"statistics: logits must have 2 dimension\(s\), got 3"),
            ({0: wrong_logits[0]}, wrong_logits[1]),
            ({2: -1.0}, "temperature must be positive"),
        ),
    ),
    "absorb_": Op(
        lambda: (state(5000), logits(5000, 40), 0.7),
        (
            ({0: state(4)}, r"absorb_: state must be contiguous, of shape \(6, 5000\)"),
            ({0: torch.zeros(5000, 6).t()}, "state must be contiguous"),
            ({0: state(5000).double()}, "state must be Float, got Double"),
            ({1: torch.zeros(5000, 0)}, "logits must have at least one class"),
            ({1: torch.zeros(5000, 2, dtype=torch.int32)}, wrong_logits[1]),
            ({2: math.inf}, "temperature must be positive and finite"),
        ),
        writes=1,
        matter=rows_known,
    ),
    "score_groups": Op(
        lambda: (logits(40, 300, 7), None, groups_mask(20, 300), [2, 0, 1], 0, 0.0, 0.0, False, False, 0.7),
        (
            ({0: torch.zeros(3, 4)}, r"score_groups: logits must have 3 dimension\(s\), got 2"),
            ({0: torch.zeros(40, 300, 0)}, "logits must have at least one class"),
            ({0: torch.zeros(40, 300, 7, dtype=torch.int32)}, wrong_logits[1]),
            ({0: torch.zeros(12, 7), 1: torch.tensor([0, 12])}, "mask must be none where there are offsets"),
            (
                {0: torch.zeros(12, 7), 1: torch.tensor([0, 13]), 2: None},
                "begin with 0 and end with the rows of logits, 12, got 0 and 13",
            ),
            (
                {0: torch.zeros(12, 7), 1: torch.tensor([0, 5, 4, 12]), 2: None},
                "offsets must not fall, got 5 before 4",
            ),
            (
                {0: torch.zeros(12, 7), 1: torch.tensor([0, 12]).int(), 2: None},
                "offsets must be Long, got Int",
            ),
            ({2: groups_mask(20, 299)}, "mask must have the rows of logits, 300, for 40 groups or a divisor"),
            ({2: groups_mask(7, 300)}, "got 300 for 7"),
            ({2: torch.ones(20, 300)}, "mask must be Bool, got Float"),
            ({3: [5]}, "no strategy has the number 5"),
            ({3: []}, "strategies must name 1 to 5 strategies, got 0"),
            ({4: 5}, "reduction: none has the number 5"),
            ({5: math.nan}, "threshold must be a number, got NaN"),
            ({7: True}, "logits must have one class where rows are labels, got 7"),
            ({9: 0.0}, "temperature must be positive"),
        ),
    ),
    "score_ensemble": Op(
        lambda: (logits(3, 3001, 20), [3, 1, 2, 0], False, 0.7),
        (
            ({0: torch.zeros(3, 4)}, r"score_ensemble: logits must have 3 dimension\(s\), got 2"),
            ({0: torch.zeros(0, 3, 4)}, "logits must have at least one pass"),
            ({0: torch.zeros(2, 3, 4, dtype=torch.int32)}, wrong_logits[1]),
            ({1: [4]}, "no strategy has the number 4"),
            ({1: [0] * 5}, "strategies must name 1 to 4 strategies, got 5"),
            ({3: 0.0}, "temperature must be positive"),
        ),
    ),
    "ensemble_add_": Op(
        lambda: (*sums(5001, 20), logits(5001, 20), False, 0.7),
        (
            (
                {0: torch.zeros(5001, 19)},
                r"ensemble_add_: sums must have the rows and classes of logits, \(5001, 20\)",
            ),
            ({0: torch.zeros(20, 5001).t()}, "sums must be contiguous"),
            ({0: torch.zeros(5001, 20).double()}, "sums must be Float, got Double"),
            ({1: torch.zeros(5001, 20)}, "votes must be Int, got Float"),
            ({2: torch.zeros(5000)}, "entropies must have the rows"),
            ({3: torch.zeros(5001, 20, dtype=torch.int32)}, wrong_logits[1]),
            ({5: 0.0}, "temperature must be positive"),
        ),
        writes=3,
    ),
    "top_b": Op(
        lambda: (logits(1, 300_000)[0].round(), 700),
        (
            ({0: torch.zeros(3, 4)}, r"top_b: utilities must have 1 dimension\(s\), got 2"),
            ({0: torch.zeros(800).half()}, "utilities must be float32 or float64, got Half"),
            ({1: -1}, r"b must lie in \[0, 300000\], got -1"),
            ({1: 300_001}, "b must lie in"),
        ),
    ),
    "keep_best_": Op(
        lambda: (*candidates(), 500, logits(1, 300_000)[0].round(), None),
        (
            ({0: torch.zeros(3, 4)}, r"keep_best_: best must have 1 dimension\(s\), got 2"),
            ({1: torch.zeros(3000)}, "indices must be Long, got Float"),
            ({1: torch.zeros(2999, dtype=torch.int64)}, "indices must have size 3000, got 2999"),
            ({2: torch.zeros(1).double()}, "threshold must be Float, got Double"),
            ({3: torch.tensor([0, 0])}, "counts must have size 3, got 2"),
            ({3: torch.tensor([3000, 0, 5])}, "counts.0. must lie in .0, 952., got 3000"),
            ({4: 953}, r"b must lie in \[1, 952\], 2048 less than the size of best, got 953"),
            ({5: torch.zeros(800).half()}, "batch must be Float, got Half"),
            ({6: torch.zeros(7, dtype=torch.int64)}, "batch_indices must have size 300000, got 7"),
        ),
        writes=4,
        matter=best_kept,
    ),
    "k_center_greedy": Op(
        lambda: (logits(3000, 20), torch.tensor([1, 4, 3]), 40, -1, weights(3000).float(), 4.0),
        (
            ({0: torch.zeros(3)}, r"k_center_greedy: features must have 2 dimension\(s\), got 1"),
            ({0: torch.zeros(50, 3).half()}, "features must be float32 or float64, got Half"),
            ({1: torch.tensor([1]).int()}, "labeled must be Long, got Int"),
            ({1: torch.tensor([3000])}, r"labeled must hold rows of features \(0..2999\), got 3000"),
            ({1: torch.tensor([], dtype=torch.int64)}, "start must be given where nothing is labeled"),
            ({2: 3001}, r"b must lie in \[0, 3000\], got 3001"),
            ({3: 3000}, "start must be a row of features or -1, got 3000"),
            ({3: 4}, "start is already labeled: 4"),
            ({4: torch.ones(2999)}, "weights must have the rows of features, 3000, got 2999"),
            ({4: torch.ones(3000, 1)}, r"weights must have 1 dimension\(s\), got 2"),
            ({4: torch.ones(3000).double()}, "weights must be Float, got Double"),
            ({5: -1.0}, "least must be at least 0, got -1"),
            ({5: math.nan}, "least must be at least 0, got nan"),
        ),
    ),
    "k_means_plus_plus": Op(
        lambda: (*factors(8000, 5, 20), weights(8000)),
        (
            ({0: torch.zeros(8000)}, r"k_means_plus_plus: residuals must have 2 dimension\(s\), got 1"),
            ({1: torch.zeros(8000)}, r"features must have 2 dimension\(s\), got 1"),
            ({0: torch.zeros(7999, 5)}, "residuals must have the rows of features, 8000, got 7999"),
            ({0: torch.zeros(8000, 5).double()}, "residuals must be Float, got Double"),
            (
                {0: torch.zeros(8000, 5).half(), 1: torch.zeros(8000, 20).half()},
                "features must be float32 or float64, got Half",
            ),
            ({2: torch.zeros(12)}, "draws must be Double, got Float"),
            ({2: torch.zeros(8001).double()}, "draws must be at most as many as rows, 8000, got 8001"),
            ({2: torch.ones(12).double()}, r"draws must lie in \[0, 1\), got 1"),
            ({2: torch.full((12,), math.nan).double()}, r"draws must lie in \[0, 1\), got nan"),
            ({3: torch.ones(12).double()}, "weights must have the rows of features, 8000, got 12"),
            ({3: torch.ones(8000)}, "weights must be Double, got Float"),
        ),
    ),
    "nearest_neighbors": Op(
        lambda: (*neighbors(), 5, True, 1.0, 0.0),
        (
            ({0: torch.zeros(3)}, r"nearest_neighbors: queries must have 2 dimension\(s\), got 1"),
            ({1: torch.zeros(3)}, r"references must have 2 dimension\(s\), got 1"),
            ({0: torch.zeros(3, 0)}, r"queries must have at least one feature, got shape \(3, 0\)"),
            ({1: torch.zeros(30, 19)}, "references must have the features of queries, 20, got 19"),
            ({1: torch.zeros(30, 20).half()}, "references must be Float, got Half"),
            (
                {0: torch.zeros(3, 20).int(), 1: torch.zeros(30, 20).int()},
                "queries must be float16, bfloat16, float32 or float64, got Int",
            ),
            ({2: 0}, r"k must lie in \[1, 3000\], got 0"),
            ({2: 3001}, r"k must lie in \[1, 3000\], got 3001"),
            ({4: 0.0}, "scale must be positive and finite, got 0"),
            ({5: 1.0}, r"input_roundoff must lie in \[0, 1\), got 1"),
        ),
    ),
    "dynamics": Op(
        lambda: (logits(5000, 40), labels(5000, 40)),
        (
            ({0: torch.zeros(3)}, r"dynamics: logits must have 2 dimension\(s\), got 1"),
            ({0: torch.zeros(5000, 0)}, "logits must have at least one class"),
            ({0: torch.zeros(5000, 40, dtype=torch.int32)}, wrong_logits[1]),
            ({1: labels(5000, 40).int()}, "labels must be Long, got Int"),
            ({1: labels(4999, 40)}, "labels must have one entry for each of 5000 rows, got 4999"),
            ({1: labels(10000, 40)[::2]}, "labels must be contiguous"),
            ({1: labels(5000, 41)}, r"labels must lie in \[0, 40\), got 40 in row"),
            ({1: labels(5000, 40) - 1}, r"labels must lie in \[0, 40\), got -1 in row"),
        ),
    ),
    "claim_": Op(
        lambda: (
            torch.zeros(9000, dtype=torch.int32),
            torch.tensor([0]),
            samples(5000, 9000),
            labels(5000, 7),
            7,
        ),
        (
            ({0: torch.zeros(9000)}, "claim_: seen must be Int, got Float"),
            ({0: torch.zeros(9000, 1, dtype=torch.int32)}, r"seen must have 1 dimension\(s\), got 2"),
            ({1: torch.tensor([0, 0])}, "rejected must have one entry, got 2"),
            ({2: samples(5000, 9000).int()}, "indices must be Long, got Int"),
            ({2: samples(5000, 9001)}, r"indices must lie in \[0, 9000\), got 9000 in row"),
            ({2: samples(5000, 9000) - 1}, r"indices must lie in \[0, 9000\), got -1 in row"),
            ({2: samples(5000, 9000) // 2}, "indices must name a sample once in an epoch, got"),
            ({0: torch.ones(9000, dtype=torch.int32)}, "once in an epoch, got .* again in row 0"),
            ({3: labels(4999, 7)}, "labels must have one entry for each of 5000 rows, got 4999"),
            ({4: 6}, r"labels must lie in \[0, 6\), got 6 in row"),
        ),
        writes=2,
    ),
    "divergence_": Op(
        lambda: (kept(6000, 40), logits(5000, 40), samples(5001, 6000)[1:] - 1, 1e-8),
        (
            ({0: torch.zeros(6000)}, r"divergence_: kept must have 2 dimension\(s\), got 1"),
            ({0: torch.zeros(6000, 41)}, "kept must have the classes of logits, 40, got 41"),
            ({0: torch.zeros(40, 6000).t()}, "kept must be contiguous"),
            ({0: torch.zeros(6000, 40, dtype=torch.int32)}, "kept must be float16, bfloat16, float32 or"),
            ({1: torch.zeros(5000, 40, dtype=torch.int32)}, wrong_logits[1]),
            ({2: samples(5000, 6001)}, r"samples must lie in \[-1, 6000\), got 6000 in row"),
            ({2: samples(5000, 6000) - 2}, r"samples must lie in \[-1, 6000\), got -2 in row"),
            ({3: 0.0}, r"epsilon must lie in \[1e-30, 1\), got 0"),
        ),
        writes=1,
    ),
    "push_": Op(
        lambda: (
            *history(9000, 7),
            torch.rand(8000, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
            samples(8001, 9000)[1:] - 1,
            5,
            4.0,
            0.1,
            0.9,
        ),
        (
            ({0: torch.zeros(9000, 7)}, "push_: ring must be Double, got Float"),
            (
                {1: torch.zeros(8999, dtype=torch.int64)},
                "counts must have the samples of ring, 9000, got 8999",
            ),
            ({2: torch.zeros(1, 9000).double()}, r"sums must have shape \(2, 9000\)"),
            ({3: torch.zeros(8000)}, "values must be Double, got Float"),
            ({4: samples(7999, 9000)}, "samples must have one entry for each of 8000 rows, got 7999"),
            ({4: samples(8000, 9001)}, r"samples must lie in \[-1, 9000\), got 9000 in row"),
            ({5: 8}, r"window must lie in \[1, 7\], got 8"),
            ({6: 0.0}, "divisor must be positive, got 0"),
        ),
        writes=3,
    ),
    "scatter_": Op(
        scattered,
        (
            ({1: scattered()[1][:2]}, "scatter_: dense and small must hold as many tensors, got 3 and 2"),
            ({1: [t.double() for t in scattered()[1]]}, "must have one dtype, got Float and Double"),
            ({1: [t[None] for t in scattered()[1]]}, "must have the same rank"),
            (
                {1: [*scattered()[1][:2], torch.ones(400)]},
                r"axis 0 of small\[2\] must have size 499, got 400",
            ),
            ({2: [k.int() for k in scattered()[2]]}, "kept must be Long, got Int"),
            ({2: [k + 400 for k in scattered()[2]]}, r"must lie in \[0, 300\)"),
            ({3: [*scattered()[3], -1]}, "kept_of_axis must have 7 entries"),
            ({3: [99] * 7}, "kept_of_axis names index tensor 99 of 5"),
        ),
        writes=1,
    ),
}
every = pytest.mark.parametrize("name", OPS)


def moved(argument, device):
    if isinstance(argument, torch.Tensor):
        return argument.to(device)
    return [moved(one, device) for one in argument] if isinstance(argument, list) else argument


def arguments_of(name, device="cpu"):
    return tuple(moved(argument, device) for argument in OPS[name].arguments())


def flat(values):
    values = values if isinstance(values, (list, tuple)) else [values]
    return [
        t for v in values for t in (v if isinstance(v, (list, tuple)) else [v]) if isinstance(t, torch.Tensor)
    ]


def shapes(arguments):
    """The arguments, with shapes for tensors."""
    return [
        tuple(a.shape) if isinstance(a, torch.Tensor) else shapes(a) if isinstance(a, list) else a
        for a in arguments
    ]


def outcome(name, arguments, operator=None):
    """All that matters of what the call gives back or writes."""
    result = (operator or getattr(operators, name))(*arguments)
    return matter_of(name, result, arguments)


def matter_of(name, result, arguments):
    op = OPS[name]
    return flat(result) + (op.matter(*arguments) if op.matter else flat(arguments[: op.writes]))


def assert_same(got, expected, **tolerance):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))


def test_the_table_has_every_operator():
    names = {
        full.split("::")[1]
        for full in torch._C._dispatch_get_all_op_names()
        if full.startswith("prunefuse::")
    }
    assert {name.split(".")[0] for name in names} == set(OPS)


@every
def test_the_typed_call_has_the_arguments_of_the_schema(name):
    schema = getattr(operators, name).default._schema
    assert list(inspect.signature(ops.OPERATORS[name]).parameters) == [x.name for x in schema.arguments]


@every
def test_the_typed_call_moves_the_versions_of_what_is_written_and_of_nothing_else(name):
    """By position, and by name."""
    names = list(inspect.signature(ops.OPERATORS[name]).parameters)
    for by_name in (False, True):
        arguments = arguments_of(name)
        written, read = flat(arguments[: OPS[name].writes]), flat(arguments[OPS[name].writes :])
        before = [t._version for t in written], [t._version for t in read]
        if by_name:
            ops.OPERATORS[name](**dict(zip(names, arguments, strict=True)))
        else:
            ops.OPERATORS[name](*arguments)
        assert all(t._version > version for t, version in zip(written, before[0], strict=True))
        assert [t._version for t in read] == before[1]


@every
def test_torch_counts_the_flops_of_the_formula(name):
    arguments = arguments_of(name)
    with FlopCounterMode(display=False) as counter:
        getattr(operators, name)(*arguments)
    assert counter.get_total_flops() == FORMULAS[name](*shapes(arguments))


@every
def test_levels_agree(name):
    results = []
    for level in loader.native.isa_levels():
        loader.native.force_isa(level)
        results.append(outcome(name, arguments_of(name)))
    loader.native.force_isa(None)
    for result in results[1:]:
        assert_same(result, results[0], rtol=2e-5, atol=2e-5)


@every
def test_the_number_of_threads_does_not_change_a_bit(name):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outcome(name, arguments_of(name)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0])


@every
def test_under_compile(name, device):
    torch._dynamo.reset()  # one lambda for all: it would reach the limit of recompilations
    arguments = arguments_of(name, device)
    compiled = torch.compile(lambda *a: getattr(operators, name)(*a), fullgraph=True, backend="aot_eager")
    assert_same(outcome(name, arguments, compiled), outcome(name, arguments_of(name, device)))


@every
def test_wrong_arguments_are_refused_and_nothing_is_touched(name):
    for change, message in OPS[name].wrong:
        arguments = list(OPS[name].arguments())
        for position, value in change.items():
            arguments[position] = value
        tensors = flat(arguments)
        before = [t.clone() for t in tensors]
        with pytest.raises(RuntimeError, match=message):
            getattr(operators, name)(*arguments)
        assert_same(tensors, before)


@every
def test_the_arguments_that_are_read_are_left_as_they_are(name):
    arguments = OPS[name].arguments()
    read = flat(arguments[OPS[name].writes :])
    before = [t.clone() for t in read]
    getattr(operators, name)(*arguments)
    assert_same(read, before)


@pytest.mark.cuda
@every
def test_runs_on_the_current_stream(name):
    expected = outcome(name, arguments_of(name, "cuda"))
    stream = torch.cuda.Stream()
    arguments = arguments_of(name, "cuda")
    stale = [torch.zeros_like(t) for t in flat(arguments) if t.is_floating_point()]
    fresh = [t.clone() for t in flat(arguments) if t.is_floating_point()]
    live = [t for t in flat(arguments) if t.is_floating_point()]
    for t, zero in zip(live, stale, strict=True):
        t.copy_(zero)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for t, value in zip(live, fresh, strict=True):
            t.copy_(value)
        got = outcome(name, arguments)
    stream.synchronize()
    assert_same(got, expected)


@pytest.mark.cuda
@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs a second GPU")
@every
def test_runs_on_the_device_of_its_arguments(name):
    """Which is not the current one."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    expected = outcome(name, arguments_of(name, "cuda"))
    got = outcome(name, arguments_of(name, last))
    assert torch.cuda.current_device() == 0
    assert {t.device for t in got} == {last}
    assert_same([t.to("cuda") for t in got], expected)


@pytest.mark.cuda
@every
def test_is_captured_in_a_graph(name):
    expected = outcome(name, arguments_of(name, "cuda"))
    arguments = arguments_of(name, "cuda")
    written = flat(arguments[: OPS[name].writes])
    before = [t.clone() for t in written]
    outcome(name, arguments_of(name, "cuda"))  # what is set up once
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = getattr(operators, name)(*arguments)
    for t, value in zip(written, before, strict=True):
        t.copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(matter_of(name, result, arguments), expected)
