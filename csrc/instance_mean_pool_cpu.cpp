#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "instance_pool_problem.h"
#include "instance_runs.h"
#include "pictures.h"

// An instance map is runs of equal ids along its rows. One pass finds the runs and sums them, chunk
// by chunk; the sums of all chunks are added in their order; a second pass fills the runs. So
// features are read once, ids once, and what a pixel costs does not depend on the number of
// instances.
namespace {

// Pixels of a chunk, some 50 us; its boundaries do not depend on the number of threads, and neither
// do the sums.
constexpr int64_t kPixels = 32768;
// Of which the runs are found before they are summed: the ids, 16 KiB, stay in the first-level
// cache.
constexpr int64_t kPiece = 4096;
// An instance is summed in kLanePixels lanes of float for each channel, at most kAdditions to each,
// then in double: its runs, of some 100 pixels, are not folded one by one.
constexpr int64_t kAdditions = 64;

inline void rounded(double value, double& to) { to = value; }
inline void rounded(double value, float& to) { to = static_cast<float>(value); }
inline void rounded(double value, Half& to) { from_float(static_cast<float>(value), to); }
inline void rounded(double value, BFloat16& to) { from_float(static_cast<float>(value), to); }

// Numbers ids 0, 1, 2, ... in the order in which they come. Open addressing, at most half full;
// with the ids of a street almost empty, so that the first place is right.
template <typename Id>
class Numbers {
 public:
  int32_t of(Id id) {
    if (2 * ids_.size() >= table_.size()) grow();
    int32_t& found = table_[place(id)];
    if (found < 0) {
      found = static_cast<int32_t>(ids_.size());
      ids_.push_back(id);
    }
    return found;
  }

  // Of an id that has one.
  int32_t known(Id id) const { return table_[place(id)]; }

  const std::vector<Id>& ids() const { return ids_; }

 private:
  size_t place(Id id) const {
    const uint64_t mixed = static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u;
    size_t at = (mixed >> 32) & (table_.size() - 1);
    while (table_[at] >= 0 && ids_[table_[at]] != id) at = (at + 1) & (table_.size() - 1);
    return at;
  }

  void grow() {
    table_.assign(std::max<size_t>(1024, 2 * table_.size()), -1);
    for (size_t i = 0; i < ids_.size(); ++i) table_[place(ids_[i])] = static_cast<int32_t>(i);
  }

  std::vector<Id> ids_;
  std::vector<int32_t> table_;
};

struct Run {
  int32_t pixels;
  int32_t number;  // of its instance in the chunk
};

// Instances, of a chunk or of an image: sums [instances, channels].
template <typename Id>
struct Sums {
  int64_t channels;
  Numbers<Id> numbers;
  std::vector<double> sums;
  std::vector<int64_t> areas;

  int32_t number_of(Id id) {
    const int32_t number = numbers.of(id);
    if (static_cast<size_t>(number) == areas.size()) {
      areas.push_back(0);
      sums.resize(sums.size() + channels);
    }
    return number;
  }

  void add(const Sums& other) {
    for (size_t i = 0; i < other.areas.size(); ++i) {
      const int32_t number = number_of(other.numbers.ids()[i]);
      areas[number] += other.areas[i];
      for (int64_t c = 0; c < channels; ++c) {
        sums[number * channels + c] += other.sums[i * channels + c];
      }
    }
  }
};

template <typename Id>
struct Chunk {
  Sums<Id> instances;
  std::vector<Run> runs;
};

// The instances of a chunk while they are summed: lanes [instances, layout.lanes()].
template <typename Id, typename T>
class Summation {
 public:
  Summation(const T* x, const Layout& layout) : x_(x), layout_(layout) {
    chunk_.instances.channels = layout.channels;
  }

  // The pixels [first, first + count), at most kPiece, of an image with these ids.
  void add(const Id* ids, int64_t first, int64_t count) {
    int32_t ends[kPiece];
    const int64_t runs = run_ends(ids + first, count, ends);
    for (int64_t i = 0, begin = 0; i < runs; begin = ends[i++]) {
      add_run_of(ids[first + begin], first + begin, ends[i] - begin);
    }
  }

  Chunk<Id> finish() {
    for (size_t i = 0; i < additions_.size(); ++i) fold(static_cast<int32_t>(i));
    return std::move(chunk_);
  }

 private:
  using Wide = decltype(widened(T{}));

  void add_run_of(Id id, int64_t first, int64_t count) {
    const int32_t number = chunk_.instances.number_of(id);
    chunk_.instances.areas[number] += count;
    chunk_.runs.push_back({static_cast<int32_t>(count), number});
    if (static_cast<size_t>(number) == additions_.size()) {
      additions_.push_back(0);
      lanes_.resize(lanes_.size() + layout_.lanes());
    }
    for (const int64_t end = first + count; first < end;) {
      const int64_t most = (kAdditions - additions_[number]) * kLanePixels;
      const int64_t now = std::min(end - first, most);
      add_run(x_ + layout_.offset(first), now, layout_.pixels - first, layout_, lanes_of(number));
      additions_[number] += ceil_div(now, kLanePixels);
      if (additions_[number] == kAdditions) fold(number);
      first += now;
    }
  }

  Wide* lanes_of(int32_t number) { return lanes_.data() + number * layout_.lanes(); }

