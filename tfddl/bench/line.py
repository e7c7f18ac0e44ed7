"""The line by which a worker is told what to do."""

import os

from tfddl.bench.channel import Channel
from tfddl.bench.load import Moment
from tfddl.bench.machines import Machine
from tfddl.bench.orders import Answer, Look, Order


class Line:
    """Orders as they come, and answers to them.

    `Look` is answered here, so that a worker looks around whatever it is about to do.
    """

    def __init__(self, channel: Channel, machine: Machine) -> None:
        """Takes over a connection.

        Args:
            channel: To who gives orders.
            machine: What this worker runs on.
        """
        self._channel, self._machine = channel, machine

    def take(self) -> Order:
        """Waits for the next order.

        Raises:
            EOFError: Nobody gives orders any more.
        """
        while True:
            order: Order = self._channel.recv()
            if not isinstance(order, Look):
                return order
            self.answer(Moment.now(self._machine, [os.getpid()]))

    def answer(self, answer: Answer) -> None:
        """Says what came of the last order."""
        self._channel.send(answer)
