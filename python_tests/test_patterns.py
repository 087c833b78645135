import pytest
import torch

from fullspectrum_ext.patterns import mask_pattern


def random(*shape, density=0.5, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def groups(rows, columns, kept, size):
    order = torch.rand(rows * columns // size, size, generator=torch.Generator().manual_seed(0))
    return (order.argsort(dim=1) < kept).reshape(rows, columns)


def tiled(height, width, density=0.4):
    tiles = random(192 // height, 192 // width, density=density)
    return tiles.repeat_interleave(height, 0).repeat_interleave(width, 1)


@pytest.mark.parametrize(
    ("kept", "size"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 8), (8, 16), (16, 32)]
)
def test_groups_of_neighbouring_inputs(kept, size):
    assert mask_pattern(groups(32, 96, kept, size)) == f"{kept}:{size}"
    # of a convolution: along its input channels, at each place of the kernel
    convolution = groups(8 * 9, 64, kept, size).reshape(8, 3, 3, 64).permute(0, 3, 1, 2)
    assert mask_pattern(convolution) == f"{kept}:{size}"


def test_one_group_too_full_is_no_pattern_but_a_few_too_empty_are():
    mask = groups(32, 64, 2, 4)
    mask[5, :4] = torch.tensor([True, False, False, False])
    assert mask_pattern(mask) == "2:4"
    mask[5, :4] = True
    assert mask_pattern(mask) == "unstructured"
    assert mask_pattern(groups(32, 64, 2, 4)[:, 1:]) == "unstructured"  # 63 inputs


@pytest.mark.parametrize(
    "shape", [(4, 4), (8, 8), (16, 16), (32, 32), (1, 4), (1, 16), (4, 1), (16, 1)]
)
def test_blocks_are_named_by_the_largest_that_fits(shape):
    mask = tiled(*shape)
    assert mask_pattern(mask) == f"{shape[0]}x{shape[1]} blocks"
    shifted = mask.roll((1, 1), (0, 1)) if min(shape) > 1 else mask.roll(1, int(shape[0] == 1))
    assert mask_pattern(shifted) == "unstructured"


def test_a_few_zeros_in_kept_blocks_are_weights_that_happen_to_be_zero():
    mask = tiled(16, 16)
    kept = mask.nonzero()
    mask[tuple(kept[::999].T)] = False
    assert mask_pattern(mask) == "16x16 blocks"
    mask[tuple(kept[::7].T)] = False
    assert mask_pattern(mask) == "unstructured"


def test_rows_columns_and_kernels():
    full = torch.ones(24, 36, dtype=torch.bool)
    rows, columns = full.clone(), full.clone()
    rows[[0, 7]] = False
    columns[:, 3] = False
    kernels = random(16, 16, 1, 1).expand(16, 16, 3, 3)
    assert mask_pattern(full) == "dense"
    assert mask_pattern(~full) == "empty"
    assert mask_pattern(rows) == "rows"
    assert mask_pattern(columns) == "columns"
    assert mask_pattern(rows & columns) == "rows and columns"
    assert mask_pattern(kernels) == "kernels"
    assert mask_pattern(torch.ones(1, 1, dtype=torch.bool)) == "dense"


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_random_masks_have_no_pattern(density):
    for seed in range(5):
        assert mask_pattern(random(64, 64, density=density, seed=seed)) == "unstructured"
        assert mask_pattern(random(32, 16, 3, 3, density=density, seed=seed)) == "unstructured"


def test_too_little_to_tell_is_unstructured():
    mask = torch.tensor([[True, False] * 4, [False, True] * 4])
    assert mask_pattern(mask) == "unstructured"  # eight groups of two
