"""`pytest benchmarks/`: results are gathered, printed at the end, and written to a file if asked for."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch

from prunefuse.bench import record, table

HERE = Path(__file__).parent
RESULTS, COSTS, PRUNING, LOOPS = (pytest.StashKey() for _ in range(4))


def pytest_addoption(parser):
    parser.addoption(
        "--save-results",
        nargs="?",
        const="",
        metavar="PATH",
        help="write the results as JSON to a new file (default: benchmarks/results/<machine>.json)",
    )


def pytest_configure(config):
    # Its table compares the tests with each other; ours, at the end, compares contenders.
    config.option.benchmark_quiet = True
    config.option.showcapture = "no"  # the compiler's log of itself
    config.stash[RESULTS], config.stash[COSTS] = [], []
    config.stash[PRUNING] = {"coverage": {}, "networks": {}}
    config.stash[LOOPS] = {}
    try:
        if (path := _target(config)) is not None:
            record.require_new(path)
    except FileExistsError as error:
        raise pytest.UsageError(f"--save-results: {error}") from None


@pytest.fixture
def results(request):
    return request.config.stash[RESULTS]


@pytest.fixture
def costs(request):
    return request.config.stash[COSTS]


@pytest.fixture
def pruning(request):
    return request.config.stash[PRUNING]


@pytest.fixture
def loops(request):
    return request.config.stash[LOOPS]


def pytest_terminal_summary(terminalreporter, config):
    results, costs, pruning = config.stash[RESULTS], config.stash[COSTS], config.stash[PRUNING]
    if results:
        terminalreporter.section("speed: beside peers and limits (ratios of times; below 1 is faster)")
        terminalreporter.write_line("\n\n".join(map(table.block, results)))
        terminalreporter.write_line("\n" + table.summary(results))
    if costs:
        import selection_cost

        terminalreporter.section("cost of selection")
        plot = selection_cost.plot(costs, _plot(config))
        terminalreporter.write_line(selection_cost.report(costs) + f"\n\nPlot: {plot}")
    if loops := config.stash[LOOPS]:
        import loop_speed

        terminalreporter.section("seconds of the loop (times as fast; above 1 is faster)")
        terminalreporter.write_line(loop_speed.report(loops))
    if any(pruning.values()):
        from benchmarks import peer_tables

        versions = record.header("", _device())["versions"]
        terminalreporter.section("pruning, beside torch-pruning")
        found = {"versions": versions, **pruning}
        terminalreporter.write_line(f"{peer_tables.tables(found)}\n\n{peer_tables.failures(found)}")
    if (results or costs or loops or any(pruning.values())) and (path := _target(config)) is not None:
        more = {"selection_cost": selection_cost.as_json(costs)} if costs else {}
        more |= {"loop_speed": loops} if loops else {}
        more |= {name: found for name, found in pruning.items() if found}
        record.save(path, results, shlex.join(["pytest", *sys.argv[1:]]), _device(), more)
        terminalreporter.write_line(f"Results: {path}")


def _device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _target(config):
    given = config.getoption("--save-results")
    if given is None:
        return None
    return Path(given) if given else HERE / "results" / record.default_name(_device())


def _plot(config):
    path = _target(config)
    return path.with_suffix(".svg") if path else HERE.parent / ".benchmarks" / "selection_cost.svg"