  void fold(int32_t number) {
    const int64_t channels = layout_.channels;
    const int64_t step = layout_.last ? channels : 1, next = layout_.last ? 1 : kLanePixels;
    Wide* lanes = lanes_of(number);
    double* sums = chunk_.instances.sums.data() + number * channels;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < kLanePixels; ++i) sums[c] += lanes[c * next + i * step];
    }
    std::fill_n(lanes, layout_.lanes(), Wide{0});
    additions_[number] = 0;
  }

  const T* x_;
  const Layout layout_;
  Chunk<Id> chunk_;
  std::vector<Wide> lanes_;
  std::vector<int64_t> additions_;
};

// Calls body(i) for i < count. Each thread takes the next one when it is done with one: some chunks
// have many more runs than others.
template <typename Body>
void for_each(int64_t count, Body body) {
  std::atomic<int64_t> next{0};
  parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
  });
}

template <typename Id, typename T>
struct Pool {
  const Id* ids;      // [images, pixels]
  const T* features;  // [images] of `layout`
  T* pooled;
  int64_t images;
  Layout layout;

  int64_t chunks() const { return ceil_div(layout.pixels, kPixels); }
  int64_t image_size() const { return layout.channels * layout.pixels; }

  Chunk<Id> sum(int64_t image, int64_t first) const {
    const int64_t end = std::min(layout.pixels, first + kPixels);
    const Id* own = ids + image * layout.pixels;
    Summation<Id, T> summation(features + image * image_size(), layout);
    for (int64_t p = first; p < end; p += kPiece) summation.add(own, p, std::min(kPiece, end - p));
    return summation.finish();
  }

  // `means` [instances, channels] of the image, `numbers` of its instances.
  void fill(const Chunk<Id>& chunk, int64_t image, int64_t first, const Numbers<Id>& numbers,
            const std::vector<T>& means) const {
    const std::vector<T> lanes = lanes_of(chunk, numbers, means);
    const int64_t end = std::min(layout.pixels, first + kPixels);
    T* y = pooled + image * image_size();
    for (int64_t p = first; const Run& run : chunk.runs) {
      const T* own = lanes.data() + run.number * layout.lanes();
      fill_run(y + layout.offset(p), run.pixels, end - p, layout, own);
      p += run.pixels;
    }
  }

  // The means of the instances of a chunk, for kLanePixels pixels.
  std::vector<T> lanes_of(const Chunk<Id>& chunk, const Numbers<Id>& numbers,
                          const std::vector<T>& means) const {
    std::vector<T> lanes;
    lanes.reserve(chunk.instances.areas.size() * layout.lanes());
    for (const Id id : chunk.instances.numbers.ids()) {
      const T* mean = means.data() + numbers.known(id) * layout.channels;
      for (int64_t i = 0; i < layout.lanes(); ++i) {
        lanes.push_back(mean[layout.last ? i % layout.channels : i / kLanePixels]);
      }
    }
    return lanes;
  }

  std::vector<T> means_of(const Sums<Id>& whole) const {
    std::vector<T> means(whole.sums.size());
    for (size_t i = 0; i < means.size(); ++i) {
      rounded(whole.sums[i] / static_cast<double>(whole.areas[i / layout.channels]), means[i]);
    }
    return means;
  }

  static void check(const std::vector<Id>& ids) {
    const Id least = *std::min_element(ids.begin(), ids.end());
    STD_TORCH_CHECK(least >= 0, "instance_mean_pool: ids must be from 0 up, got ", least);
  }

  void run() const {
    std::vector<Chunk<Id>> parts(images * chunks());
    for_each(images * chunks(),
             [&](int64_t i) { parts[i] = sum(i / chunks(), i % chunks() * kPixels); });
    for (int64_t image = 0; image < images; ++image) {
      Sums<Id> whole{layout.channels, {}, {}, {}};
      const Chunk<Id>* own = parts.data() + image * chunks();
      for (int64_t i = 0; i < chunks(); ++i) whole.add(own[i].instances);
      check(whole.numbers.ids());
      const std::vector<T> means = means_of(whole);
      for_each(chunks(),
               [&](int64_t i) { fill(own[i], image, i * kPixels, whole.numbers, means); });
    }
  }
};

template <typename T>
void pool(const PoolProblem& given, Tensor& pooled) {
  const Tensor& x = given.features;
  const auto run = [&]<typename Id>(Id) {
    Pool<Id, T>{static_cast<const Id*>(given.ids.const_data_ptr()),
                static_cast<const T*>(x.const_data_ptr()),
                static_cast<T*>(pooled.mutable_data_ptr()),
                x.size(0),
                {x.size(1), x.size(2) * x.size(3), given.last}}
        .run();
  };
  if (given.ids.scalar_type() == ScalarType::Int) return run(int32_t{});
  run(int64_t{});
}

Tensor instance_mean_pool_cpu(const Tensor& features, const Tensor& ids) {
  const PoolProblem given(features, ids);
  // No huge pages: of 24 MiB a few are missing at times, and the system takes 20 ms to make them.
  Tensor pooled = torch::stable::empty_like(given.features);
  if (pooled.numel() == 0) return pooled;
  if (features.scalar_type() == ScalarType::Double) {
    pool<double>(given, pooled);
  } else {
    with_type(features, [&]<typename T>() { pool<T>(given, pooled); });
  }
  return pooled;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("instance_mean_pool", TORCH_BOX(&instance_mean_pool_cpu));
}
