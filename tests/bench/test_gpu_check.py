"""benchmarks/gpu: the check of a GPU, rehearsed without one; what becomes of steps that fail or take too long; its parts."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import FakeGpu

from benchmarks.gpu import bench, bundle, check, counters, points, table, training
from benchmarks.gpu.check import STEPS, Check, Step
from prunefuse.bench import record
from prunefuse.bench.race import Line, Result

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    out = tmp_path_factory.mktemp("rehearsal")
    script = [str(ROOT / "benchmarks/gpu/check.sh"), "--rehearse", "--out", str(out)]
    done = subprocess.run(
        script, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
    )
    return done, out


def test_a_rehearsal_runs_every_step_and_says_what_is_absent(rehearsal):
    done, out = rehearsal
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        f"rehearsal of the GPU check (its times mean nothing): 0 of {len(STEPS)} steps failed"
    )
    assert len(lines) <= 60
    states = {line.split()[1]: line.split()[0] for line in lines[1:] if line[:1].strip()}
    assert states.keys() == {step.name for step in STEPS}
    absent = {"rebuilt", "racecheck", "initcheck", "synccheck"}
    assert all(states[name] == "absent" for name in absent)
    assert {states[step.name] for step in STEPS if not step.needs} == {"ok"}
    assert "operators agree with float64" in done.stdout
    assert (out / "summary.txt").read_text() == done.stdout


def test_its_files_are_few_and_flat(rehearsal):
    files = list(rehearsal[1].iterdir())
    assert {file.name for file in files} <= set(check.FILES)
    assert len(check.FILES) <= 8
    assert all(file.is_file() and file.stat().st_size < 1 << 24 for file in files)
    log = (rehearsal[1] / "steps.log").read_text()
    assert all(f"===== {step.name}: " in log for step in STEPS)


def test_its_benchmarks_have_the_format_of_all_with_the_time_predicted_beside_that_measured(rehearsal):
    content, results = record.load(rehearsal[1] / "benchmarks.json")
    assert len(results) == len(points.points()) > 50
    assert {"date", "command", "machine", "versions", "ceilings"} <= content.keys()
    assert bundle.commit() in content["versions"]["prunefuse"]
    for result in results:
        assert result.ours.matches, result
        assert len(result.limits) == 1
        assert result.limits[0].median > 0
    assert sum(any(line.name == "torch.compile" for line in result.lines) for result in results) == 6


def run(folder, *steps, limit=60, rehearsal=False):
    places = {"python": sys.executable, "trees": str(folder / "trees"), "commit": "abc", "out": str(folder)}
    made = Check(steps, folder, places, limit, rehearsal)
    return made.run(), made.summary().splitlines()


def test_a_step_that_fails_is_named_first_and_the_others_run(tmp_path):
    code, lines = run(
        tmp_path,
        Step("good", 60, "", "echo fine"),
        Step("bad", 60, "good", "sh -c 'echo the reason; exit 3'"),
        Step("next", 60, "bad", "printf 'talk\\n> one\\n> two\\nmore'"),
        Step("missing", 60, "", "{out}/no-such-program"),
    )
    assert code == 1
    assert lines[0].startswith("GPU check: 2 of 4 steps failed, 0 s, commit abc")
    assert lines[1:3] == ["FAILED bad: exit status 3", "    the reason"]
    assert lines[3].startswith("FAILED missing: ")
    assert [" ".join(line.split()) for line in lines[4:]] == [
        "ok good 0 s fine",
        "FAILED bad 0 s the reason",
        "ok next 0 s one",
        "two",
        "FAILED missing 0 s",
    ]
    assert "the reason" in (tmp_path / "steps.log").read_text()


def has_ended(pid):
    """Whoever has adopted a process that was killed may not have noticed yet."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_step_beyond_its_limit_is_killed_with_all_that_it_started(tmp_path):
    pid = tmp_path / "pid"
    code, lines = run(
        tmp_path,
        Step("slow", 0.5, "", f"sh -c 'sleep 1000 & echo $! > {pid}; echo so far; wait'"),
        Step("last", 60, "slow", "echo done"),
    )
    assert code == 1
    assert lines[1:3] == ["FAILED slow: killed at its limit of 0.5 s", "    so far"]
    assert lines[-1].split() == ["ok", "last", "0", "s", "done"]
    assert has_ended(int(pid.read_text()))


