"""What the commands of the application have in common: their flags in --help, and how they end."""

import logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from tfddl.errors import TfddlError


def run(main: Callable[[Sequence[str]], None], *, module: str) -> None:
    """Parses the flags and calls `main`.

    Args:
        main: Takes what is left of the arguments.
        module: Where the flags are defined, by its ``__name__``.
    """
    # absl shows with --help the flags of the module that is run as a script, which for an installed
    # command is a file without flags.
    for flag in flags.FLAGS.get_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    if "--help" in sys.argv[1:]:  # With absl's own exit status a launcher would report a failure.
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    app.run(main)


def execute(name: str, argv: Sequence[str], act: Callable[[], None]) -> None:
    """Does what a command does; an error of ours ends it with its message.

    Args:
        name: Of the command.
        argv: What is left of the arguments.
        act: All that the command does.
    """
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    # What TensorFlow tells of its start; absl would print it a second time.
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    try:
        act()
    except TfddlError as error:
        sys.exit(f"{name}: {type(error).__name__}: {error}")
