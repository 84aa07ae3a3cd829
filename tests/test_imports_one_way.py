"""Imports of the package go one way: no circle, those inside functions counted."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import prunefuse

ROOT = Path(prunefuse.__file__).parent.parent


def modules():
    for path in (ROOT / "prunefuse").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text())


def for_types_alone(tree):
    """Nodes below ``if TYPE_CHECKING``, which never run."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {id(node) for block in blocks for node in ast.walk(block)}


def imported(tree, known):
    left_out = for_types_alone(tree)
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports():
    """Module -> modules of the package that it imports."""
    trees = dict(modules())
    assert len(trees) > 100
    return {
        name: {other for other in imported(tree, trees) if other in trees} - {name}
        for name, tree in trees.items()
    }


def test_no_module_imports_itself_by_way_of_others():
    refuse_circles(imports())


def test_no_package_imports_itself_by_way_of_others():
    graph = {}
    for name, others in imports().items():
        package = ".".join(name.split(".")[:2])
        graph.setdefault(package, set()).update(".".join(other.split(".")[:2]) for other in others)
    refuse_circles({package: others - {package, "prunefuse"} for package, others in graph.items()})


def refuse_circles(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
