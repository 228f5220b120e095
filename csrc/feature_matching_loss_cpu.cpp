#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "activations.h"
#include "pictures.h"
#include "tiles.h"

namespace {

using Tensors = std::vector<Tensor>;

// The norm of one side, [lanes] each: xhat = (x - mean) * scale and z = xhat * gamma + beta.
struct Side {
  const float *mean, *scale, *gamma, *beta;
};

struct Centring {
  const float *mean_g, *mean_dot;
  const float* factor;  // weight / elements * dloss * gamma * rstd
};

// One expression for both sides, so that equal features differ by nothing.
[[gnu::always_inline]] inline float xhat_of(float x, Side side, int64_t lane) {
  return (x - side.mean[lane]) * side.scale[lane];
}

[[gnu::always_inline]] inline float z_of(float xhat, Side side, int64_t lane) {
  return xhat * side.gamma[lane] + side.beta[lane];
}

// distances += |d|, sums += g and dots += g * xhat, where g = sign(d) * act'(z)
PIX2PIXHD_FAST_SIMD
void add_normalised(const float* fake, const float* real, int64_t count, int64_t lanes, Side f,
                    Side r, Act act, float slope, float* distances, float* sums, float* dots) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float xhat = xhat_of(fake[i], f, lane);
      const float z = z_of(xhat, f, lane);
      const float other = z_of(xhat_of(real[i], r, lane), r, lane);
      const float d = activate<a>(z, slope) - activate<a>(other, slope);
      const float g = activate_backward<a>(sign_of(d), z, slope);
      distances[lane] += std::fabs(d);
      sums[lane] += g;
      dots[lane] += g * xhat;
    });
  });
}

PIX2PIXHD_FAST_SIMD
void add_plain(const float* fake, const float* real, int64_t count, Act act, float slope,
               float* distances) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, kLanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      distances[lane] += std::fabs(activate<a>(fake[i], slope) - activate<a>(real[i], slope));
    });
  });
}

// dx = factor * (g - mean_g - xhat * mean_dot)
PIX2PIXHD_FAST_SIMD
void differentiate_normalised(const float* fake, const float* real, int64_t count, int64_t lanes,
                              Side f, Side r, Centring by, Act act, float slope, float* dx) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float xhat = xhat_of(fake[i], f, lane);
      const float z = z_of(xhat, f, lane);
      const float other = z_of(xhat_of(real[i], r, lane), r, lane);
      const float d = activate<a>(z, slope) - activate<a>(other, slope);
      const float g = activate_backward<a>(sign_of(d), z, slope);
      dx[i] = by.factor[lane] * (g - by.mean_g[lane] - xhat * by.mean_dot[lane]);
    });
  });
}

PIX2PIXHD_FAST_SIMD
void differentiate_plain(const float* fake, const float* real, int64_t count, float factor, Act act,
                         float slope, float* dx) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, kLanes, [=](int64_t i, int64_t) __attribute__((always_inline)) {
      const float d = activate<a>(fake[i], slope) - activate<a>(real[i], slope);
      dx[i] = factor * activate_backward<a>(sign_of(d), fake[i], slope);
    });
  });
}

std::optional<Tensor> given(const Tensor& t) {
  return t.numel() > 0 ? std::optional<Tensor>(t) : std::nullopt;
}

// mean, rstd, gamma and beta of one side of a feature.
struct SideParameters {
  bool any;
  PerChannel mean, scale, gamma, beta;

  SideParameters(const Tensor* norm, const Tensor& x)
      : any(given(norm[0]) || given(norm[1]) || given(norm[2]) || given(norm[3])),
        mean(given(norm[0]), x, 0.0f),
        scale(given(norm[1]), x, 1.0f),
        gamma(given(norm[2]), x, 1.0f),
        beta(given(norm[3]), x, 0.0f) {}

  // into [4, lanes]
  Side fill(const Pictures& pictures, int64_t image, float* to) const {
    const int64_t lanes = pictures.lanes;
    mean.fill(pictures, image, to);
    scale.fill(pictures, image, to + lanes);
    gamma.fill(pictures, image, to + 2 * lanes);
    beta.fill(pictures, image, to + 3 * lanes);
    return {to, to + lanes, to + 2 * lanes, to + 3 * lanes};
  }
};

