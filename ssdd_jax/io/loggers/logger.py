"""The interface of a logger, and several as one: a logger that fails never ends a run.

A logger is added by a maker, `(workdir, name, settings) -> Logger`, in `ssdd_jax.registry.LOGGERS`; `config.logger` names those of a run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ssdd_jax.errors import InputError
from ssdd_jax.registry import LOGGERS
from ssdd_jax.terminal import say

LogFn = Callable[[str, int, dict[str, Any]], None]
"""Takes a line as (stage, step, values); values are numbers, or lists with one number per seed."""
MakeLogger = Callable[[Path, str, dict[str, Any]], "Logger"]
"""Takes (workdir, name, settings), that is the folder of the run, `config.name`, and all settings as JSON values; returns a logger."""


class Logger(Protocol):
    """What a maker returns. A run that is continued in its workdir makes another one, and may repeat lines that were logged before.

    A logger may also have either of two further methods, and is called with what it has:

    - `picture(stage, step, name, picture)`: a PIL image of a set's images or bases, at every checkpoint and of the finished set. Nothing
      is drawn unless a logger has it.
    - `table(title, header, rows)`: a table of the results, as text, once they are complete.
    """

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Pass on one line."""
        ...

    def close(self) -> None:
        """Finish: the run is over, for whatever reason."""
        ...


class Loggers:
    """Several loggers as one, each made when something comes. One that raises is reported once and not called again.

    Args:
        makers: functions without arguments that return a logger, by name; a plain function with no `close` will do.
        warn: is called with a line for each logger that raises.
    """

    def __init__(self, makers: Mapping[str, Callable[[], LogFn]], warn: Callable[[str], None] = say):
        self._makers, self._warn = dict(makers), warn
        self._loggers: dict[str, LogFn] = {}

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Pass a copy of one line to each."""
        for name in list(self._makers):
            self._try(name, lambda name=name: self._made(name)(stage, step, dict(values)))

    def picture(self, stage: str, step: int, name: str, draw: Callable[[], Image.Image]) -> None:
        """Draw a picture, once, for the loggers that take pictures; it is not drawn if there are none."""
        takers = self._with("picture")
        if takers:
            try:
                picture = draw()
            except Exception as error:  # a picture is not worth losing a run
                self._warn(f"warning: no picture {name} of {stage}: {_in_one_line(error)}")
            else:
                self._pass_on(takers, stage, step, name, picture)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Pass a table to the loggers that take tables."""
        self._pass_on(self._with("table"), title, header, rows)

    def close(self) -> None:
        """Close those that were made and have not raised."""
        for name in list(self._makers):
            self._try(name, getattr(self._loggers.get(name), "close", lambda: None))

    def _made(self, name: str) -> LogFn:
        if name not in self._loggers:
            self._loggers[name] = self._makers[name]()
        return self._loggers[name]

    def _with(self, method: str) -> dict[str, Callable[..., None]]:
        """Return a method of the loggers that have it, by their names."""
        for name in list(self._makers):
            self._try(name, lambda name=name: self._made(name))
        return {name: getattr(self._loggers[name], method) for name in self._makers if hasattr(self._loggers[name], method)}

    def _pass_on(self, methods: Mapping[str, Callable[..., None]], *args: Any) -> None:
        for name, method in methods.items():
            self._try(name, lambda method=method: method(*args))

    def _try(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # it is not ours, and may raise anything
            self._makers.pop(name)
            which = f"logger {name}".strip()
            self._warn(f"warning: the {which} raised {_in_one_line(error)}; the run goes on without it")


def make_loggers(
    names: Iterable[str], workdir: Path, name: str, settings: dict[str, Any], extra: LogFn | None = None, warn: Callable[[str], None] = say
) -> Loggers:
    """Return the named loggers of a run, together with the caller's own function if there is one.

    Raises:
        InputError: the library of one is not installed.
    """
    makers: dict[str, Callable[[], LogFn]] = {} if extra is None else {"": lambda: extra}
    for chosen in names:
        make = _maker(chosen)
        makers[chosen] = lambda make=make: make(workdir, name, settings)
    return Loggers(makers, warn)


def _maker(name: str) -> MakeLogger:
    try:
        return LOGGERS[name]
    except ImportError as error:
        missing = f"{error.name or error}, which is not installed"
        raise InputError(f"config.logger names {name!r}, which needs {missing}; run: pip install ssdd-jax[{name}]") from error


def stage_and_seeds(stage: str) -> tuple[str, list[str]]:
    """Split the name of a stage that several seeds share.

    Example:
        >>> stage_and_seeds("distill/ours/seeds_0_2")
        ('distill/ours', ['seed_0', 'seed_2'])
        >>> stage_and_seeds("teacher")
        ('teacher', [])
    """
    stage, found, seeds = stage.partition("/seeds_")
    return stage, [f"seed_{seed}" for seed in seeds.split("_")] if found else []


def scalars(stage: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line by name, one per seed.

    A seed's curve has the same name whether it ran alone or together with others.

    Example:
        >>> scalars("distill/ours/seeds_0_2", {"loss": [0.5, 0.25]})
        {'distill/ours/loss/seed_0': 0.5, 'distill/ours/loss/seed_2': 0.25}
        >>> scalars("teacher", {"loss": [0.5]})
        {'teacher/loss': 0.5}
    """
    stage, seeds = stage_and_seeds(stage)
    found = {}
    for key, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        endings = [f"/{seed}" for seed in seeds] or ([""] if len(numbers) == 1 else [f"/{i}" for i in range(len(numbers))])
        found |= {f"{stage}/{key}{ending}": number for ending, number in zip(endings, numbers, strict=True)}
    return found


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return settings by their paths, lists as text, for what takes no nested ones.

    Example:
        >>> flat_settings({"outer": {"steps": 5}, "seeds": [0, 1]})
        {'outer.steps': 5, 'seeds': '[0, 1]'}
    """
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
