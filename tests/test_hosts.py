"""Hosts, cores, names, frames and firewall lines: what needs no other process."""

import ipaddress
import itertools
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tfddl._src.cluster import Cluster, read_cores, read_start_timeout
from tfddl._src.launcher import exposure, interfaces
from tfddl._src.launcher.cores import share_of_cores, usable_cores
from tfddl._src.launcher.environment import Export, exported, forwarded, inherited
from tfddl._src.launcher.exposure import exposure_warning, firewall_line, server_warning
from tfddl._src.launcher.fleet import FleetOptions, find_unreachable_names
from tfddl._src.launcher.frames import HELLO, FrameError, Unpacker, pack
from tfddl._src.launcher.hosts import (
    HostSlots,
    fill_slots,
    parse_discovered,
    parse_hosts,
    ranks_of,
    read_hostfile,
    render_hosts,
    spread_slots,
)
from tfddl._src.launcher.plan import HostAllocation, plan_processes
from tfddl._src.launcher.report import Outcome, WorkerExit, failure_report
from tfddl._src.launcher.ssh import SshOptions
from tfddl.errors import ClusterError, LaunchError


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("hostA:2,hostB:4", [("hostA", 2), ("hostB", 4)]),
        (" hostA , host-b.example.org:3", [("hostA", 1), ("host-b.example.org", 3)]),
        (
            "10.0.0.1:2,[fd00::1]:3,fd00::2,[fe80::1%eth0]",
            [
                ("10.0.0.1", 2),
                ("fd00::1", 3),
                ("fd00::2", 1),
                ("fe80::1%eth0", 1),
            ],
        ),
    ],
)
def test_hosts_are_read(text: str, hosts: list[tuple[str, int]]) -> None:
    assert [(host.name, host.slots) for host in parse_hosts(text)] == hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no host name in ''. HINT: -H hostA:2,hostB:2"),
        ("a,,b", "there is no host name in ''"),
        (":2", "there is no host name in ':2'"),
        ("a:", "host a has '' slots; a number is expected"),
        ("a:x", "host a has 'x' slots; a number is expected"),
        ("a:-1", "host a has '-1' slots; a number is expected"),
        ("a:0", "host a has 0 slots; it must be 1..1024"),
        ("a:2,b:1,a:1", "host a is named twice. HINT: once, as a:3"),
        ("-oProxyCommand=x", "'-oProxyCommand=x' is no host name; letters, digits"),
        (
            "me@a:2",
            "'me@a' is no host name; letters, digits, '.', '-' and '_' are expected, or an "
            "IP address. HINT: another user, port or key belongs in ~/.ssh/config",
        ),
        ("$(id):2", "'$(id)' is no host name"),
        ("a b:2", "'a b' is no host name"),
        ("a\n:2", "'a\\n' is no host name"),
    ],
)
def test_mistakes_in_hosts_are_said(text: str, message: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", {}),
        ("\n \n", {}),
        ("a:2\nb\n", {"a": 2, "b": 4}),
        (" b \n a:1", {"b": 4, "a": 1}),
        ("a:0\nb:2", {"b": 2}),  # There is a host, but no slot is free.
        ("[fd00::1]:2\nfd00::2", {"fd00::1": 2, "fd00::2": 4}),
        ("fe80::0:0\n[fd00::1]:0", {"fe80::0:0": 4}),  # The end of an address is no number.
        ("# from the queue\na:2 # idle\n#b", {"a": 2}),
    ],
)
def test_hosts_that_a_discovery_script_prints(text: str, hosts: dict[str, int]) -> None:
    found = parse_discovered(text, default_slots=4)
    assert found == hosts
    assert list(found) == list(hosts)


@pytest.mark.parametrize("text", ["a:2\na:3", "a b", "a:x", "a:-1", ":2", "a:1025"])
def test_a_discovery_script_that_prints_something_else(text: str) -> None:
    with pytest.raises(LaunchError):
        parse_discovered(text, default_slots=4)


def test_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\nhostA slots=2\n\nhostB\t slots=4 max_slots=8 # new\nhostC\nhostD:3\n")
    found = [(host.name, host.slots) for host in read_hostfile(path)]
    assert found == [("hostA", 2), ("hostB", 4), ("hostC", 1), ("hostD", 3)]
    for text, message in (
        ("a slots=2\n-x slots=1", f"{path}, line 2: '-x' is no host name"),
        ("a slots=two", f"{path}, line 1: host a has 'two' slots; a number is expected"),
        ("a sluts=2", "'a sluts=2' can't be parsed; 'hostA slots=2' is expected"),
        ("# nobody", f"the hostfile {path} names no host. HINT: lines like 'hostA slots=2'"),
        ("a\na", "host a is named twice. HINT: once, as a:2"),
    ):
        path.write_text(text)
        with pytest.raises(LaunchError, match=re.escape(message)):
            read_hostfile(path)
    path.write_bytes(b"\xff")
    with pytest.raises(LaunchError, match="can't read the hostfile"):
        read_hostfile(path)
    with pytest.raises(LaunchError, match="can't read the hostfile .*No such file"):
        read_hostfile(tmp_path / "none")


