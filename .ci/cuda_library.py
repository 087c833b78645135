"""Under a CUDA build of torch: both libraries load, and every operator has its CUDA kernel."""

import sys

import torch

from fullspectrum_ext import _library

if _library.CUDA_LIBRARY != "loaded":
    sys.exit(f"torch {torch.__version__}: the CUDA library is {_library.CUDA_LIBRARY}")
operators = sorted(
    schema.name
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("fullspectrum::")
)
without = [
    name
    for name in operators
    for key in ("CPU", "CUDA")
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
]
if without or not operators:
    sys.exit(f"operators without a kernel: {without or 'there are no operators at all'}")
print(f"torch {torch.__version__}: {len(operators)} operators with CPU and CUDA kernels")
