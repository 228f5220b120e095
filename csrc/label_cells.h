#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "padding.h"
#include "pictures.h"
#include "simd.h"

// A label map at a level of its pyramid as one code per cell: the label, where there is no class
// `num_labels`, and past these the same once more for edges. Where a window has one code, its
// convolution is a constant of the code.
namespace {

// A share of a cell that several codes have; the list of a cell ends with a negative code.
struct Part {
  int32_t code;
  float share;
};

template <typename Code>
constexpr Code kMixed = std::numeric_limits<Code>::max();

// [height, width]. `codes` is kMixed where a cell has several; `lists` then says where its parts
// begin in those of its row. Both are empty at level 0.
template <typename Code>
struct Cells {
  int64_t height, width;
  std::vector<Code> codes;
  std::vector<int32_t> lists;
  std::vector<std::vector<Part>> parts;

  const Part* parts_at(int64_t y, int64_t x) const {
    return parts[y].data() + lists[y * width + x];
  }
};

// The cells of an image, from its labels and edges [height, width] (or none).
template <typename Code, typename Label>
Cells<Code> read_cells(const Label* labels, const uint8_t* edges, int64_t num_labels,
                       int64_t height, int64_t width) {
  Cells<Code> cells{height, width, std::vector<Code>(height * width), {}, {}};
  parallel_for(0, height, ceil_div(kChunk, width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * width; i < end * width; ++i) {
      // Label by label: a comparison of unsigned numbers takes negative ones for no class.
      const auto label = std::min<uint64_t>(static_cast<uint64_t>(labels[i]), num_labels);
      const uint64_t past = edges && edges[i] ? num_labels + 1 : 0;
      cells.codes[i] = static_cast<Code>(label + past);
    }
  });
  return cells;
}

// Sums shares by code. Only the codes that occur are looked at.
class Shares {
 public:
  explicit Shares(int64_t codes) : share_(codes, 0.0f) {}

  void add(int32_t code, float share) {
    if (share_[code] == 0.0f) found_.push_back(code);
    share_[code] += share;
  }

  // Appends the parts to `parts`, and begins anew.
  void move_to(std::vector<Part>& parts) {
    for (const int32_t code : found_) {
      parts.push_back({code, share_[code]});
      share_[code] = 0.0f;
    }
    parts.push_back({-1, 0.0f});
    found_.clear();
  }

 private:
  std::vector<float> share_;
  std::vector<int32_t> found_;
};

// to = a where a and b are the same, elsewhere mixed; to may be a.
PIX2PIXHD_FAST_SIMD
void agree(const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = a[i] == b[i] ? a[i] : kMixed<uint8_t>;
}

PIX2PIXHD_FAST_SIMD
void agree(const int32_t* a, const int32_t* b, int64_t count, int32_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = a[i] == b[i] ? a[i] : kMixed<int32_t>;
}

// The mean of the cells [top, bottom) x [left, right).
template <typename Code>
void add_shares(const Cells<Code>& in, int64_t top, int64_t bottom, int64_t left, int64_t right,
                Shares& shares) {
  const float share = 1.0f / static_cast<float>((bottom - top) * (right - left));
  for (int64_t r = top; r < bottom; ++r) {
    for (int64_t c = left; c < right; ++c) {
      const Code code = in.codes[r * in.width + c];
      if (code != kMixed<Code>) {
        shares.add(code, share);
        continue;
      }
      for (const Part* part = in.parts_at(r, c); part->code >= 0; ++part) {
        shares.add(part->code, share * part->share);
      }
    }
  }
}

// `same`: [in.width], for the codes that the three cells of a column have in common.
template <typename Code>
void pool_row(const Cells<Code>& in, int64_t y, Code* same, Shares& shares, Cells<Code>& out) {
  const int64_t top = std::max<int64_t>(0, 2 * y - 1), bottom = std::min(in.height, 2 * y + 2);
  std::copy_n(in.codes.data() + top * in.width, in.width, same);
  for (int64_t r = top + 1; r < bottom; ++r) {
    agree(same, in.codes.data() + r * in.width, in.width, same);
  }
  for (int64_t x = 0; x < out.width; ++x) {
    const int64_t left = std::max<int64_t>(0, 2 * x - 1), right = std::min(in.width, 2 * x + 2);
    Code code = same[left];
    for (int64_t c = left + 1; c < right; ++c) code = same[c] == code ? code : kMixed<Code>;
    const int64_t i = y * out.width + x;
    out.codes[i] = code;
    if (code == kMixed<Code>) {
      out.lists[i] = static_cast<int32_t>(out.parts[y].size());
      add_shares(in, top, bottom, left, right, shares);
      shares.move_to(out.parts[y]);
    }
  }
}

