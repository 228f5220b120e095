#pragma once

// Device code of label_conv2d, and its launches. Knows no torch.
//
// A block convolves a tile of 32 x 16 pixels, all channels: it finds the windows that hold one code
// only (label_tiles.cuh) and puts their pixels first. Their results are copies of one row of a
// small table, [code, channel]. For the others the rows of the weights, [code, tap, channel], are
// added up, through the caches; where a row of the window holds one code, the sum of its taps is.
// That is half of these rows on Cityscapes maps (7x7), and leaves 28 of 49 additions. A thread has
// 16 bytes of channels of a pixel; all sums are float32. Statistics: of what was written, by
// Welford in each thread, then over threads, then over tiles, in a fixed order.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "label_tiles.cuh"

namespace pix2pixhd_fast {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void round_to(float x, float& rounded) { rounded = x; }
__device__ inline void round_to(float x, __half& rounded) { rounded = __float2half_rn(x); }
__device__ inline void round_to(float x, __nv_bfloat16& rounded) {
  rounded = __float2bfloat16_rn(x);
}

// 16 bytes of channels.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kWidth = 16 / sizeof(T);
  T at[kWidth];
};

template <typename T>
struct Weights {
  const T* at;  // [K, inputs, kernel height, kernel width]
  const T* bias;
  int64_t stride_k, stride_input, stride_y, stride_x;
};

// What the convolution reads, float32; channels: those of the result, in whole groups of 8.
struct Tables {
  float* rows;  // [codes, kernel height, kernel width + 1, channels]; last in a row: its sum
  float* sums;  // [codes + 1, channels]: over all taps with the bias; the last one: the bias
  int channels;

  __host__ __device__ static int channels_of(const LabelConv& conv) {
    return (conv.channels + 7) / 8 * 8;
  }
};

// Grid: codes + 1, groups of 32 channels; block: 32 channels x 8 rows of the kernel.
template <typename T>
__global__ void __launch_bounds__(256)
    make_tables(LabelConv conv, Weights<T> weights, Tables tables) {
  __shared__ float sums[8][32];
  const int k = blockIdx.y * 32 + threadIdx.x, code = blockIdx.x;
  const int label = code % (conv.num_labels + 1);
  const bool edge = code > conv.num_labels, bias_only = code == conv.codes();
  const bool exists = k < conv.channels, in_table = k < tables.channels;
  const T* weight = weights.at + k * weights.stride_k;
  float sum = 0;
  for (int y = threadIdx.y; y < conv.kernel_height && !bias_only; y += 8) {
    const int64_t first = static_cast<int64_t>(code) * conv.steps() + y * (conv.kernel_width + 1);
    float* row = tables.rows + first * tables.channels + k;
    float row_sum = 0;
#pragma unroll 4
    for (int x = 0; x < conv.kernel_width; ++x, row += tables.channels) {
      const int64_t at = y * weights.stride_y + x * weights.stride_x;
      float value = 0;
      if (exists && label < conv.num_labels) {
        value += to_float(weight[label * weights.stride_input + at]);
      }
      if (exists && edge) {
        value += to_float(weight[conv.num_labels * weights.stride_input + at]);
      }
      if (in_table) {
        *row = value;
      }
      row_sum += value;
    }
    if (in_table) {
      *row = row_sum;
    }
    sum += row_sum;
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && in_table) {
    float total = exists && weights.bias != nullptr ? to_float(weights.bias[k]) : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      total += sums[i][threadIdx.x];
    }
    tables.sums[static_cast<int64_t>(code) * tables.channels + k] = total;
  }
}

template <int kWidth>
__device__ inline void add_row(const float* row, float share, float (&sum)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; i += 4) {
    const float4 part = __ldg(reinterpret_cast<const float4*>(row + i));
    sum[i] += share * part.x;
    sum[i + 1] += share * part.y;
    sum[i + 2] += share * part.z;
    sum[i + 3] += share * part.w;
  }
}

// Adds what the window of one pixel gives; rows: from the first channel on. Only a
// pooled level has mixtures; without them four loads are on their way at a time.
template <bool kPooled, int kWidth>
__device__ inline void gather(const LabelConv& conv, const Level& level, const Tile& tile,
                              int64_t picture, const float* rows, int64_t row_size, int row,
                              int column, float (&sum)[kWidth]) {
  const uint16_t* window = tile.codes + row * conv.stride * tile.width + column * conv.stride;
  const uint16_t* row_code = tile.row_codes + row * conv.stride * kTileWidth + column;
  const int64_t code_size = conv.steps() * row_size;
  for (int y = 0; y < conv.kernel_height; ++y, rows += row_size) {
    const uint16_t common = row_code[y * kTileWidth];
    if (common != kMixed) {
      rows += conv.kernel_width * row_size;
      add_row(rows + common * code_size, 1.0f, sum);
      continue;
    }
#pragma unroll 16 / kWidth
    for (int x = 0; x < conv.kernel_width; ++x, rows += row_size) {
      const uint16_t code = window[y * tile.width + x];
      if (!kPooled || code != kMixed) {
        add_row(rows + code * code_size, 1.0f, sum);
        continue;
      }
      const int top = (tile.first_y + row) * conv.stride - conv.pad;
      const int left = (tile.first_x + column) * conv.stride - conv.pad;
      const int64_t source_y = padded_source(conv.padding, top + y, conv.height);
      const int source_x = padded_source(conv.padding, left + x, conv.width);
      const auto add = [&](uint16_t other, float share) {
        add_row(rows + other * code_size, share, sum);
      };
      level.for_each_share(picture + source_y * conv.width + source_x, add);
    }
  }
}

