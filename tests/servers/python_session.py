"""Runs the Python blocks of one documentation page in a shared namespace.

Reads requests from standard input, one JSON object per line: ``source``, ``path`` and ``line`` of the block, and
whether to ``run`` it or only look up the names that it imports. Answers each request with one line: the traceback, or
an empty string. Output of the blocks goes to standard error.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import sys
import traceback
import types
import warnings
from typing import Any


def resolve(tree: ast.Module) -> None:
    """Look up every name that a block imports, and every ``gems.x.y`` that it uses.

    Raises:
        ImportError: The module or the name does not exist.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = _module(node.module)
            for alias in node.names:
                _attribute(module, node.module, alias.name)
    if any(isinstance(node, ast.Import) and node.names[0].name == "gems" for node in ast.walk(tree)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"gems(\.\w+)+", path := ast.unparse(node)):
                _follow(path)


def _follow(path: str) -> None:
    """Look up a dotted path. A part that is not an attribute may be a module that has not been imported yet."""
    first, *parts = path.split(".")
    target: Any = importlib.import_module(first)
    for part in parts:
        if isinstance(target, types.ModuleType) and not hasattr(target, part):
            target = importlib.import_module(f"{target.__name__}.{part}")
        else:
            target = getattr(target, part)


def _module(name: str) -> types.ModuleType | None:
    """The module, or None if its package is not installed."""
    if name.partition(".")[0] != "gems" and importlib.util.find_spec(name.partition(".")[0]) is None:
        return None
    return importlib.import_module(name)


def _attribute(module: types.ModuleType | None, path: str, name: str) -> None:
    if module is not None and not hasattr(module, name):
        importlib.import_module(f"{path}.{name}")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Dataclasses and type hints look up names in sys.modules, so the blocks need a module there.
    module = types.ModuleType("page")
    sys.modules["page"] = module
    warnings.filterwarnings("error", category=DeprecationWarning, module="page")
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        fault = ""
        try:
            tree = ast.parse(request["source"], request["path"])
            ast.increment_lineno(tree, request["line"] - 1)
            code = compile(tree, request["path"], "exec", dont_inherit=True)
            if request["run"]:
                exec(code, module.__dict__)
            else:
                resolve(tree)
        except BaseException:
            fault = traceback.format_exc()
        sys.stdout.flush()
        answers.write(json.dumps(fault) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