// The next level: 3x3, stride 2, padding 1, of the cells that there are.
template <typename Code>
Cells<Code> pool(const Cells<Code>& in, int64_t codes) {
  const int64_t height = ceil_div(in.height, 2), width = ceil_div(in.width, 2);
  Cells<Code> out{height, width, std::vector<Code>(height * width),
                  std::vector<int32_t>(height * width), std::vector<std::vector<Part>>(height)};
  parallel_for(0, height, ceil_div(kChunk / 8, width), [&](int64_t begin, int64_t end) {
    Shares shares(codes);
    std::vector<Code> same(in.width);
    for (int64_t y = begin; y < end; ++y) pool_row(in, y, same.data(), shares, out);
  });
  return out;
}

// The windows of a convolution over padded cells.
struct Windows {
  int64_t kernel_height, kernel_width, stride, rows, columns;

  int64_t taps() const { return kernel_height * kernel_width; }
  // Of a table by code: the taps, then the sums of each row of taps, for rows of one code.
  int64_t entries() const { return taps() + kernel_height; }
};

// Cells with their padding: zeros are cells of no class and no edge, whose weights are zero.
template <typename Code>
struct PaddedCells {
  Cells<Code> cells;
  int64_t width;
  std::vector<Code> codes;         // [padded height, width]
  std::vector<const Part*> parts;  // of the mixed ones; empty where there are none
  std::vector<Code> row_codes;     // [padded height, row_columns]: of kernel_width cells of one
  int64_t row_columns;
  std::vector<Code> window_codes;  // [windows.rows, windows.columns]: of windows of one

  PaddedCells(Cells<Code> given, Padding padding, int64_t nothing, const Windows& windows)
      : cells(std::move(given)), width(cells.width + 2 * padding.pad) {
    const int64_t height = cells.height + 2 * padding.pad;
    codes.assign(height * width, static_cast<Code>(nothing));
    if (!cells.lists.empty()) parts.resize(height * width);
    parallel_for(0, height, ceil_div(kChunk, width), [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        const int64_t row = padding.source(y, cells.height);
        if (row >= 0) fill_row(padding, y, row);
      }
    });
    find_windows(height, windows);
  }

  void fill_row(Padding padding, int64_t y, int64_t row) {
    for (int64_t x = 0; x < width; ++x) {
      const int64_t column = padding.source(x, cells.width);
      if (column < 0) continue;
      const Code code = cells.codes[row * cells.width + column];
      codes[y * width + x] = code;
      if (code == kMixed<Code>) parts[y * width + x] = cells.parts_at(row, column);
    }
  }

  // Along rows, then along columns.
  void find_windows(int64_t height, const Windows& windows) {
    const int64_t columns = row_columns = width - windows.kernel_width + 1;
    row_codes.resize(height * columns);
    parallel_for(0, height, ceil_div(kChunk, width), [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        Code* to = row_codes.data() + y * columns;
        std::copy_n(codes.data() + y * width, columns, to);
        for (int64_t x = 1; x < windows.kernel_width; ++x) {
          agree(to, codes.data() + y * width + x, columns, to);
        }
      }
    });
    window_codes.resize(windows.rows * windows.columns);
    parallel_for(0, windows.rows, ceil_div(kChunk, width), [&](int64_t begin, int64_t end) {
      std::vector<Code> found(columns);
      for (int64_t y = begin; y < end; ++y) {
        const Code* from = row_codes.data() + y * windows.stride * columns;
        std::copy_n(from, columns, found.data());
        for (int64_t r = 1; r < windows.kernel_height; ++r) {
          agree(found.data(), from + r * columns, columns, found.data());
        }
        Code* to = window_codes.data() + y * windows.columns;
        for (int64_t x = 0; x < windows.columns; ++x) to[x] = found[x * windows.stride];
      }
    });
  }

  // Calls body(first, last, code) for each run of windows [first, last) of a row that have the
  // same code, or none, of the windows [begin, end).
  template <typename Body>
  void for_each_run(int64_t begin, int64_t end, int64_t columns, Body body) const {
    while (begin < end) {
      const Code code = window_codes[begin];
      const int64_t row_end = std::min(end, (begin / columns + 1) * columns);
      int64_t last = begin + 1;
      while (last < row_end && window_codes[last] == code) ++last;
      body(begin, last, code);
      begin = last;
    }
  }
};

