"""The loop on what is no image with one class: several labels, pixels, text, tokens, numbers, and a task of one's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peer_packages import skip_without
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import prunefuse
from prunefuse import ActiveLearning, LoopConfig, Recipe
from prunefuse.tasks import Detection, Loss, MultiLabel, Regression, Segmentation, Task, Tokens
from prunefuse.training import predict

RECIPE = Recipe(epochs=6, batch_size=16, lr=0.01, optimizer="adamw", schedule="constant", weight_decay=0.01)


class Items(Dataset):
    """Items as they are given."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def quadrants(count, seed):
    """Images whose bright quadrants are their labels."""
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, 4, generator=g) < 0.5).float()
    images = labels.view(count, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return TensorDataset(images + 0.3 * torch.randn(count, 1, 8, 8, generator=g), labels)


def bands(count, seed):
    """Images whose pixels are of three classes, by brightness; one row does not count."""
    g = torch.Generator().manual_seed(seed)
    labels = (
        torch.randint(3, (count, 1, 4, 4), generator=g).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, 0]
    )
    images = labels[:, None].float() + 0.3 * torch.randn(count, 1, 8, 8, generator=g)
    labels[:, 0] = 255
    return TensorDataset(images, labels)


def sentences(count, seed, tags=False):
    """Sequences of different lengths, of words that tell their class; each word has a tag of its own."""
    g = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        length, label = int(torch.randint(4, 10, (), generator=g)), index % 3
        own = torch.rand(length, generator=g) < 0.6
        words = torch.randint(1, 10, (length,), generator=g) + 10 * label * own
        answer = (words >= 10).long().tolist() if tags else label
        items.append({"input_ids": words.tolist(), "attention_mask": [1] * length, "labels": answer})
    return Items(items)


def slopes(count, seed):
    """Rows whose number is a function of them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=g)
    return TensorDataset(x, x[:, 0] - 2 * x[:, 1] + 0.1 * torch.randn(count, generator=g))


class Encoder(nn.Module):
    """A small transformer over words, with a class for the sentence or for each word."""

    def __init__(self, classes, each=False):
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.mix = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head, self.each = nn.Linear(16, classes), each

    def forward(self, input_ids, attention_mask):
        x = self.mix(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        if not self.each:
            weight = attention_mask[:, :, None].float()
            x = (x * weight).sum(1) / weight.sum(1)
        return self.head(x)


class WordConvolutions(nn.Module):
    """Convolutions over words, as in VDCNN: it reads the words alone."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.layers = nn.Sequential(nn.Conv1d(16, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 3)

    def forward(self, words):
        return self.head(self.layers(self.words(words).transpose(1, 2)).amax(2))


def perceptron(inputs, outputs, dropout=0.0):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, outputs)
    )


def painter():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))


# Task, strategy, data, network, and what random answers reach about.
KINDS = {
    "labels": ("multi-label", "entropy", quadrants, lambda: perceptron(64, 4), 0.55),
    "labels, the least sure": (MultiLabel("max"), "margin", quadrants, lambda: perceptron(64, 4), 0.55),
    "pixels": ("segmentation", "margin", bands, painter, 0.4),
    "pixels, share": (Segmentation(reduction="share", threshold=0.3), "entropy", bands, painter, 0.4),
    "text": ("single-label", "margin", sentences, lambda: Encoder(3), 0.4),
    "text, words alone": ("single-label", "entropy", sentences, WordConvolutions, 0.4),
    "tags": (
        Tokens(outside=0),
        "mnlp",
        lambda count, seed: sentences(count, seed, tags=True),
        lambda: Encoder(2, each=True),
        0.5,
    ),
    "numbers, passes": ("regression", "variance", slopes, lambda: perceptron(6, 1, 0.2), 0.1),
    "numbers, outputs": (Regression(), "greedy_outputs", slopes, lambda: perceptron(6, 1), 0.1),
    "numbers, both": (Regression(), "greedy_both", slopes, lambda: perceptron(6, 1), 0.1),
}


