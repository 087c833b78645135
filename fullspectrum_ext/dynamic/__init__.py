"""Dynamic sparse training: the topology changes while a network is trained."""

from fullspectrum_ext.dynamic.apportion import apportion
from fullspectrum_ext.dynamic.dsr import DSR
from fullspectrum_ext.dynamic.gradual import GradualMagnitude
from fullspectrum_ext.dynamic.granet import GraNet
from fullspectrum_ext.dynamic.itop import ITOP, GradientITOP
from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.mest import MEST, SoftMEST
from fullspectrum_ext.dynamic.method import Change, Method, Turn, methods, register_method
from fullspectrum_ext.dynamic.ramanujan import RamanujanGuided, RamanujanGuidedRigL
from fullspectrum_ext.dynamic.rigl import RigL
from fullspectrum_ext.dynamic.set import SET
from fullspectrum_ext.dynamic.snfs import SNFS
from fullspectrum_ext.dynamic.sparsity import DynamicSparsity
from fullspectrum_ext.dynamic.topkast import TopKAST
from fullspectrum_ext.dynamic.topology_logger import TopologyLogger
from fullspectrum_ext.dynamic.updates import LayerUpdate, Update
