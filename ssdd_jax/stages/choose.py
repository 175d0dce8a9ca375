"""The choice of automatic settings, before any set is distilled: short trials that the method's rule asks for."""

import copy
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.distilled import expand
from ssdd_jax.core.optimizers import num_steps
from ssdd_jax.core.quantise import quantise
from ssdd_jax.errors import InputError
from ssdd_jax.evals.student import repr_error
from ssdd_jax.io.files import write_json
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.io.pairs import Pairs
from ssdd_jax.methods.method import TEACHER, Finished
from ssdd_jax.registry import METHODS
from ssdd_jax.runtime import hosts
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.runtime.memory import TooLarge
from ssdd_jax.settings.digest import digest, json_ready
from ssdd_jax.settings.evaluation import RECIPES
from ssdd_jax.settings.methods import AUTO_STEPS
from ssdd_jax.settings.spec import EvaluationSpec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.student import Compiled, get_student, pretrain

SEED = 0
"""Of all trials, whatever the seeds of the run, so that all of them have one choice."""
JUDGED_BY = 1024
"""Training images, at most a tenth of them, on which trials are judged; their sets are made of the others."""
RECIPE = {"representation": replace(RECIPES["representation"], schedule="cosine")}
"""Of a trial's student. A constant rate leaves noise in the last update that is as large as what trials are to tell apart."""


def choose_settings(context: Context, method_run: Callable[..., Any]) -> None:
    """Choose the settings of the chosen methods that leave some to trials, unless an earlier attempt has; see `Context.chosen`.

    Args:
        context: of the run.
        method_run: `ssdd_jax.stages.distill.MethodRun`, which does the trials as it does the distillations.

    Raises:
        InputError: no trial was possible.
    """
    for name in context.methods:
        spec = context.spec.methods[name]
        method = METHODS[spec.kind]
        if method.is_automatic(spec):
            trials = _Trials(context, name, method_run)
            sizes = context.sizes(context.shifts if TEACHER in method.needs else {})
            chosen = method.choose(spec, replace(sizes, num_train=len(trials.others)), trials.error, context.spec.trials.most)
            if refusal := trials.found[digest(chosen)].get("refused"):
                raise InputError(
                    f"config.methods.{name} has settings to be chosen, but none of {len(trials.found)} trials was possible, the last one "
                    f"because: {refusal}; set them by hand, see docs/protocols.md"
                )
            context.chosen[name] = chosen
            context.choice_seconds[name] = sum(trial.get("seconds", 0.0) for trial in trials.found.values())
            context.display.print(f"{name}: chosen after {len(trials.found)} trials: {trials.describe(chosen)}")


