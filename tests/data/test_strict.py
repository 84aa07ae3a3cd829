"""Labels, indices and masks are taken strictly: whole numbers pass, anything else is named with its place and value."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_files import write_image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

import prunefuse
from prunefuse import ActiveLearning, LoopConfig, Recipe
from prunefuse.data import Labeled, OwnLabels, TensorImages
from prunefuse.data._batches import in_order, read
from prunefuse.training import evaluate, features, predict, predict_with_features, train

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
CONFIG = LoopConfig(schedule=(10, 20), strategy="margin", recipe=Recipe(epochs=1, batch_size=8, lr=0.05))


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, classes))


def loop(pool: Any, test: Any = None, **options: Any) -> ActiveLearning:
    factory = options.pop("factory", network)
    return ActiveLearning(factory, pool, TensorDataset(X, Y) if test is None else test, CONFIG, **options)


def bought(learner: ActiveLearning) -> dict[int, int]:
    """Sample -> label, of all that a loop has trained on."""
    list(learner)
    parts = learner.state.acquisitions
    return {i: y for part in parts for i, y in zip(part.picks, part.labels, strict=True)}


# --- labels are what an item says


class Folded(Dataset[Any]):
    """As torchvision's data sets: ``targets`` are raw, items go through ``target_transform``."""

    def __init__(self) -> None:
        self.targets = Y.tolist()
        self.target_transform = lambda label: (label + 1) % 3

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], self.target_transform(self.targets[index])


