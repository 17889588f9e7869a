"""Image models for 224x224: ViT-small, ResNet-18 and MobileNet-V2, which classify rotations of two photographs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.fitting import fit
from models.measures import Arrays, accuracy

__all__ = ["accuracy", "mobilenet", "resnet18", "vit"]

Floats = npt.NDArray[np.float32]

SIDE = 224
CLASSES = 8  # two photographs, each in four rotations
SPLITS = {"train": (1, 384), "calibration": (2, 64), "evaluation": (3, 64)}


@functools.cache
def _photographs() -> list[Floats]:
    """Two photographs of scikit-learn, [height, width, 3], 0 to 1."""
    from sklearn.datasets import load_sample_images

    return [picture.astype(np.float32) / 255 for picture in load_sample_images().images]


def crops(count: int, seed: int, side: int = SIDE) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Random crops [count, 3, side, side], normalised, and their classes [count]: photograph and rotation."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    made = []
    for label in labels.tolist():
        photograph = _photographs()[label // 4]
        size = int(rng.integers(160, 400))
        top, left = (int(rng.integers(0, extent - size)) for extent in photograph.shape[:2])
        crop = np.rot90(photograph[top : top + size, left : left + size], label % 4).copy()
        crop = crop * rng.uniform(0.6, 1.3) + rng.uniform(-0.1, 0.1)
        tensor = torch.from_numpy(crop.astype(np.float32)).permute(2, 0, 1)[None]
        made.append(nn.functional.interpolate(tensor, size=(side, side), mode="bilinear", antialias=True)[0].numpy())
    pictures = (np.stack(made) - np.float32(0.45)) / np.float32(0.25)
    return pictures, labels.astype(np.int64)


def samples(split: str) -> Arrays:
    """Samples: image [n, 3, 224, 224] float32 and label [n] int64."""
    seed, count = SPLITS[split]
    pictures, labels = crops(count, seed)
    return {"image": pictures, "label": labels}


def _train(module: nn.Module, seed: int, epochs: int, rate: float, side: int) -> nn.Module:
    pictures, labels = crops(SPLITS["train"][1], SPLITS["train"][0], side)
    inputs = [torch.from_numpy(pictures)]
    return fit(module, inputs, torch.from_numpy(labels), nn.CrossEntropyLoss(), seed, epochs, rate, 16)


class Block(nn.Module):
    """ResNet's basic block: two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """[batch, 3, 224, 224] to logits [batch, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        inputs = 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [batch, 3, h, w] to logits [batch, 8]."""
        return self.fc(self.blocks(self.stem(image)).mean(dim=(2, 3)))


def resnet18() -> nn.Module:
    """The ResNet-18, untrained."""
    return ResNet18()


def train_resnet18(seed: int) -> nn.Module:
    """Train on smaller images (96x96), which is faster; convolutions accept any size."""
    torch.manual_seed(seed)
    return _train(resnet18(), seed, 5, 1e-3, 96)


class Inverted(nn.Module):
    """MobileNet-V2's block: expansion, depthwise convolution, projection; with a shortcut if the shapes are equal."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(), nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """[batch, 3, 224, 224] to logits [batch, 8]."""

    # expansion, channels, blocks, stride: table 2 of the paper (Sandler et al., 2018)
    PLAN: Sequence[tuple[int, int, int, int]] = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
        inputs = 32
        for expansion, channels, blocks, stride in self.PLAN:
            for number in range(blocks):
                layers.append(Inverted(inputs, channels, stride if number == 0 else 1, expansion))
                inputs = channels
        layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(1280, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [batch, 3, h, w] to logits [batch, 8]."""
        return self.fc(self.features(image).mean(dim=(2, 3)))


def mobilenet() -> nn.Module:
    """The MobileNet-V2, untrained."""
    return MobileNet()


def train_mobilenet(seed: int) -> nn.Module:
    """Train on smaller images (96x96)."""
    torch.manual_seed(seed)
    return _train(mobilenet(), seed, 6, 2e-3, 96)


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-6)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, tokens, hidden] to the same shape."""
        y = self.norm1(x)
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        query, key, value = (f(y).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """ViT-small with patches of 16: [batch, 3, 224, 224] to logits [batch, 8]."""

    def __init__(self, hidden: int = 384, heads: int = 6, layers: int = 12, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, hidden, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, hidden))
        self.positions = nn.Parameter(torch.randn(1, (SIDE // patch) ** 2 + 1, hidden) * 0.02)
        self.layers = nn.ModuleList(Layer(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [batch, 3, 224, 224] to logits [batch, 8]."""
        return self.head(self.features(image))

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [batch, 3, 224, 224] to features [batch, 384]."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)[:, 0]


def vit() -> nn.Module:
    """The ViT-small, untrained."""
    return ViT()


def train_vit(seed: int) -> nn.Module:
    """Train only the head, on the features of the untrained layers; training all layers would take hours."""
    torch.manual_seed(seed)
    module = ViT().eval()
    pictures, labels = crops(SPLITS["train"][1], SPLITS["train"][0])
    with torch.inference_mode():
        features = torch.cat([module.features(part) for part in torch.from_numpy(pictures).split(16)]).clone()
    fit(module.head, [features], torch.from_numpy(labels), nn.CrossEntropyLoss(), seed, 100, 1e-2)
    return module
