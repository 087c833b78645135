"""Layers that hold and train only the weights under their mask."""

from fullspectrum_ext.nn.backend import Choice
from fullspectrum_ext.nn.masked import MaskedConv2d, MaskedLinear, update_masks
from fullspectrum_ext.nn.masked_recurrent import MaskedGRU, MaskedLSTM, MaskedRNN
from fullspectrum_ext.nn.memory import training_bytes
from fullspectrum_ext.nn.sparse_conv2d import SparseConv2d
from fullspectrum_ext.nn.sparse_linear import SparseLinear
from fullspectrum_ext.nn.sparsify import choose_backends, densify, load_sparse_state_dict, sparsify
