#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "pictures.h"
#include "tiles.h"

// The mean and deviation of each channel, chunk by chunk of pixels while they are in the cache.
namespace {

// sums += x - shift and squares += (x - shift)^2
PIX2PIXHD_FAST_SIMD
void add_moments(const float* x, int64_t count, int64_t lanes, const float* shift, float* sums,
                 float* squares) {
  for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const float d = x[i] - shift[lane];
    sums[lane] += d;
    squares[lane] += d * d;
  });
}

template <typename T>
struct ChunkStatistics : Pictures {
  float* mean;  // [images, channels], as is rstd
  float* rstd;
  double eps;

  int64_t chunk_pixels() const { return ceil_div(kChunk, tile) * tile_pixels; }

  // `chunk_at(first pixel, number of pixels)` makes a chunk of the image and says where it lies.
  template <typename ChunkAt>
  void image_statistics(int64_t image, ChunkAt chunk_at) const {
    const int64_t chunks = ceil_div(pixels(), chunk_pixels());
    const Buffer means = uninitialised(chunks * channels);
    const Buffer squares = uninitialised(chunks * channels);
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      const Buffer scratch = uninitialised(3 * lanes + tile);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * chunk_pixels();
        const int64_t count = std::min(chunk_pixels(), pixels() - first);
        const T* values = chunk_at(first, count);
        chunk_statistics(values, count, scratch.get(), means.get() + chunk * channels,
                         squares.get() + chunk * channels);
      }
    });
    combine(means.get(), squares.get(), chunks, image);
  }

  // The means of a chunk of `count` pixels and the sums of the squared distances from them,
  // [channels] each. The moments are about the mean of the first tile. It is a 16th of the chunk or
  // more, and thus within 4 deviations of the chunk's mean: 17 roundings are the most that is lost.
  void chunk_statistics(const T* chunk, int64_t count, float* scratch, float* means,
                        float* squares) const {
    float* shift = scratch;
    float* sums = shift + lanes;
    float* dots = sums + lanes;
    float* buffer = dots + lanes;
    std::fill_n(scratch, 3 * lanes, 0.0f);
    const int64_t size = count * channels;
    const int64_t start = std::min(tile, size);
    add_moments(load_tile(chunk, start, buffer), start, lanes, shift, sums, dots);
    fold(sums);
    for (int64_t c = 0; c < channels; ++c) shift[c] = sums[c] * channels / start;
    repeat(shift);
    std::fill_n(sums, 2 * lanes, 0.0f);
    for (int64_t i = 0; i < size; i += tile) {
      const int64_t n = std::min(tile, size - i);
      add_moments(load_tile(chunk + i, n, buffer), n, lanes, shift, sums, dots);
    }
    fold(sums);
    fold(dots);
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = static_cast<double>(sums[c]) / count;
      means[c] = static_cast<float>(shift[c] + distance);
      squares[c] = static_cast<float>(std::max(0.0, dots[c] - distance * sums[c]));
    }
  }

  // Of the chunks' means and squared distances [chunks, channels].
  void combine(const float* means, const float* squares, int64_t chunks, int64_t image) const {
    const double all = static_cast<double>(pixels());
    std::vector<double> total(channels), spread(channels);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double share = std::min(chunk_pixels(), pixels() - chunk * chunk_pixels()) / all;
      for (int64_t c = 0; c < channels; ++c) total[c] += share * means[chunk * channels + c];
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double share = std::min(chunk_pixels(), pixels() - chunk * chunk_pixels()) / all;
      for (int64_t c = 0; c < channels; ++c) {
        const double d = means[chunk * channels + c] - total[c];
        spread[c] += squares[chunk * channels + c] / all + share * d * d;
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      mean[image * channels + c] = static_cast<float>(total[c]);
      rstd[image * channels + c] = static_cast<float>(1.0 / std::sqrt(spread[c] + eps));
    }
  }
};

}  // namespace
