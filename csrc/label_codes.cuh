#pragma once

// Device code that the kernels of label_conv2d and of its backward share: sizes, padding, and the
// codes of the map and of its pooled levels. Knows no torch.
//
// A pixel of the map is one number, its code: label + (num_labels + 1) * edge. A label from
// num_labels on is in no class and has the code num_labels, which is also that of the zeros around
// the picture: nothing. A pixel of a pooled level whose window holds one code has this code, else
// the code kMixed and a mixture: the codes of its window with their shares in it.

#include <cstdint>

#include "launch.cuh"

namespace pix2pixhd_fast {

constexpr unsigned kAllLanes = 0xffffffff;
constexpr uint16_t kMixed = 0xffff;
// Labels that leave room for edges and kMixed among the codes.
constexpr int64_t kMaxLabels = 32000;

// A tile of the result belongs to one block. Large, since a block reads kernel - 1 rows and columns
// around its own; small enough for a thousand blocks of a picture of 1024x512.
constexpr int kTileWidth = 32;  // a lane each
constexpr int kTileHeight = 16;
constexpr int kTilePixels = kTileWidth * kTileHeight;
constexpr int kTileWarps = 8;
constexpr int kTileThreads = 32 * kTileWarps;
constexpr int kRowsOfWarp = kTileHeight / kTileWarps;
// Blocks that a multiprocessor should hold, which leaves a thread 64 or 80 registers. Told no
// number, ptxas 13.0 aims at all warps instead, 32 registers, and spills some.
constexpr int kBlocksOf64 = 4;
constexpr int kBlocksOf80 = 3;
// Shared memory of a block that every architecture we build for has.
constexpr size_t kMaxShared = 99 * 1024;

enum class Padding : int { kNone, kZero, kReflect, kReplicate };

// One call, as the op is given it: of [count, 1, height, width] to `channels`.
struct LabelCall {
  int64_t count, height, width, channels, kernel_height, kernel_width, stride, pad;
  Padding padding;
  int64_t num_labels;
  bool has_edges;
  int level;
};

// Its sizes as the kernels read them. height, width: of the level that is convolved, before
// padding.
struct LabelConv {
  int count, height, width;
  int out_height, out_width, channels;
  int kernel_height, kernel_width, stride, pad;
  Padding padding;
  int num_labels;
  bool has_edges;

  // Of a call that `fits`.
  __host__ explicit LabelConv(const LabelCall& call)
      : count(call.count),
        height(pooled_size(call.height, call.level)),
        width(pooled_size(call.width, call.level)),
        out_height((height + 2 * call.pad - call.kernel_height) / call.stride + 1),
        out_width((width + 2 * call.pad - call.kernel_width) / call.stride + 1),
        channels(call.channels),
        kernel_height(call.kernel_height),
        kernel_width(call.kernel_width),
        stride(call.stride),
        pad(call.pad),
        padding(call.padding),
        num_labels(call.num_labels),
        has_edges(call.has_edges) {}

  __host__ static int64_t pooled_size(int64_t size, int level) {
    return level == 0 ? size : pooled_size((size + 1) / 2, level - 1);
  }

  __host__ __device__ int taps() const { return kernel_height * kernel_width; }
  // Of the tables and of the backward's sums: behind the taps of each row all of them together.
  __host__ __device__ int steps() const { return kernel_height * (kernel_width + 1); }
  __host__ __device__ int inputs() const { return num_labels + has_edges; }
  __host__ __device__ int codes() const { return (num_labels + 1) * (1 + has_edges); }
  __host__ __device__ int tile_columns() const { return (out_width + kTileWidth - 1) / kTileWidth; }
  // Of one picture.
  __host__ __device__ int tiles() const {
    return tile_columns() * ((out_height + kTileHeight - 1) / kTileHeight);
  }
};

// The map as it was given. labels: [N, H, W] uint8, or int32 where `wide`; edges: [N, H, W] or
// null.
struct LabelMap {
  const void* labels;
  const uint8_t* edges;
  bool wide;
  int num_labels, height, width;

  __device__ uint16_t code(int64_t pixel) const {
    const unsigned label = wide ? __ldg(static_cast<const unsigned*>(labels) + pixel)
                                : __ldg(static_cast<const uint8_t*>(labels) + pixel);
    const unsigned known = min(label, static_cast<unsigned>(num_labels));
    return known + (edges != nullptr && __ldg(edges + pixel) != 0 ? num_labels + 1 : 0);
  }
};

// The most codes that a pooled pixel can be a mixture of; 0: nothing is pooled.
inline int mixture_slots(const LabelCall& call) {
  const int64_t codes = (call.num_labels + 1) * (1 + call.has_edges);
  const int64_t window = call.level == 0 ? 0 : call.level == 1 ? 9 : 49;
  return static_cast<int>(codes < window ? codes : window);
}

// The level that is convolved: the map itself, or pooled [N, h, w]. A mixture has room for `slots`
// entries, code << 16 | share, and ends where the shares add up to `whole`.
struct Level {
  LabelMap map;
  uint16_t* pooled;    // [N, h, w], null for the map itself
  uint32_t* mixtures;  // [N, h, w, slots]
  int slots, level, whole;

  __device__ uint16_t code(int64_t pixel) const {
    return pooled == nullptr ? map.code(pixel) : __ldg(pooled + pixel);
  }

