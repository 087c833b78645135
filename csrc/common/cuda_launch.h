#pragma once

// What every .cu file includes: the CUDA runtime under nvcc, the block emulator under the host
// compiler (test builds), and one way to launch a kernel in both.

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdint>

#include "common/ceil_div.h"

#ifdef FULLSPECTRUM_EMULATION
#include "emulation/emulation.h"
#else
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/macros.h>
#endif

// A kernel's dynamic shared memory, as an array of `type`.
#ifdef FULLSPECTRUM_EMULATION
#define FULLSPECTRUM_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(emulation::dynamic_shared())
#else
#define FULLSPECTRUM_DYNAMIC_SHARED(type, name)                   \
  extern __shared__ __align__(16) unsigned char name##_storage[]; \
  type* name = reinterpret_cast<type*>(name##_storage)
#endif

// Before a loop whose arrays must stay in registers: its indices have to be constants.
#ifdef FULLSPECTRUM_EMULATION
#define FULLSPECTRUM_UNROLL
#else
#define FULLSPECTRUM_UNROLL _Pragma("unroll")
#endif

namespace fullspectrum {

constexpr int kWarp = 32;
// A grid's y and z extents end here; x goes to 2^31 - 1.
constexpr int64_t kMaxGridY = 65535;

#ifdef FULLSPECTRUM_EMULATION

struct DeviceScope {
  explicit DeviceScope(const torch::stable::Tensor&) {}
};

#else

// Makes a tensor's device the current one and finds its current stream.
struct DeviceScope {
  explicit DeviceScope(const torch::stable::Tensor& tensor) : guard(tensor.get_device_index()) {
    // torch::stable has no typed stream before 2.13, so the C shim is asked.
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &handle));
    stream = static_cast<cudaStream_t>(handle);
  }
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
};

#endif

// What a device has for a kernel that plans by it.
struct DeviceLimits {
  int64_t multiprocessors;
  int64_t shared_bytes;  // of a block, at most
};

inline DeviceLimits device_limits([[maybe_unused]] const torch::stable::Tensor& tensor) {
#ifdef FULLSPECTRUM_EMULATION
  return {4, emulation::kMaxSharedBytes};
#else
  int multiprocessors = 0, shared_bytes = 0;
  const int device = tensor.get_device_index();
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  STD_CUDA_CHECK(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)
  );
  return {multiprocessors, shared_bytes};
#endif
}

// The extent of a one-dimensional grid, which ends at 2^31 - 1 blocks.
inline dim3 grid_of(const char* op, int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, op, ": too large for one CUDA grid, ", blocks, " blocks");
  return dim3(static_cast<unsigned>(blocks));
}

struct LaunchShape {
  const char* kernel;  // its name, for the emulator's record
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

// Launches kernel(args...) on the scope's stream. An empty grid is no launch.
template <typename... Params, typename... Args>
void launch(
    [[maybe_unused]] const DeviceScope& scope,
    const LaunchShape& shape,
    void (*kernel)(Params...),
    Args... args
) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) {
    return;
  }
#ifdef FULLSPECTRUM_EMULATION
  emulation::run(shape.kernel, shape.grid, shape.block, shape.shared_bytes, [&] {
    kernel(static_cast<Params>(args)...);
  });
#else
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (shape.shared_bytes > kWithoutOptIn) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel),
        cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shape.shared_bytes)
    ));
  }
  // clang-format off: in a header it takes >>> for three brackets
  kernel<<<shape.grid, shape.block, shape.shared_bytes, scope.stream>>>(static_cast<Params>(args)...);
  // clang-format on
  STD_CUDA_KERNEL_LAUNCH_CHECK();
#endif
}

}  // namespace fullspectrum
