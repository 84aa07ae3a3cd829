"""Runs that start from a checkpoint, and with models of timm: every arm of them, also after they were stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import write_image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from prunefuse import models
from prunefuse.cli.app import app
from prunefuse.errors import ConfigError, RunInterrupted
from prunefuse.experiment import extrapolate
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate import ExtrapolateConfig
from prunefuse.experiment.folder import read
from prunefuse.experiment.labeling.config import LabelConfig
from prunefuse.experiment.labeling.project import start
from prunefuse.experiment.labeling.work import predict
from prunefuse.experiment.run import resume, run
from prunefuse.training import Recipe

# A rate so small that what a network is in the end is what it was at the start.
STILL = Recipe(epochs=1, batch_size=16, lr=1e-12, weight_decay=0.0, min_steps=0)
TINY = RunConfig(
    model="mlp",
    schedule=("20", "30"),
    recipe=STILL,
    seeds=(0, 1),
    threads=1,
    jobs=1,
    device="cpu",
    finals="last",
)


@pytest.fixture
def checkpoint(tmp_path):
    """Of the perceptron for the digits, but with 100 classes."""
    state = models.build("mlp", 100, 1, image_size=(8, 8)).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors"), state


def call(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_every_arm_and_seed_starts_from_them_and_what_does_not_match_is_told(tmp_path, checkpoint, capsys):
    path, state = checkpoint
    run(replace(TINY, weights=path, out=str(tmp_path / "run")))
    said = capsys.readouterr().err
    assert (
        f"weights: 2 of 6 tensors did not match: fc.bias is (100,) in {path} and (10,) in the model, fc.weight is (100, 256) "
        f"in {path} and (10, 256) in the model"
    ) in said.splitlines()
    heads = []
    for arm in ("prunefuse", "dense", "random"):
        for seed in (0, 1):
            final = load_file(tmp_path / "run" / arm / f"seed{seed}" / "final.safetensors")
            for name, value in state.items():
                if not name.startswith("fc."):
                    torch.testing.assert_close(final[name], value, atol=1e-6, rtol=0)
            heads.append(final["fc.weight"])
    assert torch.allclose(heads[0], heads[2], atol=1e-6)  # drawn by the seed, for all arms the same
    assert not torch.allclose(heads[0], heads[1], atol=1e-3)
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert facts["weights"]["file"] == path
    assert facts["weights"]["unmatched"].startswith("2 of 6 tensors did not match")


def test_a_model_of_its_own_as_selector_does_not_start_from_them(tmp_path, checkpoint):
    path, state = checkpoint
    config = replace(TINY, weights=path, selector="mlp", baselines=(), seeds=(0,), finals="all")
    run(replace(config, out=str(tmp_path / "run")), quiet=True)
    trial = tmp_path / "run" / "mlp" / "seed0"
    name = next(one for one in state if one.endswith("weight"))
    torch.testing.assert_close(load_file(trial / "final.safetensors")[name], state[name], atol=1e-6, rtol=0)
    assert not torch.allclose(load_file(trial / "selector.safetensors")[name], state[name], atol=1e-3)


def test_weights_drawn_again_are_refused(checkpoint):
    for kind in (RunConfig, ExtrapolateConfig):
        with pytest.raises(
            ConfigError, match=r"complement must be keep, zero or preserve with weights, .*got 'reinit'"
        ):
            kind(weights=checkpoint[0], complement="reinit")
        assert kind(weights=checkpoint[0], complement="zero").weights == checkpoint[0]


@pytest.mark.parametrize("command", ["run", "extrapolate"])
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("none.pt", 1, "No such file or directory: "),
        ("text.pt", 2, "weights must be a checkpoint that is safe to read, got "),
        ("other.pt", 2, "weights must have a tensor of the model, by name and shape, got "),
    ],
)
def test_weights_that_cannot_be_used_are_one_line_before_any_work(tmp_path, command, name, code, message):
    (tmp_path / "text.pt").write_text("hello")
    torch.save(models.resnet8(7).state_dict(), tmp_path / "other.pt")
    done = call(command, "--model", "mlp", "--weights", tmp_path / name, "--out", tmp_path / "run")
    assert done.exit_code == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


STOPS = """
from pathlib import Path


def start(folder):
    mark = Path(__file__).with_suffix(".done")

    def heard(task, event):
        if not mark.exists():
            mark.touch()
            raise KeyboardInterrupt

    return heard
