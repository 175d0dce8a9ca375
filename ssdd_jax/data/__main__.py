"""Check, prepare and download datasets: `python -m ssdd_jax.data {check,prepare,download} SOURCE`."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ssdd_jax.data.check import check, contact_sheet
from ssdd_jax.data.decode import FITS
from ssdd_jax.data.download import download
from ssdd_jax.data.prepare import open_prepared, prepare, read_prepared_manifest
from ssdd_jax.data.sources import KINDS, NAMED, open_source
from ssdd_jax.data.splits import Options
from ssdd_jax.errors import InputError, Status
from ssdd_jax.progress import Display

_ARGUMENTS = {"idx": "FOLDER", "arrays": "FILE", "folder": "ROOT"}
SOURCES = f"""SOURCE is one of
  {", ".join(NAMED)}
  {", ".join(f"{kind}:{_ARGUMENTS.get(kind, 'NAME')}" for kind in KINDS)}"""
# As in a shell: 128 plus the number of SIGINT.
_INTERRUPTED = 130
_MEANINGS = {**{int(status): status.meaning for status in (Status.DONE, Status.INPUT, Status.DATA)}, _INTERRUPTED: "interrupted"}
_EXIT_CODES = "exit status: " + ", ".join(f"{status} {meaning}" for status, meaning in _MEANINGS.items())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m ssdd_jax.data --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, one of `_EXIT_CODES`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    # When ended from outside, clean up as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if threading.current_thread() is threading.main_thread() else None
    try:
        return _run(_parser().parse_args([arg for arg in argv if arg != "--debug"]))
    except InputError as error:
        if debug:
            raise
        # Settings have the same names as the options.
        print(f"error: {str(error).replace('config.data.', '--')}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _run(args: argparse.Namespace) -> int:
    display = Display()
    if args.command == "download":
        download(args.source, args.data_dir, display)
        return 0
    options = Options(args.size, args.fit, args.channels, args.on_bad_image, args.ground, args.overlap)
    cache = Path(args.cache) if args.cache else None
    if args.command == "prepare":
        folder = prepare(open_source(args.source, args.data_dir), options, cache, display)
        for name, split in open_prepared(folder).splits.items():
            skipped = len((read_prepared_manifest(folder) or {})["splits"][name]["skipped"])
            display.print(f"{name}: {len(split.images):,} images" + (f", {skipped:,} skipped" if skipped else ""))
        display.print(f"prepared in {folder}")
        return 0
    report = check(args.source, args.data_dir, options, cache, display)
    display.print(report.table())
    for line in report.lines:
        display.print(line)
    if args.sheet:
        contact_sheet(open_prepared(report.folder), Path(os.path.expanduser(args.sheet)))
        display.print(f"sheet {args.sheet}")
    for warning in report.warnings:
        display.print(f"warning: {warning}")
    for problem in report.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 3 if report.problems else 0


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: --s could be --size or --sheet tomorrow.
    how = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = _Parser(prog="python -m ssdd_jax.data", description=__doc__, epilog=f"{SOURCES}\n\n{_EXIT_CODES}", **how)
    commands = parser.add_subparsers(dest="command", metavar="{check,prepare,download}", required=True)
    texts = {
        "check": "prepare a dataset and compare its contents with what is published",
        "prepare": "decode, resize and store a dataset, once and for all",
        "download": "fetch a dataset's published files into the data folder",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text, epilog=SOURCES, **how)
        command.add_argument("source", metavar="SOURCE", help="a name, or KIND:ARGUMENT")
        command.add_argument("--data_dir", default="", metavar="D", help="folder of published files; default: $SSDD_JAX_DATA or data/")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == "download":
            continue
        command.add_argument("--size", type=_count, default=0, metavar="N", help="side in pixels; default: 0, unchanged")
        command.add_argument("--fit", choices=FITS, default="crop", help="how images are brought to that size; default: crop")
        command.add_argument("--channels", type=int, choices=(0, 1, 3), default=0, help="1 or 3 converts; default: 0, unchanged")
        command.add_argument("--on_bad_image", choices=("stop", "skip"), default="stop", help="default: stop")
        ground = "what transparent images are laid on: white, black or #RRGGBB; default: white"
        command.add_argument("--ground", default="white", metavar="COLOUR", help=ground)
        overlap = "whether test images may be training images; default: refuse (at most 1 percent)"
        command.add_argument("--overlap", choices=("refuse", "allow"), default="refuse", help=overlap)
        where = "folder of prepared datasets; default: $SSDD_JAX_CACHE or ~/.cache/ssdd_jax"
        command.add_argument("--cache", default="", metavar="DIR", help=where)
        if name == "check":
            command.add_argument("--sheet", default="", metavar="FILE.png", help="write a sheet of images to look at")
    return parser


def _count(text: str) -> int:
    if not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, expected 0 or more pixels")
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative, expected 0 or more pixels")
    if int(text) > 4096:
        raise argparse.ArgumentTypeError(f"{text} is too large, expected at most 4096 pixels")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
