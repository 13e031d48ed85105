"""The map of the rooms: an import goes down, never up, and never in a circle, wherever in a file it stands."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import loe_field

ROOT = Path(loe_field.__file__).parent
FLOORS = (
    "errors stopping version words",
    "files typed",
    "network",
    "baselines",
    "pictures",
    "signals",
    "export",
    "training",
    "adapter",
    "image nerf",
    "render",
    "runs",
    "methods",
    "fit entry_points train",
    "__init__",
    "cli",
)
"""From the ground up; rooms of one floor do not know each other."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def module_name(path):
    parts = ["loe_field", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports_of(path):
    """The package's modules that a file imports, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES} - {module_name(path)}


def room_of(name):
    return [*name.split("."), "__init__"][1]


def test_every_room_is_on_the_map():
    assert {room_of(name) for name in MODULES} == FLOOR.keys()


def test_imports_go_down():
    up = [
        f"{name} -> {other}"
        for name, path in MODULES.items()
        for other in imports_of(path)
        if room_of(name) != room_of(other) and FLOOR[room_of(other)] >= FLOOR[room_of(name)]
    ]
    assert up == []


def test_no_circle():
    graph = {name: imports_of(path) for name, path in MODULES.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_heart_knows_torch_and_errors_alone():
    for name, path in MODULES.items():
        if room_of(name) == "network":
            others = {room_of(other) for other in imports_of(path)} - {"network"}
            assert others <= {"errors"}, name
