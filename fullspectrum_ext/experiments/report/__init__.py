"""The report of sweeps and jobs: one page, as HTML and as Markdown."""

from fullspectrum_ext.experiments.report.page import write_report
from fullspectrum_ext.experiments.report.source import read_study
from fullspectrum_ext.experiments.report.study import Study
