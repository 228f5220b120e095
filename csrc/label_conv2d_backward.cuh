#pragma once

// Device code of label_conv2d_backward, and its launches. Knows no torch.
//
// dweight[k, c, tap] sums dy[pixel, k] over the pixels whose window has c at tap. Where the window
// holds one code only, that is the same for all taps: `sum_uniform` reads dy once and sums it by
// code; `sum_mixed` takes the other pixels tap by tap. Each block has accumulators for some taps
// and 32 channels in shared memory, of which every one belongs to one thread: no atomics, and the
// order of all sums is fixed. The blocks' sums lie in a workspace, and `reduce` adds them up. A
// label and an edge are two inputs here, so that the accumulators are those of dweight.

#include "label_conv2d.cuh"

namespace pix2pixhd_fast {

// Accumulators of a block, so that some blocks fit a multiprocessor: 36 inputs x 7 taps x 32.
constexpr size_t kAccumulators = 48 * 1024;
constexpr int kMaxSplits = 64;
constexpr int64_t kMaxMixedSums = 16 << 20;  // bytes, of all splits
constexpr int kTilesOfSplit = 8;             // in sum_uniform
constexpr int kTapsOfBlock = 16;             // in reduce

// How the backward is divided into blocks: by sizes alone, so that results repeat on any GPU.
struct BackwardPlan {
  int tiles;           // of all pictures
  int slices;          // of 32 channels
  int uniform_rows;    // inputs and the sum of all, that a block has accumulators for
  int uniform_copies;  // warps of a block, each with its own accumulators
  int uniform_splits;
  int mixed_rows, mixed_taps;  // inputs and taps of a block
  int mixed_warps;
  int mixed_splits;

  __host__ explicit BackwardPlan(const LabelConv& conv) {
    const auto groups = [](int64_t of, int64_t most) { return (of + most - 1) / most; };
    constexpr int64_t kRow = 32 * sizeof(float);
    constexpr int64_t kMostRows = kMaxShared / kRow;
    const int64_t inputs = conv.inputs(), taps = conv.taps();
    tiles = conv.count * conv.tiles();
    slices = static_cast<int>(groups(conv.channels, 32));
    uniform_rows = static_cast<int>(groups(inputs + 1, groups(inputs + 1, kMostRows)));
    const int64_t copies = kAccumulators / (uniform_rows * kRow);
    uniform_copies = copies < 1 ? 1 : copies > kTileWarps ? kTileWarps : static_cast<int>(copies);
    uniform_splits = static_cast<int>(groups(tiles, kTilesOfSplit));
    mixed_rows = static_cast<int>(groups(inputs, groups(inputs, kMostRows)));
    const int64_t fit = kAccumulators / (mixed_rows * kRow);
    mixed_taps = static_cast<int>(groups(taps, groups(taps, fit < 1 ? 1 : fit)));
    mixed_warps = mixed_taps < kTileWarps ? mixed_taps : kTileWarps;
    const int64_t sums = inputs * taps * conv.channels * static_cast<int64_t>(sizeof(float));
    const int64_t splits = kMaxMixedSums / sums < 1 ? 1 : kMaxMixedSums / sums;
    mixed_splits = static_cast<int>(splits < kMaxSplits ? splits : kMaxSplits);
    mixed_splits = mixed_splits < tiles ? mixed_splits : tiles;
  }

