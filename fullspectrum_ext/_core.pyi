from typing import Any

from numpy.typing import NDArray

def active_isa() -> str: ...
def build_info() -> dict[str, str]: ...
def mask_to_csr(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int, int]: ...
def regular_subgraphs(
    indptr: NDArray[Any], indices: NDArray[Any], shape: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def singular_values(
    indptr: NDArray[Any],
    indices: NDArray[Any],
    data: NDArray[Any] | None,
    shape: tuple[int, int],
    k: int,
    tol: float,
) -> tuple[NDArray[Any], NDArray[Any], int]: ...
