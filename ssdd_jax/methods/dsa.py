"""DSA (Zhao and Bilen, 2021): distilled images give a network the gradients that real ones give it, under equal augmentation."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.core.batching import batch_schedule, batches_per_epoch
from ssdd_jax.core.diff_augment import diff_augment
from ssdd_jax.core.distilled import DistilledSet, Layout, expand
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.losses import label_loss
from ssdd_jax.core.matching import class_gradient_distance
from ssdd_jax.core.pool import MemberState, init_member, train_member
from ssdd_jax.core.sharding import Shard, unsharded
from ssdd_jax.core.stores.classes import hard_labels
from ssdd_jax.errors import InputError
from ssdd_jax.methods.class_rows import ClassRows, by_class, class_keys, fewer_per_class
from ssdd_jax.methods.labels import balanced_start
from ssdd_jax.methods.method import LABELS, Finished, Inputs, Method, Phase
from ssdd_jax.methods.network import own_learner
from ssdd_jax.methods.plan import Plan, Sizes, fill_classes
from ssdd_jax.nets import check_no_batch_norm
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.methods import DsaSpec

SCHEDULE = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Images of a class -> steps of the images with a network, and its epochs between two of them."""


@struct.dataclass
class State:
    """The state between two steps of the images.

    Attributes:
        distilled: the distilled set.
        opt_state: of the images' optimizer.
        network: the network that the next step trains further, or replaces.
    """

    distilled: DistilledSet
    opt_state: Any
    network: MemberState


