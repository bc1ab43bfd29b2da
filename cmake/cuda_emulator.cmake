# The CUDA emulator of tests/cuda_emulator, the CUDA kernels compiled for it, and its tests. Needs
# the list cuda_kernels, and neither CUDA nor torch. Gives
#   fastdl_cuda_emulator          the emulator: link it to what add_emulated_cuda() compiles
#   add_emulated_cuda(target ..)  an object library of CUDA sources for the emulator
#   fastdl_emulated_kernels       that of cuda_kernels
#   fastdl_cuda_emulator_tests    the tests of the emulator
#   fastdl_emulated_kernel_tests  the native tests' cases on the emulated kernels
#   _C_emulated                   an extension for which CPU tensors are on the emulated GPU
#   fastdl_emulator               all three programs
# None of them is part of a plain build.
find_package(Threads REQUIRED)
set(cuda_emulator ${CMAKE_CURRENT_LIST_DIR}/../tests/cuda_emulator)
cmake_path(NORMAL_PATH cuda_emulator)

# The emulator switches stacks and has its own sanitizer: none of the compiler's, whatever is set.
# DWARF 4, as addr2line takes some lines of inlined functions for another file's with version 5.
function(set_emulator_options target)
  set_target_properties(${target} PROPERTIES COMPILE_OPTIONS "" LINK_OPTIONS "")
  target_compile_features(${target} PRIVATE cxx_std_20)
  target_compile_options(${target} PRIVATE -g1 -gdwarf-4 -Wall -Wextra
                                           -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=)
  target_include_directories(${target} PRIVATE ${cuda_emulator} ${cuda_emulator}/include)
endfunction()

file(GLOB emulator_runtime CONFIGURE_DEPENDS ${cuda_emulator}/runtime/*.cpp)
add_library(fastdl_cuda_emulator STATIC EXCLUDE_FROM_ALL ${emulator_runtime})
set_emulator_options(fastdl_cuda_emulator)
target_compile_options(fastdl_cuda_emulator PRIVATE -O2)
target_link_libraries(fastdl_cuda_emulator PUBLIC Threads::Threads)

# Every source is included by a C++ file, so that CUDA may be a language of this build or not.
function(add_emulated_cuda target)
  set(sources "")
  foreach(source IN LISTS ARGN)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${CMAKE_SOURCE_DIR} NORMALIZE)
    cmake_path(GET source FILENAME name)
    set(wrapper ${CMAKE_BINARY_DIR}/emulated/${target}/${name}.cpp)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${source}\"\n")
    list(APPEND sources ${wrapper})
  endforeach()
  add_library(${target} OBJECT EXCLUDE_FROM_ALL ${sources})
  set_emulator_options(${target})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/csrc
                                               ${CMAKE_SOURCE_DIR}/tests/native)
  target_compile_definitions(${target} PRIVATE FASTDL_WITH_CUDA)
  # The sanitizers call the emulator before memory accesses, and at misaligned ones: it has the
  # functions, their libraries are not linked. As in CUDA, types may alias. The shared memory is
  # thread_local and needs no initialization.
  target_compile_options(${target} PRIVATE
    -O1 -fsanitize=thread,alignment --param=tsan-instrument-func-entry-exit=0
    --param=tsan-distinguish-volatile=1 -fno-strict-aliasing -fno-extern-tls-init
    -Wno-unknown-pragmas)
endfunction()

add_emulated_cuda(fastdl_emulated_kernels ${cuda_kernels})

file(GLOB emulator_tests CONFIGURE_DEPENDS ${cuda_emulator}/test_*.cu)
add_emulated_cuda(fastdl_emulator_test_kernels ${emulator_tests})
add_executable(fastdl_cuda_emulator_tests EXCLUDE_FROM_ALL ${cuda_emulator}/main.cpp)
set_emulator_options(fastdl_cuda_emulator_tests)
target_include_directories(fastdl_cuda_emulator_tests PRIVATE ${CMAKE_SOURCE_DIR}/tests/native)
target_link_libraries(fastdl_cuda_emulator_tests PRIVATE
  fastdl_emulator_test_kernels fastdl_emulated_kernels fastdl_cuda_emulator)

# ---- the project's kernels: on the cases of the native tests, and behind torch's ops
add_executable(fastdl_emulated_kernel_tests EXCLUDE_FROM_ALL
  ${cuda_emulator}/kernels_main.cpp
  ${cuda_emulator}/test_conv_kernels.cpp
  tests/native/test_activation.cpp
  tests/native/test_attention.cpp
  tests/native/test_batch_norm.cpp
  tests/native/test_cross_entropy.cpp
  tests/native/test_dropout_add_layer_norm.cpp
  tests/native/test_elementwise_loss.cpp
  tests/native/test_embedding.cpp
  tests/native/test_grad_norm.cpp
  tests/native/test_group_norm.cpp
  tests/native/test_layer_norm.cpp
  tests/native/test_optimizer.cpp
  tests/native/test_pool.cpp
  tests/native/test_softmax.cpp)
set_emulator_options(fastdl_emulated_kernel_tests)
target_compile_options(fastdl_emulated_kernel_tests PRIVATE -O2)
target_include_directories(fastdl_emulated_kernel_tests PRIVATE csrc tests/native)
target_link_libraries(fastdl_emulated_kernel_tests PRIVATE
  fastdl_emulated_kernels fastdl_cuda_emulator)

add_extension(_C_emulated "${cpu_kernel_targets}")
target_precompile_headers(_C_emulated REUSE_FROM _C)
target_include_directories(_C_emulated BEFORE PRIVATE ${cuda_emulator}/include ${cuda_emulator})
target_link_libraries(_C_emulated PRIVATE fastdl_emulated_kernels fastdl_cuda_emulator)
set_target_properties(_C_emulated PROPERTIES EXCLUDE_FROM_ALL ON
  OUTPUT_NAME _C LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/python/fastdl)

add_custom_target(fastdl_emulator
  DEPENDS fastdl_cuda_emulator_tests fastdl_emulated_kernel_tests _C_emulated)
