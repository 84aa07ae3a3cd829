"""What the tests of docstrings read: public names, and the sentences of a docstring."""

import importlib.util
import inspect
import re

PACKAGES = (
    *(
        "prunefuse",
        "prunefuse.data",
        "prunefuse.dynamics",
        "prunefuse.errors",
        "prunefuse.extrapolation",
        "prunefuse.fusion",
    ),
    *("prunefuse.models", "prunefuse.ops", "prunefuse.scoring", "prunefuse.selection", "prunefuse.training"),
    *("prunefuse.pruning", "prunefuse.experiment.extrapolate", "prunefuse.experiment.study"),
    *(["prunefuse.onnx"] if importlib.util.find_spec("onnx") else []),
)


def public():
    """Functions and classes that a package offers, each once: {"module.name": object}."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        names = getattr(package, "__all__", None) or [n for n in vars(package) if not n.startswith("_")]
        for name in names:
            value = getattr(package, name)
            if callable(value) and hasattr(value, "__qualname__"):  # an operator, too
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return {name: value for name, value in found.items() if name.startswith("prunefuse.")}


def docstrings(name, value):
    """Its own docstring, and those of the public methods and properties that a class has of its own."""
    yield name, inspect.getdoc(value) or ""
    if inspect.isclass(value):
        for method, member in vars(value).items():
            if not method.startswith("_") and (
                inspect.isroutine(member) or isinstance(member, property | classmethod | staticmethod)
            ):
                yield f"{name}.{method}", inspect.getdoc(getattr(value, method)) or ""


def sentences(text):
    """The sentences of a docstring: without examples, and an entry of a list by itself, without the name in front."""
    lines = []
    example = False
    for line in text.splitlines():
        example = line.lstrip().startswith((">>>", "...")) or (example and bool(line.strip()))
        lines.append("" if example else line)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |[\w., *\[\]|`\"]{1,60}: ))|(?<=:)\n", "\n".join(lines))
    for block in blocks:
        block = re.sub(r"^\s*(?:[-*] )?[\w., *\[\]|`\"]{1,60}: ", "", block)
        for sentence in re.split(r"(?<=[.!?])(?:``|`|\))?\s+(?=[A-Z0-9(`‖Σ])", " ".join(block.split())):
            if sentence:
                yield sentence


def of_page(path):
    """The sentences of a page: without code, tables and addresses; an item of a list by itself."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    "))]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines))
    return sentences(re.sub(r"^( *)\d+\. ", r"\1- ", text, flags=re.MULTILINE))


def words(sentence):
    """How many words it has; code and numbers are words, signs are none."""
    code = re.sub(r"``.*?``|`.*?`", "code", sentence)
    return len(re.findall(r"[^\W_][\w'’.,\-]*", code))