  // Shared memory of the blocks.
  __host__ size_t uniform_bytes() const {
    return sizeof(float) * 32 * uniform_rows * uniform_copies;
  }
  __host__ size_t mixed_bytes() const { return sizeof(float) * 32 * mixed_rows * mixed_taps; }
};

struct BackwardSums {
  uint16_t* classes;  // [tiles, kTilePixels]: of each window the code, or kMixed
  uint16_t* mixed;    // [tiles, kTilePixels]: the pixels that are kMixed
  int* counts;        // [tiles]: how many they are
  float* uniform;     // [uniform splits, inputs + 1, K]; the last row: of all pixels
  float* taps;        // [mixed splits, inputs, taps, K]
};

// A block for each tile of a picture, blockIdx.y: the picture.
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    find_mixed(LabelConv conv, Level level, BackwardSums sums) {
  const int64_t picture = static_cast<int64_t>(blockIdx.y) * conv.height * conv.width;
  const Tile tile(conv, blockIdx.x, dynamic_shared<unsigned char>());
  const int uniform = classify(tile, conv, level, picture);
  const int64_t number = static_cast<int64_t>(blockIdx.y) * conv.tiles() + blockIdx.x;
  const int mixed = tile.rows * tile.columns - uniform;
  for (int i = threadIdx.x; i < kTilePixels; i += kTileThreads) {
    if (i / kTileWidth < tile.rows && i % kTileWidth < tile.columns) {
      sums.classes[number * kTilePixels + i] = tile.classes[i];
    }
    if (i < mixed) {
      sums.mixed[number * kTilePixels + i] = tile.order[uniform + i];
    }
  }
  if (threadIdx.x == 0) {
    sums.counts[number] = mixed;
  }
}

// The accumulators of one channel (a lane) for `rows` inputs from `first`.
struct Accumulators {
  float* lane;
  int first, rows, step;  // step: from one input to the next

  __device__ void add(int input, float value) const {
    if (input >= first && input < first + rows) {
      lane[(input - first) * step] += value;
    }
  }
  // The inputs that a code stands for.
  __device__ void add_code(const LabelConv& conv, int code, float value) const {
    const bool edge = code > conv.num_labels;
    const int label = edge ? code - conv.num_labels - 1 : code;
    if (label < conv.num_labels) {
      add(label, value);
    }
    if (edge) {
      add(conv.num_labels, value);
    }
  }
};

// Values of a channel in eight pixels, `at(i)`: how far behind dy the i-th one lies; all lanes
// call.
template <typename T, typename At>
__device__ inline void load_eight(const T* dy, bool exists, At at, float (&values)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t distance = at(i);
    values[i] = exists ? to_float(__ldg(dy + distance)) : 0.0f;
  }
}

// One row of a tile: `code` of lane i is that of pixel i, dy lies at pixel 0. Neighbours mostly
// have the same code, and are summed in a register first.
template <typename T>
__device__ inline void sum_row(const LabelConv& conv, const Accumulators& own, const T* dy,
                               bool exists, int columns, int code) {
  int current = __shfl_sync(kAllLanes, code, 0);
  float sum = 0, all = 0;
  for (int first = 0; first < columns; first += 8) {
    float values[8];
    const auto at = [&](int i) {
      return static_cast<int64_t>(min(first + i, columns - 1)) * conv.channels;
    };
    load_eight(dy, exists, at, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int next = __shfl_sync(kAllLanes, code, first + i);
      if (next != current) {
        if (current != kMixed) {
          own.add_code(conv, current, sum);
        }
        current = next;
        sum = 0;
      }
      const float value = first + i < columns ? values[i] : 0.0f;
      sum += value;
      all += value;
    }
  }
  if (current != kMixed) {
    own.add_code(conv, current, sum);
  }
  own.add(conv.inputs(), all);
}

// Sums dy of the windows of one code by code, and all of dy. A lane has a channel, a warp each
// uniform_copies-th row of a tile. Grid: splits, slices of channels, groups of inputs.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    sum_uniform(LabelConv conv, BackwardPlan plan, BackwardSums sums, const T* __restrict__ dy) {
  float* shared = dynamic_shared<float>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = blockIdx.y * 32 + lane, first_row = blockIdx.z * plan.uniform_rows;
  const int size = plan.uniform_rows * 32;
  for (int i = threadIdx.x; i < size * plan.uniform_copies; i += blockDim.x) {
    shared[i] = 0;
  }
  __syncthreads();
  const Accumulators own{shared + warp * size + lane, first_row, plan.uniform_rows, 32};
  const int begin = blockIdx.x * kTilesOfSplit, end = min(begin + kTilesOfSplit, plan.tiles);
  for (int number = begin; number < end; ++number) {
    const Tile tile(conv, number % conv.tiles(), nullptr);
    const uint16_t* classes = sums.classes + static_cast<int64_t>(number) * kTilePixels;
    for (int row = warp; row < tile.rows; row += plan.uniform_copies) {
      const int code = classes[row * kTileWidth + min(lane, tile.columns - 1)];
      const int64_t pixel = tile.result(conv, number / conv.tiles(), row, 0);
      sum_row(conv, own, dy + pixel * conv.channels + k, k < conv.channels, tile.columns, code);
    }
  }
  __syncthreads();
  const int rows = conv.inputs() + 1;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    const int row = first_row + i / 32, channel = blockIdx.y * 32 + i % 32;
    if (row < rows && channel < conv.channels) {
      float total = 0;
      for (int copy = 0; copy < plan.uniform_copies; ++copy) {
        total += shared[copy * size + i];
      }
      const int64_t at = static_cast<int64_t>(blockIdx.x) * rows + row;
      sums.uniform[at * conv.channels + channel] = total;
    }
  }
}

