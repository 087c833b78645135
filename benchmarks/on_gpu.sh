#!/usr/bin/env bash
# Everything to be done on a machine with a GPU, in one call: build, the CUDA tests, compute-sanitizer,
# the benchmarks. usage: benchmarks/on_gpu.sh RESULTS_FOLDER
# Needs a python3 with a CUDA build of torch, nvcc, cmake, ninja, and this package's build and test
# requirements (scikit-build-core, pybind11, pytest, hypothesis, scipy, typer, rich, safetensors).
# It changes nothing outside RESULTS_FOLDER and a build folder of its own.
set -uo pipefail
cd "$(dirname "$0")/.."
results=$(mkdir -p "$1" && cd "$1" && pwd)
site=$(mktemp -d)
failed=0
step() { # NAME COMMAND...: runs it, keeps its output, goes on whatever comes
  local name=$1 start=$SECONDS
  shift
  if "$@" >"$results/$name.log" 2>&1; then echo "passed $name ($((SECONDS - start)) s)"; else
    echo "FAILED $name ($((SECONDS - start)) s)"
    tail -n 40 "$results/$name.log"
    failed=1
  fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
export FULLSPECTRUM_CUDA=ON CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=native
step build python3 -m pip install --no-build-isolation --no-deps --no-index --target "$site" .
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} REQUIRE_GPU=1
step info python3 -P -c 'from fullspectrum_ext.cli import main; main()' info
step tests timeout 240 python3 -P -m pytest -q -m cuda -p no:cacheprovider python_tests
for tool in memcheck racecheck; do
  step "sanitizer-$tool" timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    python3 -P -m pytest -q -m cuda -x -p no:cacheprovider python_tests/ops \
    -k "reference or small_matrices or subgraphs_of_several or iterates_to_the_right"
done
step bench-sparse_linear timeout 240 python3 benchmarks/bench_sparse_linear.py --device cuda \
  --sizes 300x784 1024x1024 4096x4096 --batches 128 512 --sparsities 0.8 0.9 0.95 0.98 0.99 --output "$results/sparse_linear.json"
step bench-sparse_conv2d timeout 240 python3 benchmarks/bench_sparse_conv2d.py --device cuda --output "$results/sparse_conv2d.json"
step bench-spectrum timeout 240 python3 benchmarks/bench_spectrum.py --device cuda --output "$results/spectrum.json"
step bench-dynamic timeout 120 python3 benchmarks/bench_dynamic.py --device cuda --output "$results/dynamic.json"
exit $failed
