"""How the workers get connected: which process group, and what it needs."""

import dataclasses
import logging
from collections.abc import Callable

import tensorflow as tf

from tfddl._src.cluster import Cluster
from tfddl._src.comm.hierarchical_group import HierarchicalGroup
from tfddl._src.comm.instrumentation import Instrumentation
from tfddl._src.comm.instrumented_group import InstrumentedGroup
from tfddl._src.comm.native import Network
from tfddl._src.comm.native_group import connect_natively
from tfddl._src.comm.nccl_group import make_tensorflow_group
from tfddl._src.comm.process_group import InterHostTransport, ProcessGroup, Transport
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl._src.comm.stall_inspector import StallInspector
from tfddl._src.rendezvous import Rendezvous
from tfddl._src.runtime.native_setup import NativeSetup
from tfddl._src.runtime.options import Options
from tfddl._src.runtime.startup_checks import JoinedJob
from tfddl.errors import StartError

_NO_SHARED_MEMORY = (
    "the workers of a host can't share memory: TensorFlow's collectives take over, which are slower"
)
_NOT_REACHED = (
    "not all workers can reach those of the other hosts by TCP; the warnings of those that can't "
    "say whom. HINT: let the hosts of the job reach all ports of each other, or use "
    "between_hosts='ring', which needs only those of TF_CONFIG."
)
_NOT_READY = (
    "TCP between hosts needs memory that the workers of each host share, and a port to listen on; "
    "some can't have them, and their warnings say why. HINT: mend that, or use "
    "between_hosts='ring'."
)

_YES, _NO = "yes", "no"

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSetup:
    """Connects several workers, once they have joined the job. All of them do so alike."""

    job: JoinedJob
    num_cores: int
    """How many cores this worker may count on."""

    instrumentation: Instrumentation
    """Records what the group does."""

    start_strategy: Callable[[str], tf.distribute.Strategy]
    """Starts TensorFlow's servers, where they are needed. It is told why."""

    @property
    def rendezvous(self) -> Rendezvous:
        """Where the workers have joined."""
        return self.job.rendezvous

    @property
    def options(self) -> Options:
        """What was asked for."""
        return self.job.choice.options

    @property
    def transport(self) -> Transport:
        """Which of TensorFlow's collectives there would be."""
        return self.job.choice.transport

    def connect(self) -> ProcessGroup:
        """Chooses the process group of all workers, and makes sure that it works.

        Raises:
            StartError: TensorFlow doesn't order the workers by rank, or its servers are needed and
                can't be started any more; or TCP was asked for, and can't be had.
            StalledError: Not all ranks have got as far as this one in time.
        """
        # Each step is agreed on by all ranks: where one can't share memory or reach a host, none
        # goes on with that, or the others would wait for it in its network.
        setup = NativeSetup(self.rendezvous, self.options)
        memory = self._share_memory(setup)
        shares_memory = memory is not None or not self.job.choice.wants_shared_memory(self._cluster)
        hosts = self._reach(setup, shares_memory=shares_memory)
        one = self._one_network(memory, hosts)
        if one is not None:  # It knows by itself whom it waits for.
            return connect_natively(one, self.instrumentation, overlaps=self.num_cores > 1)
        world = (
            self._tensorflow_group(shares_memory=shares_memory)
            if hosts is None
            else connect_natively(hosts, self._unread(), overlaps=self.num_cores > 1)
        )
        group = world if memory is None else self._in_two_levels(memory, world)
        # It knows by itself neither what it does nor whom it waits for.
        self.instrumentation.keep_on(group.device, stays_there=group.stays_on_device)
        inspector = StallInspector(
            self.rendezvous, self.options.timeouts, self.instrumentation, group.abort
        )
        instrumented = InstrumentedGroup(group, self.instrumentation)
        instrumented.close_before(inspector)
        if hosts is None:
            try:
                self._check_order(instrumented)
            except BaseException:
                inspector.close()
                raise
        return instrumented

    def _unread(self) -> Instrumentation:
        """For a group within another one, which is recorded as a whole."""
        return Instrumentation(self._cluster.size)

    @property
    def _cluster(self) -> Cluster:
        return self.rendezvous.cluster

    def _share_memory(self, setup: NativeSetup) -> Network | None:
        """Memory within this host, if all hosts have it."""
        if not self.job.choice.wants_shared_memory(self._cluster):
            return None
        memory = setup.share_memory()
        if self._all("tfddl.init, sharing memory", memory is not None):
            return memory
        _LOG.warning(_NO_SHARED_MEMORY)
        if memory is not None:
            memory.close()
        return None

    def _all(self, what: str, mine: bool) -> bool:
        """Whether all ranks say yes; all call it together."""
        timeout_s = self.options.rendezvous_timeout_s
        texts = self.rendezvous.gather(what, _YES if mine else _NO, timeout_s=timeout_s)
        return all(text == _YES for text in texts)

    def _one_network(self, memory: Network | None, hosts: Network | None) -> Network | None:
        """The network that connects all workers, if there is one."""
        sizes = [len(ranks) for ranks in self._cluster.ranks_of_hosts]
        if len(sizes) == 1:
            return memory
        return hosts if max(sizes) == 1 else None

    def _in_two_levels(self, memory: Network, between: ProcessGroup) -> ProcessGroup:
        within: ProcessGroup = SingleProcessGroup(self._cluster.rank)
        if memory.mesh.size > 1:
            overlaps = self.num_cores > 1 or between.overlaps
            within = connect_natively(memory, self._unread(), overlaps=overlaps)
        return HierarchicalGroup(self._cluster.rank, self._cluster.ranks_of_hosts, within, between)

    def _tensorflow_group(self, *, shares_memory: bool) -> ProcessGroup:
        why = f"collectives go through TensorFlow's {self.transport.name}"
        if self.options.collective is None and not shares_memory:
            why += ", since the workers of a host can't share memory"
        device = self.start_strategy(why).extended.worker_devices[0]
        return make_tensorflow_group(self._cluster.rank, self._cluster.size, device, self.transport)

    def _check_order(self, group: ProcessGroup) -> None:
        rank, size = self._cluster.rank, self._cluster.size
        order = group.all_gather(tf.constant([rank], tf.int64)).numpy()[:, 0].tolist()
        if order != list(range(size)):
            raise StartError(
                f"TensorFlow ordered the workers as {order} instead of by rank, so that gathered "
                "tensors would be mixed up. This TensorFlow can't be used."
            )

    def _reach(self, setup: NativeSetup, *, shares_memory: bool) -> Network | None:
        """Connects to the other hosts, if all ranks want to, and all can."""
        if not self.job.choice.wants_tcp(self._cluster):
            return None
        found, missing, listener = None, _NOT_READY, self.job.listener
        ports = [fact["port"] for fact in self.rendezvous.metadata]
        if listener is not None and shares_memory and all(ports):
            found, missing = setup.reach_hosts(listener, ports), _NOT_REACHED
        if self._all("tfddl.init, reaching hosts", found is not None):
            return found
        if found is not None:
            found.close()
        elif listener is not None:
            listener.close()
        if self.options.between_hosts is InterHostTransport.TCP:
            raise StartError(f"between_hosts is 'tcp', but {missing}")
        if self._cluster.rank == 0:
            _LOG.warning("TensorFlow's RING speaks between hosts, which is slower: %s", missing)
        return None
