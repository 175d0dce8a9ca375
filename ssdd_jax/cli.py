"""The command line: `python -m ssdd_jax.main --config NAME[:VARIANT] --workdir DIR [--task=TASK] [--config.key=value ...]`."""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Literal

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssdd_jax.errors import InputError, Status, nearest
from ssdd_jax.paths import local_path
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.published import NONE, NOTHING_SAID, SetFacts
from ssdd_jax.settings.spec import RunSpec

USAGE = f"""{__doc__}

--config   a shipped config by name, or a config file by path; VARIANT, such as smoke, is passed to it
--workdir  folder of the run's outputs; an interrupted run goes on there; for compare given several times
--config.key=value  changes a setting, e.g. --config.num_pairs=20 --config.only=krr_st,ours
--task     all (the default): teacher, distill, evaluate, report; or one of
             teacher   pretrain the teacher
             distill   make the teacher, then the distilled sets
             evaluate  evaluate the sets in the workdir, or those of --set
             report    write the report of results.json again; needs no --config
             compare   write one report of the results in several workdirs into --output; needs no --config
             export    write the sets in the workdir, or those of --set, as plain files; needs no --config
             push      send the set in the workdir, or that of --set, which may also be the folder of a teacher, to
                       the Hugging Face Hub as --repo; needs no --config
             verify    check every byte of the sets, exports, checkpoints and representations in the workdir, or
                       those of --set, against their digests; needs no --config
--set      folder of a distilled set, or for evaluate and verify also of an export; for evaluate also a published
           file of DC, DSA, DM, IDM, MTT, DATM, KIP or FRePo (.pt, .npz); may be given several times
           What a published file does not say:
--set_normalization  what its images were normalised with: a dataset of the literature (cifar10), pixels, or MEANS/STDS
--set_targets  what its targets are, unless integers: labels or logits
--set_views    mosaic for images that stand for their four quadrants (IDM), or none
--set_zca      none, or an .npz file with the mean and the inverse of the whitening of its images
--format   format of the export: safetensors (the default), npz, png, pt (PyTorch), ddranking (for DD-Ranking and DC-BENCH) or
           hf (the folder of a repository on the Hugging Face Hub)
--repo     USER/NAME, the repository that push sends to; --private makes a new one private
--licence  that of the source images as the Hub spells it (cc-by-4.0, mit, other, unknown), for push and --format=hf
--output   folder that compare writes its report into: compare (the default)
--accept_changes  go on in a workdir that was begun with other settings; whatever depends on them is made again
--distributed  start one process per host (or device) with the same command: auto on a TPU pod, under Slurm or Open MPI,
           elsewhere HOST:PORT,NUM,ID: the address of process 0, how many processes, and which of them this is
--debug    show the traceback of an error
exit status
{{statuses}}
shipped configs: {{configs}}"""

TASKS = ("all", "teacher", "distill", "evaluate", "report", "compare", "export", "push", "verify")
WITHOUT_CONFIG = ("report", "compare", "export", "push", "verify")
WITH_SETS = ("evaluate", "export", "push", "verify")

# HOST:PORT of process 0, the number of processes, and the index of this one.
Address = tuple[str, int, int]


@dataclass(frozen=True)
class Command:
    """What the command line asks for.

    The settings are None for tasks that need none. `workdir` is the folder that is written to, `compared` are the runs to compare.
    """

    spec: RunSpec | None
    workdir: Path
    task: str
    sets: tuple[Path, ...]
    format: str
    accept_changes: bool = False
    distributed: Address | Literal["auto"] | None = None
    facts: SetFacts = NOTHING_SAID
    repo: str | None = None
    licence: str | None = None
    private: bool = False
    compared: tuple[Path, ...] = ()


def usage() -> str:
    """Return what --help prints."""
    statuses = "\n".join(f"  {status:<9}{status.meaning}" for status in Status)
    return USAGE.format(statuses=statuses, configs=", ".join(shipped_configs()))


