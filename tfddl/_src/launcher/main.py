"""The commands `tfddlrun` and `tfddl-doctor`: their flags, and what follows from them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfddl import __version__
from tfddl._src.cluster import NodeRank
from tfddl._src.command_line import accept_underscores
from tfddl._src.heartbeat import SAVED_STATUS
from tfddl._src.launcher import (
    elastic_flags,
    horovodrun_flags,
    host_flags,
    node_flags,
    slurm_flags,
)
from tfddl._src.launcher.cores import Binding
from tfddl._src.launcher.doctor import check_hosts
from tfddl._src.launcher.dry_run import describe
from tfddl._src.launcher.environment import Export, outer_job_size
from tfddl._src.launcher.exposure import TRUSTED_NETWORK
from tfddl._src.launcher.fleet import FleetOptions
from tfddl._src.launcher.guard import die_with_caller, say
from tfddl._src.launcher.hosts import HostSlots, fill_slots
from tfddl._src.launcher.job import requested_variables, run_job
from tfddl._src.launcher.job_options import JobOptions
from tfddl._src.launcher.multi_node import NODE_TIMEOUT_S, NodeOptions
from tfddl._src.launcher.system import require_linux, working_directory
from tfddl._src.launcher.worker_count import count_workers
from tfddl._src.startup_logs import has_gpu
from tfddl.errors import LaunchError

_CANT_START = 127
_AUTO = "auto"

_EPILOG = """\
Every worker runs the same command, and learns from TF_CONFIG who it is and where the others are.
Its output appears line by line with its rank in front. The first worker that fails ends the
others, and is the one reported. What follows COMMAND belongs to it, and is not touched.

other hosts:
  ssh must reach them without asking anything (keys, an agent, known_hosts; ~/.ssh/config counts);
  with --launcher slurm srun starts what runs there, and they are the nodes of the allocation.
  Workers run in the folder that tfddlrun is started in, with the same Python, at the same paths.
  The environment goes with them, PATH and PYTHONPATH included, but for what belongs to this host
  or login (HOME, USER, TMPDIR, DISPLAY, SSH_…, XDG_…, SLURM_… and the like); -x sends those too.
  If the connection to a host ends, or tfddlrun is silent for 20 s, its workers are killed.

several nodes:
  Where an engine (Slurm, SageMaker, Vertex AI, Kubeflow, an Indexed Job of Kubernetes), or you,
  start the same tfddlrun once on each host, all become one job: each starts the workers of its own
  host, as many as its -np says. Their rendezvous is at node 0 (--master-addr), by default on port
  12345; they give up after --start-timeout, naming who is missing. Which node this is, engines
  say by TF_CONFIG, SM_HOSTS, PET_…, SLURM_… or JOB_COMPLETION_INDEX, and the flags by hand. Every
  tfddlrun shows the output of its own workers, and ends with their status; when one fails, those
  of other nodes fail for it. --max-restarts and --min-np are for one tfddlrun: here the engine
  starts all again. Where TFDDL_SECRET is the same on all nodes, strangers can't take part; without
  it node 0 makes a secret, and whoever reaches its port before the nodes do may learn it.

when something fails:
  With --max-restarts a job that fails starts again on other ports, with TFDDL_RESTARTS=1, 2, …; a
  training with tfddl.callbacks.Checkpoint resumes from its newest checkpoint. With --min-np M it
  may go on with fewer workers where one keeps failing, and without a host that keeps failing, or
  can't be reached any more. SIGTERM, to tfddlrun or to a worker, makes such a training save at the
  next step, and end with status 75; the same command resumes from there. (To a worker, with
  --host-discovery-script, the job goes on without that host instead.) Ctrl-C is passed on to the
  workers: a script may catch KeyboardInterrupt, and save. All this holds for any
  hosts. With --host-discovery-script a job is elastic while a training runs that can save (a
  tfddl.callbacks.Checkpoint in fit, or a state of hvd.elastic.run): it goes on in the middle of the
  epoch with the workers that there are then, and waits where they are fewer than --min-np. The
  commits of Horovod's elastic states outlive restarts, and hosts as long as one is left.

exit status:
  0        all workers ended well
  75       SIGTERM has come, and the training is saved: the same command resumes it (--saved-status)
  N        the first worker that failed ended with N; 128 + N if signal N killed it (137 also for
           one that made no progress); with --max-restarts, of the last start
  255      the connection to a worker's host was lost
  128 + N  signal N ended the job: 130 for Ctrl-C, 143 for SIGTERM without a checkpoint
  127      the job could not be started
  2        a mistake in the arguments

examples:
  tfddlrun -np 2 python train.py --lr=0.1
  tfddlrun --horovod -np 4 python horovod_script.py
  tfddlrun -np 4 --output-filename logs python -m package.train --epochs 3
  tfddlrun -np auto python train.py
  tfddlrun -H hostA:2,hostB:2 python train.py
  tfddlrun --host-discovery-script ./hosts.sh --min-np 2 --max-np 8 python train.py
  tfddlrun --nnodes 2 --node-rank 0 --master-addr hostA -np 4 python train.py     on hostA
  tfddlrun --nnodes 2 --node-rank 1 --master-addr hostA -np 4 python train.py     on hostB
  srun --ntasks-per-node=1 tfddlrun -np auto python train.py
  tfddlrun --launcher slurm python train.py           in the script of sbatch, or in salloc
  tfddlrun --check -H hostA:2,hostB:2
