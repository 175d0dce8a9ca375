"""Optimizers from settings."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssdd_jax.core.distilled import DistilledSet, Layout, compress
from ssdd_jax.settings.evaluation import RecipeSpec
from ssdd_jax.settings.methods import DatmSpec, FrepoSpec, KipSpec, RegressionSpec
from ssdd_jax.settings.spec import PoolSpec, RunSpec


def sgd(spec: PoolSpec | RecipeSpec, rate: float | optax.Schedule | None = None) -> optax.GradientTransformation:
    """Return SGD with momentum and with weight decay added to the gradient of every parameter, as in PyTorch."""
    return coupled_sgd(spec.learning_rate if rate is None else rate, spec.momentum, spec.weight_decay)


def coupled_sgd(rate: float | optax.Schedule, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Return the same from numbers."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum))


def student_schedule(spec: RecipeSpec, updates: int, updates_per_epoch: int) -> optax.Schedule:
    """Return the learning rate of a student's pretraining, of the number of updates done, which will be `updates`.

    For a recipe whose rate is 0, that of the set, it is relative to that rate.
    """
    peak = spec.learning_rate or 1.0
    warmup = min(max(spec.warmup_epochs * updates_per_epoch, spec.warmup_updates), max(updates - 1, 0))
    if spec.schedule == "cosine":
        end = spec.final_rate * peak
        start = 0.0 if warmup else peak
        schedule = optax.warmup_cosine_decay_schedule(start, peak, warmup, max(updates, 1), end)
    else:
        schedule = optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)
    if not spec.decay_at:
        return schedule
    return lambda done: schedule(done) * jnp.where(jnp.asarray(done) < decay_update(spec, updates), 1.0, 0.1)


def decay_update(spec: RecipeSpec, updates: int) -> int:
    """Return how many updates a recipe with `decay_at` does at its full rate."""
    return round(spec.decay_at * updates)


def student_optimizer(spec: RecipeSpec, updates: int, updates_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer of a student's pretraining, whose schedule takes `updates` updates.

    For a recipe whose rate is 0, it is `at_own_rate`.
    """
    schedule = student_schedule(spec, updates, updates_per_epoch)
    make = partial(optax.adamw, weight_decay=spec.weight_decay) if spec.optimizer == "adamw" else partial(sgd, spec)
    if spec.decay_at and spec.reset_momentum:
        # The rate is kept apart: starting afresh does not take it back to its beginning.
        optimizer = optax.chain(start_afresh(make(1.0), decay_update(spec, updates)), optax.scale_by_schedule(schedule))
    else:
        optimizer = make(schedule)
    return optimizer if spec.learning_rate else at_own_rate(optimizer)


def at_own_rate(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer whose updates are multiplied by a rate that is part of its state: state["rate"], 1 until it is replaced."""

    def init(params: Any) -> dict[str, Any]:
        return {"rate": jnp.ones(()), "state": optimizer.init(params)}

    def update(grads: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
        updates, moved = optimizer.update(grads, state["state"], params)
        return jax.tree.map(lambda leaf: state["rate"] * leaf, updates), {"rate": state["rate"], "state": moved}

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def start_afresh(optimizer: optax.GradientTransformation, at: int) -> optax.GradientTransformation:
    """Return an optimizer that forgets its state after `at` updates, as one that is created anew there."""

    def init(params: Any) -> dict[str, Any]:
        return {"done": jnp.zeros((), jnp.int32), "state": optimizer.init(params)}

    def update(grads: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
        choose = lambda fresh, old: jnp.where(state["done"] == at, fresh, old)
        updates, moved = optimizer.update(grads, jax.tree.map(choose, optimizer.init(params), state["state"]), params)
        return updates, {"done": state["done"] + 1, "state": moved}

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def outer_optimizer(spec: RunSpec, method: RegressionSpec, first: int = 0) -> optax.GradientTransformation:
    """Return AdamW with the linear schedule of the outer loop, for a distilled set whose networks take part from step `first` on.

    Networks have moments and a count of their own: Adam's correction for moments that start at zero is that of their first step.
    """
    steps = num_steps(spec, method)
    linear = optax.linear_schedule(method.learning_rate, method.learning_rate * spec.outer.final_rate, max(steps, 1))
    adamw = lambda start: optax.adamw(lambda n: linear(n + start), spec.outer.b1, spec.outer.b2, weight_decay=spec.outer.weight_decay)
    stores: Any = adamw(0)
    networks: Any = adamw(first)
    # Networks in a dict, since None by itself would count as no parameters at all.
    split = lambda distilled: (replace(distilled, networks=None), {"networks": distilled.networks})

    def init(distilled: DistilledSet) -> dict[str, Any]:
        of_stores, of_networks = split(distilled)
        return {"stores": stores.init(of_stores), "networks": networks.init(of_networks)}

    def update(grads: DistilledSet, state: dict[str, Any], distilled: DistilledSet) -> tuple[DistilledSet, dict[str, Any]]:
        (store_grads, network_grads), (store_values, network_values) = split(grads), split(distilled)
        of_stores, moved = stores.update(store_grads, state["stores"], store_values)
        of_networks, trained = networks.update(network_grads, state["networks"], network_values)
        return replace(of_stores, networks=of_networks["networks"]), {"stores": moved, "networks": trained}

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def continue_with_networks(
    optimizer: optax.GradientTransformation, state: dict[str, Any], distilled: DistilledSet, layout: Layout
) -> dict[str, Any]:
    """Return the state of `outer_optimizer` for a set that networks have just joined: the moments of what is kept go on.

    Args:
        optimizer: that of the steps with networks.
        state: of the steps without networks.
        distilled: the set with its networks.
        layout: layout of the finished set, see `ssdd_jax.core.distilled.compress`.
    """
    kept = lambda part: replace(compress(part, layout, distilled.networks), networks=None) if isinstance(part, DistilledSet) else part
    stores = jax.tree.map(kept, state["stores"], is_leaf=lambda part: isinstance(part, DistilledSet))
    fresh: Any = optimizer.init(distilled)
    return {**fresh, "stores": stores}


def num_steps(spec: RunSpec, method: RegressionSpec | KipSpec | FrepoSpec | DatmSpec) -> int:
    """Return the number of outer steps of a method."""
    return spec.outer.steps if method.steps < 0 else method.steps
