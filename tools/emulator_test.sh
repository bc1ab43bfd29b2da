#!/usr/bin/env bash
# Runs the CUDA kernels without a GPU: the emulator's own tests, the kernels on the cases of the
# native tests, and the tests of torch's ops on an extension whose kernels run in the emulator.
# Usage: emulator_test.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
if [[ $(uname -m) != x86_64 || $(c++ --version) == *clang* ]]; then
  echo "the CUDA emulator needs g++ on x86-64: its tests are left out"
  exit 0
fi
build=build/$("$python" -c 'import sys; print(sys.implementation.cache_tag)')

cmake -S . -B "$build" -DFASTDL_EMULATOR_TESTS=ON > /dev/null
cmake --build "$build" --target fastdl_emulator
"$build/fastdl_cuda_emulator_tests"
"$build/fastdl_emulated_kernel_tests"

# The package, but with the other extension; the tests import it under their own names. Left out are
# tests of what only the CPU does, and one case whose bound hangs on the last bit of a float64 sum.
cp -r fastdl/*.py fastdl/ops fastdl/optim "$build/python/fastdl/"
cp "$build/_build_info.py" "$build/python/fastdl/"
ln -sfn "$PWD/tests" "$build/python/tests"
"$python" -c 'import sys, pytest; sys.path.remove(""); sys.exit(pytest.main(sys.argv[1:]))' \
  --import-mode=importlib -o "pythonpath=$build/python" -q \
  -m "not cpu_only" -k "not larger_than_the_cache" \
  --deselect "tests/test_softmax_values.py::test_special_values_in_rows_are_treated_like_torch[float64-softmax]" \
  tests/test_autograd.py tests/test_layer_norm.py tests/test_layer_norm_values.py \
  tests/test_registered_ops.py tests/test_rms_norm.py tests/test_softmax.py \
  tests/test_softmax_values.py
