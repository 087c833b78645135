import numpy as np
import pytest
import torch
from helpers import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import LARGE, SMALL, affine_plane, check, csr, projective_plane, random_matrix

from fullspectrum_ext import ops
from fullspectrum_ext.reference.singular_values import singular_values as reference

OP = torch.ops.fullspectrum.singular_values.default
SUBGRAPH_OP = torch.ops.fullspectrum.subgraph_singular_values.default


@pytest.mark.parametrize("dense", SMALL.values(), ids=SMALL.keys())
def test_small_matrices(device, dense):
    crow_indices, col_indices, values = csr(dense, device)

    result = ops.singular_values(crow_indices, col_indices, values, dense.shape, validate=True)

    check(result, dense)
    assert result.values.device == result.bounds.device == device


@pytest.mark.parametrize("dense", LARGE.values(), ids=LARGE.keys())
def test_larger_matrices(dense):
    crow_indices, col_indices, values = csr(dense)

    check(ops.singular_values(crow_indices, col_indices, values, dense.shape), dense)


def test_the_planes_have_the_values_that_theory_gives():
    for dense, expected in (
        (projective_plane(7), [8, np.sqrt(7)]),
        (affine_plane(7), [np.sqrt(56), np.sqrt(7)]),
    ):
        crow_indices, col_indices, _ = csr(dense)
        sigma = ops.singular_values(crow_indices, col_indices, None, dense.shape)
        np.testing.assert_allclose(sigma.values, expected, rtol=1e-12)
    assert projective_plane(7).shape == (57, 57)
    assert affine_plane(7).shape == (49, 56)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_layer_of_4608_by_512(density, weighted):
    dense = random_matrix(4608, 512, density, weighted=weighted).astype(np.float32)
    crow_indices, col_indices, values = csr(dense)

    result = ops.singular_values(
        crow_indices, col_indices, values if weighted else None, dense.shape
    )

    # LAPACK on the Gram matrix: the singular values to 1e-8 in a tenth of the time
    gram = dense.astype(np.float64).T @ dense.astype(np.float64)
    true = np.sqrt(np.linalg.eigvalsh(gram)[::-1][:2].clip(0))
    error = np.abs(result.values.numpy() - true)
    assert (error <= np.maximum(1e-6 * true, 1e-7 * true[0])).all()
    assert (result.bounds.numpy() <= np.maximum(1e-6 * true, 1e-12 * true[0])).all()


def test_a_matrix_that_takes_a_restart(device):
    dense = np.eye(68) + np.eye(68, k=1)  # a path: its spectrum is dense at the top
    crow_indices, col_indices, _ = csr(dense, device)

    result = ops.singular_values(crow_indices, col_indices, None, dense.shape, 1, tol=1e-12)

    check(result, dense, 1, tol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_more_values_and_zeros_beyond_the_last(device, k):
    dense = random_matrix(9, 5, 0.6, weighted=True)
    crow_indices, col_indices, values = csr(dense, device)

    result = ops.singular_values(crow_indices, col_indices, values, dense.shape, k)

    check(result, dense, k)
    assert result.values.shape == result.bounds.shape == (k,)
    assert result.values[5:].tolist() == result.bounds[5:].tolist() == [0.0] * max(k - 5, 0)


def test_twenty_values_of_a_large_matrix():
    dense = random_matrix(300, 200, 0.1)
    crow_indices, col_indices, _ = csr(dense)

    check(ops.singular_values(crow_indices, col_indices, None, dense.shape, 20), dense, 20)


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10, 1e-13])
def test_the_accuracy_asked_for_is_the_accuracy_given(tol):
    dense = random_matrix(400, 150, 0.1, weighted=True)
    crow_indices, col_indices, values = csr(dense)

    result = ops.singular_values(crow_indices, col_indices, values, dense.shape, tol=tol)

    check(result, dense, tol=tol)
    assert (result.bounds <= tol * result.values + 5e-14 * result.values[0]).all()


