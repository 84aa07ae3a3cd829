"""Labels from people for texts in a file, and several labels for each sample, by the command line."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from labeling_projects import OPTIONS as IMAGE_OPTIONS
from labeling_projects import label, rows, write_images
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.experiment.labeling import labels, project

OPTIONS = "--epochs 4 --min-steps 0 --batch-size 8 --threads 1 --device cpu --checkpoint-seconds 0 --lr 0.01"
GOOD, BAD, FILLER = "lovely superb great", "awful dull poor", "the plot of this film has an actor and music"
ODD = [
    'she said "no", twice',
    "two\nlines; and <b>tags</b> & more",
    "déjà vu, 日本",
    "=1+1",
    "a\rreturn",
    "a\u2028b",
]


def truth(number):
    return "bad" if number % 2 else "good"


def text(number):
    words = FILLER.split()
    own = (BAD if number % 2 else GOOD).split()
    return " ".join([words[number % 5], own[number % 3], *words[number % 7 :], own[(number + 1) % 3]])


def write_csv(path, lines, header=("id", "text"), delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *lines])
    return path


def write_jsonl(path, objects):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")
    return path


@pytest.fixture
def pool(tmp_path):
    return write_csv(tmp_path / "pool.csv", [(f"t{n}", text(n)) for n in range(30)])


def call(name, folder, line="", code=0):
    result = CliRunner().invoke(app, ["label", name, str(folder), *shlex.split(str(line))])
    assert result.exit_code == code, result.output
    return result.output


def start(tmp_path, pool, line="--classes bad,good", code=0, name="project"):
    return call("start", tmp_path / name, f"--data {pool} {line} {OPTIONS}", code)


def answered(path, answer, out=None, annotator="anna"):
    """A batch with the answers to each row filled in."""
    read = rows(path)
    filled = [[*row.values()][:6] + [answer(row), annotator, ""] for row in read]
    return write_csv(out or path.with_name(f"filled-{path.name}"), filled, list(read[0]))


def number_of(row):
    return int(row["id"].removeprefix("t"))


def test_the_whole_cycle_by_processes(tmp_path, pool):
    before, folder = pool.read_bytes(), tmp_path / "project"
    said = label(f"start {folder} --data {pool} --classes bad,good {OPTIONS}")
    assert "texts are read as 13 words, 16 of them known" in said
    assert "texts are those of the column text; their names are those of the column id" in said
    assert "30 texts, 0 of them with a label; classes bad, good" in said
    label(f"next {folder} -n 8 --out {tmp_path / 'a.csv'}")
    batch = rows(tmp_path / "a.csv")
    assert list(batch[0]) == [
        *("id", "index", "text", "utility", "predicted", "why", "label", "annotator", "note")
    ]
    assert all(row["text"] == text(number_of(row)) for row in batch)
    assert {row["why"] for row in batch} == {"random draw: no labels of two classes yet"}
    said = label(f"import {folder} {answered(tmp_path / 'a.csv', lambda row: truth(number_of(row)))}")
    assert said.startswith("8 new")
    said = label(f"next {folder} -n 4 --for ben --out {tmp_path / 'b.csv'}")
    assert "training the selector on 8 labels" in said
    second = rows(tmp_path / "b.csv")
    assert {row["why"] for row in second} == {"highest margin"}
    assert {row["annotator"] for row in second} == {"ben"}
    assert not {row["id"] for row in second} & {row["id"] for row in batch}
    assert "asked of ben  4" in label(f"status {folder}")
    label(f"export {folder} --out {tmp_path / 'labels.csv'}")
    exported = rows(tmp_path / "labels.csv")
    assert list(exported[0]) == ["id", "text", "label", "votes", "annotators", "note"]
    assert all(
        (row["text"], row["label"]) == (text(number_of(row)), truth(number_of(row))) for row in exported
    )
    assert "22 predictions" in label(f"predict {folder} --out {tmp_path / 'p.csv'}")
    predicted = rows(tmp_path / "p.csv")
    assert list(predicted[0]) == ["id", "index", "label", "probability", "bad", "good"]
    assert len(predicted) == 22
    assert pool.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("pool")) == ["pool.csv"]


def test_a_killed_training_goes_on(tmp_path, pool):
    folder, batch = tmp_path / "project", tmp_path / "a.csv"
    start(tmp_path, pool)
    call("next", folder, f"-n 8 -o {batch}")
    call("import", folder, answered(batch, lambda row: truth(number_of(row))))
    whole = tmp_path / "whole"
    subprocess.run(["cp", "-r", folder, whole], check=True)
    # Killed at the first weights that are kept.
    code = (
        "import os, signal, sys\n"
        "from prunefuse import _files\n"
        "publish = _files.publish\n"
        "def once(temporary, target):\n"
        "    publish(temporary, target)\n"
        "    if 'epoch' in target.name or target.suffix == '.safetensors': os.kill(os.getpid(), signal.SIGKILL)\n"
        "_files.publish = once\n"
        "from prunefuse.cli.app import app\n"
        "app(sys.argv[1:])\n"
    )
    line = ["label", "next", str(folder), "-n", "4", "-o", str(tmp_path / "b.csv")]
    done = subprocess.run([sys.executable, "-c", code, *line], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "b.csv").exists()
    call("next", folder, f"-n 4 -o {tmp_path / 'b.csv'}")
    call("next", whole, f"-n 4 -o {tmp_path / 'c.csv'}")
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
def test_texts_of_any_kind_go_through_every_file(tmp_path, ending):
    texts = [*ODD, "x" * 200_000, *ODD[:1]]
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"id": n, "text": one} for n, one in enumerate(texts)])
    assert "1 text is the same as an earlier one" in start(tmp_path, pool)
    folder, batch = tmp_path / "project", tmp_path / f"batch{ending}"
    call("next", folder, f"-n 99 -o {batch}")
    if ending == ".csv":
        with batch.open(newline="", encoding="utf-8") as file:
            usual = csv.field_size_limit(1 << 20)
            seen = {row["id"]: row["text"] for row in csv.DictReader(file)}
            csv.field_size_limit(usual)
    else:
        content = batch.read_text(encoding="utf-8")
        told = json.loads(content) if ending == ".json" else map(json.loads, content.split("\n")[:-1])
        fields = [one["data"] if ending == ".json" else one for one in told]
        seen = {one["id"]: one["text"] for one in fields}
    assert seen == {str(n): one for n, one in enumerate(texts)}
    if ending != ".json":  # tasks have no annotations
        assert call("import", folder, batch).startswith(f"0 new, 0 changed, {len(texts)} not labeled yet")


class Shown(HTMLParser):
    """The texts of a page, and every element."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags, self._inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag == "blockquote"
        if self._inside:
            self.texts.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "blockquote"

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


