"""The node that is fuzzed, what is thrown at it, and whether it still is what it was."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from pynetdicom import AE

from benchmarks.fuzz.chance import MARKER, MARKER_ID, ROOT, Input
from benchmarks.torture.instances import CR, Maker
from benchmarks.torture.node import Node, free_port

ACSE, SOCKET, NETWORK = 1.0, 1.5, 3.0
"""Seconds of the node's listener."""
KEEP_ALIVE = 5.0
"""Of the HTTP server, between two requests."""
QUIET = 12.0
"""Seconds in which every connection that does nothing has to be gone: more than any sum of these timeouts."""
MEGABYTES = {"node": 100, "receiver": 100, "worker": 400}
"""That a process may grow by. A worker parses headers whole, and one of 200,000 tags takes 250 MB for a while."""
_ANSWER, _LAST_ANSWER = 0.3, 0.15
_FORBIDDEN = re.compile(rf"{re.escape(MARKER[:4])}|{re.escape(MARKER_ID[:4])}|{re.escape(ROOT)}|Traceback".encode())
_ESTABLISHED, _CLOSE_WAIT = "01", "08"


class FuzzedNode(Node):
    """`medenhance-dicom node run` with short timeouts; nothing leaves it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.http = free_port(), free_port()
        self.store, self.config, self.log = folder / "store", folder / "node.toml", folder / "node.log"
        self._environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.config.write_text(
            f'store = "store"\n[listener]\nae_title = "NODE"\nport = {self.port}\nreceivers = 2\nreserve_bytes = 0\n'
            f"maximum_associations = 20\nmaximum_associations_of_a_peer = 20\nacse_timeout = {ACSE}\n"
            f"dimse_timeout = {NETWORK}\nnetwork_timeout = {NETWORK}\nsocket_timeout = {SOCKET}\n"
            f'[[peers]]\nae_title = "WATCH"\n[[peers]]\nae_title = "FUZZER"\nquery = true\nhost = "127.0.0.1"\nport = 9\n'
            f'[completeness]\nidle_seconds = 1.0\n[enhance]\nrecipe = "identity"\ndevice = "cpu"\nengine = "torch"\n'
            f"[http]\nport = {self.http}\nstow = true\nmaximum_body_bytes = {4 << 20}\n"
            f"[work]\nworkers = 1\nattempts = 2\nfirst_pause = 0.2\nlongest_pause = 0.5\n"
        )

    def pids(self) -> frozenset[int]:
        """Of the node and its receivers and workers."""
        assert self.process is not None
        return frozenset([self.process.pid, *self._children()])


class Watch:
    """Starts a node and knows how it was then."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.node = FuzzedNode(folder / "node")
        self.statuses: Counter[str] = Counter()
        """HTTP status codes of all answers."""
        self.errors: Counter[str] = Counter()
        """What the node logged as errors, without numbers."""
        self.growth = dict.fromkeys(("node", "receiver", "worker"), 0)
        """Most megabytes that a process had more than at the start."""
        self.longest_slot = 0.0
        (folder / "instances").mkdir(exist_ok=True)
        self._maker = Maker(folder / "instances", seed)
        self._held: list[socket.socket] = []
        self._read: dict[Path, int] = {}

    def __enter__(self) -> Watch:
        self.node.spawn()
        _until(self.node.is_up, 60)
        self._store()
        if not _until(lambda: any(self.node.store.glob("jobs/*/done.json")), 60):
            raise RuntimeError(f"the node does no work: {self.node.log}")
        self._pids, self._memory = self.node.pids(), self._rss()
        return self

    def __exit__(self, *_: object) -> None:
        self.node.kill()

    # ------------------------------------------------------------ inputs

    def throw(self, what: Input) -> bytes:
        """Send an input; what was answered. May be called by several threads."""
        answer, sock = b"", None
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", self.node.http if what.to == "http" else self.node.port), 2.0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number, send in enumerate(what.sends, 1):
                size = what.piece or max(len(send), 1)
                for at in range(0, len(send), size):
                    sock.sendall(send[at : at + size])
                if what.to == "dicom" and number < len(what.sends):
                    answer += _received(sock, _ANSWER)
            if what.end == "half":
                sock.shutdown(socket.SHUT_WR)
            answer += _received(sock, _ANSWER if what.to == "http" else _LAST_ANSWER)
        if sock is not None and what.end == "hold":
            self._held.append(sock)
        elif sock is not None:
            if what.end == "reset":
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        return answer

    def judge(self, what: Input, answer: bytes) -> str | None:
        """What is wrong about an answer, if anything."""
        if what.to != "http":
            return None
        codes = [code.decode() for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
        self.statuses.update(codes)
        if "500" in codes:
            return "500"
        return "accepted what it cannot store" if what.refused and {"200", "202"} & set(codes) else None

    # ------------------------------------------------------------ invariants

    def look(self) -> Iterator[tuple[str, str]]:
        """Every rule that is broken now, and how."""
        if (code := self.node.ended_by_itself()) is not None:
            yield "a process died", f"the node ended with {code}"
            return
        began = time.monotonic()
        if not _until(lambda: not self._slots(), QUIET):
            yield "a connection is held", f"after {QUIET:.0f} s: {', '.join(self._slots())}"
        self.longest_slot = max(self.longest_slot, time.monotonic() - began)
        for sock in self._held:
            sock.close()
        self._held.clear()
        left = self.node.store / "incoming", self.node.store / "associations"
        if not _until(lambda: not any(path for folder in left for path in folder.iterdir()), 5.0):
            yield "files are left", str([path.name for folder in left for path in folder.iterdir()])
        if said := self._store():
            yield "a good sender is not served", said
        if said := self._health():
            yield "no health", said
        if (pids := self.node.pids()) != self._pids:
            yield "a process died", f"{sorted(self._pids)} were {sorted(pids)}"
            self._pids = pids
        yield from self._grown()
        yield from self.words()

    def _slots(self) -> list[str]:
        """Connections that the node has open: `dicom` or `http`, and the state of each."""
        names = {self.node.port: "dicom", self.node.http: "http"}
        found = []
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            name = names.get(int(local.split(":")[1], 16))
            if name is not None and state in (_ESTABLISHED, _CLOSE_WAIT):
                found.append(f"{name} {'established' if state == _ESTABLISHED else 'left by its peer'}")
        return found

    def _store(self) -> str | None:
        """C-ECHO and C-STORE of a new instance; why that did not go well."""
        (instance,) = self._maker.series(1)
        entity = AE("WATCH")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
        entity.add_requested_context(CR, "1.2.840.10008.1.2.1")
        entity.add_requested_context("1.2.840.10008.1.1")
        assoc = entity.associate("127.0.0.1", self.node.port, ae_title="NODE")
        if not assoc.is_established:
            return f"no association{': rejected' * assoc.is_rejected}"
        echoed, stored = assoc.send_c_echo().get("Status"), assoc.send_c_store(instance.path).get("Status")
        assoc.release()
        instance.path.unlink()
        if (echoed, stored) != (0, 0):
            return f"C-ECHO {echoed}, C-STORE {stored}"
        held = (path for part in ("pending/*", "jobs/*/source") for path in self.node.store.glob(f"{part}/*.dcm"))
        return None if any(instance.digest[:32] in path.name for path in held) else "acknowledged and not in the store"

    def _health(self) -> str | None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.node.http}/healthz", timeout=5, trust_env=False)
        except httpx.HTTPError as error:
            return type(error).__name__
        return None if answer.status_code == 200 else f"HTTP {answer.status_code}"

    def _rss(self) -> dict[int, int]:
        """Megabytes by process."""
        found = {}
        for pid in self.node.pids():
            with contextlib.suppress(OSError, IndexError):
                found[pid] = int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) >> 10
        return found

    def _grown(self) -> Iterator[tuple[str, str]]:
        for pid, megabytes in self._rss().items():
            more = megabytes - self._memory.get(pid, megabytes)
            role = self._role(pid)
            self.growth[role] = max(self.growth[role], more)
            if more > MEGABYTES[role]:
                self._memory[pid] = megabytes
                yield "memory grows", f"{role}: {more} MB more, {megabytes} MB"

    def _role(self, pid: int) -> str:
        roles = {self.node.process and self.node.process.pid: "node"} | dict.fromkeys(self.node.workers(), "worker")
        return roles.get(pid, "receiver")

    def words(self) -> Iterator[tuple[str, str]]:
        """What new lines of the log and the audit trail say that they must not."""
        for path in (self.node.log, self.node.store / "audit" / "audit.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines = file.read().splitlines()
                self._read[path] = file.tell()
            for line in lines:
                if found := _FORBIDDEN.search(line):
                    yield f"{found[0].decode()} in {path.name}", line[:400].decode("utf-8", "replace")
                if path == self.node.log and b" error " in line:
                    said = line.decode("utf-8", "replace").split("]: ", 1)[-1]
                    self.errors[re.sub(r"[0-9a-f]{12,}", "#", said)] += 1


def _received(sock: socket.socket, seconds: float) -> bytes:
    """What comes until nothing has come for so long; HTTP answers and DICOM responses are short."""
    data = b""
    sock.settimeout(seconds)
    with contextlib.suppress(OSError):
        while len(data) < 1 << 20 and (block := sock.recv(1 << 16)):
            data += block
            sock.settimeout(0.02)
    sock.settimeout(2.0)
    return data


def _until(true: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