// What a lane finds out about one pixel and one tap, for all lanes of its warp.
struct MixedPixel {
  int64_t result;  // the pixel of dy
  int64_t source;  // the pixel of the map
  int code;
};

__device__ inline MixedPixel mixed_pixel(const LabelConv& conv, const Level& level, int number,
                                         int pixel, int tap) {
  const Tile tile(conv, number % conv.tiles(), nullptr);
  const int picture = number / conv.tiles();
  const int row = pixel / kTileWidth, column = pixel % kTileWidth;
  const int top = (tile.first_y + row) * conv.stride - conv.pad;
  const int left = (tile.first_x + column) * conv.stride - conv.pad;
  const int y = padded_source(conv.padding, top + tap / conv.kernel_width, conv.height);
  const int x = padded_source(conv.padding, left + tap % conv.kernel_width, conv.width);
  const int64_t source = (static_cast<int64_t>(picture) * conv.height + y) * conv.width + x;
  return {tile.result(conv, picture, row, column), source,
          y < 0 || x < 0 ? conv.num_labels : level.code(source)};
}

// Adds up to 32 pixels, of which each lane knows one, at one tap.
template <typename T>
__device__ inline void sum_pixels(const LabelConv& conv, const Level& level,
                                  const Accumulators& own, const MixedPixel& mine, const T* dy,
                                  bool exists, int count) {
  for (int first = 0; first < count; first += 8) {
    float values[8];
    const auto at = [&](int i) {
      return __shfl_sync(kAllLanes, mine.result, first + i) * conv.channels;
    };
    load_eight(dy, exists, at, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i >= count) {
        break;
      }
      const int code = __shfl_sync(kAllLanes, mine.code, first + i);
      if (code != kMixed) {
        own.add_code(conv, code, values[i]);
        continue;
      }
      const int64_t source = __shfl_sync(kAllLanes, mine.source, first + i);
      level.for_each_share(source, [&](uint16_t other, float share) {
        own.add_code(conv, other, share * values[i]);
      });
    }
  }
}

