import torch

import fullspectrum_ext  # noqa: F401  (registers the operators)
from fullspectrum_ext import ops


def random_csr(rows, cols, density, dtype=torch.float64, device="cpu", index=torch.int32, seed=0):
    """A random matrix in CSR form, its bool mask, and the matrix itself, dense."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, cols, generator=generator) < density
    dense = torch.randn(rows, cols, generator=generator, dtype=torch.float64) * mask
    dense, mask = dense.to(device, dtype), mask.to(device)
    crow_indices, col_indices, values = ops.csr_from_dense(dense, mask)
    return crow_indices.to(index), col_indices.to(index), values, mask, dense


def _one(mask, where):
    """Keep one place of a mask, about two thirds through its rows and its columns."""
    alone = torch.zeros_like(mask)
    alone[where(*(2 * size // 3 for size in mask.shape))] = True
    return alone


# Changes a random mask into one of an awkward kind.
TOPOLOGIES = {
    "scattered": lambda mask: mask,
    "no entry": torch.zeros_like,
    "all entries": torch.ones_like,
    "one entry": lambda mask: _one(mask, lambda row, col: (row, col)),
    "one full row": lambda mask: _one(mask, lambda row, _: row),
    "one full column": lambda mask: _one(mask, lambda _, col: (slice(None), col)),
}
