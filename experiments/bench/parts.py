"""The parts of a run that are timed: our programs at a case's shapes, and the operations that they need."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.cases import TABLE_ROWS, Work, looped
from experiments.bench.flops import convnet_layers, count_operations, kernel_operations, training_operations
from experiments.bench.harness import OURS, Program
from ssdd_jax.core import pool as pools
from ssdd_jax.core.approximation import fit_networks
from ssdd_jax.core.bases import fit_pca
from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.core.krr import append_bias, krr_predict
from ssdd_jax.core.optimizers import sgd, student_optimizer
from ssdd_jax.core.outer import image_sampler, init_outer, outer_loss, set_reader, support_rows
from ssdd_jax.evals.linear import probe_steps
from ssdd_jax.evals.probe import init_probe
from ssdd_jax.evals.student import make_student_step
from ssdd_jax.nets import net_widths
from ssdd_jax.runtime.loop import Loop, stack
from ssdd_jax.settings.evaluation import RecipeSpec
from ssdd_jax.stages.bases import PCA_BYTES
from ssdd_jax.stages.networks import teacher_learner
from ssdd_jax.stages.teacher import teacher_optimizer
from ssdd_jax.teacher.barlow_twins import Projector, init_teacher, make_teacher_step

# Variants of our outer step, one row of the table each, by settings of `make_outer_step`.
VARIANTS: dict[str, dict[str, Any]] = {OURS: {}, f"{OURS}, all rows at once": {"chunk_size": 0}}
# Programs with this suffix run the teacher in every step.
AS_RELEASED = ", as released"

NETWORK_STEPS = 200


@dataclass(frozen=True)
class Part:
    """A part of a run: our programs by label (`OURS` is among them), the operations that it needs, and its shapes in words.

    `teacher` is the number of additional operations of the programs that end in `AS_RELEASED`.
    """

    name: str
    programs: dict[str, Program]
    needed: int
    shapes: str
    teacher: int = 0

    def needed_by(self, label: str) -> int:
        return self.needed + (self.teacher if AS_RELEASED in label else 0)


def _decoding(num_bases: int, width: int, rows: int) -> int:
    """Return the operations of decoding `rows` rows of this width, and of both gradients; 0 without bases."""
    return 3 * 2 * rows * num_bases * width


def _decoding_images(work: Work, rows: int) -> int:
    return _decoding(work.method.image_bases, prod(work.plan.layout.base_shape), rows)


def outer_operations(work: Work) -> int:
    """Return the operations that an outer step needs, without compiling anything."""
    batch, n, views = work.spec.outer.batch_size, work.num_support, len(work.method.views)
    needed = (batch + 2 * n) * sum(work.layers) + n * training_operations(work.layers, work.head)
    needed += kernel_operations(n, work.features + 1, work.width, batch)
    return needed + _decoding_images(work, n // views) + _decoding(work.method.repr_bases, work.width, n)


def outer_memory(work: Work) -> int:
    """Return about how many bytes an outer step holds, from shapes alone: its state, and what the larger of its backward passes keeps."""

    def held(key: jax.Array) -> tuple[Any, Any, Any]:
        # Not the attribute, which would keep what is only traced here.
        distilled = type(work).distilled.func(work)
        settings = work.step_settings()
        start = {name: settings[name] for name in ("kernel", "optimizer", "inner_optimizer")}
        state = init_outer(key, distilled, **start, pool_size=work.spec.pool.size)
        read = set_reader(key, distilled, settings["support_images"], settings["bits"])
        variables = jax.tree.map(lambda leaf: leaf[0], state.pool.variables)
        batch = [jnp.zeros((work.spec.outer.batch_size, *shape)) for shape in (work.case.image_shape, (work.width,))]
        loss = lambda distilled: outer_loss(read(distilled), variables, *batch, kernel=settings["kernel"])
        _, of_set, _ = jax.vjp(loss, distilled, has_aux=True)
        rows, _ = support_rows(read(distilled))
        train = lambda params: work.learner.apply_train({**variables, "params": params}, rows)
        _, of_member, _ = jax.vjp(train, variables["params"], has_aux=True)
        return state, of_set, of_member

    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.ShapeDtypeStruct))
    state, of_set, of_member = jax.eval_shape(held, jax.random.key(0))
    return size(state) + max(size(of_set), size(of_member))


def outer_shapes(work: Work) -> str:
    """Return the shapes of an outer step in words."""
    n, views = work.num_support, len(work.method.views)
    return f"{work.spec.outer.batch_size} real images, {n // views} images x {views} views, pool of {work.spec.pool.size}"


def outer_step(work: Work) -> Part:
    batch, needed = work.spec.outer.batch_size, outer_operations(work)
    programs = {label: work.outer_program(settings) for label, settings in VARIANTS.items()}
    teacher = 0
    if work.case.released:
        programs[f"{OURS}{AS_RELEASED}"] = work.outer_program({}, fresh=True)
        teacher = batch * _encoder_forward(work)
    return Part("outer step", programs, needed, outer_shapes(work), teacher)


def real_features(work: Work) -> Part:
    batch = work.spec.outer.batch_size
    forward = lambda variables, images: (variables, work.featurize(variables, images))
    program = Program(forward, work.learner.init(jax.random.key(1)), work.normal(batch, *work.case.image_shape))
    return Part("real features", {OURS: program}, batch * sum(work.layers), f"{batch} images")


def support_gradient(work: Work) -> Part:
    n = work.num_support

    def forward_and_gradient(state, cotangent):
        distilled, variables = state
        select = image_sampler(jax.random.key(0), work.plan.num_images, work.method.support_images)
        features = lambda images: append_bias(work.featurize(variables, support_rows(select(replace(distilled, images=images)))[0]))
        rows, pull_back = jax.vjp(features, distilled.images)
        return state, (rows, pull_back(cotangent))

    state = (work.distilled, work.learner.init(jax.random.key(1)))
    program = Program(forward_and_gradient, state, work.normal(n, work.features + 1))
    needed = 2 * n * sum(work.layers) + _decoding_images(work, n // len(work.method.views))
    return Part("support features and gradient", {OURS: program}, needed, f"{n} rows")


def kernel(work: Work) -> Part:
    n, q, d, batch, outer = work.num_support, work.features + 1, work.width, work.spec.outer.batch_size, work.spec.outer

    def loss_and_gradient(state, real, reprs):
        predict = lambda f, y: krr_predict(f, y, real, ridge=outer.ridge, ridge_scale=outer.ridge_scale)
        return state, jax.value_and_grad(lambda f, y: jnp.mean((predict(f, y) - reprs) ** 2), (0, 1))(*state)

    program = Program(loss_and_gradient, (work.normal(n, q), work.normal(n, d)), work.normal(batch, q), work.normal(batch, d))
    return Part("Gram, factor, solve, gradient", {OURS: program}, kernel_operations(n, q, d, batch), f"{n} rows, {q} features, d = {d}")


def pool_update(work: Work) -> Part:
    n, pool = work.num_support, work.spec.pool
    settings = dict(learner=work.learner, optimizer=sgd(pool), max_age=pool.max_age)

    def update(members, rows, targets):
        chosen = jnp.zeros(1, jnp.int32)
        train = lambda key, member: pools.train_or_reset(key, member, rows, targets, **settings)
        new, loss = pools.over_leading_axis(train)(jax.random.split(jax.random.key(0), 1), pools.take(members, chosen))
        return pools.put(members, chosen, new), loss

    program = Program(update, work.start(jax.random.key(1)).pool, work.normal(n, *work.case.image_shape), work.normal(n, work.width))
    return Part("pool update", {OURS: program}, n * training_operations(work.layers, work.head), f"{n} rows, one of {pool.size} members")


def teacher_operations(work: Work) -> int:
    """Return the operations that a step of the teacher needs, without compiling anything."""
    spec = work.spec.teacher
    needed = 2 * spec.batch_size * (_encoder_training(work) + 3 * 2 * work.width * spec.projector_width)
    return needed + 3 * 2 * spec.batch_size * spec.projector_width**2 * (2 * spec.projector_layers + 1)


def teacher_step(work: Work) -> Part:
    spec, shape = work.spec.teacher, work.case.image_shape
    encoder, projector = teacher_learner(spec, shape), Projector(spec.projector_width, spec.projector_layers)
    optimizer = teacher_optimizer(spec)
    pretrain = make_teacher_step(
        encoder=encoder,
        projector=projector,
        optimizer=optimizer,
        views=(spec.first_view, spec.second_view),
        normalize=work.data.normalize,
        off_diagonal=spec.off_diagonal,
        scale=spec.loss_scale,
    )
    step = lambda state, number, batch, seed: pretrain(state, batch[0].astype(jnp.float32) / 255.0, jax.random.key(number))
    draw = lambda number, seed: (jax.random.randint(jax.random.key(seed), (spec.batch_size,), 0, TABLE_ROWS),)
    state = stack([init_teacher(jax.random.key(1), encoder, projector, work.width, optimizer)])
    program = looped(Loop(step, (0,), 1, draw), lambda _: 0, state, [jnp.asarray(work.data.train_images)], jnp.zeros(1, jnp.int32))
    return Part(
        "teacher step", {OURS: program}, teacher_operations(work), f"{spec.net}, {spec.batch_size} images under two views, augmented"
    )


def _encoder_forward(work: Work) -> int:
    """Return the operations of one image in the teacher's encoder."""
    spec, shape = work.spec.teacher, work.case.image_shape
    if spec.net == "convnet":
        return sum(convnet_layers(net_widths(spec.net, spec.widths, shape), shape))
    encoder = teacher_learner(spec, shape)
    return count_operations(encoder.apply, jax.eval_shape(encoder.init, jax.random.key(0)), work.normal(1, *shape)).total


