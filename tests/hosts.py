"""Other hosts for tests: ssh's like, a real sshd, and network namespaces."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import namespaces

HERE = ("127.0.0.2", "127.0.0.3")
"""This machine by names that don't mean "here", so that it is reached as another host is."""

TWO = ("-H", f"{HERE[0]}:2,{HERE[1]}:1")
"""Two hosts, with three workers."""

# As ssh: leaves out its options, gives the line to a shell, elsewhere and with little environment.
_STAND_IN = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
echo "$1" >>{log}
case "$1" in
  {down}) echo "ssh: connect to host $1 port 22: No route to host" >&2; exit 255 ;;
esac
shift
cd /
exec env -i PATH="$PATH" HOME=/ FROM_THERE=yes {before} sh -c "$*"
"""


def stand_in(folder: Path, *, before: str = "", down: str = "nobody") -> str:
    """A command that is used like ssh, without an sshd.

    Args:
        folder: where it is made.
        before: a command and its arguments that run the shell there.
        down: the name of a host that isn't reached.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "stand-in"
    text = _STAND_IN.format(log=shlex.quote(str(folder / "asked")), before=before, down=down)
    path.write_text(text)
    path.chmod(0o755)
    return shlex.quote(str(path))


@contextmanager
def sshd(
    folder: Path, *, address: str = "127.0.0.1", inside: tuple[str, ...] = ()
) -> Iterator[str]:
    """See `tests.namespaces.sshd`; skips the test where there is none."""
    if missing := namespaces.missing_for_sshd():
        pytest.skip(missing)
    with namespaces.sshd(folder, address=address, inside=inside) as command:
        yield command


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """See `tests.namespaces.two_hosts`; skips the test where they can't be made."""
    if missing := namespaces.missing_for_hosts():
        pytest.skip(missing)
    with namespaces.two_hosts() as names:
        yield names