def test_the_page_shows_texts_as_they_are(tmp_path):
    texts = [
        "<script>alert(1)</script>",
        "</blockquote><img src=x onerror=y>",
        '{{ 1 }} "q" &amp; \'s',
        "a\n\n b",
    ]
    start(tmp_path, write_csv(tmp_path / "pool.csv", enumerate(texts)), "--classes '<b>a</b>,b;c'")
    call("next", tmp_path / "project", f"-n 9 -o {tmp_path / 'b.csv'}")
    page = Shown((tmp_path / "b.html").read_text(encoding="utf-8"))
    assert sorted(page.texts) == sorted(texts)
    assert not {"img", "b"} & set(page.tags)
    assert page.tags.count("script") == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("\ufeffID;Review\r\na;good; \r\n".replace("; ", "").encode(), ("Review", "ID", {"a": "good"})),
        ("id\ttext\n7\tone\n".encode("utf-16"), ("text", "id", {"7": "one"})),
        (b'text\n"two, or\n three"\n\nfour\n', ("text", "", {"1": "two, or\n three", "2": "four"})),
        (b"label,split,words\n,,one two\n", ("words", "", {"1": "one two"})),
        (b"comment,text\nx,y\n", ("text", "", {"1": "y"})),
    ],
)
def test_tables_of_spreadsheets(tmp_path, content, told):
    pool = tmp_path / "pool.csv"
    pool.write_bytes(content)
    start(tmp_path, pool)
    found = project.find(tmp_path / "project")
    assert (found.texts.text, found.texts.id) == told[:2]
    assert {name: found.texts.seen(name) for name in found.paths} == told[2]


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (b"", "", "must have texts, got none"),
        (b"id,text\n", "", "must have texts, got none"),
        (b"id,text\na,caf\xe9\n", "", "pool.csv, line 2: must be UTF-8, got the byte 0xe9"),
        (b"id,text\na,b\na,c\n", "", "line 3: id must be different names, got 'a' as in line 2"),
        (b"id,text\n,b\n", "", "line 2: id must be a name, got none"),
        (b"id,text\na,b,c\n", "", "line 2: fields must be 2, got 3"),
        (b'id,text\na,"b\n', "", "content must be CSV: line 2"),
        (b"id,title,abstract\na,b,c\n", "", "text must be one of its columns, id, title, abstract (--text COLUMN)"),
        (b"id,review,comment\na,b,c\n", "", "text must be one of its columns, id, review, comment"),
        (b"id,text\na,b\n", "--text words", "text must be one of its columns, id, text, got 'words'"),
        (b"id,text\na,b\n", "--id name", "id must be one of its columns, id, text, got 'name'"),
        (b"id,text\na,b\n", "--text id", "text must be another column than id"),
        (b"text,text\na,b\n", "", "line 1: columns must have different names, got 'text' twice"),
        (b"id,text\na,b\nb, \n", "", "text must have texts that are not empty, got 1 that are, line 3"),
        (b"id,text\na, \n", "--skip-broken", "data must be texts that can be read"),
        (b"id,text\na,b\n", "--labels {pool}", "columns must have label for --labels, got none"),
        (b"id,text\na,b\n", "--model resnet8", "model must be one of text_cnn, text_transformer"),
        (b"id,text\na,b\n", "--vocabulary 2", "vocabulary must be at least 3"),
        (b"id,text\na,b\n", "--tokenizer no.py:f", "tokenizer must be a function that can be loaded"),
        (b"id,text\na,b\n", "--strategy nothing", "strategy must be one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_named_and_nothing_is_written(tmp_path, content, line, said):
    pool = tmp_path / "pool.csv"
    pool.write_bytes(content)
    assert said in start(tmp_path, pool, f"--classes a,b {line.format(pool=pool)}", 2)
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: must be JSON"),
        ("[1]", "line 1: must be an object, got list"),
        ('{"text": 3}', "line 1: text must be a text, got int"),
        ('{"id": true, "text": "a"}', "line 1: id must be a name or a whole number, got True"),
        ('{"id": 1.5, "text": "a"}', "line 1: id must be a name or a whole number, got 1.5"),
        ('{"text": "\\ud800"}', "line 1: text must be characters, got half of one"),
        ('{"id": 1, "text": null}', "text must have texts that are not empty"),
    ],
)
def test_wrong_json_lines_are_named(tmp_path, line, said):
    (tmp_path / "pool.jsonl").write_text(line + "\n", encoding="utf-8")
    assert said in start(tmp_path, tmp_path / "pool.jsonl", code=2)
    assert not (tmp_path / "project").exists()


