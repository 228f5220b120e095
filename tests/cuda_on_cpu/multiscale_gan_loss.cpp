#include "multiscale_gan_loss.cuh"

using namespace pix2pixhd_fast;

namespace {

Predictions two(const void* p, void* dp, int64_t size, const void* q, void* dq, int64_t other,
                double target, int64_t lsgan) {
  Predictions all{};
  all.count = 2;
  all.at[0] = {p, dp, size, 0};
  all.at[1] = {q, dq, other, 0};
  all.target = static_cast<float>(target);
  all.lsgan = lsgan != 0;
  plan(all);
  return all;
}

}  // namespace

#define ENTRY(name, T)                                                                         \
  extern "C" int measure_##name(const T* p, int64_t size, const T* q, int64_t other,           \
                                double target, int64_t lsgan, float* distances, float* loss) { \
    const Predictions all = two(p, nullptr, size, q, nullptr, other, target, lsgan);           \
    return launch_multiscale_gan_loss<T>(all, distances, loss, true, nullptr);                 \
  }                                                                                            \
  extern "C" int differentiate_##name(const T* p, T* dp, int64_t size, const T* q, T* dq,      \
                                      int64_t other, double target, int64_t lsgan,             \
                                      const float* dloss) {                                    \
    const Predictions all = two(p, dp, size, q, dq, other, target, lsgan);                     \
    return launch_multiscale_gan_gradient<T>(all, dloss, nullptr);                             \
  }

ENTRY(float, float)
ENTRY(half, __half)
ENTRY(bfloat16, __nv_bfloat16)
