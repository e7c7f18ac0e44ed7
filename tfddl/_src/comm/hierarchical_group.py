"""One transport within each host, another one between one worker of each.

What a host sends to the others doesn't grow with its number of workers: the first of them, the
*leader*, has its host's sum, adds it up with those of the other leaders, and hands the result
around.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.op_counter import Tally
from tfddl._src.comm.process_group import ProcessGroup

Layout = tuple[tuple[int, ...], ...]
"""The ranks of each host, ascending; hosts in the order of their first ranks."""


class HierarchicalGroup(ProcessGroup):
    """Two transports seen as one.

    References:
        "Horovod: fast and easy distributed deep learning in TensorFlow", 2018,
        https://arxiv.org/abs/1802.05799: hierarchical allreduce.
    """

    def __init__(self, rank: int, layout: Layout, local: ProcessGroup, world: ProcessGroup) -> None:
        """Puts two transports together. All ranks of the layout do so alike.

        Args:
            rank: This worker's rank.
            layout: Who is where; every rank of the job once.
            local: Connects the workers of this host.
            world: Connects workers of different hosts.
        """
        everyone = [r for ranks in layout for r in ranks]
        super().__init__(rank, len(everyone))
        self.name = f"{local.name}, {world.name} between hosts"
        self.dtypes = local.dtypes & world.dtypes
        self.overlaps = local.overlaps and world.overlaps
        self._layout = layout
        self._tally = Tally()
        self._local, self._world = local, world
        self._host = next(h for h, ranks in enumerate(layout) if rank in ranks)
        self._leads = layout[self._host][0] == rank
        # Only leaders use it.
        leaders = tuple(sorted(ranks[0] for ranks in layout))
        self._between = world.among(leaders) if self._leads else None
        # Hosts as the leaders' transport counts them.
        self._order = [leaders.index(ranks[0]) for ranks in layout]

    def _make_subgroup(self, ranks: tuple[int, ...]) -> ProcessGroup:
        layout = tuple(
            tuple(r for r in host if r in ranks) for host in self._layout if set(host) & set(ranks)
        )
        mine = next(host for host in layout if self.rank in host)
        whole = self._layout[self._host]
        local = self._local.among(tuple(whole.index(r) for r in mine))
        if len(layout) == 1:
            return local
        renamed = tuple(tuple(ranks.index(r) for r in host) for host in layout)
        return HierarchicalGroup(ranks.index(self.rank), renamed, local, self._world.among(ranks))

    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        """See `ProcessGroup.all_reduce`."""
        return self.all_reduce_pack([flat], reduction)[0]

    def all_reduce_pack(
        self, pack: Sequence[tf.Tensor], reduction: ReduceOp, *, scale: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """See `ProcessGroup.all_reduce_pack`."""

        def travel(pack: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            partial = self._local.all_reduce_pack(pack, reduction, scale=scale)
            if self._between is not None:
                partial = self._between.all_reduce_pack(partial, reduction)
            return self._local.broadcast_pack(partial, 0)

        return self._tally.over(travel, pack)

    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """See `ProcessGroup.all_gather`."""
        return self._tally.over(lambda pack: [self._gathered(pack[0])], [flat])[0]

    def _gathered(self, flat: tf.Tensor) -> tf.Tensor:
        most = max(map(len, self._layout))
        of_host = self._local.all_gather(flat)
        padded = tf.pad(of_host, [[0, most - len(self._layout[self._host])], [0, 0]])
        length = tf.shape(of_host)[1]
        if self._between is not None:
            rows = self._between.all_gather(tf.reshape(padded, [-1]))
        else:
            rows = tf.zeros(tf.stack([len(self._layout), most * length]), flat.dtype)
        everything = self._local.broadcast(tf.reshape(rows, [-1]), 0)
        by_place = tf.reshape(everything, tf.stack([len(self._layout) * most, length]))
        gathered = tf.gather(by_place, self._places(most))
        return tf.ensure_shape(gathered, [self.size, flat.shape[0]])

    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """See `ProcessGroup.broadcast`."""
        return self._tally.over(lambda pack: [self._broadcast(pack[0], root_rank)], [flat])[0]

    def _broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        home = next(h for h, ranks in enumerate(self._layout) if root_rank in ranks)
        if home == self._host:
            flat = self._local.broadcast(flat, self._layout[home].index(root_rank))
        if self._between is not None:
            flat = self._between.broadcast(flat, self._order[home])
        return self._local.broadcast(flat, 0)

    def measure(self, wanted: bool) -> bool:
        """See `ProcessGroup.measure`."""
        return self._world.measure(wanted) and self._local.measure(wanted)

    def seconds(self) -> float:
        """See `ProcessGroup.seconds`: within the host, waiting for the leader included."""
        own = self._local.seconds()
        return own if self._between is None else own + self._between.seconds()

    def end(self, text: str) -> None:
        """See `ProcessGroup.end`."""
        self._local.end(text)
        self._world.end(text)

    def counts(self) -> tuple[int, int]:
        """See `ProcessGroup.counts`."""
        return self._tally.counts()

    def waited_seconds(self) -> float:
        """See `ProcessGroup.waited_seconds`."""
        return self._local.waited_seconds()

    def counters(self) -> dict[str, int]:
        """See `ProcessGroup.counters`."""
        return self._local.counters()

    def _places(self, most: int) -> list[int]:
        """Where each rank's row is among those of all hosts, each padded to the largest."""
        place = {
            rank: self._order[host] * most + number
            for host, ranks in enumerate(self._layout)
            for number, rank in enumerate(ranks)
        }
        return [place[rank] for rank in range(self.size)]
