"""Storage Commitment, both ways: the judgement of reports, real associations, and Orthanc as the partner."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.error
import urllib.request

import pytest
from pydicom import Dataset
from pynetdicom import build_context, evt

from medenhance_dicom.errors import PeerError
from medenhance_dicom.node.association import associated
from medenhance_dicom.node.commit import (
    COMMITMENT,
    COMMITMENT_INSTANCE,
    Report,
    Transaction,
    address_of,
    answer_requests,
    commitment_handlers,
    judge,
    report_of,
    request_commitment,
    take_report,
    transaction_of,
    verify_held,
)
from medenhance_dicom.node.forward import send_files
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.index import Index
from medenhance_dicom.node.query import move, query_handlers
from medenhance_dicom.node.settings import Destination, NodeSettings
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.wire import accepted_context, application_entity, on_open, server_tls, storage_contexts
from tests.dicom_peers import authority, destination, in_own_network, listen, receiving, running, tls_files
from tests.ports import free_port
from tests.waiting import wait_until

CT = "1.2.840.10008.5.1.4.1.1.2"
A, B = (CT, "1.2.3.1"), (CT, "1.2.3.2")
ASKED = Transaction("2.25.1", "ARCHIVE", (A, B))


def information(stored=(), failed=(), uid="2.25.1"):
    def item(pair, reason=None):
        found = Dataset()
        found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = pair
        if reason is not None:
            found.FailureReason = reason
        return found

    dataset = Dataset()
    dataset.TransactionUID = uid
    if stored:
        dataset.ReferencedSOPSequence = [item(pair) for pair in stored]
    if failed:
        dataset.FailedSOPSequence = [item(pair, reason) for pair, reason in failed]
    return dataset


# ---------------------------------------------------------------- the judgement


def test_everything_committed():
    status, report, why = judge(ASKED, "ARCHIVE ", 1, information([A, B]))
    assert (status, why) == (0x0000, "committed")
    assert report == Report("2.25.1", frozenset({"1.2.3.1", "1.2.3.2"}), {})


def test_some_refused():
    status, report, why = judge(ASKED, "ARCHIVE", 2, information([A], [(B, 0x0112)]))
    assert (status, why) == (0x0000, "1 of 2 refused")
    assert report == Report("2.25.1", frozenset({"1.2.3.1"}), {"1.2.3.2": "no such instance"})


def test_more_than_was_asked_for_is_left_out():
    status, report, _ = judge(ASKED, "ARCHIVE", 2, information([A, B, (CT, "9.9")], [((CT, "9.8"), 0x0110)]))
    assert status == 0x0000
    assert report == Report("2.25.1", frozenset({"1.2.3.1", "1.2.3.2"}), {})


@pytest.mark.parametrize(
    ("transaction", "peer", "event_type", "said", "status"),
    [
        (None, "ARCHIVE", 1, information([A, B]), 0x0115),
        (ASKED, "OTHER", 1, information([A, B]), 0x0124),
        (ASKED, "ARCHIVE", 3, information([A, B]), 0x0113),
        (ASKED, "ARCHIVE", None, information([A, B]), 0x0113),
        (ASKED, "ARCHIVE", 1, information([A]), 0x0115),
        (ASKED, "ARCHIVE", 1, information(), 0x0115),
        (ASKED, "ARCHIVE", 2, information([A, B], [(B, 0x0110)]), 0x0115),
        (ASKED, "ARCHIVE", 1, information([A, ("1.2.840.10008.5.1.4.1.1.4", "1.2.3.2")]), 0x0115),
        (ASKED, "ARCHIVE", 2, information([A], [(B, None)]), 0x0115),
    ],
    ids=["unknown", "peer", "event", "no-event", "missing", "empty", "both", "class", "no-reason"],
)
def test_wrong_reports_are_refused(transaction, peer, event_type, said, status):
    found, report, why = judge(transaction, peer, event_type, said)
    assert (found, report) == (status, None)
    assert why
    assert "1.2.3" not in why


# ---------------------------------------------------------------- we ask


class Archive:
    """A commitment SCP. `answer(request)`: status of the N-ACTION, event type, report for the same association."""

    def __init__(self, answer):
        self.requests, self.responses, self.on_disk = [], [], []
        self.answer = answer
        self.store = None
        self.server = listen([accepted_context(COMMITMENT)], [(evt.EVT_N_ACTION, self._asked)])
        self.threads = []

    def _asked(self, event):
        request = event.action_information
        self.requests.append(request)
        self.on_disk.append(transaction_of(self.store, request.TransactionUID))
        status, kind, said = self.answer(request)
        if said is not None:
            self.threads.append(threading.Thread(target=self._report, args=(event.assoc, kind, said)))
            self.threads[-1].start()
        return status, None

    def _report(self, assoc, kind, said):
        time.sleep(0.2)
        status, _ = assoc.send_n_event_report(said, kind, COMMITMENT, COMMITMENT_INSTANCE)
        self.responses.append(status.get("Status"))

    def ask(self, store, instances=(A, B), uid="2.25.1", linger=3.0):
        self.store = store
        try:
            return request_commitment(
                store, instances, destination(self.server), calling_ae="ME", transaction_uid=uid, linger=linger
            )
        finally:
            for thread in self.threads:
                thread.join()
            self.server.shutdown()


def test_a_report_over_the_same_association(tmp_path):
    archive = Archive(lambda request: (0, 2, information([A], [(B, 0x0112)])))
    report = archive.ask(tmp_path)
    assert report == Report("2.25.1", frozenset({"1.2.3.1"}), {"1.2.3.2": "no such instance"})
    assert report_of(tmp_path, "2.25.1") == report
    assert archive.responses == [0x0000]
    assert archive.on_disk == [Transaction("2.25.1", "SERVER", (A, B))]
    assert [item.ReferencedSOPInstanceUID for item in archive.requests[0].ReferencedSOPSequence] == [A[1], B[1]]


def test_a_report_that_comes_later(tmp_path):
    assert Archive(lambda request: (0, 1, None)).ask(tmp_path, linger=0.05) is None
    assert report_of(tmp_path, "2.25.1") is None
    assert transaction_of(tmp_path, "2.25.1") == Transaction("2.25.1", "SERVER", (A, B))


def test_a_report_without_an_instance_is_refused(tmp_path):
    archive = Archive(lambda request: (0, 1, information([A])))
    assert archive.ask(tmp_path, linger=0.6) is None
    assert archive.responses == [0x0115]


@pytest.mark.parametrize(("status", "permanent"), [(0x0110, False), (0x0213, False), (0x0122, True), (0x0124, True)])
def test_a_refused_request(tmp_path, status, permanent):
    with pytest.raises(PeerError, match=f"0x{status:04X}") as caught:
        Archive(lambda request: (status, 1, None)).ask(tmp_path)
    assert caught.value.permanent is permanent


def test_no_such_service(tmp_path):
    server = listen(storage_contexts())
    with pytest.raises(PeerError) as caught:
        request_commitment(tmp_path, [A], destination(server), calling_ae="ME", transaction_uid="2.25.1")
    assert caught.value.permanent
    server.shutdown()


def test_nothing_is_asked_that_is_not_on_the_disk(tmp_path):
    archive = Archive(lambda request: (0, 1, None))
    (tmp_path / "commitments").write_text("in the way")
    with pytest.raises(OSError, match="commitments"):
        archive.ask(tmp_path)
    assert not archive.requests


@pytest.mark.parametrize("uid", ["", "../../etc/passwd", "1.2/3", "1." * 40 + "1", "2.25.1\n"])
def test_only_uids_become_file_names(tmp_path, uid):
    assert transaction_of(tmp_path, uid) is None
    assert report_of(tmp_path, uid) is None
    with pytest.raises(ValueError, match="UID"):
        request_commitment(tmp_path, [A], Destination(name="a", stow="x"), calling_ae="ME", transaction_uid=uid)


def transacted(store, peer="ARCHIVE", uid="2.25.1"):
    (store / "commitments").mkdir(exist_ok=True)
    text = json.dumps({"peer": peer, "instances": [list(A), list(B)], "asked": 0})
    (store / "commitments" / f"{uid}.json").write_text(text)


def test_a_report_to_the_listener(tmp_path):
    transacted(tmp_path)
    heard = []
    server = listen(
        [accepted_context(COMMITMENT, both_roles=True)],
        [(evt.EVT_N_EVENT_REPORT, take_report, [tmp_path, lambda *facts: heard.append(facts)])],
    )

    def report(peer, said):
        role = pytest.importorskip("pynetdicom").build_role(COMMITMENT, scp_role=True)
        contexts = [build_context(COMMITMENT)]
        with associated(destination(server), contexts, calling_ae=peer, roles=[role]) as assoc:
            return assoc.send_n_event_report(said, 1, COMMITMENT, COMMITMENT_INSTANCE)[0].Status

    assert report("STRANGER", information([A, B])) == 0x0124
    assert report("ARCHIVE", information([A, B], uid="2.25.2")) == 0x0115
    assert report_of(tmp_path, "2.25.1") is None
    assert report("ARCHIVE", information([A, B])) == 0x0000
    kept = report_of(tmp_path, "2.25.1")
    assert kept.committed == {"1.2.3.1", "1.2.3.2"}
    assert report("ARCHIVE", information([A], [(B, 0x0110)])) == 0x0000  # a second one changes nothing
    assert report_of(tmp_path, "2.25.1") == kept
    assert [facts[1] for facts in heard] == ["STRANGER", "ARCHIVE", "ARCHIVE", "ARCHIVE"]
    assert heard[0] == ("2.25.1", "STRANGER", "report refused: it was asked of another peer")
    assert heard[2] == ("2.25.1", "ARCHIVE", "committed")
    server.shutdown()


# ---------------------------------------------------------------- we are asked


@pytest.fixture
def held(tmp_path, samples):
    """A spool that holds the two CT slices; their (class, UID)."""
    spool = Spool(tmp_path / "store")
    pairs = []
    for path in sorted((samples / "study" / "ct").iterdir())[:2]:
        part = spool.new_part()
        shutil.copy(path, part)
        identity = read_identity(part)
        spool.accept(part, identity, calling_ae="CTSCAN", called_ae="NODE")
        pairs.append((identity.sop_class, identity.sop_instance))
    return spool, pairs


def test_only_what_is_held_whole_is_committed(held):
    spool, (first, second) = held
    unknown, other_class = (CT, "1.2.3.4"), ("1.2.840.10008.5.1.4.1.1.4", first[1])
    assert verify_held(spool, [first, second, unknown, other_class]) == {
        first: 0,
        second: 0,
        unknown: 0x0112,
        other_class: 0x0119,
    }
    file = spool.held(second[1])
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert verify_held(spool, [first, second]) == {first: 0, second: 0x0110}
    file.write_bytes(b"")
    assert verify_held(spool, [second]) == {second: 0x0110}


@pytest.mark.slow
def test_a_modality_that_insists(held):
    spool, pairs = held
    modality = application_entity("CTSCAN")
    got, answers = [], [0x0110, 0x0000]

    def reported(event):
        got.append((event.event_type, event.event_information, event.assoc.requestor.ae_title))
        return answers.pop(0), None

    listener = modality.start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=[accepted_context(COMMITMENT, both_roles=True)],
        evt_handlers=[(evt.EVT_CONN_OPEN, on_open, [2.0]), (evt.EVT_N_EVENT_REPORT, reported)],
    )
    peers = [{"ae_title": "CTSCAN", "host": "127.0.0.1", "port": listener.server_address[1]}, {"ae_title": "NOADDR"}]
    settings = NodeSettings.model_validate({"store": spool.store, "peers": peers, "listener": {"ae_title": "NODE"}})
    heard = []
    node = listen(*commitment_handlers(spool, lambda: settings, lambda *facts: heard.append(facts)))

    def ask(instances, uid="2.25.7", peer="CTSCAN", **changes):
        request = information(instances, uid=uid)
        arguments = {"action_type": 1, "class_uid": COMMITMENT, "instance_uid": COMMITMENT_INSTANCE} | changes
        with associated(destination(node), [build_context(COMMITMENT)], calling_ae=peer) as assoc:
            return assoc.send_n_action(request, **arguments)[0].Status

    wanted = [*pairs, (CT, "1.2.3.4")]
    assert ask(wanted) == 0x0000
    assert ask(wanted) == 0x0000  # a repeat
    assert ask(pairs) == 0x0210  # the same UID for something else
    assert ask(wanted, peer="NOADDR", uid="2.25.8") == 0x0124
    assert ask([], uid="2.25.9") == 0x0115
    assert ask(wanted, uid="2.25.9", action_type=2) == 0x0123
    assert ask(wanted, uid="2.25.9", instance_uid="1.2.3") == 0x0112
    node.shutdown()

    now = time.time()
    spool = Spool(spool.store)  # after a restart
    assert answer_requests(spool, settings, now=now, on_report=lambda *facts: heard.append(facts)) == 1
    assert answer_requests(spool, settings, now=now + 1) == 1  # not yet
    assert len(got) == 1
    assert answer_requests(spool, settings, now=now + 6, on_report=lambda *facts: heard.append(facts)) == 0
    assert answer_requests(spool, settings, now=now + 60) == 0
    kind, report, title = got[1]
    assert (kind, title, report.TransactionUID) == (2, "NODE", "2.25.7")
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [uid for _, uid in pairs]
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in report.FailedSOPSequence] == [
        ("1.2.3.4", 0x0112)
    ]
    assert heard == [
        ("2.25.8", "NOADDR", "commitment refused: its host and port are not configured"),
        ("2.25.7", "CTSCAN", "commitment report not delivered: it answers 0x0110"),
        ("2.25.7", "CTSCAN", "commitment reported"),
    ]
    listener.shutdown()


def test_a_report_goes_over_tls_to_a_peer_that_has_it(held, tmp_path):
    spool, pairs = held
    site = ("Site", *authority("Site"))
    got = []

    def reported(event):
        got.append(event.event_information.TransactionUID)
        return 0x0000, None

    server_files = tls_files(tmp_path, "modality", site, names=["ctscan.test"])
    contexts = [accepted_context(COMMITMENT, both_roles=True)]
    listener = listen(contexts, [(evt.EVT_N_EVENT_REPORT, reported)], tls=server_tls(server_files), title="CTSCAN")
    ours = tls_files(tmp_path, "node", site).model_dump()
    heard = []

    def answered(**more):
        peer = {"ae_title": "CTSCAN", "host": "127.0.0.1", "port": listener.server_address[1], **more}
        settings = NodeSettings.model_validate({"store": spool.store, "peers": [peer]})
        folder = spool.store / "commitments" / "asked"
        folder.mkdir(parents=True, exist_ok=True)
        asked = {"peer": "CTSCAN", "instances": pairs, "asked": 1000.0, "attempts": 0, "next": 0.0}
        (folder / "2.25.7.json").write_text(json.dumps(asked))
        return answer_requests(spool, settings, now=1000.0, on_report=lambda *facts: heard.append(facts[2])) == 0

    try:
        assert not answered()
        assert not answered(tls=ours | {"server_name": "other.test"})
        assert got == []
        assert answered(tls=ours | {"server_name": "ctscan.test"})
        assert answered(tls=ours)
    finally:
        listener.shutdown()
    assert got == ["2.25.7", "2.25.7"]
    assert [words.split(":")[0] for words in heard] == ["commitment report not delivered"] * 2 + [
        "commitment reported"
    ] * 2


def test_a_move_goes_over_tls_to_a_peer_that_has_it(held, tmp_path):
    spool, pairs = held
    site = ("Site", *authority("Site"))
    arrived = []

    def stored(event):
        arrived.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    tls = server_tls(tls_files(tmp_path, "modality", site))
    listener = listen(storage_contexts(), [(evt.EVT_C_STORE, stored)], tls=tls, title="CTSCAN")
    safe = {"ae_title": "CTSCAN", "host": "127.0.0.1", "port": listener.server_address[1]}
    safe["tls"] = tls_files(tmp_path, "node", site).model_dump()
    settings = NodeSettings.model_validate(
        {"store": spool.store, "peers": [safe, {"ae_title": "ME", "query": True}], "listener": {"ae_title": "NODE"}}
    )
    port, index = free_port(), Index(spool)
    there = Destination(name="node", ae_title="NODE", host="127.0.0.1", port=port)
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.SOPInstanceUID = "IMAGE", [uid for _, uid in pairs]
    try:
        with receiving(spool, lambda _: query_handlers(index, lambda: settings), port, "ME"):
            progress = list(move(there, identifier, calling_ae="ME", to="CTSCAN"))
    finally:
        listener.shutdown()
    assert (progress[-1].completed, progress[-1].failed) == (2, 0)
    assert sorted(arrived) == sorted(uid for _, uid in pairs)


def test_where_a_peer_listens():
    tls = {"certificate": "c", "key": "k", "authority": "a"}
    settings = NodeSettings.model_validate(
        {
            "store": "s",
            "peers": [
                {"ae_title": "SAFE", "host": "h", "port": 2762, "tls": tls},
                {"ae_title": "CLEAR", "host": "h", "port": 104},
                {"ae_title": "ARCHIVE"},
            ],
            "destinations": [{"name": "a", "ae_title": "ARCHIVE", "host": "x", "port": 1, "tls": tls}],
        }
    )
    assert address_of(settings, "SAFE ").tls == settings.peers[0].tls
    assert address_of(settings, "CLEAR").tls is None
    assert address_of(settings, "ARCHIVE") is settings.destinations[0]
    assert address_of(settings, "NOBODY") is None


def test_an_undeliverable_report_is_given_up_after_a_day(held):
    spool, pairs = held
    peers = [{"ae_title": "CTSCAN", "host": "127.0.0.1", "port": 1}]
    settings = NodeSettings.model_validate({"store": spool.store, "peers": peers})
    folder = spool.store / "commitments" / "asked"
    folder.mkdir(parents=True)
    asked = {"peer": "CTSCAN", "instances": pairs, "asked": 1000.0, "attempts": 0, "next": 0.0}
    (folder / "2.25.7.json").write_text(json.dumps(asked))
    heard = []
    now, attempts = 1000.0, 0
    while answer_requests(spool, settings, now=now, on_report=lambda *facts: heard.append(facts[2])):
        now += 300 * 2**attempts
        attempts += 1
    assert heard[0] == "commitment report not delivered: peer cannot be reached"
    assert heard[-1] == "commitment report given up: peer cannot be reached"
    assert now > 1000 + 86400


def test_one_peer_that_cannot_be_answered_keeps_no_other_waiting(held, monkeypatch):
    spool, pairs = held
    tls = {"certificate": "/nowhere", "key": "/nowhere", "authority": "/nowhere"}
    there = [{"name": name.lower(), "ae_title": name, "host": "127.0.0.1", "port": 1} for name in ("FIRST", "SECOND")]
    there[0]["tls"] = tls
    settings = NodeSettings.model_validate({"store": spool.store, "destinations": there})
    folder = spool.store / "commitments" / "asked"
    folder.mkdir(parents=True)
    for uid, peer in (("2.25.1", "FIRST"), ("2.25.2", "SECOND")):
        asked = {"peer": peer, "instances": pairs, "asked": 1000.0, "attempts": 0, "next": 0.0}
        (folder / f"{uid}.json").write_text(json.dumps(asked))
    heard = []
    assert answer_requests(spool, settings, now=1000.0, on_report=lambda *facts: heard.append(facts[1])) == 2
    assert heard == ["FIRST", "SECOND"]


# ---------------------------------------------------------------- Orthanc


def rest(path, content=None):
    data = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:8042{path}", data)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def orthanc(folder):
    (folder / "db").mkdir()
    configuration = {
        "DicomAet": "ORTHANC",
        "DicomPort": 4242,
        "HttpPort": 8042,
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": False,
        "DicomModalities": {"node": ["NODE", "127.0.0.1", 11112]},
        "DicomAlwaysAllowStore": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    return running("/usr/sbin/Orthanc", folder / "orthanc.json", port=8042)


@pytest.mark.slow
@in_own_network
def test_orthanc_commits_what_we_sent(tmp_path, samples):
    paths = sorted((samples / "study" / "ct").iterdir())[:2]
    there = Destination(name="orthanc", ae_title="ORTHANC", host="127.0.0.1", port=4242)
    store = tmp_path / "store"
    spool = Spool(store)
    node = receiving(spool, lambda settings: commitment_handlers(spool, lambda: settings), 11112, "ORTHANC")
    with node, orthanc(tmp_path):
        sent = send_files(paths, there, calling_ae="NODE").sent
        pairs = [(item.sop_class, item.sop_instance) for item in sent]
        assert len(pairs) == 2
        for uid, instances in [("2.25.11", pairs), ("2.25.12", [*pairs, (CT, "1.2.3.4")])]:
            request_commitment(store, instances, there, calling_ae="NODE", transaction_uid=uid)
        first = wait_until(lambda: report_of(store, "2.25.11"))
        second = wait_until(lambda: report_of(store, "2.25.12"))
    assert first == Report("2.25.11", frozenset(uid for _, uid in pairs), {})
    assert second == Report("2.25.12", first.committed, {"1.2.3.4": "no such instance"})


@pytest.mark.slow
@in_own_network
def test_orthanc_asks_us(tmp_path, held):
    spool, pairs = held
    peers = [("ORTHANC", 4242)]
    node = receiving(spool, lambda settings: commitment_handlers(spool, lambda: settings), 11112, *peers)
    with node as settings, orthanc(tmp_path):
        instances = [*map(list, pairs), [CT, "1.2.3.4"]]
        asked = rest("/modalities/node/storage-commitment", {"DicomInstances": instances, "Timeout": 10})
        wait_until(lambda: answer_requests(spool, settings, now=time.time()) == 0)
        answer = wait_until(
            lambda: (found := rest(f"/storage-commitment/{asked['ID']}"))["Status"] != "Pending" and found
        )
    assert answer["Status"] == "Failure"
    assert {item["SOPInstanceUID"] for item in answer["Success"]} == {uid for _, uid in pairs}
    assert [(item["SOPInstanceUID"], item["FailureReason"]) for item in answer["Failures"]] == [("1.2.3.4", 274)]