def loop(kind, **more):
    task, strategy, data, factory, _ = KINDS[kind]
    recipe = replace(RECIPE, epochs=25) if "numbers" in kind or "labels" in kind else RECIPE
    config = LoopConfig(schedule=(60, 90), strategy=strategy, task=task, recipe=recipe)
    config = replace(config, **{k: more.pop(k) for k in list(more) if k in LoopConfig.__dataclass_fields__})
    pool, test = more.pop("data", None) or (data(150, 0), data(80, 1))
    return ActiveLearning(factory, pool, test, config, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_pruned_selects_is_fused_and_distilled(kind):
    learner = loop(kind)
    small, dense = (
        sum(p.numel() for p in m.parameters()) for m in (learner._initial_selector(), learner._dense)
    )
    assert small < dense
    rounds = list(learner)
    assert [one.labels for one in rounds] == [60, 90]
    assert len(set(rounds[0].picks) | set(rounds[1].picks)) == 90
    assert rounds[1].final_accuracy > KINDS[kind][-1]
    assert rounds[1].metrics["final"]
    assert {cost.phase for cost in rounds[1].costs} >= {
        "train_selector",
        "score_pool",
        "select",
        "fuse",
        "teacher",
    }
    assert all(cost.flops > 0 for cost in rounds[1].costs if cost.phase in ("train_selector", "train_final"))


@pytest.mark.parametrize("kind", ["labels", "pixels", "tags", "numbers, passes"])
def test_a_killed_loop_goes_on_to_the_same_bits(kind, tmp_path):
    whole = loop(kind)
    list(whole)
    stopped = loop(kind, folder=tmp_path / "loop")
    next(iter(stopped))
    with pytest.raises(KeyboardInterrupt):
        list(loop(kind, folder=tmp_path / "loop", listener=Interrupt(7)))
    went_on = loop(kind, folder=tmp_path / "loop")
    list(went_on)
    for one, other in zip(whole.state.acquisitions, went_on.state.acquisitions, strict=True):
        assert one.picks == other.picks
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(one.labels, other.labels, strict=True)
        )
    weights = went_on.final.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.final.state_dict().items())
    lines = (tmp_path / "loop" / "picks.csv").read_text().splitlines()
    assert len(lines) == 91


class Interrupt:
    """Ends the process after so many events."""

    def __init__(self, events):
        self.left = events

    def __call__(self, event):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_labels_of_people_are_told_by_the_task():
    task = MultiLabel()
    config = LoopConfig(schedule=(4, 8), strategy="margin", task=task, recipe=replace(RECIPE, epochs=1))
    data = quadrants(40, 0)
    learner = ActiveLearning(lambda: perceptron(64, 4), data.tensors[0], None, config, oracle="people")
    while (asked := learner.ask()).indices:
        with pytest.raises(ValueError, match="zeros and ones"):
            learner.tell([[2, 0, 0, 0]] * len(asked.indices))
        learner.tell([data.tensors[1][index].tolist() for index in asked.indices])
    assert [one.labels for one in learner.state.rounds] == [4, 8]


@pytest.mark.parametrize("diversity", ["k_center", "k_means"])
def test_batches_that_differ_for_any_task(diversity):
    rounds = list(loop("pixels", diversity=diversity))
    assert len(set(rounds[1].picks)) == 30


@pytest.mark.parametrize("strategy", ["random", "k_center", "typiclust"])
def test_strategies_by_features_are_for_any_task(strategy):
    rounds = list(loop("tags", strategy=strategy))
    assert len(set(rounds[1].picks)) == 30


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("labels", {"strategy": "badge"}, "strategy must be one of .*margin.* with MultiLabel, got 'badge'"),
        ("labels", {"strategy": "mnlp"}, "with MultiLabel, got 'mnlp'"),
        ("pixels", {"class_balanced": True}, "class_balanced must be False with Segmentation"),
        ("tags", {"stop_when": ("kappa:0.9",)}, "stop_when must be cost alone with another task"),
        ("numbers, passes", {"diversity": "k_center"}, "diversity must be none for variance"),
        ("labels", {"task": "boxes"}, "task must be one of single-label, .*got 'boxes'"),
        ("labels", {"task": 3}, "task must be a Task or the name of one, got int"),
        (
            "numbers, both",
            {"recipe": replace(RECIPE, loss="dice")},
            "loss must be one of mse, mae, huber of Regression",
        ),
        ("numbers, both", {"recipe": replace(RECIPE, label_smoothing=0.1)}, "label_smoothing must be 0"),
        (
            "numbers, both",
            {"recipe": replace(RECIPE, balance_classes=True)},
            "class_weights must be left out",
        ),
    ],
)
def test_what_a_task_has_not_is_named_before_any_work(kind, changes, said):
    with pytest.raises((TypeError, ValueError), match=said):
        loop(kind, **changes)


def test_a_network_of_another_task_is_named():
    with pytest.raises(ValueError, match=r"factory must make a model with logits \(N, C, H, W\).*\(1, 4\)"):
        ActiveLearning(lambda: perceptron(64, 4), bands(9, 0), None, LoopConfig((3,), task="segmentation"))