class _Trials:
    """The trials of one method; each is kept on disk as soon as it is over, so that an interrupted choice goes on."""

    def __init__(self, context: Context, name: str, method_run: Callable[..., Any]):
        self.context, self.name, self.method_run = context, name, method_run
        self.folder = context.checkpoints / f"choice-{name}-{context.distilled_digest(name)}"
        self.file = self.folder.with_suffix(".json")
        self.earlier = self._read()
        self.found: dict[str, dict[str, Any]] = {}
        self.compiled = Compiled()

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return the trials of earlier attempts."""
        try:
            return json.loads(self.file.read_text()) if self.file.is_file() else {}
        except ValueError:
            self.context.display.print(f"warning: {self.file} is damaged; the trials of {self.name} are made again")
            return {}

    @cached_property
    def judged(self) -> np.ndarray:
        """Return the training images that trials are judged by, integers "k"; two or more, since the variance of one is zero."""
        total = len(self.context.data.train_images)
        return np.unique(np.linspace(0, total - 1, min(JUDGED_BY, max(2, -(-total // 10)))).astype(int))

    @cached_property
    def others(self) -> np.ndarray:
        """Return the training images that the sets of trials are made of, integers "k"."""
        return np.setdiff1d(np.arange(len(self.context.data.train_images)), self.judged)

    def error(self, spec: Any) -> float:
        """Return the error of a student of a set with some settings; infinite where they are impossible."""
        key = digest(spec)
        trial = self.found[key] = self.earlier.get(key) or {"settings": self._changed(spec), **self._run(spec, self.folder / key)}
        if hosts.is_writer() and key not in self.earlier:
            # What did not fit into memory may fit next time.
            kept = {name: found for name, found in self.found.items() if not found.get("too_large")}
            write_json(self.file, {**self.earlier, **kept})
            shutil.rmtree(self.folder, ignore_errors=True)
        outcome = trial.get("refused") or f"{trial['images']} images, error {trial['error']:.4f}"
        self.context.display.print(f"{self.name}, trial {len(self.found)}: {self.describe(spec)}: {outcome}")
        return float(hosts.agree(trial.get("error", inf)))

    def describe(self, spec: Any) -> str:
        """Return in words what was left to the trials."""
        words = lambda value: "+".join(value) if isinstance(value, tuple | list) else str(value)
        return ", ".join(f"{name}={words(value)}" for name, value in self._changed(spec).items())

    def _changed(self, spec: Any) -> dict[str, Any]:
        asked = self.context.spec.methods[self.name]
        return {f.name: json_ready(value) for f in fields(spec) if (value := getattr(spec, f.name)) != getattr(asked, f.name)}

    def _run(self, spec: Any, folder: Path) -> dict[str, Any]:
        """Return the number of images, the error and the seconds that it took, or why there is none."""
        context, trials, started = self.context, self.context.spec.trials, time.monotonic()
        # What all trials share is computed once, before the context is copied.
        _ = context.teacher, context.learners, context.real, context.train_images, context.real_targets
        steps, of_run, evaluation = num_steps(context.spec, spec), context.spec, EvaluationSpec(updates=trials.updates, recipes=RECIPE)
        # Whether steps pay shows in as many as the set would take, of the same pool; sizes are ranked by fewer, and by none.
        if not (steps and context.spec.methods[self.name].steps == AUTO_STEPS):
            spec = replace(spec, steps=trials.steps if steps else 0)
            pool = replace(of_run.pool, size=trials.pool_size, members_per_step=1)
            of_run = replace(of_run, pool=pool, checkpoints=replace(of_run.checkpoints, every=0))
        trial = copy.copy(context)
        trial.spec = replace(of_run, methods={self.name: spec}, only="", evaluation=evaluation)
        trial.chosen, trial.metrics = {}, Metrics(folder / "metrics.jsonl")
        # Half a trial says nothing, so a stop ends the choice.
        trial.given = replace(context.given, partial=False)
        # The copy has its own, for other settings of checkpoints.
        trial.__dict__.pop("saving", None)
        if hosts.is_writer():
            folder.mkdir(parents=True, exist_ok=True)
        try:
            run = self.method_run(trial, self.name, self.others)
            (state,), seconds_before, _ = run.states([SEED], folder)
            error = self._error_of_student(trial, run.method.finish(run.spec, run.plan, run.inputs, state), folder)
        except TooLarge as refusal:
            return {"refused": str(refusal), "too_large": True}
        except (InputError, NumericalError) as refusal:
            return {"refused": str(refusal)}
        if not isfinite(error):
            return {"refused": f"the error of its student on {len(self.judged)} training images is {error}"}
        return {"images": run.plan.num_images, "error": error, "seconds": round(time.monotonic() - started + seconds_before, 1)}

    def _error_of_student(self, trial: Context, finished: Finished, folder: Path) -> float:
        """Return the error of a student of a set in predicting the representations of the images that trials are judged by."""
        images, targets = map(np.concatenate, expand(quantise(finished.distilled, finished.facts["bits"])))
        student = get_student(trial, self.compiled, trial.spec.student.net, trial.width, "representation")
        (variables,) = pretrain(trial, student, f"trial of {self.name}", folder, [SEED], [Pairs(images, targets, {})])
        data, rows = trial.data, self.judged
        _, outputs = in_batches(lambda batch: student.encode(variables, batch, data.mean, data.std), data.train_images[rows])
        return float(repr_error(jnp.asarray(outputs), jnp.asarray(trial.reprs("train")[rows])))
