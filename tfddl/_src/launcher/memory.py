"""Memory without a name that a launcher shares with its workers: boards, and a store."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from types import MappingProxyType

from tfddl._src import commits, heartbeat
from tfddl._src.heartbeat import ProgressPage
from tfddl._src.launcher.plan import ProcessPlan
from tfddl.errors import LaunchError


class Memory:
    """For each worker of this machine a board, and for its first one a store.

    The launcher only keeps the store: what a worker writes there, that of the same rank finds
    after a restart. Each is gone with the last process that holds it.
    """

    def __init__(self, *, keeps_commits: bool) -> None:
        """Begins.

        Args:
            keeps_commits: whether there is a store; without another start nobody would read it.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self._boards: list[ProgressPage] = []
        self._store = make_store() if keeps_commits else None

    def shared_with(self, plans: Sequence[ProcessPlan]) -> tuple[ProcessPlan, ...]:
        """The plans, with the descriptors that the workers get: a new board each, and the store.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self._close_boards()
        try:
            self._boards += [ProgressPage.create() for _ in plans]
        except OSError as error:
            raise LaunchError(
                f"can't make the memory that workers share with tfddlrun: {error.strerror}. HINT: "
                "a descriptor for each worker; ulimit -n says how many there may be"
            ) from error
        shared = [with_board(plan, board) for plan, board in zip(plans, self._boards, strict=True)]
        return tuple(with_store(plan, self._store) for plan in shared)

    def close(self) -> None:
        """Lets go of everything."""
        self._close_boards()
        if self._store is not None:
            os.close(self._store)
            self._store = None

    def _close_boards(self) -> None:
        while self._boards:
            self._boards.pop().close()


def make_store() -> int:
    """An empty store: its descriptor.

    Raises:
        LaunchError: descriptors or memory are used up.
    """
    try:
        return commits.create_store()
    except OSError as error:
        raise LaunchError(
            f"can't make the memory that commits are kept in: {error.strerror}"
        ) from error


def with_board(plan: ProcessPlan, board: ProgressPage) -> ProcessPlan:
    """The plan of a worker that writes on this board how far it has come."""
    plan = _with_descriptor(plan, heartbeat.VARIABLE, board.fileno())
    return dataclasses.replace(plan, board=board)


def with_store(plan: ProcessPlan, store: int | None) -> ProcessPlan:
    """The plan of a worker that keeps in this store what is to outlive it.

    All have the same to keep, so only the first of a host does; others' plans stay as they are.
    """
    if store is None or plan.local_rank != 0:
        return plan
    return _with_descriptor(plan, commits.VARIABLE, store)


def _with_descriptor(plan: ProcessPlan, variable: str, descriptor: int) -> ProcessPlan:
    return dataclasses.replace(
        plan,
        environment=MappingProxyType({**plan.environment, variable: str(descriptor)}),
        descriptors=(*plan.descriptors, descriptor),
    )
