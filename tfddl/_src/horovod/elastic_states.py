"""Elastic training: states, and `run`, which resumes from their last commit.

`commit` keeps the state in a store that `tfddlrun` owns, one per host, in memory (`commits`). When
a worker fails (`tfddlrun --max-restarts N`), and when hosts come or go (`--host-discovery-script`),
`run` restores the newest commit on all ranks; in the second case nothing that was done is lost. As
in Horovod (horovod/common/elastic.py), workers that are left keep their processes, where the
process group can be formed anew (`elastic_regroup`). Otherwise all processes of the job start
again: the script runs from its top, and Python's other state (lists, open files, the position in a
dataset) is lost. Without a store, a commit is kept in the process, for `restore`.

Only the state that `run` was given outlives a process. Where a script calls `run` several times
in sequence, each call restores its own newest commit; a call that had ended before the failure
starts again from its beginning.

States are pickled; they are only exchanged between the processes of one job.
"""

import copy
import functools
import logging
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

import tfddl
from tfddl._src.heartbeat import SAVED_STATUS
from tfddl._src.horovod.elastic_regroup import got_sigterm, has_lost_others, regroup, staying
from tfddl._src.horovod.elastic_store import (
    commit_store,
    count_run,
    current_preemption,
    taking_requests,
)
from tfddl._src.horovod.exceptions import HostsUpdatedInterrupt, RestartRequestedError
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError

_LOG = logging.getLogger("tfddl")


class State:
    """Values by name, as attributes: ``State(batch=0).batch``. It is Horovod's `ObjectState`."""

    def __init__(self, **kwargs: Any) -> None:
        """Makes an attribute of each value, and saves them."""
        self._names = tuple(kwargs)
        self._reset_callbacks: list[Callable[[], Any]] = []
        self._saved: dict[str, Any] = {}
        self._run: int | None = None
        self._is_persistent = False
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.save()

    def register_reset_callbacks(self, callbacks: Iterable[Callable[[], Any]]) -> None:
        """Registers what `on_reset` calls, after a restart that has restored the state.

        Args:
            callbacks: Functions without arguments, such as one that sets the learning rate for the
                new number of workers.
        """
        self._reset_callbacks.extend(callbacks)

    def on_reset(self) -> None:
        """Calls `reset`, then the callbacks of `register_reset_callbacks`."""
        self.reset()
        for callback in self._reset_callbacks:
            callback()

    def reset(self) -> None:
        """For subclasses to override: called after a restart, before the callbacks."""

    def check_host_updates(self) -> None:
        """Commits and leaves `run`, where hosts have come or gone, or a rank has got SIGTERM.

        All ranks must call it together. It does nothing where the job has no
        ``--host-discovery-script``, and for a state that isn't the one of `run`.

        Raises:
            HostsUpdatedInterrupt: On all ranks: `run` ends these processes, and `tfddlrun` starts
                the job again on the hosts that there are now.
        """
        preemption = current_preemption()
        if preemption is None or not self._is_persistent:
            return
        asked = int(preemption.requested)
        if tfddl.allreduce(tf.constant(asked), tfddl.ReduceOp.MAX, name="hosts updated"):
            self.save()
            self._write()
            raise RestartRequestedError

    def commit(self) -> None:
        """Saves; for the state of `run`, so that it outlives this process.

        All ranks must commit at the same step. Local rank 0 of each host writes.
        """
        self.save()
        self._write()
        self.check_host_updates()

    def save(self) -> None:
        """Copies the state, in this process."""
        values = {name: getattr(self, name) for name in self._names}
        # Deep: a script may change a list in place between commits.
        self._saved = {"values": copy.deepcopy(values), "arrays": self._arrays()}

    def restore(self) -> None:
        """Restores the last save."""
        for name, value in copy.deepcopy(self._saved["values"]).items():
            setattr(self, name, value)
        for variable, array in zip(self._variables(), self._saved["arrays"], strict=True):
            variable.assign(array)

    def sync(self) -> None:
        """Broadcasts rank 0's state and saves it. All ranks must call it together."""
        values = {name: getattr(self, name) for name in self._names}
        for name, value in tfddl.broadcast_object(values, name="state").items():
            setattr(self, name, value)
        tfddl.broadcast_variables(self._variables())
        self.save()

    def resume(self, run: int) -> bool:
        """Restores the newest commit of an earlier start, and makes commits outlive this one.

        All ranks must call it together.

        Args:
            run: The number of this call of `run`, from 0: only its own commits are restored.

        Returns:
            Whether there was one.

        Raises:
            UnsupportedError: It is of another model.
        """
        store = commit_store()
        # What this start has committed isn't an earlier one's: a later call of `run` must not
        # restore it.
        mine = -1 if store is None or store.has_written else store.newest
        known = tfddl.allgather_object(mine, name="commits")
        self._run, self._is_persistent = run, True
        if max(known) < 0:
            return False
        # Stores of hosts may differ: where a worker was killed while it wrote, the commit before is
        # there still.
        root = known.index(max(known))
        data = None if store is None or tfddl.rank() != root else store.read()
        saved = pickle.loads(tfddl.broadcast_object(data, root, name="commit"))
        if saved["run"] != run:
            # The commit of a later call of `run` must stay until that call is reached again.
            self._is_persistent = saved["run"] < run
            return False
        self._check(saved)
        self._saved = saved
        self.restore()
        return True

    def _check(self, saved: dict[str, Any]) -> None:
        here = [(tuple(v.shape), tf.as_dtype(v.dtype).name) for v in self._variables()]
        there = [(a.shape, tf.as_dtype(a.dtype).name) for a in saved["arrays"]]
        names = set(saved["values"]) ^ set(self._names)
        counted = f"{len(there)} variables, not {len(here)}"
        if names or here != there:
            raise UnsupportedError(
                "The commit of an earlier start has other values or variables than this state "
                f"({', '.join(sorted(names)) or counted}). HINT: build "
                "the same model, and give the state the same names, in every start."
            )

    def _write(self) -> None:
        """Gives what was saved to the launcher, if it keeps it."""
        store = commit_store()
        if store is not None and self._is_persistent and current().cluster.local_rank == 0:
            kept = {**self._saved, "run": self._run}
            store.write(pickle.dumps(kept, protocol=pickle.HIGHEST_PROTOCOL))

    def _variables(self) -> Sequence[Any]:
        return ()

    def _arrays(self) -> list[Any]:
        return [tf.convert_to_tensor(variable).numpy() for variable in self._variables()]


