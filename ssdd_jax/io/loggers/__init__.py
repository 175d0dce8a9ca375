"""Where lines of metrics go besides metrics.jsonl: an interface, and a file per logger."""

from ssdd_jax.io.loggers.logger import LogFn, Logger, Loggers, MakeLogger, make_loggers

__all__ = ["LogFn", "Logger", "Loggers", "MakeLogger", "make_loggers"]
