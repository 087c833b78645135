"""The report of a sweep or of jobs: one page, as HTML and as Markdown."""

from fullspectrum_ext.experiments.report.page import write_report
from fullspectrum_ext.experiments.report.study import Study, sort_runs
