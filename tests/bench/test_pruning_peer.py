"""The comparison with torch-pruning: processes under limits, what counts as success, the tables and the README's."""

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks import isolated, peer, peer_tables

ROOT = Path(__file__).parents[2]
WORKED = {"error": "", "way": "", "cpu_seconds": 2.0, "seconds": 2.5, "params": 0.26, "flops": 0.25}
FAILED = {**WORKED, "error": "no answer\nwithin 60 s"}
HELPED = {**WORKED, "way": "attributes set by hand", "cpu_seconds": 4.0}
GOALS = {"ratio": WORKED, "flops": {**WORKED, "flops": 0.49}, "parameters": {**WORKED, "params": 0.47}}
CONTENT = {
    "versions": {"torch-pruning": "1.6.1"},
    "coverage": {
        "resnet18": {"prunefuse": WORKED, "torch-pruning": WORKED},
        "vit_b_32": {"prunefuse": WORKED, "torch-pruning": HELPED},
        "swin_t": {"prunefuse": WORKED, "torch-pruning": FAILED},
        "timm:dla34": {"prunefuse": FAILED, "torch-pruning": FAILED},
    },
    "networks": {
        "resnet18": {
            "prunefuse": GOALS,
            "torch-pruning": GOALS,
            "latency": {
                "dense": [0.009, 0.010, 0.011],
                "prunefuse flops": [0.0055, 0.006, 0.007],
                "torch-pruning flops": [0.006, 0.007, 0.008],
            },
        },
        "swin_t": {
            "prunefuse": GOALS,
            "torch-pruning": dict.fromkeys(GOALS, FAILED),
            "latency": {"dense": [0.02, 0.02, 0.02], "prunefuse flops": [0.01, 0.01, 0.01]},
        },
    },
}


@pytest.mark.parametrize(
    ("work", "argument", "result"),
    [
        (abs, -3, 3),
        (len, 3, isolated.Failed("TypeError: object of type 'int' has no len()")),
        (os._exit, 0, isolated.Failed("the process died, probably for want of memory")),
        (time.sleep, 600, isolated.Failed("no answer within 1 s")),
    ],
)
def test_work_in_a_process_of_its_own_ends_with_a_result_or_the_reason(work, argument, result):
    assert isolated.run(work, argument, seconds=60 if work is not time.sleep else 1) == result


def test_an_architecture_is_pruned_by_every_contender_that_is_installed():
    found = peer.compare("squeezenet1_1")
    assert list(found) == ["prunefuse", "torch-pruning"]
    assert found["prunefuse"]["error"] == ""
    assert found["torch-pruning"]["error"] in ("", peer.NOT_INSTALLED)
    assert 0.25 < found["prunefuse"]["flops"] < 0.5
    assert found["prunefuse"]["cpu_seconds"] > 0


def test_the_tables_count_what_worked_and_put_times_beside_the_dense_network():
    lines = peer_tables.tables(CONTENT).splitlines()
    assert lines[0] == "| | prunefuse | torch-pruning 1.6.1 |"
    assert lines[2:6] == [
        "| 3 of torchvision, half of all channels | 3 | 2, 1 of them repaired by hand |",
        "| 1 of timm, half of all channels | 0 | 0 |",
        "| CPU seconds to half of all channels, 2 that both prune: median, most | 2.0, 2.0 | 3.0, 4.0 |",
        "| CPU seconds to half of the FLOPs, 1 that both prune: median, most | 2.0, 2.0 | 2.0, 2.0 |",
    ]
    assert lines[-2:] == [
        "| resnet18 | 0.49, 0.47 | 0.60 (0.55–0.70) | 0.49, 0.47 | 0.70 (0.60–0.80) | 10 ms |",
        "| swin_t | 0.49, 0.47 | 0.50 (0.50–0.50) | no answer within 60 s | | 20 ms |",
    ]


def test_a_package_that_is_not_installed_is_named():
    absent = {**WORKED, "error": peer.NOT_INSTALLED}
    one = {"coverage": {"resnet18": {"prunefuse": WORKED, "torch-pruning": absent}}, "networks": {}}
    text = peer_tables.tables({"versions": {"torch-pruning": peer.NOT_INSTALLED}, **one})
    assert "| 1 of torchvision, half of all channels | 1 | not installed |" in text


def test_every_failure_has_a_line():
    lines = peer_tables.failures(CONTENT).splitlines()
    assert lines[0] == "torch-pruning: swin_t: no answer within 60 s"
    assert "prunefuse: timm:dla34: no answer within 60 s" in lines
    assert len(lines) == 6


def test_the_readme_shows_the_committed_results():
    content = json.loads((ROOT / "benchmarks" / "results" / "pruning.json").read_text())
    assert peer_tables.tables(content) in (ROOT / "README.md").read_text()
