"""IDM (Zhao et al., 2023): distilled mosaics have the mean features of real images, in a queue of networks that are trained meanwhile."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ssdd_jax.core import pool as pools
from ssdd_jax.core.diff_augment import diff_augment
from ssdd_jax.core.distilled import DistilledSet, Layout, init_distilled
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.matching import class_loss, mean_distance
from ssdd_jax.core.optimizers import coupled_sgd
from ssdd_jax.core.pool import MemberState, init_member, train_member
from ssdd_jax.core.sharding import Shard, unsharded
from ssdd_jax.core.stores.classes import hard_labels
from ssdd_jax.core.views import QUADRANTS, apply_views
from ssdd_jax.errors import InputError
from ssdd_jax.methods.class_rows import ClassRows, by_class, class_keys, fewer_per_class
from ssdd_jax.methods.labels import balanced_start, label_targets
from ssdd_jax.methods.method import LABELS, Finished, Inputs, Method, Phase
from ssdd_jax.methods.network import own_learner
from ssdd_jax.methods.plan import Plan, Sizes, fill_classes
from ssdd_jax.methods.selection import balanced_images
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.methods import IdmSpec

FIRST = 3
"""Networks in the queue before the first step, which adds another."""
TRAINED = 2
"""Networks that are trained in a step."""


@struct.dataclass
class Queue:
    """Networks at their places, and how well each predicts what it is trained on.

    Attributes:
        networks: "Q ..."; the first `joined` places are taken, and later the oldest is the one to be replaced.
        joined: how many networks have joined so far.
        right: "Q", images that a network's last updates predicted right, since they were counted anew.
        seen: "Q", how many images these were.
    """

    networks: MemberState
    joined: Int[Array, ""]
    right: Float[Array, " Q"]
    seen: Float[Array, " Q"]


@struct.dataclass
class State:
    """The state between two steps: the set, the state of the images' optimizer, and the queue."""

    distilled: DistilledSet
    opt_state: Any
    queue: Queue


def plan(name: str, spec: IdmSpec, sizes: Sizes) -> Plan:
    """Choose the number of images that the budget holds, equally many of each class; a mosaic and its label count once.

    Raises:
        BudgetError: the budget does not hold one image of each class.
        InputError: images cannot be mosaics.
    """
    own_learner(name, spec.net, sizes.image_shape, sizes.num_classes)
    if not spec.partition:
        return fill_classes(name, sizes, Layout(sizes.image_shape, sizes.image_shape, target_kind="labels"), spec.images)
    height, width, _ = sizes.image_shape
    if height % 2 or width % 2:
        raise InputError(
            f"config.methods.{name}.partition: images of {height} x {width} pixels cannot be cut into four, expected even sides; "
            "set it to False, or config.data.size to an even size"
        )
    targets = ("stored", *["shared"] * (len(QUADRANTS) - 1))
    return fill_classes(name, sizes, Layout(sizes.image_shape, sizes.image_shape, QUADRANTS, targets, "labels"), spec.images)


def start(spec: IdmSpec, plan: Plan, inputs: Inputs, seed: int) -> DistilledSet:
    """Return real training images, or mosaics of four of a class, each quadrant drawn independently of the others, and their labels."""
    if not spec.partition:
        return balanced_start(inputs, plan, seed, repr_store=hard_labels)
    labels, where = inputs.class_labels(), f"config.methods.{inputs.name}"
    drawn = [balanced_images(where, seed, plan.num_images, labels, inputs.num_classes, draw=i) for i in range(len(QUADRANTS))]
    images = mosaic(*(inputs.images(rows) for rows in drawn))
    targets = label_targets(np.sort(labels[drawn[0]]), inputs.num_classes)
    stacked = jnp.broadcast_to(targets, (len(QUADRANTS), *targets.shape))
    return init_distilled(images, stacked, plan.layout, repr_store=hard_labels)