def _encoder_training(work: Work) -> int:
    """Return the operations of one image in the teacher's encoder: forward and both gradients, but none with respect to the image."""
    spec, (height, width, channels) = work.spec.teacher, work.case.image_shape
    # A ResNet's stem pads by two.
    border = 0 if spec.net == "convnet" else 2
    first = 2 * 9 * (height + border) * (width + border) * channels * net_widths(spec.net, spec.widths, work.case.image_shape)[0]
    return 3 * _encoder_forward(work) - first


def student_step(work: Work) -> Part:
    spec, rows = work.spec.evaluation, work.plan.num_images * len(work.method.views)
    size = min(spec.batch_size, rows)
    optimizer = student_optimizer(spec.recipes["representation"], 1000, 1)
    loop = Loop(make_student_step(learner=work.learner, optimizer=optimizer), (0, 0, 0), 1)
    schedule = batch_schedule(jax.random.key(0), rows, size, 100)
    # The rows of the table are enough to gather from.
    held = min(rows, TABLE_ROWS)
    args = (schedule % held, work.normal(held, *work.case.image_shape), work.normal(held, work.width))
    state = stack([pools.init_member(jax.random.key(1), work.learner, optimizer)])
    program = looped(loop, lambda state: state.age[0] % 100, state, (), *(leaf[None] for leaf in args))
    return Part("student step", {OURS: program}, size * training_operations(work.layers, work.head), f"{size} rows")


