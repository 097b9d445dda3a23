"""The command line of what takes a recipe: what is wrong with it becomes one line."""

import contextlib
import io
import sys
from collections.abc import Callable

from absl import flags

_RAISED = (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)


def parse(argv: list[str], look: Callable[[], object]) -> list[str]:
    """Parse the command line, or end with one line that says what is wrong.

    ml_collections reports an unknown field as an AttributeError with the nearest name, and a
    recipe that fails to load as an error around the real one.

    Args:
      argv: of the command.
      look: reads the flags, as ml_collections fails at the first look at a config; what is left
        out it can say itself, by ``sys.exit``.
    """
    try:
        # ml_collections prints a traceback of its own.
        with contextlib.redirect_stderr(io.StringIO()):
            rest = flags.FLAGS(argv)
            look()
    except (flags.Error, *_RAISED) as error:
        text = str(error).strip("'\"").replace("\\'", "").replace("\\n", "\n")
        lines = [line.strip() for line in text.split("\n")]
        telling = ("Error: ", "Did you mean", "No such file")
        said = [line for line in lines if any(words in line for words in telling)][:2]
        if isinstance(error, AttributeError):
            said = [f"the config has no field {lines[0]}", *said]
        sys.exit("error: " + ". ".join(said or lines[:1]).replace("'\"", "").strip("\"'"))
    if len(rest) > 1:
        sys.exit(f"error: unexpected argument {rest[1]!r}; options are written --name=value")
    return rest
