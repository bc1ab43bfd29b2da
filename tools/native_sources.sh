#!/usr/bin/env bash
# Prints the C++ and CUDA files that clang-format looks after.
find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort
