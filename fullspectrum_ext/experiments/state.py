"""State dicts out of the files that people keep them in."""

from pathlib import Path

from torch import Tensor

from fullspectrum_ext.checkpoints import open_checkpoint


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a model out of a checkpoint; no code in the file is run.

    Args:
        path: Any checkpoint that :func:`fullspectrum_ext.checkpoints.open_checkpoint` opens.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        ValueError: If the file is damaged or holds no state dict.
    """
    checkpoint = open_checkpoint(path)
    return {name: checkpoint[name].clone() for name in checkpoint}
