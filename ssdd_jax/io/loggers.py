"""Loggers: where lines of metrics go besides metrics.jsonl. One that fails never ends a run.

A logger is added by a maker, `(workdir, name, settings) -> Logger`, in `ssdd_jax.registry.LOGGERS`; `config.logger` names those of a run.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ssdd_jax.registry import LOGGERS
from ssdd_jax.terminal import say

LogFn = Callable[[str, int, dict[str, Any]], None]
"""Takes a line as (stage, step, values); values are numbers, or lists with one number per seed."""
MakeLogger = Callable[[Path, str, dict[str, Any]], "Logger"]
"""Takes (workdir, name, settings), that is the folder of the run, `config.name`, and all settings as JSON values; returns a logger."""


class Logger(Protocol):
    """What a maker returns. A run that is continued in its workdir makes another one, and may repeat lines that were logged before."""

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Pass on one line."""
        ...

    def close(self) -> None:
        """Finish: the run is over, for whatever reason."""
        ...


class Loggers:
    """Several loggers as one, each made at the first line. One that raises is reported once and not called again.

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

    def close(self) -> None:
        """Close those that were made and have not raised."""
        for name in list(self._makers):
            self._try(name, getattr(self._loggers.get(name), "close", lambda: None))

    def _made(self, name: str) -> LogFn:
        if name not in self._loggers:
            self._loggers[name] = self._makers[name]()
        return self._loggers[name]

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # it is not ours, and may raise anything
            self._makers.pop(name)
            which, reason = f"logger {name}".strip(), " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"warning: the {which} raised {reason}; the run goes on without it")


def make_loggers(
    names: Iterable[str], workdir: Path, name: str, settings: dict[str, Any], extra: LogFn | None = None, warn: Callable[[str], None] = say
) -> Loggers:
    """Return the named loggers of a run, together with the caller's own function if there is one."""
    makers: dict[str, Callable[[], LogFn]] = {} if extra is None else {"": lambda: extra}
    makers |= {chosen: lambda chosen=chosen: LOGGERS[chosen](workdir, name, settings) for chosen in names}
    return Loggers(makers, warn)


class _Console:
    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        say(f"{stage} {step}: " + ", ".join(f"{key} {_short(value)}" for key, value in values.items()))

    def close(self) -> None:
        pass


def make_console(workdir: Path, name: str, settings: dict[str, Any]) -> Logger:
    """Return a logger that prints every line."""
    return _Console()


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
