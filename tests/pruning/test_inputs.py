"""Models that take and return more than tensors: dictionaries, lists, None, numbers, dataclasses, objects, caches."""

from __future__ import annotations

import json
from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from pruning_oracle import scramble_
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import prunefuse
from prunefuse.pruning import PruningPlan, plan_pruning
from prunefuse.training import flops_per_input

X, Y = torch.randn(2, 8), torch.randn(2, 8)


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor
    scale: float = 2.0


@dataclass
class Slotted:
    __slots__ = ("left", "right")
    left: torch.Tensor
    right: torch.Tensor


class Sample:
    """An object of one's own, as of graphs or fields."""

    def __init__(self, left, right):
        self.left, self.store = left, {"right": [right]}


Both = namedtuple("Both", "left right")


class Adds(nn.Module):
    """Two inputs, which ``forward`` finds in what it gets."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 3)

    def add(self, left, right, scale=2.0):
        return self.head((self.a(left) + scale * self.b(right)).relu())


class ByName(Adds):
    def forward(self, left, right=None, *, mask=None, scale=2.0, flag=True):
        assert mask is None
        assert flag
        return self.add(left, right, scale)


class OfDictionary(Adds):
    def forward(self, batch):
        return self.add(batch["left"], batch["right"])


class OfList(Adds):
    def forward(self, parts, none=None, name="add"):
        return getattr(self, name)(parts[0], parts[1])


class OfObject(Adds):
    def forward(self, batch):
        return self.add(batch.left, batch.right)


class OfSample(Adds):
    def forward(self, sample):
        return self.add(sample.left, sample.store["right"][0])


class OfNested(Adds):
    def forward(self, first, targets):
        return self.add(first[1]["x"], targets["list"][0]["right"])


CASES = {
    "by name": (ByName, None, {"left": X, "right": Y, "mask": None, "scale": 2.0, "flag": True}),
    "in order and by name": (ByName, (X,), {"right": Y, "scale": 2}),
    "one and by name": (ByName, X, {"right": Y}),
    "a dictionary by name": (ByName, {"left": X, "right": Y}, None),
    "like a dictionary by name": (ByName, None, UserDict({"left": X, "right": Y})),
    "like a dictionary in order": (ByName, UserDict({"left": X, "right": Y}), None),
    "None and names": (OfList, ([X, Y], None, "add"), None),
    "a dictionary": (OfDictionary, {"left": X, "right": Y}, None),
    "a dictionary in a tuple": (OfDictionary, ({"left": X, "right": Y},), None),
    "a list": (OfList, ([X, Y],), None),
    "nested": (OfNested, ((0, {"x": X}), {"list": [{"right": Y}], "n": 1}), None),
    "like a dictionary": (OfDictionary, (UserDict({"left": X, "right": Y}),), None),
    "a dataclass": (OfObject, Pair(X, Y), None),
    "a dataclass with slots": (OfObject, (Slotted(X, Y),), None),
    "a named tuple": (OfObject, Both(X, Y), None),
    "an object": (OfSample, Sample(X, Y), None),
    "an object by name": (OfSample, None, {"sample": Sample(X, Y)}),
}


@pytest.mark.parametrize("case", CASES)
def test_inputs_of_any_structure_are_planned_extracted_and_kept_in_files(case, tmp_path):
    kind, args, kwargs = CASES[case]
    model = scramble_(kind()).eval()
    flat = ByName()
    flat.load_state_dict(model.state_dict())
    expected = plan_pruning(flat, (X, Y))
    plan = plan_pruning(model, args, example_kwargs=kwargs)
    assert (plan.kept, plan.outputs, plan.flops) == (expected.kept, expected.outputs, expected.flops)
    assert [spec.shape for spec in plan.inputs] == [X.shape, Y.shape]
    assert torch.equal(ByName.add(plan.extract(model), X, Y), ByName.add(expected.extract(flat).eval(), X, Y))
    assert flops_per_input(model, args, example_kwargs=kwargs) == 2 * plan.flops[0]  # of two inputs
    plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.extract(model).a.out_features == 16
    assert "linear in head" in loaded.explain("a", model=model, example_inputs=args, example_kwargs=kwargs)
    small, _ = prunefuse.prune_and_finetune(
        model, args, example_kwargs=kwargs, finetune=lambda _: None, steps=2
    )
    assert small.a.out_features == 16


def test_what_a_file_tells_of_inputs_is_what_extraction_tries(tmp_path):
    class Wrong(OfNested):
        def forward(self, first, targets):
            return super().forward(first, targets)[:, :2]

    plan = plan_pruning(OfNested(), *CASES["nested"][1:2])
    plan.save(tmp_path / "plan.json")
    Wrong.__name__ = "OfNested"
    for one in (plan, PruningPlan.load(tmp_path / "plan.json")):
        with pytest.raises(ValueError, match=r"returns shapes \(\(2, 2\),\) instead of \(\(2, 3\),\)"):
            one.extract(Wrong())


def test_files_of_plans_for_tensors_are_as_before(tmp_path):
    plan = plan_pruning(ByName(), (X, Y))
    content = json.loads(plan.to_text())
    assert "structure" not in content
    assert content["version"] == 4
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_programs_are_exported_with_inputs_by_name():
    model = ByName().eval()
    plan = plan_pruning(model, X, example_kwargs={"right": Y, "mask": None}, expressed_by="program")
    program = plan.extract_program(model, X, example_kwargs={"right": Y, "mask": None})
    assert program.module()(X, right=Y, mask=None).shape == (2, 3)
    assert program.state_dict["a.weight"].shape == (16, 8)


def test_sequences_that_are_packed_are_one_input():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 16, batch_first=True), nn.Linear(16, 2)

        def forward(self, packed):
            return self.head(self.rnn(packed)[1][-1])

    model, packed = Reads(), pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    assert isinstance(packed, PackedSequence)
    small = plan_pruning(model, packed).extract(model)
    assert small.rnn.hidden_size == 8
    assert small(packed).shape == (2, 2)


class Says:
    def __init__(self, logits, features):
        self.logits, self.more = logits, {"features": [features]}


class KeyCache:
    def __init__(self, keys):
        self.keys = keys


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.a, self.b, self.make = nn.Linear(8, 32), nn.Linear(32, 12), make

    def forward(self, x):
        h = self.a(x).relu()
        return self.make(self.b(h), h)


@pytest.mark.parametrize(
    ("make", "width", "outputs"),
    [
        (lambda y, h: Says(y, h), 32, [12, 32]),
        (lambda y, h: UserDict(y=y, h=h), 32, [12, 32]),
        (lambda y, h: torch.distributions.Normal(y, y.exp(), validate_args=False), 16, [12, 12]),
        (lambda y, h: [Slotted(y, None), {"h": 1}], 16, [12]),
        (lambda y, h: {"y": y, "past": KeyCache(h)}, 16, [12]),
    ],
)
def test_tensors_in_outputs_of_any_kind_keep_their_channels_but_for_those_of_caches(make, width, outputs):
    model = Returns(make)
    plan = plan_pruning(model, X, ratio=0.5) if width < 32 else None
    if plan is None:
        with pytest.raises(ValueError, match="as outputs of the network"):
            plan_pruning(model, X, ratio=0.5)
        return
    assert [shape[-1] for shape in plan.outputs] == outputs
    small = plan.extract(model)
    assert small.a.out_features == width
    assert small.b.out_features == 12


def test_calibration_inputs_have_the_structure_of_the_example():
    model = scramble_(ByName()).eval()
    batches = [{"left": torch.randn(32, 8), "right": torch.randn(32, 8), "labels": torch.zeros(32)}] * 2
    example = {"left": X, "right": Y, "scale": 2.0}
    plan, small = prunefuse.prune_without_finetuning(
        model, example_kwargs=example, calibration=batches, ratio=0.5
    )
    pairs = [(batch["left"], batch["right"]) for batch in batches]
    flat, expected = prunefuse.prune_without_finetuning(model, (X, Y), pairs, ratio=0.5)
    assert plan.kept == flat.kept
    assert torch.equal(small(X, Y), expected(X, Y))
    pairs = [({"left": batch["left"], "right": batch["right"]}, batch["labels"]) for batch in batches]
    of_dictionary = OfDictionary().eval()
    of_dictionary.load_state_dict(model.state_dict())
    plan, _ = prunefuse.prune_without_finetuning(of_dictionary, ({"left": X, "right": Y},), pairs, ratio=0.5)
    assert plan.kept == flat.kept
    with pytest.raises(
        TypeError, match="calibration must be batches with left, right, scale by name, got none of 'right'"
    ):
        prunefuse.prune_without_finetuning(model, None, [{"left": X}], example_kwargs=example)


class WithLoss(ByName):
    def forward(self, left, right, labels=None):
        logits = super().forward(left, right)
        return {
            "loss": None if labels is None else nn.functional.cross_entropy(logits, labels),
            "logits": logits,
        }


def test_batches_by_name_have_the_loss_that_the_model_returns():
    model = scramble_(WithLoss())
    example = {"left": X, "right": Y}
    batch = {**example, "labels": torch.tensor([0, 2])}
    own = plan_pruning(model, example_kwargs=example, criterion="taylor", batches=[batch])
    told = plan_pruning(
        model,
        example_kwargs=example,
        criterion="taylor",
        batches=[0],
        loss=lambda model, _: model(**batch)["loss"],
    )
    assert own.kept == told.kept
    with pytest.raises(ValueError, match="batches by name must have what the model needs to return a loss"):
        plan_pruning(model, example_kwargs=example, criterion="taylor", batches=[example])


def test_models_of_transformers_take_what_tokenizers_give(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 99, (2, 7))
    tokens = transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    plan = plan_pruning(model, example_kwargs=tokens, ratio=0.5)
    assert plan.outputs == ((2, 2),)
    assert plan.params[1] < 0.6 * plan.params[0]
    plan.save(tmp_path / "plan.json")
    small = PruningPlan.load(tmp_path / "plan.json").extract(model)
    assert small(**tokens).logits.shape == (2, 2)
    assert flops_per_input(model, example_kwargs=tokens) == 2 * plan.flops[0]  # of two inputs


class OfImages(nn.Module):
    """A list of images of any sizes, as detectors take."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)

    def sum(self, images):
        assert all(image.ndim == 3 for image in images)
        return [self.b(self.a(image)).sum((1, 2)) for image in images]