def test_a_second_value_far_below_the_first():
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.standard_normal((120, 3)))[0]
    right = np.linalg.qr(generator.standard_normal((90, 3)))[0]
    dense = left @ np.diag([1.0, 1e-10, 1e-11]) @ right.T
    crow_indices, col_indices, values = csr(dense)

    result = ops.singular_values(crow_indices, col_indices, values, dense.shape)

    # the Gram matrix would only know it to 1e-8
    assert abs(result.values[1] - 1e-10) <= result.bounds[1] <= 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_every_dtype_is_read_as_float64(device, dtype, index):
    crow_indices, col_indices, values, _, dense = random_csr(8, 11, 0.5, dtype, device, index)

    result = ops.singular_values(crow_indices, col_indices, values, (8, 11))

    check(result, dense.double().cpu(), tol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_entries_whose_squares_overflow_or_vanish(device, scale):
    dense = random_matrix(7, 9, 0.5, weighted=True)
    crow_indices, col_indices, values = csr(dense, device)

    scaled, plain = ops.singular_values(
        [crow_indices] * 2, [col_indices] * 2, [values * scale, values], [dense.shape] * 2
    ).values.cpu()

    torch.testing.assert_close(scaled / scale, plain, rtol=1e-13, atol=0)


def test_a_batch_gives_what_each_matrix_gives(device):
    matrices = [csr(dense, device) for dense in SMALL.values()]
    shapes = [dense.shape for dense in SMALL.values()]

    together = ops.singular_values(
        *(list(fields) for fields in zip(*matrices, strict=True)), shapes
    )

    assert together.values.shape == (len(SMALL), 2)
    for i, (fields, shape) in enumerate(zip(matrices, shapes, strict=True)):
        alone = ops.singular_values(*fields, shape)
        assert torch.equal(together.values[i], alone.values)
        assert torch.equal(together.bounds[i], alone.bounds)
    assert ops.singular_values([], [], None, []).values.shape == (0, 2)


def test_the_reference_agrees():
    for dense in SMALL.values():
        crow_indices, col_indices, values = csr(dense)
        sigma = ops.singular_values(crow_indices, col_indices, values, dense.shape, 3)
        torch.testing.assert_close(
            sigma.values, reference(torch.from_numpy(dense), 3), rtol=1e-12, atol=1e-12
        )


@given(
    rows=st.integers(0, 12),
    cols=st.integers(0, 12),
    density=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    weighted=st.booleans(),
    k=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_any_shape(rows, cols, density, weighted, k, seed):
    dense = random_matrix(rows, cols, density, weighted=weighted, seed=seed)
    crow_indices, col_indices, values = csr(dense)

    check(ops.singular_values(crow_indices, col_indices, values, dense.shape, k), dense, k)


@given(
    rows=st.integers(65, 130),
    cols=st.integers(65, 130),
    density=st.sampled_from([0.01, 0.03, 0.2]),
    copies=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_disconnected_copies_are_counted(rows, cols, density, copies, seed):
    dense = np.kron(np.eye(copies), random_matrix(rows, cols, density, seed=seed))
    crow_indices, col_indices, _ = csr(dense)

    check(ops.singular_values(crow_indices, col_indices, None, dense.shape, 3), dense, 3)


def test_any_number_of_threads_gives_the_same_bits():
    matrices = [csr(dense) for dense in LARGE.values()]
    fields = [list(field) for field in zip(*matrices, strict=True)]
    shapes = [dense.shape for dense in LARGE.values()]
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(ops.singular_values(*fields, shapes))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].values, results[1].values)
    assert torch.equal(results[0].bounds, results[1].bounds)


# ---- subgraphs -----------------------------------------------------------------------------------


def test_subgraphs_worked_by_hand(device):
    dense = [[1.0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]  # degrees 2, 2, 1, 1, 0
    crow_indices, col_indices, _ = csr(torch.tensor(dense), device)
    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (3, 5))

    sigma = ops.subgraph_singular_values(crow_indices, col_indices, None, (3, 5), subgraphs)

    expected = torch.tensor([[np.sqrt(2), 0], [2, 0]], device=device)
    torch.testing.assert_close(sigma.values, expected, rtol=1e-14, atol=1e-14)
    assert (sigma.bounds < 1e-13).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_subgraphs_of_several_layers(device, weighted):
    sizes = [(7, 13), (16, 3), (5, 40), (4, 0)]
    layers = [random_csr(rows, cols, 0.4, device=device) for rows, cols in sizes]
    crows, cols, values = ([layer[i] for layer in layers] for i in range(3))
    subgraphs = ops.regular_subgraphs(crows, cols, sizes)

    results = ops.subgraph_singular_values(
        crows, cols, values if weighted else None, sizes, subgraphs, 3
    )

    for layer, groups, result in zip(layers, subgraphs, results, strict=True):
        matrix = (layer[4] if weighted else layer[3].double()).cpu()
        assert result.values.shape == (len(groups), 3)
        for i, group in enumerate(groups):
            found = ops.SingularValues(result.values[i], result.bounds[i])
            check(found, matrix[:, group.taps.cpu()], 3)


def test_some_of_the_subgraphs_in_another_order(device):
    crow_indices, col_indices, values, _, dense = random_csr(9, 30, 0.4, device=device)
    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (9, 30))
    chosen = [subgraphs[2], subgraphs[0]]

    sigma = ops.subgraph_singular_values(crow_indices, col_indices, values, (9, 30), chosen)

    for i, group in enumerate(chosen):
        found = ops.SingularValues(sigma.values[i], sigma.bounds[i])
        check(found, dense[:, group.taps].cpu())
    none = ops.subgraph_singular_values(crow_indices, col_indices, values, (9, 30), [])
    assert none.values.shape == (0, 2)