// Sums dy of the mixed windows for some taps, of which a warp has each mixed_warps-th; a lane has a
// channel. Grid: splits, slices of channels, groups of taps x groups of inputs.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    sum_mixed(LabelConv conv, Level level, BackwardPlan plan, BackwardSums sums,
              const T* __restrict__ dy) {
  float* shared = dynamic_shared<float>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = blockIdx.y * 32 + lane;
  const int tap_groups = (conv.taps() + plan.mixed_taps - 1) / plan.mixed_taps;
  const int first_tap = blockIdx.z % tap_groups * plan.mixed_taps;
  const int first_row = blockIdx.z / tap_groups * plan.mixed_rows;
  const int taps = min(plan.mixed_taps, conv.taps() - first_tap), step = plan.mixed_taps * 32;
  for (int i = threadIdx.x; i < plan.mixed_rows * step; i += blockDim.x) {
    shared[i] = 0;
  }
  __syncthreads();
  for (int number = blockIdx.x; number < plan.tiles; number += plan.mixed_splits) {
    const int count = sums.counts[number];
    const uint16_t* pixels = sums.mixed + static_cast<int64_t>(number) * kTilePixels;
    for (int first = 0; first < count; first += 32) {
      const int batch = min(32, count - first);
      const int pixel = pixels[first + min(lane, batch - 1)];
      for (int tap = warp; tap < taps; tap += plan.mixed_warps) {
        const Accumulators own{shared + tap * 32 + lane, first_row, plan.mixed_rows, step};
        const MixedPixel mine = mixed_pixel(conv, level, number, pixel, first_tap + tap);
        sum_pixels(conv, level, own, mine, dy + k, k < conv.channels, batch);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < plan.mixed_rows * step; i += blockDim.x) {
    const int input = first_row + i / step, tap = i % step / 32;
    const int channel = blockIdx.y * 32 + i % 32;
    if (input < conv.inputs() && tap < taps && channel < conv.channels) {
      const int64_t row = static_cast<int64_t>(blockIdx.x) * conv.inputs() + input;
      sums.taps[(row * conv.taps() + first_tap + tap) * conv.channels + channel] = shared[i];
    }
  }
}

// dweight: [K, inputs, taps]; dbias: [K]. Grid: inputs + 1 (the last one: dbias), slices of
// channels, groups of taps; block: 32 channels x 8.
template <typename T>
__global__ void __launch_bounds__(256) reduce(LabelConv conv, BackwardPlan plan, BackwardSums sums,
                                              T* __restrict__ dweight, T* __restrict__ dbias) {
  __shared__ float parts[8][32];
  const int input = blockIdx.x, k = blockIdx.y * 32 + threadIdx.x, y = threadIdx.y;
  const bool exists = k < conv.channels, is_bias = input == conv.inputs();
  const int64_t channels = conv.channels;
  float part = 0;
  for (int split = y; split < plan.uniform_splits && exists; split += 8) {
    const int64_t row = static_cast<int64_t>(split) * (conv.inputs() + 1) + input;
    part += sums.uniform[row * channels + k];
  }
  parts[y][threadIdx.x] = part;
  __syncthreads();
  if (!exists) {
    return;
  }
  float uniform = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    uniform += parts[i][threadIdx.x];
  }
  if (is_bias) {
    if (blockIdx.z == 0 && y == 0) {
      round_to(uniform, dbias[k]);
    }
    return;
  }
  const int first = blockIdx.z * kTapsOfBlock, last = min(first + kTapsOfBlock, conv.taps());
  for (int tap = first + y; tap < last; tap += 8) {
    float sum = uniform;
    const int64_t size = conv.inputs() * conv.taps() * channels;
    const float* mixed = sums.taps + (input * conv.taps() + tap) * channels + k;
    for (int split = 0; split < plan.mixed_splits; ++split) {
      sum += mixed[split * size];
    }
    round_to(sum, dweight[(k * conv.inputs() + input) * static_cast<int64_t>(conv.taps()) + tap]);
  }
}

// For a call that `fits` and is not empty. dy: [N, out_height, out_width, K].
template <typename T>
[[nodiscard]] cudaError_t launch_label_conv2d_backward(const LabelConv& conv, const Level& level,
                                                       const BackwardSums& sums, const T* dy,
                                                       T* dweight, T* dbias, cudaStream_t stream) {
  cudaError_t error = launch_pool_codes(conv, level, stream);
  if (error != cudaSuccess) {
    return error;
  }
  const BackwardPlan plan(conv);
  error = launch(find_mixed, dim3(conv.tiles(), conv.count), dim3(kTileThreads), Tile::bytes(conv),
                 stream, conv, level, sums);
  if (error != cudaSuccess) {
    return error;
  }
  const auto groups = [](int of, int most) {
    return static_cast<unsigned>((of + most - 1) / most);
  };
  error =
      launch(sum_uniform<T>,
             dim3(plan.uniform_splits, plan.slices, groups(conv.inputs() + 1, plan.uniform_rows)),
             dim3(32 * plan.uniform_copies), plan.uniform_bytes(), stream, conv, plan, sums, dy);
  if (error != cudaSuccess) {
    return error;
  }
  error =
      launch(sum_mixed<T>,
             dim3(plan.mixed_splits, plan.slices,
                  groups(conv.taps(), plan.mixed_taps) * groups(conv.inputs(), plan.mixed_rows)),
             dim3(32 * plan.mixed_warps), plan.mixed_bytes(), stream, conv, level, plan, sums, dy);
  if (error != cudaSuccess) {
    return error;
  }
  const dim3 grid(conv.inputs() + 1, plan.slices, groups(conv.taps(), kTapsOfBlock));
  return launch(reduce<T>, grid, dim3(32, 8), 0, stream, conv, plan, sums, dweight, dbias);
}

}  // namespace pix2pixhd_fast
