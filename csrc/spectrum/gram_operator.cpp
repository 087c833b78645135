#include "spectrum/gram_operator.h"

#include <algorithm>

#include "common/cpu_features.h"

namespace fullspectrum::spectrum {
namespace {

// Few enough parts of a matrix that their sums take little memory beside it and little time. How
// many depends on the matrix alone, so that the sums do not depend on the number of threads.
constexpr int64_t kMostSlabs = 16;
constexpr int64_t kEntriesOfSlabs = int64_t{1} << 18;  // fewer entries are one slab
constexpr int64_t kEntriesOfSum = 8;                   // of a slab, for each of its sums
constexpr int64_t kRowsOfJob = 8192;

template <typename T>
T* zeros(AlignedVector<T>& memory, int64_t count) {
  T* data = room(memory, count);
  std::fill(data, data + count, T{0});
  return data;
}

// Both triangles of G from L.
template <typename T>
void add_transpose(const T* half, int64_t size, int64_t stride, double* h) {
  for (int64_t i = 0; i < size; ++i) {
    std::fill(h + i * stride + size, h + (i + 1) * stride, 0.0);
    for (int64_t j = 0; j < i; ++j) {
      h[i * stride + j] = h[j * stride + i] = static_cast<double>(half[i * stride + j]);
    }
    h[i * stride + i] = 2 * static_cast<double>(half[i * stride + i]);
  }
}

}  // namespace

const GramKernels& gram_kernels() {
  static const GramKernels kernels = FULLSPECTRUM_ACTIVE(gram_kernels());
  return kernels;
}

GramOperator::GramOperator(int64_t size, GramScratch& scratch)
    : size_(size), stride_(padded(size)), scratch_(&scratch) {}

GramOperator GramOperator::from_bits(
    const Lists& lists, bool of_narrow, int64_t size, int64_t length, GramScratch& scratch
) {
  GramOperator gram(size, scratch);
  const int64_t words = (length + 63) / 64;
  const int64_t row = gram.stride_ + kGramPadding;
  uint64_t* bits = zeros(scratch.bits, words * row);
  for (int64_t node = 0; node < lists.size; ++node) {
    for (int64_t p = lists.offset[node]; p < lists.offset[node + 1]; ++p) {
      const int64_t narrow = of_narrow ? node : lists.index[p];
      const int64_t tall = of_narrow ? lists.index[p] : node;
      bits[tall / 64 * row + narrow] |= uint64_t{1} << (tall % 64);
    }
  }
  float* counts = room(scratch.counts, size * gram.stride_);
  gram_kernels().bit_gram(bits, words, row, size, gram.stride_, counts);
  gram.counts_ = counts;
  return gram;
}

GramOperator GramOperator::from_lists(const Lists& narrow, int64_t length, GramScratch& scratch) {
  GramOperator gram(narrow.size, scratch);
  double* sums = room(scratch.sums, gram.size_ * gram.stride_);
  gram_kernels().sparse_gram(
      narrow.offset,
      narrow.index,
      narrow.value,
      narrow.single,
      gram.size_,
      length,
      gram.stride_,
      room(scratch.part, 2 * gram.size_),
      room(scratch.panel, kGramPanel),
      sums
  );
  gram.sums_ = sums;
  return gram;
}

GramOperator GramOperator::matrix_free(const Lists& tall, int64_t size, GramScratch& scratch) {
  GramOperator gram(size, scratch);
  gram.tall_ = tall;
  const int64_t entries = tall.offset[tall.size];
  int64_t slabs = 1;
  if (entries >= kEntriesOfSlabs) {
    slabs = std::clamp<int64_t>(entries / (kEntriesOfSum * size), 1, kMostSlabs);
  }
  for (int64_t slab = 0; slab <= slabs; ++slab) {
    const int64_t* end = tall.offset + tall.size;
    gram.slab_.push_back(std::lower_bound(tall.offset, end, entries * slab / slabs) - tall.offset);
  }
  room(scratch.pairs, (slabs == 1 ? 4 : 4 + 2 * slabs) * size);
  return gram;
}

void GramOperator::multiply(const double* x, int64_t width, double* y) const {
  if (!is_matrix_free()) {
    ++scratch_->products;
    std::fill(y, y + width * stride_, 0.0);
    counts_ ? gram_kernels().multiply_float(counts_, size_, stride_, x, width, y)
            : gram_kernels().multiply_double(sums_, size_, stride_, x, width, y);
    return;
  }
  double* from = scratch_->pairs.data();
  double* to = from + 2 * size_;
  for (int64_t i = 0; i < size_; ++i) {
    from[2 * i] = x[i];
    from[2 * i + 1] = width == 2 ? x[stride_ + i] : 0;
  }
  multiply_pairs(from, to);
  std::fill(y, y + width * stride_, 0.0);
  for (int64_t i = 0; i < size_; ++i) {
    for (int64_t t = 0; t < width; ++t) {
      y[t * stride_ + i] = to[2 * i + t];
    }
  }
}

void GramOperator::multiply_pairs(const double* x, double* y) const {
  ++scratch_->products;
  const int64_t slabs = static_cast<int64_t>(slab_.size()) - 1;
  double* sums = slabs == 1 ? y : scratch_->pairs.data() + 4 * size_;  // [slabs, size, 2]
  scratch_->run_jobs(slabs, [&](int64_t slab) {
    double* sum = sums + slab * 2 * size_;
    std::fill(sum, sum + 2 * size_, 0.0);
    const int64_t first = slab_[slab];
    gram_kernels().multiply_lists(
        tall_.offset + first,
        tall_.index,
        tall_.value,
        tall_.single,
        slab_[slab + 1] - first,
        x,
        sum
    );
  });
  if (slabs == 1) {
    return;
  }
  scratch_->run_jobs((size_ + kRowsOfJob - 1) / kRowsOfJob, [&](int64_t job) {
    const int64_t from = 2 * kRowsOfJob * job;
    const int64_t to = std::min(from + 2 * kRowsOfJob, 2 * size_);
    std::copy(sums + from, sums + to, y + from);
    for (int64_t slab = 1; slab < slabs; ++slab) {
      const double* sum = sums + slab * 2 * size_;
      for (int64_t i = from; i < to; ++i) {
        y[i] += sum[i];
      }
    }
  });
}

void GramOperator::to_dense(double* h) const {
  if (counts_) {
    add_transpose(counts_, size_, stride_, h);
    return;
  }
  if (sums_) {
    add_transpose(sums_, size_, stride_, h);
    return;
  }
  std::fill(h, h + size_ * stride_, 0.0);
  const auto weight = [&](int64_t p) {
    return tall_.value ? tall_.value[p] : tall_.single ? static_cast<double>(tall_.single[p]) : 1;
  };
  for (int64_t list = 0; list < tall_.size; ++list) {
    for (int64_t p = tall_.offset[list]; p < tall_.offset[list + 1]; ++p) {
      for (int64_t q = tall_.offset[list]; q < tall_.offset[list + 1]; ++q) {
        h[tall_.index[p] * stride_ + tall_.index[q]] += weight(p) * weight(q);
      }
    }
  }
}

}  // namespace fullspectrum::spectrum
