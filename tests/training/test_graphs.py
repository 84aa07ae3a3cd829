"""Steps that are recorded and replayed. Without a GPU a tape of operators stands for a CUDA graph: numbers in it are fixed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from prunefuse import models
from prunefuse.data import Augment, Labeled, TensorImages
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.training import Adversarial, Checkpoint, Distillation, Pgd, Recipe, _graphs, train

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, schedule="one-cycle", cuda_graphs=True)
IMAGES = torch.randint(255, (61, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
POOL = TensorImages(IMAGES, torch.arange(61) % 10, mean=(0.5,), std=(0.2,), augment=Augment(pad=1, flip=True))


class Tape(TorchDispatchMode):
    """Every operator that ran, with its arguments; a replay runs them again, on the same memory where that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        found = func(*args, **(kwargs or {}))
        self.ran.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        now: dict[int, Tensor] = {}

        def current(one: Any) -> Any:
            return now.get(id(one), one) if isinstance(one, Tensor) else one

        for func, args, kwargs, found in self.ran:
            again = func(*tree_map(current, args), **tree_map(current, kwargs))
            for before, after in zip(_flat(found), _flat(again), strict=True):
                if before is not after:
                    now[id(before)] = after
        self.now = now


def _flat(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tapes in the place of CUDA graphs, on the CPU; for each how many steps it has done."""
    done: list[int] = []

    def record(work: Callable[[], tuple[Tensor, ...]], device: torch.device) -> Any:
        tape, number = Tape(), len(done)
        with tape:
            results = work()  # a graph would not run now, so the first replay finds its step done
        places = tuple(one.clone() for one in results)
        done.append(0)

        def replay() -> None:
            done[number] += 1
            if done[number] > 1:
                tape.replay()
                for place, one in zip(places, results, strict=True):
                    place.copy_(tape.now.get(id(one), one))

        return replay, places

    monkeypatch.setattr(_graphs, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(_graphs, "record", record)
    monkeypatch.setattr(_graphs, "beside", lambda device: nullcontext())
    return done


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return models.resnet8(in_channels=1)


def trained(recipe: Recipe, data: Any = POOL, model: nn.Module | None = None, **options: Any) -> Any:
    model = network() if model is None else model
    seen: list[Tensor] = []
    history = train(model, data, recipe, on_batch=lambda *batch: seen.extend(batch), **options)
    return {
        "weights": model.state_dict(),
        "seen": seen,
        "losses": torch.tensor([one.loss for one in history]),
    }


TEACHER = network()
VARIANTS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "plain": (RECIPE, {}),
    "not augmented": (RECIPE, {"data": POOL.plain()}),
    "with other labels": (RECIPE, {"data": Labeled(POOL, torch.arange(5, 45), torch.arange(40) % 7)}),
    "adamw": (replace(RECIPE, optimizer="adamw", lr=0.005), {}),
    "clipped, smoothed, weighed": (
        replace(RECIPE, clip_norm=0.5, label_smoothing=0.1, balance_classes=True, nesterov=True),
        {},
    ),
    "distilled": (RECIPE, {"distillation": Distillation(TEACHER, 0.3)}),
    "distilled less and less": (RECIPE, {"distillation": Distillation(TEACHER, 0.3, annealing="linear")}),
    "taught once": (RECIPE, {"data": POOL.plain(), "distillation": Distillation(TEACHER, 0.3)}),
    "with learning rates of elements": (RECIPE, {"lr_factors": {"conv1.weight": torch.tensor(0.1)}}),
}


@pytest.mark.parametrize(("recipe", "options"), VARIANTS.values(), ids=VARIANTS)
def test_replayed_steps_are_the_steps(tapes: list[int], recipe: Recipe, options: dict[str, Any]) -> None:
    """Learning rates, weights of teachers, batches and what augmentation draws change from replay to replay."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(recipe, **options)
    torch.testing.assert_close(
        found, trained(replace(recipe, cuda_graphs=False), **options), rtol=1e-3, atol=1e-4
    )
    # Of 24 steps in batches of 8 and 7, or of 15 in batches of 8, those that are not the first three of their shape.
    assert sum(tapes) == (24 - 2 * 3 if len(options.get("data", POOL)) == 61 else 15 - 3)


def test_a_rare_batch_runs_as_it_comes(tapes: list[int]) -> None:
    """Batches of 9, 9, 9, 9, 8 and so on: the last of an epoch is one of three in all."""
    data = TensorImages(IMAGES[:44], torch.arange(44) % 10)
    found = trained(replace(RECIPE, batch_size=9), data)
    assert len(tapes) == 1
    assert tapes == [4 * 3 - 3]
    plain = trained(replace(RECIPE, batch_size=9, cuda_graphs=False), data)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


def test_a_training_that_was_stopped_goes_on(tapes: list[int], tmp_path: Any) -> None:
    class Stopped(BaseException):
        pass

    def stop(*batch: Any) -> None:
        steps.append(batch)
        if len(steps) == 12:
            raise Stopped

    steps: list[Any] = []
    whole = trained(RECIPE)
    with pytest.raises(Stopped):
        train(network(), POOL, RECIPE, on_batch=stop, checkpoint=Checkpoint(tmp_path / "c", seconds=0))
    again = network()
    train(again, POOL, RECIPE, checkpoint=Checkpoint(tmp_path / "c", seconds=0))
    torch.testing.assert_close(again.state_dict(), whole["weights"], rtol=1e-4, atol=1e-5)


class Waiting(nn.Module):
    """Looks at a value on the host in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: Tensor) -> Tensor:
        factor = 1.0 if float(images.sum()) > 0 else 2.0
        return self.inner(images) * factor


IN_RANGE = TensorImages(IMAGES[:20], torch.arange(20) % 10)


class Items(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return POOL.plain()[index]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data": Items()}, "batches are not made on the device"),
        (
            {"data": IN_RANGE, "adversarial": Adversarial(Pgd(epsilon=0.1, step_size=0.05, steps=1))},
            "attacks draw on the host",
        ),
        ({"model": Waiting()}, "a step cannot be recorded: operation not permitted"),
    ],
    ids=["read one by one", "attacked", "waiting"],
)
def test_what_cannot_be_recorded_runs_as_ever_and_is_told_once(
    tapes: list[int], options: dict[str, Any], reason: str
) -> None:
    plain = {name: deepcopy(one) if name == "model" else one for name, one in options.items()}
    with pytest.warns(
        UserWarning, match=f"cuda_graphs: steps run one operator at a time, as {reason}"
    ) as told:
        found = trained(RECIPE, **options)
    assert len([one for one in told if "cuda_graphs" in str(one.message)]) == 1
    assert not tapes
    expected = trained(replace(RECIPE, cuda_graphs=False), **plain)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_on_a_cpu_it_is_an_error_before_any_work() -> None:
    message = "cuda_graphs must be False on a cpu, as a GPU records them, got True"
    before = network().state_dict()
    model = network()
    with pytest.raises(ValueError, match=message):
        train(model, POOL, RECIPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=message):
        ActiveLearning(network, POOL, None, LoopConfig(schedule=(10,), recipe=RECIPE))


@pytest.mark.cuda
@pytest.mark.parametrize(("recipe", "options"), VARIANTS.values(), ids=VARIANTS)
def test_a_gpu_replays_the_steps(recipe: Recipe, options: dict[str, Any]) -> None:
    def moved(graphs: bool) -> Any:
        mine = {
            name: replace(one, teacher=deepcopy(one.teacher).cuda()) if name == "distillation" else one
            for name, one in options.items()
        }
        return trained(replace(recipe, cuda_graphs=graphs), model=network().cuda(), **mine)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = moved(graphs=True)
    torch.testing.assert_close(found, moved(graphs=False), rtol=1e-2, atol=1e-3)
