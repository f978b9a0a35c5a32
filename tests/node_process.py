"""A whole node in a process of its own, for tests: configuration, start, status, end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.waiting import wait_until


class NodeUnderTest:
    """Its configuration is `settings` (TOML text) after the common part; ports are free ones."""

    def __init__(self, folder: Path, settings: str = "", *, idle=0.6, http="", listener="", workers=1):
        self.folder, self.store = folder, folder / "store"
        self.port, self.http_port = free_port(), free_port()
        self.config = folder / "node.toml"
        self.process: subprocess.Popen | None = None
        self.log = folder / "node.log"
        self.config.write_text(
            f'store = "store"\n[listener]\nae_title = "NODE"\nport = {self.port}\nreserve_bytes = 0\n{listener}\n'
            f'[[peers]]\nae_title = "SCANNER"\n[completeness]\nidle_seconds = {idle}\n'
            f"[http]\nport = {self.http_port}\n{http}\n"
            f"[work]\nworkers = {workers}\nfirst_pause = 0.2\nlongest_pause = 0.5\nattempts = 4\n"
            f"heartbeat_seconds = 0.5\nsilent_seconds = 6\n{settings}"
        )

    def start(self) -> NodeUnderTest:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "medenhance_dicom", "node", "run", self.config],
                stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        wait_until(self._is_up, what=self.log)
        return self

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        state = self.store / "node.json"
        with suppress(OSError, ValueError, socket.error):
            ours = int((self.store / "node.lock").read_text()) == self.process.pid
            if ours and json.loads(state.read_text())["state"] == "running":
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return True
        return False

    def command(self, *words, code=0) -> subprocess.CompletedProcess:
        """Run one of the program's commands."""
        done = subprocess.run(
            [sys.executable, "-m", "medenhance_dicom", *map(str, words)],
            capture_output=True, text=True, check=False, timeout=300,
            env=os.environ | {"MEDENHANCE_NODE": str(self.config)},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def json(self, *words, code=0):
        return json.loads(self.command(*words, "--json", code=code).stdout)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=60, trust_env=False)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)

    def kill(self) -> None:
        """As a crash: the main process, at once."""
        self.process.kill()
        self.process.wait()

    def events(self, name: str) -> list[dict]:
        lines = (self.store / "audit" / "audit.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == name]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


class Archive:
    """A storage SCP of the test that also commits, over an association of its own; counts what it gets."""

    def __init__(self, *, status=0x0000, commits=True):
        self.status, self.commits = status, commits
        self.stored: list[str] = []
        self.digests: dict[str, str] = {}
        self.actions = 0
        self.port = free_port()
        self.node_port = 0
        self.server = None

    def start(self) -> Archive:
        from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
        from pynetdicom.presentation import DEFAULT_TRANSFER_SYNTAXES

        from medenhance_dicom.node.wire import TRANSFER_SYNTAXES

        entity = AE(ae_title="ARCHIVE")
        entity.supported_contexts = [
            build_context(context.abstract_syntax, list(TRANSFER_SYNTAXES))
            for context in AllStoragePresentationContexts
        ]
        entity.add_supported_context("1.2.840.10008.1.1", DEFAULT_TRANSFER_SYNTAXES)
        if self.commits:
            entity.add_supported_context("1.2.840.10008.1.20.1")
        handlers = [(evt.EVT_C_STORE, self._on_store), (evt.EVT_N_ACTION, self._on_action)]
        self.server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def _on_store(self, event) -> int:
        if self.status == 0x0000:
            self.stored.append(event.request.AffectedSOPInstanceUID)
        return self.status

    def _on_action(self, event):
        import threading

        self.actions += 1
        threading.Timer(0.3, self._report, [event.action_information]).start()
        return 0x0000, None

    def _report(self, asked) -> None:
        from pydicom import Dataset
        from pydicom.uid import UID
        from pynetdicom import AE, build_role

        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence = [
            item for item in asked.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in self.stored
        ]
        entity = AE(ae_title="ARCHIVE")
        entity.add_requested_context("1.2.840.10008.1.20.1")
        role = build_role(UID("1.2.840.10008.1.20.1"), scp_role=True)
        assoc = entity.associate("127.0.0.1", self.node_port, ae_title="NODE", ext_neg=[role])
        if assoc.is_established:
            assoc.send_n_event_report(report, 1, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1")
            assoc.release()

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server = None

    def toml(self, **more) -> str:
        keys = {
            "name": "archive",
            "ae_title": "ARCHIVE",
            "host": "127.0.0.1",
            "port": self.port,
            "commit": self.commits,
        }
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in (keys | more).items())
        return f'[[peers]]\nae_title = "ARCHIVE"\n[[destinations]]\n{lines}\n'


def dcmsend(port: int, *paths, called="NODE", calling="SCANNER") -> subprocess.CompletedProcess:
    """Any mix of files: DCMTK's other sender proposes each in the transfer syntax that it is in."""
    words = ["/usr/bin/dcmsend", "-aet", calling, "-aec", called, "-dn", "+sd", "+r", "127.0.0.1", port, *paths]
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=180)