class Reordered(Dataset[Any]):
    """A view in another order that hands every other attribute on."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return self.base[39 - index]


class Plain(Dataset[Any]):
    """Items and ``targets`` that agree."""

    targets = Y.tolist()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], self.targets[index]


@pytest.mark.parametrize("data", [Folded(), Reordered(Plain()), Reordered(Folded()), Plain()])
def test_the_loop_trains_on_what_items_say(data: Any) -> None:
    labels = bought(loop(data))
    assert len(labels) == 20
    assert all(label == data[index][1] for index, label in labels.items())


@pytest.mark.parametrize("change", ["target_transform", "transforms", "targets", "subclass", None])
def test_targets_of_torchvision_are_the_labels_only_where_items_say_so(
    tmp_path: Path, change: str | None
) -> None:
    for name in ("a", "b"):
        for i in range(6):
            write_image(tmp_path / name / f"{i}.png", size=(4, 4))

    class Swapped(ImageFolder):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            image, label = super().__getitem__(index)
            return image, 1 - label

    data: Any = (Swapped if change == "subclass" else ImageFolder)(str(tmp_path))
    if change == "target_transform":
        data.target_transform = lambda label: 1 - label
    elif change == "transforms":
        data.transforms = SimpleNamespace(target_transform=lambda label: 1 - label)
    elif change == "targets":  # items come from `samples`
        data.targets = [1 - label for label in data.targets]
    picks = [0, 11, 5, 6]
    assert OwnLabels(data)(picks) == [data[i][1] for i in picks]


def test_labels_of_torchvisions_files_are_read_without_decoding_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(40):
            write_image(tmp_path / name / f"{i:02d}.png", size=(4, 4))
    opened: list[str] = []
    data = ImageFolder(str(tmp_path))
    load = data.loader
    data.loader = lambda path: opened.append(path) or load(path)  # type: ignore[func-returns-value]
    assert OwnLabels(data)(range(80)) == [0] * 40 + [1] * 40
    assert 0 < len(opened) <= 10


def test_other_data_sets_of_torchvision_are_read_by_their_items() -> None:
    data = FakeData(6, image_size=(1, 2, 2), num_classes=3)
    assert OwnLabels(data)([4, 2]) == [int(data[4][1]), int(data[2][1])]


# --- labels are whole numbers

WRONG = {
    "fraction": 0.5,
    "nan": float("nan"),
    "none": None,
    "string": "cat",
    "one-hot": np.eye(3)[1],
    "truth value": True,
    "numpy's": np.bool_(True),
    "tensor": torch.tensor([0.0, 1.0]),
    "mapping": {"class": 1},
    "masked": np.ma.masked,
    "duration": np.timedelta64(1),
}
RIGHT = [1, 1.0, np.uint8(1), np.float64(1), torch.tensor(1), np.array([1]), torch.tensor([1.0])]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("where", ["pool", "test"])
def test_a_wrong_label_is_named_with_its_sample(where: str, wrong: Any) -> None:
    items = [(x, wrong if i == 0 or where == "pool" else 1) for i, x in enumerate(X)]
    with pytest.raises(TypeError, match=rf"^{where} must have an integer label for sample \d+, got ") as told:
        list(loop(items) if where == "pool" else loop(X, items, oracle=lambda indices: [0] * len(indices)))
    assert "\n" not in str(told.value)


def test_a_wrong_label_in_memory_is_named_with_its_sample() -> None:
    labels = Y.float()
    labels[7] = float("nan")
    for data in (TensorDataset(X, labels), TensorImages(X, labels)):
        with pytest.raises(TypeError, match=r"^test must have an integer label for sample 7, got nan"):
            loop(X, data, oracle=lambda indices: [0] * len(indices))
        assert OwnLabels(data)([0, 5]) == [0, 2]
        with pytest.raises(TypeError, match=r"^pool must have an integer label for sample 7, got nan"):
            OwnLabels(data)([3, 7])
        with pytest.raises(TypeError, match=r"^data must have an integer label for sample 7, got nan"):
            evaluate(network(), data)
        # What is not asked for may be anything.
        assert predict(network(), data).shape == (40, 3)


@pytest.mark.parametrize("label", RIGHT, ids=repr)
def test_whole_numbers_of_any_kind_are_labels(label: Any) -> None:
    items = [(x, label) for x in X]
    assert set(bought(loop(items, items)).values()) == {1}
    assert Labeled(X, [0, 1], [label, label]).labels.tolist() == [1, 1]


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.int32, torch.float64])
def test_labels_in_memory_of_any_type(kind: torch.dtype) -> None:
    data = TensorDataset(X, Y.to(kind))
    assert set(bought(loop(data, data)).items()) <= set(enumerate(Y.tolist()))


def test_labels_beyond_the_outputs_do_not_lower_the_accuracy_in_silence() -> None:
    for data in (TensorDataset(X, Y), list(zip(X, Y, strict=True))):
        with pytest.raises(
            ValueError, match=r"labels in \[0, 2\), as the model has 2 outputs, got 13 outside"
        ):
            evaluate(network(2), data)


@pytest.mark.parametrize("wrong", [0.5, None, "cat", True])
def test_labels_given_with_indices_are_strict_too(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"labels must have an integer label for sample 7, got"):
        Labeled(X, [3, 7], [0, wrong])
    with pytest.raises(TypeError, match="labels must be a sequence"):
        Labeled(X, [3, 7], {3: 0, 7: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer", [dict.fromkeys(range(99), 1), {0, 1}, "0101010101", b"0101010101"], ids=str
)
def test_an_oracle_that_answers_without_order_is_refused(answer: Any) -> None:
    few = answer if isinstance(answer, dict | set) else answer[:10]
    with pytest.raises(TypeError, match=r"oracle must answer a sequence of labels, in the order .* got"):
        list(loop(X, oracle=lambda _: few))


def test_a_masked_answer_of_an_oracle_is_refused() -> None:
    def oracle(indices: Any) -> Any:
        return np.ma.masked_array([0] * len(indices), mask=[True] + [False] * (len(indices) - 1))

    with pytest.raises(TypeError, match="oracle's labels must be an array without masked values, got 1"):
        list(loop(X, oracle=oracle))


# --- indices and masks


@pytest.mark.parametrize("call", [predict, features])
def test_a_mask_selects(call: Any) -> None:
    mask = np.arange(40) >= 30
    model = network()
    whole = call(model, X)
    for given in (mask, torch.from_numpy(mask), mask.tolist()):
        torch.testing.assert_close(call(model, X, indices=given), whole[30:])
    torch.testing.assert_close(predict_with_features(model, X, indices=mask)[0], predict(model, X)[30:])
    assert Labeled(X, mask, Y[30:]).indices.tolist() == list(range(30, 40))
    x = X.numpy()
    picks = prunefuse.k_center_greedy(x, 3, labeled=mask)
    assert picks.tolist() == prunefuse.k_center_greedy(x, 3, labeled=range(30, 40)).tolist()


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", ">i4", "<i8", ">u2"])
def test_indices_of_any_whole_type(kind: str) -> None:
    indices = np.arange(0, 10, 2).astype(kind)
    model = network()
    assert torch.equal(predict(model, X, indices=indices), predict(model, X, indices=[0, 2, 4, 6, 8]))
    spaced = np.arange(10).astype(kind)[::-2]
    assert torch.equal(predict(model, X, indices=spaced), predict(model, X, indices=[9, 7, 5, 3, 1]))
    x = X.numpy()
    picks = prunefuse.k_center_greedy(x, 3, labeled=indices)
    assert picks.tolist() == prunefuse.k_center_greedy(x, 3, labeled=[0, 2, 4, 6, 8]).tolist()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ([0.5, 1.0], TypeError, "float64"),
        ([float("nan")], TypeError, "float64"),
        (["a"], TypeError, "'a'"),
        ([None, 1], TypeError, "None"),
        ({1, 2}, TypeError, "set"),
        ({1: 2}, TypeError, "dict"),
        ("12", TypeError, "str"),
        ([[0, 1]], ValueError, r"shape \(1, 2\)"),
        ([[0], [1, 2]], TypeError, r"\[\[0\]"),
        ([True, 2], TypeError, "numbers and truth values"),
        (np.ma.masked_array([1, 2], mask=[True, False]), TypeError, "masked values, got 1"),
        ([True, False], ValueError, "mask of the 40 rows.* got a mask of 2"),
        ([40], ValueError, r"\(0 to 39\), got 40"),
        ([-1], ValueError, r"\(0 to 39\), got -1"),
    ],
)
@pytest.mark.parametrize("argument", ["indices", "labeled"])
def test_other_indices_are_refused(argument: str, wrong: Any, error: type[Exception], message: str) -> None:
    calls: dict[str, Any] = {
        "labeled": lambda: prunefuse.k_center_greedy(X, 2, labeled=wrong),
        "indices": lambda: predict(network(), X, indices=wrong),
    }
    with pytest.raises(error, match=f"^{argument} must .*{message}"):
        calls[argument]()


def test_masked_arrays_are_never_stripped() -> None:
    hidden = np.ma.masked_array([0.1, 0.9, 0.5, 0.8], mask=[False, True, False, False])
    logits = np.ma.masked_array(np.zeros((4, 2)), mask=hidden.mask[:, None] & [True, False])
    for call in (
        lambda: prunefuse.top_b(hidden, 2),
        lambda: prunefuse.score(logits, "margin"),
        lambda: prunefuse.k_center_greedy(logits, 2),
        lambda: predict(network(), np.ma.masked_array(X.numpy(), mask=X.numpy() > 2)),
    ):
        with pytest.raises(TypeError, match=r"must be an array without masked values, got \d+ of them"):
            call()
    open_ones = np.ma.masked_array([0.1, 0.9, 0.5, 0.8])
    assert prunefuse.top_b(open_ones, 2)[0].tolist() == [1, 3]


# --- arrays and items of any kind


@pytest.mark.parametrize("kind", [">f4", ">f8", ">i2", "u2", "u4", "?"])
def test_arrays_of_any_type_are_a_pool(kind: str) -> None:
    x = (X.numpy() * 10).clip(0).astype(kind)
    expected = predict(network(), x.astype("f4"), batch_size=7)
    assert expected.shape == (40, 3)
    torch.manual_seed(0)
    model = network()
    wanted = predict(model, x.astype("f4"))
    assert np.array_equal(predict(model, x), wanted)
    assert np.array_equal(predict(model, x[::-1]), wanted[::-1])
    assert np.array_equal(predict(model, list(x)).numpy(), wanted)
    assert list(loop(x, oracle=lambda indices: [0] * len(indices)))


def test_a_column_of_a_structured_array_is_read_as_it_is() -> None:
    table = np.zeros(40, dtype=[("flag", "u1"), ("x", "f4", (6,))])
    table["x"] = X.numpy()
    model = network()
    assert np.array_equal(predict(model, table["x"]), predict(model, X.numpy()))


def test_numbers_of_words_stay_whole_for_a_model_that_begins_with_an_embedding() -> None:
    words = torch.randint(0, 50, (40, 7), generator=torch.Generator().manual_seed(0))

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden, self.head = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.relu(self.hidden(self.embed(ids).mean(1))))  # type: ignore[no-any-return]

    pools = (TensorDataset(words, Y), list(zip(words.to(torch.uint8), Y, strict=True)), words.numpy())
    own = [None, None, lambda indices: Y[indices].tolist()]
    picks = [
        [done.picks for done in loop(pool, pools[0], factory=Bag, oracle=oracle)]
        for pool, oracle in zip(pools, own, strict=True)
    ]
    assert picks[0] == picks[1] == picks[2]


def test_images_as_they_are() -> None:
    words = torch.arange(6, dtype=torch.int32).view(3, 2)
    [(read_as, _)] = read(
        TensorImages(words, as_is=True),
        in_order(torch.arange(3), 8),
        labels=False,
        device=torch.device("cpu"),
    )
    assert read_as.dtype == torch.int32
    assert torch.equal(read_as, words)
    assert TensorImages(words, as_is=True).plain()[1].dtype == torch.int32
    with pytest.raises(ValueError, match="mean must be None with as_is"):
        TensorImages(words, as_is=True, mean=(0.5,), std=(1,))


@pytest.mark.parametrize(
    ("image", "label"), [("image", "label"), ("img", "labels"), ("pixel_values", "label")]
)
def test_items_may_be_mappings(image: str, label: str) -> None:
    items = [{image: x, label: y, "id": 7} for x, y in zip(X.numpy(), Y.tolist(), strict=True)]
    plain = list(zip(X, Y.tolist(), strict=True))
    assert bought(loop(items, items)) == bought(loop(plain, plain))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"photo": 1, "label": 2},
            "a dict with an image under one of image, .* got a dict with the keys photo",
        ),
        ({"image": X[0]}, "pool must have labels of its own"),
        ({"image": X[0], "fine": 1, "coarse": 2}, "pool must have labels of its own"),
        (
            {"image": X[0], "label": 0, "labels": 1},
            "a dict with a label under one of label, labels, ner_tags, target; got",
        ),
    ],
)
def test_other_mappings_are_explained(item: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        list(loop([item] * 40))


class Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Any:
        return iter(X)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "a map-style data set, with len.* got Stream"),
        ({0: X[0]}, "a map-style data set.* got dict"),
        ("cifar10", "a map-style data set.* got str"),
        (iter(X), "a map-style data set.* got"),
        (X.to_sparse(), "a dense tensor, got sparse_coo: give its to_dense"),
        (X.to_sparse_csr(), "a dense tensor, got sparse_csr: give its to_dense"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_is_no_map_style_data_set_is_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^pool must be {message}"):
        loop(data, oracle=lambda indices: [0] * len(indices))
    with pytest.raises(TypeError, match=f"^data must be {message}"):
        predict(network(), data)
    with pytest.raises(TypeError, match=f"^data must be {message}"):
        train(network(), data, CONFIG.recipe, seed=0)


def test_items_of_several_shapes_are_told() -> None:
    items = [(torch.zeros(3 + i % 2), 0) for i in range(6)]
    with pytest.raises(ValueError, match=r"data must have items of one shape, got \(3,\) and \(4,\)"):
        predict(nn.Linear(3, 2), items)


class Broken(Dataset[Any]):
    """An item that cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.samples = [(f"folder/{i}.png", 0) for i in range(6)]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        if index == 4:
            raise self.error
        return torch.zeros(3)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_readers_are_one_line_that_names_the_file(workers: int) -> None:
    model = nn.Linear(3, 2)
    broken = Broken(OSError("image file is\ntruncated"))
    with pytest.raises(OSError, match=r"^sample 4, folder/4.png, cannot be read: image file is truncated$"):
        predict(model, broken, workers=workers)
    with pytest.raises(KeyError, match="no such key"):
        predict(model, Broken(KeyError("no such key")), workers=workers)