def config_folder() -> Path:
    """Return the folder of the shipped configs: inside an installed package, or next to it in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def shipped_configs() -> list[str]:
    """Return the names of the shipped configs."""
    return sorted(file.stem for file in config_folder().glob("*.py") if file.stem != "__init__")


def resolve_config(value: str) -> str:
    """Return NAME[:VARIANT] or PATH[:VARIANT] as PATH[:VARIANT]."""
    name, colon, variant = value.partition(":")
    if Path(name).is_file():
        return value
    shipped = config_folder() / f"{name.removesuffix('.py')}.py"
    if Path(name).name == name and shipped.is_file():
        return f"{shipped}{colon}{variant}"
    names = shipped_configs()
    raise InputError(f"--config {name}: no such file or shipped config; shipped are {', '.join(names)}{nearest(Path(name).stem, names)}")


def load_config(source: str) -> ConfigDict:
    """Return what get_config of a config file returns, given NAME[:VARIANT] or PATH[:VARIANT].

    Its folder is on the path meanwhile, so that it may import the files next to it.

    Raises:
        InputError: there is no such file, or it does not return a ConfigDict.
    """
    path, colon, variant = resolve_config(source).partition(":")
    file = Path(path).resolve()
    before = set(sys.modules)
    sys.path.insert(0, str(file.parent))
    try:
        module = ModuleType(file.stem)
        module.__file__ = str(file)
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise InputError(f"the config file {path} has no function get_config(variant=''); define one that returns a ConfigDict")
        config = get_config(variant) if colon else get_config()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # anything that a config file raises is its own fault: one line, not a traceback
        raise InputError(f"--config {source}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path.remove(str(file.parent))
        # Another config's neighbours may have the same names.
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == file.parent:
                del sys.modules[name]
    if not isinstance(config, Mapping | ConfigDict):
        raise InputError(f"get_config of {path} returned {type(config).__name__}, expected a ConfigDict; add `return config` to it")
    # A frozen one could not be changed by flags, and flags know no numbers but Python's.
    return ConfigDict(json_ready(config.to_dict() if isinstance(config, ConfigDict) else config, tuples=True))


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of --config, if it is given, and the other arguments."""
    source, args, left = None, [], list(argv)
    while left:
        arg = left.pop(0)
        if arg == "--config" and left:
            source = left.pop(0)
        elif arg.startswith("--config="):
            source = arg.removeprefix("--config=")
        else:
            args.append(arg)
    return source, args


