"""The program: `python -m ssdd_jax.main --help` says how it is called."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ssdd_jax.cli import Command, parse, usage
from ssdd_jax.errors import InputError, Status, storage_error
from ssdd_jax.terminal import escape_unknown_letters, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, one of `Status`."""
    # LAPACK's and XLA's threads compete for the cores: factorizing a few hundred rows is faster with one thread.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"--help", "-h"} & set(argv):
        say(usage())
        return Status.DONE
    debug = "--debug" in argv
    escape_unknown_letters()
    try:
        return _run(parse([arg for arg in argv if arg != "--debug"]), debug)
    except InputError as error:
        return _report(error, debug)
    except OSError as error:
        failed = storage_error(error)
        if failed is None:
            raise
        return _report(failed, debug, error)


def _run(command: Command, debug: bool) -> int:
    # At once: importing jax and compiling the first program take seconds in which there is nothing to show. One process of several says it.
    if command.distributed is None or command.distributed[2] == 0:
        say(f"{command.spec.name if command.spec else 'ssdd_jax'}: {command.task}, in {command.workdir}")
    from ssdd_jax.runtime import hosts, stop  # from here on jax is needed
    from ssdd_jax.runtime.allocation import keep_memory
    from ssdd_jax.runtime.health import NumericalError

    keep_memory()
    if command.distributed is not None and command.spec is not None:
        where = None if command.distributed == "auto" else command.distributed
        hosts.connect(where, command.spec.devices.heartbeat_s)
    try:
        with stop.on_signals():
            _execute(command)
    except stop.Stopped as stopped:
        say(stopped, "stderr")
        return _leave(Status.STOPPED, str(stopped))
    except NumericalError as error:
        return _report(error, debug)
    except Exception as error:
        if isinstance(error, InputError | OSError):
            raise
        lost = hosts.lost(error)
        if lost is not None:
            return _report(lost, debug, error)
        if command.distributed is not None:
            traceback.print_exc()
            _leave(Status.ERROR, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        raise
    return Status.DONE


def _execute(command: Command) -> None:
    if command.task == "verify":
        from ssdd_jax.stages.verify import verify

        verify(command.workdir, command.sets)
        return
    from ssdd_jax.stages import pipeline

    if command.task == "export":
        pipeline.export(command.workdir, command.format, command.sets, command.licence)
    elif command.task == "push":
        pipeline.push(command.workdir, command.repo, command.licence, command.sets, command.private)
    elif command.task == "compare":
        pipeline.compare(command.compared, command.workdir)
    elif command.spec is None or command.task == "report":
        pipeline.report(command.workdir)
    else:
        pipeline.run(command.spec, command.workdir, command.task, command.sets, facts=command.facts, accept_changes=command.accept_changes)


def _report(error: Any, debug: bool, cause: BaseException | None = None) -> int:
    if debug:
        raise error from cause
    say(f"error: {error}", "stderr")
    return _leave(error.status, f"error: {error}")


def _leave(status: int, line: str) -> int:
    """Return the exit status, or end at once if other processes of the run have to be stopped."""
    hosts = sys.modules.get("ssdd_jax.runtime.hosts")
    if hosts is not None:
        hosts.leave(status, line)
    return status


if __name__ == "__main__":
    sys.exit(main())
