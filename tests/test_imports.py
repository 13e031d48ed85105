"""What `import loe_field` must not bring along."""

import subprocess
import sys

HEAVY = "nerfstudio triton tyro rich matplotlib skimage scipy tifffile OpenImageIO PIL safetensors".split()  # noqa: SIM905


def imported_by(statement):
    code = f"import sys; {statement}; print(' '.join(sorted(sys.modules)))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_layer_is_useful_without_the_host():
    modules = imported_by("import loe_field, loe_field.network.optim, torch; assert not torch.cuda.is_initialized()")
    assert "loe_field.network.layers" in modules
    for package in HEAVY:
        assert package not in modules, package


def test_only_the_rooms_of_the_host_import_it():
    """Layer, kernels and optimizer stand on torch alone; one of the baselines asks for a part of the host."""
    from pathlib import Path

    import loe_field

    root = Path(loe_field.__file__).parent
    with_host = {p.relative_to(root).parts[0] for p in root.rglob("*.py") if "nerfstudio" in imports_of(p)}
    rooms = {"adapter", "baselines", "image", "nerf", "runs", "training"}
    assert with_host <= rooms | {"methods.py", "entry_points.py", "train.py"}


def test_the_baselines_need_the_host_only_for_its_encoding():
    modules = imported_by("import loe_field.baselines as b; b.build('hash-grid', dim=2, out_features=1)")
    assert "nerfstudio" not in modules
    assert "loe_field.baselines" not in imported_by("import loe_field")


def imports_of(path):
    import ast

    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names
