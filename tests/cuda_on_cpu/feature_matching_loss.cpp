#include "feature_matching_loss.cuh"

using namespace pix2pixhd_fast;

namespace {

// Two features in one launch: the first with the norms [4, ...] of both sides, which may be null,
// the second, plain, of `elements`.
template <typename T>
Table table_of(const T* fake, const T* real, T* dx, const float* mean, const float* rstd,
               const float* gamma, const float* beta, int64_t images, int64_t pixels,
               int64_t channels, int64_t affine, double slope, const T* plain_fake,
               const T* plain_real, T* plain_dx, int64_t elements) {
  Table table{};
  const Side side{mean, rstd, gamma, beta};
  table.count = 2;
  Feature& a = table.at[0];
  a.fake = fake, a.real = real, a.dx = dx, a.f = a.r = side;
  a.images = images, a.pixels = pixels;
  a.channels = static_cast<int>(channels), a.affine = static_cast<int>(affine);
  a.slope = static_cast<float>(slope), a.scale = 0.5f / (images * pixels * channels);
  a.tanh = slope > 1.0, a.summed = true;
  Feature& b = table.at[1];
  b.fake = plain_fake, b.real = plain_real, b.dx = plain_dx;
  b.images = 1, b.pixels = elements, b.channels = b.affine = 1;
  b.slope = 1.0f, b.scale = 2.0f / elements;
  plan<T>(table);
  return table;
}

}  // namespace

#define ENTRY(name, T)                                                                             \
  extern "C" int measure_##name(                                                                   \
      const T* fake, const T* real, const float* mean, const float* rstd, const float* gamma,      \
      const float* beta, int64_t images, int64_t pixels, int64_t channels, int64_t affine,         \
      double slope, const T* plain_fake, const T* plain_real, int64_t elements, float* distances,  \
      float* partials, float* loss, float* sums) {                                                 \
    const Table table =                                                                            \
        table_of<T>(fake, real, nullptr, mean, rstd, gamma, beta, images, pixels, channels,        \
                    affine, slope, plain_fake, plain_real, nullptr, elements);                     \
    return launch_feature_matching_loss<T>(table, distances, partials, loss, sums, true, nullptr); \
  }                                                                                                \
  extern "C" int differentiate_##name(                                                             \
      const T* fake, const T* real, T* dx, const float* mean, const float* rstd,                   \
      const float* gamma, const float* beta, int64_t images, int64_t pixels, int64_t channels,     \
      int64_t affine, double slope, const T* plain_fake, const T* plain_real, T* plain_dx,         \
      int64_t elements, const float* dloss, const float* sums) {                                   \
    const Table table =                                                                            \
        table_of<T>(fake, real, dx, mean, rstd, gamma, beta, images, pixels, channels, affine,     \
                    slope, plain_fake, plain_real, plain_dx, elements);                            \
    return launch_feature_matching_gradient<T>(table, dloss, sums, nullptr);                       \
  }                                                                                                \
  extern "C" void sizes_##name(const T* fake, const T* real, int64_t images, int64_t pixels,       \
                               int64_t channels, const T* plain_fake, const T* plain_real,         \
                               int64_t elements, int64_t* sizes) {                                 \
    const Table table =                                                                            \
        table_of<T>(fake, real, nullptr, nullptr, nullptr, nullptr, nullptr, images, pixels,       \
                    channels, 1, 0.2, plain_fake, plain_real, nullptr, elements);                  \
    sizes[0] = table.blocks, sizes[1] = table.partials;                                            \
  }

ENTRY(float, float)
ENTRY(half, __half)
ENTRY(bfloat16, __nv_bfloat16)
