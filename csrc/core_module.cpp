// The Python module _core: what needs no torch. Build information, CPU features, and the graph and
// spectral routines on NumPy arrays (the fields of a scipy.sparse.csr_array).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "build_info.h"
#include "common/cpu_features.h"
#include "common/csr.h"
#include "common/mask_kernels.h"
#include "regular_subgraphs/group_taps.h"
#include "spectrum/cpu_problems.h"

namespace py = pybind11;

namespace fullspectrum {
namespace {

using Shape = std::pair<int64_t, int64_t>;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

template <typename index_t>
using Indices = py::array_t<index_t, py::array::c_style | py::array::forcecast>;

std::string dtype_name(const py::array& array) { return py::str(array.dtype()); }

void check_vector(const char* name, const py::array& array) {
  if (array.ndim() != 1) {
    throw py::value_error(
        std::string(name) + ": expected one dimension, got " + std::to_string(array.ndim())
    );
  }
}

void check_indices(const char* name, const py::array& array) {
  check_vector(name, array);
  if (array.dtype().kind() != 'i' || (array.itemsize() != 4 && array.itemsize() != 8)) {
    throw py::type_error(std::string(name) + ": expected int32 or int64, got " + dtype_name(array));
  }
}

// Calls f(csr) on the fields of a scipy.sparse.csr_array, checked so that reading them is safe.
template <typename index_t, typename F>
auto with_typed_csr(const py::array& indptr, const py::array& indices, const Shape& shape, F&& f) {
  const auto offsets = Indices<index_t>::ensure(indptr);
  const auto columns = Indices<index_t>::ensure(indices);
  const CsrView<index_t> csr{
      shape.first, shape.second, columns.size(), offsets.data(), columns.data()
  };
  const std::string fault = csr_fault(csr);
  if (!fault.empty()) {
    throw py::value_error(fault);
  }
  return f(csr);
}

template <typename F>
auto with_csr(const py::array& indptr, const py::array& indices, const Shape& shape, F&& f) {
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  const auto [rows, cols] = shape;
  if (rows < 0 || cols < 0 || rows > kLargest || cols > kLargest) {
    throw py::value_error(
        "shape: expected rows and columns in [0, 2^31), got " + std::to_string(rows) + " and " +
        std::to_string(cols)
    );
  }
  check_indices("indptr", indptr);
  check_indices("indices", indices);
  if (indptr.size() != rows + 1) {
    throw py::value_error(
        "indptr: expected rows + 1 = " + std::to_string(rows + 1) + " entries, got " +
        std::to_string(indptr.size())
    );
  }
  if (indptr.itemsize() == 4 && indices.itemsize() == 4) {
    return with_typed_csr<int32_t>(indptr, indices, shape, f);
  }
  return with_typed_csr<int64_t>(indptr, indices, shape, f);
}

py::tuple regular_subgraphs(const py::array& indptr, const py::array& indices, const Shape& shape) {
  return with_csr(indptr, indices, shape, [&](const auto& csr) {
    py::array_t<int64_t> taps(csr.cols);
    py::array_t<int64_t> degrees(csr.cols);
    py::array_t<int64_t> live_outputs(csr.cols);
    int64_t* tap = taps.mutable_data();
    int64_t* degree = degrees.mutable_data();
    int64_t* live = live_outputs.mutable_data();
    {
      py::gil_scoped_release release;
      group_taps(csr, tap, degree, live);
    }
    return py::make_tuple(taps, degrees, live_outputs);
  });
}

// The stored entries as doubles; an empty array stands for all ones.
Doubles as_doubles(const std::optional<py::array>& data, int64_t nnz) {
  if (!data.has_value()) {
    return Doubles(0);
  }
  check_vector("data", *data);
  if (std::string("fiub").find(data->dtype().kind()) == std::string::npos) {
    throw py::type_error("data: expected real numbers, got " + dtype_name(*data));
  }
  Doubles values = Doubles::ensure(*data);
  if (values.size() != nnz) {
    throw py::value_error(
        "data: expected one entry for each of the " + std::to_string(nnz) + " indices, got " +
        std::to_string(values.size())
    );
  }
  for (int64_t p = 0; p < nnz; ++p) {
    if (!std::isfinite(values.data()[p])) {
      throw py::value_error("data: expected finite numbers, got NaN or infinity");
    }
  }
  return values;
}

py::tuple singular_values(
    const py::array& indptr,
    const py::array& indices,
    const std::optional<py::array>& data,
    const Shape& shape,
    int64_t k,
    double tol
) {
  if (k < 1) {
    throw py::value_error("k: expected at least 1, got " + std::to_string(k));
  }
  if (!(tol > 0) || std::isinf(tol)) {
    throw py::value_error("tol: expected a finite number above 0, got " + std::to_string(tol));
  }
  return with_csr(indptr, indices, shape, [&](const auto& csr) {
    const Doubles values = as_doubles(data, csr.nnz);
    const double* value = data.has_value() ? values.data() : nullptr;
    py::array_t<double> sigma(k);
    py::array_t<double> bound(k);
    double* sigmas = sigma.mutable_data();
    double* bounds = bound.mutable_data();
    spectrum::GramScratch scratch;
    {
      py::gil_scoped_release release;
      spectrum::OwnedProblem problem = spectrum::whole_matrix(csr, value);
      spectrum::solve(problem, k, tol, spectrum::Method::automatic, scratch, sigmas, bounds);
    }
    return py::make_tuple(sigma, bound, scratch.products);
  });
}

// A mask as bits, row by row, and what is counted on the way.
struct PackedMask {
  int64_t words;                     // of a row
  std::unique_ptr<uint64_t[]> bits;  // [rows, words]
  std::vector<int64_t> offset{0};    // of each row's ones, [rows + 1]
  int64_t live_rows = 0;
  int64_t live_columns = 0;

