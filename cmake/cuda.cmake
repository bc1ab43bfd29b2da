# Decides whether CUDA is built, and says so. Sets
#   cuda_absence         why it is not built, or empty
#   cuda_version         of the toolkit, empty when not built
#   cuda_architectures   what it is built for, as CMake writes it: 80-real;90a-virtual
#   cuda_code            the same as nvcc writes it: sm_80;compute_90a
# FASTDL_CUDA=0 leaves it out, FASTDL_CUDA=1 makes its absence an error.
set(cuda_absence "")
set(cuda_version "")
set(cuda_architectures "")
set(cuda_code "")

find_program(FASTDL_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
             PATH_SUFFIXES bin)
if("$ENV{FASTDL_CUDA}" STREQUAL "0")
  set(cuda_absence "FASTDL_CUDA=0 was set")
elseif(torch_cuda STREQUAL "")
  set(cuda_absence "the installed torch ${torch_version} is without CUDA")
elseif(NOT FASTDL_NVCC)
  set(cuda_absence "nvcc was found neither on PATH nor in CUDA_HOME")
else()
  execute_process(COMMAND ${FASTDL_NVCC} --version OUTPUT_VARIABLE nvcc_says)
  string(REGEX MATCH "release ([0-9]+)\\.[0-9]+" nvcc_says "${nvcc_says}")
  if(NOT torch_cuda MATCHES "^${CMAKE_MATCH_1}\\.")  # one process cannot have two CUDA runtimes
    set(cuda_absence "nvcc is of ${nvcc_says}, but torch was built with CUDA ${torch_cuda}")
  endif()
endif()
if(cuda_absence)
  if("$ENV{FASTDL_CUDA}" STREQUAL "1")
    message(FATAL_ERROR "FASTDL_CUDA=1 was set, but CUDA cannot be built: ${cuda_absence}")
  endif()
  message(STATUS "fastdl: CUDA is not built (${cuda_absence})")
  return()
endif()

# Appends one architecture such as 8.0 or 9.0a+PTX. sm_90 is always built as sm_90a, which runs on
# the same GPUs and has the Hopper instructions.
function(add_architecture text)
  if(NOT text MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+PTX)?$")
    message(FATAL_ERROR
      "TORCH_CUDA_ARCH_LIST: cannot read \"${text}\", write it like \"8.0;9.0a+PTX\"")
  endif()
  set(number ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
  set(suffix "${CMAKE_MATCH_3}")
  set(ptx "${CMAKE_MATCH_4}")
  if(number LESS 80)
    message(STATUS "fastdl: no kernels for compute capability ${text}, 8.0 is the lowest")
    return()
  endif()
  set(virtual ${number}${suffix}-virtual)
  if(number EQUAL 90)
    set(suffix a)
  endif()
  list(APPEND cuda_architectures ${number}${suffix}-real)
  if(ptx)
    list(APPEND cuda_architectures ${virtual})
  endif()
  set(cuda_architectures ${cuda_architectures} PARENT_SCOPE)
endfunction()

if(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  string(REGEX REPLACE "[ ;]+" ";" wanted "$ENV{TORCH_CUDA_ARCH_LIST}")
else()
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE wanted RESULT_VARIABLE failed ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    set(wanted "")
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" wanted "${wanted}")
endif()
foreach(architecture IN LISTS wanted)
  add_architecture(${architecture})
endforeach()
if(NOT cuda_architectures)
  set(cuda_architectures 80-real 90a-real)
endif()
list(REMOVE_DUPLICATES cuda_architectures)

set(CMAKE_CUDA_COMPILER ${FASTDL_NVCC})
set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # the one that torch has loaded
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(cuda_version ${CUDAToolkit_VERSION_MAJOR}.${CUDAToolkit_VERSION_MINOR})
list(TRANSFORM cuda_architectures REPLACE "(.*)-real" "sm_\\1" OUTPUT_VARIABLE cuda_code)
list(TRANSFORM cuda_code REPLACE "(.*)-virtual" "compute_\\1")
message(STATUS "fastdl: CUDA ${cuda_version} is built for ${cuda_code}")
