"""The handwritten digits that come with scikit-learn: real data without a download."""

import torch

from fullspectrum_ext.experiments.data.split import Dataset, Split, by_turns
from fullspectrum_ext.experiments.extras import MissingExtraError


def digits(_path: str) -> Dataset:
    """1797 images of 8 x 8 pixels; of each class every fifth for the test, the next to validate."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the data set digits", "scikit-learn", "digits") from error
    found = load_digits()
    whole = Split(
        torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1),
        torch.tensor(found.target, dtype=torch.int64),
    )
    turns = by_turns(whole.y, 5)
    return Dataset(
        train=whole.chosen(turns > 1),
        validation=whole.chosen(turns == 1),
        test=whole.chosen(turns == 0),
        classes=10,
    )
