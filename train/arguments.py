"""Shared by the commands: sizes, flags of a configuration, and errors in one line."""

import argparse
import dataclasses
import difflib
import importlib
import re
import sys
import tomllib
import typing
from collections.abc import Callable, Sequence
from typing import Any


def parse_size(text: str) -> tuple[int, int]:
    """Convert ``"192x256"`` to (192, 256), height first.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH with both at least 32, as in 192x256")
    return int(match.group(1)), int(match.group(2))


def parse_setting(text: str) -> tuple[str, Any]:
    """Convert ``"augment.zoom=[0.9, 1.1]"`` to ("augment.zoom", [0.9, 1.1]); a value that is not TOML is text.

    Raises:
        argparse.ArgumentTypeError: for text without "=".
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, as in augment.zoom=[0.9,1.1]")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


# Type, metavar and nargs of a flag, by the type of its field.
FLAG_TYPES: dict[Any, tuple[Callable[[str], Any], str, str | None]] = {
    int: (int, "N", None),
    float: (float, "X", None),
    str: (str, "TEXT", None),
    tuple[int, int]: (parse_size, "HxW", None),
    tuple[tuple[int, int], ...]: (parse_size, "HxW", "*"),
    tuple[float, ...]: (float, "X", "*"),
    tuple[str, ...]: (str, "NAME", "*"),
}


def add_settings(parser: "argparse._ArgumentGroup", config: type) -> None:
    """Add a flag for each field of a dataclass, described as in its docstring, and ``--set KEY=VALUE`` for its tables.

    Args:
        parser: a parser or a group of one; the value of a flag that is not given is None.
        config: the dataclass.
    """
    about = dict(re.findall(r"^ {8}(\w+): ((?:.|\n {12})+)", config.__doc__ or "", re.MULTILINE))
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        key, hint = field.name, hints[field.name]
        flag = field.metadata.get("flag", f"--{key.replace('_', '-')}")
        text = " ".join(about.get(key, "").replace("`", "").split()).replace("%", "%%")
        if hint is bool:
            parser.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, help=text)
        elif hint in FLAG_TYPES:
            kind, metavar, nargs = FLAG_TYPES[hint]
            parser.add_argument(flag, dest=key, type=kind, metavar=metavar, nargs=nargs, help=text)
    parser.add_argument(
        "--set",
        action="append",
        type=parse_setting,
        default=[],
        metavar="KEY=VALUE",
        help="any key, also of a table, as in augment.zoom=[0.9,1.1] or loss.silog=1.0; can be repeated",
    )


def import_modules(names: Sequence[str]) -> None:
    """Import modules, given by name or as files below the working directory, which register models and losses.

    Raises:
        ValueError: one cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name.removesuffix(".py").replace("/", "."))
        except Exception as error:  # whatever the module does
            raise ValueError(f"--import {name}: {type(error).__name__}: {error}") from error


def command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse arguments and run a command; return its exit code.

    An OSError or ValueError is printed as one line on stderr, with exit code 2. Ctrl-C gives 130.
    """
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = set(re.findall(r"--[a-z][\w-]*", parser.format_help()))
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    try:
        return run(args)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"{parser.prog}: error: {what}", file=sys.stderr)
        return 2
    except ValueError as error:
        problem = getattr(error, "problem", error)  # of a WeightsError: without the advice, which is Python's
        print(f"{parser.prog}: error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
