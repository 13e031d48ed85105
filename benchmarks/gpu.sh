#!/usr/bin/env bash
# Everything that is to be known on a GPU, in one go (about 15 minutes): correctness first, then how the kernels are best
# cut, layers, networks and whole steps beside the baselines. Tables are printed, rows appended to results/*.csv.
#   benchmarks/gpu.sh [results-folder]
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

$python -m pytest -q -m gpu -p no:cacheprovider \
    tests/network/test_kernels.py tests/network/test_layers.py tests/training/test_step.py tests/nerf/test_capture.py

for precision in bf16 tf32; do
    $python -m benchmarks.kernel_blocks --precision $precision | tail -n 12
done
for precision in bf16 tf32 fp32; do
    $python -m benchmarks.layer --precision $precision --points 16384 262144 --tile-size 2 8 --output "$results/layer.csv"
    $python -m benchmarks.step --precision $precision --points 16384 262144 --output "$results/step.csv"
    $python -m benchmarks.step --precision $precision --what step --points 8192 262144 --output "$results/step.csv"
done
$python -m benchmarks.step --precision bf16 --dim 3 --points 262144 --output "$results/step.csv"
$python -m benchmarks.step --precision bf16 --tile-size 2 4 8 --points 262144 --output "$results/step.csv"
if $python -c 'import nerfstudio' 2>/dev/null; then
    $python -m benchmarks.fit --target-psnr 39.05 --seeds 42 43 44 --output "$results/fit.csv"
    $python -m benchmarks.fit --implementations auto torch --seeds 42 --output "$results/fit.csv"
fi
