"""The node as child processes, its disk, its clock and its database, each with a handle to break it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.torture.senders import BULK, SCANNERS

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN of ext4: from now on nothing reaches the device, what has not been flushed is lost."""
_NO_LOG_FLUSH = 2
_POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
ACSE, SOCKET, NETWORK = 4.0, 5.0, 12.0
"""Seconds of the node's listener."""


class Disk:
    """An ext4 file system of its own in an image file. Its journal commits only when somebody flushes."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.image, self.path = folder / "disk.img", folder / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", "-N", str(megabytes * 512), "-m", "0", str(self.image))
        self.mount()

    def mount(self) -> None:
        """Mount it, which replays the journal."""
        _run("mount", "-o", "loop,commit=300,errors=remount-ro", str(self.image), str(self.path))

    def unmount(self) -> None:
        """Nobody may use it any more."""
        until = time.monotonic() + 20
        while subprocess.run(["umount", str(self.path)], capture_output=True, check=False).returncode:
            if time.monotonic() > until:
                raise RuntimeError("the disk is still in use")
            time.sleep(0.1)

    def cut(self) -> None:
        """The power goes."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def fill(self, leave: int = 0) -> None:
        """Take all free space but so many bytes."""
        with contextlib.suppress(OSError), (self.path / "ballast").open("ab", buffering=0) as file:
            free = os.statvfs(self.path)
            os.posix_fallocate(file.fileno(), 0, max(4096, free.f_bavail * free.f_frsize - max(leave, 1 << 20)))
            file.seek(0, os.SEEK_END)
            while not leave:
                file.write(bytes(65536))

    def empty(self) -> None:
        """Give the space back."""
        (self.path / "ballast").unlink(missing_ok=True)

    def break_down(self) -> None:
        """An error of the device: the kernel makes it read-only."""
        device = next(
            line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(self.path) in line
        )
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("torture")

    def repair(self) -> None:
        """Unmount, check, mount."""
        self.unmount()
        found = subprocess.run(["e2fsck", "-f", "-y", str(self.image)], capture_output=True, text=True, check=False)
        if found.returncode > 1:
            raise RuntimeError(f"e2fsck: {found.stdout[-500:]}")
        self.mount()


class Clock:
    """The wall clock of the node's processes; None of it where there is no C compiler."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "clock.so"
        self._file.write_bytes(bytes(8))
        self.works = shutil.which("gcc") is not None
        self.environment: dict[str, str] = {}
        if self.works:
            _run("gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(Path(__file__).with_name("clock.c")))
            self.environment = {"LD_PRELOAD": str(library), "TORTURE_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        """Be so many seconds fast."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


class PostgreSQL:
    """A server of the rig's own, on loopback."""

    def __init__(self) -> None:
        self._folder, self._port = Path(tempfile.mkdtemp(prefix="torture-")), free_port()
        self._user: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody", "nogroup")
            self._user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        self._do("initdb", "-D", str(self._folder / "data"), "-U", "node", "-A", "trust")
        self.start()
        self.url = f"postgresql://node@127.0.0.1:{self._port}/n{secrets.token_hex(4)}"

    @staticmethod
    def is_here() -> bool:
        """Whether it is installed."""
        return (_POSTGRESQL / "initdb").exists()

    def _do(self, tool: str, *arguments: str) -> None:
        command = [*self._user, str(_POSTGRESQL / tool), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder)

    def start(self) -> None:
        """And wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -p {self._port} -k {self._folder}"
        log = str(self._folder / "log")
        self._do("pg_ctl", "start", "-w", "-D", str(self._folder / "data"), "-l", log, "-o", options)

    def stop(self, how: str) -> None:
        """`how`: fast or immediate, which is a crash."""
        self._do("pg_ctl", "stop", "-w", "-m", how, "-D", str(self._folder / "data"))

    def close(self) -> None:
        """Stop it, and remove its files."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)