"""


def main(argv: Sequence[str], *, environment: Mapping[str, str], prog: str = "tfddlrun") -> int:
    """Runs a job as the arguments say, and returns the exit status."""
    parser = make_parser(prog)
    arguments = horovodrun_flags.parse(parser, argv)
    if arguments.check_build:
        sys.stdout.write(f"{horovodrun_flags.describe_build()}\n")
        return 0
    # Before all else: the caller may die at any moment.
    if arguments.caller is not None:
        die_with_caller(arguments.caller)
    horovodrun_flags.translate(arguments)
    try:
        horovodrun_flags.refuse(arguments)
        slurm_flags.resolve(arguments, environment)
        node = None if arguments.check else node_flags.read_nodes(arguments, environment)
        notices = _resolve_num_workers(arguments, node, environment)
        fleet = _read_fleet(arguments)
        if arguments.check:
            hosts = _or_this_host(fleet, arguments)
            require_linux(prog)
            return check_hosts(hosts, directory=working_directory(environment))
        options = _read_options(arguments, fleet, node, environment)
        shown = requested_variables(options, environment)
        if options.as_horovod and "PYTHONPATH" in environment:
            shown.setdefault("PYTHONPATH", environment["PYTHONPATH"])
        if arguments.dry_run:
            text = describe(options, directory=working_directory(environment), environment=shown)
            sys.stdout.write(f"{text}\n")
            return 0
    except LaunchError as error:
        parser.error(str(error))
    if arguments.preload and not options.preload:
        notices.append("--preload is left out: this machine has a GPU, which forks can't share")
    notices += [*elastic_flags.notices(arguments), *horovodrun_flags.notices(arguments)]
    for notice in notices:
        say(prog, notice)
    try:
        require_linux(prog)
        status = run_job(options, environment=environment)
        return arguments.saved_status if status == SAVED_STATUS else status
    except LaunchError as error:
        say(prog, str(error))
        return _CANT_START


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:], environment=os.environ))


def run_horovodrun() -> None:
    """The console script `tfddl-horovodrun`: `tfddlrun --horovod`, which takes all its flags."""
    sys.exit(main(["--horovod", *sys.argv[1:]], environment=os.environ, prog="tfddl-horovodrun"))


def run_doctor() -> None:
    """The console script `tfddl-doctor`: `tfddlrun --check`."""
    sys.exit(main(["--check", *sys.argv[1:]], environment=os.environ, prog="tfddl-doctor"))


def _resolve_num_workers(
    arguments: argparse.Namespace, node: NodeRank | None, environment: Mapping[str, str]
) -> list[str]:
    """Replaces `-np auto` by a number, and a missing -np where an engine says how many.

    Returns:
        Notices for the user about it, and about a job within a job.
    """
    notices = []
    if node is None and not arguments.check and outer_job_size(environment) > 1:
        notices.append("started by a worker of another tfddlrun; this is a separate job")
    wanted = None if node is None else node.workers_per_node
    if arguments.num_proc is None and wanted is not None:
        arguments.num_proc = _AUTO
    if arguments.num_proc != _AUTO:
        return notices
    if arguments.hosts or arguments.hostfile or arguments.host_discovery_script:
        raise LaunchError(
            "-np auto counts the GPUs of this host, and -H (or --hostfile, or a host discovery "
            "script) names others. HINT: a number of workers for each, as in -H hostA:4,hostB:4"
        )
    if node is not None and wanted is not None:
        arguments.num_proc, reason = wanted, node.source
    else:
        count = count_workers(environment)
        arguments.num_proc, reason = count.number, count.reason
    workers = "worker" if arguments.num_proc == 1 else "workers"
    return [*notices, f"-np auto: {arguments.num_proc} {workers} here; {reason}"]


def _read_options(
    arguments: argparse.Namespace,
    fleet: FleetOptions | None,
    node: NodeRank | None,
    environment: Mapping[str, str],
) -> JobOptions:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    num_workers = arguments.num_proc
    elastic = elastic_flags.read_elastic(arguments)
    if elastic is not None:
        num_workers, fleet = elastic.first_workers, host_flags.make_fleet((), arguments)
    elif fleet is not None:
        num_workers = sum(host.slots for host in fleet.hosts)
        fleet = None if fleet.is_this_host else fleet
    nodes = None
    if node is not None:
        nodes = NodeOptions(
            node,
            interfaces=host_flags.read_interfaces(arguments) or node_flags.interfaces(environment),
            timeout_s=NODE_TIMEOUT_S
            if arguments.start_timeout is None
            else arguments.start_timeout,
        )
    return JobOptions(
        num_workers=num_workers,
        command=tuple(command),
        grace_s=arguments.grace_period,
        stall_timeout_s=arguments.stall_timeout,
        restarts=elastic_flags.read_restarts(arguments),
        elastic=elastic,
        logs=arguments.output_filename,
        as_horovod=arguments.horovod,
        verbose=arguments.verbose,
        fleet=fleet,
        nodes=nodes,
        binding=Binding(arguments.bind),
        exports=(*map(Export.parse, arguments.x), *horovodrun_flags.exports(arguments)),
        start_timeout_s=arguments.start_timeout,
        preload=_read_preload(arguments),
        trusts_network=arguments.trusted_network or bool(environment.get(TRUSTED_NETWORK)),
    )


def _read_preload(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The modules of --preload; none where a GPU is: CUDA doesn't work in forks."""
    modules = tuple(name for name in (arguments.preload or "").split(",") if name)
    return () if has_gpu() else modules


