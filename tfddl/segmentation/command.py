"""What the application's commands share: --help, the configuration from flags, how they exit."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags

from tfddl import __version__
from tfddl._src.command_line import absl_arguments
from tfddl._src.launcher.environment import is_worker
from tfddl.errors import TfddlError, UnsupportedError

Config = TypeVar("Config")


def run(name: str, main: Callable[[Sequence[str]], None], *, module: str) -> None:
    """Parses the flags and calls `main`; --help and --version end the command instead.

    Args:
        name: Of the command.
        main: Takes the arguments that are left after the flags.
        module: The ``__name__`` of the module that defines or adopts the flags.
    """
    own = flags.FLAGS.get_key_flags_for_module(module)
    # absl lists in --help the flags of the module that runs as a script. That of an installed
    # command is a generated file without flags.
    for flag in own:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    booleans = {flag.name for flag in own if flag.boolean}
    try:
        arguments = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
    except flags.Error:  # absl says what is wrong with --flagfile when it parses the flags.
        arguments = sys.argv
    arguments = absl_arguments(arguments, booleans=booleans)
    if "--help" in arguments:  # With absl's own exit status a launcher would report a failure.
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    if "--version" in arguments:
        sys.stdout.write(f"{name} {__version__}\n")
        sys.exit(0)
    app.run(main, argv=arguments)


def execute(name: str, argv: Sequence[str], action: Callable[[], None]) -> None:
    """Runs a command; one of tfddl's errors ends it with its message and exit status 1.

    Args:
        name: Of the command, for the message.
        argv: The arguments that are left after the flags: the program's name and nothing else.
        action: All that the command does.

    Raises:
        absl.app.UsageError: There are other arguments.
    """
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    # TensorFlow logs its start to stderr itself; absl's handler would print it a second time.
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    try:
        action()
    except TfddlError as error:
        sys.exit(f"{name}: {type(error).__name__}: {error}")


def config_from_flags(kind: type[Config], **parsers: Callable[[Any], Any]) -> Config:
    """A configuration whose fields are the parsed flags of the same names.

    Args:
        kind: A dataclass.
        **parsers: By field, what turns the flag's value (text, or None) into the field's.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    parsed = {name: parse(values[name]) for name, parse in parsers.items()}
    return kind(**{**values, **parsed})


def progress_kind(given: str | None) -> str:
    """How progress is shown: as --progress says, or as it can be.

    `tfddlrun` makes lines of a bar where its own output isn't a terminal.
    """
    if given is not None:
        return given
    return "bar" if sys.stdout.isatty() or is_worker(os.environ) else "lines"


def local_path(text: str) -> Path:
    """The path of a flag that has to be on this machine.

    Raises:
        UnsupportedError: It is a URL.
    """
    if "://" in text:
        raise UnsupportedError(
            f"A flag has {text!r}; expected a path on this machine: only --checkpoint_dir and "
            "--tensorboard_dir may be URLs. HINT: mount the store, or copy from and to it."
        )
    return Path(text)


def path_or_url(text: str) -> Path | str:
    """The path of a flag that may also be a URL, which `Path` can't hold."""
    return text if "://" in text else Path(text)
