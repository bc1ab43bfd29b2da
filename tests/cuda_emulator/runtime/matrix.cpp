// ldmatrix and mma.sync: the lanes' registers as matrices, as PTX lays them out.
#include <bit>
#include <cstring>

#include "block.h"
#include "emulated/half_types.h"
#include "instrumentation.h"

namespace fastdl::emulator {
namespace {

struct LoadLane {
  uint32_t* registers;
  const char* row;  // of matrix lane / 8, row lane % 8
  int matrices;
  bool transposed;
  const void* pc;
};

void finish_load(Block&, Warp&, Collective& all) {
  const auto& first = *static_cast<LoadLane*>(all.brought[0]);
  for (int matrix = 0; matrix < first.matrices; ++matrix) {
    uint16_t values[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(values[row], static_cast<LoadLane*>(all.brought[8 * matrix + row])->row, 16);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int row = lane / 4, col = lane % 4 * 2;
      const uint32_t low = first.transposed ? values[col][row] : values[row][col];
      const uint32_t high = first.transposed ? values[col + 1][row] : values[row][col + 1];
      static_cast<LoadLane*>(all.brought[lane])->registers[matrix] = low | high << 16;
    }
  }
}

struct MultiplyLane {
  MatrixType type;
  float* d;
  const uint32_t *a, *b;
};

float low_half(MatrixType type, uint32_t bits) {
  const uint16_t half = static_cast<uint16_t>(bits);
  return type == MatrixType::kFloat16 ? half_to_float(half) : bfloat16_to_float(half);
}

// d (16 x 8) += a (16 x K) b (K x 8), K = 16 or for tf32 8. Rows and columns of the lanes'
// registers are those of the PTX manual's "Matrix Fragments for mma.m16n8k16" and "m16n8k8".
void finish_multiply(Block&, Warp&, Collective& all) {
  float a[16][16], b[16][8], d[16][8];
  const MatrixType type = static_cast<MultiplyLane*>(all.brought[0])->type;
  const bool tf32 = type == MatrixType::kTf32;
  const int depth = tf32 ? 8 : 16;
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& mine = *static_cast<MultiplyLane*>(all.brought[lane]);
    const int group = lane / 4, place = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8;
      if (tf32) {  // the low 13 bits are not used
        a[row][place + i / 2 * 4] = std::bit_cast<float>(mine.a[i] & 0xffffe000);
      } else {
        a[row][2 * place + i / 2 * 8] = low_half(type, mine.a[i]);
        a[row][2 * place + i / 2 * 8 + 1] = low_half(type, mine.a[i] >> 16);
      }
      d[group + i / 2 * 8][2 * place + i % 2] = mine.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      if (tf32) {
        b[place + i * 4][group] = std::bit_cast<float>(mine.b[i] & 0xffffe000);
      } else {
        b[2 * place + i * 8][group] = low_half(type, mine.b[i]);
        b[2 * place + i * 8 + 1][group] = low_half(type, mine.b[i] >> 16);
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < depth; ++k) {
      for (int col = 0; col < 8; ++col) d[row][col] += a[row][k] * b[k][col];
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    float* mine = static_cast<MultiplyLane*>(all.brought[lane])->d;
    for (int i = 0; i < 4; ++i) mine[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

}  // namespace

void load_matrices(uint32_t* registers, int matrices, bool transposed, const void* row) {
  const void* pc = __builtin_return_address(0);
  Outside outside;
  Block& block = *current.block;
  LoadLane lane{registers, static_cast<const char*>(row), matrices, transposed, pc};
  if (block.self().lane < 8 * matrices) {
    check_alignment(reinterpret_cast<uintptr_t>(row), 16, pc);
    check_shared_row(reinterpret_cast<uintptr_t>(row), 16, pc);
  }
  block.meet(Meeting::kLoadMatrices, ~0u, &lane, finish_load, pc);
}

void multiply_matrices(MatrixType type, float (&d)[4], const uint32_t* a, const uint32_t* b) {
  MultiplyLane lane{type, d, a, b};
  current.block->meet(Meeting::kMultiply, ~0u, &lane, finish_multiply, __builtin_return_address(0));
}

}  // namespace fastdl::emulator
