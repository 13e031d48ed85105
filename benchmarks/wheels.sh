#!/usr/bin/env bash
# The wheels that ns-train and this plugin take on a bare GPU machine without a network: what benchmarks/twin.sh lacks,
# for Python 3.12 on x86-64, into the folder DIR; the plugin's own too, for its metadata: ns-train finds methods by it.
# 30 MB. imagecodecs (28 MB) is left out: only some TIFFs take it, and the reader says so. benchmarks/gpu.sh installs them.
#   benchmarks/wheels.sh .whl
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:?usage: benchmarks/wheels.sh DIR}
python=${PYTHON:-python3}
mkdir -p "$dir"
rm -f "$dir"/*.whl # two versions of one package stop the install

platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 39 35 34 31 28 27 24 17; do # pip takes the named ones and no others
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest "$dir" \
    nerfstudio==1.1.5 tyro==1.0.17 viser==0.2.7 nerfacc==0.5.2 gsplat==1.4.0 'openimageio>=3.0.3.1,<3.1' \
    appdirs dill docstring_parser fpsample jaxtyping mediapy msgspec multiprocess pathos pox ppft pyquaternion PySocks \
    pytorch-msssim rawpy splines tensorly typeguard websockets

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git archive HEAD | tar -x -C "$copy" # of the sources as committed, and no build folder beside them
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$dir" "$copy"
du -sh "$dir"