// Eight channels: a register of AVX2. Vectors of sixteen live in memory where there is no AVX-512:
// with them G1's stem took 311 ms of a thread's time instead of 84 (medians of separate runs on a
// loaded machine without it).
constexpr int64_t kLane = 8;
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));

// By reference: a vector that is passed by value has another ABI on each instruction set.
[[gnu::always_inline]] inline const Lanes& lanes_at(const float* from) {
  return *reinterpret_cast<const Lanes*>(from);
}

[[gnu::always_inline]] inline Lanes& lanes_at(float* to) { return *reinterpret_cast<Lanes*>(to); }

// Windows side by side that are worked off together: 64 of 64 channels are 16 KiB, half of the
// first-level cache, and what a tap looks up in a table is looked up for all of them.
constexpr int64_t kSideBySide = 64;

// The first index behind `begin` whose code is another one.
template <typename Code>
[[gnu::always_inline]] inline int64_t end_of_run(const Code* codes, int64_t step, int64_t begin,
                                                 int64_t end) {
  int64_t last = begin + 1;
  while (last < end && codes[last * step] == codes[begin * step]) ++last;
  return last;
}

// How the kernels look at the cells: `first` and `first_row` are where a window begins in `codes`
// and in `row_codes`; the next one is `stride` further.
template <typename Code>
struct Window {
  const Code *codes, *row_codes;
  const Part* const* parts;
  int64_t first, first_row, width, row_columns;
  const Windows& windows;
  int64_t pitch;  // the channels, rounded up to whole lanes

  // Row of a table [code][entry][pitch].
  int64_t row_of(int64_t code, int64_t entry) const {
    return (code * windows.entries() + entry) * pitch;
  }

  // Place by place of the kernel, for `count` windows side by side: calls same(row of a table,
  // first, last) where the windows [first, last) see one code, and mixture(parts, entry, index)
  // where a window sees several.
  template <typename Same, typename Mixture>
  [[gnu::always_inline]] void for_each_place(int64_t count, Same same, Mixture mixture) const {
    const int64_t taps = windows.taps();
    for (int64_t y = 0; y < windows.kernel_height; ++y) {
      const Code* row = row_codes + first_row + y * row_columns;
      for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        end = end_of_run(row, windows.stride, begin, count);
        const Code code = row[begin * windows.stride];
        if (code != kMixed<Code>) {
          same(row_of(code, taps + y), begin, end);
          continue;
        }
        for (int64_t x = 0; x < windows.kernel_width; ++x) {
          for_each_cell(y, x, begin, end, same, mixture);
        }
      }
    }
  }

  // The same for one tap and the windows [begin, last).
  template <typename Same, typename Mixture>
  [[gnu::always_inline]] void for_each_cell(int64_t y, int64_t x, int64_t begin, int64_t last,
                                            Same& same, Mixture& mixture) const {
    const int64_t start = first + y * width + x, tap = y * windows.kernel_width + x;
    for (int64_t end = begin; begin < last; begin = end) {
      const int64_t code = codes[start + begin * windows.stride];
      if (code == kMixed<Code>) {
        end = begin + 1;
        mixture(parts[start + begin * windows.stride], tap, begin);
      } else {
        end = end_of_run(codes + start, windows.stride, begin, last);
        same(row_of(code, tap), begin, end);
      }
    }
  }

  [[gnu::always_inline]] void advance(int64_t count) {
    first += count * windows.stride;
    first_row += count * windows.stride;
  }
};

template <typename Code>
Window<Code> window_at(const PaddedCells<Code>& cells, const Windows& windows, int64_t index,
                       int64_t pitch) {
  const int64_t y = index / windows.columns, x = index % windows.columns;
  return {cells.codes.data(),
          cells.row_codes.data(),
          cells.parts.data(),
          (y * cells.width + x) * windows.stride,
          (y * cells.row_columns + x) * windows.stride,
          cells.width,
          cells.row_columns,
          windows,
          pitch};
}

}  // namespace
