"""What is measured: methods at the shapes of shipped configs. `parts` has what is timed of them.

Everything is built as in a run, from the config by `ssdd_jax.stages`; only the images are random, so no dataset is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.flops import convnet_layers, feature_width
from experiments.bench.harness import Program
from ssdd_jax.cli import parse
from ssdd_jax.core.bases import fit_pca
from ssdd_jax.core.batching import map_in_chunks
from ssdd_jax.core.distilled import DistilledSet, init_distilled
from ssdd_jax.core.outer import OuterState, init_outer, make_outer_step
from ssdd_jax.core.real import RealImages
from ssdd_jax.methods import regression
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.nets import net_widths
from ssdd_jax.runtime.loop import Loop, stack
from ssdd_jax.runtime.memory import chunk_size
from ssdd_jax.settings.spec import OuterSpec
from ssdd_jax.stages.dataset import Data
from ssdd_jax.stages.networks import member_learners, repr_width, teacher_learner
from ssdd_jax.stages.teacher import Teacher

TABLE_ROWS = 2048
"""Number of rows in the tables that batches are gathered from."""


@dataclass(frozen=True)
class Case:
    """A method at the shapes of a config.

    Attributes:
        config: name of a config, with its variant.
        method: one of the config's methods.
        image_shape: (H, W, C) of its dataset.
        num_train: number of training images of its dataset.
        num_classes: number of classes of its dataset.
        settings: what differs from the config, as on the command line.
        stages: whether teacher, student, probe, PCA and network fit are measured too; they are the same for all methods.
        released: whether the step is also measured with the teacher in every step, as in KRR-ST's released code.
    """

    config: str
    method: str
    image_shape: tuple[int, int, int]
    num_train: int
    num_classes: int
    settings: tuple[str, ...] = ()
    stages: bool = False
    released: bool = False

    @property
    def name(self) -> str:
        return f"{self.config} {self.method}"

    @property
    def small(self) -> bool:
        """Whether the case is measured with --quick."""
        return self.config.startswith(("digits", "fashion_mnist"))


# The representations of fixed crops are computed once, where a step would otherwise run the teacher.
CACHED = "outer.real_augment=crops"
_DIGITS = dict(config="digits", image_shape=(8, 8, 1), num_train=1294, num_classes=10)
_FASHION = dict(config="fashion_mnist:cpu", image_shape=(28, 28, 1), num_train=54_000, num_classes=10)
_ARRAYS = dict(config="arrays:paper", image_shape=(32, 32, 3), num_train=10_093, num_classes=99)
_CIFAR = dict(config="cifar100", image_shape=(32, 32, 3), num_train=50_000, num_classes=100)
_TINY = dict(config="tiny_imagenet", image_shape=(64, 64, 3), num_train=100_000, num_classes=200)
CASES = [
    Case(**_DIGITS, method="krr_st"),
    Case(**_DIGITS, method="ours", stages=True),
    Case(**_FASHION, method="krr_st"),
    Case(**_FASHION, method="ours", stages=True),
    Case(**_ARRAYS, method="krr_st"),
    Case(**_ARRAYS, method="basis"),
    Case(**_ARRAYS, method="ours", stages=True),
    Case(**_CIFAR, method="krr_st", settings=(CACHED,), released=True),
    Case(**_CIFAR, method="ours", settings=(CACHED, "teacher.batch_size=64"), stages=True),
    # Few enough images for two cores to finish.
    Case(
        **_TINY,
        method="ours",
        settings=(CACHED, "outer.batch_size=64", "methods.ours.support_images=16", "teacher.batch_size=16", "evaluation.batch_size=64"),
        stages=True,
    ),
]


class Work:
    """A case with its random images, as a run would have it."""

    def __init__(self, case: Case):
        self.case = case
        settings = [f"--config.{setting}" for setting in case.settings]
        self.spec = parse(["--config", case.config, "--workdir", "none", *settings]).spec
        self.method = self.spec.methods[case.method]
        self.width = repr_width(self.spec.teacher, case.image_shape)
        (self.learner,) = member_learners(self.spec, case.image_shape, self.width).values()
        self.chunk_size = chunk_size(self.spec.memory, self.learner, case.image_shape)
        self.widths = net_widths(self.spec.student.net, self.spec.student.widths, case.image_shape, self.spec.student.width_factor)
        # Every view shifts the teacher's representation by its full variance, so that none is shared.
        shifts = dict.fromkeys(self.method.views, 1.0)
        sizes = Sizes(self.spec.num_pairs, case.image_shape, self.width, case.num_classes, shifts)
        self.plan = regression.plan(case.method, self.method, sizes)
        draw = np.random.RandomState(0)
        images = draw.randint(0, 256, (TABLE_ROWS, *case.image_shape), np.uint8)
        labels = draw.randint(0, case.num_classes, TABLE_ROWS).astype(np.int32)
        none, centre = images[:0], np.full(case.image_shape[-1], 0.5)
        self.data = Data("random", images, labels, none, None, none, None, case.num_classes, centre, centre / 2, "", "", Path())
        self.layers = convnet_layers(self.widths, case.image_shape)
        self.features = feature_width(self.widths, case.image_shape)
        self.head = 2 * self.features * self.width
        self.num_support = (self.method.support_images or self.plan.num_images) * len(self.method.views)

    def normal(self, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(sum(shape)), shape)

    @cached_property
    def distilled(self) -> DistilledSet:
        """The set before its first step."""
        case, method, layout = self.case, self.method, self.plan.layout
        pca = jax.jit(lambda rows, count: fit_pca(rows, count), static_argnums=1)
        bases = lambda p: lambda count: pca(self.normal(TABLE_ROWS, p), count)
        return init_distilled(
            self.normal(self.plan.num_images, *case.image_shape),
            self.normal(len(layout.views), self.plan.num_images, self.width),
            layout,
            **regression.make_stores(case.method, method, bases(prod(layout.base_shape)), bases(self.width)),
        )

    @cached_property
    def targets(self) -> jax.Array:
        """The representations of the table's images under every view or crop."""
        return self.normal(TABLE_ROWS * len(self.real(self.spec.outer).names), self.width)

    def start(self, key: jax.Array) -> OuterState:
        """Return the state before the first step."""
        settings = {name: self.step_settings()[name] for name in ("kernel", "optimizer", "inner_optimizer")}
        return init_outer(key, self.distilled, **settings, pool_size=self.spec.pool.size)

    def real(self, spec: OuterSpec) -> RealImages:
        """Return how real images enter the step."""
        return RealImages(spec, len(self.data.train_images), self.data.normalize)

    def step_settings(self, chunk_size: int | None = None, remat: bool | None = None) -> dict[str, Any]:
        """Return the settings of the outer step as a run maps them, except for the given memory settings."""
        memory = self.spec.memory if remat is None else replace(self.spec.memory, remat=remat)
        run, rows = replace(self.spec, memory=memory), self.chunk_size if chunk_size is None else chunk_size
        return regression.step_settings(self.method, run, regression.make_kernel(self.method, run, self.learner, chunk_size=rows))

    def outer_step(self, **memory: Any) -> Callable:
        """Build the outer step."""
        return make_outer_step(**self.step_settings(**memory))

    def featurize(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return the features of images as the outer step computes them."""
        return map_in_chunks(lambda part: self.learner.features(variables, part), images, self.chunk_size)

    def outer_program(self, settings: dict[str, Any], *, fresh: bool = False) -> Program:
        """Return the step with what a run does around it: batches are gathered and cropped, and everything is checked to be finite."""
        real = self.real(replace(self.spec.outer, real_augment="fresh") if fresh else self.spec.outer)
        teacher = Teacher(teacher_learner(self.spec.teacher, self.case.image_shape), None, np.zeros(self.width, np.float32), 1.0, "")
        rows = settings.get("chunk_size", chunk_size(self.spec.memory, teacher.learner, self.case.image_shape)) if fresh else 0
        represent = lambda variables, images: map_in_chunks(lambda part: teacher.represent_with(variables, part), images, rows)
        step = regression.on_batches([self.outer_step(**settings)], real, represent)
        loop = Loop(step, (0, None), 1, lambda number, seed, _: real.draw(number, seed), watch=lambda state: replace(state, pool=None))
        state = stack([self.start(jax.random.key(1))])
        tables = [jnp.asarray(self.data.train_images), *([] if fresh else [self.targets])]
        variables = teacher.learner.init(jax.random.key(2)) if fresh else None
        return looped(loop, lambda state: state.step[0], state, tables, jnp.zeros(1, jnp.int32), variables)


def looped(loop: Loop, number: Callable[[Any], Any], state: Any, tables: Any, *args: Any) -> Program:
    """Return a step of a loop, with what a run does around it; `number` reads the step's number from the state."""

    def one_step(state, tables, *args):
        state, metrics, bad, _ = loop.dispatch(state, number(state), 1, None, tables, None, *args)
        return state, (metrics, bad)

    return Program(one_step, state, tables, *args)