def test_workers_are_spread_over_hosts() -> None:
    hosts = parse_hosts("a:2,[fd00::1]:4,c")
    spread = [render_hosts(spread_slots(hosts, n)) for n in range(1, 8)]
    assert spread == [
        "a:1",
        "a:1,[fd00::1]:1",
        "a:1,[fd00::1]:1,c:1",
        "a:2,[fd00::1]:1,c:1",
        "a:2,[fd00::1]:2,c:1",
        "a:2,[fd00::1]:3,c:1",
        "a:2,[fd00::1]:4,c:1",
    ]
    assert spread_slots(hosts, 7) == parse_hosts(spread[-1]) == hosts
    with pytest.raises(LaunchError, match="8 workers don't fit on 3 hosts with 7 slots. HINT: "):
        spread_slots(hosts, 8)


def test_workers_fill_one_host_after_the_other() -> None:
    hosts = parse_hosts("a:2,b:3,c:1")
    filled = [[(h.name, h.slots) for h in fill_slots(hosts, n)] for n in (1, 2, 3, 5, 6)]
    assert filled == [
        [("a", 1)],
        [("a", 2)],
        [("a", 2), ("b", 1)],
        [("a", 2), ("b", 3)],
        [("a", 2), ("b", 3), ("c", 1)],
    ]
    assert ranks_of(hosts) == {"a": range(2), "b": range(2, 5), "c": range(5, 6)}
    message = "7 workers (-np) don't fit on 3 hosts with 6 slots. HINT: give a host more slots"
    with pytest.raises(LaunchError, match=re.escape(message)):
        fill_slots(hosts, 7)


def test_plans_know_their_place() -> None:
    allocations = [HostAllocation("a", "10.0.0.1", (5, 6)), HostAllocation("b", "fd00::1", (7,))]
    plans = plan_processes(("true",), allocations=allocations, environment={}, directory="/d")
    assert [(p.host, p.local_rank, p.local_size) for p in plans] == [
        ("a", 0, 2),
        ("a", 1, 2),
        ("b", 0, 1),
    ]
    for plan in plans:
        assert '["10.0.0.1:5", "10.0.0.1:6", "[fd00::1]:7"]' in plan.environment["TF_CONFIG"]
        assert plan.directory == "/d"


@pytest.mark.parametrize("num_cores", range(1, 20))
@pytest.mark.parametrize("local_size", range(1, 9))
def test_shares_of_cores(num_cores: int, local_size: int) -> None:
    cores = [3 * core for core in range(num_cores)]
    shares = [
        share_of_cores(cores, local_rank=rank, local_size=local_size) for rank in range(local_size)
    ]
    assert {len(share) for share in shares} == {num_cores // local_size}
    everything = [core for share in shares for core in share]
    assert everything == cores[: len(everything)]


def test_threads_of_one_core_are_neighbours(tmp_path: Path) -> None:
    """As Linux numbers them on most machines: first threads first, then all second ones."""
    from tfddl._src.launcher import cores

    for core in range(8):
        folder = tmp_path / f"cpu{core}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core % 4 // 2}\n")
        (folder / "core_id").write_text(f"{core % 2}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "_TOPOLOGY", f"{tmp_path}/cpu{{}}/topology")
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
        assert usable_cores() == (0, 4, 1, 5, 2, 6, 3, 7)
        patch.setattr(cores, "_TOPOLOGY", f"{tmp_path}/none{{}}")
        assert usable_cores() == tuple(range(8))


def test_the_environment_travels_but_for_what_belongs_to_this_host() -> None:
    here = {"HOME": "/h", "SSH_AUTH_SOCK": "s", "XDG_RUNTIME_DIR": "x", "SLURM_PROCID": "1"}
    goes = {"PATH": "/v/bin", "PYTHONPATH": "p", "TF_X": "1", "HOROVOD_Y": "2", "HOMELESS": "3"}
    assert forwarded({**here, **goes}) == goes
    # What an engine says of one process is wrong for the workers that this one starts, on any host.
    of_one = dict.fromkeys(
        "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT NODE_RANK OMPI_COMM_WORLD_RANK "
        "PMI_RANK PMI_FD PMIX_RANK PALS_RANKID PET_NODE_RANK MPI_LOCALRANKID SLURM_PROCID "
        "SLURM_NTASKS MV2_COMM_WORLD_SIZE FLUX_TASK_RANK TFDDL_ALONE TFDDL_SECRET "
        "TFDDL_CORES".split(),
        "1",
    )
    of_this_host = {"SLURM_JOB_ID": "7", "SM_CHANNEL_TRAIN": "/data", "JOB_COMPLETION_INDEX": "1"}
    assert inherited({**of_one, **of_this_host, **here, **goes}) == {
        **of_this_host,
        **{name: value for name, value in here.items() if name != "SLURM_PROCID"},
        **goes,
    }
    assert forwarded({**of_one, **of_this_host, **goes}) == goes
    exports = [Export.parse("HOME"), Export.parse("A=b=c"), Export.parse("B=")]
    assert exported(here, exports) == {"HOME": "/h", "A": "b=c", "B": ""}
    with pytest.raises(LaunchError, match="where it isn't set. HINT: -x NONE=VALUE"):
        exported(here, [Export("NONE")])
    for name in ("", "a b", "1A", "BASH_FUNC_x%%"):
        with pytest.raises(LaunchError, match="letters, digits and '_' are expected"):
            Export.parse(f"{name}=1")


def test_numbers_from_the_environment() -> None:
    assert read_start_timeout({}) is read_start_timeout({"TFDDL_START_TIMEOUT": ""}) is None
    assert read_start_timeout({"TFDDL_START_TIMEOUT": "2.5"}) == 2.5
    for text in ("x", "0", "-1", "nan", "inf"):
        with pytest.raises(ClusterError, match=f"TFDDL_START_TIMEOUT is '{text}'; seconds"):
            read_start_timeout({"TFDDL_START_TIMEOUT": text})
    assert read_cores({}) is None
    assert read_cores({"TFDDL_CORES": "3"}) == 3
    for text in ("0", "-1", "many"):
        with pytest.raises(ClusterError, match="TFDDL_CORES is"):
            read_cores({"TFDDL_CORES": text})


MESSAGES = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9))