  // Calls body(code, share of 1) for each entry of the mixture of `pixel`.
  template <typename Body>
  __device__ void for_each_share(int64_t pixel, Body body) const {
    const uint32_t* entry = mixtures + pixel * slots;
    for (int left = whole; left > 0; ++entry) {
      const uint32_t given = __ldg(entry);
      const int share = given & 0xffff;
      body(static_cast<uint16_t>(given >> 16), static_cast<float>(share) / whole);
      left -= share;
    }
  }
};

// Where the codes of a call come from; pooled, mixtures: null for level 0.
inline Level make_level(const LabelCall& call, const void* labels, bool wide, const uint8_t* edges,
                        uint16_t* pooled, uint32_t* mixtures) {
  const LabelMap map{labels,
                     edges,
                     wide,
                     static_cast<int>(call.num_labels),
                     static_cast<int>(call.height),
                     static_cast<int>(call.width)};
  const int whole = call.level == 0 ? 1 : call.level == 1 ? 36 : 36 * 36;
  return {map, pooled, mixtures, mixture_slots(call), call.level, whole};
}

// The row (or column) of `size` that lies `index` rows after the first one, padding included; -1: a
// zero.
__device__ inline int padded_source(Padding padding, int index, int size) {
  if (index >= 0 && index < size) {
    return index;
  }
  if (padding == Padding::kReplicate) {
    return index < 0 ? 0 : size - 1;
  }
  if (padding == Padding::kReflect) {
    const int inner = index < 0 ? -index : index;
    return inner < size ? inner : 2 * (size - 1) - inner;
  }
  return -1;
}

// Average pooling by 3x3, stride 2, padding 1 that counts only what there is, as the share of each
// row in row `i` of a pooled picture, in sixths: of the three rows 1, 2 or all 3 are there.
__device__ inline int sixths(int i, int size) { return 6 / (3 - (i == 0) - (2 * i + 1 >= size)); }

// The share of row `r` of `size` in row `i` of the pooled level 1 or 2, in 6 or 36 parts.
__device__ inline int share_of_row(int level, int i, int r, int size) {
  if (level == 1) {
    return sixths(i, size);
  }
  const int between = (size + 1) / 2;
  int share = 0;
  for (int m = max(2 * i - 1, 0); m <= min(2 * i + 1, between - 1); ++m) {
    share += r >= 2 * m - 1 && r <= 2 * m + 1 ? sixths(m, size) : 0;
  }
  return share * sixths(i, between);
}

// What one pooled pixel sees of the map.
struct PooledWindow {
  LabelMap map;
  int64_t picture;
  int first_row, first_column, rows, columns;

  __device__ int row(int i) const { return first_row + i / columns; }
  __device__ int column(int i) const { return first_column + i % columns; }
  __device__ uint16_t code(int i) const {
    return map.code(picture + static_cast<int64_t>(row(i)) * map.width + column(i));
  }
};

// Each entry is written once: the codes are read again instead of kept, since most windows hold
// two.
__device__ inline void write_mixture(const PooledWindow& window, int level, int y, int x,
                                     uint32_t* mixture) {
  const int size = window.rows * window.columns;
  for (int i = 0; i < size; ++i) {
    const uint16_t code = window.code(i);
    int earlier = 0;
    while (window.code(earlier) != code) {
      ++earlier;
    }
    if (earlier < i) {
      continue;
    }
    uint32_t share = 0;
    for (int j = i; j < size; ++j) {
      if (window.code(j) == code) {
        share += share_of_row(level, y, window.row(j), window.map.height) *
                 share_of_row(level, x, window.column(j), window.map.width);
      }
    }
    *mixture++ = static_cast<uint32_t>(code) << 16 | share;
  }
}

// A thread for each pooled pixel of a picture, blockIdx.y: the picture.
__global__ void __launch_bounds__(kTileThreads, kBlocksOf64)
    pool_codes(Level level, int height, int width) {
  const int pixel = blockIdx.x * kTileThreads + threadIdx.x;
  if (pixel >= height * width) {
    return;
  }
  const LabelMap map = level.map;
  const int y = pixel / width, x = pixel % width;
  const int step = 1 << level.level, reach = step - 1;
  const int top = max(y * step - reach, 0), left = max(x * step - reach, 0);
  const int rows = min(y * step + reach + 1, map.height) - top;
  const int columns = min(x * step + reach + 1, map.width) - left;
  const int64_t picture = static_cast<int64_t>(blockIdx.y) * map.height * map.width;
  const PooledWindow window{map, picture, top, left, rows, columns};
  const uint16_t first = window.code(0);
  bool same = true;
  for (int i = 1; i < rows * columns; ++i) {
    same = same && window.code(i) == first;
  }
  const int64_t target = static_cast<int64_t>(blockIdx.y) * height * width + pixel;
  level.pooled[target] = same ? first : kMixed;
  if (!same) {
    write_mixture(window, level.level, y, x, level.mixtures + target * level.slots);
  }
}

// Fills the pooled codes, where there are any.
[[nodiscard]] inline cudaError_t launch_pool_codes(const LabelConv& conv, const Level& level,
                                                   cudaStream_t stream) {
  if (level.pooled == nullptr) {
    return cudaSuccess;
  }
  const dim3 grid((conv.height * conv.width + kTileThreads - 1) / kTileThreads, conv.count);
  return launch(pool_codes, grid, dim3(kTileThreads), 0, stream, level, conv.height, conv.width);
}

}  // namespace pix2pixhd_fast
