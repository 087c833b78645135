#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "common/ceil_div.h"
#include "common/cpu_features.h"
#include "common/csr.h"
#include "common/parallel.h"
#include "selection/candidates.h"
#include "selection/gradient_kernels.h"

// The largest entries of a product in float32, most of which is never computed in float32.
//
// A sample of the entries gives a threshold that the k-th largest very likely reaches. A product of
// small integers then bounds every entry, in a fraction of the time; those whose bound reaches the
// threshold are computed in float32, and the k largest of them are the k largest of all, whatever
// was sampled, once there are k above the threshold. If not, it is lowered. So the result depends
// on the float32 products alone, each of which is a sum in an order of its own.

namespace fullspectrum {

// Both operands, turned and made integers of.
class PackedProduct {
 public:
  PackedProduct(const float* grad, const float* x, int64_t rows, int64_t cols, int64_t batch)
      : kernels_(FULLSPECTRUM_ACTIVE_VNNI(gradient_kernels())),
        width_(std::max<int64_t>(ceil_div(batch, 16), 1) * 16),
        groups_(ceil_div(cols, kernels_.shape.columns)),
        grad_(grad, batch, rows, kernels_.shape.rows, false, *this),
        x_(x, batch, cols, kernels_.shape.columns, true, *this) {}

  const ProductShape& shape() const { return kernels_.shape; }
  int64_t width() const { return width_; }
  // Groups of columns.
  int64_t groups() const { return groups_; }

  // Sets hits[row - first, group] bit for bit where the product may be at least `least`. `first` is
  // a multiple of shape().rows.
  void filter(int64_t first, int64_t end, float least, uint64_t* hits) const {
    // twice what a sum of so many rounded terms may be off by
    const float margin = static_cast<float>(width_ + 16) * 0x1p-23f;
    const int64_t made_up = ceil_div(end, shape().rows) * shape().rows;
    kernels_.filter(grad_.lines, first, made_up, x_.lines, groups_, width_, margin, least, hits);
  }

  // See GradientKernels.
  int64_t list(const uint64_t* hits, const unsigned char* skip, int32_t* column) const {
    return kernels_.list(hits, groups_, skip, column);
  }
  void multiply(int64_t row, const int32_t* column, int64_t count, float* out) const {
    const float* grad = grad_.lines.value + row * width_;
    kernels_.multiply(grad, x_.lines.value, width_, column, count, out);
  }

 private:
  struct Operand {
    Operand(
        const float* from,
        int64_t batch,
        int64_t count,
        int64_t group,
        bool biased,
        const PackedProduct& product
    ) {
      const int64_t width = product.width_;
      const int64_t made_up = ceil_div(count, group) * group;
      value.reset(new float[made_up * width]);
      word.reset(new int32_t[made_up * width / product.shape().entries]);
      about.reset(new float[3 * made_up]);
      sum.reset(new int32_t[made_up]);
      float* scale = about.get();
      lines = {value.get(), word.get(), scale, scale + made_up, scale + 2 * made_up, sum.get()};
      const int64_t step = std::max<int64_t>(kLinesAtOnce / group, 1) * group;
      parallel_for(0, ceil_div(made_up, step), 1, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin * step; at < std::min(end * step, made_up); at += step) {
          const int64_t last = std::min(at + step, made_up);
          product.kernels_.pack(from, batch, count, at, last, group, biased, width, lines);
        }
      });
    }

    static constexpr int64_t kLinesAtOnce = 96;
    std::unique_ptr<float[]> value, about;
    std::unique_ptr<int32_t[]> word, sum;
    Lines lines;
  };

  GradientKernels kernels_;
  int64_t width_;
  int64_t groups_;
  Operand grad_;
  Operand x_;
};

// Finds the entries of some rows outside a topology which exceed a threshold. One for each thread.
class RowSearch {
 public:
  using rank_t = Rank<float>::type;

