"""Which module may import which: down alone, as CONTRIBUTING.md says."""

import ast

import pytest
from conftest import ROOT

STAGES = ("preprocess", "meta_teacher", "meta_teacher_eval", "meta_distill")
FLOORS = {  # of a package or module, the longest name that fits: imports go to a lower one or stay
    "util": 0,
    "data.wordpiece": 1,
    "tokenization": 2,
    "config": 2,
    "data": 3,
    "modeling": 4,
    "scripts": 5,
    **dict.fromkeys(STAGES, 5),
}
UPWARDS = {
    ("data.prepare.augment", "modeling.snapshots.best"),
    ("data.prepare.augment", "modeling.snapshots.weights"),
}
MODULES = [path for path in ROOT.glob("*.py") if path.stem in FLOORS]
MODULES += [path for name in ("data", "modeling", "scripts") for path in ROOT.joinpath(name).rglob("*.py")]


def floor(module):
    """The floor of a module of ours; None: it is a library."""
    names = [name for name in FLOORS if f"{module}.".startswith(f"{name}.")]
    return FLOORS[max(names, key=len)] if names else None


def imports(path):
    """The names of the modules that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path):
    """No module imports one of a higher floor, and none a stage."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for other in imports(path):
        if floor(other) is not None and (module, other) not in UPWARDS:
            assert floor(other) <= floor(module) and other not in STAGES, f"{module} imports {other}"


def test_every_exception_is_still_needed():
    for module, other in UPWARDS:
        assert other in imports(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
