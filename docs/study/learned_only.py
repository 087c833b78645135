"""The anchor distance against accuracy, without the networks that learned little or nothing.

A network whose mask is dead does not move and is at chance, which alone would correlate the two.
"""

from pathlib import Path

from fullspectrum_ext.experiments.report.sample import sample
from fullspectrum_ext.experiments.report.source import read_study

for panel in read_study([Path(__file__).parent]).panels:
    for least in (0, 30, 60):
        runs = [run for run in panel.runs if run.accuracy >= least and run.method != "dense"]
        found = sample(runs, "anchor_distance")
        for control in found.controls:
            r = found.correlate(control)
            print(
                f"{panel.name}, accuracy of {least} % and more, {len(runs)} runs, "
                f"{control or 'as it is'}: r = {r.coefficient:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"
            )
