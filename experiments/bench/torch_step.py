"""One step of KRR-ST, and of Yu et al.'s bases under views, in plain PyTorch, written from the formulas. Needs torch.

The formulas are those of `ssdd_jax.core.outer`. `Outer.step` takes the teacher's representations as given; with a `ResNet18` in front of
it, it is the step of KRR-ST's released code, whose teacher sees every freshly cropped batch.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.bench.cases import Work
from experiments.bench.parts import AS_RELEASED

LAYOUTS = {"PyTorch": torch.contiguous_format, "PyTorch, channels last": torch.channels_last}
QUARTER_TURNS = {"identity": 0, "rot90": 1, "rot180": 2, "rot270": 3}


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.AvgPool2d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class ConvNet(nn.Module):
    """Like `ssdd_jax.nets.convnet`, with the names that `variables_from_torch` reads."""

    def __init__(self, widths: Sequence[int], image_shape: Sequence[int], num_outputs: int):
        super().__init__()
        height, width, channels = image_shape
        self.layers = nn.Sequential(*(Block(*pair) for pair in zip((channels, *widths), widths, strict=False)))
        self.fc = nn.Linear((height >> len(widths)) * (width >> len(widths)) * widths[-1], num_outputs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        norm_after = lambda conv: nn.Sequential(conv, nn.BatchNorm2d(outputs))
        self.first = norm_after(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
        self.second = norm_after(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else norm_after(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet18(nn.Module):
    """The teacher: 3 x 3 stem of padding 2 and no max-pooling; its representation is the spatial mean, 512 wide."""

    def __init__(self, channels: int = 3):
        super().__init__()
        stem = [nn.Conv2d(channels, 64, 3, 1, 2, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        stages = zip((64, 64, 128, 256), (64, 128, 256, 512), (1, 2, 2, 2), strict=True)
        blocks = [block for a, b, stride in stages for block in (BasicBlock(a, b, stride), BasicBlock(b, b, 1))]
        self.body = nn.Sequential(*stem, *blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


class DistilledTensors:
    """What the outer optimizer moves: plain images "m h w C" and representations "T m d", or {mean, bases, coefficients} for either."""

    def __init__(self, images: Any, reprs: Any, base_shape: Sequence[int], image_shape: Sequence[int], views: Sequence[str]):
        self.images, self.reprs = _leaves(images), _leaves(reprs)
        self.base_shape, self.side, self.views = tuple(base_shape), image_shape[0], views

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [*self.images.values(), *self.reprs.values()]

    def expand(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images "A k C H W" and representations "A k d" of k random images of the set, or all, flattened to rows."""
        total = len(self.images["coefficients"])
        index = torch.randperm(total)[:count] if 0 < count < total else slice(None)
        images = _decode(self.images, self.images["coefficients"][index]).reshape(-1, *self.base_shape).permute(0, 3, 1, 2)
        if self.base_shape[0] != self.side:
            images = functional.interpolate(images, (self.side, self.side), mode="bilinear", align_corners=False)
        images = torch.cat([torch.rot90(images, QUARTER_TURNS[view], (2, 3)) for view in self.views])
        return images, _decode(self.reprs, self.reprs["coefficients"][:, index]).flatten(0, 1)


def _leaves(part: Any) -> dict[str, torch.Tensor]:
    arrays = part if isinstance(part, dict) else {"coefficients": part}
    return {name: torch.tensor(np.asarray(array), requires_grad=True) for name, array in arrays.items()}


def _decode(factors: dict[str, torch.Tensor], coefficients: torch.Tensor) -> torch.Tensor:
    return coefficients @ factors["bases"] + factors["mean"] if "bases" in factors else coefficients