def test_labels_one_has_are_in_the_file_itself_or_in_another(tmp_path):
    pool = write_csv(tmp_path / "pool.csv", [("one", "3"), ("two", ""), ("three", "1 ")], ("text", "label"))
    assert "3 texts, 2 of them with a label; classes 1, 3" in start(tmp_path, pool, f"--labels {pool}")
    assert project.find(tmp_path / "project").given == {"1": "3", "3": "1"}
    other = write_csv(
        tmp_path / "have.csv", [("2", "yes", "anna"), ("3", "no", "ben")], ("id", "label", "annotator")
    )
    assert "classes no, yes" in start(tmp_path, pool, f"--labels {other}", name="b")
    assert labels.status(tmp_path / "b").annotators == {"anna": 1, "ben": 1}
    wrong = write_csv(tmp_path / "wrong.csv", [("9", "yes"), ("1", "maybe")], ("id", "label"))
    said = start(tmp_path, pool, f"--labels {wrong} --classes yes,no", 2, "c")
    assert "line 2: id must be of a text of the project, got '9'" in said
    assert "line 3: label must be one of yes, no, ? or empty, got 'maybe'" in said


def test_labels_one_has_may_be_json_lines(tmp_path):
    pool = write_csv(tmp_path / "pool.csv", [("one",), ("two",), ("three",)], ("text",))
    have = write_jsonl(
        tmp_path / "have.jsonl",
        [
            {"id": 1, "label": "no"},
            {"id": "2", "label": None},
            {"id": "3", "label": "yes", "annotator": "ben"},
        ],
    )
    assert "3 texts, 2 of them with a label; classes no, yes" in start(tmp_path, pool, f"--labels {have}")
    assert project.find(tmp_path / "project").given == {"1": "no"}
    write_jsonl(have, [{"id": 1, "label": ["no", "new"]}, {"id": 3, "label": []}])
    assert "classes new, no" in start(tmp_path, pool, f"--multi-label --labels {have}", name="b")
    assert project.find(tmp_path / "b").given == {"1": "new;no", "3": "-"}
    said = start(tmp_path, pool, f"--classes no,yes --labels {have}", 2, "c")
    assert "have.jsonl, line 1: label of 1 must be a name, got ['no', 'new']" in said
    have.write_text('{"label": "no"}\nno\n')
    said = start(tmp_path, pool, f"--classes no,yes --labels {have}", 2, "d")
    assert "line 1: must be an object with id" in said
    assert "line 2: must be JSON" in said


