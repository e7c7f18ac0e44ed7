"""A rank on a host of its own, which adds up until it can't.

Usage: python -m tests.cases.cut_off RANK SIZE DIRECTORY LENGTH
"""

import sys
import time
from pathlib import Path

import numpy as np

from tests.processes import wait_until
from tfddl._src.comm.native import (
    Address,
    Communicator,
    OpSignature,
    PeerConfig,
    ReduceOp,
    TcpConnector,
    connect_hosts,
)
from tfddl.errors import PeerLostError


def main(rank: int, size: int, directory: Path, length: int) -> None:
    connector = TcpConnector(rank)
    _write(directory / f"port {rank}", str(connector.port))
    ports = [directory / f"port {other}" for other in range(size)]
    wait_until(lambda: all(path.exists() for path in ports))
    connector.start(
        [Address(f"10.77.0.{1 + n}", int(path.read_text())) for n, path in enumerate(ports)], b"s"
    )
    config = PeerConfig(job="", rank=rank, size=size, spins=False)
    with connect_hosts(config, connector, range(size)) as network:
        group = Communicator(network, range(size))
        try:
            for number in range(10**6):
                group.all_reduce([np.ones(length)], ReduceOp.SUM, OpSignature("", "sum"))
                if number == 3:
                    _write(directory / f"begun {rank}", "")
        except PeerLostError as error:
            _write(directory / f"error {rank}", f"{time.time()} {error}")


def _write(path: Path, text: str) -> None:
    """All of it at once, to those who look."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