class Outer:
    """The outer step.

    Args:
        distilled: the set that the step moves.
        make_member: () -> an untrained network.
        pool_size, max_age: number of members in the pool, and updates after which one is replaced.
        layout: memory format of images and networks.
        learning_rate: learning rate of AdamW on the set.
        inner: settings of SGD on a member.
        ridge: lambda as a fraction of the kernel's trace.
        support_images: number of images that take part in a step; 0 takes all.
        half: networks run in bfloat16 where PyTorch's automatic mixed precision has it so.
        compiled: networks are compiled.
    """

    def __init__(
        self,
        distilled: DistilledTensors,
        make_member: Callable[[], ConvNet],
        *,
        pool_size: int = 1,
        max_age: int = 1000,
        layout: torch.memory_format = torch.contiguous_format,
        learning_rate: float = 1e-3,
        inner: dict[str, float] | None = None,
        ridge: float = 1e-6,
        support_images: int = 0,
        half: bool = False,
        compiled: bool = False,
    ):
        self.distilled, self.make_member, self.max_age, self.layout = distilled, make_member, max_age, layout
        self.inner = inner or {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
        self.ridge, self.support_images = ridge, support_images
        device = distilled.parameters[0].device.type
        self.mixed = lambda: torch.autocast(device, torch.bfloat16, enabled=half)
        compile_if = torch.compile if compiled else lambda fn: fn
        self.features_of, self.outputs_of = compile_if(lambda net, x: net.features(x)), compile_if(lambda net, x: net(x))
        self.optimizer = torch.optim.AdamW(distilled.parameters, learning_rate, weight_decay=0.0)
        self.pool = [self.fresh() for _ in range(pool_size)]

    def fresh(self) -> list[Any]:
        """Return an untrained member, its optimizer and its age."""
        net = self.make_member().to(memory_format=self.layout)
        return [net, torch.optim.SGD(net.parameters(), **self.inner), 0]

    def laid_out(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=self.layout)

    def features(self, net: ConvNet, images: torch.Tensor) -> torch.Tensor:
        """Return a member's features in evaluation mode, with a constant feature 1 appended."""
        net.eval()
        with self.mixed():
            features = self.features_of(net, self.laid_out(images)).float()
        return torch.cat([features, features.new_ones(len(features), 1)], 1)

    def loss(self, support: torch.Tensor, targets: torch.Tensor, real: torch.Tensor, reprs: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of the ridge regression, from the n x n or the q x q system, whichever is smaller."""
        primal = support.shape[0] > support.shape[1]
        kernel = support.T @ support if primal else support @ support.T
        strength = self.ridge * kernel.detach().trace()
        factor = torch.linalg.cholesky(kernel + strength * torch.eye(len(kernel)))
        if primal:
            return functional.mse_loss(real @ torch.cholesky_solve(support.T @ targets, factor), reprs)
        return functional.mse_loss((real @ support.T) @ torch.cholesky_solve(targets, factor), reprs)

    def train(self, member: list[Any], images: torch.Tensor, reprs: torch.Tensor) -> None:
        """Do one step of SGD in training mode, or replace the member once it is old."""
        net, optimizer, age = member
        if age >= self.max_age:
            member[:] = self.fresh()
            return
        net.train()
        optimizer.zero_grad()
        with self.mixed():
            outputs = self.outputs_of(net, self.laid_out(images)).float()
        functional.mse_loss(outputs, reprs).backward()
        optimizer.step()
        member[2] += 1

    def step(self, images: torch.Tensor, reprs: torch.Tensor) -> torch.Tensor:
        """Do one outer step on normalized real images "b C H W" and their representations "b d"; return the loss."""
        member = random.choice(self.pool)
        rows, targets = self.distilled.expand(self.support_images)
        with torch.no_grad():
            real = self.features(member[0], images)
        loss = self.loss(self.features(member[0], rows), targets, real, reprs)
        # With respect to the set only: the member's parameters need no gradient here.
        for parameter, gradient in zip(self.distilled.parameters, torch.autograd.grad(loss, self.distilled.parameters), strict=True):
            parameter.grad = gradient
        self.train(member, rows.detach(), targets.detach())
        self.optimizer.step()
        return loss.detach()


class RealBatches:
    """Real batches from uint8 images "n H W C": drawn, optionally cropped and flipped, and normalized."""

    def __init__(self, images: np.ndarray, reprs: np.ndarray, mean: np.ndarray, std: np.ndarray, size: int, padding: int, flip: float):
        self.images, self.reprs = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(reprs))
        self.mean, self.std = (torch.tensor(np.asarray(values), dtype=torch.float32) for values in (mean, std))
        self.size, self.padding, self.flip = size, padding, flip

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images "b C H W" and the given representations "b d"."""
        rows = torch.randint(len(self.images), (self.size,))
        images = self.images[rows].float() / 255
        images = self.crop(images) if self.padding else images
        return ((images - self.mean) / self.std).permute(0, 3, 1, 2), self.reprs[rows]

    def crop(self, images: torch.Tensor) -> torch.Tensor:
        """Surround images with zeros and take a random box of their own size from each, flipped or not."""
        count, height, width, _ = images.shape
        top, left = torch.randint(2 * self.padding + 1, (2, count, 1))
        columns = torch.arange(width).expand(count, width)
        columns = torch.where(torch.rand(count, 1) < self.flip, width - 1 - columns, columns)
        padded = functional.pad(images, (0, 0, *[self.padding] * 4))
        return padded[torch.arange(count)[:, None, None], (top + torch.arange(height))[:, :, None], (left + columns)[:, None]]


def references(work: Work) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return what our programs of a case are compared with: by part, then by label."""
    found: dict[str, dict[str, Callable[[], Any]]] = {}
    for label, layout in LAYOUTS.items():
        for part, variant, run in _references(work, layout):
            found.setdefault(part, {})[f"{label}{variant}"] = run
    return found


def outer_of(work: Work, layout: torch.memory_format, **how: bool) -> Outer:
    """Return the outer step of a case, before its first step."""
    spec, method = work.spec, work.method
    return Outer(
        distilled_tensors(work.distilled),
        lambda: ConvNet(work.widths, work.case.image_shape, work.width),
        pool_size=spec.pool.size,
        max_age=spec.pool.max_age,
        layout=layout,
        learning_rate=method.learning_rate,
        inner={"lr": spec.pool.learning_rate, "momentum": spec.pool.momentum, "weight_decay": spec.pool.weight_decay},
        ridge=spec.outer.ridge,
        support_images=method.support_images,
        **how,
    )


def _references(work: Work, layout: torch.memory_format) -> Any:
    spec, method, shape, batch = work.spec, work.method, work.case.image_shape, work.spec.outer.batch_size
    outer = outer_of(work, layout)
    padding = spec.outer.real_padding if spec.outer.real_augment == "crops" else 0
    reprs = torch.randn(len(work.data.train_images), work.width)
    batches = RealBatches(work.data.train_images, reprs.numpy(), work.data.mean, work.data.std, batch, padding, spec.outer.real_flip)
    yield "outer_step", "", lambda: outer.step(*batches.draw())
    if work.case.released:
        teacher = ResNet18(shape[-1]).eval().to(memory_format=layout)

        def released():
            images, _ = batches.draw()
            with torch.no_grad():
                reprs = teacher(outer.laid_out(images))
            return outer.step(images, reprs)

        yield "outer_step", AS_RELEASED, released

    member = outer.fresh()
    rows, targets = (tensor.detach() for tensor in outer.distilled.expand(method.support_images))
    images, reprs = batches.draw()
    images = outer.laid_out(images)
    cotangent = torch.randn(len(rows), work.features + 1)
    support, real = torch.randn(len(rows), work.features + 1, requires_grad=True), torch.randn(batch, work.features + 1)
    targets_too = targets.clone().requires_grad_()
    of_images = list(outer.distilled.images.values())

    @torch.no_grad()
    def real_features():
        return outer.features(member[0], images)

    def support_gradient():
        expanded, _ = outer.distilled.expand(method.support_images)
        return torch.autograd.grad(outer.features(member[0], expanded), of_images, cotangent)

    def pool_update():
        member[2] = 0
        outer.train(member, rows, targets)

    yield "real_features", "", real_features
    yield "support_gradient", "", support_gradient
    yield "kernel", "", lambda: torch.autograd.grad(outer.loss(support, targets_too, real, reprs), [support, targets_too])
    yield "pool_update", "", pool_update
    held = work.plan.num_images * len(method.views)
    size = min(spec.evaluation.batch_size, held)
    table, table_reprs = torch.randn(min(held, 2048), shape[-1], *shape[:2]), torch.randn(min(held, 2048), work.width)

    def student_step():
        member[2] = 0
        chosen = torch.randint(len(table), (size,))
        outer.train(member, table[chosen], table_reprs[chosen])

    yield "student_step", "", student_step


def distilled_tensors(distilled: Any) -> DistilledTensors:
    """Return a `ssdd_jax.DistilledSet` during distillation, every view with its own representations, as tensors."""
    layout = distilled.layout
    names = ("mean", "bases", "coefficients")
    part = lambda store: store.rows if store.bases is None else {name: getattr(store, name) for name in names}
    return DistilledTensors(part(distilled.images), part(distilled.reprs), layout.base_shape, layout.image_shape, layout.views)