def test_when_the_time_is_over_what_is_left_is_named(tmp_path):
    code, lines = run(tmp_path, Step("first", 60, "", "true"), Step("late", 60, "first", "true"), limit=0)
    assert code == 1
    assert lines[1:3] == ["FAILED first: not started: 0 s are over", "FAILED late: not started: 0 s are over"]


def test_a_tool_that_is_absent_is_no_failure(tmp_path):
    steps = (
        Step("tool", 60, "", "false", "no-such-tool", "echo rehearsed"),
        Step("other", 60, "", "false", "", ""),
    )
    assert run(tmp_path, steps[0])[1][-1].split() == ["absent", "tool", "0", "s", "(no", "no-such-tool)"]
    code, lines = run(tmp_path, *steps, rehearsal=True)
    assert code == 0
    assert lines[1].split("s  ")[1] == "(no no-such-tool) rehearsed"
    assert lines[2].split("s  ")[1].strip() == "(not rehearsed)"


def test_where_the_library_fails_the_steps_wait_for_that_which_is_built_and_run_with_it(tmp_path):
    for tree in ("unpack", "build"):
        (tmp_path / "trees" / tree).mkdir(parents=True)
    steps = [
        Step("smoke", 60, "", "false"),
        Step("tests", 60, "smoke", "pwd"),
        Step("rebuilt", 60, "smoke2", "true"),
    ]
    steps.append(Step("smoke2", 60, "", "true"))
    assert run(tmp_path, *steps)[1][-3].endswith("/trees/build")
    steps[0] = dataclasses.replace(steps[0], command="true")
    assert run(tmp_path, *steps)[1][-3].endswith("/trees/unpack")


def test_the_summary_has_60_lines_at_most(tmp_path):
    talk = "sh -c 'seq 1000 | sed \"s/^/> /\"; exit 1'"
    lines = run(tmp_path, *(Step(str(i), 60, "", talk) for i in range(5)))[1]
    assert len(lines) == 60
    assert [line for line in lines[:21] if line[0] == "F"] == [f"FAILED {i}: exit status 1" for i in range(5)]
    assert lines[-1].endswith("more lines are in steps.log")


def test_without_a_gpu_only_a_rehearsal_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check"])
    monkeypatch.setattr(check, "ask", lambda *_: "")
    with pytest.raises(SystemExit) as stopped:
        check.main()
    assert stopped.value.code == 2
    assert "no GPU is found here: --rehearse runs every step without one" in capsys.readouterr().err


def test_on_a_gpu_every_command_is_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "ask", lambda *_: "9.0\n8.9\n")
    places = check.places(tmp_path, tmp_path / "work", check.capability())
    commands = {step.name: shlex.split(step.command.format(**places)) for step in STEPS}
    assert commands["build"][-2:] == ["--architectures", "9.0+PTX"]
    assert commands["smoke"][-1] == commands["memcheck"][-1] == "cuda"
    assert {"--error-exitcode", "racecheck"} <= set(commands["racecheck"])
    assert {"-m", "cuda"} <= set(commands["tests"])
    assert {"--slow", "cuda and slow"} <= set(commands["large"])
    assert commands["benchmarks"][3:5] == ["cuda", "--json"]


def test_interrupted_it_ends_what_it_started(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    steps = f"(check.Step('slow', 60, '', 'sh -c \"echo $$ > {fifo}; sleep 1000\"'),)"
    code = f"import sys; from benchmarks.gpu import check; check.STEPS = {steps}; sys.exit(check.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--rehearse", "--out", str(tmp_path / "out")], cwd=ROOT
    )
    child = int(fifo.read_text())
    process.terminate()
    assert process.wait() == 143
    assert has_ended(child)


def test_only_kernels_of_ours_are_checked_by_what_the_option_is_called(monkeypatch):
    for help_text, option in (
        ("  --kernel-name arg  filter", "--kernel-name"),
        ("--kernel-regex arg", "--kernel-regex"),
        ("", "--kernel-name"),
    ):
        monkeypatch.setattr(check, "ask", lambda *_, text=help_text: text)
        assert check.kernels_of_ours() == f"{option} kns=prunefuse"