def probe_step(work: Work) -> Part:
    spec, classes = work.spec.protocols["linear"], work.case.num_classes
    size = min(spec.batch_size, work.case.num_train)
    optimizer = sgd(RecipeSpec(learning_rate=spec.learning_rate, weight_decay=0.0))
    steps = probe_steps(optimizer)
    loop = Loop(steps.step, (0,), 1, steps.draw)
    schedule = batch_schedule(jax.random.key(0), TABLE_ROWS, size, 4)
    state = stack([init_probe(jax.random.key(1), work.features, classes, optimizer)])
    tables = [work.normal(TABLE_ROWS, work.features), jnp.asarray(work.data.train_labels)]
    program = looped(loop, lambda _: 0, state, tables, schedule[None])
    # Only one of the two gradients: that with respect to the weights.
    return Part("probe step", {OURS: program}, 2 * 2 * size * work.features * classes, f"{size} rows, {work.features} features")


def pca(work: Work) -> Part:
    p, count, num_train = prod(work.plan.layout.base_shape), work.method.image_bases, work.case.num_train
    rows = len(range(0, num_train, -(-num_train // max(count + 1, PCA_BYTES // (4 * p)))))
    fit = lambda state, rows: (state, fit_pca(rows, count))
    inputs = work.normal(rows, p)
    return Part("PCA", {OURS: Program(fit, (), inputs)}, count_operations(fit, (), inputs).total, f"{rows} rows of {p}, {count} bases")


def network_fit(work: Work) -> Part:
    reprs, names = work.distilled.reprs, work.plan.layout.view_targets
    coefficients, hidden = reprs.codes, work.method.hidden
    chosen = jnp.array([view for view, kind in enumerate(names) if kind == "network"])
    settings = dict(hidden=hidden, num_steps=NETWORK_STEPS)
    fit = lambda state, first, views, bases: (state, fit_networks(jax.random.key(0), first, views, bases=bases, **settings))
    inputs = (coefficients[0], coefficients[chosen], reprs.bases)
    shapes = f"{NETWORK_STEPS} steps of {len(chosen)} networks of width {hidden}, {coefficients.shape[1]} images"
    return Part("network fit", {OURS: Program(fit, (), *inputs)}, count_operations(fit, (), *inputs).total, shapes)


OUTER_PARTS = (outer_step, real_features, support_gradient, kernel, pool_update)
STAGES = (teacher_step, student_step, probe_step, pca, network_fit)


def builders(work: Work) -> Iterator[tuple[str, Callable[[Work], Part]]]:
    """Yield the parts of a case: a name for --parts, and the function that builds it."""
    for build in (*OUTER_PARTS, *(STAGES if work.case.stages else ())):
        if build is not network_fit or work.plan.layout.count("network"):
            yield build.__name__, build
