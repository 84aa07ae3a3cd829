"""Models inside of what trains them on several devices, compiles them or averages their weights."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
from torch import nn

from prunefuse import (
    fuse_,
    load_pruned,
    load_weights_,
    plan_pruning,
    prune_and_finetune,
    prune_without_finetuning,
)

X = torch.zeros(2, 4)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled": torch.compile,
    "two": lambda model: torch.compile(nn.parallel.DistributedDataParallel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.usefixtures("group")
def test_the_model_inside_is_planned_cut_fused_and_saved(wrap, tmp_path):
    dense = wrap(net())
    inside = next(module for module in dense.modules() if type(module) is nn.Sequential)
    plan = plan_pruning(dense, X)
    assert plan == plan_pruning(inside, X)
    assert plan.explain("0", model=dense, example_inputs=X) == plan.explain("0")
    small = plan.extract(dense)
    assert type(small) is nn.Sequential
    plan.save_model(wrap(small), tmp_path / "small")
    again = load_pruned(tmp_path / "small", factory=lambda: wrap(net()))
    assert torch.equal(again[0].weight, small[0].weight)
    with torch.no_grad():
        small[0].weight.add_(1)
    assert fuse_(dense, wrap(small), plan, wrap(net())) is dense
    assert torch.equal(inside[0].weight[list(plan.kept["0.weight"][0])], small[0].weight)
    assert plan.extract_program(dense, X).state_dict["0.weight"].shape == (4, 4)
    assert not load_weights_(dense, _saved(tmp_path / "w.pt", inside))


def _saved(path, model):
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.usefixtures("group")
def test_pruning_without_training_takes_the_model_inside():
    dense = nn.parallel.DistributedDataParallel(net())
    _, small = prune_without_finetuning(dense, X, torch.randn(64, 4))
    assert type(small) is nn.Sequential
    assert small[0].out_features == 4


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.usefixtures("group")
def test_steps_under_a_loop_of_ones_own(wrap):
    dense, images = net(), torch.randn(32, 4)
    labels = (images.sum(1) > 0).long()
    losses = []

    def train(model):
        running = wrap(model) if wrap is not torch.compile else model  # compiling takes seconds
        inner = next(module for module in running.modules() if type(module) is nn.Sequential)
        optimizer = torch.optim.SGD(inner.parameters(), 0.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(inner(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return running

    before = [p.clone() for p in dense.parameters()]
    small, plan = prune_and_finetune(wrap(dense), X, train, steps=3, ratio=0.75)
    assert type(small) is nn.Sequential
    assert small[0].out_features == 2
    assert losses[-1] != losses[-5]
    assert all(torch.equal(a, b) for a, b in zip(before, dense.parameters(), strict=True))
    assert torch.equal(plan.extract(fuse_(dense, small, plan))[0].weight, small[0].weight)


def test_the_model_that_training_returns_is_the_one_that_goes_on():
    best = []

    def train(model):
        for parameter in model.parameters():
            parameter.data.zero_()
        best.append(torch.optim.swa_utils.AveragedModel(model))
        nn.init.ones_(best[-1].module[0].weight)
        return best[-1]

    small, _ = prune_and_finetune(net(), X, train, steps=2, ratio=0.5)
    assert small is best[-1].module
    assert small[0].weight.min() == 1
    assert best[0].module[0].out_features == 6
    with pytest.raises(
        ValueError, match="finetune must return the small model it was given, trained, or nothing"
    ):
        prune_and_finetune(net(), X, lambda small: net(), steps=2)


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_sharded_models_are_told_wherever_a_model_is_an_argument(tmp_path):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    torch.manual_seed(0)
    dense = net()
    plan = plan_pruning(dense, X)
    small = plan.extract(dense)
    whole = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    sharded = [
        (fully_shard(net()), fully_shard(small), r"0\.weight sharded over processes"),
        (FullyShardedDataParallel(net(), device_id=torch.device("cpu")), None, "a FullyShardedDataParallel"),
    ]
    for big, little, message in sharded:
        uses = [
            lambda big=big: plan_pruning(big, X),
            lambda big=big: plan.extract(big),
            lambda big=big: plan.extract_program(big, X),
            lambda big=big: plan.explain("0", model=big, example_inputs=X),
            lambda big=big: plan.check_model(big),
            lambda big=big: prune_and_finetune(big, X, pytest.fail),
            lambda big=big: prune_without_finetuning(big, X, torch.randn(64, 4)),
            lambda big=big: load_pruned(lambda: big, plan, whole),
            lambda big=big: fuse_(big, plan.extract(net()), plan),
            lambda big=big: fuse_(net(), plan.extract(net()), plan, big),
        ]
        if little is not None:
            uses += [
                lambda little=little: fuse_(net(), little, plan),
                lambda little=little: plan.save_model(little, tmp_path / "small"),
            ]
        for use in uses:
            with pytest.raises(
                TypeError, match=rf"must have whole parameters, got {message}.*get_model_state_dict"
            ):
                use()
    state = small.state_dict()
    with pytest.raises(
        ValueError, match=r"weights must be whole tensors, got 0\.weight, .* sharded over processes"
    ):
        load_pruned(net, plan, state)
    gathered = get_model_state_dict(small, options=StateDictOptions(full_state_dict=True))
    assert torch.equal(load_pruned(net, plan, gathered)[0].weight, whole["0.weight"])


@pytest.mark.usefixtures("group")
def test_wrappers_around_a_part_are_told():
    parts = nn.Sequential(net(), nn.parallel.DistributedDataParallel(net()))
    with pytest.raises(
        TypeError, match=r"got a DistributedDataParallel around a part of it as '1': put \.module in its"
    ):
        plan_pruning(parts, X)
    compiled = nn.Sequential(torch.compile(nn.Linear(4, 8)), nn.Linear(8, 2))
    with pytest.raises(
        TypeError, match=r"got a OptimizedModule around a part of it as '0': put \._orig_mod in its"
    ):
        plan_pruning(compiled, X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_models_are_told():
    with pytest.raises(TypeError, match="must be a module of Python code, got a scripted one as '1'"):
        plan_pruning(nn.Sequential(nn.Linear(4, 4), torch.jit.script(net())), X)


def test_a_model_that_is_compiled_in_place_is_one():
    model = net()
    model.compile()
    assert type(plan_pruning(model, X).extract(model)) is nn.Sequential


def test_the_model_that_a_trainer_holds_is_taken():
    """As ``YOLO(...)`` of ultralytics does: its ``train()`` and ``eval()`` are whole runs."""

    class Model(nn.Module):
        __module__ = "ultralytics.engine.model"

        def __init__(self, model):
            super().__init__()
            self.model = model

        def train(self, *_):
            pytest.fail("a training began")

    class Detector(Model):
        pass

    detector = Detector(net())
    plan = plan_pruning(detector, X)
    assert type(plan.extract(detector)) is nn.Sequential
    detector = Detector(None)
    detector.model = "yolo.onnx"
    with pytest.raises(TypeError, match=r"model must hold a module as \.model, got str"):
        plan_pruning(detector, X)