  RowSearch(const PackedProduct& product, int64_t most_rows, int64_t cols)
      : product_(product),
        cols_(cols),
        hits_(new uint64_t[(most_rows + product.shape().rows) * product.groups()]),
        start_(most_rows + 1),
        at_(most_rows),
        stored_(product.groups() * product.shape().columns),
        column_(new int32_t[(most_rows + 1) * product.groups() * product.shape().columns]),
        value_(new float[most_rows * cols]),
        position_(new int64_t[most_rows * cols]) {
    std::fill(stored_.begin() + cols, stored_.end(), 1);
  }

  // What was found, in row-major order.
  int64_t count() const { return count_; }
  const int64_t* position() const { return position_.get(); }
  const rank_t* bits() const { return reinterpret_cast<const rank_t*>(value_.get()); }

  // Entries of rank above `threshold` in rows [first, end). False if the topology names columns
  // that do not exist; so the next two.
  template <typename index_t>
  bool search(const CsrView<index_t>& csr, int64_t first, int64_t end, rank_t threshold) {
    float least;  // a rank is the bits of a magnitude and one: those above the threshold reach it
    const rank_t bits = std::min(threshold, Rank<float>::kInfinity);
    std::memcpy(&least, &bits, sizeof least);
    product_.filter(first, end, least, hits_.get());
    count_ = 0;
    if (!compute(csr, first, end)) {
      return false;
    }
    int64_t kept = 0;
    rank_t* found = reinterpret_cast<rank_t*>(value_.get());
    for (int64_t row = first; row < end; ++row) {
      for (int64_t i = start_[row - first]; i < start_[row - first + 1]; ++i) {
        found[kept] = found[i];
        position_[kept] = row * cols_ + column_[i];
        kept += rank_of<float>(found[i]) > threshold;
      }
    }
    count_ = kept;
    return true;
  }

  // All entries of one row in some groups of columns.
  template <typename index_t>
  bool sample(const CsrView<index_t>& csr, int64_t row, const std::vector<int64_t>& groups) {
    std::fill_n(hits_.get(), product_.groups(), 0);
    for (const int64_t group : groups) {
      hits_[group] = ~uint64_t{0} >> (64 - product_.shape().columns);
    }
    if (!compute(csr, row, row + 1)) {
      return false;
    }
    count_ = start_[1];
    return true;
  }

 private:
  // The products at all hits that are not stored.
  template <typename index_t>
  bool compute(const CsrView<index_t>& csr, int64_t first, int64_t end) {
    int64_t count = 0;
    for (int64_t row = first; row < end; ++row) {
      const index_t* begin = csr.col_indices + csr.crow_indices[row];
      const index_t* last = csr.col_indices + csr.crow_indices[row + 1];
      for (const index_t* column = begin; column != last; ++column) {
        if (static_cast<uint64_t>(*column) >= static_cast<uint64_t>(cols_)) {
          return false;
        }
        stored_[*column] = 1;
      }
      start_[row - first] = count;
      const uint64_t* hits = hits_.get() + (row - first) * product_.groups();
      count += product_.list(hits, stored_.data(), column_.get() + count);
      for (const index_t* column = begin; column != last; ++column) {
        stored_[*column] = 0;
      }
    }
    const int64_t rows = end - first;
    start_[rows] = count;
    std::copy_n(start_.begin(), rows, at_.begin());
    // so many columns at a time as stay in the second-level cache
    const int64_t block = std::max<int64_t>(kBlockFloats / product_.width(), 64);
    for (int64_t last = block; last < cols_ + block; last += block) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t begin = at_[row];
        while (at_[row] < start_[row + 1] && column_[at_[row]] < last) {
          ++at_[row];
        }
        product_.multiply(
            first + row, column_.get() + begin, at_[row] - begin, value_.get() + begin
        );
      }
    }
    return true;
  }

  static constexpr int64_t kBlockFloats = int64_t{1} << 17;

  const PackedProduct& product_;
  int64_t cols_;
  std::unique_ptr<uint64_t[]> hits_;  // [rows, groups]
  std::vector<int64_t> start_;        // where each row's columns begin
  std::vector<int64_t> at_;
  std::vector<unsigned char> stored_;  // which columns of a row are, or do not exist
  std::unique_ptr<int32_t[]> column_;
  std::unique_ptr<float[]> value_;
  std::unique_ptr<int64_t[]> position_;
  int64_t count_ = 0;
};

}  // namespace fullspectrum
