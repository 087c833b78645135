"""The section on how the coordinate moves while networks train."""

from fullspectrum_ext.experiments.report.content import Block, Figure, Heading, Section
from fullspectrum_ext.experiments.report.courses import draw_trajectories, trajectories
from fullspectrum_ext.experiments.report.figures import draw_ways
from fullspectrum_ext.experiments.report.study import Study


def coordinates(study: Study) -> Section:
    """Show the norm of the coordinate over training, and from its begin to its end.

    Args:
        study: All runs.

    Returns:
        The section.
    """
    blocks: list[Block] = []
    for panel in study.panels:
        blocks.append(Heading(panel.name))
        measured = {s: found for s in panel.sparsities if (found := trajectories(panel, s))}
        if measured:
            caption = (
                f"{panel.name}: norm of the full-spectrum coordinate over the optimizer's steps, "
                "mean over seeds; the band holds all of them."
            )
            drawing = draw_trajectories(panel, measured)
            blocks.append(Figure(f"trajectories-{panel.key}", drawing, caption))
        caption = (
            f"{panel.name}: norm of the full-spectrum coordinate with the initial weights (open) "
            "and the trained ones (filled) under the same mask, means over seeds."
        )
        blocks.append(Figure(f"norms-{panel.key}", draw_ways(panel), caption))
    return Section("The coordinate while networks train", blocks)
