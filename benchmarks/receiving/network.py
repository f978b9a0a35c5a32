"""Where servers and senders run: on loopback, or in two network namespaces with a slow link between."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE, THERE = "10.77.0.1", "10.77.0.2"


@dataclass(frozen=True)
class Network:
    """How to start a server, and where to reach it."""

    host: str
    inside: tuple[str, ...] = ()
    """Words before a command that is to run on the server's side."""
    by: str = "loopback"
    """What makes the delay."""
    round_trip_ms: float = 0.0
    """As measured."""


LOOPBACK = Network("127.0.0.1")


@contextlib.contextmanager
def delayed(milliseconds: float, folder: Path):
    """A namespace for servers beside this one, and a round trip of `milliseconds` between them.

    What the server's side sends waits for all of it, what the senders send for nothing; TCP knows the sum alone. A veth
    pair with `tc netem`; where the kernel has no netem, two TUN devices and relay.c between them, which hands packets
    on after the time. The namespace is a child's: it goes with the child, and the child with this process.

    Args:
        milliseconds: Round trip.
        folder: For the relay's program.

    Raises:
        subprocess.CalledProcessError: No right to do so, or neither netem nor a C compiler.
        RuntimeError: The round trip is shorter than that.
    """
    hold = ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat"]
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(_child(hold))
        inside = ("nsenter", "-t", str(holder.pid), "-n", "--")
        if _with_netem(milliseconds, holder.pid, inside):
            by = "tc netem"
            stack.callback(_run, "ip", "link", "del", "bench0")
        else:
            program = folder / "relay"
            _run("gcc", "-O2", "-o", str(program), str(Path(__file__).with_name("relay.c")))
            stack.enter_context(_child([str(program), str(holder.pid), str(round(milliseconds * 1000))]))
            by = "relay.c"
        _run("ip", "addr", "add", f"{HERE}/24", "dev", "bench0")
        _run("ip", "link", "set", "bench0", "txqueuelen", "10000", "up")
        _run(*inside, "ip", "addr", "add", f"{THERE}/24", "dev", "bench1")
        _run(*inside, "ip", "link", "set", "bench1", "txqueuelen", "10000", "up")
        taken = _round_trip_ms()
        if taken < 0.9 * milliseconds:
            raise RuntimeError(f"a round trip takes {taken:.2f} ms, not {milliseconds}")
        yield Network(THERE, inside, by, taken)


def _with_netem(milliseconds: float, pid: int, inside: tuple[str, ...]) -> bool:
    _run("ip", "link", "add", "bench0", "type", "veth", "peer", "name", "bench1", "netns", str(pid))
    netem = ["tc", "qdisc", "add", "dev", "bench1", "root", "netem", "delay", f"{milliseconds}ms", "limit", "100000"]
    if subprocess.run([*inside, *netem], capture_output=True, check=False).returncode == 0:
        return True
    _run("ip", "link", "del", "bench0")
    return False


def _round_trip_ms() -> float:
    """Of a connection that is refused."""
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((THERE, 9), 5):
            pass
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


@contextlib.contextmanager
def _child(command: list[str]):
    """It says "up", and ends when its stdin does: also when this process is killed."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if child.stdout.readline() != "up\n":
            raise subprocess.CalledProcessError(child.wait(), command)
        yield child  # then its stdin is closed, and it ends


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