class TensorFlowState(State):
    """Variables, and values by name."""

    def __init__(
        self, variables: Iterable[Any] | None = None, session: Any = None, **kwargs: Any
    ) -> None:
        """Makes a state.

        Args:
            variables: `tf.Variable` or `keras.Variable`.
            session: Must be None.
            **kwargs: Values by name.

        Raises:
            UnsupportedError: There is a session, or ``variables`` is None.
        """
        if session is not None or variables is None:
            raise UnsupportedError(
                "TensorFlowState needs variables; global variables and sessions are of TensorFlow "
                "1. HINT: TensorFlowState(variables=[…])."
            )
        self._own = list(variables)
        super().__init__(**kwargs)

    def _variables(self) -> Sequence[Any]:
        return self._own


class TensorFlowKerasState(State):
    """A Keras model, its optimizer, and values by name."""

    def __init__(
        self, model: keras.Model, optimizer: Any = None, backend: Any = None, **kwargs: Any
    ) -> None:
        """Makes a state.

        Args:
            model: A built model.
            optimizer: Its optimizer; None is that which the model is compiled with.
            backend: Has no effect.
            **kwargs: Values by name, such as ``batch=0, epoch=0``.

        Raises:
            UnsupportedError: The model isn't built. It is a `ValueError`.
        """
        if not model.built:
            raise UnsupportedError(
                "The model has no variables yet, which the state could keep. HINT: build it first: "
                "give it an Input, call it on a batch, or train one step."
            )
        self.model = model
        self.optimizer = optimizer or getattr(model, "optimizer", None)
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(model.trainable_variables)
        super().__init__(**kwargs)

    def _variables(self) -> Sequence[Any]:
        state = [] if self.optimizer is None else self.optimizer.variables
        return [*self.model.variables, *state]


class KerasState(TensorFlowKerasState):
    """A `TensorFlowKerasState` with the signature of `horovod.keras.elastic`."""

    def __init__(self, model: keras.Model, optimizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model, optimizer, **kwargs)


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function resume from its state's last commit when the job is restarted.

    Usage::

        @hvd.elastic.run
        def train(state):
            for state.batch in range(state.batch, 1000):
                ...
                state.commit()

        train(state)

    Where there is a commit of an earlier start, the state restores it and calls the reset
    callbacks; then rank 0's state is broadcast. So it does after a worker has failed
    (``tfddlrun --max-restarts N``), and where ``--host-discovery-script`` finds other hosts: in the
    same process if that can stay (docs/fault-tolerance.md), else in the next one; then this ends
    the process at the next commit, with status 75.

    Args:
        func: Gets the state as its first argument.

    Returns:
        A function that returns what ``func`` does.
    """

    @functools.wraps(func)
    def elastic(state: State, *args: Any, **kwargs: Any) -> Any:
        number = count_run()
        prepare: Callable[[], None] = functools.partial(_resume, state, number)
        with staying(number):
            while True:
                try:
                    prepare()
                    with taking_requests():
                        return func(state, *args, **kwargs)
                except RestartRequestedError:
                    if got_sigterm() or not regroup():
                        raise SystemExit(SAVED_STATUS) from None
                    prepare = functools.partial(_resume, state, number)
                except HostsUpdatedInterrupt as interrupt:
                    prepare = functools.partial(_reset, state, syncs=not interrupt.skip_sync)
                except Exception as error:
                    if not has_lost_others():
                        raise
                    _LOG.warning("rank %d has lost others: %s", tfddl.rank(), _reason(error))
                    state.restore()
                    regroup()
                    prepare = functools.partial(_resume, state, number)

    return elastic


def _reason(error: Exception) -> str:
    """What an error says, without what TensorFlow says of where it was raised."""
    found = re.findall(r"^tfddl\.errors\.\w+: (.*)$", str(error), re.MULTILINE)
    return found[-1] if found else str(error)


def _resume(state: State, number: int) -> None:
    if state.resume(number):
        state.on_reset()
    state.sync()


def _reset(state: State, *, syncs: bool) -> None:
    state.on_reset()
    if syncs:
        state.sync()