def test_labels_of_texts_that_come_later_are_in_the_file_where_they_were_at_the_start(tmp_path):
    first = [("t0", text(0), "good"), ("t1", text(1), "bad"), ("t2", text(2), "")]
    later = [*first, ("t3", text(3), "bad"), ("t4", text(4), "")]
    header = ("id", "text", "label")
    pool = write_csv(tmp_path / "pool.csv", first, header)
    start(tmp_path, pool, f"--labels {pool}")
    start(tmp_path, pool, name="without")
    write_csv(pool, [*later, ("t5", text(5), "Good")], header)
    said = call("next", tmp_path / "project", f"-n 9 -o {tmp_path / 'x.csv'}", 2)
    assert "pool.csv, line 7: label must be one of bad, good, ? or empty, got 'Good'" in said
    write_csv(pool, later, header)
    asked = {}
    for name in ("project", "without"):
        call("next", tmp_path / name, f"-n 9 -o {tmp_path / name}.csv")
        asked[name] = {row["id"] for row in rows(tmp_path / f"{name}.csv")}
    assert asked == {"project": {"t2", "t4"}, "without": {"t0", "t1", "t2", "t3", "t4"}}
    assert labels.status(tmp_path / "project").labels == {"bad": 2, "good": 1}


def test_a_strategy_of_ones_own_is_found_from_anywhere(tmp_path, monkeypatch):
    pool = write_csv(tmp_path / "pool.csv", [(f"t{n}", text(n)) for n in range(12)])
    (tmp_path / "mine.py").write_text("def doubt(logits):\n    return -logits.abs().sum(1)\n")
    monkeypatch.chdir(tmp_path)
    start(tmp_path, pool, "--classes bad,good --strategy mine.py:doubt --epochs 1 --min-steps 0")
    have = write_csv(tmp_path / "l.csv", [("t0", "good"), ("t1", "bad")], ("id", "label"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    call("import", tmp_path / "project", have)
    call("next", tmp_path / "project", f"-n 3 -o {tmp_path / 'b.csv'}")
    assert {row["why"] for row in rows(tmp_path / "b.csv")} == {f"highest {tmp_path / 'mine.py'}:doubt"}


def test_texts_that_come_go_and_change(tmp_path):
    pool = write_csv(tmp_path / "pool.csv", [(f"t{n}", text(n)) for n in range(4)])
    start(tmp_path, pool)
    folder = tmp_path / "project"
    call("import", folder, write_csv(tmp_path / "l.csv", [("t0", "good"), ("t1", "bad")], ("id", "label")))
    write_csv(pool, [(f"t{n}", text(n) if n != 9 else " ") for n in (5, 9, 3, 2, 1)])
    status = labels.status(folder)
    assert (status.added, status.gone) == (2, 1)
    assert "new texts, which `next` takes in  2" in call("status", folder)
    said = call("next", folder, f"-n 9 -o {tmp_path / 'b.csv'}")
    assert "1 text is new" in said
    assert "left out, as it cannot be read: t9" in said
    assert "1 text is no longer there: t0" in said
    assert {row["id"]: row["index"] for row in rows(tmp_path / "b.csv")} == {"t2": "2", "t3": "3", "t5": "4"}
    call("export", folder, f"-o {tmp_path / 'e.csv'}")
    exported = {row["id"]: (row["text"], row["label"]) for row in rows(tmp_path / "e.csv")}
    assert exported == {"t0": ("", "good"), "t1": (text(1), "bad")}
    pool.unlink()
    assert "must have the texts of" in call("next", folder, f"-n 9 -o {tmp_path / 'c.csv'}", 2)


def test_rows_without_names_may_come_at_the_end_but_not_move(tmp_path):
    pool = write_csv(tmp_path / "pool.csv", [["one"], ["two"]], ["text"])
    start(tmp_path, pool)
    write_csv(pool, [["one"], ["two"], ["three"]], ["text"])
    call("next", tmp_path / "project", f"-n 9 -o {tmp_path / 'a.csv'}")
    assert {row["id"]: row["text"] for row in rows(tmp_path / "a.csv")} == {
        "1": "one",
        "2": "two",
        "3": "three",
    }
    for moved in ([["zero"], ["one"], ["two"]], [["one"], ["two"], ["four"]]):
        write_csv(pool, moved, ["text"])
        said = call("next", tmp_path / "project", f"-n 9 -o {tmp_path / 'b.csv'}", 2)
        assert "must have the texts it had, with new ones at its end, got others in rows" in said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([("t99", "good")], "line 2: id must be of a text of the project, got 't99'"),
        (
            [("t1", "Good")],
            "label must be one of bad, good, ? or empty, got 'Good' (is good meant? case counts)",
        ),
        ([("t1", "good;bad")], "label must be one of bad, good, ? or empty, got 'good;bad'"),
        ([("t1", "good"), ("t1", "bad")], "line 3: conflict with line 2: label of t1"),
    ],
)
def test_every_wrong_line_is_named_and_nothing_is_taken(tmp_path, pool, lines, said):
    start(tmp_path, pool)
    file = write_csv(tmp_path / "l.csv", [("t0", "good"), *lines][1:], ("id", "label"))
    assert said in call("import", tmp_path / "project", file, 2)
    assert labels.status(tmp_path / "project").labeled == 0
    assert "line 1: columns must have id once" in call(
        "import", tmp_path / "project", write_csv(tmp_path / "p.csv", [("t0", "good")], ("path", "label")), 2
    )


