"""Exceptions of the library, and the wording of their messages."""

import difflib
import urllib.error
from collections.abc import Iterable


class WeightsError(ValueError):
    """Weights that cannot be found, downloaded, read or fitted to a model.

    Attributes:
        problem: the message without the advice.
        advice: what to do in Python, the end of the message; "" if there is none.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem, self.advice = problem, advice


class DatasetError(ValueError):
    """A data set that cannot be read, or is not what was expected."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return the end of an error message about an unknown ``name``: the closest choices, or all of them."""
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + ", ".join(map(repr, close)) + "?"
    return "there are: " + (", ".join(names) if names else "none")


def one_line(error: BaseException) -> str:
    """Return the cause of an exception in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return one_line(error.reason)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def reworded(error: Exception, text: str) -> Exception:
    """Return an exception of the same type that says ``text``."""
    for kind in type(error).__mro__:
        try:
            return kind(text)
        except TypeError:  # some exceptions, as UnicodeDecodeError, take other arguments
            continue
    return error
