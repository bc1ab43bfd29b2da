// Stands in for csrc/common/ptx.cuh: the same functions, carried out by the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "emulated/hooks.h"

namespace fastdl::ptx {

__device__ __forceinline__ int lane_id() { return emulator::lane_index(); }
__device__ __forceinline__ void opaque(uint32_t&) {}
__device__ __forceinline__ void opaque(float&) {}
__device__ __forceinline__ void opaque(double&) {}

__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  emulator::copy_async(shared, global, true);
}
__device__ __forceinline__ void cp_async_16_or_zero(void* shared, const void* global, bool valid) {
  emulator::copy_async(shared, global, valid);
}
__device__ __forceinline__ void cp_async_commit() { emulator::commit_copies(); }
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  emulator::wait_for_copies(N);
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  emulator::load_matrices(r, 4, false, shared);
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared) {
  emulator::load_matrices(r, 2, false, shared);
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  emulator::load_matrices(r, 4, true, shared);
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared) {
  emulator::load_matrices(r, 2, true, shared);
}

__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t word) {
  // Elements 2t and 2t + 1 of row g are those of rows 2t and 2t + 1 in column g.
  const int lane = lane_id(), column = lane / 4, row = lane % 4 * 2;
  const uint32_t first = __shfl_sync(0xffffffffu, word, row * 4 + column / 2);
  const uint32_t second = __shfl_sync(0xffffffffu, word, row * 4 + 4 + column / 2);
  return column % 2 == 0 ? (first & 0xffff) | second << 16 : first >> 16 | (second & 0xffff0000);
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  emulator::multiply_matrices(emulator::MatrixType::kBFloat16, d, a, b);
}
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  emulator::multiply_matrices(emulator::MatrixType::kFloat16, d, a, b);
}
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  emulator::multiply_matrices(emulator::MatrixType::kTf32, d, a, b);
}
__device__ __forceinline__ uint32_t to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (std::isnan(x)) return 0x7fffffff;
  return std::isinf(x) ? bits : (bits + 0x1000) & 0xffffe000;  // ties away from zero
}

__device__ __forceinline__ float exp2_approx(float x) {
  const float flushed = std::fabs(x) < 0x1p-126f ? 0.0f : x;
  const float power = ::exp2f(flushed);
  return power < 0x1p-126f ? 0.0f : power;
}

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  emulator::named_barrier(id, threads, true);
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  emulator::named_barrier(id, threads, false);
}

// ---- Hopper only

__device__ __forceinline__ void cluster_arrive() { emulator::cluster_arrive(); }
__device__ __forceinline__ void cluster_wait() { emulator::cluster_wait(); }
__device__ __forceinline__ void cluster_sync() {
  emulator::cluster_arrive();
  emulator::cluster_wait();
}
__device__ __forceinline__ int cluster_rank() { return emulator::cluster_rank(); }
__device__ __forceinline__ int cluster_size() { return emulator::cluster_size(); }
template <class T>
__device__ __forceinline__ T* map_shared(T* shared, int rank) {
  return static_cast<T*>(emulator::map_shared(shared, rank));
}

}  // namespace fastdl::ptx