def test_files_of_tools_for_images_are_refused(tmp_path, pool):
    start(tmp_path, pool)
    for line in (f"-o {tmp_path / 'b.xml'}", f"-o {tmp_path / 'b.json'} --format fiftyone"):
        said = call("next", tmp_path / "project", f"-n 2 {line}", 2)
        assert (
            "must be of a project of images" in said
            or "format must be one of csv, label-studio, huggingface" in said
        )


MINE = """
import torch
def spelled(text):
    return [ord(letter) % 90 + 1 for letter in text]
def empty(text):
    return []
def large(text):
    return [5000]
def words(text):
    return text.split()
def broken(text):
    raise KeyError(text[:3])
class Bag(torch.nn.Module):
    def __init__(self, classes, vocabulary):
        super().__init__()
        self.words = torch.nn.Embedding(vocabulary, 16, padding_idx=0)
        self.inner = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, classes)
    def forward(self, words):
        return self.head(self.inner(self.words(words).mean(1)).relu())
def bag(num_classes, vocabulary, length):
    assert length == 20
    return Bag(num_classes, vocabulary)
"""


def test_a_tokenizer_and_a_network_of_ones_own(tmp_path, pool, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "project"
    said = start(
        tmp_path,
        pool,
        "--classes bad,good --tokenizer mine.py:spelled --vocabulary 91 --length 20 --model mine.py:bag",
    )
    assert "texts are read as 20 words\n" in said
    monkeypatch.chdir("/")  # found from anywhere
    file = write_csv(tmp_path / "l.csv", [(f"t{n}", truth(n)) for n in range(6)], ("id", "label"))
    call("import", folder, file)
    call("next", folder, f"-n 3 -o {tmp_path / 'b.csv'}")
    assert {row["why"] for row in rows(tmp_path / "b.csv")} == {"highest margin"}
    for name, wrong in (
        ("large", "tokenizer must give numbers in [0, 91), got 5000 for text"),
        ("words", "tokenizer must give a list of whole numbers, got list for text"),
        ("broken", "tokenizer failed for text"),
    ):
        line = f"--classes bad,good --tokenizer {tmp_path}/mine.py:{name} --vocabulary 91"
        assert wrong in start(tmp_path, pool, line, 2, name)


def test_a_transformer_is_pruned_and_asks(tmp_path, pool):
    start(tmp_path, pool, "--classes bad,good --model text_transformer --strategy margin --vocabulary 8")
    assert len(project.find(tmp_path / "project").texts.vocabulary) == 8
    file = write_csv(tmp_path / "l.csv", [(f"t{n}", truth(n)) for n in range(6)], ("id", "label"))
    call("import", tmp_path / "project", file)
    call("next", tmp_path / "project", f"-n 3 -o {tmp_path / 'b.csv'}")
    assert {row["why"] for row in rows(tmp_path / "b.csv")} == {"highest margin"}


def test_what_is_learned_is_predicted(tmp_path, pool):
    file = write_csv(tmp_path / "l.csv", [(f"t{n}", truth(n)) for n in range(20)], ("id", "label"))
    call("start", tmp_path / "project", f"--data {pool} --labels {file} {OPTIONS} --epochs 40")
    call("predict", tmp_path / "project", f"-o {tmp_path / 'p.csv'}")
    predicted = rows(tmp_path / "p.csv")
    assert sum(row["label"] == truth(number_of(row)) for row in predicted) >= 9
    assert len(predicted) == 10


# Several labels.

SEVERAL = "--classes bad,good,music --multi-label"


def labels_of(number):
    found = [truth(number), *(["music"] if "music" in text(number).split() else [])]
    return ";".join(reversed(found)) if number % 5 else "-"


def test_several_labels_of_texts(tmp_path, pool):
    folder = tmp_path / "project"
    start(tmp_path, pool, SEVERAL)
    call("next", folder, f"-n 10 --out {tmp_path / 'a.csv'}")
    call("import", folder, f"{answered(tmp_path / 'a.csv', lambda row: labels_of(number_of(row)))}")
    said = call("next", folder, f"-n 4 --out {tmp_path / 'b.csv'}")
    assert "training the selector on 10 labels" in said
    assert all(
        {*row["predicted"].split(";")} <= {"bad", "good", "music", "-"} for row in rows(tmp_path / "b.csv")
    )
    call("export", folder, f"--out {tmp_path / 'e.csv'}")
    for row in rows(tmp_path / "e.csv"):
        assert {*row["label"].split(";")} == {*labels_of(number_of(row)).split(";")}
        assert row["label"].split(";") == sorted(row["label"].split(";"))  # in the order of the classes
    call("predict", folder, f"--out {tmp_path / 'p.csv'}")
    for row in rows(tmp_path / "p.csv"):
        each = [float(row[name]) for name in ("bad", "good", "music")]
        have = [name for name, p in zip(("bad", "good", "music"), each, strict=True) if p > 0.5]
        assert row["label"] == (";".join(have) or "-")
        sure = [max(p, 1 - p) for p in each]
        assert float(row["probability"]) == pytest.approx(sure[0] * sure[1] * sure[2], abs=1e-5)


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_semicolons_between_columns_and_between_labels(tmp_path, pool, delimiter):
    start(tmp_path, pool, SEVERAL)
    lines = [("t0", " music ; good;"), ("t1", "bad"), ("t2", "-"), ("t3", "?"), ("t4", ""), ("t5", "bad;bad")]
    file = write_csv(tmp_path / "l.csv", lines, ("id", "label"), delimiter)
    assert "5 new, 0 changed, 1 not labeled yet" in call("import", tmp_path / "project", file)
    votes = project.find(tmp_path / "project").read().votes
    assert {name: own[""].label for name, own in votes.items()} == {
        "t0": "good;music", "t1": "bad", "t2": "-", "t3": "?", "t5": "bad",
    }  # fmt: skip
    status = labels.status(tmp_path / "project")
    assert (status.labeled, dict(status.labels)) == (4, {"bad": 2, "good": 1, "music": 1, "-": 1})
    assert "0 new, 0 changed" in call("import", tmp_path / "project", file)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("bad;ugly", "label must be any of bad, good, music with ; between them, -, ? or empty, got 'ugly'"),
        ("bad;Good", "got 'Good' (is good meant? case counts)"),
        ("bad;?", "got '?', which stands alone"),
        ("-;bad", "got '-', which stands alone"),
        (";", "label must be - where a sample has none, got ';'"),
        ("bad,good", "got 'bad,good'"),
    ],
)
def test_a_wrong_answer_with_several_labels_is_named(tmp_path, pool, given, said):
    start(tmp_path, pool, SEVERAL)
    file = write_csv(tmp_path / "l.csv", [("t0", "bad"), ("t1", given)], ("id", "label"))
    found = call("import", tmp_path / "project", file, 2)
    assert "line 3: " in found
    assert said in found
    assert labels.status(tmp_path / "project").labeled == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--classes 'a;b,c' --multi-label",
            "classes must be names without ;, and not -, with multi_label, got 'a;b'",
        ),
        ("--classes a,- --multi-label", "names without ;, and not -, with multi_label, got '-'"),
        ("--classes a --strategy badge --multi-label", "strategy must be one of"),
        ("--multi-label", "classes must be one or more names (--classes a,b), got none"),
        ("--classes a", "classes must be two or more names (--classes a,b), got a"),
    ],
)
def test_what_several_labels_cannot_be_is_named(tmp_path, pool, line, said):
    assert said in start(tmp_path, pool, line, 2)
    assert not (tmp_path / "project").exists()