def parse(argv: Sequence[str]) -> Command:
    """Return what the command line asks for.

    Raises:
        InputError: an argument is missing, unknown or out of range.
    """
    source, args = _take_config(argv)
    loaded = None if source is None else load_config(source)
    values = flags.FlagValues()
    workdir_flag = flags.DEFINE_multi_string("workdir", [], "workdir", flag_values=values)
    output_flag = flags.DEFINE_string("output", None, "output", flag_values=values)
    task_flag = flags.DEFINE_string("task", "all", "task", flag_values=values)
    set_flag = flags.DEFINE_multi_string("set", [], "set", flag_values=values)
    fact_flags = {field.name: flags.DEFINE_string(f"set_{field.name}", None, "set", flag_values=values) for field in fields(SetFacts)}
    format_flag = flags.DEFINE_string("format", None, "format", flag_values=values)
    repo_flag = flags.DEFINE_string("repo", None, "repo", flag_values=values)
    licence_flag = flags.DEFINE_string("licence", None, "licence", flag_values=values)
    private_flag = flags.DEFINE_bool("private", False, "private", flag_values=values)
    accept_flag = flags.DEFINE_bool("accept_changes", False, "accept_changes", flag_values=values)
    distributed_flag = flags.DEFINE_string("distributed", None, "distributed", flag_values=values)
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        # Whatever it warns about is an error below.
        logger.setLevel(logging.CRITICAL)
        # It looks for changes of settings in the arguments that it is given.
        settings = dict(flag_values=values, sys_argv=["ssdd_jax", *args])
        config_flag = config_flags.DEFINE_config_dict("config", ConfigDict() if loaded is None else loaded, "config", **settings)
        rest = values(["ssdd_jax", *args])[1:]
        config = None if loaded is None else config_flag.value
    except flags.UnrecognizedFlagError as error:
        raise InputError(f"{' '.join(str(error).split())}; settings follow --config and read --config.section.key=value") from error
    except (Exception, SystemExit) as error:
        raise InputError(_flag_error(error)) from error
    finally:
        logger.setLevel(level)
    if rest:
        raise InputError(f"stray argument {rest[0]!r}, expected --config.key=value; did you forget the dashes?")
    task = task_flag.value
    if task not in TASKS:
        raise InputError(f"--task is {task!r}, expected one of {', '.join(TASKS)}{nearest(str(task), TASKS)}")
    if set_flag.value and task not in WITH_SETS:
        raise InputError(f"--set is for --task={', '.join(WITH_SETS)}, the task is {task}; drop one of them")
    facts = _facts({name: flag.value for name, flag in fact_flags.items()})
    if facts.given and (task != "evaluate" or not set_flag.value):
        raise InputError(f"--set_{facts.given[0]} is for --task=evaluate with --set, the task is {task}; drop it, or add --set")
    if format_flag.value and task != "export":
        raise InputError(f"--format is for --task=export, the task is {task}; drop one of them")
    publishes = task == "push" or (task == "export" and format_flag.value == "hf")
    for name, given, wanted in (("repo", repo_flag.value, task == "push"), ("private", private_flag.value or None, task == "push")):
        if given is not None and not wanted:
            raise InputError(f"--{name} is for --task=push, the task is {task}; drop one of them")
    if licence_flag.value is not None and not publishes:
        raise InputError(f"--licence is for --task=push and --format=hf, the task is {task}; drop it")
    if output_flag.value is not None and task != "compare":
        raise InputError(f"--output is for --task=compare, the task is {task}; drop one of them")
    distributed = None if distributed_flag.value is None else _distributed(distributed_flag.value)
    if distributed is not None and task in WITHOUT_CONFIG:
        raise InputError(f"--distributed is not for --task={task}, which one process does; drop one of them")
    needs_config = task not in WITHOUT_CONFIG
    if (needs_config and config is None) or not workdir_flag.value:
        missing = "--config" if needs_config and config is None else "--workdir"
        raise InputError(f"{missing} is missing; e.g. python -m ssdd_jax.main --config digits --workdir runs/digits")
    sets = tuple(_path("--set", path) for path in set_flag.value)
    spec = to_spec(config) if config is not None else None
    workdirs, fmt = [_path("--workdir", path) for path in workdir_flag.value], format_flag.value or "safetensors"
    compared = tuple(workdirs) if task == "compare" else ()
    if compared:
        workdirs = [_path("--output", "compare" if output_flag.value is None else output_flag.value)]
    if len(workdirs) > 1:
        raise InputError(f"--workdir is given {len(workdirs)} times, which is for --task=compare, the task is {task}; give it once")
    published = repo_flag.value, licence_flag.value, private_flag.value
    return Command(spec, workdirs[0], task, sets, fmt, accept_flag.value, distributed, facts, *published, compared)


def _facts(given: Mapping[str, str | None]) -> SetFacts:
    zca = given["zca"]
    path = zca if zca in (None, "", NONE) else str(local_path(zca, "--set_zca"))
    return SetFacts(**{**given, "zca": path})


def _distributed(text: str) -> Address | Literal["auto"]:
    if text == "auto":
        return "auto"
    match = re.fullmatch(r"(\S+:(\d+)),(\d+),(\d+)", text)
    if match is None or not (0 < int(match[2]) < 2**16 and int(match[4]) < int(match[3])):
        raise InputError(
            f"--distributed is {text!r}, expected auto, or HOST:PORT,NUM,ID with ID from 0 to NUM - 1; e.g. --distributed=10.0.0.1:7000,2,0"
        )
    return match[1], int(match[3]), int(match[4])


def _path(flag: str, text: str) -> Path:
    if not text:
        raise InputError(f"{flag} is empty, expected a folder; {flag}=. is the current one")
    return local_path(text, flag)


def _flag_error(error: BaseException) -> str:
    """Return one line for any error from setting a key of the config or another flag."""
    # A KeyError shows its message as a literal.
    text = " ".join(str(error).replace("\\'", "'").replace("\\n", "\n").split())
    key, hint = re.search(r"'(\w+)'", text), re.search(r'Did you mean "(\w+)"', text)
    if isinstance(error, AttributeError | KeyError) and key:
        return f"the config has no key {key[1]!r}" + (f"; did you mean {hint[1]!r}?" if hint else "")
    return f"{type(error).__name__}: {text}"
