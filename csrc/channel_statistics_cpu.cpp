#include <torch/csrc/stable/library.h>

#include <tuple>

#include "chunk_statistics.h"
#include "pictures.h"

namespace {

std::tuple<Tensor, Tensor> channel_statistics_cpu(const Tensor& given, double eps) {
  const MemoryFormat format = format_of(given);
  const Pictures pictures(format, given);
  STD_TORCH_CHECK(pictures.pixels() > 0, "channel_statistics: x must have pixels");
  Tensor mean = new_per_channel(given);
  Tensor rstd = new_per_channel(given);
  if (given.numel() > 0) {
    const Tensor x = torch::stable::contiguous(given, format);
    with_type(x, [&]<typename T>() {
      const auto* values = static_cast<const T*>(x.const_data_ptr());
      const ChunkStatistics<T> statistics{pictures, static_cast<float*>(mean.mutable_data_ptr()),
                                          static_cast<float*>(rstd.mutable_data_ptr()), eps};
      pictures.for_each_image([&](int64_t image) {
        const T* start = values + image * pictures.pixels() * pictures.channels;
        statistics.image_statistics(
            image, [&](int64_t first, int64_t) { return start + first * pictures.channels; });
      });
    });
  }
  return {mean, rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("channel_statistics", TORCH_BOX(&channel_statistics_cpu));
}
