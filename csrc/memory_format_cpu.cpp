#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "pictures.h"

namespace {

// Pixels of a task: with all channels of 64 pixels its half lies in the first-level cache.
constexpr int64_t kPixels = 64;

// [images, channels, pixels] -> [images, pixels, channels], or the reverse.
template <typename T>
void transpose(const T* x, T* y, int64_t images, int64_t channels, int64_t pixels, bool to_last) {
  const int64_t blocks = ceil_div(pixels, kPixels);
  const int64_t grain = std::max<int64_t>(1, kChunk / (kPixels * channels));
  parallel_for(0, images * blocks, grain, [=](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t image = block / blocks * channels * pixels;
      const int64_t first = block % blocks * kPixels;
      const int64_t last = std::min(pixels, first + kPixels);
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t plane = image + c * pixels;
        if (to_last) {
          for (int64_t p = first; p < last; ++p) y[image + p * channels + c] = x[plane + p];
        } else {
          for (int64_t p = first; p < last; ++p) y[plane + p] = x[image + p * channels + c];
        }
      }
    }
  });
}

Tensor in_format(const Tensor& given, bool to_last) {
  STD_TORCH_CHECK(given.dim() == 4, "memory format: x must be [N, C, H, W]");
  const MemoryFormat from = to_last ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast;
  const Tensor x = torch::stable::contiguous(given, from);
  Tensor y = torch::stable::empty({x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type(),
                                  std::nullopt, std::nullopt, std::nullopt,
                                  to_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  if (x.numel() == 0) return y;
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * y.element_size());
  const int64_t images = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  const auto run = [&]<typename T>(T) {
    transpose(static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(y.mutable_data_ptr()),
              images, channels, pixels, to_last);
  };
  if (x.element_size() == 4) {
    run(uint32_t{});
  } else {
    STD_TORCH_CHECK(x.element_size() == 2, "memory format: x has an unsupported dtype");
    run(uint16_t{});
  }
  return y;
}

Tensor to_channels_last(const Tensor& x) { return in_format(x, true); }
Tensor to_default_format(const Tensor& x) { return in_format(x, false); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("to_channels_last", TORCH_BOX(&to_channels_last));
  m.impl("to_default_format", TORCH_BOX(&to_default_format));
}
