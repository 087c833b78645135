"""Experiments: settings, data, models, training that resumes, records and reports."""

from fullspectrum_ext.experiments.config import TrainConfig, load_config
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.spectrum_logger import SpectrumLogger
from fullspectrum_ext.experiments.suite import train