// Adds `addend`, where there is one, activates, rounds to T and writes; sum becomes what was
// written. below: what values below zero are multiplied by, 1 without an activation.
// `kAligned`: channels are whole vectors that lie on 16 bytes; else `count` of them exist.
template <bool kAligned, typename T>
__device__ inline void finish(const T* addend, float below, T* y, int count,
                              float (&sum)[Vector<T>::kWidth]) {
  constexpr int kWidth = Vector<T>::kWidth;
  Vector<T> vector;
  if (addend != nullptr) {
    if (kAligned) {
      *reinterpret_cast<int4*>(&vector) = __ldg(reinterpret_cast<const int4*>(addend));
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (kAligned || i < count) {
        sum[i] += to_float(kAligned ? vector.at[i] : addend[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    // The comparison lets a NaN through, and -inf becomes 0 where `below` is 0.
    const float activated = below == 0.0f ? 0.0f : sum[i] * below;
    round_to(sum[i] <= 0.0f ? activated : sum[i], vector.at[i]);
    sum[i] = to_float(vector.at[i]);
    if (!kAligned && i < count) {
      y[i] = vector.at[i];
    }
  }
  if (kAligned) {
    *reinterpret_cast<int4*>(y) = *reinterpret_cast<const int4*>(&vector);
  }
}

// Mean and summed squared distance from it of the values that a thread has seen, by channel.
template <int kWidth>
struct Moments {
  float mean[kWidth] = {}, square[kWidth] = {};
  int count = 0;

  __device__ void add(const float (&values)[kWidth]) {
    const float share = 1.0f / ++count;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float distance = values[i] - mean[i];
      mean[i] += distance * share;
      square[i] += distance * (values[i] - mean[i]);
    }
  }
};

// The moments of a tile: pixel i of `pixels` belongs to thread group i % groups, whose lanes have
// `kWidth` channels each. All threads of the block; means: shared memory, [2, kTileThreads *
// kWidth].
template <int kWidth>
__device__ inline void write_moments(const Moments<kWidth>& moments, int pixels, int lanes,
                                     int channels, float* means, float* target, int64_t row) {
  float* squares = means + kTileThreads * kWidth;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    means[threadIdx.x * kWidth + i] = moments.mean[i];
    squares[threadIdx.x * kWidth + i] = moments.square[i];
  }
  __syncthreads();
  const int groups = kTileThreads / lanes, width = lanes * kWidth, k = threadIdx.x;
  if (k >= min(width, channels)) {
    return;
  }
  const auto count = [&](int group) { return (pixels - group + groups - 1) / groups; };
  const int filled = min(groups, pixels);
  float mean = 0, square = 0;
  for (int group = 0; group < filled; ++group) {
    mean += means[group * width + k] * count(group);
  }
  mean /= pixels;
  for (int group = 0; group < filled; ++group) {
    const float distance = means[group * width + k] - mean;
    square += squares[group * width + k] + distance * distance * count(group);
  }
  target[k] = mean;
  target[row + k] = square;
}

// A block for each tile of a picture, blockIdx.y: the picture. lanes: threads of a pixel, a power
// of two up to 32. addend: null for none; below: as in `finish`; parts: [N, tiles, 2, K], null for
// no statistics.
template <bool kAligned, bool kPooled, typename T>
__global__ void __launch_bounds__(kTileThreads, kBlocksOf80)
    convolve(LabelConv conv, Level level, Tables tables, int lanes, const T* __restrict__ addend,
             float below, T* __restrict__ y, float* __restrict__ parts) {
  constexpr int kWidth = Vector<T>::kWidth;
  const int64_t picture = static_cast<int64_t>(blockIdx.y) * conv.height * conv.width;
  unsigned char* memory = dynamic_shared<unsigned char>();
  const Tile tile(conv, blockIdx.x, memory);
  const int uniform = classify(tile, conv, level, picture);
  const int pixels = tile.rows * tile.columns, groups = kTileThreads / lanes;
  for (int first = 0; first < conv.channels; first += lanes * kWidth) {
    const int k = first + threadIdx.x % lanes * kWidth;
    Moments<kWidth> moments;
    for (int i = threadIdx.x / lanes; i < pixels && k < conv.channels; i += groups) {
      const int pixel = tile.order[i];
      const int row = pixel / kTileWidth, column = pixel % kTileWidth;
      const int code = i < uniform ? tile.classes[pixel] : conv.codes();
      float sum[kWidth] = {};
      add_row(tables.sums + static_cast<int64_t>(code) * tables.channels + k, 1.0f, sum);
      if (i >= uniform) {
        gather<kPooled>(conv, level, tile, picture, tables.rows + k, tables.channels, row, column,
                        sum);
      }
      const int64_t target = tile.result(conv, blockIdx.y, row, column) * conv.channels + k;
      finish<kAligned>(addend == nullptr ? nullptr : addend + target, below, y + target,
                       conv.channels - k, sum);
      moments.add(sum);
    }
    if (parts != nullptr) {
      const int64_t part = static_cast<int64_t>(blockIdx.y) * conv.tiles() + blockIdx.x;
      write_moments(moments, pixels, lanes, conv.channels - first,
                    reinterpret_cast<float*>(memory + Tile::bytes(conv)),
                    parts + part * 2 * conv.channels + first, conv.channels);
    }
  }
}

// Grid: groups of 8 channels, pictures; block: 8 channels x 64 tiles at a time.
__global__ void __launch_bounds__(512)
    combine_statistics(LabelConv conv, const float* __restrict__ parts, float eps,
                       float* __restrict__ means, float* __restrict__ rstds) {
  __shared__ float sums[64][8];
  const int k = blockIdx.x * 8 + threadIdx.x;
  const bool exists = k < conv.channels;
  const int64_t row = conv.channels;
  parts += static_cast<int64_t>(blockIdx.y) * conv.tiles() * 2 * row + k;
  const float pixels = static_cast<float>(conv.out_height) * conv.out_width;
  // The share of a tile in all pixels.
  const auto share = [&](int tile) {
    const int y = tile / conv.tile_columns() * kTileHeight;
    const int x = tile % conv.tile_columns() * kTileWidth;
    return min(kTileHeight, conv.out_height - y) * min(kTileWidth, conv.out_width - x) / pixels;
  };
  const auto total = [&](float sum) {
    __syncthreads();
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    float all = 0;
    for (int i = 0; i < 64; ++i) {
      all += sums[i][threadIdx.x];
    }
    return all;
  };
  float sum = 0;
  for (int tile = threadIdx.y; tile < conv.tiles() && exists; tile += 64) {
    sum += parts[tile * 2 * row] * share(tile);
  }
  const float mean = total(sum);
  sum = 0;
  for (int tile = threadIdx.y; tile < conv.tiles() && exists; tile += 64) {
    const float distance = parts[tile * 2 * row] - mean;
    sum += parts[(tile * 2 + 1) * row] / pixels + distance * distance * share(tile);
  }
  const float variance = total(sum);
  if (threadIdx.y == 0 && exists) {
    means[blockIdx.y * row + k] = mean;
    rstds[blockIdx.y * row + k] = 1.0f / sqrtf(variance + eps);
  }
}

// For a call that `fits` and is not empty. addend, y: [N, out_height, out_width, K]; below: as in
// `finish`; parts: [N, tiles, 2, K]; mean, rstd: [N, K]; all three null for no statistics.
template <typename T>
[[nodiscard]] cudaError_t launch_label_conv2d(const LabelConv& conv, const Level& level,
                                              const Weights<T>& weights, const T* addend,
                                              const Tables& tables, float below, float* parts,
                                              float eps, T* y, float* mean, float* rstd,
                                              cudaStream_t stream) {
  cudaError_t error = launch_pool_codes(conv, level, stream);
  if (error != cudaSuccess) {
    return error;
  }
  const dim3 codes(conv.codes() + 1, (tables.channels + 31) / 32);
  error = launch(make_tables<T>, codes, dim3(32, 8), 0, stream, conv, weights, tables);
  if (error != cudaSuccess) {
    return error;
  }
  int lanes = 1;
  while (lanes < 32 && lanes * Vector<T>::kWidth < conv.channels) {
    lanes *= 2;
  }
  const uintptr_t lies = reinterpret_cast<uintptr_t>(y) | reinterpret_cast<uintptr_t>(addend);
  const bool aligned = conv.channels % Vector<T>::kWidth == 0 && lies % 16 == 0;
  auto kernel = aligned ? convolve<true, false, T> : convolve<false, false, T>;
  if (level.pooled != nullptr) {
    kernel = aligned ? convolve<true, true, T> : convolve<false, true, T>;
  }
  const dim3 grid(conv.tiles(), conv.count);
  const size_t moments =
      parts == nullptr ? 0 : 2 * kTileThreads * Vector<T>::kWidth * sizeof(float);
  error = launch(kernel, grid, dim3(kTileThreads), Tile::bytes(conv) + moments, stream, conv, level,
                 tables, lanes, addend, below, y, parts);
  if (error != cudaSuccess || parts == nullptr) {
    return error;
  }
  return launch(combine_statistics, dim3((conv.channels + 7) / 8, conv.count), dim3(8, 64), 0,
                stream, conv, parts, eps, mean, rstd);
}

}  // namespace pix2pixhd_fast
