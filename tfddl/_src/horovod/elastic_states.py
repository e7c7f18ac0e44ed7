"""What elastic training keeps: states, and `run`, which goes on from their last commit.

`commit` keeps the state in a store that `tfddlrun` owns, one per host, in memory. When a worker
fails, `tfddlrun --max-restarts N` starts **all** processes of the job again, and `run` takes up the
newest commit there is, on all ranks. So the script runs again from its top: what Python knows
besides the state (lists, open files, the place in a dataset) is lost. Without such a store, a
commit is kept in the process, and `restore` goes back to it.

What outlives the process is the state that `run` was given; a commit of any other state is kept in
the process only. Where a script calls `run` several times, one after the other, each takes up its
own newest commit; one that had ended before the failure is done again from its beginning.

States are pickled, between the processes of one job.
"""

import copy
import functools
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

import tfddl
from tfddl._src.horovod.elastic_store import commit_store, count_run
from tfddl._src.horovod.exceptions import HostsUpdatedInterrupt
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError


class State:
    """Values by name, as attributes: ``State(batch=0).batch``. Horovod's `ObjectState`."""

    def __init__(self, **kwargs: Any) -> None:
        """Takes the values."""
        self._names = tuple(kwargs)
        self._reset_callbacks: list[Callable[[], Any]] = []
        self._saved: dict[str, Any] = {}
        self._run: int | None = None
        self._outlives = False
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.save()

    def register_reset_callbacks(self, callbacks: Iterable[Callable[[], Any]]) -> None:
        """Says what is called after a restart, when the state has been taken up.

        Args:
            callbacks: Functions without arguments, such as one that sets the learning rate for the
                new number of workers.
        """
        self._reset_callbacks.extend(callbacks)

    def on_reset(self) -> None:
        """Calls what `register_reset_callbacks` was given."""
        self.reset()
        for callback in self._reset_callbacks:
            callback()

    def reset(self) -> None:
        """For subclasses: called before the callbacks after a restart."""

    def check_host_updates(self) -> None:
        """Does nothing: hosts that come or go make the launcher start the job again."""

    def commit(self) -> None:
        """Saves; within `run` the save outlives this process. All ranks commit at the same step.

        Only the first worker of each host writes.
        """
        self.save()
        store = commit_store()
        if store is not None and self._outlives and current().cluster.local_rank == 0:
            kept = {**self._saved, "run": self._run}
            store.write(pickle.dumps(kept, protocol=pickle.HIGHEST_PROTOCOL))
        self.check_host_updates()

    def save(self) -> None:
        """Keeps the state as it is, in this process."""
        values = {name: getattr(self, name) for name in self._names}
        self._saved = {"values": copy.deepcopy(values), "arrays": self._arrays()}

    def restore(self) -> None:
        """Goes back to what was saved last."""
        for name, value in copy.deepcopy(self._saved["values"]).items():
            setattr(self, name, value)
        for variable, array in zip(self._variables(), self._saved["arrays"], strict=True):
            variable.assign(array)

    def sync(self) -> None:
        """Makes the state that of rank 0 on all ranks, and saves it. All ranks call it together."""
        values = {name: getattr(self, name) for name in self._names}
        for name, value in tfddl.broadcast_object(values, name="state").items():
            setattr(self, name, value)
        tfddl.broadcast_variables(self._variables())
        self.save()

    def take_up(self, run: int) -> bool:
        """Takes up the newest commit of an earlier start, and lets commits outlive this one.

        All ranks must call it together.

        Args:
            run: Which call of `run` this is, counted from 0: commits of others aren't taken up.

        Returns:
            Whether there was one.

        Raises:
            UnsupportedError: It is of another model.
        """
        store = commit_store()
        mine = -1 if store is None or store.has_written else store.newest
        known = tfddl.allgather_object(mine, name="commits")
        self._run, self._outlives = run, True
        if max(known) < 0:
            return False
        root = known.index(max(known))
        data = None if store is None or tfddl.rank() != root else store.read()
        saved = pickle.loads(tfddl.broadcast_object(data, root, name="commit"))
        if saved["run"] != run:
            # A later run's has to be there when that is come to again.
            self._outlives = saved["run"] < run
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
                f"({', '.join(sorted(names)) or counted}). Build "
                "the same model, and give the state the same names, in every start."
            )

    def _variables(self) -> Sequence[Any]:
        return ()

    def _arrays(self) -> list[Any]:
        return [tf.convert_to_tensor(variable).numpy() for variable in self._variables()]


class TensorFlowState(State):
    """Variables, and values by name."""

    def __init__(
        self, variables: Iterable[Any] | None = None, session: Any = None, **kwargs: Any
    ) -> None:
        """Takes the variables.

        Raises:
            UnsupportedError: There is a session, or there are no variables.
        """
        if session is not None or variables is None:
            raise UnsupportedError(
                "TensorFlowState needs variables=[…] here: global variables and sessions are of "
                "TensorFlow 1."
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
        """Takes the model.

        Args:
            model: A built model.
            optimizer: Its optimizer, where the model isn't compiled with it.
            backend: Has no effect.
            **kwargs: Values by name, such as ``batch=0, epoch=0``.

        Raises:
            UnsupportedError: The model isn't built; it is a `ValueError`.
        """
        if not model.built:
            raise UnsupportedError(
                "The model has no variables yet, and the state couldn't keep any. Build it first: "
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


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function go on from its state's last commit when the job is started again.

    Usage::

        @hvd.elastic.run
        def train(state):
            for state.batch in range(state.batch, 1000):
                ...
                state.commit()

        train(state)

    Where there is a commit of an earlier start, the state takes it up and the reset callbacks are
    called; then all ranks take over rank 0's state. A worker that fails ends all processes with its
    own error; ``tfddlrun --max-restarts N`` starts them again.

    Args:
        func: Gets the state as its first argument.

    Returns:
        A function that returns what ``func`` does.
    """

    @functools.wraps(func)
    def elastic(state: State, *args: Any, **kwargs: Any) -> Any:
        if state.take_up(count_run()):
            state.on_reset()
        state.sync()
        while True:
            try:
                return func(state, *args, **kwargs)
            except HostsUpdatedInterrupt as interrupt:
                state.on_reset()
                if not interrupt.skip_sync:
                    state.sync()

    return elastic
