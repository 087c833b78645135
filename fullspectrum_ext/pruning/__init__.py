"""Pruning methods, one a file, and the function that applies them."""

from fullspectrum_ext.pruning import (
    force,
    grasp,
    itersnip,
    magnitude,
    pags,
    phew,
    ramanujan,
    random,
    snip,
    synflow,
)
from fullspectrum_ext.pruning.api import prune
from fullspectrum_ext.pruning.audit import ABLATIONS, Audited, audit
from fullspectrum_ext.pruning.base import ScoringContext, methods, register_pruner
from fullspectrum_ext.pruning.dissipating import DissipatingGradients
from fullspectrum_ext.pruning.dissipating_kstarts import DissipatingKStarts
from fullspectrum_ext.pruning.gradual import GradualPruning, cubic_sparsity
from fullspectrum_ext.pruning.kstarts import KStarts
from fullspectrum_ext.pruning.lottery import Ticket, lottery_tickets, ticket_densities
from fullspectrum_ext.pruning.probmask import ProbMask
from fullspectrum_ext.pruning.threshold import ThresholdPruning, magnitude_quantiles
