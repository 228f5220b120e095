#pragma once

// Device code of label_conv2d_backward, and its launches. Knows no torch.
//
// dweight[k, c, tap] sums dy[pixel, k] over the pixels whose window has c at tap. Where the window
// holds one code only, that is the same for all taps: `sum_uniform` reads dy once and sums it by
// code; `sum_mixed` takes the other pixels step by step. A step is a tap, or all taps of a row of
// the kernel, for windows of which this row holds one code only. Each block has accumulators for
// some steps and 32 channels in shared memory, of which every one belongs to one thread: no
// atomics, and the order of all sums is fixed. The blocks' sums lie in a workspace, and `reduce`
// adds them up. A label and an edge are two inputs here, so that the accumulators are those of
// dweight.

#include <algorithm>

#include "label_conv2d.cuh"

namespace pix2pixhd_fast {

// Accumulators of a block, so that some blocks fit a multiprocessor: 36 x 8 x 32 floats.
constexpr size_t kAccumulators = 48 * 1024;
constexpr int kMaxSplits = 64;
constexpr int64_t kMaxSums = 16 << 20;  // bytes of the workspace, in each of both sums
constexpr int kMinTiles = 8;            // of a split of sum_uniform
constexpr int kTapsOfBlock = 16;        // in reduce

// How the backward is divided into blocks: by sizes alone, so that results repeat on any GPU.
struct BackwardPlan {
  int tiles;           // of all pictures
  int slices;          // of 32 channels
  int uniform_rows;    // inputs and the sum of all, that a block has accumulators for
  int uniform_copies;  // warps of a block, each with its own accumulators
  int uniform_tiles;   // of a split
  int uniform_splits;
  int mixed_rows, mixed_steps;  // inputs and steps of a block, which has a warp for each step
  int mixed_splits;

  __host__ explicit BackwardPlan(const LabelConv& conv) {
    const auto groups = [](int64_t of, int64_t most) { return (of + most - 1) / most; };
    constexpr int64_t kRow = 32 * sizeof(float);
    constexpr int64_t kMostRows = kMaxShared / kRow;
    const int64_t inputs = conv.inputs(), steps = conv.steps();
    tiles = conv.count * conv.tiles();
    slices = static_cast<int>(groups(conv.channels, 32));
    uniform_rows = static_cast<int>(groups(inputs + 1, groups(inputs + 1, kMostRows)));
    uniform_copies = std::clamp<int64_t>(kAccumulators / (uniform_rows * kRow), 1, kTileWarps);
    const auto splits = [](int64_t values) {
      return std::max<int64_t>(kMaxSums / (values * static_cast<int64_t>(sizeof(float))), 1);
    };
    const int64_t most = splits((inputs + 1) * conv.channels);
    uniform_tiles = static_cast<int>(groups(tiles, std::min(groups(tiles, kMinTiles), most)));
    uniform_splits = static_cast<int>(groups(tiles, uniform_tiles));
    mixed_rows = static_cast<int>(groups(inputs, groups(inputs, kMostRows)));
    const int64_t fit = std::clamp<int64_t>(kAccumulators / (mixed_rows * kRow), 1, kTileWarps);
    mixed_steps = static_cast<int>(groups(steps, groups(steps, fit)));
    const int64_t of_mixed = splits(inputs * steps * conv.channels);
    mixed_splits = static_cast<int>(std::min<int64_t>({of_mixed, kMaxSplits, tiles}));
  }

