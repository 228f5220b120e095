#pragma once

// Device code of instance_boundaries, and its launch. ids: [N, H, W] contiguous, int32 or int64;
// edges: uint8 [N, H, W].
//
// A warp marks 128 pixels x kRows rows, a lane 4 pixels in each: 16-byte loads (two for int64), and
// 4-byte stores, of which a warp's make one full line of 128 bytes. A lane keeps its kRows + 2 rows
// in registers and has the ids left and right of them from its neighbours; only the first and last
// lane load one id more per row. So a warp asks for 1.25 + 0.016 times its ids; the rows and ids
// beyond its own are those that other warps load too, which leaves one read of every id, 4 bytes
// per pixel, and one byte written for the memory, as long as two strips of rows stay in the cache.

#include <cstdint>

#include "launch.cuh"

namespace pix2pixhd_fast {

// A lane has the 16-byte loads of kRows + 2 rows in flight. The kernel takes 56 to 64 registers
// (int64: 112 to 128) on sm_80 to sm_120, and spills none.
constexpr int kRows = 8;
constexpr int kWarps = 4;                     // of a block, side by side
constexpr int kBlockWidth = kWarps * 32 * 4;  // pixels

// Four ids side by side.
template <typename Id>
struct alignas(16) Quad {
  Id at[4];
};

// Beyond the right border: the last id of the row. `kAligned`: rows lie on 16 bytes, and hold whole
// quads only.
template <bool kAligned, typename Id>
__device__ inline Quad<Id> load_quad(const Id* row, int x, int width) {
  Quad<Id> quad;
  if (kAligned && x < width) {
    auto* parts = reinterpret_cast<int4*>(&quad);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(quad) / sizeof(int4)); ++i) {
      parts[i] = __ldg(reinterpret_cast<const int4*>(row + x) + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      quad.at[i] = __ldg(row + min(x + i, width - 1));
    }
  }
  return quad;
}

template <bool kAligned>
__device__ inline void store_quad(uint8_t* row, int x, int width, uchar4 marks) {
  if (kAligned) {
    *reinterpret_cast<uchar4*>(row + x) = marks;
    return;
  }
  const uint8_t given[4] = {marks.x, marks.y, marks.z, marks.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (x + i < width) {
      row[x + i] = given[i];
    }
  }
}

template <typename Id>
__device__ inline uint8_t mark(Id id, Id left, Id right, Id above, Id below) {
  return ((id ^ left) | (id ^ right) | (id ^ above) | (id ^ below)) != 0;
}

// `beyond`: what lies left of the first lane's ids, right of the last lane's.
template <typename Id>
__device__ inline uchar4 mark_quad(const Quad<Id>& above, const Quad<Id>& here,
                                   const Quad<Id>& below, Id beyond) {
  constexpr unsigned kAll = 0xffffffff;
  const int lane = threadIdx.x;
  const auto [a, b, c, d] = here.at;
  const Id before = __shfl_up_sync(kAll, d, 1);
  const Id after = __shfl_down_sync(kAll, a, 1);
  const Id left = lane == 0 ? beyond : before;
  const Id right = lane == 31 ? beyond : after;
  return make_uchar4(
      mark(a, left, b, above.at[0], below.at[0]), mark(b, a, c, above.at[1], below.at[1]),
      mark(c, b, d, above.at[2], below.at[2]), mark(d, c, right, above.at[3], below.at[3]));
}

// Grid: strips of kRows rows over all pictures, columns of kBlockWidth pixels; block: 32 x kWarps.
template <bool kAligned, typename Id>
__global__ void __launch_bounds__(32 * kWarps)
    mark_boundaries(const Id* __restrict__ ids, uint8_t* __restrict__ edges, int strips, int height,
                    int width) {
  const int lane = threadIdx.x;
  const int first_x = blockIdx.y * kBlockWidth + threadIdx.y * 128;
  if (first_x >= width) {
    return;  // the whole warp
  }
  const int x = first_x + lane * 4;
  const int y0 = blockIdx.x % strips * kRows;
  const int64_t picture = static_cast<int64_t>(blockIdx.x / strips) * height * width;
  const Id* source = ids + picture;
  uint8_t* target = edges + picture;

  Quad<Id> rows[kRows + 2];
  Id beyond[kRows + 2];
  const int beyond_x = lane == 0 ? max(x - 1, 0) : min(x + 4, width - 1);
#pragma unroll
  for (int i = 0; i < kRows + 2; ++i) {
    // Outside the picture: the row at its border, which differs nowhere from itself.
    const int64_t y = min(max(y0 - 1 + i, 0), height - 1);
    const Id* row = source + y * width;
    rows[i] = load_quad<kAligned>(row, x, width);
    const bool outer = (lane == 0 || lane == 31) && i > 0 && i <= kRows;
    beyond[i] = outer ? __ldg(row + beyond_x) : 0;
  }
#pragma unroll
  for (int i = 1; i <= kRows; ++i) {
    const int64_t y = y0 + i - 1;
    const uchar4 marks = mark_quad(rows[i - 1], rows[i], rows[i + 1], beyond[i]);
    if (y < height && x < width) {
      store_quad<kAligned>(target + y * width, x, width, marks);
    }
  }
}

// Nothing to do is not allowed: count, height and width are at least 1. Returns
// cudaErrorInvalidValue for sizes that the grid or the 32-bit indices within a row do not hold.
template <typename Id>
[[nodiscard]] cudaError_t launch_instance_boundaries(const Id* ids, uint8_t* edges, int64_t count,
                                                     int64_t height, int64_t width,
                                                     cudaStream_t stream) {
  const int64_t strips = (height + kRows - 1) / kRows;
  const int64_t columns = (width + kBlockWidth - 1) / kBlockWidth;
  if (count > INT32_MAX / strips || height > INT32_MAX - 2 * kRows || columns > 65535) {
    return cudaErrorInvalidValue;
  }
  const bool aligned = width % 4 == 0 && reinterpret_cast<uintptr_t>(ids) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(edges) % 4 == 0;
  const auto kernel = aligned ? mark_boundaries<true, Id> : mark_boundaries<false, Id>;
  const dim3 grid(static_cast<unsigned>(count * strips), static_cast<unsigned>(columns));
  return launch(kernel, grid, dim3(32, kWarps), 0, stream, ids, edges, strips, height, width);
}

}  // namespace pix2pixhd_fast
