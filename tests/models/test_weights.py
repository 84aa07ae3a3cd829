"""Weights of checkpoints: what fits by name and shape is taken, the rest is told, and an error changes nothing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import prunefuse
from prunefuse.models import Unmatched, load_weights_, resnet8


def network(classes=3):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"model": {"width": 4}, "state_dict": state},
        lambda state: {"epoch": 3, "encoder": state},
        lambda state: prefixed("module.", state),
        lambda state: {"model": prefixed("_orig_mod.", state)},
        lambda state: prefixed("module._orig_mod.", state),
        lambda state: {"state_dict": prefixed("model.backbone.", state)},
        lambda state: {name.replace("3.", "3._orig_mod."): value for name, value in state.items()},
        lambda state: {name: value.double() for name, value in state.items()},
    ],
)  # fmt: skip
def test_a_checkpoint_as_people_have_them(tmp_path, wrapped):
    theirs, ours = network(), network()
    torch.save(wrapped(theirs.state_dict()), tmp_path / "w.pt")
    told = load_weights_(ours, tmp_path / "w.pt")
    assert not told
    assert str(told) == "0 of 9 tensors did not match"
    assert same(ours, theirs.state_dict())


def test_models_that_are_compiled_or_wrapped(tmp_path):
    theirs = network().state_dict()
    torch.save(theirs, tmp_path / "w.pt")
    inside = network()
    inside[3] = torch.compile(inside[3])
    for ours in (torch.compile(network()), nn.DataParallel(network()), inside):
        assert not load_weights_(ours, tmp_path / "w.pt")
        assert all(
            any(torch.equal(value, one) for one in theirs.values()) for value in ours.state_dict().values()
        )


def test_a_model_that_is_none_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got OrderedDict"):
        load_weights_(network().state_dict(), tmp_path / "w.pt")


def test_safetensors_with_tied_weights_of_which_the_file_has_one(tmp_path):
    def tied():
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    theirs, ours = tied(), tied()
    save_file({"0.weight": theirs[0].weight.detach()}, tmp_path / "w.safetensors")
    assert not prunefuse.load_weights_(ours, str(tmp_path / "w.safetensors"))
    assert torch.equal(ours[1].weight, theirs[0].weight)


def test_a_file_without_what_norms_count_is_whole_as_torch_says(tmp_path):
    state = {name: value for name, value in network().state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    assert not load_weights_(network(), tmp_path / "w.safetensors")


def test_what_does_not_match_stays_and_is_told(tmp_path):
    theirs, ours = network(7), network()
    state = theirs.state_dict()
    del state["0.bias"]
    torch.save({"state_dict": prefixed("module.", state | {"scale": torch.ones(2)})}, tmp_path / "w.pt")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    told = load_weights_(ours, tmp_path / "w.pt", strict=False)
    assert told
    shapes = {"3.weight": ((7, 16), (3, 16)), "3.bias": ((7,), (3,))}
    path = str(tmp_path / "w.pt")
    assert told == Unmatched(9, ("0.bias",), ("scale",), shapes, path)
    assert told.prefix == "module."
    assert str(told) == (
        f"3 of 9 tensors did not match: 3.weight is (7, 16) in {path} and (3, 16) in the model, 3.bias is (7,) in {path} and "
        f"(3,) in the model; 0.bias is not in {path}; scale of {path} is not in the model"
    )
    left = {"0.bias", "3.weight", "3.bias"}
    assert all(
        torch.equal(value, (before if name in left else state)[name])
        for name, value in ours.state_dict().items()
    )


def save(value, path):
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        torch.save(value, path)


STATE = network().state_dict()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (network(), "got .*w.pt, which has a pickled torch.nn.modules.container.Sequential, .*state_dict"),
        ({"a": 1}, "weights must be tensors by name, .*'state_dict'.*: a mapping with a"),
        ({}, "weights must be tensors by name, .*: dict"),
        (torch.ones(3), "weights must be tensors by name, .*: Tensor"),
        ([STATE], "weights must be tensors by name, .*: list"),
        ({"raw": STATE, "mean": STATE}, "weights must be tensors by name, .*: a mapping with raw, mean"),
        ({0: torch.ones(3)}, "weights must be tensors by name"),
        (b"", "weights must be a checkpoint that is safe to read, got .*w.pt: EOFError"),
        (b"PK\x03\x04 torn", "weights must be a checkpoint that is safe to read, got .*w.pt: "),
        (b"hello", "weights must be a checkpoint that is safe to read, got .*w.pt: "),
        (
            prefixed("student.", STATE) | prefixed("teacher.", STATE),
            "weights must have the model's names once, got .* different prefixes: student., teacher.",
        ),
        (
            prefixed("module.", STATE) | {"3.bias": torch.ones(3)},
            "weights must have the model's names once, got 3.bias in .* with and without module.",
        ),
        (
            STATE | {"3.weight": torch.ones(3, 16, dtype=torch.int8)},
            "weights must be floating numbers where the model has such, got 3.weight of torch.int8",
        ),
        (resnet8().state_dict(), "weights must (fit|have a tensor of) the model.*, got .*w.pt: "),
        # Norms of other models count batches under the same name.
        ({"1.num_batches_tracked": torch.tensor(3)}, "weights must (fit|have a tensor of) the model"),
    ],
)  # fmt: skip
def test_what_is_not_a_checkpoint_of_the_model_is_one_short_line_and_changes_nothing(
    tmp_path, value, message, strict
):
    save(value, tmp_path / "w.pt")
    ours = network()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights_(ours, tmp_path / "w.pt", strict=strict)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 500
    assert "\n" not in str(caught.value)
    assert same(ours, before)


def test_strictly_a_part_is_an_error_and_changes_nothing(tmp_path):
    torch.save(network(7).state_dict(), tmp_path / "w.pt")
    ours = network()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"weights must fit the model, got .*: 2 of 9 tensors did not match: 3.weight is"
    ):
        load_weights_(ours, tmp_path / "w.pt")
    assert same(ours, before)


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "."])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(OSError, match=r"No such file|Is a directory"):
        load_weights_(network(), tmp_path / name)