def test_a_call_is_timed_without_the_host_and_in_turns(monkeypatch):
    gpu, turns = FakeGpu().put(monkeypatch), []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: gpu.host)

    def call(i):
        turns.append(i)
        gpu.kernel(10e-6, host=40e-6)

    seconds = bench.timed([partial(call, i) for i in range(3)], torch.device("cuda"))
    assert seconds == pytest.approx([10e-6] * bench.BATCHES)
    assert turns[3:] == [i % 3 for i in range(bench.CALLS)] * bench.BATCHES


def test_inputs_in_turns_exceed_twice_the_cache():
    room = points.Room(torch.device("cpu"), 1 << 12, 1 << 16)
    inputs = room.rotating(lambda: (room.normal(1000),))
    assert sum(x.nbytes for one in inputs for x in one) > 2 << 16
    assert len({x.data_ptr() for one in inputs for x in one}) == len(inputs)
    assert len(points.Room(torch.device("cpu"), 1 << 12, 0).rotating(lambda: (room.normal(10),))) == 3


def test_a_wrong_or_failing_operator_is_told_and_does_not_end_the_others(monkeypatch):
    room, (point, *_) = points.Room(torch.device("cpu"), 1 << 12, 0), points.points()
    right = bench.measure(point, room, {"copy": 1.0})
    assert right.ours.matches
    monkeypatch.setattr(points.ops, "score", lambda x, *_: torch.zeros(1, len(x)))
    wrong = bench.measure(point, room, {"copy": 1.0})
    assert (wrong.ours.matches, wrong.lines[1].matches) == (False, True)
    monkeypatch.setattr(points.ops, "score", lambda *_: 1 // 0)
    failed = bench.measure(point, room, {"copy": 1.0})
    assert failed.ours.note == "failed: ZeroDivisionError: integer division or modulo by zero"
    assert failed.lines[1].matches
    (line,) = bench.told([point] * 3, [right, wrong, failed])
    assert [word for word in ("WRONG", "failed") if word in line] == ["WRONG", "failed"]


def test_k_center_is_wrong_where_a_nearer_row_was_picked():
    x, labeled = torch.tensor([[0.0], [10.0], [9.0], [4.0]]), torch.tensor([0])
    assert points._regret(x, labeled, torch.tensor([1, 3])) == 0
    assert points._regret(x, labeled, torch.tensor([2, 3])) == pytest.approx(0.19)
    assert points._regret(x, labeled, torch.tensor([1, 1])) == float("inf")


def test_counters_are_told_by_kernel_the_longest_first():
    head = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    name = "void prunefuse::cuda::<unnamed>::{}<float, (int)1>(Pool, prunefuse::RowOutputs<float>, int)"
    rows = [
        (0, "short", "gpu__time_duration.sum", "1,000"),
        (1, "rows", "gpu__time_duration.sum", "85,000"),
        (1, "rows", "launch__registers_per_thread", "40"),
        (1, "rows", "dram__bytes.sum", "n/a"),
        (2, "rows", "gpu__time_duration.sum", "60,000"),
    ]
    lines = [f'"{i}","{name.format(kernel)}","{metric}","","{value}"' for i, kernel, metric, value in rows]
    assert counters.table(["==PROF== Connected", head, *lines]) == [
        "rows<float, 1>: 85 us, 40 registers",
        "short<float, 1>: 1 us",
    ]


def test_idle_time_launches_and_waits_of_a_step_come_from_the_profile():
    def event(name, start, end, on="CPU"):
        kind = getattr(torch.autograd.DeviceType, on)
        return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end))

    events = [
        event("cudaLaunchKernel", 0, 1),
        event("cudaLaunchKernelExC", 1, 2),
        event("cudaStreamSynchronize", 2, 3),
        event("gemm", 1000, 2000, "CUDA"),
        event("relu", 1500, 2500, "CUDA"),  # beside the other
        event("Optimizer.step#SGD.step", 0, 9000, "CUDA"),
        event("Memcpy HtoD (Pageable -> Device)", 4000, 5000, "CUDA"),
    ]
    assert training.facts(events, 2) == (
        "2.00 ms a step, GPU idle 38 % of it; in a step 1 launches, 0.5 waits of the host, 0.5 copies of pageable memory"
    )


@pytest.fixture
def compiles(monkeypatch):
    """Stands in for the compiler and for pip: what they would write, in so many bytes."""

    def put(module, size=10):
        def write(package, *_, **__):
            (package / "lib").mkdir()
            for name in (module, "lib/libprunefuse_ops.so", "lib/libprunefuse_cuda.so"):
                (package / name).write_bytes(b"x" * size)

        monkeypatch.setattr(bundle, "compile_into", write)
        monkeypatch.setattr(bundle, "wheels_into", lambda folder: None)

    return put