def mosaic(*parts: Float[Array, "m H W C"]) -> Float[Array, "m H W C"]:
    """Return images made of four, in the order of `QUADRANTS`, each of half the size: the means of 2 x 2 pixels."""
    m, height, width, channels = parts[0].shape
    top_left, bottom_left, top_right, bottom_right = (
        part.reshape(m, height // 2, 2, width // 2, 2, channels).mean((2, 4)) for part in parts
    )
    row = lambda left, right: jnp.concatenate([left, right], 2)
    return jnp.concatenate([row(top_left, top_right), row(bottom_left, bottom_right)], 1)


def image_optimizer(spec: IdmSpec) -> optax.GradientTransformation:
    """Return what moves the images."""
    return optax.sgd(spec.learning_rate, spec.momentum)


def network_optimizer(spec: IdmSpec) -> optax.GradientTransformation:
    """Return what trains the networks of the queue."""
    return coupled_sgd(spec.network_rate, 0.9, 5e-4)


def init_queue(key: PRNGKeyArray, spec: IdmSpec, learner: Learner) -> Queue:
    """Return the queue before the first step."""
    networks = jax.vmap(lambda k: init_member(k, learner, network_optimizer(spec)))(jax.random.split(key, spec.queue))
    zeros = jnp.zeros(spec.queue)
    return Queue(networks, jnp.asarray(min(FIRST, spec.queue), jnp.int32), zeros, zeros)


def renew(queue: Queue, key: PRNGKeyArray, number: Int[Array, ""], spec: IdmSpec, learner: Learner) -> Queue:
    """Return the queue as a step finds it: accuracies are counted anew and a fresh network joins, if it is time for these."""
    anew = (number % spec.reset_every == 0) & (number > 0)
    queue = replace(queue, right=jnp.where(anew, 0.0, queue.right), seen=jnp.where(anew, 0.0, queue.seen))

    def join(queue: Queue) -> Queue:
        place = (queue.joined % len(queue.seen))[None]
        fresh = jax.tree.map(lambda leaf: leaf[None], init_member(key, learner, network_optimizer(spec)))
        networks = pools.put(queue.networks, place, fresh)
        return Queue(networks, queue.joined + 1, queue.right.at[place].set(0.0), queue.seen.at[place].set(0.0))

    return jax.lax.cond(number % spec.push_every == 0, join, lambda queue: queue, queue)


def choose(key: PRNGKeyArray, queue: Queue, count: int) -> Int[Array, " count"]:
    """Return random places of the queue that are taken, all different."""
    places = jnp.arange(len(queue.seen))
    return jnp.argsort(jnp.where(places < queue.joined, jax.random.uniform(key, places.shape, jnp.float32), 2.0))[:count]


def percent_right(queue: Queue, place: Int[Array, ""]) -> Float[Array, ""]:
    """Return a network's training accuracy in percent; 0 if it has not been trained since accuracies were counted anew."""
    return 100 * queue.right[place] / jnp.maximum(queue.seen[place], 1.0)


def make_image_steps(spec: IdmSpec, layout: Layout, learner: Learner, weights: Float[Array, "k b"], *, shard: Shard = unsharded) -> Any:
    """Return match(images "m H W C", optimizer's state, variables, percent, real "k b H W C", key) -> (images, state, metrics).

    The images of one class after the other take a step; momentum meanwhile moves those of the others, too.

    Args:
        spec: settings of the method.
        layout: layout of the set; its views are those of a mosaic.
        learner: the network.
        weights: which of the real images count, see `ssdd_jax.methods.class_rows.ClassRows`.
        shard: how a class's real images lie on devices.
    """
    optimizer, classes = image_optimizer(spec), len(weights)
    augment = partial(diff_augment, strategy=spec.augment, siamese=True, align_corners=spec.align_corners)

    def match(images: Array, opt_state: Any, variables: Any, percent: Array, real: Array, key: PRNGKeyArray) -> Any:
        def of_class(carry: Any, inputs: Any) -> tuple[Any, tuple[Array, Array]]:
            images, opt_state = carry
            label, own, of, key = inputs
            own = shard("data", own)

            def loss(part: Array) -> Array:
                rows = apply_views(part, layout.views).reshape(-1, *part.shape[1:])
                ours, theirs = augment(key, rows), augment(key, own)
                distance = mean_distance(learner.features(variables, theirs), learner.features(variables, ours), of)
                return distance + spec.ce_weight * percent * class_loss(learner.apply, variables, ours, label)

            value, grad = jax.value_and_grad(loss)(by_class(images, classes)[label])
            grads = by_class(jnp.zeros_like(images), classes).at[label].set(grad).reshape(images.shape)
            updates, opt_state = optimizer.update(grads, opt_state, images)
            return (optax.apply_updates(images, updates), opt_state), (value, jnp.sum(grad**2))

        by_label = (jnp.arange(classes), real, weights, class_keys(key, classes))
        (images, opt_state), (losses, squares) = jax.lax.scan(of_class, (images, opt_state), by_label)
        return images, opt_state, {"loss": jnp.sum(losses), "grad_norm": jnp.sqrt(jnp.sum(squares))}

    return match


def train_networks(
    queue: Queue,
    places: Int[Array, " t"],
    images: Float[Array, "t u n H W C"],
    labels: Int[Array, "t u n"],
    spec: IdmSpec,
    learner: Learner,
) -> tuple[Queue, Float[Array, ""]]:
    """Return the queue with u updates of each of t networks on real images, and the last of their losses."""
    optimizer = network_optimizer(spec)

    def loss(outputs: Array, labels: Array) -> tuple[Array, Array]:
        value = optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()
        return value, jnp.sum(jnp.argmax(outputs, -1) == labels).astype(jnp.float32)

    def update(network: MemberState, batch: Any) -> tuple[MemberState, tuple[Array, Array]]:
        images, labels = batch
        return train_member(network, images, labels, learner, optimizer, loss, has_aux=True)

    value = jnp.zeros(())
    # One after the other: batching over networks makes grouped convolutions, see `ssdd_jax.core.pool.over_leading_axis`.
    for i in range(len(images)):
        place = places[i][None]
        network = jax.tree.map(lambda leaf: leaf[0], pools.take(queue.networks, place))
        network, (values, right) = jax.lax.scan(update, network, (images[i], labels[i]))
        networks = pools.put(queue.networks, place, jax.tree.map(lambda leaf: leaf[None], network))
        seen = float(labels[i].size)
        queue = replace(queue, networks=networks, right=queue.right.at[place].add(right.sum()), seen=queue.seen.at[place].add(seen))
        value = values[-1]
    return queue, value


def phases(spec: IdmSpec, plan: Plan, inputs: Inputs) -> tuple[Phase, ...]:
    """Return the steps, if there are any."""
    return (_steps(spec, plan, inputs),) if spec.steps else ()


def _steps(spec: IdmSpec, plan: Plan, inputs: Inputs) -> Phase:
    """Return the steps of the images and of the networks."""
    classes = inputs.num_classes
    learner = own_learner(inputs.name, spec.net, inputs.image_shape, classes, precision=spec.precision)
    rows = ClassRows(inputs.class_labels(), classes, spec.batch_per_class)
    match = make_image_steps(spec, plan.layout, learner, rows.weights, shard=inputs.shard)
    batches = (min(TRAINED, spec.queue), spec.network_updates, spec.network_batch)
    num_matched = classes * rows.size

    def init(seed: Array, distilled: DistilledSet) -> State:
        distilled = jax.tree.map(jnp.copy, distilled)
        opt_state = image_optimizer(spec).init(distilled.images.codes)
        return State(distilled, opt_state, init_queue(step_key(seed, Stream.MATCHING_INIT), spec, learner))

    def step(state: State, number: Array, batch: Any, seed: Array, shared: Any) -> tuple[State, dict[str, Array]]:
        join_key, match_key, train_key, augment_key = jax.random.split(step_key(seed, Stream.MATCHING_STEP, number), 4)
        images, labels = inputs.normalize(batch[0]), batch[1][num_matched:]
        queue = renew(state.queue, join_key, number, spec, learner)
        place = choose(match_key, queue, 1)
        variables = jax.tree.map(lambda leaf: leaf[0], pools.take(queue.networks, place).variables)
        real = images[:num_matched].reshape(classes, rows.size, *images.shape[1:])
        own, stored = state.distilled.images, state.distilled.images.codes
        moved, opt_state, metrics = match(stored, state.opt_state, variables, percent_right(queue, place[0]), real, augment_key)
        train_images = images[num_matched:].reshape(*batches, *images.shape[1:])
        places = choose(train_key, queue, batches[0])
        queue, network_loss = train_networks(queue, places, train_images, labels.reshape(batches), spec, learner)
        state = State(replace(state.distilled, images=replace(own, rows=moved)), opt_state, queue)
        return state, {**metrics, "network_loss": network_loss}

    def draw(number: Array, seed: Array) -> tuple[Array, Array]:
        matched_key, trained_key = jax.random.split(step_key(seed, Stream.MATCHING_DRAW, number))
        trained = jax.random.randint(trained_key, (int(np.prod(batches)),), 0, inputs.num_train)
        drawn = jnp.concatenate([rows.draw(matched_key).reshape(-1), trained])
        return drawn, drawn

    where = f"config.methods.{inputs.name}"
    rate = f"too large a step of the images; lower {where}.learning_rate ({spec.learning_rate}) or {where}.ce_weight ({spec.ce_weight})"
    network = f"the training of the networks; lower {where}.network_rate ({spec.network_rate})"
    causes = {"loss": rate, "grad_norm": rate, "network_loss": network, "distilled": rate}
    # The networks are finite if their loss is; reading the queue would copy it.
    watch = lambda state: replace(state, queue=None)
    smaller = lambda: fewer_per_class(where, spec, rows.size, lambda less: _steps(less, plan, inputs))
    return Phase("images", spec.steps, init, step, draw, ("images", "labels"), watch=watch, causes=causes, smaller=smaller)


def finish(spec: IdmSpec, plan: Plan, inputs: Inputs, state: State | DistilledSet) -> Finished:
    """Return the set."""
    return Finished(state.distilled if isinstance(state, State) else state, {"steps": spec.steps})


METHOD = Method(
    spec=IdmSpec,
    version=1,
    needs=frozenset({LABELS}),
    sections=(),
    plan=plan,
    start=start,
    phases=phases,
    finish=finish,
)