// One feature, in chunks of whole pixels that lie within an image. Without norms a feature is one
// image of one channel.
struct Feature {
  MemoryFormat format;
  SideParameters f, r;
  bool normalised;
  Pictures pictures;
  Tensor fake, real;
  Act act;
  float slope;
  int64_t chunk_pixels, chunks_per_image;
  // Where its chunks, their sums [2, channels] and its own sums begin among those of all features.
  int64_t first_chunk, first_partial, first_sum;

  Feature(const Tensor& given_fake, const Tensor& given_real, const Tensor* fake_norm,
          const Tensor* real_norm, const std::string& act_name, double given_slope)
      : format(format_of(given_fake)),
        f(fake_norm, given_fake),
        r(real_norm, given_fake),
        normalised(f.any || r.any),
        pictures(normalised ? Pictures(format, given_fake)
                            : Pictures(format, 1, 1, 1, given_fake.numel())),
        fake(torch::stable::contiguous(given_fake, format)),
        real(torch::stable::contiguous(check_alike(given_real, given_fake, 0, "real"), format)),
        act(act_of(act_name)),
        slope(static_cast<float>(given_slope)) {
    chunk_pixels = pictures.tile > 0 ? ceil_div(kChunk, pictures.tile) * pictures.tile_pixels : 1;
    chunks_per_image = ceil_div(pictures.pixels(), chunk_pixels);
  }

  int64_t chunks() const { return fake.numel() > 0 ? pictures.images * chunks_per_image : 0; }
};

// Where a chunk lies.
struct Chunk {
  const Feature& feature;
  int64_t index, image, offset, count;  // index: among those of its feature
};

struct Features {
  std::vector<Feature> all;
  int64_t chunks = 0, partials = 0, sums = 0, values = 0;

  Features(const Tensors& fake, const Tensors& real, const Tensors& fake_norms,
           const Tensors& real_norms, const std::vector<std::string>& acts,
           const std::vector<double>& slopes) {
    const size_t n = fake.size();
    STD_TORCH_CHECK(real.size() == n && acts.size() == n && slopes.size() == n &&
                        fake_norms.size() == 4 * n && real_norms.size() == 4 * n,
                    "feature_matching_loss: lists of different lengths");
    for (size_t i = 0; i < n; ++i) {
      STD_TORCH_CHECK(fake[i].scalar_type() == fake[0].scalar_type(),
                      "feature_matching_loss: features of different dtypes");
      Feature& feature = all.emplace_back(fake[i], real[i], &fake_norms[4 * i], &real_norms[4 * i],
                                          acts[i], slopes[i]);
      feature.first_chunk = chunks;
      feature.first_partial = partials;
      feature.first_sum = sums;
      chunks += feature.chunks();
      values += fake[i].numel();
      if (feature.normalised) partials += feature.chunks() * 2 * feature.pictures.channels;
      if (feature.f.any) sums += 2 * fake[i].size(0) * fake[i].size(1);
    }
  }

  // Calls body(chunk, its number) for the chunks of all features.
  template <typename Body>
  void for_each_chunk(Body body) const {
    const int64_t grain = ceil_div(chunks * kChunk, std::max<int64_t>(values, 1));
    parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
      size_t i = 0;
      for (int64_t number = begin; number < end; ++number) {
        while (i + 1 < all.size() && all[i + 1].first_chunk <= number) ++i;
        const Feature& feature = all[i];
        const Pictures& pictures = feature.pictures;
        const int64_t index = number - feature.first_chunk;
        const int64_t image = index / feature.chunks_per_image;
        const int64_t pixel = index % feature.chunks_per_image * feature.chunk_pixels;
        const int64_t count = std::min(feature.chunk_pixels, pictures.pixels() - pixel);
        body(Chunk{feature, index, image, (image * pictures.pixels() + pixel) * pictures.channels,
                   count * pictures.channels},
             number);
      }
    });
  }
};