def _read_fleet(arguments: argparse.Namespace) -> FleetOptions | None:
    """The hosts that -H or --hostfile name, with the workers of -np dealt out to them."""
    hosts = host_flags.read_hosts(arguments)
    finds_hosts = arguments.check or arguments.host_discovery_script is not None
    if not hosts and arguments.num_proc is None and not finds_hosts:
        raise LaunchError(
            "the number of workers is not given. HINT: -np 2, -np auto, or -H hostA:2,hostB:2"
        )
    if not hosts:
        return None
    if arguments.num_proc is not None:
        if arguments.num_proc < 1:
            raise LaunchError(
                f"the number of workers (-np) is {arguments.num_proc}; it must be at least 1"
            )
        hosts = fill_slots(hosts, arguments.num_proc)
    return host_flags.make_fleet(hosts, arguments)


def _or_this_host(fleet: FleetOptions | None, arguments: argparse.Namespace) -> FleetOptions:
    """The hosts that are checked: this one, where none are named."""
    return fleet or host_flags.make_fleet(
        (HostSlots("localhost", arguments.num_proc or 1),), arguments
    )


def _parse_num_workers(text: str) -> int | str:
    try:
        return text if text == _AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {_AUTO!r}") from None


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The flags of `tfddlrun`, and of `tfddl-doctor`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run a command as several workers that train together, here or on many hosts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s {-np N | -np auto | -H HOST:N,…} [options] [--] COMMAND …",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-np",
        "--num-proc",
        "--nproc-per-node",
        type=_parse_num_workers,
        metavar="N",
        help="number of workers, with several nodes those of this one; auto: one for each visible "
        "GPU, without a GPU one for each CPU socket (default: with -H one for each slot; on "
        "several nodes what the engine says)",
    )
    parser.add_argument(
        "--horovod",
        action="store_true",
        help="run a script written for Horovod: `import horovod` finds tfddl, and Keras 2 idioms "
        "still work, with one deprecation warning each",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="also show ports and hosts, and all that TensorFlow logs",
    )
    parser.add_argument("-v", "--version", action="version", version=f"%(prog)s {__version__}")
    _add_host_flags(parser.add_argument_group("hosts, by ssh or srun"))
    node_flags.add_flags(parser.add_argument_group("several nodes, with a tfddlrun on each"))
    _add_worker_flags(parser.add_argument_group("workers"))
    elastic_flags.add_recovery_flags(parser.add_argument_group("when something fails"))
    elastic_flags.add_flags(parser.add_argument_group("elastic jobs"))
    horovodrun_flags.add_flags(parser)
    _add_other_flags(parser.add_argument_group("instead of running"))
    _add_hidden_flags(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return accept_underscores(parser)


def _add_host_flags(group: argparse._ArgumentGroup) -> None:
    host_flags.add_flags(group)
    group.add_argument(
        "--trusted-network",
        action="store_true",
        help="don't warn of the ports of TensorFlow's servers, where workers start them (also "
        f"by {TRUSTED_NETWORK}=1 in the environment)",
    )


def _add_worker_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-x",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="an environment variable for all workers; may be repeated",
    )
    group.add_argument(
        "--bind",
        choices=[binding.value for binding in Binding],
        default=JobOptions.binding.value,
        help="cores: each worker keeps to its share of the cores of its host; none: any worker "
        "runs anywhere (default: %(default)s)",
    )
    _add_preload_flag(group)
    group.add_argument(
        "--output-filename",
        type=Path,
        metavar="DIR",
        help="also write every worker's whole output to DIR/rank.N/stdout and DIR/rank.N/stderr",
    )


def _add_preload_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preload",
        metavar="MODULE[,MODULE]",
        help="import these once, such as tensorflow,keras, in a process that all workers of this "
        "machine are forked from: many of them start faster. They are imported before the script "
        "begins, which then can't change what they read from the environment",
    )


def _add_other_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print every host's command line and every rank's TF_CONFIG, and start nothing",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="check the hosts (tfddl-doctor): versions, ports, names, clocks, limits, speed",
    )


def _add_hidden_flags(parser: argparse.ArgumentParser) -> None:
    """For `tfddl-bench` only: whose end ends this process."""
    parser.add_argument("--caller", type=int, help=argparse.SUPPRESS)
