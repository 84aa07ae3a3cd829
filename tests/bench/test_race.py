"""The runner of the benchmarks: a wrong result is marked, every contender is treated alike."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from fake_gpu import FakeGpu

import prunefuse
from prunefuse.bench import cases, dynamics, language, race, record, scorers, table
from prunefuse.bench.race import Case, Contender, Line, Result, Task, measure

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_rounds(monkeypatch):
    monkeypatch.setattr(race, "ROUNDS", (2, 2))


def summing(*more, ours=sum, tolerance=0.0):
    """A case whose work is to add up four numbers."""
    contenders = (Contender("ours", "ours", lambda: lambda: ours((1, 2, 3, 4))), *more)
    return Case("sum", lambda device: Task(contenders, lambda got: abs(got - 10), tolerance, 16, "GB/s"))


def line(result, name):
    return next(one for one in result.lines if one.name == name)


@pytest.mark.parametrize(("result", "right"), [(10, True), (10.1, False), (float("nan"), False)])
def test_a_wrong_result_is_marked(result, right):
    assert measure(summing(ours=lambda _: result), CPU).ours.matches is right


def test_a_wrong_peer_is_marked_and_is_not_the_best():
    result = measure(
        summing(
            Contender("wrong", "peer", lambda: lambda: 11),
            Contender("right", "peer", lambda: lambda: sum(range(5))),
        ),
        CPU,
    )
    assert [one.matches for one in result.lines] == [True, False, True]
    assert result.best_peer.name == "right"


def test_an_error_of_plain_torch_is_ours_to_make_but_no_larger_one():
    def case(ours, theirs):
        rivals = (
            Contender("ours", "ours", lambda: lambda: ours),
            Contender("torch", "peer", lambda: lambda: theirs),
        )
        return Case("", lambda _: Task(rivals, lambda got: abs(got - 10), 1e-6, 1, "GB/s", yardstick="torch"))

    errors = ((1e-4, 2e-4, True), (2e-4, 1e-4, False), (5e-7, 0.0, True), (0.1, 0.2, False))
    for ours, theirs, right in errors:
        assert measure(case(10 + ours, 10 + theirs), CPU).ours.matches is right


def test_all_are_timed_in_turns():
    turns = []

    def noting(name):
        return Contender(name, "peer", lambda: lambda: turns.append(name) or 10)

    ours = lambda numbers: turns.append("ours") or sum(numbers)  # noqa: E731
    result = measure(summing(noting("a"), noting("b"), ours=ours), CPU)
    assert turns == ["ours", "a", "b", *("a", "b", "ours") * 2]
    assert Counter(map(len, (one.seconds for one in result.lines))) == {2: 3}


def test_what_cannot_run_says_why():
    def missing():
        import no_such_package  # noqa: F401

    def broken():
        raise RuntimeError("no compiler\nat all")

    result = measure(
        summing(
            Contender("missing", "peer", missing),
            Contender("broken", "peer", broken),
            Contender("huge", "peer", missing, skip="not run: 80 GB"),
        ),
        CPU,
    )
    notes = [line(result, name).note for name in ("missing", "broken", "huge")]
    assert notes == ["not installed: no_such_package", "failed: RuntimeError: no compiler", "not run: 80 GB"]
    assert result.best_peer is None
    assert all(note in table.block(result) for note in notes)
    with pytest.raises(RuntimeError, match="no compiler"):
        measure(summing(ours=lambda _: broken()), CPU)


def test_a_slow_peer_runs_once_and_ours_in_every_round(monkeypatch):
    monkeypatch.setattr(race, "SLOW", -1.0)
    calls = []
    result = measure(summing(Contender("slow", "peer", lambda: lambda: calls.append(1) or 10)), CPU)
    assert len(calls) == len(line(result, "slow").seconds) == 1
    assert len(result.ours.seconds) == 2
    assert "once" in table.block(result)


def test_part_of_the_work_counts_in_full(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(race.time, "perf_counter", lambda: next(clock))
    result = measure(summing(Contender("part", "peer", lambda: lambda: 10, parts=100)), CPU)
    assert (result.ours.median, line(result, "part").median) == (1, 100)


@pytest.mark.parametrize("cold", [True, False])
def test_on_a_gpu_the_time_is_the_devices_alone(monkeypatch, cold):
    gpu = FakeGpu().put(monkeypatch)

    def two_kernels():
        gpu.kernel(20e-6, host=60e-6)  # Python before the first, and between the two
        gpu.kernel(20e-6, host=30e-6)
        return 10

    case = Case("", lambda _: Task((Contender("", "ours", lambda: two_kernels),), float, 10, 1, "GB/s", cold))
    result = measure(case, torch.device("cuda"))
    assert result.ours.median == pytest.approx(40e-6)
    # A cache larger than any other GPU's, cleared before every call.
    assert len(gpu.evicted) == (3 if cold else 0)
    assert all(size >= 2 * gpu.cache for size in gpu.evicted)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_the_peak_beyond_what_was_in_use():
    def hungry():
        held = torch.ones(16 << 20)  # 64 MiB, freed before the call returns
        return int(held[:10].sum())

    result = measure(
        summing(
            Contender("hungry", "peer", lambda: hungry),
            Contender("part", "peer", lambda: hungry, parts=2),
            Contender("limit", "limit", lambda: hungry),
        ),
        CPU,
    )
    assert all(60e6 < line(result, name).memory < 90e6 for name in ("hungry", "part", "limit"))
    assert result.ours.memory < 10e6


SMALL = {
    "scores": partial(cases._scores, 300, 10, torch.float32),
    "half": partial(cases._scores, 300, 10, torch.float16),
    "statistics": partial(cases._statistics, 300, 10),
    "linear": partial(scorers._linear, 70, 16, 300, torch.float32),
    "linear of 16 bits": partial(scorers._linear, 70, 16, 300, torch.bfloat16),
    "ensemble": partial(scorers._ensemble, 5, 80, 10),
    "tokens": partial(scorers._tokens, 20, 7, 10),
    "sequences": partial(language._sequences, 20, 7, 16, 300, torch.float32),
    "labels": partial(scorers._labels, 90, 7),
    "pixels": partial(scorers._pixels, (3, 5, 8, 9)),
    "boxes": partial(scorers._boxes, 12, 5),
    "top": partial(cases._top_b, 2000, 50),
    "stream": partial(cases._stream, 2000, 10, 50, 4),
    "k-center": partial(cases._k_center, 500, 8, 20),
    "k-means++": partial(cases._k_means, 500, 5, 8, 20),
    "scatter": partial(cases._scatter, "resnet8", 32),
    "dynamics": partial(dynamics._dynamics, 300, 10),
    "divergence": partial(dynamics._divergence, 300, 10),
}


def small(name):
    """A case at a small size, with what comes with torch and needs no compiler."""

    def make(device):
        task = SMALL[name](device)
        rivals = [
            one
            for one in task.contenders
            if one.name.startswith(("prunefuse", "torch:", "torch.", "matmul")) or one.kind == "limit"
        ]
        return dataclasses.replace(task, contenders=tuple(one for one in rivals if "compile" not in one.name))

    return Case(name, make)


@pytest.mark.parametrize("name", SMALL)
def test_ours_and_plain_torch_do_the_work_of_every_case(name):
    result = measure(small(name), CPU)
    assert all(one.matches for one in result.lines if one.kind != "limit")
    assert not [one.note for one in result.lines if one.note]
    assert result.limits
    assert result.best_peer


@pytest.mark.parametrize(
    ("name", "operator", "broken"),
    [
        (
            "scores",
            "prunefuse.score",
            lambda *a: {k: v + 1e-5 for k, v in prunefuse.scoring.score(*a).items()},
        ),
        ("statistics", "prunefuse.statistics", lambda x: (x.argmin(1), *prunefuse.scoring.statistics(x)[1:])),
        (
            "linear",
            "prunefuse.score_linear",
            lambda *a: {k: v + 1e-5 for k, v in prunefuse.scoring.score_linear(*a).items()},
        ),
        (
            "linear of 16 bits",
            "prunefuse.score_linear",
            lambda *a: {k: v * 2 for k, v in prunefuse.scoring.score_linear(*a).items()},
        ),
        (
            "ensemble",
            "prunefuse.score_ensemble",
            lambda x: prunefuse.scoring.score_ensemble(x[1:]),
        ),
        (
            "tokens",
            "prunefuse.score_tokens",
            lambda x, names, mask: prunefuse.scoring.score_tokens(x, names),
        ),
        (
            "sequences",
            "prunefuse.score_sequences",
            lambda *a, targets, mask: prunefuse.scoring.score_sequences(
                *a, targets=targets.flip(0), mask=mask
            ),
        ),
        (
            "labels",
            "prunefuse.score_labels",
            lambda x, names: prunefuse.scoring.score_labels(x + 1e-3, names),
        ),
        (
            "pixels",
            "prunefuse.score_pixels",
            lambda x, names: prunefuse.scoring.score_pixels(x[:, :-1], names),
        ),
        (
            "boxes",
            "prunefuse.score_boxes",
            lambda x, offsets, names: prunefuse.scoring.score_boxes(x, offsets, names, reduction="mean"),
        ),
        ("stream", "prunefuse.StreamingTopB", lambda b, name: prunefuse.selection.StreamingTopB(b, "margin")),
        ("top", "prunefuse.top_b", lambda u, b: [one.flip(0) for one in prunefuse.selection.top_b(u, b)]),
        ("k-center", "prunefuse.k_center_greedy", lambda x, k, labeled: torch.arange(1, k + 1)),
        (
            "k-means++",
            "prunefuse.ops.k_means_plus_plus",
            lambda r, h, u: torch.ops.prunefuse.k_means_plus_plus(r, h, 1 - u),
        ),
        ("scatter", "prunefuse.ops.Scatter", lambda dense, small, kept: lambda: None),
        ("dynamics", "prunefuse.ops.dynamics", lambda x, y: torch.ops.prunefuse.dynamics(x, y) * 1.00001),
        (
            "divergence",
            "prunefuse.ops.divergence_",
            lambda logs, x, rows, epsilon: torch.ops.prunefuse.divergence_(logs, x, rows, 2 * epsilon) + 1e-4,
        ),
    ],
)
def test_a_broken_operator_is_found(name, operator, broken, monkeypatch):
    monkeypatch.setattr(operator, broken)
    assert measure(small(name), CPU).ours.matches is False


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_of_cases_differ(device):
    names = [case.name for case in cases.cases(device)]
    assert len(names) == len(set(names)) > 30


RESULT = Result(
    "score 2 x 10 float32",
    "cpu",
    80e6,
    "GB/s",
    True,
    (
        Line("prunefuse", "ours", (0.003, 0.002, 0.001), 3e-7, True, 2_400_000),
        Line("torch", "peer", (0.008,), 0.1, False, 8_000_000),
        Line("modAL", "peer", (0.020,), 1e-9, True, 1_000_000_000),
        Line("baal", "peer", note="not installed: baal"),
        Line("read once", "limit", (0.001, 0.001)),
    ),
)


def test_a_block_has_a_line_for_every_contender():
    title, head, *lines = table.block(RESULT).splitlines()
    assert title == "score 2 x 10 float32  (cpu, cold cache; best peer: modAL)"
    assert head.split("  ")[-1].strip() == "memory"
    assert [" ".join(one.split()) for one in lines[:3]] == [
        "prunefuse 2 ms 1.5 ms – 2.5 ms 40 2.00 0.10 ✓ 3.0e-07 2.4 MB",
        "torch 8 ms once 10 8.00 0.40 ✗ 1.0e-01 8 MB",
        "modAL 20 ms once 4 20.00 1.00 ✓ 1.0e-09 1 GB",
    ]
    assert lines[-1] == "  baal: not installed: baal"
    assert len({len(one) for one in (head, *lines[:3])}) == 1


def test_the_summary_is_a_markdown_table_with_a_row_for_every_case():
    alone = dataclasses.replace(RESULT, device="cuda", lines=RESULT.lines[:1])
    rows = table.summary([RESULT, alone]).splitlines()
    assert {row.count("|") for row in rows} == {9}
    assert rows[2] == "| score 2 x 10 float32 | 2 ms | 40 GB/s | 2.00 read once | 0.10 | modAL | ✓ | 2.4 MB |"
    assert rows[3] == "| score 2 x 10 float32 (cuda) | 2 ms | 40 GB/s |  |  |  | ✓ | 2.4 MB |"


def test_results_are_saved_with_the_machine_and_never_replaced(tmp_path):
    path = tmp_path / "new" / record.default_name(CPU)
    record.save(path, [RESULT], "pytest benchmarks", CPU, {"more": [1]})
    kept = json.loads(path.read_text())
    assert (kept["command"], kept["more"], kept["machine"]["device"]) == ("pytest benchmarks", [1], "cpu")
    assert kept["results"][0]["lines"][0]["seconds"] == [0.003, 0.002, 0.001]
    assert {"torch", "prunefuse", "baal"} <= kept["versions"].keys()
    assert path.name == path.name.lower()
    assert record.load(path) == (kept, [RESULT])
    with pytest.raises(FileExistsError, match="is there already"):
        record.save(path, [], "", CPU)
    assert json.loads(path.read_text()) == kept


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "prunefuse benchmark", "version": 2}'])
def test_a_file_of_another_format_is_not_read(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match="must be a file of format 'prunefuse benchmark', version 1"):
        record.load(tmp_path / "other.json")
