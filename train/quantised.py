"""Linear layers in 8 bits, for the forward pass of a frozen teacher on a GPU.

Weights have one scale per output channel, measured once; activations one scale per token, measured in every pass.
"""

from typing import Literal

import torch
from torch import nn

from sharding.recording import InputError

EightBits = Literal["int8", "fp8"]

_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LARGEST = {"int8": 127.0, "fp8": 448.0}
_CAPABILITY = {"int8": (8, 0), "fp8": (8, 9)}  # CUDA compute capability that has such matrix units
_MULTIPLE = 16  # sides of a weight, for the matrix units
_SMALLEST_SCALE = 1e-12  # a token of zeros stays zeros


def check_device(precision: EightBits, device: torch.device) -> None:
    """Raise InputError where a device has no 8-bit matrix units of that kind."""
    if device.type != "cuda":
        raise InputError(f"teacher.precision {precision}: wants a GPU, the device is {device}; give bf16 or fp32")
    has, wants = torch.cuda.get_device_capability(device), _CAPABILITY[precision]
    if has < wants:
        raise InputError(
            f"teacher.precision {precision}: wants compute capability {wants}, {device} has {has}; give bf16 or fp32"
        )


class QuantisedLinear(nn.Module):
    """An nn.Linear in 8 bits: (..., in) to (..., out) bfloat16.

    Args:
        linear: what it stands for; both sides multiples of 16.
        precision: of weights and activations; sums are int32 or float32.

    """

    def __init__(self, linear: nn.Linear, precision: EightBits) -> None:
        super().__init__()
        if linear.in_features % _MULTIPLE or linear.out_features % _MULTIPLE:
            raise InputError(
                f"teacher.precision {precision}: a linear layer of {linear.in_features} x {linear.out_features}; "
                f"both must be multiples of {_MULTIPLE}; give bf16 or fp32"
            )
        self.precision = precision
        weight, scale = _quantised(linear.weight.detach().float(), precision)
        self.register_buffer("weight", weight)  # (out, in)
        self.register_buffer("scale", scale.t().contiguous())  # (1, out)
        self.has_bias = linear.bias is not None
        if self.has_bias:
            self.register_buffer("bias", linear.bias.detach().to(torch.bfloat16))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Multiply in 8 bits, add the bias in bfloat16."""
        weight, scale = self.get_buffer("weight").t(), self.get_buffer("scale")
        rows, row_scale = _quantised(tokens.flatten(0, -2).float(), self.precision)
        if self.precision == "int8":
            product = (torch._int_mm(rows, weight) * row_scale * scale).to(torch.bfloat16)
        else:
            product = torch._scaled_mm(rows, weight, scale_a=row_scale, scale_b=scale, out_dtype=torch.bfloat16)
        if self.has_bias:
            product = product + self.get_buffer("bias")
        return product.view(*tokens.shape[:-1], -1)


def _quantised(rows: torch.Tensor, precision: EightBits) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, K) float32 in 8 bits, and the scale of every row, (M, 1)."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST_SCALE) / _LARGEST[precision]
    scaled = rows / scale
    return (scaled.round() if precision == "int8" else scaled).to(_DTYPES[precision]), scale


def quantise_linears(model: nn.Module, precision: EightBits) -> None:
    """Replace the linear layers of a model in place.

    BEiT and EVA read the weight of `qkv` around its forward pass, so as to put their own bias beside it: those stay.

    Raises:
        InputError: a layer's sides do not fit, or there is none.

    """
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and not (name == "qkv" and getattr(parent, "q_bias", None) is not None)
    ]
    if not linears:
        raise InputError(f"teacher.precision {precision}: a {type(model).__name__} has no linear layers; give bf16")
    for parent, name, child in linears:
        setattr(parent, name, QuantisedLinear(child, precision))
