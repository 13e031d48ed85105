"""What the package imports is what pyproject.toml declares, at floors that were tried."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import loe_field

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(loe_field.__file__).parent
PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
OPTIONAL = {"triton"}
"""Imported where it is there: torch brings it along on Linux."""


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements):
    return {normalized(re.match(r"[\w.-]+", line)[0]) for line in requirements}


def imported(node):
    """Top-level names of the packages that a file imports, but for those of a type checker alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module.split(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def distributions_imported():
    known = packages_distributions() | {"tomli": ["tomli"]}
    modules = {name for path in ROOT.rglob("*.py") for name in imported(ast.parse(path.read_text()))}
    modules -= sys.stdlib_module_names | {"loe_field", "tomllib"}
    return {name: normalized(known[name][0]) if name in known else name for name in modules}


def test_everything_imported_is_declared_and_nothing_else():
    always, export = names_of(PROJECT["dependencies"]), names_of(PROJECT["optional-dependencies"]["export"])
    packages = set(distributions_imported().values()) - OPTIONAL
    assert packages - export - always == set()
    assert always - packages == set()
    assert export - packages == {"onnxscript"}  # torch's ONNX exporter asks for it


def test_the_floors_are_the_versions_that_were_tried():
    lowest = dict(
        line.split("==")
        for line in (ROOT.parent / "tests" / "constraints-lowest.txt").read_text().split()
        if "==" in line
    )
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["export"]:
        name, floor = re.match(r"([\w.-]+)>=([\w.]+)", line).groups()
        if name != "tomli":
            assert lowest[name] == floor, line