# --- models


def test_a_model_of_lazy_modules_is_drawn_from_the_seed_alone() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyBatchNorm1d(), nn.LazyLinear(3))

    data = TensorDataset(X, Y)
    before = torch.get_rng_state()
    first, second = (
        [epoch.loss for done in loop(data, factory=lazy) for epoch in done.epochs] for _ in range(2)
    )
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: torch.compile(model, backend="eager"), "leave out torch.compile"),
        (torch.jit.script, "leave out torch.jit"),
        (nn.DataParallel, "return its .module"),
        (torch.optim.swa_utils.AveragedModel, "return its .module"),
    ],
)
def test_a_wrapped_model_is_refused_in_one_line(wrap: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^factory must return .*{message}"):
        loop(TensorDataset(X, Y), factory=lambda: wrap(network()))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_predicts_and_has_features() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(predict(compiled, X), predict(model, X))
    assert torch.equal(features(compiled, X), features(model, X))
    for around in (nn.DataParallel, torch.optim.swa_utils.AveragedModel):
        assert torch.equal(features(around(compiled), X), features(model, X))
    scripted = torch.jit.script(model)
    assert torch.equal(predict(scripted, X), predict(model, X))
    with pytest.raises(TypeError, match=r"model must be a model in Python, .* got RecursiveScriptModule"):
        features(scripted, X)


def test_a_model_without_weights_predicts_on_the_cpu() -> None:
    assert predict(nn.Identity(), X).shape == (40, 6)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got function"):
        predict(network, X)  # type: ignore[arg-type]
