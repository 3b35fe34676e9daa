"""What the commands have in common: sizes, flags of a configuration, and errors that are one line."""

import argparse
import difflib
import re
import sys
import tomllib
import typing
from collections.abc import Callable, Sequence
from typing import Any


def parse_size(text: str) -> tuple[int, int]:
    """``"192x256"`` to (192, 256), height first.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH with both at least 32, as in 192x256")
    return int(match.group(1)), int(match.group(2))


def parse_setting(text: str) -> tuple[str, Any]:
    """``"augment.zoom=[0.9, 1.1]"`` to ("augment.zoom", [0.9, 1.1]); a value that is no TOML is text.

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


# How a flag's text becomes a value, by the type of the field, and what its help shows for it.
FLAG_TYPES: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "N"),
    float: (float, "X"),
    str: (str, "TEXT"),
    tuple[int, int]: (parse_size, "HxW"),
}


def add_settings(parser: "argparse._ArgumentGroup", config: type) -> None:
    """Adds a flag for each field of a dataclass that is a number, text, a switch or a size, named as the field and
    described as in its docstring; and ``--set KEY=VALUE`` for any field, those of its tables too.

    Args:
        parser: or a group of one; a flag that is not given is None.
        config: the dataclass.
    """
    about = dict(re.findall(r"^ {8}(\w+): ((?:.|\n {12})+)", config.__doc__ or "", re.MULTILINE))
    for key, hint in typing.get_type_hints(config).items():
        flag, text = f"--{key.replace('_', '-')}", " ".join(about.get(key, "").replace("`", "").split())
        if hint is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif hint in FLAG_TYPES:
            kind, metavar = FLAG_TYPES[hint]
            parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--set",
        action="append",
        type=parse_setting,
        default=[],
        metavar="KEY=VALUE",
        help="any key, of a table as in augment.zoom=[0.9,1.1] or loss.silog=1.0; several times",
    )


def command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parses and runs; an error of the user's is one line on stderr and exit code 2, Ctrl-C is 130."""
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
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