THIS = f"_C{bundle.sysconfig.get_config_var('EXT_SUFFIX')}"


def test_a_bundle_is_unpacked_into_a_copy_of_the_checkout(compiles, tmp_path):
    compiles(THIS)
    bundle.make(tmp_path / "bundle", "9.0+PTX")
    bundle.unpack(tmp_path / "bundle", tmp_path / "tree", tmp_path / "site")
    assert (tmp_path / "tree/prunefuse" / THIS).read_bytes() == b"x" * 10
    assert (tmp_path / "tree/prunefuse/lib/libprunefuse_cuda.so").is_file()
    assert (tmp_path / "tree/tests/native/test_every_op.py").is_file()


def test_a_bundle_that_is_too_large_is_refused(compiles, tmp_path):
    compiles(THIS, bundle.LARGEST // 2)
    with pytest.raises(SystemExit, match=r"gpu-bundle: must be at most 60 MB, got 90\.0 MB"):
        bundle.make(tmp_path / "bundle", "9.0+PTX")


@pytest.mark.parametrize(
    ("module", "sources", "why"), [("_C.other.so", None, "has no _C"), (THIS, "other", "of other sources")]
)
def test_a_bundle_that_does_not_fit_is_not_used(
    compiles, tmp_path, monkeypatch, capsys, module, sources, why
):
    compiles(module)
    bundle.make(tmp_path / "bundle", "9.0+PTX")
    if sources:
        monkeypatch.setattr(bundle, "digest_of_sources", lambda: sources)
    bundle.unpack(tmp_path / "bundle", tmp_path / "tree", tmp_path / "site")
    assert "the checkout's libraries" in (told := capsys.readouterr().out)
    assert why in told
    assert (tmp_path / "tree/prunefuse" / THIS).stat().st_size > 10
    monkeypatch.setattr(bundle, "ROOT", tmp_path / "tree/tests")  # a checkout without libraries
    with pytest.raises(SystemExit, match=rf"no library to run: .*{why}.*make gpu-bundle"):
        bundle.unpack(tmp_path / "bundle", tmp_path / "other", tmp_path / "others")


def test_the_page_is_what_the_files_of_results_give():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(table.of_gpus(table.RESULTS))


def test_the_page_shows_the_time_predicted_beside_that_measured(tmp_path, monkeypatch):
    lines = (
        Line("prunefuse", "ours", (2e-4, 1e-4, 3e-4), 2e-7, True),
        Line("torch", "peer", (1e-3,), 1e-6, True),
        Line("torch.compile", "peer", note="failed: RuntimeError: a | b"),
        Line("copy of as many bytes", "limit", (1e-4,)),
    )
    machine = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "cores": 16}
    content = {
        "format": "prunefuse benchmark",
        "version": 1,
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python -m benchmarks.gpu.bench cuda",
        "machine": machine,
        "versions": {"prunefuse": "1.0, git abc", "torch": "2.11.0"},
        "ceilings": {"copy": 3000.0, "product tf32": 400_000.0},
        "results": [dataclasses.asdict(Result("score", "cuda", 3e8, "GB/s", True, lines))],
    }
    (tmp_path / "made.json").write_text(json.dumps(content))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/other.json").write_text("{}")
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(table, "PAGE", tmp_path / "gpu.md")
    monkeypatch.setattr(sys, "argv", ["table", str(tmp_path / "made.json")])
    table.main()
    assert (tmp_path / "results/nvidia-h100-80gb-hbm3.json").is_file()
    page = (tmp_path / "gpu.md").read_text()
    assert "No GPU" not in page
    assert "## NVIDIA H100 80GB HBM3\n\n2026-01-02, prunefuse 1.0, git abc, torch 2.11.0" in page
    assert "Ceilings: copy 3 TB/s, product tf32 400 TFLOP/s." in page
    assert page.splitlines()[-1] == (
        "| score | 100 µs | 200 µs | 0.50 | 1 ms | failed: RuntimeError: a / b | 2e-07 | ✓ |"
    )
    with pytest.raises(FileExistsError, match="is there already"):
        table.main()
