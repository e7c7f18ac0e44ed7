"""One style of flags for all commands: `--batch-size` and `--batch_size` are the same flag.

argparse's flags are written with dashes and absl's with underscores; each command takes both.
"""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence


def accept_underscores(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Lets a parser take its long flags with underscores, too; --help shows those with dashes.

    Args:
        parser: has all its flags already.

    Returns:
        The same parser.
    """
    # Shared by the parser and its groups. It is private, but argparse has no public way to add a
    # name to a flag, and a second flag would neither exclude what the first one excludes nor count
    # as given where the first one is required.
    names = parser._option_string_actions
    for name, action in list(names.items()):
        if name.startswith("--"):
            names.setdefault(f"--{name[2:].replace('-', '_')}", action)
    return parser


def absl_arguments(arguments: Sequence[str], *, booleans: Container[str] = ()) -> list[str]:
    """The arguments as absl takes them: names of flags with underscores.

    Values, and what follows `--`, stay as they are.

    Args:
        arguments: with or without the command itself.
        booleans: flags whose `--no-NAME` absl spells `--noNAME`.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return [*(_absl_argument(word, booleans) for word in arguments[:end]), *arguments[end:]]


def _absl_argument(word: str, booleans: Container[str]) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    if name.startswith("no_") and name.removeprefix("no_") in booleans:
        name = f"no{name.removeprefix('no_')}"
    return f"--{name}{equals}{value}"
