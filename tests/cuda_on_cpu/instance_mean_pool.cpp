#include "instance_mean_pool.cuh"

namespace {

template <typename Id, typename T>
int pool(const Id* ids, const T* features, T* pooled, char* memory, int64_t images,
         int64_t channels, int64_t pixels, int64_t last) {
  const pix2pixhd_fast::PoolShape shape{images, channels, pixels, last != 0};
  return pix2pixhd_fast::launch_instance_mean_pool(ids, features, pooled, memory, shape, nullptr);
}

}  // namespace

extern "C" int pool_int32_float32(const int32_t* ids, const float* features, float* pooled,
                                  char* memory, int64_t images, int64_t channels, int64_t pixels,
                                  int64_t last) {
  return pool(ids, features, pooled, memory, images, channels, pixels, last);
}

extern "C" int pool_int64_float16(const int64_t* ids, const __half* features, __half* pooled,
                                  char* memory, int64_t images, int64_t channels, int64_t pixels,
                                  int64_t last) {
  return pool(ids, features, pooled, memory, images, channels, pixels, last);
}

extern "C" int pool_int64_bfloat16(const int64_t* ids, const __nv_bfloat16* features,
                                   __nv_bfloat16* pooled, char* memory, int64_t images,
                                   int64_t channels, int64_t pixels, int64_t last) {
  return pool(ids, features, pooled, memory, images, channels, pixels, last);
}

extern "C" int64_t scratch_bytes(int64_t images, int64_t channels, int64_t pixels) {
  return pix2pixhd_fast::scratch_bytes({images, channels, pixels, false});
}