def test_a_function_of_the_outputs_is_a_strategy():
    seen = []

    def spread(outputs):
        seen.append(tuple(outputs.shape[1:]))
        return outputs.float().std((1, 2, 3))

    rounds = list(loop("pixels", strategy=spread))
    assert seen == [(3, 8, 8)]
    assert list(rounds[1].utilities) == sorted(rounds[1].utilities, reverse=True)


class Ranks(Task):
    """Numbers whose order alone matters: a task of one's own."""

    strategies = ("near",)

    def loss(self, outputs, targets, how):
        apart = (outputs - outputs.T) * (targets - targets.T).sign()
        return nn.functional.softplus(-apart).mean()

    def utilities(self, outputs, strategy, inputs):
        return -outputs[:, 0].abs()

    def label(self, argument, sample, value, *, width=None):
        return super().label(argument, sample, value).reshape(1)

    def stored(self, argument, labels, samples):
        return labels.float()[:, None]

    def measure(self, outputs, targets):
        agree = ((outputs - outputs.T) * (targets - targets.T) > 0).double().sum()
        return torch.stack([agree, torch.tensor(len(outputs) * (len(outputs) - 1.0), dtype=torch.float64)])

    def metrics(self, measured):
        return {"ordered": float(measured[0] / measured[1])}


def test_a_task_of_ones_own():
    rounds = list(loop("numbers, both", task=Ranks(), strategy="near"))
    assert rounds[1].metrics["final"]["ordered"] == rounds[1].final_accuracy > 0.8


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        ("loss", lambda outputs, targets, how: outputs, r"Own\.loss must give a tensor of one number, got shape"),
        ("loss", lambda outputs, targets, how: 0.5, r"Own\.loss must give a tensor of one number, got float"),
        ("measure", lambda outputs, targets: 0.5, r"Own\.measure must give a tensor, got float"),
        ("metrics", lambda measured: 0.5, r"Own\.metrics must give numbers.*by name, got float"),
        ("metrics", lambda measured: {}, r"Own\.metrics must give numbers.*by name, got nothing"),
        ("metrics", lambda measured: {"a": "good"}, r"Own\.metrics must give numbers.*got str for a"),
        ("utilities", lambda outputs, *_: outputs, r"Own\.utilities must give one for each of \d+ samples, got shape"),
        ("utilities", lambda outputs, *_: [0.5], r"Own\.utilities must give one for each of .*got list"),
        ("loss", Task().loss, "Task must define loss"),
    ],
)  # fmt: skip
def test_what_a_task_of_ones_own_gives_is_checked(function, given, said):
    own = type("Own", (Ranks,), {function: staticmethod(given)})()
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=said):
        list(loop("numbers, both", task=own, strategy="near"))


