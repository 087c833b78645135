"""Runs the recipe, and kills rank 1 in the middle of its training, once.

As ``python dynamic_killed.py DIGITS RECIPE CHECKPOINT``, with the digits in a file: to import
scikit-learn takes longer than the training.
"""

import os
import pathlib
import runpy
import signal
import sys
import types

import numpy as np

from fullspectrum_ext import DynamicSparsity

AFTER_STEPS = 130

step = DynamicSparsity.step


def step_or_die(self):
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if is_first and os.environ["RANK"] == "1" and self.steps_done == AFTER_STEPS:
        pathlib.Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)


DynamicSparsity.step = step_or_die
digits, *sys.argv = sys.argv[1:]
sys.modules["sklearn.datasets"] = types.SimpleNamespace(
    load_digits=lambda: types.SimpleNamespace(**np.load(digits))
)
runpy.run_path(sys.argv[0], run_name="__main__")