@given(
    st.binary(max_size=50),
    st.lists(st.tuples(MESSAGES, st.binary(max_size=20)), max_size=5),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_frames_do_not_depend_on_how_they_are_read(
    before: bytes, frames: list[tuple[dict[str, Any], bytes]], cuts: list[int]
) -> None:
    assume(HELLO not in before)
    data = before + HELLO + b"".join(pack(message, payload) for message, payload in frames)
    unpacker, found, start = Unpacker(greeted=False), [], 0
    while start < len(data):
        step = cuts[start % len(cuts)]
        found += unpacker.feed(data[start : start + step])
        start += step
    assert found == frames
    assert unpacker.preamble is None


def test_what_is_no_frame_is_refused() -> None:
    surrogates = {"argv": [b"\xff".decode("utf-8", "surrogateescape")]}
    assert Unpacker().feed(pack(surrogates)) == [(surrogates, b"")]
    for data in (b"GET / HTTP/1.1\r\n\r\n", pack({})[:8] + b"[]", b"\0\0\0\2\0\0\0\0{]"):
        with pytest.raises(FrameError):
            Unpacker().feed(data)


def answer(identity: str, **resolved: list[str]) -> dict[str, Any]:
    return {"identity": identity, "resolved": resolved}


@pytest.mark.parametrize(
    ("answers", "problems"),
    [
        # Debian names a host itself 127.0.1.1: only others have to find it.
        (
            {
                "a": answer("1", a=["127.0.1.1"], b=["10.0.0.2"]),
                "b": answer("2", a=["10.0.0.1"], b=["127.0.1.1"]),
            },
            [],
        ),
        (
            {
                "a": answer("1", a=["10.0.0.1"], b=["10.0.0.2"]),
                "b": answer("2", a=["127.0.0.1", "::1"], b=["10.0.0.2"]),
            },
            ["a is 127.0.0.1 on b, where it reaches only b itself. HINT: a name or an"],
        ),
        (
            {
                "a": answer("1", a=["10.0.0.1"], b=[]),
                "b": answer("2", a=["127.0.0.1", "10.0.0.1"], b=["10.0.0.2"]),
            },
            ["a can't resolve b. HINT: a name that all hosts know (DNS, /etc/hosts), an address"],
        ),
        # One machine by two names: its loopback is good enough.
        (
            {
                "a": answer("1", a=["127.0.0.1"], b=["127.0.0.2"]),
                "b": answer("1", a=["127.0.0.1"], b=["127.0.0.2"]),
            },
            [],
        ),
    ],
)
def test_names_that_lead_nowhere(answers: dict[str, Any], problems: list[str]) -> None:
    found = find_unreachable_names(answers)
    assert len(found) == len(problems)
    for line, start in zip(found, problems, strict=True):
        assert line.startswith(start)


def test_interfaces_of_this_host() -> None:
    found = interfaces.addresses_by_interface()
    assert ipaddress.ip_address("127.0.0.1") in found["lo"]
    assert interfaces.interface_of(["none", "lo"]) == ("lo", "127.0.0.1")
    for name, addresses in interfaces.reachable_addresses().items():
        assert not [address for address in addresses if address.is_loopback]
        assert interfaces.is_this_host(str(addresses[0])), name
    for name in ("localhost", socket.gethostname(), "127.0.0.1"):
        assert interfaces.is_this_host(name)
    for name in ("127.0.0.2", "no.such.host.invalid", "-x"):
        assert not interfaces.is_this_host(name)
    with pytest.raises(LaunchError, match=r"no interface a or b with an address .*there are lo \("):
        interfaces.interface_of(["a", "b"])


def test_the_warning_of_open_ports() -> None:
    assert exposure_warning([5, 6], reachable={}, peers=[], uid=7) is None
    reachable = {"eth0": ["10.0.0.1", "fd00::1"], "wlan0": ["10.1.0.1"]}
    text = exposure_warning([5, 6], reachable=reachable, peers=[], uid=7)
    assert text is not None
    assert text.startswith("WARNING: TensorFlow's servers obey whoever reaches their ports")
    assert "(eth0 10.0.0.1, wlan0 10.1.0.1)" in text
    assert "\n  nft '" in text
    assert 'input iifname != "lo" tcp dport { 5, 6 } drop; ' in text
    assert text.endswith('output oifname "lo" tcp dport { 5, 6 } meta skuid != 7 drop\'')
    text = exposure_warning([5], reachable=reachable, peers=["10.0.0.2"], uid=7)
    assert text is not None
    assert 'iifname != "lo" ip saddr != { 10.0.0.2 } tcp dport { 5 } drop; ' in text
    assert 'iifname != "lo" meta nfproto ipv6 tcp dport { 5 } drop; ' in text
    text = exposure_warning([5], reachable=reachable, peers=["fd00::2"], uid=7)
    assert text is not None
    assert "meta nfproto ipv4 tcp dport { 5 } drop; " in text
    assert "ip6 saddr != { fd00::2 } tcp dport { 5 } drop; " in text
    assert "'" not in firewall_line([5], ["10.0.0.1"], uid=7)[5:-1]


def test_what_a_worker_says_of_its_hosts_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "reachable_texts", lambda: {"eth0": ["10.0.0.1"]})
    monkeypatch.setattr(exposure, "resolve_texts", {"b": ["10.0.0.2"], "::1": ["::1"]}.get)
    addresses = ("a:5", "b:6", "a:7", "[::1]:8")
    text = server_warning(Cluster(addresses, rank=2))
    assert text is not None
    assert "ip saddr != { 10.0.0.2 } tcp dport { 5, 7 } drop" in text
    assert "ip6 saddr != { ::1 } tcp dport { 5, 7 } drop" in text
    assert f"meta skuid != {os.geteuid()} drop" in text
    assert (
        server_warning(Cluster(("a:5",), rank=0)) is server_warning(Cluster.single_worker()) is None
    )