def plan(name: str, spec: DsaSpec, sizes: Sizes) -> Plan:
    """Choose the number of images that the budget holds, equally many of each class; a label takes one number.

    Raises:
        BudgetError: the budget does not hold one image of each class.
        InputError: a setting does not fit.
    """
    found = fill_classes(name, sizes, Layout(sizes.image_shape, sizes.image_shape, target_kind="labels"), spec.images)
    check_no_batch_norm(spec.net, own_learner(name, spec.net, sizes.image_shape, sizes.num_classes), f"config.methods.{name}.net")
    schedule(name, spec, found.num_images // sizes.num_classes)
    return found


def schedule(name: str, spec: DsaSpec, per_class: int) -> tuple[int, int]:
    """Return T and zeta, for sets of `per_class` images of each class.

    Raises:
        InputError: DSA has none for this size, and the settings give none.
    """
    if (spec.image_steps == 0 or spec.network_epochs < 0) and per_class not in SCHEDULE:
        raise InputError(
            f"config.methods.{name}: DSA says nothing about {per_class} images of a class, only about {', '.join(map(str, SCHEDULE))}; "
            f"give image_steps (is {spec.image_steps}) and network_epochs (is {spec.network_epochs}), or images"
        )
    steps, epochs = SCHEDULE.get(per_class, (0, 0))
    return spec.image_steps or steps, epochs if spec.network_epochs < 0 else spec.network_epochs


def start(spec: DsaSpec, plan: Plan, inputs: Inputs, seed: int) -> DistilledSet:
    """Return real training images, equally many of each class, and their labels."""
    return balanced_start(inputs, plan, seed, repr_store=hard_labels)


def image_optimizer(spec: DsaSpec) -> optax.GradientTransformation:
    """Return what moves the images."""
    return optax.sgd(spec.learning_rate, spec.momentum)


def make_image_step(spec: DsaSpec, learner: Learner, weights: Float[Array, "k b"], *, shard: Shard = unsharded) -> Any:
    """Return step(state, real, key) -> (state, metrics): one step of the images, for the sum of the classes' gradient distances.

    Args:
        spec: settings of the method.
        learner: the network.
        weights: which of the real images count, see `ssdd_jax.methods.class_rows.ClassRows`.
        shard: how a class's real images lie on devices.

    `real` are normalized images "k b H W C" by class. The real and the distilled images of a class are augmented with equal draws.
    """
    optimizer, classes = image_optimizer(spec), len(weights)
    augment = partial(diff_augment, strategy=spec.augment, siamese=True, align_corners=spec.align_corners)

    def step(state: State, real: Float[Array, "k b H W C"], key: PRNGKeyArray) -> tuple[State, dict[str, Array]]:
        params = state.network.variables["params"]
        apply = lambda params, images: learner.apply({**state.network.variables, "params": params}, images)

        def of_class(inputs: Any) -> tuple[Array, Array]:
            label, images, synthetic, of, key = inputs
            images = shard("data", images)

            def distance(synthetic: Array) -> Array:
                return class_gradient_distance(apply, params, augment(key, images), augment(key, synthetic), label, of)

            return jax.value_and_grad(distance)(synthetic)

        images = state.distilled.images.codes
        # One class after the other: second-order gradients of all at once would take the memory of all.
        by_label = (jnp.arange(classes), real, by_class(images, classes), weights, class_keys(key, classes))
        distances, grads = jax.lax.map(of_class, by_label)
        grads = grads.reshape(images.shape)
        updates, opt_state = optimizer.update(grads, state.opt_state, images)
        moved = replace(state.distilled, images=replace(state.distilled.images, rows=optax.apply_updates(images, updates)))
        metrics = {"loss": jnp.sum(distances), "grad_norm": optax.tree.norm(grads)}
        return replace(state, distilled=moved, opt_state=opt_state), metrics

    return step


def make_network_epochs(spec: DsaSpec, learner: Learner, num_images: int, epochs: int) -> Any:
    """Return train(network, distilled, key) -> network, trained on the set for some epochs; every batch is augmented."""
    optimizer = optax.sgd(spec.network_rate)
    augment = partial(diff_augment, strategy=spec.augment, siamese=False, align_corners=spec.align_corners)
    updates = epochs * batches_per_epoch(num_images, spec.network_batch)

    def train(network: MemberState, distilled: DistilledSet, key: PRNGKeyArray) -> MemberState:
        (images, *_), (targets, *_) = expand(distilled)
        order_key, augment_key = jax.random.split(key)

        def update(network: MemberState, batch: Any) -> tuple[MemberState, None]:
            rows, number = batch
            chosen = augment(jax.random.fold_in(augment_key, number), images[rows])
            return train_member(network, chosen, targets[rows], learner, optimizer, label_loss)[0], None

        rows = batch_schedule(order_key, num_images, spec.network_batch, updates)
        return jax.lax.scan(update, network, (rows, jnp.arange(updates)))[0]

    return train if updates else lambda network, distilled, key: network


def phases(spec: DsaSpec, plan: Plan, inputs: Inputs) -> tuple[Phase, ...]:
    """Return the steps, if there are any."""
    image_steps, _ = schedule(inputs.name, spec, plan.num_images // inputs.num_classes)
    return (_steps(spec, plan, inputs),) if spec.networks * image_steps else ()


def _steps(spec: DsaSpec, plan: Plan, inputs: Inputs) -> Phase:
    """Return the steps of the images; a network's first step starts it, the others train it first."""
    classes, count = inputs.num_classes, plan.num_images
    image_steps, epochs = schedule(inputs.name, spec, count // classes)
    learner = own_learner(inputs.name, spec.net, inputs.image_shape, classes, precision=spec.precision)
    rows = ClassRows(inputs.class_labels(), classes, spec.batch_per_class)
    move = make_image_step(spec, learner, rows.weights, shard=inputs.shard)
    train = make_network_epochs(spec, learner, count, epochs)
    fresh = lambda seed, number: init_member(step_key(seed, Stream.MATCHING_INIT, number // image_steps), learner, optax.sgd(1.0))

    def init(seed: Array, distilled: DistilledSet) -> State:
        distilled = jax.tree.map(jnp.copy, distilled)
        return State(distilled, image_optimizer(spec).init(distilled.images.codes), fresh(seed, jnp.asarray(0)))

    def step(state: State, number: Array, batch: Any, seed: Array, shared: Any) -> tuple[State, dict[str, Array]]:
        train_key, augment_key = jax.random.split(step_key(seed, Stream.MATCHING_STEP, number))
        if image_steps > 1:
            further = lambda: train(state.network, state.distilled, train_key)
            network = jax.lax.cond(number % image_steps == 0, lambda: fresh(seed, number), further)
        else:
            network = fresh(seed, number)
        real = inputs.normalize(batch[0])
        return move(replace(state, network=network), real.reshape(classes, rows.size, *real.shape[1:]), augment_key)

    draw = lambda number, seed: (rows.draw(step_key(seed, Stream.MATCHING_DRAW, number)).reshape(-1),)
    where = f"config.methods.{inputs.name}"
    smaller = lambda: fewer_per_class(where, spec, rows.size, lambda less: _steps(less, plan, inputs))
    rate = f"too large a step of the images; lower {where}.learning_rate ({spec.learning_rate})"
    causes = {
        "loss": f"the training of the networks; lower {where}.network_rate ({spec.network_rate})",
        "grad_norm": rate,
        "distilled": rate,
    }
    return Phase("images", spec.networks * image_steps, init, step, draw, ("images",), causes=causes, smaller=smaller)


def finish(spec: DsaSpec, plan: Plan, inputs: Inputs, state: State | DistilledSet) -> Finished:
    """Return the set."""
    steps = spec.networks * schedule(inputs.name, spec, plan.num_images // inputs.num_classes)[0]
    return Finished(state.distilled if isinstance(state, State) else state, {"steps": steps})


METHOD = Method(
    spec=DsaSpec,
    version=1,
    needs=frozenset({LABELS}),
    sections=(),
    plan=plan,
    start=start,
    phases=phases,
    finish=finish,
)
