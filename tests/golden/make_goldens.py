"""Write nets.npz and nets.json beside this file: what the networks give in PyTorch. Needs torch, which the tests do not.

    cd tests && python golden/make_goldens.py

The networks are written from their descriptions (KRR-ST's ConvNet, VGG11, AlexNet and MobileNet; torchvision's ResNet with
the stem for small images; timm's ViT), with the module names of those codes.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from golden.recipe import (  # noqa: E402
    CASES,
    NUM_OUTPUTS,
    TEACHER_SEED,
    TEACHER_SHAPE,
    TEACHER_WIDTHS,
    draw_images,
    draw_state_dict,
)


def conv_norm(c_in, c_out, kernel, stride=1, padding=0, groups=1):
    return nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(c_out)


class ConvBlock(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.AvgPool2d(2))

    def forward(self, x):
        return self.block(x)


class ConvNet(nn.Module):
    def __init__(self, widths, shape):
        super().__init__()
        channels = (shape[2], *widths)
        self.layers = nn.ModuleList(ConvBlock(*pair) for pair in itertools.pairwise(channels))
        self.fc = nn.Linear(widths[-1] * (shape[0] >> len(widths)) * (shape[1] >> len(widths)), NUM_OUTPUTS)

    def features(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.flatten(1)


class Sequential(nn.Module):
    """VGG11 and AlexNet: `plan` lists (width, kernel) of convolutions and None for a max-pooling."""

    def __init__(self, plan, shape, side):
        super().__init__()
        layers, channels = [], shape[2]
        for entry in plan:
            if entry is None:
                layers.append(nn.MaxPool2d(2))
                continue
            width, kernel = entry
            layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * (side >> plan.count(None)) ** 2, NUM_OUTPUTS)


def vgg11(widths, shape):
    plan = [(width, 3) for width in widths]
    for index in (1, 3, 6, 9, 12):
        plan.insert(index, None)
    return Sequential(plan, shape, max(32, shape[0]))


def alexnet(widths, shape):
    a, b, c, d, e = widths
    return Sequential([(a, 5), None, (b, 5), None, (c, 3), (d, 3), (e, 3), None], shape, shape[0])


class BasicBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(c_in, c_out, 3, stride, 1)
        self.conv2, self.bn2 = conv_norm(c_out, c_out, 3, 1, 1)
        self.downsample = nn.Sequential(*conv_norm(c_in, c_out, 1, stride)) if stride != 1 or c_in != c_out else None

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, widths, shape, num_blocks):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(shape[2], widths[0], 3, 1, 2)
        channels, self.stages = widths[0], len(widths)
        for stage, width in enumerate(widths):
            blocks = []
            for block in range(num_blocks):
                blocks.append(BasicBlock(channels, width, 2 if stage > 0 and block == 0 else 1))
                channels = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, NUM_OUTPUTS)

    def features(self, x):
        x, self.sides = F.relu(self.bn1(self.conv1(x))), []
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
            self.sides.append(x.shape[-1])
        return x.mean((2, 3))


class InvertedResidual(nn.Module):
    def __init__(self, c_in, c_out, expansion, stride):
        super().__init__()
        hidden, self.stride = expansion * c_in, stride
        self.conv1, self.bn1 = conv_norm(c_in, hidden, 1)
        self.conv2, self.bn2 = conv_norm(hidden, hidden, 3, stride, 1, groups=hidden)
        self.conv3, self.bn3 = conv_norm(hidden, c_out, 1)
        self.shortcut = nn.Sequential(*(conv_norm(c_in, c_out, 1) if stride == 1 and c_in != c_out else ()))

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return y + self.shortcut(x) if self.stride == 1 else y


class MobileNet(nn.Module):
    def __init__(self, widths, shape):
        super().__init__()
        stem, *stages, last = widths
        self.conv1, self.bn1 = conv_norm(shape[2], stem, 3, 1, 1)
        blocks, channels = [], stem
        plan = ((1, 1, 1), (2, 2, 1), (2, 3, 2), (2, 4, 2), (2, 3, 1), (2, 3, 2), (2, 1, 1))
        for width, (expansion, count, stride) in zip(stages, plan, strict=True):
            for block in range(count):
                blocks.append(InvertedResidual(channels, width, expansion, stride if block == 0 else 1))
                channels = width
        self.layers = nn.Sequential(*blocks)
        self.conv2, self.bn2 = conv_norm(channels, last, 1)
        self.fc = nn.Linear(last, NUM_OUTPUTS)

    def features(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(x))).mean((2, 3))


class Attention(nn.Module):
    def __init__(self, width, heads=3):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, channels, width, patch=4):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    def __init__(self, widths, shape):
        super().__init__()
        width = widths[0]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape[0] * shape[1] // 16, width))
        self.patch_embed = PatchEmbed(shape[2], width)
        self.blocks = nn.Sequential(*(Block(width) for _ in widths))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, NUM_OUTPUTS)

    def features(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))[:, 0]


NETS = {
    "convnet": ConvNet,
    "vgg11": vgg11,
    "alexnet": alexnet,
    "resnet10": lambda widths, shape: ResNet(widths, shape, 1),
    "resnet18": lambda widths, shape: ResNet(widths, shape, 2),
    "mobilenet": MobileNet,
    "vit": ViT,
}


def teacher():
    """Write teacher.ckpt as solo-learn writes a checkpoint, of a small ResNet18, and return its features."""
    torch.manual_seed(0)
    module = ResNet(TEACHER_WIDTHS, TEACHER_SHAPE, 2)
    images = torch.from_numpy(draw_images(TEACHER_SHAPE, TEACHER_SEED)).permute(0, 3, 1, 2)
    module.features(images)  # moves the running statistics off their start
    weights = {f"backbone.{key}": value for key, value in module.state_dict().items() if not key.startswith("fc.")}
    weights |= {"projector.0.weight": torch.zeros(3, TEACHER_WIDTHS[-1]), "classifier.weight": torch.zeros(5, TEACHER_WIDTHS[-1])}
    torch.save({"epoch": 999, "state_dict": weights, "lr_schedulers": [{"last_epoch": 999}]}, HERE / "torch" / "teacher.ckpt")
    with torch.no_grad():
        return module.eval().features(images).flatten(1).numpy()


def main():
    arrays, keys = {"teacher/features": teacher()}, {}
    for name, (net, widths, shape, seed) in CASES.items():
        module = NETS[net](widths, shape).eval()
        keys[name] = [(key, list(value.shape)) for key, value in module.state_dict().items()]
        module.load_state_dict({key: torch.from_numpy(value) for key, value in draw_state_dict(keys[name], seed).items()})
        images = torch.from_numpy(draw_images(shape, seed)).permute(0, 3, 1, 2)
        if net == "vgg11" and shape[0] < 32:
            images = F.pad(images, [(32 - shape[0]) // 2] * 4)
        with torch.no_grad():
            features = module.features(images).flatten(1)
            outputs = (module.head if net == "vit" else module.fc)(features)
        arrays |= {f"{name}/features": features.numpy(), f"{name}/outputs": outputs.numpy()}
        if net == "resnet18":
            arrays[f"{name}/sides"] = np.array(module.sides)
        print(f"{name}: features {tuple(features.shape)} of deviation {features.std():.2g}, outputs {outputs.std():.2g}")
    np.savez_compressed(HERE / "nets.npz", **arrays)
    lines = ",\n".join(f'  "{name}": {json.dumps(entries)}' for name, entries in keys.items())
    (HERE / "nets.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
