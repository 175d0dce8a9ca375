"""Fine-tuning: the complete pretrained network with all labels (KRR-ST's transfer protocol)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.core.augment import AugmentSpec, augment
from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.core.optimizers import sgd
from ssdd_jax.core.pool import Learner, MemberState
from ssdd_jax.evals.probe import accuracy
from ssdd_jax.evals.protocol import Protocol, Readout, Steps, Tools, Trainable
from ssdd_jax.nets.layers import HEAD
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.augment import crop_and_flip
from ssdd_jax.settings.evaluation import FinetuneSpec, RecipeSpec


def init_finetuning(key: PRNGKeyArray, pretrained: Any, learner: Learner, optimizer: optax.GradientTransformation) -> MemberState:
    """Return a pretrained backbone under a fresh head; `learner` has one output a class."""
    params = {**pretrained["params"], HEAD: learner.init(key)["params"][HEAD]}
    variables = {"params": params, "batch_stats": pretrained["batch_stats"]}
    return MemberState(variables=variables, opt_state=optimizer.init(params), age=jnp.zeros((), jnp.int32))


def make_finetune_step(
    *,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    view: AugmentSpec,
    normalize: Callable[[Float[Array, "n H W C"]], Float[Array, "n H W C"]],
) -> Callable[..., tuple[MemberState, dict[str, Array]]]:
    """Build step(member, step, seed, images "b H W C" uint8, labels "b") -> (member, metrics), one minibatch update.

    Images are augmented by `view` in [0, 1], then normalized.
    """

    def step(member: MemberState, step_number, seed, images, labels):
        # Steps are numbered from 1: the order of the batches is drawn at 0.
        batch = augment(step_key(seed, Stream.FINETUNE_STEP, step_number + 1), images.astype(jnp.float32) / 255.0, view)
        variables = member.variables

        def loss_fn(params):
            logits, batch_stats = learner.apply_train({**variables, "params": params}, normalize(batch))
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (batch_stats, accuracy(logits, labels))

        (loss, (batch_stats, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, member.opt_state, variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats}
        return MemberState(variables=variables, opt_state=opt_state, age=member.age + 1), {"loss": loss, "accuracy": correct}

    return step


class Program(NamedTuple):
    """What is compiled once for a student and a dataset; logits(variables, uint8 images "n H W C") are the class scores."""

    learner: Learner
    optimizer: optax.GradientTransformation
    steps: Steps
    logits: Callable[..., jax.Array]


def make_program(spec: FinetuneSpec, networks: Trainable, num_classes: int) -> Program:
    """Build the network with a head of classes, and its steps on (images, labels) drawn by args (seed, schedule)."""
    learner = networks.make_learner(num_classes)
    optimizer = sgd(RecipeSpec(weight_decay=spec.weight_decay), optax.cosine_decay_schedule(spec.learning_rate, spec.steps))
    view = crop_and_flip(spec.padding, spec.flip)
    update = make_finetune_step(learner=learner, optimizer=optimizer, view=view, normalize=networks.normalize)
    steps = Steps(
        step=lambda member, step_number, batch, seed, schedule: update(member, step_number, seed, *batch),
        draw=lambda step_number, seed, schedule: (schedule[step_number],) * 2,
        causes={"loss": f"config.protocols.finetune.learning_rate ({spec.learning_rate}); lower it"},
    )
    return Program(learner, optimizer, steps, jax.jit(lambda variables, batch: learner.apply(variables, networks.normalize(batch))))


def run(spec: FinetuneSpec, readout: Readout, tools: Tools) -> dict[str, list[float]]:
    """Return the accuracy of every seed's fine-tuned network."""
    networks = readout.networks
    if networks is None:
        raise ValueError("finetune: the readout has no networks, expected those of the students; leave this protocol out for others")
    learner, optimizer, steps, logits = tools.once("finetune", lambda: make_program(spec, networks, readout.num_classes))
    start = lambda seed, variables: init_finetuning(step_key(seed, Stream.FINETUNE_INIT), variables, learner, optimizer)
    members = [start(seed, variables) for seed, variables in zip(readout.seeds, networks.variables, strict=True)]
    num_rows = len(readout.train_labels)
    schedule = lambda seed: batch_schedule(step_key(seed, Stream.FINETUNE_STEP), num_rows, spec.batch_size, spec.steps)
    args = [(jnp.asarray(seed), schedule(seed)) for seed in readout.seeds]
    tables = (networks.train_images, readout.train_labels)
    members = tools.train(steps, members, spec.steps, args, name="finetune", tables=tables, resume=True)
    labels = jnp.asarray(readout.eval_labels)
    score = lambda variables: accuracy(jnp.asarray(tools.apply(lambda batch: logits(variables, batch), networks.eval_images)), labels)
    return {"finetune": [float(score(member.variables)) for member in members]}


PROTOCOL = Protocol(
    spec=FinetuneSpec,
    version=1,
    columns=lambda spec: {"finetune": "fine-tuned"},
    definition="the whole network fine-tuned with all training labels",
    run=run,
    trains=True,
)