def test_one_label_that_a_sample_has_or_has_not(tmp_path, pool):
    start(tmp_path, pool, "--classes spam --multi-label")
    lines = [(f"t{n}", "spam" if n % 2 else "-") for n in range(6)]
    call("import", tmp_path / "project", write_csv(tmp_path / "l.csv", lines[1::2], ("id", "label")))
    said = call("predict", tmp_path / "project", f"-o {tmp_path / 'p.csv'}", 2)
    assert "must have labels of two kinds to predict the others, got 3 labels, of spam alone" in said
    call("import", tmp_path / "project", write_csv(tmp_path / "m.csv", lines[::2], ("id", "label")))
    call("predict", tmp_path / "project", f"-o {tmp_path / 'p.csv'}")
    assert {row["label"] for row in rows(tmp_path / "p.csv")} <= {"spam", "-"}


def test_each_label_is_voted_on(tmp_path, pool):
    start(tmp_path, pool, SEVERAL)
    said = {
        "anna": ["bad;music", "bad", "good", "?"],
        "ben": ["bad", "good", "good;music", "-"],
        "cy": ["music", "", "-", "?"],
    }
    for who, given in said.items():
        lines = [(f"t{n}", answer, who) for n, answer in enumerate(given)]
        call(
            "import", tmp_path / "project", write_csv(tmp_path / "l.csv", lines, ("id", "label", "annotator"))
        )
    call("export", tmp_path / "project", f"-o {tmp_path / 'e.csv'}")
    assert {row["id"]: row["label"] for row in rows(tmp_path / "e.csv")} == {
        "t0": "bad;music", "t1": "", "t2": "good", "t3": "-",
    }  # fmt: skip
    call("next", tmp_path / "project", f"-n 1 -o {tmp_path / 'b.csv'}")
    assert rows(tmp_path / "b.csv")[0]["why"] == "annotators disagree: anna bad, ben good"


