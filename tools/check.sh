#!/usr/bin/env bash
# Runs every check of the source and of the built extension; fails at the end if any did.
cd "$(dirname "$0")/.." || exit 1
failed=()

check() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

check "ruff" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
# shellcheck disable=SC2046  (one word a file)
check "clang-format" clang-format --dry-run -Werror $(bash tools/native_sources.sh)
check "file sizes" python tools/check_file_sizes.py
check "layers" python tools/check_layers.py
check "ptx stand-in" python tests/cuda_emulator/check_ptx_signatures.py
check "stubs" python tools/check_stubs.py
check "weak symbols" python tools/check_weak_symbols.py build/cpython-*

if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "all checks passed"
