"""An archive that remembers every object that it answered for, commits, and misbehaves on order."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt

from benchmarks.torture.instances import CR

COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
STATUSES = {"out of resources": 0xA700, "cannot understand": 0xC000, "refuses for good": 0xA900}
BEHAVIOURS = (
    "unreachable", "rejects", "rejects for good", "out of resources", "cannot understand", "refuses for good", "stalls",
    "lies", "aborts before storing", "aborts after storing",
)  # fmt: skip
REPORTS = (
    "no report", "report of another transaction", "report leaves instances out", "report refuses instances",
    "report from another AE title", "report twice", "report is late", "commitment request refused",
)  # fmt: skip
LATE = 12.0
STALL = 60.0


@dataclass
class Stored:
    """An object as it is kept."""

    digest: str
    patient: str
    source: str
    """SOP Instance UID of the picture that it was made from; "" for an original."""
    times: int = 1


@dataclass
class Archive:
    """An AE on loopback. `behave` and `report` hold until `heal`; what is kept stays whatever it does."""

    title: str
    port: int
    node: tuple[str, int]
    """AE title and port that reports go to."""
    behave: str = ""
    report: str = ""
    objects: dict[str, Stored] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    """UIDs that came with other bytes than those that are kept."""
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._healed = threading.Event()
        self._server = None
        self._ended = False

    def start(self) -> None:
        """Listen."""
        entity = AE(ae_title=self.title)
        entity.maximum_associations = 100
        entity.acse_timeout = entity.dimse_timeout = 10
        entity.network_timeout = 30
        entity.supported_contexts = [build_context(CR, ExplicitVRLittleEndian)]
        entity.add_supported_context("1.2.840.10008.1.1")
        entity.add_supported_context(COMMITMENT)
        handlers = [(evt.EVT_REQUESTED, self._admit), (evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._asked)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def stop(self) -> None:
        """Be unreachable."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def close(self) -> None:
        """For good."""
        self._ended = True
        self.heal()
        self.stop()

    def misbehave(self, how: str) -> None:
        """One of `BEHAVIOURS` or `REPORTS`."""
        self._healed.clear()
        if how in REPORTS:
            self.report = how
        else:
            self.behave = how
            if how == "unreachable":
                self.stop()

    def heal(self) -> None:
        """Be good again."""
        self.behave = self.report = ""
        self._healed.set()
        if self._server is None and not self._ended:
            self.start()

    # ------------------------------------------------------------ store

    def _admit(self, event: evt.Event) -> None:
        if self.behave.startswith("rejects"):
            assoc = event.assoc
            assoc.acse.send_reject(*((0x01, 0x01, 0x03) if self.behave == "rejects for good" else (0x02, 0x03, 0x01)))
            assoc.kill()

    def _store(self, event: evt.Event) -> int:
        how = self.behave
        self.seen["C-STORE"] += 1
        if how == "stalls":
            self._healed.wait(STALL)
            event.assoc.abort()
            return 0xC000
        if how == "aborts before storing":
            event.assoc.abort()
            return 0xC000
        if how in STATUSES:
            return STATUSES[how]
        if how == "lies":
            self.seen["lies"] += 1
            return 0x0000
        content = event.request.DataSet.getvalue()
        self._keep(str(event.request.AffectedSOPInstanceUID), content)
        if how == "aborts after storing":
            event.assoc.abort()
        return 0x0000

    def _keep(self, uid: str, content: bytes) -> None:
        dataset = read_dataset(DicomBytesIO(content), False, True, stop_when=lambda tag, *_: tag >= 0x00280002)
        sources = dataset.get("SourceImageSequence") or []
        source = str(sources[0].ReferencedSOPInstanceUID) if sources else ""
        found = Stored(hashlib.sha256(content).hexdigest(), str(dataset.PatientID), source)
        with self._lock:
            known = self.objects.setdefault(uid, found)
            if known is not found:
                known.times += 1
                if known.digest != found.digest:
                    self.rejected.append(uid)

    # ------------------------------------------------------------ commit

    def _asked(self, event: evt.Event) -> tuple[int, None]:
        how = self.report
        self.seen["N-ACTION"] += 1
        if how == "commitment request refused":
            return 0x0110, None
        threading.Thread(target=self._answer, args=(event.action_information, how), daemon=True).start()
        return 0x0000, None

    def _answer(self, asked: Dataset, how: str) -> None:
        if how == "no report":
            return
        self._healed.wait(LATE) if how == "report is late" else time.sleep(0.1)
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        items = [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in asked.ReferencedSOPSequence]
        if how == "report of another transaction":
            report.TransactionUID = f"{asked.TransactionUID[:-4]}9.9"
        if how == "report leaves instances out":
            items = items[:-1]
        with self._lock:
            kept = {uid for _, uid in items if uid in self.objects}
        if how == "report refuses instances":
            kept = set()
        good = [_reference(*item) for item in items if item[1] in kept]
        bad = [_reference(*item) for item in items if item[1] not in kept]
        if good:
            report.ReferencedSOPSequence = good
        for item in bad:
            item.FailureReason = 0x0112
        if bad:
            report.FailedSOPSequence = bad
        title = "SCANNER1" if how == "report from another AE title" else self.title
        for _ in range(2 if how == "report twice" else 1):
            self.seen["reports"] += self._send(report, 2 if bad else 1, title)

    def _send(self, report: Dataset, kind: int, title: str) -> bool:
        """An archive tries for a while; the node may be down."""
        for _ in range(20):
            if self._ended:
                return False
            entity = AE(ae_title=title)
            entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
            entity.add_requested_context(COMMITMENT)
            role = build_role(UID(COMMITMENT), scp_role=True)
            assoc = entity.associate("127.0.0.1", self.node[1], ae_title=self.node[0], ext_neg=[role])
            if assoc.is_established:
                try:
                    answer, _ = assoc.send_n_event_report(report, kind, COMMITMENT, COMMITMENT_INSTANCE)
                except (RuntimeError, ValueError):
                    answer = Dataset()
                if assoc.is_established:
                    assoc.release()
                if "Status" in answer:
                    return True
            time.sleep(1.0)
        return False


def _reference(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item
