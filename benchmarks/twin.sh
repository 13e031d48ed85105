#!/usr/bin/env bash
# A twin of a bare GPU machine in the folder DIR, for rehearsals without a GPU: a venv of Python 3.12 with what such a
# machine has (PyTorch 2.11 for CUDA 13, Triton 3.6, numpy 2.5) and without what it lacks: nerfstudio, OpenImageIO,
# imagecodecs, tyro. Takes 6 GB and some minutes.
#   benchmarks/twin.sh DIR          PYTHON names another Python 3.12
set -euo pipefail
twin=${1:?usage: benchmarks/twin.sh DIR}
python=${PYTHON:-}
for candidate in python3.12 ~/.pyenv/versions/3.12*/bin/python3; do
    [ -z "$python" ] && command -v "$candidate" >/dev/null && "$candidate" -c '' 2>/dev/null && python=$candidate
done
[ -n "$python" ] || { echo "error: no Python 3.12: set PYTHON to one" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' ||
    { echo "error: $python is not Python 3.12" >&2; exit 1; }

"$python" -m venv "$twin"
"$twin/bin/python" -m pip install --quiet --no-cache-dir --only-binary=:all: \
    torch==2.11.0 torchvision==0.26.0 triton==3.6.0 'numpy==2.5.*' \
    pip setuptools wheel build ninja einops attrs joblib jaxtyping \
    scipy scikit-image scikit-learn matplotlib pillow imageio opencv-python-headless tifffile \
    torchmetrics tensorboard psutil safetensors pyyaml rich typer requests h5py pandas tqdm cloudpickle msgpack nanobind \
    protobuf onnx onnxruntime onnxscript aiohttp nvidia-ml-py \
    pytest pytest-xdist pytest-timeout hypothesis
"$twin/bin/python" - <<'PYTHON'
import importlib.util
import sys

import numpy
import torch
import triton

print("Python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__, "numpy", numpy.__version__)
surplus = [name for name in ("nerfstudio", "OpenImageIO", "imagecodecs", "tyro") if importlib.util.find_spec(name)]
if surplus:
    sys.exit(f"error: the twin has {', '.join(surplus)}, which the machine lacks")
PYTHON
