"""`python -m tfddl.cluster --hosts hostA:12345,hostB:12345 --index 1` prints the TF_CONFIG."""

from __future__ import annotations

import argparse
import sys

from tfddl import __version__
from tfddl._src.cluster.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl._src.command_line import accept_underscores
from tfddl.errors import ClusterError


def main() -> int:
    """Prints the TF_CONFIG of one worker; 2 if the arguments describe no cluster."""
    parser = argparse.ArgumentParser(
        prog="python -m tfddl.cluster", description="Print the TF_CONFIG of one worker."
    )
    parser.add_argument(
        "--hosts",
        required=True,
        metavar="HOST:PORT,…",
        help="the address of every worker in rank order, the same list on every host",
    )
    parser.add_argument(
        "--index", required=True, type=int, help="which of them this worker is, from 0"
    )
    parser.add_argument("-v", "--version", action="version", version=f"%(prog)s {__version__}")
    arguments = accept_underscores(parser).parse_args()
    addresses = tuple(entry.strip() for entry in arguments.hosts.split(","))
    try:
        cluster = Cluster(addresses=addresses, rank=arguments.index)
    except ClusterError as error:
        sys.stderr.write(f"--hosts {arguments.hosts} --index {arguments.index}: {error}\n")
        return 2
    sys.stdout.write(tf_config.render(cluster) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
