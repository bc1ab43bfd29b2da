// The only inline PTX of the project: one small function per instruction. Words of the PTX manual
// are kept in names. tests/cuda_emulator/include/common/ptx.cuh has the same functions for the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastdl::ptx {

__device__ __forceinline__ int lane_id() {
  int lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// Do nothing, but the compiler must take the value for a new one.
__device__ __forceinline__ void opaque(uint32_t& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ void opaque(float& value) { asm volatile("" : "+f"(value)); }
__device__ __forceinline__ void opaque(double& value) { asm volatile("" : "+d"(value)); }

namespace detail {

// The address of shared memory as instructions take it
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

}  // namespace detail

// ---- asynchronous copies: both addresses multiples of 16; past the L1 cache

__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(detail::shared_address(shared)),
               "l"(global)
               : "memory");
}

// Zeros instead of what `global` has, if that is not valid: it is not read then.
__device__ __forceinline__ void cp_async_16_or_zero(void* shared, const void* global, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::shared_address(shared)),
      "l"(global), "r"(valid ? 16 : 0)
      : "memory");
}

// The thread's copies since the last call are a group.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all of the thread's groups but the last N. Other threads need a barrier after it.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrices in the registers of a warp; all lanes must call

// Loads 8 x 8 matrices of 16-bit elements. Lane 8 i + j gives the address of row j of matrix i, a
// multiple of 16, and gets of each matrix row lane / 4, elements 2 (lane % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(detail::shared_address(shared))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(detail::shared_address(shared))
               : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(detail::shared_address(shared))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(detail::shared_address(shared))
               : "memory");
}

// Transposes an 8 x 8 matrix of 16-bit elements that lies in the lanes as ldmatrix leaves it.
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// d (16 x 8) += a (16 x 16, rows) b (16 x 8, columns), in float. With g = lane / 4, t = lane % 4:
//   a: rows g, g + 8 of columns 2t, 2t + 1, then the same rows of columns 2t + 8, 2t + 9
//   b: rows 2t, 2t + 1, then 2t + 8, 2t + 9 of column g
//   d: columns 2t, 2t + 1 of row g, then of row g + 8
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d (16 x 8) += a (16 x 8) b (8 x 8), elements from to_tf32().
//   a: rows g, g + 8 of column t, then of column t + 4
//   b: rows t, then t + 4 of column g
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// To nearest, ties away from zero: 10 bits of mantissa in a float.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

// 2^x within 2 units in the last place; denormal numbers are zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// ---- barriers 1 to 15 (0 is __syncthreads) for `threads` threads: whole warps of the block

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts the thread, which goes on without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Hopper only: clusters. On earlier architectures these compile, and must not be called.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define FASTDL_HOPPER(...) __trap()
#else
#define FASTDL_HOPPER(...) asm volatile(__VA_ARGS__)
#endif

// Arriving makes the thread's writes visible to those that wait.
__device__ __forceinline__ void cluster_arrive() {
  FASTDL_HOPPER("barrier.cluster.arrive.release.aligned;" :: : "memory");
}

__device__ __forceinline__ void cluster_wait() {
  FASTDL_HOPPER("barrier.cluster.wait.acquire.aligned;" :: : "memory");
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// Of the block in its cluster
__device__ __forceinline__ int cluster_rank() {
  int rank = 0;
  FASTDL_HOPPER("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Blocks of the cluster
__device__ __forceinline__ int cluster_size() {
  int size = 1;
  FASTDL_HOPPER("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// Where the same variable of the cluster's block `rank` is
template <class T>
__device__ __forceinline__ T* map_shared(T* shared, int rank) {
  T* mapped = nullptr;
  FASTDL_HOPPER("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(shared), "r"(rank));
  return mapped;
}

#undef FASTDL_HOPPER

}  // namespace fastdl::ptx
