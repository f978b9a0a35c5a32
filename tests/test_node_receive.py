"""The receiver, seen from its peers: DCMTK, pynetdicom, and rude ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pydicom
import pynetdicom.timer
import pytest
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node import acceptor, messages
from medenhance_dicom.node.acceptor import AcceptedAssociation
from medenhance_dicom.node.identity import data_set_digest
from medenhance_dicom.node.receive import Mounted, Receiver
from medenhance_dicom.node.settings import NodeSettings, Peer
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.transfer_syntaxes import STORED, kind_of
from tests.dicom_peers import authority, tls_files
from tests.namespaces import may_mount
from tests.ports import free_port
from tests.waiting import wait_until

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
ROOT = Path(__file__).resolve().parent.parent
needs_dcmtk = pytest.mark.skipif(not Path("/usr/bin/storescu").exists(), reason="no DCMTK")


class Node:
    """A receiver of this process."""

    def __init__(self, store, peers=({"ae_title": "T1"}, {"ae_title": "T2"}), **listener):
        self.port = listener.get("port", free_port())
        listener = {"ae_title": "NODE", "acse_timeout": 30, "reserve_bytes": 0} | listener | {"port": self.port}
        self.settings = NodeSettings.model_validate({"store": store, "listener": listener, "peers": list(peers)})
        self.spool = Spool(store)
        self.said = []
        self.receiver = Receiver(
            self.settings, self.spool, Mounted(audit=lambda event, **facts: self.said.append((event, facts)))
        )
        self.receiver.start()

    @property
    def instances(self):
        return sorted((self.spool.store / "pending").rglob("*.dcm"))

    def connections(self):
        return [thread for thread in threading.enumerate() if isinstance(thread, AcceptedAssociation)]

    def settles(self):
        """Wait until no connection is left."""
        wait_until(lambda: not self.connections(), what="a slot is held")


@pytest.fixture
def start(tmp_path):
    nodes = []

    def make(**kwargs):
        nodes.append(Node(tmp_path / f"store{len(nodes)}", **kwargs))
        return nodes[-1]

    yield make
    for node in nodes:
        node.receiver.stop(0)
        node.settles()


@pytest.fixture
def node(start):
    return start()


@contextmanager
def associated(node, title="T1", called="NODE", contexts=((CT, EXPLICIT),), **kwargs):
    ae = AE(title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    assoc = ae.associate(
        "127.0.0.1", node.port, contexts=[build_context(*context) for context in contexts], ae_title=called, **kwargs
    )
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def instance(number=1, series="1.2.3.2", note="a"):
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT, f"1.2.3.4.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2.3.1", series, "CT"
    dataset.PatientName, dataset.ImageComments = "Nobody^Ever", note
    dataset.add_new(0x00091001, "UN", b"\x01\x02\x03\x04")
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    return dataset


def store(assoc, dataset):
    return assoc.send_c_store(dataset).get("Status")


def encoded(dataset):
    return encode(dataset, False, True)


def send(assoc, data, *, sop_class=CT, sop_instance="1.2.3.4.1"):
    """C-STORE of any bytes."""
    request = C_STORE()
    request.MessageID, request.Priority, request.DataSet = 1, 2, BytesIO(data)
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_instance
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused:
        time.sleep(0.001)
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
    _, response = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    return response.Status


# ---------------------------------------------------------------- store


def test_bytes_are_stored_as_they_came(node):
    dataset = instance()
    with associated(node) as assoc:
        assert store(assoc, dataset) == 0x0000
        assert [open_.series_keys for open_ in node.spool.associations()] == [
            {node.spool.series_key("T1", "1.2.3.1", "1.2.3.2")}
        ]
    (path,) = node.instances
    assert data_set_digest(path) == hashlib.sha256(encoded(dataset)).hexdigest()
    meta = pydicom.dcmread(path).file_meta
    assert (meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID) == ("1.2.3.4.1", EXPLICIT)
    assert meta.SourceApplicationEntityTitle == "T1"
    assert meta.ImplementationVersionName.startswith("MEDENHANCE")
    assert meta.FileMetaInformationGroupLength == len(path.read_bytes()) - len(encoded(dataset)) - 144
    node.settles()
    assert not list(node.spool.associations())
    assert not list(node.spool.incoming.iterdir())
    assert node.said == [("received", {"calling_ae": "T1", "address": "127.0.0.1", "stored": 1})]


def test_many_fragments(start):
    node = start(maximum_pdu=4096)
    dataset = instance()
    dataset.add_new(0x7FE00010, "OB", os.urandom(100_000))
    with associated(node) as assoc:
        assert store(assoc, dataset) == 0x0000
        assert store(assoc, dataset) == 0x0000
    assert data_set_digest(node.instances[0]) == hashlib.sha256(encoded(dataset)).hexdigest()
    node.settles()
    assert node.said[0][1]["duplicate"] == 1


def test_explicit_little_endian_is_taken_where_it_is_offered(node):
    jpeg = "1.2.840.10008.1.2.4.50"
    lossless = "1.2.840.10008.1.2.4.80"
    offers = [[IMPLICIT, EXPLICIT], [jpeg, IMPLICIT], [jpeg, lossless, IMPLICIT], [jpeg]]
    with associated(node, contexts=[(CT, offer) for offer in offers]) as assoc:
        taken = [context.transfer_syntax[0] for context in assoc.accepted_contexts]
    assert taken == [EXPLICIT, IMPLICIT, lossless, jpeg]


def test_statuses(node):
    with associated(node) as assoc:
        assert store(assoc, instance(1)) == 0x0000
        assert store(assoc, instance(1)) == 0x0000
        assert store(assoc, instance(1, note="other")) == 0x0111
        assert send(assoc, encoded(instance(2)), sop_instance="1.2.3.4.3") == 0xA900
        assert send(assoc, encoded(instance(2)), sop_class=CT + ".1") == 0xA900
        assert send(assoc, b"\x08\x00\x18\x00ZZ not dicom") == 0xC000
        assert send(assoc, encoded(instance(2))[:60]) == 0xC000
        assert store(assoc, instance(2)) == 0x0000
    assert len(node.instances) == 2
    assert len(list((node.spool.store / "quarantine").iterdir())) == 2
    assert len(list((node.spool.store / "conflicts").iterdir())) == 1
    assert not list(node.spool.incoming.iterdir())
    assert "1.2.3" not in repr(node.said)


def test_low_disk_is_said_before_anything_is_written(start):
    node = start(reserve_bytes=1 << 60)
    with associated(node) as assoc:
        assert store(assoc, instance(1)) == 0xA700
        node.receiver.settings = node.settings.model_copy(
            update={"listener": node.settings.listener.model_copy(update={"reserve_bytes": 0})}
        )
        assert store(assoc, instance(1)) == 0x0000


def test_a_disk_that_fills_up_during_an_instance(node, monkeypatch):
    dataset = instance(1)
    dataset.add_new(0x7FE00010, "OB", bytes(300_000))
    real = messages.Part._write

    def write(self, data):
        if os.fstat(self._file).st_size > 100_000:
            raise OSError(28, "No space left on device")
        real(self, data)

    with associated(node) as assoc:
        monkeypatch.setattr(messages.Part, "_write", write)
        assert store(assoc, dataset) == 0xA700
        assert not list(node.spool.incoming.iterdir())
        monkeypatch.setattr(messages.Part, "_write", real)
        assert store(assoc, dataset) == 0x0000


def test_the_space_is_looked_at_while_a_large_instance_comes(node, monkeypatch):
    monkeypatch.setattr(messages, "GUARD_BYTES", 100_000)
    free = iter([1 << 40, 1 << 40, 0, 0, 0])
    monkeypatch.setattr(node.spool, "free_bytes", lambda: next(free))
    node.receiver.settings = node.settings.model_copy(
        update={"listener": node.settings.listener.model_copy(update={"reserve_bytes": 1})}
    )
    dataset = instance(1)
    dataset.add_new(0x7FE00010, "OB", bytes(1_000_000))
    with associated(node) as assoc:
        assert store(assoc, dataset) == 0xA700
    assert not node.instances


def test_draining(node):
    with associated(node) as assoc:
        assert store(assoc, instance(1)) == 0x0000
        (node.spool.store / "draining").touch()
        assert store(assoc, instance(2)) == 0xA700
        with associated(node) as late:
            assert late.is_rejected
            assert late.acceptor.primitive.result == 2
    (node.spool.store / "draining").unlink()
    with associated(node) as assoc:
        assert store(assoc, instance(2)) == 0x0000


def test_stop_lets_an_instance_finish(node):
    data = encoded(instance(1))
    with Raw(node) as peer:
        peer.associate()
        peer.send(pdata(store_command(), 3))
        peer.send(pdata(data[:50], 0))
        peer.wait_for_part()
        stopping = threading.Thread(target=node.receiver.stop, args=(5,))
        stopping.start()
        time.sleep(0.05)
        peer.send(pdata(data[50:], 2))
        assert peer.status() == 0x0000
        peer.send(release())
        stopping.join(5)
        assert not stopping.is_alive()
    assert len(node.instances) == 1


# ---------------------------------------------------------------- who gets in


def rejection(assoc):
    answer = assoc.acceptor.primitive
    return assoc.is_rejected and (answer.result, answer.result_source, answer.diagnostic)


def test_strangers_and_wrong_numbers_stay_out(start):
    node = start(peers=[{"ae_title": "T1"}, {"ae_title": "FAR", "hosts": ["10.0.0.0/8"]}])
    for title, called, expected in (
        ("STRANGER", "NODE", (1, 1, 3)),
        ("FAR", "NODE", (1, 1, 3)),
        ("T1", "WRONG", (1, 1, 7)),
        ("t1", "NODE", (1, 1, 3)),
    ):
        with associated(node, title, called) as assoc:
            assert rejection(assoc) == expected
    with associated(node, "T1") as assoc:
        assert assoc.is_established
    node.settles()
    assert [facts["calling_ae"] for event, facts in node.said if event == "rejected"] == ["STRANGER", "FAR", "T1", "t1"]


@pytest.mark.parametrize(
    ("hosts", "address", "expected"),
    [
        ((), "203.0.113.9", True),
        (("10.1.0.0/16",), "10.1.255.3", True),
        (("10.1.0.0/16",), "10.2.0.1", False),
        (("10.1.0.7",), "10.1.0.7", True),
        (("10.1.0.7",), "::ffff:10.1.0.7", True),
        (("10.1.0.7", "2001:db8::/32"), "2001:db8::1", True),
        (("10.1.0.7",), None, False),
    ],
)
def test_addresses(hosts, address, expected):
    assert Peer(ae_title="A", hosts=hosts).may_call_from(address) is expected


def test_limits(start):
    node = start(maximum_associations=3, maximum_associations_of_a_peer=2)
    with associated(node) as first, associated(node) as second:
        assert first.is_established
        assert second.is_established
        with associated(node) as third:
            assert rejection(third) == (2, 3, 2)
        with associated(node, "T2") as other:
            assert other.is_established
            with associated(node, "T2") as fourth:
                assert rejection(fourth) == (2, 3, 2)
    node.settles()
    with associated(node) as again:
        assert again.is_established


def test_the_limit_of_a_peer_counts_all_processes(node):
    markers = [Spool(node.spool.store).open_association("T1") for _ in range(4)]
    with associated(node) as assoc:
        assert rejection(assoc) == (2, 3, 2)
    markers[0].close()
    with associated(node) as assoc:
        assert assoc.is_established
    for marker in markers[1:]:
        marker.close()


@pytest.mark.slow
def test_silent_connections_take_no_place_of_an_association(start):
    node = start(maximum_associations=1, acse_timeout=2)
    silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(10)]
    with associated(node) as assoc:
        assert assoc.is_established
    for sock in silent:
        sock.close()


@pytest.mark.slow
def test_a_flood_of_connections_is_cut_off(start, monkeypatch):
    monkeypatch.setattr(acceptor, "_MORE_CONNECTIONS", 3)
    node = start(maximum_associations=1, acse_timeout=1)
    flood = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(30)]
    time.sleep(0.3)
    assert len(node.connections()) <= 4
    for sock in flood:
        sock.close()
    node.settles()


def test_a_port_in_use(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="port"):
            start(port=taken.getsockname()[1])


# ---------------------------------------------------------------- rude peers


def pdu(kind, body):
    return struct.pack(">BxL", kind, len(body)) + body


def item(kind, body):
    return struct.pack(">BxH", kind, len(body)) + body


def associate_rq(calling=b"T1", called=b"NODE", maximum=16384):
    contexts = b""
    for number, abstract in ((1, CT), (3, VERIFICATION)):
        syntaxes = item(0x30, abstract.encode()) + item(0x40, EXPLICIT.encode())
        contexts += item(0x20, bytes([number, 0, 0, 0]) + syntaxes)
    user = item(0x50, item(0x51, struct.pack(">L", maximum)) + item(0x52, b"1.2.3"))
    head = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16), calling.ljust(16))
    return pdu(1, head + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user)


def pdata(data, flags, context=1):
    return pdu(4, struct.pack(">LBB", len(data) + 2, context, flags) + data)


def release():
    return pdu(5, bytes(4))


def command(**elements):
    body = b""
    for name, value in elements.items():
        data = value.encode() if isinstance(value, str) else struct.pack("<H", value)
        data += b"\0" * (len(data) % 2)
        body += struct.pack("<HHL", 0, int(name[1:], 16), len(data)) + data
    return body


def store_command(sop_instance="1.2.3.4.1", **more):
    elements = {"e0002": CT, "e0100": 1, "e0110": 7, "e0700": 0, "e0800": 1, "e1000": sop_instance} | more
    return command(**elements)


ECHO = command(e0002=VERIFICATION, e0100=0x30, e0110=1, e0800=0x0101)


class Raw:
    def __init__(self, node):
        self.node = node
        self.sock = socket.create_connection(("127.0.0.1", node.port), timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def receive(self):
        head = self._exactly(6)
        return head[0], self._exactly(struct.unpack(">L", head[2:])[0])

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            block = self.sock.recv(count - len(data))
            if not block:
                raise ConnectionError("closed")
            data += block
        return data

    def associate(self):
        self.send(associate_rq())
        assert self.receive()[0] == 2

    def status(self):
        kind, body = self.receive()
        assert kind == 4
        at = body.index(struct.pack("<HHL", 0, 0x0900, 2))
        return struct.unpack_from("<H", body, at + 8)[0]

    def wait_for_part(self):
        wait_until(lambda: list(self.node.spool.incoming.iterdir()))

    def is_closed(self):
        """Whether the node closes, which it does within a second."""
        try:
            while self.sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True


BEFORE = {
    "silence": b"",
    "half a header": b"\x01\x00",
    "4 GiB request": b"\x01\x00\xff\xff\xff\xff",
    "half a request": associate_rq()[:60],
    "4 GiB of data": b"\x04\x00\xff\xff\xff\xff",
    "unknown PDU": b"\x77\x00\x00\x00\x00\x04abcd",
    "garbage": bytes(range(256)) * 16,
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "data first": pdata(ECHO, 3, 3),
    "release first": release(),
    "empty request": pdu(1, b""),
    "request of zeros": pdu(1, bytes(100)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
}


@pytest.mark.slow
def test_nothing_before_an_association_holds_a_slot(start):
    node = start(acse_timeout=1)
    with contextlib.ExitStack() as open_:
        peers = {attack: open_.enter_context(Raw(node)) for attack in BEFORE}
        for attack, peer in peers.items():
            peer.send(BEFORE[attack])
        assert [attack for attack, peer in peers.items() if not peer.is_closed()] == []
    node.settles()
    with associated(node, contexts=[(VERIFICATION, EXPLICIT)]) as assoc:
        assert assoc.send_c_echo().Status == 0x0000


@pytest.mark.slow
def test_a_request_that_drips_in_is_cut_off(start):
    node = start(acse_timeout=1)
    with Raw(node) as peer:
        sent = 0
        with contextlib.suppress(OSError):
            for byte in associate_rq():
                peer.send(bytes([byte]))
                sent += 1
                time.sleep(0.1)
        assert sent < len(associate_rq()) - 20
    node.settles()


DURING = {
    "data without a command": pdata(b"abc", 2),
    "4 GiB of data": b"\x04\x00\xff\xff\xff\xff",
    "more than the maximum": pdu(4, bytes(200_000)),
    "unknown command": pdata(command(e0002=CT, e0100=0x7777, e0110=1, e0800=0x0101), 3),
    "no command field": pdata(command(e0002=CT), 3),
    "broken command": pdata(b"\0\0\0\0\xff\xff\xff\x7f", 3),
    "C-STORE without UIDs": pdata(command(e0100=1, e0110=7, e0800=1), 3),
    "C-STORE with an endless UID": pdata(store_command("1." * 200), 3),
    "C-STORE without data": pdata(store_command(e0800=0x0101), 3),
    "C-STORE in no context": pdata(store_command(), 3, context=9),
    "command within data": pdata(store_command(), 3) + pdata(b"abc", 0) + pdata(store_command(), 3),
    "data of another context": pdata(store_command(), 3) + pdata(b"abc", 0) + pdata(b"abc", 2, context=3),
    "command without end": pdata(bytes(9000), 1) * 10,
    "empty fragment": pdu(4, struct.pack(">LB", 1, 1)),
    "fragment longer than its PDU": pdu(4, struct.pack(">LBB", 999, 1, 3)),
    "half a PDU": pdata(store_command(), 3)[:20],
    "second request": associate_rq(),
    "half an instance": pdata(store_command(), 3) + pdata(b"abc", 0) * 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", DURING)
def test_nothing_within_an_association_outlives_it(start, attack):
    node = start(network_timeout=1, socket_timeout=1)
    with Raw(node) as peer:
        peer.associate()
        peer.send(DURING[attack])
        assert peer.is_closed()
    node.settles()
    assert not list(node.spool.incoming.iterdir())
    assert not list(node.spool.associations())
    assert not node.instances


def test_data_may_come_in_any_pieces(node):
    data = encoded(instance())
    middle = len(data) // 2
    values = [(store_command(sop_instance="1.2.3.4.1"), 3), (data[:middle], 0), (data[middle:], 2)]
    together = pdu(4, b"".join(struct.pack(">LBB", len(value) + 2, 1, flags) + value for value, flags in values))
    with Raw(node) as peer:
        peer.associate()
        peer.send(together)
        assert peer.status() == 0x0000
        peer.send(together + together)  # a peer that does not wait
        assert (peer.status(), peer.status()) == (0x0000, 0x0000)
        for byte in together:
            peer.send(bytes([byte]))
        assert peer.status() == 0x0000
        peer.send(pdata(ECHO, 3, 3))
        assert peer.status() == 0x0000
        peer.send(together + release())
        assert peer.status() == 0x0000
        assert peer.receive()[0] == 6
    assert data_set_digest(node.instances[0]) == hashlib.sha256(data).hexdigest()


def test_an_answer_is_no_larger_than_the_peer_takes(node):
    with Raw(node) as peer:
        peer.send(associate_rq(maximum=64))
        assert peer.receive()[0] == 2
        peer.send(pdata(store_command(), 3) + pdata(encoded(instance()), 2))
        answer = b""
        control = 0
        while not control & 2:
            kind, body = peer.receive()
            control = body[5]
            assert (kind, body[4], control & 1, len(body) <= 64) == (4, 1, 1, True)
            answer += body[6:]
    assert struct.pack("<HHLH", 0, 0x0900, 2, 0x0000) in answer


@pytest.mark.parametrize("how", ["reset", "close", "abort"])
def test_a_peer_that_leaves_within_an_instance(node, how):
    with Raw(node) as peer:
        peer.associate()
        peer.send(pdata(store_command(), 3) + pdata(b"abc", 0) * 2)
        peer.wait_for_part()
        wait_until(lambda: [open_.receiving for open_ in node.spool.associations()] == [True])
        if how == "reset":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "abort":
            peer.send(pdu(7, bytes(4)))
    node.settles()
    assert not list(node.spool.incoming.iterdir())
    assert not list(node.spool.associations())


def test_who_was_not_admitted_is_served_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Receiver, "_admit", lambda *_: 1 / 0)  # pynetdicom passes over errors of this handler
    node = Node(tmp_path / "store")
    with associated(node, contexts=[(VERIFICATION, EXPLICIT)]) as assoc:
        assert "Status" not in assoc.send_c_echo()
    node.settles()
    node.receiver.stop(0)


def test_an_error_of_ours_ends_its_association_alone(start, monkeypatch):
    node = start(acse_timeout=30)
    monkeypatch.setattr(Receiver, "_refusal", lambda *_: 1 / 0)
    with associated(node) as assoc:
        assert rejection(assoc) == (2, 3, 1)
    monkeypatch.undo()
    node.settles()
    with associated(node) as assoc:
        monkeypatch.setattr(node.spool, "accept", lambda *_, **__: 1 / 0)
        assert store(assoc, instance(1)) is None
        monkeypatch.undo()
    node.settles()
    assert not list(node.spool.incoming.iterdir())
    with associated(node) as assoc:
        assert store(assoc, instance(1)) == 0x0000


def test_a_clock_that_jumps_ends_no_association(node, monkeypatch):
    with Raw(node) as peer:
        peer.associate()
        real = time.time
        monkeypatch.setattr(pynetdicom.timer.time, "time", lambda: real() + 1e6)
        time.sleep(0.15)
        monkeypatch.undo()
        peer.send(pdata(ECHO, 3, 3))
        assert peer.status() == 0x0000


def test_associations_are_quick(node):
    seconds = []
    for _ in range(5):
        with Raw(node) as peer:
            began = time.monotonic()
            peer.associate()
            peer.send(pdata(ECHO, 3, 3))
            assert peer.status() == 0x0000
            peer.send(release())
            assert peer.receive()[0] == 6
            seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.5


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """Name to TLS files: node and client of one authority, expired of it too, other of another."""
    folder = tmp_path_factory.mktemp("tls")
    ours, others = ("ca", *authority("ca")), ("other-ca", *authority("other-ca"))
    past = datetime(2020, 1, 1, tzinfo=UTC)
    return {
        "node": tls_files(folder, "node", ours),
        "client": tls_files(folder, "client", ours),
        "expired": tls_files(folder, "expired", ours, until=past),
        "other": tls_files(folder, "other", others, trusts=ours[2]),
    }


@pytest.fixture
def secure(start, clients):
    return start(acse_timeout=2, tls=clients["node"].model_dump() | {"port": free_port()})


def run(*command, cwd=None, timeout=120):
    words = [str(word) for word in command]
    return subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd, timeout=timeout)


def said(result):
    return result.stdout + result.stderr


@pytest.mark.slow
@needs_dcmtk
def test_tls(secure, clients):
    port = secure.settings.listener.tls.port
    base = ["/usr/bin/echoscu", "-to", "60", "-ta", "60", "-aet", "T1", "-aec", "NODE"]
    trust = ["+cf", clients["client"].authority]

    def client(name):
        return ["+tls", clients[name].key, clients[name].certificate, *trust]

    assert run(*base, *client("client"), "127.0.0.1", port).returncode == 0
    for options, at in (
        (["+tla", *trust], port),  # no certificate
        ([], port),  # plain to the TLS port
        (client("client"), secure.port),  # TLS to the plain port
        (client("other"), port),  # another authority
        (client("expired"), port),
    ):
        result = run(*base, *options, "127.0.0.1", at)
        assert "Association Accepted" not in said(result)
        assert result.returncode != 0, (options, said(result))
    secure.settles()
    sample = ROOT / "sample_data" / "study" / "op-fundus.dcm"
    if pydicom.dcmread(sample, stop_before_pixels=True).file_meta.TransferSyntaxUID == EXPLICIT:
        command = ["/usr/bin/storescu", "-aet", "T1", "-aec", "NODE", *client("client"), "127.0.0.1", port, sample]
        assert run(*command).returncode == 0
        assert data_set_digest(secure.instances[0]) == data_set_digest(sample)


@pytest.mark.slow
def test_a_silent_tls_client_holds_nobody_up(secure):
    silent = [socket.create_connection(("127.0.0.1", secure.settings.listener.tls.port)) for _ in range(3)]
    with socket.create_connection(("127.0.0.1", secure.settings.listener.tls.port), timeout=60) as sock:
        sock.sendall(b"\x16\x03\x01\x00\x05")
        with associated(secure) as assoc:
            assert assoc.is_established
    for sock in silent:
        sock.settimeout(60)
        assert sock.recv(100) == b""
        sock.close()
    secure.settles()


# ---------------------------------------------------------------- DCMTK


@needs_dcmtk
def test_dcmtk_verification(node):
    base = ["/usr/bin/echoscu", "-v", "-aet", "T1", "-aec", "NODE"]
    at = ["127.0.0.1", node.port]
    assert run(*base, *at).returncode == 0
    assert run(*base, "--propose-pc", "128", "--propose-ts", "38", *at).returncode == 0
    assert run(*base, "--repeat", "20", *at).returncode == 0
    run(*base, "--abort", *at)
    wrong = run("/usr/bin/echoscu", "-v", "-aet", "T1", "-aec", "WRONG", *at)
    assert wrong.returncode == 1
    assert "Called AE Title Not Recognized" in said(wrong)
    stranger = run("/usr/bin/echoscu", "-v", "-aet", "STRANGER", "-aec", "NODE", *at)
    assert stranger.returncode == 1
    assert "Calling AE Title Not Recognized" in said(stranger)
    node.settles()


def write(path, number, **kwargs):
    path.parent.mkdir(exist_ok=True)
    dataset = instance(number, **kwargs)
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = hashlib.sha256(str(number).encode()).digest() * 256
    dataset.save_as(path, enforce_file_format=True)


@needs_dcmtk
@pytest.mark.slow
def test_dcmtk_storage(node, tmp_path):
    for number in range(6):
        write(tmp_path / "study" / f"{number}.dcm", number)
    files = sorted((tmp_path / "study").iterdir())
    base = ["/usr/bin/storescu", "-v", "-aet", "T1", "-aec", "NODE"]
    at = ["127.0.0.1", node.port]
    for options in ([], ["--max-pdu", "4096"], ["-nh"], ["--repeat", "3"], ["-R"], ["-x="]):
        result = run(*base, *options, *at, files[0])
        assert result.returncode == 0, said(result)
    assert len(node.instances) == 1
    result = run(*base, "+sd", "+r", *at, tmp_path / "study")
    assert result.returncode == 0, said(result)
    assert {data_set_digest(path) for path in node.instances} == {data_set_digest(path) for path in files}
    assert len(node.instances) == len(files)
    run(*base, "--abort", *at, files[0])
    implicit = run(*base, "-xi", *at, files[1])
    assert "Status: 0x111" in said(implicit)  # other bytes of the same instance
    assert len(list((node.spool.store / "conflicts").iterdir())) == 1
    node.settles()
    assert not list(node.spool.incoming.iterdir())
    assert not list(node.spool.associations())


@needs_dcmtk
@pytest.mark.slow
def test_compressed_instances_stay_compressed(node, tmp_path):
    folder = tmp_path / "compressed"
    folder.mkdir()
    for path in (ROOT / "sample_data" / "study").glob("*.dcm"):
        shutil.copy(path, folder)
    result = run(
        "/usr/bin/dcmsend", "-v", "-dn", "+sd", "+r", "-aet", "T1", "-aec", "NODE", "--create-report-file",
        tmp_path / "report.txt", "127.0.0.1", node.port, folder,
    )  # fmt: skip
    assert result.returncode == 0, said(result)
    sent = {data_set_digest(path): pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in folder.iterdir()}
    held = {data_set_digest(path): pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in node.instances}
    assert held == sent
    result = run("/usr/bin/dcmsend", "+ma", "+sd", "+r", "-aet", "T1", "-aec", "NODE", "127.0.0.1", node.port, folder)
    assert result.returncode == 0, said(result)
    assert len(node.instances) == len(sent)


@needs_dcmtk
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_hundred_associations_one_after_the_other(node):
    for _ in range(100):
        with Raw(node) as peer:
            peer.associate()
            peer.send(pdata(ECHO, 3, 3))
            assert peer.status() == 0x0000
            peer.send(release())
            assert peer.receive()[0] == 6
    node.settles()
    assert len(list(Path(f"/proc/{os.getpid()}/fd").iterdir())) < 100


# ---------------------------------------------------------------- processes


CHILD = """
import sys, threading
from pathlib import Path
from medenhance_dicom.node.receive import Receiver
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import Spool
from signal import SIGTERM, signal
stop = threading.Event()
signal(SIGTERM, lambda *_: stop.set())
store, port, reserve = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
listener = {"ae_title": "NODE", "port": port, "reserve_bytes": reserve, "maximum_associations_of_a_peer": 20}
settings = NodeSettings.model_validate({"store": store, "listener": listener, "peers": [{"ae_title": "T1"}]})
receiver = Receiver(settings, Spool(store))
receiver.start()
print("up", flush=True)
stop.wait()
receiver.stop()
"""


class Child:
    def __init__(self, store, port, reserve=0):
        self.port = port
        self.spool = Spool(store)
        command = [sys.executable, "-c", CHILD, str(store), str(port), str(reserve)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "up\n"

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_killed_receiver_loses_nothing_that_it_acknowledged(tmp_path):
    store_folder, port = tmp_path / "store", free_port()
    acknowledged = set()
    for attempt in range(4):
        child = Child(store_folder, port)
        timer = threading.Timer(0.3 + 0.17 * attempt, child.process.kill)
        with associated(child) as assoc:
            for number in range(attempt * 20, 4000):
                if number == attempt * 20 + 5:
                    timer.start()
                if not assoc.is_established or store(assoc, instance(number)) != 0x0000:
                    break
                acknowledged.add(f"1.2.3.4.{number}")
        child.process.wait(120)
        Spool(store_folder).reconcile()
    spool = Spool(store_folder)
    assert len(acknowledged) > 10
    (series,) = spool.pending()
    job = spool.seal(series.key, partial=False)
    held = [pydicom.dcmread(path).SOPInstanceUID for path in job.source.iterdir()]
    assert acknowledged <= set(held)
    assert len(held) == len(set(held))
    assert not list(spool.incoming.iterdir())
    assert not list(spool.associations())


@pytest.mark.slow
def test_a_receiver_killed_in_the_middle_of_an_instance(tmp_path):
    child = Child(tmp_path / "store", free_port())
    with Raw(child) as peer:
        peer.associate()
        peer.send(pdata(store_command(), 3) + pdata(encoded(instance(1))[:40], 0))
        Raw.wait_for_part(peer)
        child.end(signal.SIGKILL)
    assert len(list(child.spool.incoming.iterdir())) == 1
    assert not list(child.spool.associations())
    child.spool.reconcile()
    assert not list(child.spool.incoming.iterdir())
    assert not list(child.spool.pending())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_on_one_port(tmp_path):
    port = free_port()
    children = [Child(tmp_path / "store", port), Child(tmp_path / "store", port)]

    def markers():
        return list((tmp_path / "store" / "associations").iterdir())

    try:
        served = set()
        for number in range(16):
            with associated(children[0]) as assoc:
                assert store(assoc, instance(number)) == 0x0000
                # That of the association before may still be there.
                (marker,) = wait_until(lambda: found if len(found := markers()) == 1 else None)
                served.add(marker.name.split(".")[0])
        assert served == {str(child.process.pid) for child in children}
    finally:
        assert [child.end(signal.SIGTERM) for child in children] == [0, 0]
    (series,) = children[0].spool.pending()
    assert series.count == 16


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_large_object_is_not_in_memory(tmp_path):
    child = Child(tmp_path / "store", free_port())

    def peak():
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) >> 10

    try:
        before = peak()
        with Raw(child) as peer:
            peer.associate()
            dataset = instance(1)
            dataset.add_new(0x7FE00010, "OW", bytes(2))
            data = encoded(dataset)[:-6] + struct.pack("<L", 96 << 20)
            peer.send(pdata(store_command(), 3) + pdata(data, 0))
            for number in range(960):
                peer.send(
                    pdata(bytes((96 << 20) // 960 if number < 959 else (96 << 20) - 959 * ((96 << 20) // 960)), 0)
                )
            peer.send(pdata(b"", 2))
            assert peer.status() == 0x0000
        assert peak() - before < 16
    finally:
        child.end(signal.SIGTERM)


FULL = """
set -e
ip link set lo up
mount -t tmpfs -o size=3m tmpfs "$1"
cd "$2"
"$3" -c "$4" "$1" 11112 0 & node=$!
trap 'kill $node' EXIT
for i in $(seq 100); do /usr/bin/echoscu -aet T1 -aec NODE 127.0.0.1 11112 2>/dev/null && break; sleep 0.2; done
say() { echo "$1 $(/usr/bin/storescu -v -aet T1 -aec NODE 127.0.0.1 11112 "$2" 2>&1 | grep -i 'Store Response')"; }
say small small.dcm
say large large.dcm
echo "parts $(ls "$1/incoming" | wc -l)"
say again small2.dcm
for i in $(seq 20); do mount -o remount,ro "$1" 2>/dev/null && break; sleep 0.1; done
say readonly small3.dcm
mount -o remount,rw "$1"
say writable small3.dcm
"""


@needs_dcmtk
@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="may not mount a file system")
@pytest.mark.timeout(120)
def test_disk_full_and_read_only(tmp_path):
    for number, name in enumerate(("small", "small2", "small3")):
        write(tmp_path / f"{name}.dcm", number)
    large = instance(9)
    large.add_new(0x7FE00010, "OB", bytes(8 << 20))
    large.save_as(tmp_path / "large.dcm", enforce_file_format=True)
    (tmp_path / "store").mkdir()
    command = ["unshare", "-n", "-m", "bash", "-c", FULL, "full", tmp_path / "store", tmp_path, sys.executable, CHILD]
    result = run(*command, timeout=100)
    lines = dict(line.split(" ", 1) for line in result.stdout.splitlines() if " " in line)
    assert "Success" in lines["small"], said(result)
    assert "Refused: OutOfResources" in lines["large"]
    assert lines["parts"] == "0"
    assert "Success" in lines["again"]
    assert "Refused: OutOfResources" in lines["readonly"]
    assert "Success" in lines["writable"]


# ---------------------------------------------------------------- transfer syntaxes


def test_every_transfer_syntax_of_stored_objects_is_kept_byte_for_byte(node):
    """Storing needs no decoder: what stands for pixels is no codestream at all."""
    with associated(node, contexts=[(CT, syntax.uid) for syntax in STORED]) as assoc:
        accepted = {str(context.transfer_syntax[0]): context.context_id for context in assoc.accepted_contexts}
        assert set(accepted) == {syntax.uid for syntax in STORED}
        for number, syntax in enumerate(STORED):
            data = _data_set(f"1.2.3.4.{number}", syntax.uid)
            request = C_STORE()
            request.MessageID, request.Priority, request.DataSet = number + 1, 2, BytesIO(data)
            request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CT, f"1.2.3.4.{number}"
            assoc._reactor_checkpoint.clear()
            while not assoc._is_paused:
                time.sleep(0.001)
            assoc.dimse.send_msg(request, accepted[syntax.uid])
            _, answer = assoc.dimse.get_msg(block=True)
            assoc._reactor_checkpoint.set()
            assert answer.Status == 0, syntax.name
    kept = {pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID: path for path in node.instances}
    for number, syntax in enumerate(STORED):
        assert kept[syntax.uid].read_bytes().endswith(_data_set(f"1.2.3.4.{number}", syntax.uid)), syntax.name


def _data_set(sop_instance, syntax):
    dataset = instance()
    dataset.SOPInstanceUID = sop_instance
    del dataset.file_meta
    dataset.add_new(0x7FE00010, "OB", b"\0" * 8)
    implicit, little = syntax == IMPLICIT, syntax != "1.2.840.10008.1.2.2"
    data = encode(dataset, implicit, little, syntax == "1.2.840.10008.1.2.1.99")
    if kind_of(syntax) == "uncompressed":
        return data
    head, item = data[: data.index(b"\xe0\x7f\x10\x00OB")], b"\xfe\xff\x00\xe0"
    pixels = item + bytes(4) + item + struct.pack("<L", 6) + b"opaque" + b"\xfe\xff\xdd\xe0" + bytes(4)
    return head + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + pixels


def test_a_transfer_syntax_of_no_stored_object_is_refused_by_name(node):
    video = "1.2.840.10008.1.2.7.1"
    with associated(node, contexts=[(CT, video), (CT, EXPLICIT)]) as assoc:
        assert [context.transfer_syntax[0] for context in assoc.accepted_contexts] == [EXPLICIT]
    name = "SMPTE ST 2110-20 Uncompressed Progressive Active Video"
    assert ("refused", {"calling_ae": "T1", "transfer_syntaxes": [name]}) in node.said