  PackedMask(const uint8_t* cells, int64_t rows, int64_t cols)
      : words((cols + 63) / 64), bits(new uint64_t[rows * words]) {
    const MaskKernels kernels = FULLSPECTRUM_ACTIVE(mask_kernels());
    std::vector<uint64_t> seen(words, 0);
    offset.reserve(rows + 1);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t ones =
          kernels.pack(cells + row * cols, cols, bits.get() + row * words, seen.data());
      offset.push_back(offset.back() + ones);
      live_rows += ones > 0;
    }
    for (const uint64_t word : seen) {
      live_columns += __builtin_popcountll(word);
    }
  }
};

template <typename index_t>
py::tuple csr_arrays(const PackedMask& mask) {
  py::array_t<index_t> indptr(mask.offset.size());
  py::array_t<index_t> indices(mask.offset.back());
  std::copy(mask.offset.begin(), mask.offset.end(), indptr.mutable_data());
  index_t* to = indices.mutable_data();
  {
    py::gil_scoped_release release;
    const MaskKernels kernels = FULLSPECTRUM_ACTIVE(mask_kernels());
    index_t* end = to + mask.offset.back();
    for (size_t row = 0; row + 1 < mask.offset.size(); ++row) {
      const uint64_t* bits = mask.bits.get() + row * mask.words;
      if constexpr (std::is_same_v<index_t, int32_t>) {
        to = kernels.list_ones(bits, mask.words, to, end);
      } else {
        to = kernels.list_ones_long(bits, mask.words, to, end);
      }
    }
  }
  return py::make_tuple(indptr, indices, mask.live_rows, mask.live_columns);
}

py::tuple mask_to_csr(const py::array_t<bool, py::array::c_style>& mask) {
  if (mask.ndim() != 2) {
    throw py::value_error("mask: expected two dimensions, got " + std::to_string(mask.ndim()));
  }
  const auto* cells = reinterpret_cast<const uint8_t*>(mask.data());
  std::optional<PackedMask> packed;
  {
    py::gil_scoped_release release;
    packed.emplace(cells, mask.shape(0), mask.shape(1));
  }
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  const bool fits = std::max({mask.shape(0), mask.shape(1), packed->offset.back()}) <= kLargest;
  return fits ? csr_arrays<int32_t>(*packed) : csr_arrays<int64_t>(*packed);
}

}  // namespace
}  // namespace fullspectrum

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native routines of fullspectrum_ext that need no torch.";
  m.def("active_isa", [] { return fullspectrum::isa_name(fullspectrum::active_isa()); });
  m.def("build_info", [] {
    py::dict info;
    info["version"] = FULLSPECTRUM_VERSION;
    info["compiler"] = __VERSION__;
    info["cuda"] = FULLSPECTRUM_CUDA_STATE;
    info["cuda_architectures"] = FULLSPECTRUM_CUDA_ARCHITECTURES;
    info["cuda_compiler"] = FULLSPECTRUM_CUDA_COMPILER;
    return info;
  });
  m.def(
      "mask_to_csr",
      &fullspectrum::mask_to_csr,
      py::arg("mask").noconvert(),
      "indptr and indices of a bool matrix, and its numbers of rows and of columns with a one."
  );
  m.def(
      "regular_subgraphs",
      &fullspectrum::regular_subgraphs,
      py::arg("indptr"),
      py::arg("indices"),
      py::arg("shape"),
      "Columns sorted by degree; beside each its degree and the rows its degree's columns touch."
  );
  m.def(
      "singular_values",
      &fullspectrum::singular_values,
      py::arg("indptr"),
      py::arg("indices"),
      py::arg("data"),
      py::arg("shape"),
      py::arg("k"),
      py::arg("tol"),
      "The k leading singular values, descending, their error bounds, and how many products with "
      "the "
      "Gram matrix they took; data=None: all ones."
  );
}