class SaysList(OfImages):
    def forward(self, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]] | None = None):
        assert targets is None
        return self.sum(images)


class SaysNothing(OfImages):
    def forward(self, images, targets=None):
        assert targets is None
        return self.sum(images)


IMAGES = [torch.randn(3, 9, 9), torch.randn(3, 8, 10)]


@pytest.mark.parametrize("count", [1, 2])
def test_a_list_is_one_input_where_the_forward_says_so(count, tmp_path):
    model = scramble_(SaysList())
    plan = plan_pruning(model, IMAGES[:count], ratio=0.5)
    assert plan.kept == plan_pruning(model, (IMAGES[:count],), ratio=0.5).kept
    assert plan.extract(model).a.out_channels == 4
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json").extract(model)(IMAGES)[1].shape == (2,)


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_says_how_to_give_a_list_as_one_input(count):
    with pytest.raises(RuntimeError, match=r"cannot run.*example_inputs=\(\[\.\.\.\],\)"):
        plan_pruning(SaysNothing(), IMAGES[:count], ratio=0.5)
    plan = plan_pruning(SaysNothing(), (IMAGES[:count],), ratio=0.5)
    assert plan.kept["a.weight"].keys() == {0}


def test_a_list_of_arguments_stays_one_where_the_first_is_no_list():
    plan = plan_pruning(scramble_(ByName()), [X, Y], ratio=0.5)
    assert plan.kept == plan_pruning(scramble_(ByName()), (X, Y), ratio=0.5).kept
