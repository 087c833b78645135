import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import _core, numpy_ops, ops


def random_matrix(rows, cols, density, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    dense = generator.integers(1, 5, (rows, cols)) * (generator.random((rows, cols)) < density)
    return scipy.sparse.csr_array(dense.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(("rows", "cols"), [(7, 13), (100, 80), (1, 1), (0, 3), (3, 0)])
def test_singular_values_agree_with_lapack(rows, cols, dtype, index):
    matrix = random_matrix(rows, cols, 0.2, dtype)
    matrix.indptr, matrix.indices = matrix.indptr.astype(index), matrix.indices.astype(index)

    sigma = numpy_ops.singular_values(matrix, 3)

    true = np.zeros(3)
    if matrix.shape[0] * matrix.shape[1]:
        leading = np.linalg.svd(matrix.toarray().astype(np.float64), compute_uv=False)[:3]
        true[: len(leading)] = leading
    error = np.abs(sigma.values - true)
    assert (error <= 1e-6 * true + 1e-13 * true[0]).all()
    assert (error <= sigma.bounds + 1e-12 * true[0]).all()


def test_without_data_all_entries_are_one():
    matrix = random_matrix(30, 20, 0.3)

    values, _, products = _core.singular_values(
        matrix.indptr, matrix.indices, None, (30, 20), 1, 1e-9
    )

    true = np.linalg.norm(matrix.toarray() != 0, 2)
    np.testing.assert_allclose(values, [true], rtol=1e-12)
    assert products > 0


def test_it_gives_the_same_bits_as_the_torch_operator():
    import torch

    matrix = random_matrix(90, 120, 0.1)

    sigma = numpy_ops.singular_values(matrix)

    fields = (torch.from_numpy(f) for f in (matrix.indptr, matrix.indices, matrix.data))
    expected = ops.singular_values(*fields, matrix.shape)
    assert sigma.values.tolist() == expected.values.tolist()
    assert sigma.bounds.tolist() == expected.bounds.tolist()


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_entries_whose_squares_overflow_or_vanish(scale):
    matrix = random_matrix(9, 7, 0.5)

    scaled, plain = numpy_ops.singular_values(matrix * scale), numpy_ops.singular_values(matrix)

    np.testing.assert_allclose(scaled.values / scale, plain.values, rtol=1e-13)


def test_regular_subgraphs_partition_the_columns():
    matrix = random_matrix(20, 50, 0.2)
    mask = matrix.toarray() != 0

    subgraphs = numpy_ops.regular_subgraphs(matrix)

    taps = np.concatenate([graph.taps for graph in subgraphs])
    assert sorted(taps) == np.flatnonzero(mask.any(0)).tolist()
    assert [g.degree for g in subgraphs] == sorted(set(mask.sum(0)) - {0})
    for graph in subgraphs:
        assert (mask[:, graph.taps].sum(0) == graph.degree).all()
        assert graph.edges == mask[:, graph.taps].sum()
        assert graph.live_outputs == mask[:, graph.taps].any(1).sum()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3, 4)])
def test_a_graph_without_edges_has_no_subgraphs(shape):
    assert numpy_ops.regular_subgraphs(scipy.sparse.csr_array(shape)) == []


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"indptr": np.array([0, 1])}, ValueError, r"indptr: expected rows \+ 1 = 3"),
        ({"indptr": np.array([0, 3, 2])}, ValueError, "never decrease"),
        ({"indptr": np.array([0, 1, 3])}, ValueError, "end at nnz = 2"),
        ({"indptr": np.array([0.0, 1, 2])}, TypeError, "indptr: expected int32 or int64"),
        ({"indices": np.array([0, 2])}, ValueError, r"in \[0, 2\), got 2"),
        ({"indices": np.array([0, -1])}, ValueError, r"in \[0, 2\), got -1"),
        ({"indices": np.array([[0, 1]])}, ValueError, "indices: expected one dimension, got 2"),
        ({"indices": np.array([0, 1], dtype=np.int16)}, TypeError, "indices: expected int32"),
        ({"data": np.ones(3)}, ValueError, "data: expected one entry for each of the 2"),
        ({"data": np.array([1.0, np.nan])}, ValueError, "data: expected finite"),
        ({"data": np.array([1j, 1])}, TypeError, "data: expected real numbers, got complex128"),
        ({"data": np.array(["a", "b"])}, TypeError, "data: expected real numbers"),
        ({"shape": (-1, 2)}, ValueError, "shape: expected rows and columns"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"tol": 0.0}, ValueError, "tol: expected a finite number above 0"),
        ({"tol": np.nan}, ValueError, "tol: expected a finite number above 0"),
    ],
)
def test_bad_arguments_are_refused(changed, error, message):
    arguments = {
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([0, 1]),
        "data": np.ones(2),
        "shape": (2, 2),
        "k": 2,
        "tol": 1e-6,
    }
    _core.singular_values(**arguments)

    with pytest.raises(error, match=message):
        _core.singular_values(**(arguments | changed))
    if changed.keys() <= {"indptr", "indices", "shape"}:
        pattern = {name: (arguments | changed)[name] for name in ("indptr", "indices", "shape")}
        with pytest.raises(error, match=message):
            _core.regular_subgraphs(**pattern)


def test_other_forms_than_csr_are_refused():
    with pytest.raises(TypeError, match="expected CSR form, got csc"):
        numpy_ops.singular_values(random_matrix(3, 4, 0.5).tocsc())
    with pytest.raises(TypeError, match=r"expected a scipy.sparse.csr_array of two dimensions"):
        numpy_ops.regular_subgraphs(np.eye(3))


def test_other_threads_run_meanwhile():
    matrix = random_matrix(1500, 1200, 0.05)
    counted = 0
    done = threading.Event()

    def solve():
        numpy_ops.singular_values(matrix, tol=1e-12)
        done.set()

    thread = threading.Thread(target=solve)
    thread.start()
    while not done.wait(0.001):
        counted += 1
    thread.join()

    assert counted > 3


@given(
    rows=st.integers(0, 9),
    cols=st.sampled_from([0, 1, 7, 63, 64, 65, 130, 700]),
    density=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_masks_in_csr_form(rows, cols, density, seed):
    mask = np.random.default_rng(seed).random((rows, cols)) < density

    indptr, indices, live_rows, live_columns = _core.mask_to_csr(mask)

    expected = scipy.sparse.csr_array(mask)
    assert indptr.dtype == indices.dtype == np.int32
    assert indptr.tolist() == [0, *np.cumsum(mask.sum(axis=1)).tolist()]
    assert indices.tolist() == expected.indices.tolist()
    assert live_rows == mask.any(axis=1).sum()
    assert live_columns == mask.any(axis=0).sum()


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_masks_in_csr_form_on_the_lower_instruction_sets(isa):
    # Chosen once in a process, so each takes its own.
    command = "import sys; sys.path.append(sys.argv[1]); import test_core as t; "
    command += "t.test_masks_in_csr_form()"
    environment = {**os.environ, "FULLSPECTRUM_ISA": isa}
    here = os.path.dirname(__file__)
    ran = subprocess.run(
        [sys.executable, "-P", "-c", command, here],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


def test_masks_that_are_none_are_refused():
    with pytest.raises(ValueError, match="mask: expected two dimensions, got 1"):
        _core.mask_to_csr(np.ones(3, dtype=bool))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _core.mask_to_csr(np.ones((3, 3)))
