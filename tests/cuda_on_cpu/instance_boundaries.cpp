#include "instance_boundaries.cuh"

extern "C" int mark_int32(const int32_t* ids, uint8_t* edges, int64_t count, int64_t height,
                          int64_t width) {
  return pix2pixhd_fast::launch_instance_boundaries(ids, edges, count, height, width, nullptr);
}

extern "C" int mark_int64(const int64_t* ids, uint8_t* edges, int64_t count, int64_t height,
                          int64_t width) {
  return pix2pixhd_fast::launch_instance_boundaries(ids, edges, count, height, width, nullptr);
}
