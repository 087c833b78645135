// The Python module _core: what needs no torch. Build information, CPU features, and the graph and
// spectral routines on NumPy arrays (the fields of a scipy.sparse.csr_array).
#include <pybind11/pybind11.h>

#include "build_info.h"
#include "common/cpu_features.h"

namespace py = pybind11;

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
}
