#pragma once

// Device code that the kernels of label_conv2d and of its backward share: a tile of the result with
// the codes that its windows see, and which of them see one code only. Knows no torch.

#include "label_codes.cuh"

namespace pix2pixhd_fast {

// The pixels of the result that a tile has, clipped to it.
struct TileArea {
  int first_y, first_x, rows, columns;

  __device__ TileArea(const LabelConv& conv, int tile) {
    first_y = tile / conv.tile_columns() * kTileHeight;
    first_x = tile % conv.tile_columns() * kTileWidth;
    rows = min(kTileHeight, conv.out_height - first_y);
    columns = min(kTileWidth, conv.out_width - first_x);
  }

  // The pixel of the result in row and column of the tile.
  __device__ int64_t result(const LabelConv& conv, int picture, int row, int column) const {
    return (static_cast<int64_t>(picture) * conv.out_height + first_y + row) * conv.out_width +
           first_x + column;
  }
};

// A tile with the codes that its windows see, in dynamic shared memory.
struct Tile : TileArea {
  int window_rows, window_columns, width;  // of the codes; `width`: of their rows in memory
  uint16_t* codes;                         // [window_rows, width]
  uint16_t* row_codes;  // [window_rows, kTileWidth]: of each row of a window the code, or kMixed
  uint16_t* classes;    // [kTilePixels]: of each window the code, or kMixed
  uint16_t* order;      // [kTilePixels]: the pixels with one code in their window, then the others
  int* counts;          // [kTileWarps]: uniform | mixed << 16

  __host__ __device__ static int window_height(const LabelConv& conv) {
    return (kTileHeight - 1) * conv.stride + conv.kernel_height;
  }
  // A multiple of 8, so that what follows lies on 16 bytes.
  __host__ __device__ static int window_width(const LabelConv& conv) {
    return ((kTileWidth - 1) * conv.stride + conv.kernel_width + 7) / 8 * 8;
  }
  __host__ __device__ static size_t bytes(const LabelConv& conv) {
    const size_t rows = window_height(conv);
    const size_t codes = rows * window_width(conv) + rows * kTileWidth + 2 * kTilePixels;
    return codes * sizeof(uint16_t) + kTileWarps * sizeof(int);
  }

  __device__ Tile(const LabelConv& conv, int tile, unsigned char* memory) : TileArea(conv, tile) {
    window_rows = (rows - 1) * conv.stride + conv.kernel_height;
    window_columns = (columns - 1) * conv.stride + conv.kernel_width;
    width = window_width(conv);
    codes = reinterpret_cast<uint16_t*>(memory);
    row_codes = codes + window_height(conv) * width;
    classes = row_codes + window_height(conv) * kTileWidth;
    order = classes + kTilePixels;
    counts = reinterpret_cast<int*>(order + kTilePixels);
  }
};

__device__ inline void load_codes(const Tile& tile, const LabelConv& conv, const Level& level,
                                  int64_t picture) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int top = tile.first_y * conv.stride - conv.pad;
  const int left = tile.first_x * conv.stride - conv.pad;
  for (int r = warp; r < tile.window_rows; r += kTileWarps) {
    const int y = padded_source(conv.padding, top + r, conv.height);
    const int64_t row = picture + static_cast<int64_t>(y) * conv.width;
    for (int c = lane; c < tile.window_columns; c += 32) {
      const int x = padded_source(conv.padding, left + c, conv.width);
      tile.codes[r * tile.width + c] = y < 0 || x < 0 ? conv.num_labels : level.code(row + x);
    }
  }
}

// `count` codes, `step` apart: the code of all of them, or kMixed.
__device__ inline uint16_t common_code(const uint16_t* codes, int count, int step) {
  const uint16_t first = codes[0];
  bool same = true;
  for (int i = 1; i < count; ++i) {
    same = same && codes[i * step] == first;
  }
  return same ? first : kMixed;
}

// Finds the windows of one code, by rows, then by columns, and puts their pixels first: both kinds
// in the order of reading. Returns how many they are. All threads of the block; ends with a
// barrier.
__device__ inline int classify(const Tile& tile, const LabelConv& conv, const Level& level,
                               int64_t picture) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  load_codes(tile, conv, level, picture);
  __syncthreads();
  for (int r = warp; r < tile.window_rows && lane < tile.columns; r += kTileWarps) {
    const uint16_t* row = tile.codes + r * tile.width + lane * conv.stride;
    tile.row_codes[r * kTileWidth + lane] = common_code(row, conv.kernel_width, 1);
  }
  __syncthreads();
  unsigned uniform[kRowsOfWarp], mixed[kRowsOfWarp];
  int of_warp = 0;
#pragma unroll
  for (int j = 0; j < kRowsOfWarp; ++j) {
    const int row = warp * kRowsOfWarp + j;
    const bool inside = row < tile.rows && lane < tile.columns;
    uint16_t code = kMixed;
    if (inside) {
      const uint16_t* column = tile.row_codes + row * conv.stride * kTileWidth + lane;
      code = common_code(column, conv.kernel_height, kTileWidth);
      tile.classes[row * kTileWidth + lane] = code;
    }
    uniform[j] = __ballot_sync(kAllLanes, inside && code != kMixed);
    mixed[j] = __ballot_sync(kAllLanes, inside && code == kMixed);
    of_warp += __popc(uniform[j]) + (__popc(mixed[j]) << 16);
  }
  if (lane == 0) {
    tile.counts[warp] = of_warp;
  }
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < kTileWarps; ++w) {
    before += w < warp ? tile.counts[w] : 0;
    total += tile.counts[w];
  }
  const int uniform_total = total & 0xffff;
  int next_uniform = before & 0xffff, next_mixed = uniform_total + (before >> 16);
  const unsigned earlier = (1u << lane) - 1;
#pragma unroll
  for (int j = 0; j < kRowsOfWarp; ++j) {
    const uint16_t pixel = (warp * kRowsOfWarp + j) * kTileWidth + lane;
    if (uniform[j] >> lane & 1) {
      tile.order[next_uniform + __popc(uniform[j] & earlier)] = pixel;
    } else if (mixed[j] >> lane & 1) {
      tile.order[next_mixed + __popc(mixed[j] & earlier)] = pixel;
    }
    next_uniform += __popc(uniform[j]);
    next_mixed += __popc(mixed[j]);
  }
  __syncthreads();
  return uniform_total;
}

// Whether the grids, 32-bit coordinates and the shared memory of a block hold a call.
[[nodiscard]] inline bool fits(const LabelCall& call) {
  constexpr int64_t kMost = 1 << 15, kMostPixels = 1 << 30;
  const int64_t padded_height = call.height + 2 * call.pad,
                padded_width = call.width + 2 * call.pad;
  if (call.count > 65535 || call.channels > kMost || call.kernel_height > kMost ||
      call.kernel_width > kMost || call.stride > kMost || call.num_labels > kMaxLabels ||
      padded_height > kMostPixels || padded_width > kMostPixels / padded_height) {
    return false;
  }
  const LabelConv conv(call);
  // Beside the tile: two sums of 8 channels for each thread.
  const size_t moments = 2 * 8 * kTileThreads * sizeof(float);
  return static_cast<int64_t>(conv.count) * conv.tiles() < INT32_MAX &&
         Tile::bytes(conv) + moments <= kMaxShared;
}

}  // namespace pix2pixhd_fast
