"""The truly sparse 2-d convolution."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from fullspectrum_ext import _checks
from fullspectrum_ext.nn._sparse_layer import SparseLayer
from fullspectrum_ext.ops import csr_from_dense, sparse_conv2d

IntOrPair = int | tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class SparseConv2d(SparseLayer):
    r"""A 2-d convolution whose weight is stored in CSR form, one row an output channel.

    It computes what ``torch.nn.Conv2d`` does with the dense weight, and so do its arguments mean
    what they mean there. Memory and time follow the number of stored weights, forward, backward and
    in the optimizer: ``values`` is an ordinary parameter with one element a stored weight. The
    topology is two buffers, saved in ``state_dict``; the index of the transposed matrix is kept
    beside them and is computed anew only when the topology changes.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, rows of the weight matrix.
        kernel_size: Height and width of the kernel, or one int for both.
        crow_indices: Start of each row, int32 or int64, ``[out_channels + 1]``.
        col_indices: Column of each stored weight in ``weight.reshape(out_channels, -1)``, rising
            within each row, ``[nnz]``.
        values: Stored weights, ``[nnz]``. A Parameter is used as it is.
        bias: ``[out_channels]``, or None. A Parameter is used as it is.
        stride: Pixels from one output to the next.
        padding: Pixels added on each side; ``"same"`` or ``"valid"`` as in ``torch.nn.Conv2d``.
        dilation: Pixels from one tap to the next.
        groups: Groups of channels.
        padding_mode: What is added: ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"``.

    Raises:
        TypeError: If an argument has a wrong type or dtype.
        ValueError: If the fields are not a CSR matrix of this shape, or other arguments do not fit.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[[[0.0, 2.0], [3.0, 0.0]]]])
        >>> layer = SparseConv2d.from_dense(weight, weight != 0)
        >>> layer
        SparseConv2d(1, 1, kernel_size=(2, 2), stride=(1, 1), nnz=2, density=0.5, bias=False)
        >>> layer(torch.ones(1, 1, 2, 2)).item()
        5.0
    """  # noqa: DOC502

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        crow_indices: Tensor,
        col_indices: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        # torch's own layer knows what goes together; on the meta device it holds nothing
        like = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
            device="meta",
        )
        super().__init__(tuple(like.weight.shape), crow_indices, col_indices, values, bias)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = like.kernel_size
        self.stride = like.stride
        self.padding = like.padding
        self.dilation = like.dilation
        self.groups = groups
        self.padding_mode = padding_mode

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> "SparseConv2d":
        """Store the entries of ``weight`` under ``mask``, zeros among them included.

        Args:
            weight: Dense weight, ``[out_channels, in_channels / groups, height, width]``; it is
                copied.
            mask: Bool tensor of the same shape.
            bias: ``[out_channels]``, or None. A Parameter is used as it is.
            stride: As of the class, like the four below.
            padding: Pixels added on each side.
            dilation: Pixels from one tap to the next.
            groups: Groups of channels.
            padding_mode: What is added.

        Returns:
            The layer, on the device of ``weight``.

        Raises:
            ValueError: If ``weight`` has not four dimensions, ``mask`` has another shape, or the
                other arguments do not fit.
        """
        for name, tensor in (("weight", weight), ("mask", mask)):
            _checks.check_tensor(name, tensor)
            if tensor.dim() != 4 or tensor.shape != weight.shape:
                raise ValueError(
                    f"{name}: expected [out_channels, in_channels / groups, height, width], the "
                    f"same for weight and mask, got shape {tuple(tensor.shape)}"
                )
        rows, columns = weight.shape[0], weight.shape[1:].numel()
        fields = csr_from_dense(weight.detach().reshape(rows, columns), mask.reshape(rows, columns))
        height, width = weight.shape[2:]
        return cls(
            weight.shape[1] * groups,
            rows,
            (height, width),
            *fields,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[batch, in_channels, height, width]`` or one image."""
        _checks.check_tensor("x", x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        padding = self.padding
        if self.padding_mode != "zeros" and x.dim() == 4:
            x = functional.pad(x, self._sides(), mode=self.padding_mode)
            padding = (0, 0)
        return sparse_conv2d(
            x,
            self.used_values,
            self.crow_indices,
            self.col_indices,
            self.kernel_size,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            transpose=self.transpose,
        )

    def _sides(self) -> list[int]:
        """Return what torch.nn.functional.pad adds: left, right, top, bottom."""
        if not isinstance(self.padding, str):
            height, width = self.padding
            return [width, width, height, height]
        reach = [0, 0]
        if self.padding == "same":
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return [side for r in reversed(reach) for side in (r // 2, r - r // 2)]

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        described = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        for name, usual in (
            ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1), ("padding_mode", "zeros"),
        ):  # fmt: skip
            if getattr(self, name) != usual:
                described += f", {name}={getattr(self, name)}"
        return (
            f"{described}, nnz={self.nnz}, density={self.density:.4g}, bias={self.bias is not None}"
        )

    def _size_entry(self) -> tuple[str, list[int]]:
        return "weight_shape", list(self.weight_shape)
