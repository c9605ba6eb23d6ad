"""Checks the names, sizes and imports of every module of the package.

usage: python tests/house.py [PATH ...]        PATH limits the output to files below it

It prints one line per fault and exits with 1 if there are any. Faults are modules that share a name, import circles
(lazy imports count), functions over 80 lines, classes over 250, a README over 150 lines, and variables or arguments
whose name is a bare participle or pronoun. ``lint-imports`` checks which package may import which.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "graph": "gems.graph",
    "nodes": "gems.nodes",
    "skills": "gems.skills",
    "memory": "gems.memory",
    "src/gems": "gems",
}
SCRIPTS = ("benchmarks", "training", "examples")

MAX_FUNCTION, MAX_CLASS, MAX_README = 80, 250, 150

SIBLINGS = frozenset({"loading", "chat"})
"""Module names that may occur more than once: implementations of the same part for several libraries."""

BARE = frozenset(
    {
        "asked",
        "begun",
        "born",
        "brought",
        "built",
        "called",
        "changed",
        "chosen",
        "claimed",
        "come",
        "died",
        "done",
        "doubtful",
        "drafted",
        "drawn",
        "due",
        "dropped",
        "ended",
        "failed",
        "few",
        "found",
        "gained",
        "given",
        "gone",
        "had",
        "has",
        "held",
        "here",
        "kept",
        "known",
        "lacking",
        "lost",
        "made",
        "many",
        "meant",
        "met",
        "missed",
        "moved",
        "named",
        "needed",
        "one",
        "ones",
        "others",
        "ours",
        "paid",
        "ran",
        "said",
        "same",
        "seen",
        "sent",
        "shown",
        "so",
        "spent",
        "stays",
        "stood",
        "stopped",
        "such",
        "taken",
        "tell",
        "that",
        "theirs",
        "them",
        "there",
        "these",
        "they",
        "this",
        "those",
        "thrown",
        "told",
        "tried",
        "used",
        "wanted",
        "worked",
        "written",
    }
)
"""Participles and pronouns that do not say what a variable holds."""


def files() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module of the package and every script."""
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            yield name, path
    for folder in SCRIPTS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.stem, path


def shared_names(modules: dict[str, Path]) -> Iterator[tuple[Path, str]]:
    by_name = defaultdict(list)
    for name, path in modules.items():
        if not path.name.startswith("__"):
            by_name[path.stem].append((name, path))
    for stem, places in sorted(by_name.items()):
        if len(places) > 1 and stem not in SIBLINGS:
            yield places[0][1], f"{len(places)} modules are named {stem}: {', '.join(name for name, _ in places)}"


def long_blocks(tree: ast.Module, path: Path) -> Iterator[tuple[Path, str]]:
    for node in ast.walk(tree):
        length = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length > MAX_FUNCTION:
            yield path, f"function {node.name} has {length} lines"
        elif isinstance(node, ast.ClassDef) and length > MAX_CLASS:
            yield path, f"class {node.name} has {length} lines"


def bare_names(tree: ast.Module, path: Path) -> Iterator[tuple[Path, str]]:
    fields = {  # fields of records and forms: their names belong to file formats and interfaces
        id(statement.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if id(node) in fields:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name, line = node.id, node.lineno
        elif isinstance(node, ast.arg):
            name, line = node.arg, node.lineno
        else:
            continue
        if name.strip("_").lower() in BARE:
            yield path, f"line {line}: the name {name} does not say what it holds"


def imports(tree: ast.Module, module: str, names: dict[str, Path]) -> set[str]:
    """The modules of this repository that a module imports, anywhere but under TYPE_CHECKING."""
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    targets = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= {name if name in names else node.module for name in inner}
    return {name for name in targets if name in names and name != module}


def circles(modules: dict[str, Path], trees: dict[Path, ast.Module]) -> Iterator[tuple[Path, str]]:
    """Strongly connected components of the import graph with more than one module (Tarjan, 1972)."""
    graph = {name: imports(trees[path], name, modules) for name, path in modules.items() if name.startswith("gems.")}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph.get(name, ()):
            if target not in index:
                yield from visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            cut = stack.index(name)
            component, stack[cut:] = stack[cut:], []
            if len(component) > 1:
                yield sorted(component)

    for name in graph:
        if name not in index:
            for component in visit(name):
                yield modules[component[0]], f"import circle: {', '.join(component)}"


def faults() -> Iterator[tuple[Path, str]]:
    modules = dict(files())
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules.values()}
    yield from shared_names(modules)
    yield from circles(modules, trees)
    for path, tree in trees.items():
        yield from long_blocks(tree, path)
        yield from bare_names(tree, path)
    readme = ROOT / "README.md"
    lines = len(readme.read_text(encoding="utf-8").splitlines())
    if lines > MAX_README:
        yield readme, f"{lines} lines"


def main() -> int:
    below = [Path(argument).resolve() for argument in sys.argv[1:]]
    count = 0
    for path, fault in faults():
        if not below or any(path.is_relative_to(folder) for folder in below):
            print(f"{path.relative_to(ROOT)}: {fault}")
            count += 1
    print(f"{count} faults")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