def test_large_subgraphs():
    dense = random_matrix(128, 1152, 0.05)
    crow_indices, col_indices, _ = csr(dense)
    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, dense.shape)

    sigma = ops.subgraph_singular_values(crow_indices, col_indices, None, dense.shape, subgraphs)

    assert max(len(group.taps) for group in subgraphs) > 150
    for i, group in enumerate(subgraphs):
        found = ops.SingularValues(sigma.values[i], sigma.bounds[i])
        check(found, dense[:, group.taps.numpy()])


# ---- registration and errors ---------------------------------------------------------------------


def test_the_operators_are_registered_as_torch_wants_them(device):
    crow_indices, col_indices, values, _, _ = random_csr(5, 6, 0.5, device=device)
    fields = [crow_indices], [col_indices], [values]
    taps = torch.arange(6, device=device)

    torch.library.opcheck(OP, (*fields, [6], 2, 1e-6))
    torch.library.opcheck(OP, ([crow_indices], [col_indices], [], [6], 2, 1e-6))
    torch.library.opcheck(SUBGRAPH_OP, (*fields, [6], [taps], [2], [4, 2], 2, 1e-6))


def test_values_are_detached(device):
    crow_indices, col_indices, values, _, _ = random_csr(5, 6, 0.5, device=device)

    sigma = ops.singular_values(crow_indices, col_indices, values.requires_grad_(), (5, 6))

    assert not sigma.values.requires_grad
    assert not sigma.bounds.requires_grad


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"k": 1.5}, TypeError, "k: expected an int, got float"),
        ({"tol": 0.0}, ValueError, "tol: expected a finite number above 0, got 0.0"),
        ({"tol": float("nan")}, ValueError, "tol: expected a finite number above 0, got nan"),
        ({"values": torch.tensor([1.0, float("nan")])}, ValueError, "values: expected finite"),
        ({"values": torch.tensor([1.0, float("inf")])}, ValueError, "values: expected finite"),
        ({"values": torch.tensor([1, 1])}, TypeError, "values: expected float32"),
        ({"values": torch.ones(3)}, ValueError, "values: expected one for each of the 2"),
        ({"values": [torch.ones(2)]}, TypeError, "values: expected a list"),
        ({"shape": (3, 2)}, ValueError, r"crow_indices: expected rows \+ 1 = 4"),
        ({"shape": (2, 1)}, RuntimeError, r"col_indices must lie in \[0, 1\), got 1"),
        ({"shape": (2, 1), "validate": True}, ValueError, r"col_indices: expected values in"),
        ({"crow_indices": torch.tensor([0, 3, 2])}, RuntimeError, "never decrease"),
        ({"crow_indices": torch.tensor([1, 1, 2])}, RuntimeError, "start at 0"),
        ({"crow_indices": [0, 1, 2]}, TypeError, "expected a list"),
        ({"col_indices": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, "col_indices is"),
    ],
)
def test_bad_arguments_are_refused(changed, error, message):
    arguments = {
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([0, 1]),
        "values": torch.ones(2),
        "shape": (2, 2),
    }
    ops.singular_values(**arguments)

    with pytest.raises(error, match=message):
        ops.singular_values(**(arguments | changed))


def test_mixed_devices_are_refused():
    crow_indices, col_indices, values, _, _ = random_csr(3, 4, 0.5)
    with pytest.raises(ValueError, match="values is on meta but col_indices is on cpu"):
        ops.singular_values(crow_indices, col_indices, values.to("meta"), (3, 4))
    with pytest.raises(ValueError, match="all matrices on one device"):
        ops.singular_values(
            [crow_indices, crow_indices.to("meta")],
            [col_indices, col_indices.to("meta")],
            None,
            [(3, 4)] * 2,
        )


def test_subgraphs_of_another_layer_are_refused():
    crow_indices, col_indices, _, _, _ = random_csr(3, 4, 1.0)
    (group,) = ops.regular_subgraphs(crow_indices, col_indices, (3, 4))
    other = ops.RegularSubgraph(1, torch.tensor([4]), 1, 1)
    with pytest.raises(RuntimeError, match=r"taps must lie in \[0, 4\)"):
        ops.subgraph_singular_values(crow_indices, col_indices, None, (3, 4), [other])
    with pytest.raises(RuntimeError, match="in one subgraph each"):
        ops.subgraph_singular_values(crow_indices, col_indices, None, (3, 4), [group, group])
    with pytest.raises(TypeError, match="expected RegularSubgraph, got list"):
        ops.subgraph_singular_values(crow_indices, col_indices, None, (3, 4), [[1, 2]])
    with pytest.raises(ValueError, match="expected 1 layers, got 2"):
        ops.subgraph_singular_values(
            [crow_indices], [col_indices], None, [(3, 4)], [[group], [group]]
        )