def test_several_labels_in_json_lines_and_label_studio(tmp_path, pool):
    start(tmp_path, pool, SEVERAL)
    folder = tmp_path / "project"
    told = [
        {"id": f"t{n}", "label": one} for n, one in enumerate((["music", "bad"], [], None, "good;music", "?"))
    ]
    assert "4 new" in call("import", folder, write_jsonl(tmp_path / "l.jsonl", told))
    for wrong in (["bad;good"], [1], {"a": 1}):
        file = write_jsonl(tmp_path / "w.jsonl", [{"id": "t0", "label": wrong}])
        assert "line 1: label of t0 must be a name" in call("import", folder, file, 2)
    tasks = [
        {"data": {"id": f"t{n}"}, "annotations": [{"completed_by": 3, "result": [
            {"type": "choices", "value": {"choices": one}}]}]}
        for n, one in ((5, ["good", "music"]), (6, ["-"]), (7, []))
    ]  # fmt: skip
    (tmp_path / "l.json").write_text(json.dumps(tasks))
    assert "2 new, 0 changed, 1 not labeled yet" in call("import", folder, tmp_path / "l.json")
    call("export", folder, f"-o {tmp_path / 'e.jsonl'}")
    exported = {one["id"]: one["label"] for one in map(json.loads, (tmp_path / "e.jsonl").open())}
    assert exported == {
        "t0": ["bad", "music"], "t1": [], "t3": ["good", "music"], "t5": ["good", "music"], "t6": [],
    }  # fmt: skip
    call("export", folder, f"-o {tmp_path / 'e.json'}")
    choices = [
        task["annotations"][0]["result"][0]["value"]["choices"]
        for task in json.loads((tmp_path / "e.json").read_text())
    ]
    assert choices == [["bad", "music"], ["-"], ["good", "music"], ["good", "music"], ["-"]]
    before = labels.status(folder)
    for name in ("e.jsonl", "e.json"):  # what is written is read as it was
        start(tmp_path, pool, SEVERAL, name=f"again{name}")
        call("import", tmp_path / f"again{name}", tmp_path / name)
        assert labels.status(tmp_path / f"again{name}").labels == before.labels


@pytest.mark.parametrize("ending", [".csv", ".xml", ".jsonl", "samples.json"])
def test_several_labels_of_images_go_through_every_file(tmp_path, ending):
    images = write_images(tmp_path / "images", count=8)
    line = f"--data {images} --classes dark,light,odd --multi-label {IMAGE_OPTIONS}"
    for name in ("a", "b"):
        call("start", tmp_path / name, line)
    given = {"00.png": "dark;odd", "04.png": "-", "deep/1/01.png": "light", "deep/2/02.png": "odd"}
    file = write_csv(tmp_path / "l.csv", given.items(), ("path", "label"))
    assert "4 new" in call("import", tmp_path / "a", file)
    out = tmp_path / f"out{ending}"
    extra = " --format fiftyone" if ending == "samples.json" else ""
    call("export", tmp_path / "a", f"-o {out}{extra}")
    assert "4 new" in call("import", tmp_path / "b", f"{out}{extra}")
    votes = project.find(tmp_path / "b").read().votes
    assert {path: next(iter(own.values())).label for path, own in votes.items()} == given
    call("next", tmp_path / "b", f"-n 2 -o {tmp_path / 'next'}{ending}{extra}")
