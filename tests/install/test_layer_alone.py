"""The layer without its dependencies: torch, numpy, safetensors and this package's own files are enough."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

CODE = """
import sys
sys.path = [path for path in sys.path if "site-packages" not in path] + sys.argv[1:]
import torch
import loe_field
from loe_field import LoEMLP, load_field, save_field
from loe_field.network.optim import Muon

assert loe_field.__file__.startswith(sys.argv[1]), loe_field.__file__
torch.manual_seed(0)
coords = torch.rand(10_000, 2)
targets = torch.sin(20 * coords[:, :1]) * torch.cos(13 * coords[:, 1:])
field = LoEMLP(dim=2, out_features=1, num_layers=5, layer_width=32, num_frequencies=4)
groups = field.param_groups()
optimizers = [Muon(groups["experts"], lr=0.01), torch.optim.Adam(groups["fields"], lr=0.003)]
losses = []
for _ in range(60):
    loss = torch.nn.functional.mse_loss(field(coords), targets)
    losses.append(loss.item())
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
assert losses[-1] < losses[0] / 4, losses
save_field(field, "field.safetensors")
assert torch.equal(load_field("field.safetensors")(coords), field(coords))
for package in ("nerfstudio", "tyro", "rich", "PIL", "skimage", "scipy", "OpenImageIO", "matplotlib", "psutil"):
    try:
        __import__(package)
    except ImportError:
        continue
    raise AssertionError(f"{package} can be imported: nothing is shown")
print(field.resolved_implementation)
"""


def needs_of(name, found):
    """The distributions that a distribution needs, itself included, without extras."""
    try:
        it = distribution(name)
    except PackageNotFoundError:
        return found
    if (key := re.sub(r"[-_.]+", "-", name).lower()) not in found:
        found[key] = it
        for line in it.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needs_of(requirement.name, found)
    return found


def test_the_layer_alone(wheel, tmp_path):
    alone, links, work = (tmp_path / name for name in ("alone", "links", "work"))
    for folder in (links, work):
        folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", alone, wheel]
    subprocess.run(install, check=True)
    found = {}
    for name in ("torch", "numpy", "safetensors"):
        needs_of(name, found)
    for it in found.values():
        for name in {file.parts[0] for file in it.files} - {"..", "__pycache__"}:
            if not (links / name).exists():
                (links / name).symlink_to(it.locate_file(name))
    done = subprocess.run(
        [sys.executable, "-I", "-c", CODE, alone, links], cwd=work, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("cpu", "torch", "triton")
