#pragma once

#include <torch/csrc/stable/library.h>

// The operators live in torch.ops.fullspectrum. The emulated library holds the same schemas with
// the CUDA kernels, run on the CPU, in torch.ops.fullspectrum_emulated.
#define FULLSPECTRUM_EXPAND_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define FULLSPECTRUM_EXPAND_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#ifdef FULLSPECTRUM_EMULATION
#define FULLSPECTRUM_LIBRARY(m) FULLSPECTRUM_EXPAND_LIBRARY(fullspectrum_emulated, m)
#define FULLSPECTRUM_CUDA_KERNELS(m) FULLSPECTRUM_EXPAND_IMPL(fullspectrum_emulated, CPU, m)
#else
#define FULLSPECTRUM_LIBRARY(m) FULLSPECTRUM_EXPAND_LIBRARY(fullspectrum, m)
#define FULLSPECTRUM_CUDA_KERNELS(m) FULLSPECTRUM_EXPAND_IMPL(fullspectrum, CUDA, m)
#endif
#define FULLSPECTRUM_CPU_KERNELS(m) FULLSPECTRUM_EXPAND_IMPL(fullspectrum, CPU, m)
