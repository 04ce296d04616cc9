"""A chain of convolutions as ONNX bytes, written by hand: no further dependency for one small file."""

import struct
from collections.abc import Iterator

import torch
from torch import nn

_FLOAT, _INT, _INTS = 1, 2, 7  # of TensorProto.DataType and AttributeProto.AttributeType


def to_onnx(net: nn.Sequential) -> bytes:
    """(1, C, H, W) float32 `x` to `y`, H and W free, of a chain of Conv2d, ReLU and Sigmoid."""
    nodes, weights, name = [], [], "x"
    for number, layer in enumerate(net):
        inputs, attributes = [name], b""
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            for part, tensor in (("w", layer.weight), ("b", layer.bias)):
                inputs.append(f"{part}{number}")
                weights.append(_bytes(5, _tensor(inputs[-1], tensor.detach())))
            attributes = b"".join(_bytes(5, attribute) for attribute in _attributes(layer))
        name = "y" if number == len(net) - 1 else f"t{number}"
        kind = {nn.Conv2d: "Conv", nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid"}[type(layer)]
        body = b"".join(_text(1, given) for given in inputs) + _text(2, name) + _text(4, kind) + attributes
        nodes.append(_bytes(1, body))
    channels = net[0].in_channels
    assert isinstance(channels, int)
    ends = _bytes(11, _value("x", channels)) + _bytes(12, _value("y", 1))
    graph = b"".join(nodes) + _text(2, "text") + b"".join(weights) + ends
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _text(1, "") + _number(2, 13))


def _attributes(layer: nn.Conv2d) -> Iterator[bytes]:
    assert not isinstance(layer.padding, str)
    sizes = {
        "dilations": layer.dilation,
        "kernel_shape": layer.kernel_size,
        "pads": layer.padding * 2,
        "strides": layer.stride,
    }
    yield _text(1, "group") + _number(3, layer.groups) + _number(20, _INT)
    for name, values in sizes.items():
        yield _text(1, name) + b"".join(_number(8, value) for value in values) + _number(20, _INTS)


def _tensor(name: str, tensor: torch.Tensor) -> bytes:
    raw = struct.pack(f"<{tensor.numel()}f", *tensor.flatten().tolist())
    return b"".join(_number(1, size) for size in tensor.shape) + _number(2, _FLOAT) + _text(8, name) + _bytes(9, raw)


def _value(name: str, channels: int) -> bytes:
    dims = _number(1, 1), _number(1, channels), _text(2, "h"), _text(2, "w")
    shape = b"".join(_bytes(1, dim) for dim in dims)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low]) if not rest else bytes([low | 128]) + _varint(rest)
