"""What the commands have in common: sizes, and errors that are one line."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence


def parse_size(text: str) -> tuple[int, int]:
    """``"192x256"`` to (192, 256), height first.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH with both at least 32, as in 192x256")
    return int(match.group(1)), int(match.group(2))


def command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parses and runs; an error of the user's is one line on stderr and exit code 2, Ctrl-C is 130."""
    args = parser.parse_args(argv)
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
