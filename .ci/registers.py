"""Compiles the CUDA library with ptxas's report and holds each kernel against its budget.

usage: registers.py SOURCE_FOLDER BUILD_FOLDER
"""

import collections
import os
import re
import subprocess
import sys

# Registers a thread may use. 128 let 512 threads of a block, or 16 warps, run on a multiprocessor
# (65,536 registers); a kernel that needs more, or may do with less, is named here with its reason.
BUDGET = 128
BUDGETS: dict[str, int] = {
    # Whole algorithms in one kernel, one block a problem: waiting for memory and barriers bounds
    # them, and one block a multiprocessor is what a network's layers give.
    "block_lanczos_kernel": 255,
    "gram_lanczos_kernel": 255,
}


def compile_report(source: str, build: str) -> str:
    """Build the CUDA library for the released architectures; return what ptxas printed."""
    configure = ["cmake", "-S", source, "-B", build, "-G", "Ninja", "-DFULLSPECTRUM_CUDA=ON"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"]
    environment = os.environ | {
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    }
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL, env=environment)
    build_library = ["cmake", "--build", build, "--target", "fullspectrum_cuda"]
    result = subprocess.run(
        build_library, check=False, capture_output=True, text=True, env=environment
    )
    if result.returncode != 0:
        sys.exit(result.stdout + result.stderr)
    return result.stdout + result.stderr


def kernel_name(mangled: str) -> str:
    """Find, among the length-prefixed parts of a mangled name, the one that ends in _kernel."""
    place = 0
    # each part is stepped over whole: an unnamed namespace's holds digits of its own
    while prefix := re.compile(r"\d+").search(mangled, place):
        place = prefix.end() + int(prefix.group())
        part = mangled[prefix.end() : place]
        if part.endswith("_kernel"):
            return part
    return mangled


def main() -> None:
    """Print the largest use of each kernel over its instantiations and architectures."""
    report = compile_report(*sys.argv[1:3])
    entry = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\w+)'"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        re.DOTALL,
    )
    registers: dict[tuple[str, str], int] = collections.defaultdict(int)
    failures = []
    for mangled, architecture, stores, loads, used in entry.findall(report):
        kernel = kernel_name(mangled)
        registers[kernel, architecture] = max(registers[kernel, architecture], int(used))
        if int(stores) or int(loads):
            failures.append(f"{mangled} ({architecture}) spills {stores} + {loads} bytes")
    for (kernel, architecture), used in sorted(registers.items()):
        budget = BUDGETS.get(kernel, BUDGET)
        print(f"{kernel:44} {architecture} {used:4} of {budget} registers")
        if used > budget:
            failures.append(f"{kernel} ({architecture}) uses {used} registers of {budget}")
    if failures or not registers:
        sys.exit("\n".join(failures) or "ptxas reported no kernel")


main()
