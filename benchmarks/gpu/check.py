"""Runs the steps of the table below, each under its own time limit, and sums them up in 60 lines.

Nothing outside the standard library is imported here, and nothing is asked of the network: the machine may have torch and
little else. The steps run in copies of this checkout, with the libraries of `make gpu-bundle` where there are some.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.bundle import commit

ROOT = Path(__file__).resolve().parents[2]
LINES = 60  # of the summary
SHOWN = 24  # of them, of logs of failed steps
TOLD = 16  # of them, of what one step found
LOG = 1 << 20  # bytes of a step's log that are kept
FILES = ("summary.txt", "steps.log", "environment.txt", "benchmarks.json", "counters.csv", "training.txt")


@dataclass(frozen=True)
class Step:
    """One line of the table.

    Attributes:
        name: As printed.
        limit: Seconds, at which its processes are killed.
        after: Steps that must have ended.
        command: What runs, with {names} of `places`.
        needs: Tools without which it is absent.
        rehearsal: What a rehearsal runs, ``same`` or nothing, whether the tools are there or not.
        tree: Where it runs: in the ``checkout``, in the copy of it that the step ``unpack`` or ``build`` makes, or in the
            first of these two that passes its smoke test.
    """

    name: str
    limit: float
    after: str
    command: str
    needs: str = ""
    rehearsal: str = "same"
    tree: str = ""


def sanitizer(tool: str, rehearsal: str = "") -> Step:
    run = (
        "env PYTORCH_NO_CUDA_MEMORY_CACHING=1 {sanitizer} --tool "
        + tool
        + " {python} -m benchmarks.gpu.calls cuda"
    )
    return Step(tool, 120, "smoke", run, "compute-sanitizer", rehearsal)


EARLIER = "environment tests memcheck racecheck initcheck synccheck run warm-up rebuilt"
STEPS = (
    Step("environment", 20, "", "{python} -m benchmarks.gpu.environment {out}/environment.txt", tree="checkout"),
    Step("unpack", 20, "", "{python} -m benchmarks.gpu.bundle unpack {bundle} {trees}/unpack {site}", tree="checkout"),
    Step("smoke", 60, "unpack", "{python} -m benchmarks.gpu.smoke {operators}", tree="unpack"),
    Step("build", 120, "unpack", "{python} -m benchmarks.gpu.bundle build {trees}/build --architectures {capability}+PTX",
         "cmake ninja nvcc", "{python} -m benchmarks.gpu.bundle build {trees}/build --rehearse", "checkout"),
    Step("rebuilt", 60, "build", "{python} -m benchmarks.gpu.smoke cuda", "nvcc", "", "build"),
    Step("tests", 150, "smoke", "{python} -m pytest {tests} -m cuda -q -p no:cacheprovider"
         " --continue-on-collection-errors"),
    sanitizer("memcheck", "{python} -m benchmarks.gpu.calls {operators}"),
    sanitizer("racecheck"),
    sanitizer("initcheck"),
    sanitizer("synccheck"),
    Step("run", 100, "smoke", "{python} -m prunefuse.cli run --device {device} --seeds 1 --schedule 2%,4% --epochs 1"
         " --min-steps 20 --baselines random --quiet --out {work}/run"),
    Step("warm-up", 100, "smoke", "{python} -m benchmarks.gpu.bench {device} --warm-up"),  # of the compiler's cache
    # From here on alone on the card, one after the other. Tests that need most of its memory come first.
    Step("large", 50, EARLIER, "{python} -m pytest tests/native/test_large_op.py --slow -m 'cuda and slow' -q"
         " -p no:cacheprovider", rehearsal=""),
    Step("benchmarks", 150, "large", "{python} -m benchmarks.gpu.bench {device} --json {out}/benchmarks.json"
         " --commit '{commit}'"),
    Step("counters", 50, "benchmarks", "{python} -m benchmarks.gpu.counters {out}/counters.csv", "ncu",
         "{python} -m benchmarks.gpu.bench {device} --once"),
    Step("training", 50, "counters", "{python} -m benchmarks.gpu.training {device} {out}/training.txt"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: Step
    state: str  # ok, FAILED, absent
    why: str
    seconds: float
    log: str

    @property
    def numbers(self) -> list[str]:
        """What it has to say: its lines that begin with "> ", else its last one."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        return [line[2:] for line in lines if line.startswith("> ")] or lines[-1:]


