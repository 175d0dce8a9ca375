"""Trajectory matching (MTT, Cazenavette et al., 2022) with difficulty alignment (DATM, Guo et al., 2024).

Two choices differ from the released code: experts are drawn uniformly instead of file by file, and where a step's batches do not divide the
set, the last of them is filled up from the first.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.core.diff_augment import diff_augment, parse_strategy
from ssdd_jax.core.distilled import DistilledSet, Layout, init_distilled
from ssdd_jax.core.losses import label_loss, logit_loss
from ssdd_jax.core.optimizers import num_steps
from ssdd_jax.core.outer import support_rows
from ssdd_jax.core.stores.classes import hard_labels
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.core.trajectories import start_limit, trajectory_loss
from ssdd_jax.errors import InputError
from ssdd_jax.methods.labels import label_targets
from ssdd_jax.methods.method import LABELS, Finished, Inputs, Method, Phase
from ssdd_jax.methods.plan import Plan, Sizes, fill_classes
from ssdd_jax.methods.selection import READ_AT_ONCE, balanced_images, correct_images
from ssdd_jax.nets.flat import FlatLearner, flat_learner
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.methods import DatmSpec

IMAGE_MOMENTUM, LABEL_MOMENTUM, RATE_MOMENTUM = 0.5, 0.9, 0.5


@struct.dataclass
class Matching:
    """A set on its way.

    Attributes:
        distilled: images, and logits or hard labels.
        rate: learning rate of the steps on it.
        opt_state: of `make_optimizer`.
        accepted: number of steps that have moved it.
    """

    distilled: DistilledSet
    rate: Float[Array, ""]
    opt_state: Any
    accepted: Int[Array, ""]


def network(where: str, spec: DatmSpec, image_shape: tuple[int, int, int], num_classes: int) -> FlatLearner:
    """Return the network of the experts and of the steps on the set."""
    return flat_learner(spec.experts.net, image_shape, num_classes, f"{where}.experts.net", spec.experts.precision)


def plan(name: str, spec: DatmSpec, sizes: Sizes) -> Plan:
    """Choose the number of images that the budget holds, equally many of each class; a soft label takes one number per class.

    The learned rate, a single number that the recipe of students takes, is not counted.

    Raises:
        BudgetError: the budget does not hold one image of each class.
        InputError: a setting does not fit.
    """
    where, experts = f"config.methods.{name}", spec.experts
    network(where, spec, sizes.image_shape, sizes.num_classes)
    try:
        _ = experts.augment and parse_strategy(experts.augment)
    except ValueError as error:
        raise InputError(f"{where}.experts.augment: {error}") from error
    if spec.max_start + spec.expert_epochs > experts.epochs:
        raise InputError(
            f"{where} starts before epoch {spec.max_start} (max_start) and imitates {spec.expert_epochs} (expert_epochs), expected at most "
            f"{where}.experts.epochs = {experts.epochs} together; lower one of them or train experts longer"
        )
    if spec.min_start >= spec.max_start:
        raise InputError(f"{where}.min_start is {spec.min_start}, expected less than max_start = {spec.max_start}; starts lie between them")
    if spec.expand_steps and not spec.min_start < spec.first_max_start <= spec.max_start:
        raise InputError(
            f"{where}.first_max_start is {spec.first_max_start}, expected more than min_start = {spec.min_start} and at most max_start = "
            f"{spec.max_start}; with expand_steps=0 it is without effect"
        )
    layout = Layout(sizes.image_shape, sizes.image_shape, target_kind="logits" if spec.soft_labels else "labels")
    return fill_classes(name, sizes, layout, spec.images, label_width=sizes.num_classes if spec.soft_labels else 1)


def start(spec: DatmSpec, plan: Plan, inputs: Inputs, seed: int) -> Matching:
    """Return real training images, equally many of each class, class after class, with their labels or what experts make of them.

    Raises:
        InputError: a class has too few training images, or too few that an expert classifies correctly.
    """
    where, labels, classes = f"config.methods.{inputs.name}", inputs.class_labels(), inputs.num_classes
    outputs = expert_outputs(spec, inputs)
    if spec.init == "correct":
        right = lambda expert, rows: np.argmax(outputs(expert, rows), 1) == labels[rows]
        rows = correct_images(where, seed, plan.num_images, labels, classes, right, spec.experts.count)
    else:
        rows = balanced_images(where, seed, plan.num_images, labels, classes)
    if spec.soft_labels:
        # Of one expert for real images, whether it is right or not.
        count = spec.experts.count if spec.init == "correct" else 1
        targets = mean_of_right(np.stack([outputs(expert, rows) for expert in range(count)]), labels[rows])
    else:
        targets = label_targets(labels[rows], classes)
    distilled = init_distilled(
        inputs.images(rows), jnp.asarray(targets)[None], plan.layout, repr_store=Plain if spec.soft_labels else hard_labels
    )
    rate = jnp.asarray(spec.student_learning_rate, jnp.float32)
    opt_state = make_optimizer(spec).init(movable(spec, distilled, rate))
    return Matching(distilled, rate, opt_state, jnp.zeros((), jnp.int32))


def expert_outputs(spec: DatmSpec, inputs: Inputs) -> Callable[[int, np.ndarray], np.ndarray]:
    """Return the function (expert, rows "k" of training images) -> outputs "k classes" of the expert after its last epoch."""
    flat = network(f"config.methods.{inputs.name}", spec, inputs.image_shape, inputs.num_classes)
    apply, params = jax.jit(flat.apply), inputs.experts(spec.experts)

    def outputs(expert: int, rows: np.ndarray) -> np.ndarray:
        last = jnp.asarray(params[np.array([(expert + 1) * (spec.experts.epochs + 1) - 1])][0])
        # Filled up, so that one program suffices.
        filled = np.resize(rows, -(-len(rows) // READ_AT_ONCE) * READ_AT_ONCE).reshape(-1, READ_AT_ONCE)
        return np.concatenate([np.asarray(apply(last, inputs.images(part))) for part in filled])[: len(rows)]

    return outputs


def mean_of_right(outputs: Float[np.ndarray, "E m k"], labels: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m k"]:
    """Return the mean of an image's outputs over the experts that are right about it, or over all where none is."""
    right = np.argmax(outputs, 2) == labels[None]
    weights = np.where(right.any(0, keepdims=True), right, True).astype(outputs.dtype)[..., None]
    return (weights * outputs).sum(0) / weights.sum(0)


