#pragma once

// Device code of multiscale_gan_loss, and its launches: all predictions in one launch, and a second
// one that adds up the sums of its blocks. Predictions are small, 140 KiB at 2048x1024: what counts
// is the number of launches.

#include "sums.cuh"

namespace pix2pixhd_fast {

constexpr int kBlockValues = kThreads * 16;
constexpr int kMostPredictions = 64;

struct Predictions {
  struct One {
    const void* p;
    void* dp;  // written by the gradient
    int64_t size, first_block;
  } at[kMostPredictions];
  int count;
  int64_t blocks;
  float target;
  bool lsgan;
};
static_assert(sizeof(Predictions) + 64 <= 4096);

inline void plan(Predictions& all) {
  all.blocks = 0;
  for (int i = 0; i < all.count; ++i) {
    all.at[i].first_block = all.blocks;
    all.blocks += ceil_div(all.at[i].size, kBlockValues);
  }
}

// The least logarithm and the least p * (1 - p) to divide by are those of torch.nn.BCELoss; the
// comparisons let a NaN through.
__device__ inline float distance_of(float p, const Predictions& all) {
  if (all.lsgan) return (p - all.target) * (p - all.target);
  const float yes = logf(p), no = log1pf(-p);
  return (all.target - 1.0f) * (no < -100.0f ? -100.0f : no) -
         all.target * (yes < -100.0f ? -100.0f : yes);
}

__device__ inline float slope_of(float p, const Predictions& all) {
  if (all.lsgan) return 2.0f * (p - all.target);
  const float variance = p * (1.0f - p);
  return (p - all.target) / (variance < 1e-12f ? 1e-12f : variance);
}

__device__ inline const Predictions::One& prediction_of(const Predictions& all, int64_t block) {
  int i = 0;
  while (i + 1 < all.count && all.at[i + 1].first_block <= block) ++i;
  return all.at[i];
}

// distances: [blocks]
template <typename T>
__global__ void __launch_bounds__(kThreads)
    measure_predictions(const __grid_constant__ Predictions all, float* distances) {
  const Predictions::One& one = prediction_of(all, blockIdx.x);
  const T* p = static_cast<const T*>(one.p);
  const int64_t first = (blockIdx.x - one.first_block) * kBlockValues;
  const int64_t last = min(one.size, first + kBlockValues);
  float sum = 0.0f;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    sum += distance_of(to_float(p[i]), all);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) distances[blockIdx.x] = sum;
}

// One block. `first`: the loss is set, not added to.
__global__ void __launch_bounds__(kThreads)
    combine_predictions(const __grid_constant__ Predictions all, const float* distances,
                        float* loss, bool first) {
  double sum = 0.0;
  for (int i = 0; i < all.count; ++i) {
    const int64_t end = i + 1 < all.count ? all.at[i + 1].first_block : all.blocks;
    double part = 0.0;
    for (int64_t b = all.at[i].first_block + threadIdx.x; b < end; b += kThreads) {
      part += distances[b];
    }
    sum += part / static_cast<double>(all.at[i].size);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = (first ? 0.0f : *loss) + static_cast<float>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    differentiate_predictions(const __grid_constant__ Predictions all, const float* dloss) {
  const Predictions::One& one = prediction_of(all, blockIdx.x);
  const T* p = static_cast<const T*>(one.p);
  T* dp = static_cast<T*>(one.dp);
  const float scale = *dloss / static_cast<float>(one.size);
  const int64_t first = (blockIdx.x - one.first_block) * kBlockValues;
  const int64_t last = min(one.size, first + kBlockValues);
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    from_float(slope_of(to_float(p[i]), all) * scale, dp[i]);
  }
}

// The launches want planned predictions.
template <typename T>
[[nodiscard]] cudaError_t launch_multiscale_gan_loss(const Predictions& all, float* distances,
                                                     float* loss, bool first, cudaStream_t stream) {
  if (all.blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (all.blocks > 0) {
    const dim3 grid(static_cast<unsigned>(all.blocks));
    const cudaError_t error =
        launch(measure_predictions<T>, grid, dim3(kThreads), 0, stream, all, distances);
    if (error != cudaSuccess) return error;
  }
  return launch(combine_predictions, dim3(1), dim3(kThreads), 0, stream, all, distances, loss,
                first);
}

template <typename T>
[[nodiscard]] cudaError_t launch_multiscale_gan_gradient(const Predictions& all, const float* dloss,
                                                         cudaStream_t stream) {
  if (all.blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (all.blocks == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(all.blocks));
  return launch(differentiate_predictions<T>, grid, dim3(kThreads), 0, stream, all, dloss);
}

}  // namespace pix2pixhd_fast