class Check:
    """Runs steps, as many at a time as may, and keeps summary.txt and steps.log up to date after each."""

    def __init__(
        self, steps: Sequence[Step], out: Path, places: dict[str, str], limit: float, rehearsal: bool
    ) -> None:
        self._steps, self._out, self._places, self._rehearsal = steps, out, places, rehearsal
        self._began, self._limit = time.monotonic(), limit
        self._outcomes: dict[str, Outcome] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped = False

    def run(self) -> int:
        """1 if a step failed, else 0."""
        waiting, futures = list(self._steps), set()
        with ThreadPoolExecutor(len(waiting)) as pool:
            try:
                while waiting or futures:
                    for step in [step for step in waiting if self._may_start(step)]:
                        waiting.remove(step)
                        futures.add(pool.submit(self._run, step))
                    done, futures = wait(futures, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._note(future.result())
            finally:  # also where this is interrupted
                self._stopped = True
                for process in list(self._running.values()):
                    kill(process)
        return int(any(outcome.state == "FAILED" for outcome in self._outcomes.values()))

    def _note(self, outcome: Outcome) -> None:
        self._outcomes[outcome.step.name] = outcome
        with (self._out / "steps.log").open("a") as log:
            log.write(f"===== {outcome.step.name}: {outcome.state} {outcome.why}\n{outcome.log}\n")
        (self._out / "summary.txt").write_text(self.summary() + "\n")

    def _may_start(self, step: Step) -> bool:
        after = set(step.after.split())
        if "smoke" in after and self._state("smoke") == "FAILED":
            after.add("rebuilt")  # another library to go on with
        return after <= self._outcomes.keys()

    def _state(self, name: str) -> str:
        return self._outcomes[name].state if name in self._outcomes else ""

    def _run(self, step: Step) -> Outcome:
        absent = [tool for tool in step.needs.split() if not shutil.which(tool)]
        why_absent = f"no {', '.join(absent)}" if absent else ""
        command = step.command
        if self._rehearsal and step.rehearsal != "same":
            command = step.rehearsal
            why_absent = why_absent or "not rehearsed" * (not command)
        if not command or (absent and not self._rehearsal):
            return Outcome(step, "absent", why_absent, 0, "")
        left = self._limit - (time.monotonic() - self._began)
        if left <= 0:
            return Outcome(step, "FAILED", f"not started: {self._limit:g} s are over", 0, "")
        state, why, seconds, log = self._execute(step, command, min(step.limit, left))
        if why_absent and state == "ok":
            state, why = "absent", why_absent
        return Outcome(step, state, why, seconds, log)

    def _execute(self, step: Step, command: str, limit: float) -> tuple[str, str, float, str]:
        began = time.monotonic()
        tree = step.tree or (
            "build" if self._state("smoke") == "FAILED" and self._state("rebuilt") == "ok" else "unpack"
        )
        folder = Path(self._places["trees"]) / tree
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    shlex.split(command.format(**self._places)),
                    cwd=folder if folder.is_dir() else ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return "FAILED", str(error), 0, ""
            self._running[step.name] = process
            if self._stopped:
                kill(process)
            try:
                code = process.wait(limit)
                why = f"exit status {code}" if code else ""
            except subprocess.TimeoutExpired:
                why = f"killed at its limit of {limit:.3g} s"
            kill(process)  # what it may have left running, too
            del self._running[step.name]
            log.seek(0)
            text = log.read().decode(errors="replace")
        if len(text) > LOG:
            text = f"{text[: LOG // 2]}\n[…]\n{text[-LOG // 2 :]}"
        return "FAILED" if why else "ok", why, time.monotonic() - began, text

    def summary(self) -> str:
        """At most `LINES` lines: what failed, what every step took and found."""
        outcomes = [self._outcomes[step.name] for step in self._steps if step.name in self._outcomes]
        failed = [outcome for outcome in outcomes if outcome.state == "FAILED"]
        pending = [step.name for step in self._steps if step.name not in self._outcomes]
        kind = "rehearsal of the GPU check (its times mean nothing)" if self._rehearsal else "GPU check"
        lines = [
            f"{kind}: {len(failed)} of {len(self._steps)} steps failed, {time.monotonic() - self._began:.0f} s, "
            f"commit {self._places['commit'] or 'unknown'}"
        ]
        for outcome in failed:
            lines.append(f"FAILED {outcome.step.name}: {outcome.why}")
            last = [line for line in outcome.log.splitlines() if line.strip()]
            room = max(0, min(8, SHOWN // len(failed) - 1))
            lines += [f"    {line}" for line in (last[-room:] if room else [])]
        for outcome in outcomes:
            first, *more = outcome.numbers or [""]
            why = f"({outcome.why}) " if outcome.state == "absent" else ""
            lines.append(f"{outcome.state:<6} {outcome.step.name:<11} {outcome.seconds:4.0f} s  {why}{first}")
            lines += [f"    {line}" for line in more[: TOLD - 1]]
        if pending:
            lines.append(f"not ended: {', '.join(pending)}")
        if len(lines) > LINES:
            lines[LINES - 1 :] = [f"… {len(lines) - LINES + 1} more lines are in steps.log"]
        return "\n".join(line[:240] for line in lines)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a step's process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def capability() -> str:
    """Of the first GPU, as 9.0; nothing where there is none."""
    by_torch = "import torch; print('.'.join(map(str, torch.cuda.get_device_capability())))"
    found = ask("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader") or ask(
        sys.executable, "-c", by_torch
    )
    return next(iter(found.split()), "")


def places(out: Path, work: Path, gpu: str) -> dict[str, str]:
    """What the commands of the table say in braces, for a GPU of this capability; for a rehearsal where there is none."""
    rehearsal = not gpu
    emulated = (ROOT / "build/emulation/libprunefuse_emulated.so").is_file()
    processes = "-n 8" if find_spec("xdist") else ""
    tests = (
        "tests/native/test_every_op.py"
        if rehearsal
        else f"tests --ignore=tests/adapters --ignore=tests/onnx {processes}"
    )
    return {
        "python": sys.executable,
        "out": str(out),
        "work": str(work),
        "trees": str(work / "trees"),
        "site": str(work / "site"),
        "bundle": str(ROOT / "build/gpu-bundle"),
        "device": "cpu" if rehearsal else "cuda",
        "operators": ("emulation" if emulated else "cpu") if rehearsal else "cuda",
        "capability": gpu,
        "tests": tests,
        "sanitizer": f"compute-sanitizer --error-exitcode 1 --report-api-errors no --print-limit 20 {kernels_of_ours()}",
        "commit": commit(),
    }  # fmt: skip


def kernels_of_ours() -> str:
    """The option that keeps compute-sanitizer to kernels of this package; its name has changed between versions."""
    known = ask("compute-sanitizer", "--help")
    older = "--kernel-regex" in known and "--kernel-name" not in known
    return f"{'--kernel-regex' if older else '--kernel-name'} kns=prunefuse"


def ask(*command: str) -> str:
    """What a command prints; nothing where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the package on this machine's GPU, within 400 s.")
    parser.add_argument(
        "--rehearse", action="store_true", help="every step on the CPU or the emulated kernels"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/gpu", help="folder of the results (build/gpu)"
    )
    given = parser.parse_args()
    gpu = "" if given.rehearse else capability()
    if not gpu and not given.rehearse:
        parser.error("no GPU is found here: --rehearse runs every step without one")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="prunefuse-gpu-") as folder:
        work = Path(folder)
        os.environ |= {
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ["PATH"]]
            ),  # cmake, of an environment
            "PYTHONPATH": os.pathsep.join([str(work / "site"), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
            "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
            "JAX_PLATFORMS": "cpu",  # it would take three quarters of the card
            "MPLBACKEND": "agg",
            "MAX_JOBS": str(max(1, 3 * (os.cpu_count() or 1) // 4)),  # the smoke test runs beside the build
            "OMP_NUM_THREADS": "1" if given.rehearse else "2",  # many steps at a time
        }
        check = Check(STEPS, out, places(out, work, gpu), 180 if given.rehearse else 400, given.rehearse)
        code = check.run()
    print((out / "summary.txt").read_text(), end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