class Node:
    """`medenhance-dicom node run`, on a store below `folder`."""

    def __init__(
        self,
        folder: Path,
        archives: dict[str, int],
        *,
        disk: Path,
        clock: Clock,
        database: str = "",
        workers: int = 1,
        commit: bool = True,
        idle: float = 1.0,
    ) -> None:
        self.port, self.http = free_port(), free_port()
        self.store, self.config, self.log = disk / "store", folder / "node.toml", folder / "node.log"
        self._environment = os.environ | clock.environment | {"OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        peers = "".join(f'[[peers]]\nae_title = "{title}"\n' for title in (*SCANNERS, BULK, *archives))
        destinations = ""
        for title, port in archives.items():
            first = title == next(iter(archives))
            destinations += (
                f'[[destinations]]\nname = "{title.lower()}"\nae_title = "{title}"\nhost = "127.0.0.1"\nport = {port}\n'
                f'send = "{"both" if first else "derived"}"\ncommit = {str(first and commit).lower()}\n'
                f"commit_seconds = 8.0\nconnect_timeout = 3.0\nresponse_timeout = 6.0\n"
            )
        names = json.dumps([title.lower() for title in archives])
        self.config.write_text(
            f'store = "{self.store}"\n'
            f'[listener]\nae_title = "NODE"\nport = {self.port}\nreceivers = 2\nmaximum_associations = 20\n'
            f"maximum_associations_of_a_peer = 10\nacse_timeout = {ACSE}\ndimse_timeout = {NETWORK}\n"
            f"network_timeout = {NETWORK}\nsocket_timeout = {SOCKET}\nreserve_bytes = {4 << 20}\n{peers}"
            f"[completeness]\nidle_seconds = {idle}\nmaximum_seconds = 600.0\n"
            f'[enhance]\nrecipe = "identity"\ndevice = "cpu"\nengine = "torch"\n{destinations}'
            f'[[rules]]\ncalling = ["{BULK}"]\ndestinations = {json.dumps([next(iter(archives)).lower()])}\nenhance = false\n'
            f"[[rules]]\ndestinations = {names}\n"
            f"[http]\nport = {self.http}\nstow = true\n[retention]\nkeep_days = 36500\n"
            f'[work]\ndatabase = "{database}"\nworkers = {workers}\nattempts = 8\nfirst_pause = 0.5\nlongest_pause = 4.0\n'
            f"heartbeat_seconds = 1.0\nsilent_seconds = 8.0\n"
        )

    # ------------------------------------------------------------ life

    def spawn(self) -> None:
        """Start it, and do not wait."""
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command("node", "run", str(self.config)), stdout=log, stderr=log, env=self._environment,
                start_new_session=True,
            )  # fmt: skip

    def is_up(self) -> bool:
        """Whether this process says that it runs, and listens."""
        if self.process is None or self.process.poll() is not None:
            return False
        try:
            ours = int((self.store / "node.lock").read_text()) == self.process.pid
            said = json.loads((self.store / "node.json").read_text())
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return ours and bool(said["state"] == "running")
        except (OSError, ValueError, KeyError):
            return False

    def ended_by_itself(self) -> int | None:
        """Its exit code, where nobody of the rig ended it."""
        return None if self.process is None else self.process.poll()

    def kill(self) -> None:
        """SIGKILL to all of its processes at once."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            until = time.monotonic() + 10
            while any(_group(pid) == process.pid for pid in _processes()) and time.monotonic() < until:
                time.sleep(0.01)

    def terminate(self, seconds: float = 90.0) -> int | None:
        """SIGTERM; its exit code, None where it did not end and was killed."""
        process = self.process
        if process is None:
            return None
        process.terminate()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        return code

    def workers(self) -> list[int]:
        """Process ids, by what the node says of itself."""
        try:
            said = json.loads((self.store / "node.json").read_text())["workers"]
        except (OSError, ValueError, KeyError):
            return []
        return [pid for pid in said.values() if pid in self._children()]

    def receivers(self) -> list[int]:
        """Process ids: what is spawned and no worker. A worker that is just starting is only told by its niceness."""
        workers = self.workers()
        return [pid for pid in self._children() if pid not in workers and not _is_nice(pid)]

    def _children(self) -> list[int]:
        if self.process is None:
            return []
        found = []
        for pid in _processes():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawn_main" in line and _group(pid) == self.process.pid:
                    found.append(pid)
        return found

    def memory(self) -> int:
        """Largest peak of resident memory of a receiver, in bytes."""
        peaks = [0]
        for pid in self.receivers():
            with contextlib.suppress(OSError, StopIteration, ValueError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                peaks.append(1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1]))
        return max(peaks)

    # ------------------------------------------------------------ what it says

    def jobs(self) -> list[dict[str, object]]:
        """`jobs list --json`."""
        return list(json.loads(self.command("jobs", "list", "--json").stdout))

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of the program's commands, at the true time of the node."""
        environment = self._environment | {"MEDENHANCE_NODE": str(self.config)}
        return subprocess.run(
            self._command(*words), capture_output=True, text=True, check=False, timeout=180, env=environment
        )

    def unfinished(self) -> int:
        """Series that still come in and jobs that are not done, by the store's folders."""
        try:
            pending = sum(1 for _ in (self.store / "pending").iterdir())
            jobs = sum(not (folder / "done.json").exists() for folder in (self.store / "jobs").iterdir())
        except OSError:
            return -1
        return pending + jobs

    def waiting(self) -> int:
        """Jobs that have not been enhanced yet."""
        with contextlib.suppress(OSError):
            return sum(not (folder / "enhanced.json").exists() for folder in (self.store / "jobs").iterdir())
        return 0

    @staticmethod
    def _command(*words: str) -> list[str]:
        return [sys.executable, "-m", "medenhance_dicom", *words]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _is_nice(pid: int) -> bool:
    try:
        return os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    except ProcessLookupError:
        return True


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
