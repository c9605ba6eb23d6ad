"""``gems.__init__`` lists each public name twice, for type checkers and for the interpreter; the lists must agree."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
from pathlib import Path

import pytest

import gems


def imported_for_type_checkers() -> dict[str, str]:
    """Name and module of each import in the TYPE_CHECKING block; every import is marked as a re-export."""
    tree = ast.parse(Path(gems.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    names: dict[str, str] = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        assert statement.module is not None
        for alias in statement.names:
            assert alias.asname == alias.name, f"type checkers treat {alias.name} as private; write 'as {alias.name}'"
            names[alias.name] = statement.module
    return names


def test_type_checkers_and_the_interpreter_get_the_same_names() -> None:
    at_run_time = {name: module for module, names in gems._MODULES.items() for name in names}
    assert imported_for_type_checkers() == at_run_time
    assert set(gems.__all__) == {*at_run_time, "__version__"}


@pytest.mark.parametrize("module", sorted(gems._MODULES))
def test_each_name_is_public_in_the_module_that_defines_it(module: str) -> None:
    home = importlib.import_module(module)
    for name in gems._MODULES[module]:
        assert name in home.__all__
        assert getattr(gems, name) is getattr(home, name)


def test_the_installed_version_is_the_package_s() -> None:
    assert importlib.metadata.version("gems-graph") == gems.__version__