def movable(spec: DatmSpec, distilled: DistilledSet, rate: Array) -> dict[str, Any]:
    """Return what the steps move."""
    return {"images": distilled.images, "rate": rate, **({"labels": distilled.reprs} if spec.soft_labels else {})}


def make_optimizer(spec: DatmSpec) -> optax.GradientTransformation:
    """Return SGD for each of the parts of `movable`."""
    parts = {
        "images": optax.sgd(spec.learning_rate, IMAGE_MOMENTUM),
        "rate": optax.sgd(spec.rate_learning_rate, RATE_MOMENTUM),
        **({"labels": optax.sgd(spec.label_learning_rate, LABEL_MOMENTUM)} if spec.soft_labels else {}),
    }
    return optax.multi_transform(parts, {name: name for name in parts})


def make_step(spec: DatmSpec, apply: Callable[[Array, Array], Array]) -> Callable[..., tuple[Matching, dict[str, Array]]]:
    """Return the step (state, parameters "2 p" of an expert at its start and its end, key) -> (state, metrics).

    A loss above the threshold leaves the state as it was, momentum included.
    """
    optimizer = make_optimizer(spec)
    augment = partial(diff_augment, strategy=spec.experts.augment, siamese=False, align_corners=True)
    loss = logit_loss if spec.soft_labels else label_loss

    def step(state: Matching, ends: Float[Array, "2 p"], key: Array) -> tuple[Matching, dict[str, Array]]:
        order_key, augment_key = jax.random.split(key)
        count = state.distilled.images.codes.shape[0]
        rows = batch_schedule(order_key, count, spec.batch_size or count, spec.syn_steps)
        keys = jax.random.split(augment_key, spec.syn_steps)
        before = movable(spec, state.distilled, state.rate)
        replaced = lambda parts: replace(state.distilled, images=parts["images"], reprs=parts.get("labels", state.distilled.reprs))

        def loss_fn(parts: dict[str, Any]) -> Array:
            images, labels = support_rows(replaced(parts))
            return trajectory_loss(images, labels, parts["rate"], ends[0], ends[1], rows, keys, apply=apply, loss=loss, augment=augment)

        value, grads = jax.value_and_grad(loss_fn)(before)
        updates, opt_state = optimizer.update(grads, state.opt_state, before)
        accepted = (value <= spec.threshold) if spec.threshold else jnp.asarray(True)
        choose = lambda new, old: jax.tree.map(lambda one, other: jnp.where(accepted, one, other), new, old)
        parts = choose(optax.apply_updates(before, updates), before)
        moved = Matching(replaced(parts), parts["rate"], choose(opt_state, state.opt_state), state.accepted + accepted.astype(jnp.int32))
        return moved, {"loss": value, "accepted": accepted.astype(jnp.float32), "learning_rate": state.rate}

    return step


