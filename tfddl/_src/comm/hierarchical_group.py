"""One process group within each host, another one between one worker of each.

What a host sends to the others doesn't grow with its number of workers: the first of them, the
*leader*, has its host's sum, adds it up with those of the other leaders, and hands the result
around.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import UNNAMED, DynamicSignature, ProcessGroup

Layout = tuple[tuple[int, ...], ...]
"""Members of each host, as the group counts them, ascending; hosts in the order of their firsts."""


class HierarchicalGroup(ProcessGroup):
    """Two process groups seen as one.

    References:
        "Horovod: fast and easy distributed deep learning in TensorFlow", 2018,
        https://arxiv.org/abs/1802.05799: hierarchical allreduce.
    """

    def __init__(
        self, rank: int, layout: Layout, within: ProcessGroup, between: ProcessGroup
    ) -> None:
        """Puts two groups together. All ranks of the layout do so alike.

        Args:
            rank: This worker's place in the group.
            layout: Who is where; every member once.
            within: Of the members of this host.
            between: Of all members, or of all that are to be members; only leaders use it.
        """
        super().__init__(rank, between.ranks)
        self.name = f"{within.name}, {between.name} between hosts"
        self.dtypes = within.dtypes & between.dtypes
        self.overlaps = within.overlaps and between.overlaps
        self.counters = within.counters
        self.can_close = within.can_close and between.can_close
        self._layout = layout
        self._within, self._between = within, between
        self._host = next(h for h, ranks in enumerate(layout) if rank in ranks)
        leaders = tuple(sorted(ranks[0] for ranks in layout))
        is_leader = layout[self._host][0] == rank
        self._leaders = between.subgroup(leaders) if is_leader else None
        """None on all others."""
        self._order = [leaders.index(ranks[0]) for ranks in layout]
        """Of each host, its leader's place among the leaders."""

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        layout = tuple(
            tuple(r for r in host if r in ranks) for host in self._layout if set(host) & set(ranks)
        )
        mine = next(host for host in layout if self.rank in host)
        whole = self._layout[self._host]
        within = self._within.subgroup(tuple(whole.index(r) for r in mine))
        if len(layout) == 1:
            return within
        renamed = tuple(tuple(ranks.index(r) for r in host) for host in layout)
        between = self._between.subgroup(ranks)
        return HierarchicalGroup(ranks.index(self.rank), renamed, within, between)

    def abort(self, text: str) -> None:
        """See `ProcessGroup.abort`."""
        self._within.abort(text)
        self._between.abort(text)

    @property
    def is_broken(self) -> bool:
        """See `ProcessGroup.is_broken`."""
        return self._within.is_broken or self._between.is_broken

    def close(self, text: str) -> None:
        """See `ProcessGroup.close`."""
        self._within.close(text)
        self._between.close(text)

    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce`."""
        # Everybody of a host has its sum then, though only the leader needs it: within shared
        # memory that costs nothing more than a reduce to one.
        partial = self._within.all_reduce(tensors, op, scale=scale)
        if self._leaders is not None:
            partial = self._leaders.all_reduce(partial, op)
        return self._within.broadcast(partial, 0)

    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""
        # Hosts may have different numbers of workers, and the leaders' gather wants one length:
        # each host's rows are padded to those of the largest.
        most = max(map(len, self._layout))
        of_host = self._within.all_gather(flat)
        padded = tf.pad(of_host, [[0, most - len(self._layout[self._host])], [0, 0]])
        length = tf.shape(of_host)[1]
        if self._leaders is not None:
            rows = self._leaders.all_gather(tf.reshape(padded, [-1]))
        else:
            rows = tf.zeros(tf.stack([len(self._layout), most * length]), flat.dtype)
        [everything] = self._within.broadcast([tf.reshape(rows, [-1])], 0)
        by_place = tf.reshape(everything, tf.stack([len(self._layout) * most, length]))
        gathered = tf.gather(by_place, self._places(most))
        return tf.ensure_shape(gathered, [self.size, flat.shape[0]])

    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.broadcast`."""
        home = next(h for h, ranks in enumerate(self._layout) if root in ranks)
        tensors = list(tensors)
        if home == self._host:
            tensors = self._within.broadcast(tensors, self._layout[home].index(root))
        if self._leaders is not None:
            tensors = self._leaders.broadcast(tensors, self._order[home])
        return self._within.broadcast(tensors, 0)

    def _places(self, most: int) -> list[int]:
        """Where each rank's row is among those of all hosts, each padded to the largest."""
        place = {
            rank: self._order[host] * most + number
            for host, ranks in enumerate(self._layout)
            for number, rank in enumerate(ranks)
        }
        return [place[rank] for rank in range(self.size)]
