"""The two networks in PyTorch, so that one set of weights becomes TorchScript and ONNX beside Keras' SavedModel.

`ResNet50` is Keras' first version (keras.applications.ResNet50: He et al. 2015, the stride in the first 1x1 convolution of a block,
convolutions with bias, epsilon 1.001e-5), so that Keras' weights fit it. `EfficientNetLite0` is Google's (tensorflow/tpu,
efficientnet/lite): no squeeze-and-excitation, ReLU6, TensorFlow's "same" padding, which for a stride of 2 is one more to the
right and below. Both answer probabilities.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import pad

__all__ = ["LITE0_BLOCKS", "RESNET50_STACKS", "EfficientNetLite0", "ResNet50"]

RESNET50_STACKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Filters, blocks and stride of the first block, of conv2 to conv5."""
_RESNET_EPSILON = 1.001e-5

LITE0_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Repeats, kernel, stride of the first, expansion, filters (efficientnet_lite_builder.py, with depth and width 1)."""
_LITE_EPSILON = 1e-3


class _Normed(nn.Module):
    """A convolution and its batch normalisation, under the names that Keras gives them."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.bn = nn.BatchNorm2d(outputs, eps=_RESNET_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, filters: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.shortcut = _Normed(inputs, 4 * filters, 1, stride) if first else nn.Identity()
        self.one = _Normed(inputs, filters, 1, stride)
        self.two = _Normed(filters, filters, 3, padding=1)
        self.three = _Normed(filters, 4 * filters, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.one(x))
        y = torch.relu(self.two(y))
        return torch.relu(self.shortcut(x) + self.three(y))


class ResNet50(nn.Module):
    """FP32 [n, 3, H, W], BGR minus the means, to FP32 [n, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _Normed(3, 64, 7, stride=2, padding=3)
        stacks, inputs = [], 64
        for filters, count, stride in RESNET50_STACKS:
            blocks = []
            for index in range(count):
                blocks.append(_Bottleneck(inputs, filters, stride if index == 0 else 1, first=index == 0))
                inputs = 4 * filters
            stacks.append(nn.Sequential(*blocks))
        self.stacks = nn.Sequential(*stacks)
        self.predictions = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify."""
        x = torch.relu(self.stem(images))
        x = nn.functional.max_pool2d(pad(x, (1, 1, 1, 1)), 3, 2)
        x = self.stacks(x).mean((2, 3))
        return torch.softmax(self.predictions(x), 1)


class _Same(nn.Module):
    """A convolution without bias, padded as TensorFlow does for even sizes, and its normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.padding = (before, after, before, after)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_LITE_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(pad(x, self.padding)))


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _Same(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = _Same(inner, inner, kernel, stride, groups=inner)
        self.project = _Same(inner, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(nn.functional.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """FP32 [n, 3, H, W], (RGB - 127) / 128, sides divisible by 32, to FP32 [n, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _Same(3, 32, 3, 2)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in LITE0_BLOCKS:
            for index in range(repeats):
                blocks.append(_Inverted(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _Same(inputs, 1280, 1)
        self.fc = nn.Linear(1280, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify."""
        x = nn.functional.relu6(self.stem(images))
        x = nn.functional.relu6(self.head(self.blocks(x))).mean((2, 3))
        return torch.softmax(self.fc(x), 1)
