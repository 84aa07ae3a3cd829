"""The page beside a batch: one file that opens without a network, and labels that come out of it by keys."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import zip_longest

import pytest
from labeling_projects import write_image
from PIL import Image

from prunefuse.experiment.labeling import project
from prunefuse.experiment.labeling.config import FOR_TEXTS
from prunefuse.experiment.labeling.labels import import_labels
from prunefuse.experiment.labeling.work import next_batch

NAMES = ("a.png", "<b>&amp;.png", 'quote".png', "it's.png", "comma, blank .png", "ü/</script>.png")
CLASSES = ("<i>cat</i>", 'a "dog"')


class Page(HTMLParser):
    """Elements as (tag, attributes), and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.captions, self.texts, self._in = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag
        if tag == "blockquote":
            self.texts.append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts.append(data)
        if self._in == "figcaption":
            self.captions.append(data)
        if self._in == "blockquote":
            self.texts[-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    base = tmp_path_factory.mktemp("sheet")
    for number, name in enumerate(NAMES):
        write_image(base / "images" / name, 100, number)
    Image.new("L", (900, 500), 7).save(base / "images" / "large.png")
    project.start(base / "project", base / "images", classes=CLASSES)
    next_batch(base / "project", 100, base / "batch.csv")
    return base


@pytest.fixture(scope="module")
def page(batch):
    return Page((batch / "batch.html").read_text(encoding="utf-8"))


def test_it_has_every_path_and_nothing_from_outside(page):
    figures = page.of("figure")
    assert {figure["data-path"] for figure in figures} == {*NAMES, "large.png"}
    assert set(page.captions) == {*NAMES, "large.png"}
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:image/") if name in attributes else True
        assert not any(name.startswith("on") for name in attributes)
    [policy] = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not {"link", "iframe", "object", "b", "i"} & {tag for tag, _ in page.elements}
    assert not [text for text in page.scripts if "http" in text or "fetch" in text]


def test_thumbnails_are_the_images_and_large_ones_are_made_small(page):
    for figure, image in zip(page.of("figure"), page.of("img"), strict=True):
        content = base64.b64decode(image["src"].partition("base64,")[2])
        with Image.open(io.BytesIO(content)) as thumbnail:
            large = figure["data-path"] == "large.png"
            assert thumbnail.size == ((192, 107) if large else (8, 8))
            assert max(thumbnail.convert("L").getextrema()) < (9 if large else 141)


def test_classes_have_keys(page):
    buttons = {
        button["data-label"]: button["data-key"] for button in page.of("button") if "data-label" in button
    }
    assert buttons == {CLASSES[0]: "1", CLASSES[1]: "2", "?": "?"}


# Just so much of a browser that the page's own script runs: elements with data, and a storage.
BROWSER = """
const {figures, buttons, facts, script, keys, stored} = JSON.parse(require("fs").readFileSync(0, "utf8"));
const listening = {};
const element = dataset => ({
  dataset, value: "", textContent: "", offsetTop: 0, parts: {},
  classList: {toggle() {}}, scrollIntoView() {}, blur() {},
  addEventListener(name, call) { this["on" + name] = call; },
  querySelector(name) {
    const made = () => Object.assign(element({}), {textContent: name === "blockquote" ? dataset.text : ""});
    return this.parts[name] = this.parts[name] || made();
  },
});
const byId = {}, all = {figure: figures.map(element), "#classes button": buttons.map(element)};
global.localStorage = {getItem: () => stored, setItem(place, text) { this.text = text; }};
global.document = {
  getElementById: id => byId[id] = byId[id] || Object.assign(element({}), {textContent: id === "facts" ? facts : ""}),
  querySelectorAll: name => all[name],
  addEventListener: (name, call) => { listening[name] = call; },
};
const run = new Function(script + "; return csv;")();
for (const key of keys) {
  if (key.startsWith("annotator:")) { byId.annotator.value = key.slice(10); byId.annotator.oninput(); }
  else if (key.startsWith("note:")) { const i = all.figure[0].parts.input; i.value = key.slice(5); i.oninput(); }
  else listening.keydown({key, target: {tagName: "BODY"}, preventDefault() {}});
}
console.log(JSON.stringify({csv: run(), text: localStorage.text, count: byId.count.textContent}));
"""


def pressed(page, keys, stored=None):
    facts, script = page.scripts
    told = {
        "figures": [
            {name.removeprefix("data-"): value for name, value in figure.items()} | {"text": text}
            for figure, text in zip_longest(page.of("figure"), page.texts)
        ],
        "buttons": [
            {"label": button["data-label"], "key": button["data-key"]}
            for button in page.of("button")
            if "data-label" in button
        ],
        "facts": facts,
        "script": script,
        "keys": keys,
        "stored": stored,
    }
    done = subprocess.run(
        [shutil.which("node"), "-e", BROWSER], input=json.dumps(told), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script")
def test_keys_label_and_the_file_that_is_saved_is_imported(page, batch, tmp_path):
    paths = [figure["data-path"] for figure in page.of("figure")]
    empty = (batch / "batch.csv").read_text(encoding="utf-8")
    assert pressed(page, [])["csv"] == empty  # the same columns and rows as the file beside it
    first = pressed(
        page, ["annotator:ann, a", 'note:so, "so"', "1", "2", "?", "1", "Backspace", "ArrowLeft", "1"]
    )
    assert first["count"] == f"3 of {len(paths)} labeled"
    # Another day: what was done is still there.
    again = pressed(page, [" ", "ArrowRight", "2", "1", "Delete"], stored=first["text"])
    (tmp_path / "saved.csv").write_text(again["csv"], encoding="utf-8")
    import_labels(batch / "project", tmp_path / "saved.csv")
    votes = project.find(batch / "project").read().votes
    expected = {
        paths[0]: CLASSES[0],
        paths[1]: CLASSES[1],
        paths[2]: CLASSES[0],
        paths[5]: CLASSES[1],
    }
    assert {path: own["ann, a"].label for path, own in votes.items()} == expected
    assert votes[paths[0]]["ann, a"].note == 'so, "so"'


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script")
def test_keys_put_several_labels_on_a_text(tmp_path):
    texts = ['one, "1"', "two\n2", "three", "four"]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = replace(FOR_TEXTS, multi_label=True)
    project.start(tmp_path / "project", tmp_path / "pool.jsonl", classes=("a", "b", "c"), config=config)
    next_batch(tmp_path / "project", 4, tmp_path / "batch.csv")
    page = Page((tmp_path / "batch.html").read_text(encoding="utf-8"))
    keys = {
        button["data-label"]: button["data-key"] for button in page.of("button") if "data-label" in button
    }
    assert keys == {"a": "1", "b": "2", "c": "3", "-": "0", "?": "?"}
    assert pressed(page, [])["csv"] == (tmp_path / "batch.csv").read_text(encoding="utf-8")
    # c and a; b, taken away, then none; "cannot tell", then b instead; c put and taken away.
    done = pressed(page, [*"31 ", *"20 ", *"?2 ", *"33", "annotator:anna"])
    assert done["count"] == "3 of 4 labeled"
    (tmp_path / "saved.csv").write_text(done["csv"], encoding="utf-8")
    import_labels(tmp_path / "project", tmp_path / "saved.csv")
    votes = project.find(tmp_path / "project").read().votes
    paths = [figure["data-path"] for figure in page.of("figure")]
    assert {path: own["anna"].label for path, own in votes.items()} == dict(
        zip(paths, ("a;c", "-", "b"), strict=False)
    )
    assert pressed(page, ["1", "2", "Backspace"])["count"] == "1 of 4 labeled"
    assert pressed(page, ["1", "Backspace"])["count"] == "0 of 4 labeled"
