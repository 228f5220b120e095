#include "label_conv2d_backward.cuh"

using namespace pix2pixhd_fast;

namespace {

// sizes: [13], the fields of LabelCall and whether labels are int32.
LabelCall call_of(const int64_t* sizes) {
  return {sizes[0], sizes[1],       sizes[2],
          sizes[3], sizes[4],       sizes[5],
          sizes[6], sizes[7],       static_cast<Padding>(sizes[8]),
          sizes[9], sizes[10] != 0, static_cast<int>(sizes[11])};
}

Level level_of(const int64_t* sizes, const void* labels, const uint8_t* edges, uint16_t* pooled,
               uint32_t* mixtures) {
  return make_level(call_of(sizes), labels, sizes[12] != 0, edges, pooled, mixtures);
}

template <typename T>
int convolve_as(const int64_t* sizes, const void* labels, const uint8_t* edges, const void* weight,
                const void* bias, const void* addend, uint16_t* pooled, uint32_t* mixtures,
                float* rows, float* sums, double below, float* parts, double eps, void* y,
                float* mean, float* rstd) {
  if (!fits(call_of(sizes))) {
    return cudaErrorInvalidValue;
  }
  const LabelConv conv(call_of(sizes));
  // The weight lies as [kh, inputs, kw, K]: no stride is what another one would be.
  const Weights<T> weights{static_cast<const T*>(weight),
                           static_cast<const T*>(bias),
                           1,
                           static_cast<int64_t>(conv.kernel_width) * conv.channels,
                           static_cast<int64_t>(conv.inputs()) * conv.kernel_width * conv.channels,
                           conv.channels};
  return launch_label_conv2d(conv, level_of(sizes, labels, edges, pooled, mixtures), weights,
                             static_cast<const T*>(addend),
                             Tables{rows, sums, Tables::channels_of(conv)},
                             static_cast<float>(below), parts, static_cast<float>(eps),
                             static_cast<T*>(y), mean, rstd, nullptr);
}

template <typename T>
int backward_as(const int64_t* sizes, const void* labels, const uint8_t* edges, const void* dy,
                uint16_t* pooled, uint32_t* mixtures, uint16_t* classes, uint16_t* mixed,
                int* counts, float* uniform, float* steps, void* dweight, void* dbias) {
  if (!fits(call_of(sizes))) {
    return cudaErrorInvalidValue;
  }
  return launch_label_conv2d_backward(
      LabelConv(call_of(sizes)), level_of(sizes, labels, edges, pooled, mixtures),
      BackwardSums{classes, mixed, counts, uniform, steps}, static_cast<const T*>(dy),
      static_cast<T*>(dweight), static_cast<T*>(dbias), nullptr);
}

}  // namespace

#define FOR_TYPE(name, T)                                                                         \
  extern "C" int convolve_##name(                                                                 \
      const int64_t* sizes, const void* labels, const uint8_t* edges, const void* weight,         \
      const void* bias, const void* addend, uint16_t* pooled, uint32_t* mixtures, float* rows,    \
      float* sums, double below, float* parts, double eps, void* y, float* mean, float* rstd) {   \
    return convolve_as<T>(sizes, labels, edges, weight, bias, addend, pooled, mixtures, rows,     \
                          sums, below, parts, eps, y, mean, rstd);                                \
  }                                                                                               \
  extern "C" int backward_##name(const int64_t* sizes, const void* labels, const uint8_t* edges,  \
                                 const void* dy, uint16_t* pooled, uint32_t* mixtures,            \
                                 uint16_t* classes, uint16_t* mixed, int* counts, float* uniform, \
                                 float* steps, void* dweight, void* dbias) {                      \
    return backward_as<T>(sizes, labels, edges, dy, pooled, mixtures, classes, mixed, counts,     \
                          uniform, steps, dweight, dbias);                                        \
  }

FOR_TYPE(float32, float)
FOR_TYPE(float16, __half)
FOR_TYPE(bfloat16, __nv_bfloat16)