def test_nothing_but_a_fixed_line_is_on_the_command_line() -> None:
    options = SshOptions(port=2222, remote_python="/opt/my python")
    *_, dashes, host, line = options.argv("hostA")
    assert (dashes, host) == ("--", "hostA")
    assert line.startswith("exec '/opt/my python' -P -c '")
    assert not set(line) & set("$`\\!\n")  # alike to every shell
    assert ("-p", "2222") in itertools.pairwise(options.argv("a"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SshOptions(port=0), "the ssh port (-p) is 0; it must be 1..65535"),
        (lambda: SshOptions(identity_file=Path("/none")), "the ssh key (-i) /none is no file"),
        (lambda: SshOptions(command=()), "--ssh-command is empty"),
        (lambda: SshOptions(remote_python=""), "--remote-python is empty"),
        (
            lambda: FleetOptions(hosts=(HostSlots("a", 1),), connect_s=0.0),
            "--start-timeout is 0.0; it must be above 0 seconds",
        ),
    ],
)
def test_options_are_checked(make: Any, message: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        make()


def test_a_lost_host_is_reported() -> None:
    lost = WorkerExit(
        rank=2,
        returncode=255,
        after_s=3.0,
        stderr_lines=(),
        ended_with=None,
        host="b",
        lost="the connection to b has ended",
    )
    ended = WorkerExit(0, -signal.SIGKILL, 3.0, (), signal.SIGKILL, host="a")
    outcome = Outcome(exits=(lost, ended), root=lost, interrupted_by=None, num_oom_kills=0)
    assert outcome.status == 255
    assert failure_report(outcome).splitlines() == [
        "rank 2 on b failed: lost with its host after 3.0 s",
        "the connection to b has ended",
        "it wrote nothing to stderr",
        "after that, ended by tfddlrun: rank 0",
    ]