// Calls body(fake, real, offset in the chunk, count) for the tiles of a chunk as floats.
template <typename T, typename Body>
void for_each_tile(const Chunk& chunk, Body body) {
  const int64_t tile = chunk.feature.pictures.tile;
  const T* fake = static_cast<const T*>(chunk.feature.fake.const_data_ptr()) + chunk.offset;
  const T* real = static_cast<const T*>(chunk.feature.real.const_data_ptr()) + chunk.offset;
  const Buffer buffers = uninitialised(2 * tile);
  for (int64_t i = 0; i < chunk.count; i += tile) {
    const int64_t n = std::min(tile, chunk.count - i);
    body(load_tile(fake + i, n, buffers.get()), load_tile(real + i, n, buffers.get() + tile), i, n);
  }
}

double total_of(const float* values, int64_t count) {
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

// Sums the distances of a chunk; g and g * xhat into `partial`, [2, channels].
template <typename T>
double measure(const Chunk& chunk, float* partial) {
  const Feature& feature = chunk.feature;
  const Pictures& pictures = feature.pictures;
  const int64_t lanes = pictures.lanes;
  const Buffer scratch = uninitialised(11 * lanes);
  float* distances = scratch.get();
  float *sums = distances + lanes, *dots = sums + lanes;
  std::fill_n(distances, 3 * lanes, 0.0f);
  if (!feature.normalised) {
    for_each_tile<T>(chunk, [&](const float* fake, const float* real, int64_t, int64_t n) {
      add_plain(fake, real, n, feature.act, feature.slope, distances);
    });
    return total_of(distances, lanes);
  }
  const Side f = feature.f.fill(pictures, chunk.image, dots + lanes);
  const Side r = feature.r.fill(pictures, chunk.image, dots + 5 * lanes);
  for_each_tile<T>(chunk, [&](const float* fake, const float* real, int64_t, int64_t n) {
    add_normalised(fake, real, n, lanes, f, r, feature.act, feature.slope, distances, sums, dots);
  });
  pictures.fold(sums);
  pictures.fold(dots);
  std::copy_n(sums, pictures.channels, partial);
  std::copy_n(dots, pictures.channels, partial + pictures.channels);
  return total_of(distances, lanes);
}

// Of the sums of a feature's chunks, [chunks, 2, channels], the means of its images, [2, images,
// channels].
void combine(const Feature& feature, const float* partial, float* means) {
  const Pictures& pictures = feature.pictures;
  const int64_t channels = pictures.channels;
  pictures.for_each_image([&](int64_t image) {
    std::vector<double> total(2 * channels);
    const float* from = partial + image * feature.chunks_per_image * 2 * channels;
    for (int64_t chunk = 0; chunk < feature.chunks_per_image; ++chunk) {
      for (int64_t c = 0; c < 2 * channels; ++c) total[c] += from[chunk * 2 * channels + c];
    }
    for (int64_t c = 0; c < 2 * channels; ++c) {
      const int64_t row = c / channels * pictures.images + image;
      means[row * channels + c % channels] = static_cast<float>(total[c] / pictures.pixels());
    }
  });
}

std::tuple<Tensor, Tensor> feature_matching_loss_forward_cpu(Tensors fake, Tensors real,
                                                             Tensors fake_norms, Tensors real_norms,
                                                             std::vector<std::string> acts,
                                                             std::vector<double> slopes,
                                                             std::vector<double> weights) {
  const Features features(fake, real, fake_norms, real_norms, acts, slopes);
  STD_TORCH_CHECK(weights.size() == fake.size(), "feature_matching_loss: too few weights");
  Tensor loss = torch::stable::empty({}, ScalarType::Float);
  Tensor sums = torch::stable::empty({features.sums}, ScalarType::Float);
  std::vector<double> distances(features.chunks);
  const Buffer partial = uninitialised(features.partials);
  features.for_each_chunk([&](const Chunk& chunk, int64_t number) {
    const int64_t before = chunk.index * 2 * chunk.feature.pictures.channels;
    float* to = partial.get() + chunk.feature.first_partial + before;
    with_type(chunk.feature.fake, [&]<typename T>() { distances[number] = measure<T>(chunk, to); });
  });
  double total = 0.0;
  for (size_t i = 0; i < features.all.size(); ++i) {
    const Feature& feature = features.all[i];
    double distance = 0.0;
    for (int64_t k = 0; k < feature.chunks(); ++k) distance += distances[feature.first_chunk + k];
    total += weights[i] * distance / static_cast<double>(feature.fake.numel());
    if (feature.f.any && feature.chunks() > 0) {
      auto* means = static_cast<float*>(sums.mutable_data_ptr()) + feature.first_sum;
      combine(feature, partial.get() + feature.first_partial, means);
    }
  }
  *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(total);
  return {loss, sums};
}

// `means`: of all features, [2, images, channels] each.
template <typename T>
void differentiate(const Chunk& chunk, float scale, const float* means, T* dx) {
  const Feature& feature = chunk.feature;
  const Pictures& pictures = feature.pictures;
  const int64_t lanes = pictures.lanes, channels = pictures.channels;
  const Buffer scratch = uninitialised(11 * lanes + pictures.tile);
  float* buffer = scratch.get() + 11 * lanes;
  if (!feature.normalised) {
    for_each_tile<T>(chunk, [&](const float* fake, const float* real, int64_t i, int64_t n) {
      float* to = tile_target(dx + chunk.offset + i, buffer);
      differentiate_plain(fake, real, n, scale, feature.act, feature.slope, to);
      store_tile(to, n, dx + chunk.offset + i);
    });
    return;
  }
  const Side f = feature.f.fill(pictures, chunk.image, scratch.get());
  const Side r = feature.r.fill(pictures, chunk.image, scratch.get() + 4 * lanes);
  float *mean_g = scratch.get() + 8 * lanes, *mean_dot = mean_g + lanes, *factor = mean_dot + lanes;
  std::fill_n(mean_g, 2 * lanes, 0.0f);
  if (feature.f.any) {
    const float* from = means + feature.first_sum + chunk.image * channels;
    std::copy_n(from, channels, mean_g);
    std::copy_n(from + pictures.images * channels, channels, mean_dot);
    pictures.repeat(mean_g);
    pictures.repeat(mean_dot);
  }
  for (int64_t lane = 0; lane < lanes; ++lane) factor[lane] = scale * f.gamma[lane] * f.scale[lane];
  for_each_tile<T>(chunk, [&](const float* fake, const float* real, int64_t i, int64_t n) {
    float* to = tile_target(dx + chunk.offset + i, buffer);
    differentiate_normalised(fake, real, n, lanes, f, r, {mean_g, mean_dot, factor}, feature.act,
                             feature.slope, to);
    store_tile(to, n, dx + chunk.offset + i);
  });
}

Tensors feature_matching_loss_backward_cpu(const Tensor& dloss, Tensors fake, Tensors real,
                                           Tensors fake_norms, Tensors real_norms,
                                           const Tensor& given_sums, std::vector<std::string> acts,
                                           std::vector<double> slopes,
                                           std::vector<double> weights) {
  const Features features(fake, real, fake_norms, real_norms, acts, slopes);
  STD_TORCH_CHECK(weights.size() == fake.size(), "feature_matching_loss: too few weights");
  STD_TORCH_CHECK(dloss.numel() == 1 && given_sums.numel() == features.sums,
                  "feature_matching_loss: sums do not match the features");
  const Tensor dtotal = torch::stable::to(dloss, ScalarType::Float);
  const Tensor sums = torch::stable::contiguous(torch::stable::to(given_sums, ScalarType::Float));
  const float upstream = *static_cast<const float*>(dtotal.const_data_ptr());
  Tensors found;
  for (size_t i = 0; i < fake.size(); ++i) {
    found.push_back(new_tensor(features.all[i].format, fake[i], fake[i].size(2), fake[i].size(3)));
  }
  features.for_each_chunk([&](const Chunk& chunk, int64_t) {
    const size_t i = &chunk.feature - features.all.data();
    const float scale = upstream * static_cast<float>(weights[i] / fake[i].numel());
    with_type(chunk.feature.fake, [&]<typename T>() {
      differentiate<T>(chunk, scale, static_cast<const float*>(sums.const_data_ptr()),
                       static_cast<T*>(found[i].mutable_data_ptr()));
    });
  });
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("feature_matching_loss_forward", TORCH_BOX(&feature_matching_loss_forward_cpu));
  m.impl("feature_matching_loss_backward", TORCH_BOX(&feature_matching_loss_backward_cpu));
}
