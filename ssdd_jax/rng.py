"""Randomness as a function of (seed, stream, step): no key is ever stored, so a resumed run draws what it would have drawn anyway."""

import enum

import jax
from jaxtyping import Array, Int, PRNGKeyArray


class Stream(enum.IntEnum):
    """What a key is for. Append only: a stream's number is part of every published result."""

    TEACHER_INIT = 0
    TEACHER_STEP = 1
    DISTILLED_INIT = 2
    POOL_INIT = 3
    POOL_WARM_UP = 4
    OUTER_STEP = 5
    NETWORKS = 6
    STUDENT_INIT = 7
    STUDENT_STEP = 8
    PROBE_INIT = 9
    PROBE_STEP = 10
    LABEL_SUBSET = 11
    ONLINE_PROBE = 12
    FINETUNE_INIT = 13
    FINETUNE_STEP = 14
    REAL_CROPS = 15
    MATCHING_INIT = 16
    MATCHING_STEP = 17
    MATCHING_DRAW = 18
    EXPERT_INIT = 19
    EXPERT_STEP = 20
    CORRECT_IMAGES = 21


def step_key(seed: int | Int[Array, ""], stream: Stream, step: int | Int[Array, ""] = 0) -> PRNGKeyArray:
    """Return the key of one step of one stream; `seed` and `step` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(stream)), step)