"""


@pytest.mark.parametrize("change", ["none", "content", "gone"])
def test_a_run_goes_on_from_the_same_weights_alone(tmp_path, checkpoint, change):
    path, state = checkpoint
    (tmp_path / "stops.py").write_text(STOPS)
    config = replace(TINY, weights=path, listener=f"{tmp_path}/stops.py:start", out=str(tmp_path / "run"))
    with pytest.raises(RunInterrupted):
        run(config, quiet=True)
    if change == "none":
        assert len(read(resume(tmp_path / "run", quiet=True)).trials) == 6
        return
    (tmp_path / "w.safetensors").unlink()
    if change == "content":
        save_file({name: value + 1 for name, value in state.items()}, path)
    done = call("run", "--resume", tmp_path / "run")
    assert done.exit_code != 0
    message = f"weights: {path} is not what it was when the run began" if change == "content" else path
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_extrapolation_starts_from_them(tmp_path, checkpoint):
    path, state = checkpoint
    config = ExtrapolateConfig(model="mlp", score="el2n", keep=("20%",), threads=1, jobs=1, device="cpu")
    config = replace(config, recipe=replace(STILL, epochs=2), weights=path, out=str(tmp_path / "run"))
    extrapolate.run(config, quiet=True)
    for step in ("subset", "by-knn/keep-287"):
        [file] = (tmp_path / "run" / "seed0" / step).glob("*.safetensors")
        found = load_file(file)
        for name, value in state.items():
            if not name.startswith("fc."):
                torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_a_labeling_project_starts_from_them_wherever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(6):
        write_image(tmp_path / "images" / f"{index}.png", 40 * index, (8, 8))
    state = models.build("mlp", 7, 3, image_size=(8, 8)).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, "w.pt")
    (tmp_path / "have.csv").write_text("path,label\n0.png,dark\n5.png,light\n")
    config = LabelConfig(model="mlp", recipe=STILL, weights="w.pt", selector="dense", threads=1, device="cpu")
    start("project", "images", labels="have.csv", config=config)
    monkeypatch.chdir(tmp_path / "images")
    said = []
    assert predict("../project", "../p.csv", say=said.append) == 4
    assert any("weights: 2 of 6 tensors did not match" in line for line in said)
    [selector] = (tmp_path / "project" / "rounds").glob("*/selector.safetensors")
    for name, value in load_file(selector).items():
        if not name.startswith("fc."):
            torch.testing.assert_close(value, state[name], atol=1e-6, rtol=0)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        start("../other", ".", labels="../have.csv", config=replace(config, weights="none.pt"))


def test_a_transformer_of_timm_by_the_command_line_from_a_checkpoint(tmp_path):
    timm = pytest.importorskip("timm")
    labels = np.arange(80) % 4
    images = np.random.default_rng(0).integers(0, 60, (80, 32, 32, 3)) + labels[:, None, None, None] * 45
    parts = {"x_train": images[:60], "x_test": images[60:]}
    np.savez(
        tmp_path / "a.npz",
        **{name: part.astype(np.uint8) for name, part in parts.items()},
        y_train=labels[:60],
        y_test=labels[60:],
    )
    theirs = timm.create_model("test_vit", num_classes=1000, img_size=32)
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    options = "--epochs 1 --min-steps 0 --schedule 20,30 --seeds 1 --jobs 1 --threads 1 --device cpu --baselines none"
    done = call(
        *("run", "--data", f"arrays:{tmp_path / 'a.npz'}", "--model", "timm:test_vit", "--strategy", "badge"),
        *("--weights", tmp_path / "w.pth", "--out", tmp_path / "run", *options.split()),
    )
    assert done.exit_code == 0, done.output
    assert "tensors did not match: head.weight is (1000, 64)" in done.stderr
    trial = read(tmp_path / "run").trials[0]
    assert [len(one.picks) for one in trial.rounds] == [20, 10]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["model"] == "timm:test_vit"


def test_a_model_of_timm_as_selector(tmp_path):
    pytest.importorskip("timm")
    config = replace(TINY, selector="timm:test_resnet", strategy="k_center", baselines=(), seeds=(0,))
    run(replace(config, out=str(tmp_path / "run")), quiet=True)
    [trial] = read(tmp_path / "run").trials
    assert (trial.arm, len(trial.rounds)) == ("timm-test_resnet", 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet_18", "model timm:resnet_18 does not work on 1x8x8 images: .* classifier of timm, such as .*resnet18"),
        ("timm:vit_tiny_patch16_224", "model timm:vit_tiny_patch16_224 does not work on 1x8x8 images: "),
        ("timm:", "model must be one of .* torchvision:NAME, timm:NAME or FILE.py:FUNCTION, got 'timm:'"),
        ("tim:resnet18", "model must be one of .* torchvision:NAME, timm:NAME or FILE.py:FUNCTION, got 'tim:resnet18'"),
    ],
)  # fmt: skip
def test_a_model_of_timm_that_is_not_there_or_does_not_suit_the_images(tmp_path, name, message):
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message) as caught:
        run(replace(TINY, model=name, out=str(tmp_path / "run")), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
