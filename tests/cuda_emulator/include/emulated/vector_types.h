// The vector types of CUDA, with its alignments, and dim3.
#pragma once

namespace fastdl::emulator::types {

template <class T, int N>
constexpr int alignment = N == 3               ? sizeof(T)
                          : sizeof(T) * N > 16 ? 16
                                               : sizeof(T) * N;

}  // namespace fastdl::emulator::types

#define FASTDL_VECTOR_TYPES(name, T)                                                  \
  struct alignas(fastdl::emulator::types::alignment<T, 1>) name##1 { T x; };          \
  struct alignas(fastdl::emulator::types::alignment<T, 2>) name##2 { T x, y; };       \
  struct name##3 { T x, y, z; };                                                      \
  struct alignas(fastdl::emulator::types::alignment<T, 4>) name##4 { T x, y, z, w; }; \
  constexpr name##1 make_##name##1(T x) { return {x}; }                               \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                       \
  constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }               \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

FASTDL_VECTOR_TYPES(char, signed char)
FASTDL_VECTOR_TYPES(uchar, unsigned char)
FASTDL_VECTOR_TYPES(short, short)
FASTDL_VECTOR_TYPES(ushort, unsigned short)
FASTDL_VECTOR_TYPES(int, int)
FASTDL_VECTOR_TYPES(uint, unsigned)
FASTDL_VECTOR_TYPES(longlong, long long)
FASTDL_VECTOR_TYPES(ulonglong, unsigned long long)
FASTDL_VECTOR_TYPES(float, float)
FASTDL_VECTOR_TYPES(double, double)
#undef FASTDL_VECTOR_TYPES

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
