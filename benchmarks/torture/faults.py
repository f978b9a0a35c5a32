"""What is done to the node. Each fault is a function of the rig; what it starts may go on while the next one begins."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from benchmarks.torture import raw
from benchmarks.torture.archive import BEHAVIOURS, REPORTS
from benchmarks.torture.node import ACSE, NETWORK, SOCKET
from benchmarks.torture.senders import SCANNERS

if TYPE_CHECKING:
    from benchmarks.torture.rig import Rig

Fault = Callable[["Rig", random.Random], str]
"""Returns what came of it, for the log."""

STATES = (
    "receiving", "pending", "sealed", "planned", "enhancing", "derived", "enhanced", "sending", "sent", "committing",
    "commitment asked", "committed", "delivered", "done",
)  # fmt: skip
"""Transitions of a job, in their order; "sending" and "committing" are seen at the archive, before its answer."""
_SLACK = 8.0
"""Seconds above a timeout of the node in which it has to hang up; the machine may be busy."""


def table(*, postgresql: bool, clock: bool) -> dict[str, tuple[int, Fault]]:
    """Kind of fault -> weight and function."""
    faults: dict[str, tuple[int, Fault]] = {
        "kill -9 node": (10, _kill_node),
        "kill -9 node, and again while it starts": (4, _kill_twice),
        "kill -9 receiver": (8, _kill_receiver),
        "kill -9 worker": (8, _kill_worker),
        "SIGTERM and start": (3, _restart),
        "duplicate": (5, _duplicate),
        "conflicting UID": (5, _conflict),
        "one UID from two senders at once": (4, _race),
        "sender dies in a data set": (4, _half_data_set),
        "slow drip of an association request": (2, _drip_request),
        "slow drip of a data set": (2, _drip_data),
        "silent connection": (2, _silent),
        "idle association": (2, _idle),
        "half a PDU": (4, _half_pdu),
        "PDU of 4 GiB": (3, _huge_pdu),
        "garbage": (4, _garbage),
        "200 parallel associations": (2, _flood),
        "stranger, and wrong called AE title": (2, _stranger),
        "half a STOW-RS body": (2, _half_stow),
        "STOW-RS garbage": (2, _stow_garbage),
    }
    for state in STATES:
        faults[f"kill -9 node at: {state}"] = (1, _at(state, _kill_node_now))
    for state in STATES[3:]:
        faults[f"kill -9 worker at: {state}"] = (1, _at(state, _kill_worker_now))
    for how in (*BEHAVIOURS, *REPORTS):
        faults[f"archive: {how}"] = (3 if how in BEHAVIOURS else 2, _archive(how))
    if clock:
        faults["clock jumps"] = (6, _clock)
    if postgresql:
        faults["PostgreSQL stopped and started"] = (12, _stop_database)
        faults["PostgreSQL crashes and recovers"] = (12, _crash_database)
        faults["worker stands still, and goes on later"] = (6, _freeze_worker)
    else:
        faults["power cut"] = (8, _cut)
        for state in ("receiving", "pending", "sealed", "enhanced", "sent", "committed"):
            faults[f"power cut at: {state}"] = (1, _at(state, _cut_now))
        faults["disk full"] = (4, _fill)
        faults["disk below its reserve"] = (2, _below_reserve)
        faults["disk turns read-only"] = (3, _read_only)
    return faults


# ---------------------------------------------------------------- processes


def _kill_node(rig: Rig, rng: random.Random) -> str:
    time.sleep(rng.uniform(0.0, 2.0))
    return _kill_node_now(rig, rng)


def _kill_node_now(rig: Rig, rng: random.Random) -> str:
    rig.node.kill()
    rig.start_node()
    return ""


def _kill_twice(rig: Rig, rng: random.Random) -> str:
    rig.node.kill()
    rig.node.spawn()
    time.sleep(rng.uniform(0.0, 6.0))
    return _kill_node_now(rig, rng)


def _kill_receiver(rig: Rig, rng: random.Random) -> str:
    rig.kick()
    time.sleep(rng.uniform(0.0, 0.8))
    return _kill_one(rig.node.receivers(), rng)


def _kill_worker(rig: Rig, rng: random.Random) -> str:
    rig.kick()
    time.sleep(rng.uniform(0.0, 3.0))
    return _kill_worker_now(rig, rng)


def _kill_worker_now(rig: Rig, rng: random.Random) -> str:
    return _kill_one(rig.node.workers(), rng)


def _kill_one(pids: list[int], rng: random.Random) -> str:
    if not pids:
        return "none was alive"
    try:
        os.kill(rng.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return "it was gone"
    return ""


def _restart(rig: Rig, rng: random.Random) -> str:
    time.sleep(rng.uniform(0.0, 2.0))
    code = rig.node.terminate()
    if code != 0:
        rig.break_rule("SIGTERM ends the node with exit code 0", f"it was {code}")
    rig.start_node()
    return f"exit code {code}"


def _freeze_worker(rig: Rig, rng: random.Random) -> str:
    """Longer than `silent_seconds`: another worker takes its jobs over, and then there are two."""
    pids = rig.node.workers()
    if not pids:
        return "none was alive"
    rig.kick()
    pid = rng.choice(pids)
    time.sleep(rng.uniform(0.5, 2.5))
    try:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(12.0)
    except ProcessLookupError:
        return "it was gone"
    finally:
        rig.signal(pid, signal.SIGCONT)
    return ""


def _at(state: str, then: Fault) -> Fault:
    def fault(rig: Rig, rng: random.Random) -> str:
        watch = rig.watch(state)
        rig.kick()
        seen = watch(30.0)
        return then(rig, rng) if seen else f"not seen; {then(rig, rng)}"

    return fault


# ---------------------------------------------------------------- disk and clock


def _cut(rig: Rig, rng: random.Random) -> str:
    rig.kick()
    time.sleep(rng.uniform(0.0, 4.0))
    return _cut_now(rig, rng)


def _cut_now(rig: Rig, rng: random.Random) -> str:
    rig.disk.cut()
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0.0, 0.3))  # the node lives a moment longer than its disk
    rig.node.kill()
    rig.disk.unmount()
    rig.disk.mount()
    rig.start_node()
    return ""


def _fill(rig: Rig, rng: random.Random) -> str:
    rig.disk.fill()
    rig.kick()
    time.sleep(rng.uniform(1.0, 5.0))
    also = rng.choice(("", "kill -9 node", "kill -9 worker"))
    if also == "kill -9 node":
        rig.node.kill()
        rig.node.spawn()
    elif also:
        _kill_worker_now(rig, rng)
    time.sleep(rng.uniform(1.0, 4.0))
    rig.disk.empty()
    rig.ensure_up()
    return also


def _below_reserve(rig: Rig, rng: random.Random) -> str:
    rig.disk.fill(leave=2 << 20)
    statuses = rig.senders.store(rig.make(1), SCANNERS[0])
    time.sleep(rng.uniform(0.5, 2.0))
    rig.disk.empty()
    if statuses[0] == 0x0000:
        rig.break_rule("nothing is received below the disk reserve", "an instance was acknowledged")
    return f"status {statuses[0]}"


def _read_only(rig: Rig, rng: random.Random) -> str:
    rig.kick()
    time.sleep(rng.uniform(0.0, 2.0))
    rig.disk.break_down()
    rig.kick()
    time.sleep(rng.uniform(1.0, 3.0))
    rig.node.kill()
    rig.disk.repair()
    rig.start_node()
    return ""


def _clock(rig: Rig, rng: random.Random) -> str:
    seconds = rng.choice((-86400, -3600, -61, 61, 3600, 86400, 3 * 86400, 0))
    rig.clock.set(seconds)
    rig.kick()
    time.sleep(rng.uniform(0.2, 2.0))
    return f"{seconds:+} s"


# ---------------------------------------------------------------- database


def _stop_database(rig: Rig, rng: random.Random) -> str:
    return _database(rig, rng, "fast")


def _crash_database(rig: Rig, rng: random.Random) -> str:
    return _database(rig, rng, "immediate")


def _database(rig: Rig, rng: random.Random, how: str) -> str:
    assert rig.database is not None
    rig.kick()
    time.sleep(rng.uniform(0.0, 3.0))
    rig.database.stop(how)
    rig.kick()
    time.sleep(rng.uniform(0.5, 6.0))
    rig.database.start()
    return ""


# ---------------------------------------------------------------- archives


def _archive(how: str) -> Fault:
    def fault(rig: Rig, rng: random.Random) -> str:
        archives = list(rig.archives.values())
        archive = archives[0] if how in REPORTS or how == "lies" else rng.choice(archives)
        if archive.behave or archive.report:
            archive.heal()
        archive.misbehave(how)
        seconds = rng.uniform(2.0, 8.0)
        rig.later(seconds, archive.heal)
        rig.kick()
        time.sleep(rng.uniform(0.5, 2.0))
        return f"{archive.title}, {seconds:.0f} s"

    return fault


# ---------------------------------------------------------------- senders


def _duplicate(rig: Rig, rng: random.Random) -> str:
    known = rig.some_acknowledged(rng, rng.randint(1, 10))
    calling = rng.choice((*SCANNERS, "STOW-RS"))
    statuses = rig.senders.store(known, calling)
    for status in statuses:
        if status == 0x0111:
            rig.break_rule("the same bytes again are a success", "0x0111")
    return f"{len(known)} of them"


def _conflict(rig: Rig, rng: random.Random) -> str:
    known = rig.some_acknowledged(rng, 1)
    if not known:
        return "nothing was acknowledged yet"
    (status,) = rig.senders.store([rig.make_other(known[0])], rng.choice(SCANNERS))
    if status == 0x0000:
        rig.break_rule("other bytes under a held UID are never acknowledged", "0x0000")
    return f"status {status}"


def _race(rig: Rig, rng: random.Random) -> str:
    (one,) = rig.make(1)
    pair = [(one, SCANNERS[0]), (rig.make_other(one), SCANNERS[1])]
    threads = [threading.Thread(target=rig.senders.store, args=([item], calling)) for item, calling in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = sum((item.uid, item.digest) in rig.senders.acknowledged for item, _ in pair)
    if both > 1:
        rig.break_rule("other bytes under a held UID are never acknowledged", "both of two at once were")
    return f"{both} acknowledged"


def _half_data_set(rig: Rig, rng: random.Random) -> str:
    (instance,) = rig.make(1)
    content = instance.path.read_bytes()[300:]
    try:
        with raw.associated(rig.node.port, SCANNERS[1]) as sock:
            sock.sendall(raw.p_data(raw.store_command(instance), command=True, last=True))
            for at in range(0, rng.randrange(len(content)), 1024):
                sock.sendall(raw.p_data(content[at : at + 1024], command=False, last=False))
            if rng.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
    except OSError as error:
        return f"not let in: {type(error).__name__}"
    return ""


# ---------------------------------------------------------------- rude clients


def _rude(rig: Rig, name: str, send: Callable[[], socket.socket], seconds: float) -> str:
    """In a thread: send, then the node has to hang up within that many seconds."""

    def run() -> None:
        try:
            sock = send()
        except OSError:
            return  # the node was down, or has hung up already
        with sock:
            took = raw.closes_within(sock, seconds + _SLACK)
        if took is None:
            rig.break_rule("a rude client is hung up on", f"{name}: not within {seconds + _SLACK:.0f} s")
        else:
            rig.slots.append((name, took))

    rig.run_aside(run)
    time.sleep(0.2)
    return ""


def _silent(rig: Rig, rng: random.Random) -> str:
    return _rude(rig, "silent connection", lambda: raw.connect(rig.node.port), ACSE)


def _idle(rig: Rig, rng: random.Random) -> str:
    return _rude(rig, "idle association", lambda: raw.associated(rig.node.port, SCANNERS[2]), NETWORK)


def _drip_request(rig: Rig, rng: random.Random) -> str:
    def send() -> socket.socket:
        sock = raw.connect(rig.node.port)
        for byte in raw.associate_request(SCANNERS[0]):
            sock.sendall(bytes([byte]))
            time.sleep(0.5)
        return sock

    began = time.monotonic()

    def run() -> None:
        try:
            send().close()
        except OSError:
            took = time.monotonic() - began
            rig.slots.append(("slow drip of an association request", took))
            if took > ACSE + _SLACK:
                rig.break_rule("a rude client is hung up on", f"drip: after {took:.0f} s")
        else:
            rig.break_rule("a rude client is hung up on", "drip of an association request: never")

    rig.run_aside(run)
    return ""


def _drip_data(rig: Rig, rng: random.Random) -> str:
    (instance,) = rig.make(1)

    def send() -> socket.socket:
        sock = raw.associated(rig.node.port, SCANNERS[2])
        sock.sendall(raw.p_data(raw.store_command(instance), command=True, last=True))
        fragment = raw.p_data(bytes(1024), command=False, last=False)
        for at in range(200):
            sock.sendall(fragment[at : at + 1])
            time.sleep(0.5)
        return sock

    def run() -> None:
        began = time.monotonic()
        try:
            send().close()
        except OSError:
            rig.slots.append(("slow drip of a data set", time.monotonic() - began))
        else:
            rig.break_rule("a rude client is hung up on", "drip of a data set: never")

    rig.run_aside(run)
    return ""


def _half_pdu(rig: Rig, rng: random.Random) -> str:
    whole = raw.associate_request(SCANNERS[0])
    inside = rng.random() < 0.5
    length = rng.randrange(1, 60)

    def send() -> socket.socket:
        if inside:
            sock = raw.associated(rig.node.port, SCANNERS[0])
            sock.sendall(raw.p_data(bytes(100), command=True, last=True)[:length])
        else:
            sock = raw.connect(rig.node.port)
            sock.sendall(whole[:length])
        return sock

    return _rude(rig, "half a PDU", send, SOCKET)


def _huge_pdu(rig: Rig, rng: random.Random) -> str:
    kind = rng.choice((1, 4))

    def send() -> socket.socket:
        sock = raw.connect(rig.node.port) if kind == 1 else raw.associated(rig.node.port, SCANNERS[0])
        sock.sendall(struct.pack(">BxL", kind, 0xFFFFFFFF) + bytes(65536))
        return sock

    return _rude(rig, "PDU of 4 GiB", send, SOCKET)


def _garbage(rig: Rig, rng: random.Random) -> str:
    content = rng.randbytes(rng.randrange(1, 5000))
    inside = rng.random() < 0.5

    def send() -> socket.socket:
        sock = raw.associated(rig.node.port, SCANNERS[0]) if inside else raw.connect(rig.node.port)
        sock.sendall(raw.p_data(content, command=True, last=True) if inside else content)
        return sock

    return _rude(rig, "garbage", send, SOCKET)


def _flood(rig: Rig, rng: random.Random) -> str:
    sockets: list[socket.socket] = []
    for _ in range(200):
        try:
            sock = raw.connect(rig.node.port)
            sock.sendall(raw.associate_request(SCANNERS[2]))
            sockets.append(sock)
        except OSError:
            continue
    time.sleep(0.5)
    for sock in sockets:
        sock.close()
    return f"{len(sockets)} connected"


def _stranger(rig: Rig, rng: random.Random) -> str:
    for calling, called in (("STRANGER", "NODE"), (SCANNERS[0], "OTHER")):
        try:
            with raw.connect(rig.node.port) as sock:
                sock.sendall(raw.associate_request(calling, called))
                if sock.recv(1) == b"\2":
                    rig.break_rule("strangers stay out", f"{calling} to {called}")
        except OSError:
            continue
    return ""


def _half_stow(rig: Rig, rng: random.Random) -> str:
    (instance,) = rig.make(1)
    body = b"--rig\r\nContent-Type: application/dicom\r\n\r\n" + instance.path.read_bytes()[: rng.randrange(100, 8000)]
    head = (
        "POST /dicom-web/studies HTTP/1.1\r\nHost: node\r\nContent-Length: 20000\r\n"
        'Content-Type: multipart/related; type="application/dicom"; boundary=rig\r\n\r\n'
    )
    try:
        with socket.create_connection(("127.0.0.1", rig.node.http), 5) as sock:
            sock.sendall(head.encode() + body)
            time.sleep(rng.uniform(0.0, 1.0))
    except OSError as error:
        return f"not let in: {type(error).__name__}"
    return ""


def _stow_garbage(rig: Rig, rng: random.Random) -> str:
    kind = rng.choice(
        ('multipart/related; type="application/dicom"; boundary=rig', "application/dicom", "text/plain", "")
    )
    parts = (
        b"--rig\r\n",
        b"\r\n\r\n",
        rng.randbytes(600),
        b"Content-Type: application/dicom\r\n",
        b"--rig--\r\n",
        b"DICM",
    )
    body = b"".join(rng.choice(parts) for _ in range(20))
    try:
        headers = {"Content-Type": kind}
        url = f"http://127.0.0.1:{rig.node.http}/dicom-web/studies"
        answer = httpx.post(url, content=body, headers=headers, timeout=20, trust_env=False)
    except httpx.HTTPError as error:
        return f"no answer: {type(error).__name__}"
    if answer.status_code < 400:
        rig.break_rule("garbage is never acknowledged", f"STOW-RS: {answer.status_code}")
    return f"HTTP {answer.status_code}"


# ---------------------------------------------------------------- states


def watch(state: str, store: Path, archive_seen: Callable[[str], int]) -> Callable[[float], bool]:
    """Begin to look for a state; the function that is returned waits until some job comes to it."""
    trail = store / "audit" / "audit.jsonl"
    jobs = store / "jobs"

    def names(folder: Path) -> set[str]:
        try:
            return set(os.listdir(folder))  # noqa: PTH208 - as fast as can be
        except OSError:
            return set()

    try:
        size = trail.stat().st_size
    except OSError:
        size = 0
    counts = {what: archive_seen(what) for what in ("C-STORE", "N-ACTION")}
    young = {"planned": "plan.json", "enhancing": "enhance.jsonl", "derived": "derived"}
    old = {job for job in names(jobs) if (jobs / job / young.get(state, "")).exists()}

    def is_there() -> bool:
        if state == "receiving":
            return any(name.endswith(".part") for name in names(store / "incoming"))
        if state == "pending":
            return any(not name.startswith(".") for name in names(store / "pending"))
        if state in young:
            return any((jobs / job / young[state]).exists() for job in names(jobs) - old)
        if state in ("sending", "committing"):
            what = "C-STORE" if state == "sending" else "N-ACTION"
            return archive_seen(what) > counts[what]
        try:
            with trail.open("rb") as file:
                file.seek(size)
                return f'"event": "{state}"'.encode() in file.read()
        except OSError:
            return False

    def wait(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not is_there():
            if time.monotonic() > until:
                return False
            time.sleep(0.003)
        return True

    return wait
