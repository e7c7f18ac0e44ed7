"""Memory without a name that the launcher shares with its workers: boards, and stores."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from types import MappingProxyType, TracebackType

from tfddl import progress
from tfddl.errors import LaunchError
from tfddl.launcher.plan import ProcessPlan
from tfddl.progress import Board

STORE_VARIABLE = "TFDDL_STORE_FD"


class Memory:
    """For each rank of a job a board, and a store that outlives restarts.

    A store is an empty memfd that the launcher only keeps: what a worker writes there, the worker
    of the same rank finds after a restart. Each is gone with the last process that holds it.
    """

    def __init__(self, num_workers: int) -> None:
        """Makes the stores.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self._boards: list[Board] = []
        self._stores: list[int] = []
        try:
            for rank in range(num_workers):
                self._stores.append(os.memfd_create(f"tfddl-store-{rank}"))
        except OSError as error:
            self.close()
            raise _used_up(error) from error

    def shared_with(self, plans: Sequence[ProcessPlan]) -> tuple[ProcessPlan, ...]:
        """The plans, with the descriptors that each worker gets: a new board, and its store.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self._close_boards()
        try:
            self._boards += [Board.create() for _ in plans]
        except OSError as error:
            raise _used_up(error) from error
        return tuple(
            with_store(with_board(plan, board), store)
            for plan, board, store in zip(plans, self._boards, self._stores, strict=False)
        )

    def close(self) -> None:
        """Lets go of everything."""
        self._close_boards()
        while self._stores:
            os.close(self._stores.pop())

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _close_boards(self) -> None:
        while self._boards:
            self._boards.pop().close()


def with_board(plan: ProcessPlan, board: Board) -> ProcessPlan:
    """The plan of a worker that writes on this board how far it has come."""
    plan = _with_descriptor(plan, progress.VARIABLE, board.fileno())
    return dataclasses.replace(plan, board=board)


def with_store(plan: ProcessPlan, store: int) -> ProcessPlan:
    """The plan of a worker that keeps in this store what is to outlive it."""
    return _with_descriptor(plan, STORE_VARIABLE, store)


def _with_descriptor(plan: ProcessPlan, variable: str, descriptor: int) -> ProcessPlan:
    return dataclasses.replace(
        plan,
        environment=MappingProxyType({**plan.environment, variable: str(descriptor)}),
        descriptors=(*plan.descriptors, descriptor),
    )


def _used_up(error: OSError) -> LaunchError:
    return LaunchError(
        f"can't make the memory that workers share with tfddlrun: {error.strerror}. HINT: two "
        "descriptors for each worker; ulimit -n says how many there may be"
    )
