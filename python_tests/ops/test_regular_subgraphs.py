import pytest
import torch
from helpers import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference.regular_subgraphs import regular_subgraphs as reference

OP = torch.ops.fullspectrum.regular_subgraphs.default

SIZES = [
    # rows, cols, density
    (0, 3, 0.5),
    (3, 0, 0.5),
    (1, 1, 1.0),
    (7, 13, 0.5),
    (13, 7, 0.0),
    (33, 65, 0.3),
    (131, 40, 0.1),
    (5, 300, 0.4),
]


def as_tuples(subgraphs):
    return [(g.degree, g.taps.tolist(), g.edges, g.live_outputs) for g in subgraphs]


def expected(mask):
    return [(degree, taps.tolist(), edges, live) for degree, taps, edges, live in reference(mask)]


def test_a_layer_worked_by_hand(device):
    # taps 0..4 of degree 2, 0, 1, 2, 3; output 3 has no edge
    crow_indices = torch.tensor([0, 3, 6, 8, 8], device=device)
    col_indices = torch.tensor([0, 2, 4, 0, 3, 4, 3, 4], device=device)

    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (4, 5), validate=True)

    assert as_tuples(subgraphs) == [(1, [2], 1, 1), (2, [0, 3], 4, 3), (3, [4], 3, 3)]


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(("rows", "cols", "density"), SIZES)
def test_it_agrees_with_the_reference(device, rows, cols, density, index):
    crow_indices, col_indices, _, mask, _ = random_csr(
        rows, cols, density, device=device, index=index
    )

    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (rows, cols))

    assert as_tuples(subgraphs) == expected(mask.cpu())
    assert all(g.taps.dtype == torch.int64 and g.taps.device == device for g in subgraphs)


def test_the_subgraphs_partition_the_graph(device):
    crow_indices, col_indices, _, mask, _ = random_csr(29, 97, 0.2, device=device)

    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (29, 97))

    taps = torch.cat([g.taps for g in subgraphs])
    assert sorted(taps.tolist()) == mask.any(0).nonzero().flatten().tolist()
    assert sum(g.edges for g in subgraphs) == int(mask.sum())
    for subgraph in subgraphs:
        assert (mask[:, subgraph.taps].sum(0) == subgraph.degree).all()
    gram = sum((mask[:, g.taps].double() @ mask[:, g.taps].double().T) for g in subgraphs)
    assert torch.equal(gram, mask.double() @ mask.double().T)


def test_the_taps_are_views_of_one_permutation(device):
    crow_indices, col_indices, _, _, _ = random_csr(16, 40, 0.3, device=device)

    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (16, 40))

    assert len(subgraphs) > 1
    assert len({g.taps.untyped_storage().data_ptr() for g in subgraphs}) == 1


def test_more_degrees_than_one_pass_over_a_row_counts(device):
    rows, degree = 8210, 8205  # the CUDA kernel counts 8192 degrees at once
    crow_indices = torch.arange(rows + 1, device=device).clamp(max=degree)
    col_indices = torch.zeros(degree, dtype=torch.int64, device=device)

    subgraphs = ops.regular_subgraphs(crow_indices, col_indices, (rows, 2))

    assert as_tuples(subgraphs) == [(degree, [0], degree, degree)]


def test_a_list_of_layers_gives_each_layers_result(device):
    layers = [random_csr(rows, cols, density, device=device) for rows, cols, density in SIZES]

    together = ops.regular_subgraphs(
        [layer[0] for layer in layers],
        [layer[1] for layer in layers],
        [(rows, cols) for rows, cols, _ in SIZES],
    )

    assert [as_tuples(subgraphs) for subgraphs in together] == [
        expected(layer[3].cpu()) for layer in layers
    ]
    assert ops.regular_subgraphs([], [], []) == []


@given(
    rows=st.integers(0, 12),
    cols=st.integers(0, 12),
    density=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(rows, cols, density, seed):
    crow_indices, col_indices, _, mask, _ = random_csr(rows, cols, density, seed=seed)

    assert as_tuples(ops.regular_subgraphs(crow_indices, col_indices, (rows, cols))) == expected(
        mask
    )


def test_any_number_of_threads_gives_the_same():
    crow_indices, col_indices, _, _, _ = random_csr(64, 300, 0.2)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(OP([crow_indices] * 3, [col_indices] * 3, [300] * 3))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_operator_is_registered_as_torch_wants_it(device):
    crow_indices, col_indices, _, _, _ = random_csr(7, 13, 0.5, device=device)

    torch.library.opcheck(OP, ([crow_indices, crow_indices], [col_indices, col_indices], [13, 13]))


@pytest.mark.parametrize(
    ("crow", "col", "message"),
    [
        ([0, 1, 3], [0, 1], "start at 0 and end at nnz = 2"),
        ([0, 2, 1], [0], "never decrease"),
        ([0, 1, 2], [0, 3], r"\[0, 3\), got 3"),
        ([0, 1, 2], [-1, 0], r"\[0, 3\), got -1"),
    ],
)
@pytest.mark.parametrize("validate", [False, True])
def test_malformed_indices_are_refused(crow, col, message, validate):
    error = ValueError if validate else RuntimeError
    with pytest.raises(error, match=message):
        ops.regular_subgraphs(torch.tensor(crow), torch.tensor(col), (2, 3), validate=validate)


def test_arguments_that_do_not_fit_are_refused():
    crow_indices, col_indices, _, _, _ = random_csr(3, 4, 0.5)
    with pytest.raises(ValueError, match=r"crow_indices: expected rows \+ 1 = 3"):
        ops.regular_subgraphs(crow_indices, col_indices, (2, 4))
    with pytest.raises(TypeError, match="crow_indices is torch.int32 but col_indices"):
        ops.regular_subgraphs(crow_indices, col_indices.long(), (3, 4))
    with pytest.raises(TypeError, match="crow_indices: expected int32 or int64"):
        ops.regular_subgraphs(crow_indices.float(), col_indices.float(), (3, 4))
    with pytest.raises(TypeError, match="col_indices: expected a list"):
        ops.regular_subgraphs([crow_indices], col_indices, [(3, 4)])
    with pytest.raises(ValueError, match="as many col_indices and shapes"):
        ops.regular_subgraphs([crow_indices], [col_indices], [(3, 4), (3, 4)])
    with pytest.raises(TypeError, match="shape: expected"):
        ops.regular_subgraphs(crow_indices, col_indices, 3)
