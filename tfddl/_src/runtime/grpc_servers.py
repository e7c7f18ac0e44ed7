"""TensorFlow's servers: started where something needs them, by all ranks together."""

import linecache
import logging
import sys

import tensorflow as tf

from tfddl._src import rendezvous
from tfddl._src.comm.native import format_ranks
from tfddl._src.launcher.exposure import server_warning
from tfddl._src.rendezvous import Rendezvous
from tfddl._src.runtime.devices import make_strategy, operations_have_run
from tfddl._src.runtime.startup_checks import Choice
from tfddl.errors import StartError

_HAS_RUN = "operations have run"
_LOG = logging.getLogger("tfddl")


def start_servers(
    met: Rendezvous, choice: Choice, *, why: str, hint: str
) -> tf.distribute.Strategy:
    """Makes the `MultiWorkerMirroredStrategy` of the job, which starts the server of this worker.

    All ranks must call it together. TensorFlow waits for the others in silence, holding the
    interpreter; so they are waited for before.

    Args:
        met: Where the ranks have joined.
        choice: What was asked for.
        why: What needs the servers, for messages.
        hint: What to do where operations of TensorFlow have run already.

    Raises:
        StartError: They have, on some rank; or a port is taken.
        StalledError: Other ranks don't call it in time.
        PeerLostError: One of them has ended.
    """
    cluster, options = met.cluster, choice.options
    states = met.gather(
        "tfddl.strategy",
        _HAS_RUN if operations_have_run() else "",
        timeout_s=options.rendezvous_timeout_s,
    )
    late = [rank for rank, state in enumerate(states) if state == _HAS_RUN]
    if late:
        raise StartError(
            f"{why}, which starts TensorFlow's servers, but on {format_ranks(late)} operations of "
            f"TensorFlow have run before. HINT: {hint}"
        )
    # On rank 0 the rendezvous has the port that TensorFlow's server is about to listen at.
    met.stop_listening()
    rendezvous.check_port_free(cluster)
    if cluster.local_rank == 0 and not options.trusts_network:
        warning = server_warning(cluster)
        if warning is not None:
            _LOG.warning("%s", warning)
    return make_strategy(cluster, choice.transport)


def calling_line() -> str:
    """Where a script calls us, and the line that stands there, for messages."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tfddl"):
        frame = frame.f_back
    name, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(name, number).strip()
    return f"{line!r} ({name}, line {number})" if line else "the line that calls it"
