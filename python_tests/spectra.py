"""Matrices with awkward spectra, and what is asked of their singular values."""

import itertools

import numpy as np
import torch

from fullspectrum_ext import ops


def csr(dense, device="cpu", index=torch.int32):
    dense = torch.as_tensor(dense).to(device)
    crow_indices, col_indices, values = ops.csr_from_dense(dense)
    return crow_indices.to(index), col_indices.to(index), values


def check(result, dense, k=2, tol=1e-6):
    """Values agree with LAPACK to `tol` of the largest one, and every bound holds."""
    dense = np.asarray(dense, dtype=np.float64)
    true = np.zeros(k)
    if dense.size:
        leading = np.linalg.svd(dense, compute_uv=False)[:k]
        true[: len(leading)] = leading
    values, bounds = result.values.cpu().numpy(), result.bounds.cpu().numpy()
    error = np.abs(values - true)
    assert values.dtype == bounds.dtype == np.float64
    assert (error <= bounds + 1e-12 * true[0]).all(), (error, bounds)
    assert (error <= tol * true + 1e-13 * true[0]).all(), (values, true)
    assert (bounds <= tol * true + 1e-12 * true[0]).all(), (bounds, true)


def projective_plane(q):
    """Points against lines of PG(2, q), q prime: sigma_1 = q + 1, all others sqrt(q)."""
    points = [
        p for p in itertools.product(range(q), repeat=3) if any(p) and next(c for c in p if c) == 1
    ]
    points = np.array(points)
    return (points @ points.T % q == 0).astype(float)


def affine_plane(q):
    """Points against lines of AG(2, q): sigma_1 = sqrt(q (q + 1)), then sqrt(q)."""
    points = np.array(list(itertools.product(range(q), repeat=2)))
    lines = [(m, 1, b) for m in range(q) for b in range(q)] + [(1, 0, b) for b in range(q)]
    lines = np.array(lines)
    return ((points @ lines[:, :2].T + lines[:, 2]) % q == 0).astype(float)


def random_matrix(rows, cols, density, *, weighted=False, seed=0):
    generator = np.random.default_rng(seed)
    dense = (generator.random((rows, cols)) < density).astype(float)
    return dense * np.abs(generator.standard_normal((rows, cols))) if weighted else dense


SMALL = {
    "K_3_3": np.ones((3, 3)),
    "K_2_5": np.ones((2, 5)),
    "two copies of K_3_3": np.kron(np.eye(2), np.ones((3, 3))),
    "identity": np.eye(6),
    "one edge": np.eye(5)[[2, 0, 0]] * [[0], [1], [0]],
    "one entry": np.array([[0.25]]),
    "rank one": np.outer([1.0, 2, 0, 3], [4.0, 0, 5]),
    "zero rows and columns": np.pad(np.ones((2, 3)), 2),
    "no entries": np.zeros((3, 4)),
    "no rows": np.zeros((0, 4)),
    "no columns": np.zeros((4, 0)),
    "negative entries": np.array([[1.0, -2, 0], [0, 3, -1]]),
    "wide": random_matrix(5, 23, 0.4),
    "tall and weighted": random_matrix(19, 4, 0.5, weighted=True),
}

LARGE = {
    "PG(2, 7)": projective_plane(7),
    "AG(2, 7)": affine_plane(7),
    "K_200_100": np.ones((200, 100)),
    "identity of 300": np.eye(300),
    "forty copies of K_3_3": np.kron(np.eye(40), np.ones((3, 3))),
    "two copies of a random graph": np.kron(np.eye(2), random_matrix(150, 80, 0.1)),
    "two copies of a weighted graph": np.kron(
        np.eye(2), random_matrix(90, 130, 0.1, weighted=True)
    ),
    "random": random_matrix(300, 200, 0.05),
    "random, wide and weighted": random_matrix(128, 1152, 0.05, weighted=True),
    "a path": np.eye(200) + np.eye(200, k=1),
    "rank two": np.outer(np.arange(150), np.ones(90)) + np.outer(np.ones(150), np.arange(90)),
}


def of_spectrum(rows, cols, values, seed=0):
    """A dense matrix with the given singular values and random vectors."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((rows, len(values))))[0]
    right = np.linalg.qr(generator.standard_normal((cols, len(values))))[0]
    return left @ np.diag(values) @ right.T


# Just large enough that the iterations run: for the block emulator, which takes seconds for LARGE.
MEDIUM = {
    "mask": random_matrix(70, 150, 0.08),
    "weighted": random_matrix(90, 68, 0.1, weighted=True),
    "two copies of a mask": np.kron(np.eye(2), random_matrix(45, 36, 0.12)),
    "two copies of a weighted graph": np.kron(
        np.eye(2), random_matrix(35, 40, 0.15, weighted=True)
    ),
    "identity of 70": np.eye(70),
    "rank two": np.outer(np.arange(70), np.ones(66)) + np.outer(np.ones(70), np.arange(66)),
    "weights over 12 orders of magnitude": random_matrix(66, 80, 0.2)
    * 10 ** np.random.default_rng(0).uniform(-12, 0, (66, 80)),
    "a second value far below the first": of_spectrum(70, 66, [1, 1e-7, 5e-8]),
    "values that nearly coincide": of_spectrum(70, 66, [1, 1 - 1e-7, *np.linspace(0.6, 0.1, 60)]),
}