def phases(spec: DatmSpec, plan: Plan, inputs: Inputs) -> tuple[Phase, ...]:
    """Return the steps, if there are any."""
    steps = num_steps(inputs.run, spec)
    return (matching_phase(spec, plan, inputs, steps),) if steps else ()


def matching_phase(spec: DatmSpec, plan: Plan, inputs: Inputs, steps: int) -> Phase:
    """Return the phase in which a set is moved."""
    where, experts = f"config.methods.{inputs.name}", spec.experts
    match = make_step(spec, network(where, spec, inputs.image_shape, inputs.num_classes).apply)
    keys = lambda number, seed: jax.random.split(step_key(seed, Stream.OUTER_STEP, number), 3)

    def draw(number: Int[Array, ""], seed: Int[Array, ""]) -> tuple[Array]:
        expert_key, start_key, _ = keys(number, seed)
        expert = jax.random.randint(expert_key, (), 0, experts.count)
        limit = start_limit(number, spec.first_max_start, spec.max_start, spec.expand_steps)
        epoch = jax.random.randint(start_key, (), spec.min_start, limit)
        first = expert * (experts.epochs + 1) + epoch
        return (jnp.stack([first, first + spec.expert_epochs]),)

    def step(state: Matching, number: Array, batch: Any, seed: Array, shared: Any) -> tuple[Matching, dict[str, Array]]:
        return match(state, batch[0], keys(number, seed)[2])

    def smaller() -> Iterator[tuple[str, Phase]]:
        size = min(spec.batch_size or plan.num_images, plan.num_images)
        while size > 1:
            size = size // 2
            yield f"--{where}.batch_size={size}", matching_phase(replace(spec, batch_size=size), plan, inputs, steps)

    rates = f"the set; lower {where}.learning_rate ({spec.learning_rate}) or rate_learning_rate ({spec.rate_learning_rate})"
    return Phase(
        "matching",
        steps,
        lambda seed, state: state,
        step,
        draw,
        (lambda: inputs.experts(experts),),
        causes=dict.fromkeys(("loss", "distilled", "rate"), rates),
        smaller=smaller,
    )


def finish(spec: DatmSpec, plan: Plan, inputs: Inputs, state: Matching) -> Finished:
    """Return the set, the rate that students of it take, and how many steps have moved it."""
    steps, rate, accepted = num_steps(inputs.run, spec), float(state.rate), int(state.accepted)
    where, warnings = f"config.methods.{inputs.name}", []
    if steps and not accepted:
        warnings.append(f"none of {steps} steps was accepted, so the set is where it started; raise {where}.threshold ({spec.threshold})")
    if rate <= 0:
        warnings.append(f"the learned rate is {rate:.3g}, at which no student can be trained; lower {where}.rate_learning_rate")
    facts = {"steps": steps, "learning_rate": rate, "accepted_steps": accepted}
    return Finished(state.distilled, facts, tuple(warnings))


METHOD = Method(
    spec=DatmSpec,
    version=1,
    needs=frozenset({LABELS}),
    sections=("outer",),
    plan=plan,
    start=start,
    phases=phases,
    finish=finish,
)