@pytest.mark.parametrize("value", [3, np.float32(0.5), torch.tensor(0.5), float("nan"), [0.25, 0.5]])
def test_metrics_of_ones_own_are_numbers_of_any_kind(tmp_path, value):
    own = type("Own", (Ranks,), {"metrics": lambda self, measured: {"first": value, "other": 1}})()
    done = list(loop("numbers, both", task=own, strategy="near", folder=tmp_path))
    wanted = (0.25, 0.5) if isinstance(value, list) else float(value)
    assert repr(done[1].metrics["final"]) == repr({"first": wanted, "other": 1.0})
    [again] = [
        r.metrics["final"]
        for r in loop("numbers, both", task=own, strategy="near", folder=tmp_path).state.rounds[1:]
    ]
    assert repr(again) == repr(done[1].metrics["final"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fit": lambda model, data: None}, r"fit must take \(model, data, \*, device, seed, teacher=None\), got \(model"),
        ({"fit": lambda model, data, *, device, seed: None}, "unexpected keyword argument 'teacher'"),
        ({"evaluate": lambda model, data: 0.5}, r"evaluate must take \(model, data, \*, device\), got \(model, data\)"),
    ],
)  # fmt: skip
def test_functions_that_cannot_be_called_are_named_before_any_work(options, said):
    with pytest.raises(TypeError, match=said):
        loop("numbers, both", **options)


def test_an_evaluation_of_ones_own_may_give_nan(tmp_path):
    given = {"score": float("nan"), "other": float("inf")}
    done = list(loop("numbers, both", evaluate=lambda model, data, *, device: given, folder=tmp_path))
    assert repr(done[1].metrics["final"]) == repr(given)


def test_masks_are_images_too_and_may_have_an_axis_of_one():
    pool = bands(24, 0)
    images, masks = pool.tensors
    as_images = Items(
        [
            (image, Image.fromarray(mask.numpy().astype(np.uint8)))
            for image, mask in zip(images, masks, strict=True)
        ]
    )
    facts = [
        [(r.picks, r.metrics["final"]) for r in loop("pixels", data=(one, one), schedule=(8, 12))]
        for one in (pool, as_images, TensorDataset(images, masks[:, None]))
    ]
    assert repr(facts[0]) == repr(facts[1]) == repr(facts[2])


def test_what_does_not_count_at_all_costs_nothing():
    for task, outputs, ignored in (
        (Segmentation(), torch.randn(2, 3, 4, 4), 255),
        (Tokens(), torch.randn(2, 5, 3), -100),
    ):
        outputs.requires_grad_()
        shape = (2, 4, 4) if ignored == 255 else (2, 5)
        loss = task.loss(outputs, torch.full(shape, ignored), Loss())
        assert loss == 0
        assert not torch.autograd.grad(loss, outputs)[0].any()


def test_a_class_that_is_no_entity_must_be_one():
    with pytest.raises(ValueError, match=r"outside must be a class in \[0, 2\), got 9"):
        loop("tags", task=Tokens(outside=9))


class Tagger(nn.Module):
    """A tag for each word by itself and its neighbors; attention would have nothing to look at in an empty sequence."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(40, 16), nn.Linear(16, 2)
        self.mix = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, input_ids, attention_mask):
        return self.head(self.mix(self.words(input_ids).transpose(1, 2)).relu().transpose(1, 2))


def test_a_sequence_may_be_empty():
    items = sentences(30, 0, tags=True).items
    items[3] = {"input_ids": [], "attention_mask": [], "labels": []}
    config = LoopConfig((9, 20), strategy="entropy", task="tokens", recipe=RECIPE, seed=1)
    done = list(ActiveLearning(Tagger, Items(items), Items(items), config))
    assert 3 not in (*done[0].picks, *done[1].picks)  # without words it has no utility
    assert done[1].unselectable == 1


def test_a_training_of_ones_own():
    said = []

    def fit(model, data, *, device, seed, teacher=None):
        said.append((len(data), teacher is not None))
        x, y = zip(*(data[index] for index in range(len(data))), strict=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(30):
            loss = nn.functional.cross_entropy(model(torch.stack(x)), torch.tensor(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def evaluate(model, data, *, device):
        with torch.no_grad():
            right = model(data.tensors[0]).argmax(1) == data.tensors[1]
        return {"hits": right.float().mean(), "misses": (~right).float().mean()}

    def data(count, seed):
        x, y = slopes(count, seed).tensors
        return TensorDataset(x, (y > 0).long())

    config = LoopConfig(schedule=(30, 60), strategy="margin")
    learner = ActiveLearning(
        lambda: perceptron(6, 2), data(150, 0), data(80, 1), config, fit=fit, evaluate=evaluate
    )
    rounds = list(learner)
    assert said == [(30, False), (30, True), (60, False), (60, True)]
    assert rounds[1].final_accuracy == rounds[1].metrics["final"]["hits"] > 0.8
    assert all(cost.flops == 0 for cost in rounds[1].costs if cost.phase.startswith("train"))
    assert all(cost.seconds > 0 for cost in rounds[1].costs if cost.phase.startswith("train"))


@pytest.mark.parametrize("task", ["single-label", "tokens"])
def test_a_training_of_ones_own_is_given_all_that_an_item_holds(task):
    seen = []

    def fit(model, data, *, device, seed, teacher=None):
        seen.extend(data[index] for index in range(len(data)))

    pool = sentences(20, 0, tags=task == "tokens")
    config = LoopConfig(schedule=(6,), strategy="random", task=task)
    learner = ActiveLearning(
        lambda: Encoder(3, each=task == "tokens"),
        pool,
        None,
        config,
        fit=fit,
        evaluate=lambda *_, device: 0.0,
    )
    [done] = learner
    for index, item in zip(done.picks, seen[:6], strict=True):
        assert item["input_ids"] == pool[index]["input_ids"]
        assert item["attention_mask"] == pool[index]["attention_mask"]
        assert torch.equal(torch.as_tensor(item["labels"]), torch.as_tensor(pool[index]["labels"]))


def test_a_detector_is_trained_in_its_own_way():
    class Boxes(nn.Module):
        """Says of three places whether there is something."""

        def __init__(self):
            super().__init__()
            self.layers = perceptron(64, 3)

        def forward(self, images):
            return [{"scores": row.sigmoid()} for row in self.layers(images)]

    def fit(model, data, *, device, seed, teacher=None):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(5):
            images = torch.stack([data[i][0] for i in range(len(data))])
            loss = torch.stack([one["scores"].sum() for one in model(images)]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    g = torch.Generator().manual_seed(0)
    items = Items([(torch.rand(1, 8, 8, generator=g), {"boxes": torch.zeros(1, 4)}) for _ in range(30)])
    config = LoopConfig(schedule=(5, 9), strategy="least_confidence", task=Detection())
    learner = ActiveLearning(Boxes, items, items, config, fit=fit, evaluate=lambda model, data, device: 0.5)
    rounds = list(learner)
    assert len(rounds[1].picks) == 4
    assert json.loads(json.dumps(learner.state.to_json()))["acquisitions"][0]["labels"][0]["fields"]["boxes"]


@pytest.mark.parametrize("given", [None, "good", [1.0, 2.0]])
def test_an_evaluation_of_ones_own_that_gives_no_number(given):
    config = LoopConfig(schedule=(5,), recipe=replace(RECIPE, epochs=1))
    learner = ActiveLearning(
        lambda: perceptron(64, 4),
        TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 4),
        [0],
        config,
        evaluate=lambda model, data, device: given,
    )
    with pytest.raises(TypeError, match="evaluate must return a number, or numbers by name"):
        list(learner)


def test_tokenized_batches_of_a_collate_function():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    shapes = set()

    def collate(items):
        longest = max(len(item["input_ids"]) for item in items)
        shapes.add(longest)
        rows = [[*item["input_ids"], *[0] * (longest - len(item["input_ids"]))] for item in items]
        mask = [[*item["attention_mask"], *[0] * (longest - len(item["input_ids"]))] for item in items]
        labels = [item["labels"] for item in items]
        return transformers.BatchEncoding(
            {
                "input_ids": torch.tensor(rows),
                "attention_mask": torch.tensor(mask),
                "labels": torch.tensor(labels),
            }
        )

    learner = ActiveLearning(
        lambda: transformers.BertForSequenceClassification(config),
        sentences(150, 0),
        sentences(80, 1),
        LoopConfig(schedule=(60, 90), strategy="margin", recipe=RECIPE),
        collate=collate,
    )
    rounds = list(learner)
    assert rounds[1].final_accuracy > 0.5
    assert len(shapes) > 1


@pytest.mark.parametrize("columns", ["plain", "torch", "numpy"])
def test_rows_of_a_hugging_face_data_set(columns):
    transformers = pytest.importorskip("transformers")
    skip_without("datasets")
    import datasets

    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )

    def rows(count, seed):
        made = datasets.Dataset.from_list(sentences(count, seed).items)
        return made if columns == "plain" else made.with_format(columns)

    options = (rows(120, 0), rows(60, 1), LoopConfig(schedule=(60, 80), strategy="margin", recipe=RECIPE))
    learner = ActiveLearning(lambda: transformers.BertForSequenceClassification(config), *options)
    rounds = list(learner)
    assert [len(one.picks) for one in rounds] == [60, 20]
    assert rounds[1].final_accuracy > 0.5
    # Words that stand for padding are masked: a row says the same beside longer ones.
    together = predict(learner.final, options[1], batch_size=60)
    alone = predict(learner.final, options[1], batch_size=1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_padding_changes_nothing_that_is_selected():
    data = sentences(60, 0)
    model = Encoder(3).eval()
    together = predict(model, data, batch_size=60)
    alone = predict(model, data, batch_size=1)
    assert np.allclose(together, alone, atol=1e-5)


def test_a_saved_state_of_images_is_as_before():
    data = prunefuse.data.load("digits")
    config = LoopConfig(schedule=(20,), recipe=Recipe(epochs=1, batch_size=8, lr=0.05))
    learner = ActiveLearning(
        lambda: prunefuse.models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(16,)),
        data.pool,
        data.test,
        config,
    )
    list(learner)
    labels = learner.state.to_json()["acquisitions"][0]["labels"]
    assert all(type(label) is int for label in labels)


def test_a_class_without_test_samples_is_kept_as_such(tmp_path):
    data, test = quadrants(40, 0), quadrants(20, 1)
    test.tensors[1][:, 2] = 0
    config = LoopConfig(
        schedule=(8,), strategy="margin", task="multi-label", recipe=replace(RECIPE, epochs=1)
    )
    arguments = (lambda: perceptron(64, 4), data, test, config)
    list(ActiveLearning(*arguments, folder=tmp_path))
    again = ActiveLearning(*arguments, folder=tmp_path)
    recall = again.state.rounds[0].metrics["final"]["recall"]
    assert np.isnan(recall[2])
    assert not np.isnan(recall[0])