  // Shared memory of the blocks.
  __host__ size_t uniform_bytes() const {
    return sizeof(float) * 32 * uniform_rows * uniform_copies;
  }
  __host__ size_t mixed_bytes() const { return sizeof(float) * 32 * mixed_rows * mixed_steps; }
};

struct BackwardSums {
  uint16_t* classes;  // [tiles, kTilePixels]: of each window the code, or kMixed
  uint16_t* mixed;    // [tiles, kTilePixels]: the pixels that are kMixed
  int* counts;        // [tiles]: how many they are
  float* uniform;     // [uniform splits, inputs + 1, K]; the last row: of all pixels
  float* steps;       // [mixed splits, inputs, kernel height, kernel width + 1, K]
};

// A block for each tile of a picture, blockIdx.y: the picture.
__global__ void __launch_bounds__(kTileThreads, kBlocksOf64)
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

// One row of a tile: `code` of lane i is that of pixel i, dy lies at pixel 0. Neighbours mostly
// have the same code, and are summed in a register first.
template <typename T>
__device__ inline void sum_row(const LabelConv& conv, const Accumulators& own, const T* dy,
                               bool exists, int columns, int code) {
  int current = __shfl_sync(kAllLanes, code, 0);
  float sum = 0, all = 0;
  for (int first = 0; first < columns; first += 8) {
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool there = exists && first + i < columns;
      const int64_t at = static_cast<int64_t>(first + i) * conv.channels;
      values[i] = there ? to_float(__ldg(dy + at)) : 0.0f;
    }
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
      sum += values[i];
      all += values[i];
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
__global__ void __launch_bounds__(kTileThreads, kBlocksOf80)
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
  const int begin = blockIdx.x * plan.uniform_tiles,
            end = min(begin + plan.uniform_tiles, plan.tiles);
  for (int number = begin; number < end; ++number) {
    const TileArea tile(conv, number % conv.tiles());
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

// What a lane finds out about one pixel and one step, for all lanes of its warp.
struct MixedPixel {
  int64_t result;  // the pixel of dy
  int64_t source;  // the pixel of the map at the tap
  int code;        // there, or of the whole row
  bool taken;      // whether the row of the window is of the kind of the step
};

__device__ inline MixedPixel mixed_pixel(const LabelConv& conv, const Level& level, int number,
                                         int pixel, int step) {
  const TileArea tile(conv, number % conv.tiles());
  const int picture = number / conv.tiles();
  const int row = pixel / kTileWidth, column = pixel % kTileWidth;
  const int kernel_y = step / (conv.kernel_width + 1), tap = step % (conv.kernel_width + 1);
  const int top = (tile.first_y + row) * conv.stride - conv.pad + kernel_y;
  const int left = (tile.first_x + column) * conv.stride - conv.pad;
  const int y = padded_source(conv.padding, top, conv.height);
  const int64_t line = (static_cast<int64_t>(picture) * conv.height + y) * conv.width;
  MixedPixel found{tile.result(conv, picture, row, column), 0, 0, false};
  int first = kMixed;
  bool common = true;
  for (int i = 0; i < conv.kernel_width; ++i) {
    const int x = padded_source(conv.padding, left + i, conv.width);
    const int code = y < 0 || x < 0 ? conv.num_labels : level.code(line + x);
    first = i == 0 ? code : first;
    common = common && code == first && code != kMixed;
    if (i == 0 || i == tap) {
      found.source = line + x;
      found.code = code;
    }
  }
  found.taken = common == (tap == conv.kernel_width);
  return found;
}

// Adds the pixels of the lanes in `taken`, each of which knows one, in their order.
template <typename T>
__device__ inline void sum_pixels(const LabelConv& conv, const Level& level,
                                  const Accumulators& own, const MixedPixel& mine, unsigned taken,
                                  const T* dy, bool exists) {
  while (taken != 0) {
    float values[4];
    int lanes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      lanes[i] = __ffs(taken) - 1;  // -1: no more
      taken &= taken - 1;
      const int64_t pixel = __shfl_sync(kAllLanes, mine.result, max(lanes[i], 0));
      values[i] = exists ? to_float(__ldg(dy + pixel * conv.channels)) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (lanes[i] < 0) {
        break;
      }
      const int code = __shfl_sync(kAllLanes, mine.code, lanes[i]);
      if (code != kMixed) {
        own.add_code(conv, code, values[i]);
        continue;
      }
      const int64_t source = __shfl_sync(kAllLanes, mine.source, lanes[i]);
      level.for_each_share(source, [&](uint16_t other, float share) {
        own.add_code(conv, other, share * values[i]);
      });
    }
  }
}

// Sums dy of the mixed windows for some steps, of which a warp has one; a lane has a channel. Grid:
// splits, slices of channels, groups of steps x groups of inputs.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, kBlocksOf64)
    sum_mixed(LabelConv conv, Level level, BackwardPlan plan, BackwardSums sums,
              const T* __restrict__ dy) {
  float* shared = dynamic_shared<float>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = blockIdx.y * 32 + lane;
  const int step_groups = (conv.steps() + plan.mixed_steps - 1) / plan.mixed_steps;
  const int first_step = blockIdx.z % step_groups * plan.mixed_steps;
  const int first_row = blockIdx.z / step_groups * plan.mixed_rows;
  const int steps = min(plan.mixed_steps, conv.steps() - first_step), row = plan.mixed_steps * 32;
  for (int i = threadIdx.x; i < plan.mixed_rows * row; i += blockDim.x) {
    shared[i] = 0;
  }
  __syncthreads();
  const Accumulators own{shared + warp * 32 + lane, first_row, plan.mixed_rows, row};
  for (int number = blockIdx.x; number < plan.tiles && warp < steps; number += plan.mixed_splits) {
    const int count = sums.counts[number];
    const uint16_t* pixels = sums.mixed + static_cast<int64_t>(number) * kTilePixels;
    for (int first = 0; first < count; first += 32) {
      const int last = min(32, count - first) - 1;
      const MixedPixel mine =
          mixed_pixel(conv, level, number, pixels[first + min(lane, last)], first_step + warp);
      const unsigned taken = __ballot_sync(kAllLanes, mine.taken && lane <= last);
      sum_pixels(conv, level, own, mine, taken, dy + k, k < conv.channels);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < plan.mixed_rows * row; i += blockDim.x) {
    const int input = first_row + i / row, step = i % row / 32;
    const int channel = blockIdx.y * 32 + i % 32;
    if (input < conv.inputs() && step < steps && channel < conv.channels) {
      const int64_t at = static_cast<int64_t>(blockIdx.x) * conv.inputs() + input;
      sums.steps[(at * conv.steps() + first_step + step) * conv.channels + channel] = shared[i];
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
    const int row = tap / conv.kernel_width * (conv.kernel_width + 1);
    const int64_t size = static_cast<int64_t>(conv.inputs()) * conv.steps() * channels;
    const float* mixed = sums.steps + (input * conv.steps() + row) * channels + k;
    float sum = uniform;
    for (int split = 0; split < plan.mixed_splits; ++split, mixed += size) {
      sum += mixed[tap % conv.kernel_width * channels] + mixed[conv.kernel_width * channels];
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
  const dim3 uniform(plan.uniform_splits, plan.slices,
                     groups(conv.inputs() + 1, plan.uniform_rows));
  error = launch(sum_uniform<T>, uniform, dim3(32 * plan.uniform_copies), plan.uniform_bytes(),
                 stream, conv, plan, sums, dy);
  if (error != cudaSuccess) {
    return error;
  }
  const dim3 mixed(plan.mixed_splits, plan.slices,
                   groups(conv.steps(), plan.mixed_steps) * groups(conv.inputs(), plan.mixed_rows));
  error = launch(sum_mixed<T>, mixed, dim3(32 * plan.mixed_steps), plan.mixed_bytes(), stream, conv,
                 level, plan, sums, dy);
  if (error != cudaSuccess) {
    return error;
  }
  const dim3 grid(conv.inputs() + 1, plan.slices, groups(conv.taps(), kTapsOfBlock));
  return launch(reduce<T>, grid, dim3(32, 8), 0, stream, conv, plan, sums, dweight, dbias);
}

}  // namespace pix2pixhd_fast
