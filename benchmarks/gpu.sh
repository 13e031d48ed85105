#!/usr/bin/env bash
# A visit to a GPU, for a few minutes: what is run, in which order and for how long stands in benchmarks/visit.py.
#   OUT=FOLDER benchmarks/gpu.sh a             7 minutes: tests, the full camera's step, fits of pictures
#   OUT=FOLDER benchmarks/gpu.sh b [SECONDS]   9 minutes: scenes, SECONDS of training each (120); how kernels are cut
#   OUT=FOLDER benchmarks/gpu.sh c             what comes next: layer, large pictures, many pictures
#   OUT=FOLDER benchmarks/gpu.sh d             5 minutes: what bias tiles and feature grids cost
# More options: --rehearse, --limit SECONDS, --only PART ... . All results lie in FOLDER, 8 files at most.
# Wheels in .whl (benchmarks/wheels.sh) are installed into outputs/site first, once.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:?OUT must name a folder for the results}
python=${PYTHON:-python3}
site=$PWD/outputs/site
if compgen -G '.whl/*.whl' >/dev/null && [ ! -e "$site/installed" ]; then
    # All in one command: a second one would replace site/bin.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl &&
        touch "$site/installed" || echo "the wheels of .whl could not be installed: without ns-train"
    rm -rf "$site/loe_field" # the checkout's own is run; the wheel's metadata stay
fi
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH
exec "$python" -m benchmarks.visit "$@"
