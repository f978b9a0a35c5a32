"""Sockets that neither stall nor wait for ever, transfer syntax order, and TLS, against real connections."""

from __future__ import annotations

import datetime
import socket
import struct
import threading
import time

import pytest
from pydicom._uid_dict import UID_dictionary
from pynetdicom import build_context, evt

from medenhance_dicom.errors import ConfigurationError, PeerError
from medenhance_dicom.node.association import NoContextError, associated
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.wire import (
    LARGEST_PDU,
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
    accepted_context,
    client_tls,
    harden,
    quick_ack,
    server_tls,
    storage_contexts,
)
from medenhance_dicom.transfer_syntaxes import kind_of, name_of
from tests.dicom_peers import VERIFICATION, authority, destination, listen, tls_files
from tests.waiting import wait_until

SERVER_SECONDS = 60.0


@pytest.fixture
def server():
    running = listen([accepted_context(VERIFICATION), *storage_contexts()], timeout=SERVER_SECONDS)
    yield running
    running.shutdown()


def test_every_storage_class_and_syntax_once_lossless_before_lossy():
    assert len(set(STORAGE_CLASSES)) == len(STORAGE_CLASSES) >= 169
    assert "1.2.840.10008.5.1.4.1.1.77.1.7" in STORAGE_CLASSES  # Dermoscopic, not in pynetdicom's default list
    assert len(set(TRANSFER_SYNTAXES)) == len(TRANSFER_SYNTAXES)
    assert TRANSFER_SYNTAXES[0] == "1.2.840.10008.1.2.1"
    kinds = [kind_of(syntax) for syntax in TRANSFER_SYNTAXES]
    assert TRANSFER_SYNTAXES.index("1.2.840.10008.1.2") > max(i for i, kind in enumerate(kinds) if kind == "lossless")
    assert kinds.index("lossy") > max(map(TRANSFER_SYNTAXES.index, UNCOMPRESSED))
    assert kinds.index("video") > max(i for i, kind in enumerate(kinds) if kind != "video")


def test_every_transfer_syntax_of_the_standard_is_stored_or_not_on_purpose():
    """Against pydicom's dictionary (generated from PS3.6), which pynetdicom completes."""
    listed = {uid: entry for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    elsewhere = {
        uid for uid, entry in listed.items() if entry[0].startswith(("JPIP", "SMPTE", "RFC", "XML", "Papyrus"))
    }
    assert set(TRANSFER_SYNTAXES) == set(listed) - elsewhere
    for uid, entry in listed.items():
        known, ours = entry[0].split(": ")[0].replace(" and ", " & "), name_of(uid).replace(" and ", " & ")
        assert known.startswith(ours) or ours.startswith(known), uid
    assert (name_of("1.2.3"), name_of(""), kind_of("1.2.840.10008.1.2.7.1")) == ("1.2.3", "no UID", None)


def test_our_order_decides_what_is_accepted(server):
    ct = "1.2.840.10008.5.1.4.1.1.2"
    offered = ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.70"]
    with associated(destination(server), [build_context(ct, offered)], calling_ae="ME") as assoc:
        assert assoc.accepted_contexts[0].transfer_syntax == ["1.2.840.10008.1.2.4.70"]


def test_harden_sets_the_options():
    with socket.create_server(("127.0.0.1", 0)) as there, socket.create_connection(there.getsockname()) as here:
        harden(here, 2.5)
        assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert here.gettimeout() == 2.5
        quick_ack(here)
        if hasattr(socket, "TCP_QUICKACK"):
            assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
    quick_ack(here)  # closed: nothing to do


def _is_closed(client, seconds):
    """Whether the other side closes within that time."""
    client.settimeout(seconds)
    try:
        while client.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("attack", [b"\x01\x00", b"\x01\x00\x00\x00\x10\x00half"], ids=["header", "body"])
def test_a_pdu_that_stops_half_way_is_dropped_after_the_timeout(attack):
    server = listen([accepted_context(VERIFICATION)], timeout=0.4)
    with socket.create_connection(server.server_address) as client:
        client.sendall(attack)
        start = time.monotonic()
        assert _is_closed(client, 30)
        assert time.monotonic() - start > 0.2
    server.shutdown()


def test_a_pdu_that_drips_is_dropped_after_the_timeout():
    server = listen([accepted_context(VERIFICATION)], timeout=0.5)
    with socket.create_connection(server.server_address) as client:
        client.sendall(struct.pack(">BBL", 1, 0, 5000))
        for _ in range(300):
            try:
                client.sendall(b"\0")
            except OSError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("it is still read")
    server.shutdown()


def test_a_length_of_4_gib_closes_at_once(server):
    with socket.create_connection(server.server_address) as client:
        client.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
        assert _is_closed(client, SERVER_SECONDS / 2)


def test_the_largest_associate_request_fits():
    assert 128 * (8 + 68 + len(TRANSFER_SYNTAXES) * 68) < LARGEST_PDU


def test_a_listener_shares_its_contexts(server):
    seen = []
    server.bind(evt.EVT_REQUESTED, lambda event: seen.append(event.assoc.acceptor.supported_contexts[0]))
    for _ in range(2):
        with associated(destination(server), [build_context(VERIFICATION)], calling_ae="ME") as assoc:
            assert assoc.send_c_echo().Status == 0
    assert seen[0] is seen[1]


# ---------------------------------------------------------------- failures of associations


def failure(target, contexts=(VERIFICATION,)):
    """The error of an association that does not come about."""
    offered = [build_context(sop_class) for sop_class in contexts]
    with pytest.raises(PeerError) as caught, associated(target, offered, calling_ae="ME"):
        pass
    return caught.value


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = failure(Destination(name="there", ae_title="SERVER", host="127.0.0.1", port=port))
    assert (str(error), error.permanent) == ("there cannot be reached", False)


def test_a_host_name_that_nobody_knows():
    error = failure(Destination(name="there", ae_title="SERVER", host="no.such.host.invalid", port=104))
    assert (str(error), error.permanent) == ("there: its host name is not known", False)


def test_a_wrong_title_is_permanent_and_congestion_is_not(server):
    server.ae.require_called_aet = True
    error = failure(destination(server).model_copy(update={"ae_title": "OTHER"}))
    assert (str(error), error.permanent) == (
        "there rejects the association for good: called AE title not recognized",
        True,
    )
    wait_until(lambda: not server.active_associations)  # the rejected one still counts for a moment
    server.ae.maximum_associations = 1
    with associated(destination(server), [build_context(VERIFICATION)], calling_ae="ME"):
        error = failure(destination(server))
    assert (str(error), error.permanent) == ("there rejects the association for now: local limit exceeded", False)


def test_no_context_is_told_apart(server):
    error = failure(destination(server), ["1.2.840.10008.5.1.4.34.6.1"])
    assert isinstance(error, NoContextError)
    assert error.permanent


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKE_OFF, NO_ANSWER = "there broke the association off", "there does not answer the association request"
NOT_DICOM = "there sends what is no DICOM association"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, NO_ANSWER),
        (b"\x02\x00\x00\x00", NO_ANSWER),  # and no more
        (b"", BROKE_OFF),
        (b"\x02\x00\x00\x00\x10\x00half", BROKE_OFF),
        (reset, BROKE_OFF),
        (b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00", BROKE_OFF),  # A-ABORT of the service user
        (b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x05", BROKE_OFF),  # of the provider: an unexpected parameter
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NOT_DICOM),
        (b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00", NOT_DICOM),  # A-RELEASE-RQ
    ],
    ids=["silence", "half a header", "close", "half a PDU", "reset", "abort", "provider's abort", "HTTP", "release"],
)
def test_why_a_peer_that_takes_the_connection_gives_no_association(answer, told):
    """Only what the peer did is called its doing: our own time-out is an abort, too."""
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as there:

        def serve():
            client = there.accept()[0]
            kept.append(client)
            client.recv(1 << 20)
            if callable(answer):
                answer(client)
            elif answer:
                client.sendall(answer)
            if told == BROKE_OFF:
                client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        seconds = 0.3 if told == NO_ANSWER else 20
        host, port = there.getsockname()
        target = Destination(name="there", ae_title="S", host=host, port=port, response_timeout=seconds)
        error = failure(target)
        thread.join()
        kept[0].close()
    assert (str(error), error.permanent) == (told, False)


def test_answers_reach_whoever_waits_for_them(server):
    """Also where the association's own thread, which should pause meanwhile, looks into the queue first."""
    there = destination(server, response_timeout=20)
    with associated(there, [build_context(VERIFICATION)], calling_ae="ME") as assoc:
        assoc._reactor_checkpoint.wait = lambda: time.sleep(0.0005)
        for _ in range(100):
            assert assoc.send_c_echo().get("Status") == 0


@pytest.mark.parametrize(("by_peer", "told"), [(True, BROKE_OFF), (False, "the association with there ended")])
def test_an_association_that_ends_before_a_request_is_told(server, by_peer, told):
    def echo():
        with associated(destination(server), [build_context(VERIFICATION)], calling_ae="ME") as assoc:
            (server.active_associations[0] if by_peer else assoc).abort()
            wait_until(lambda: not assoc.is_established)
            assoc.send_c_echo()

    with pytest.raises(PeerError) as caught:
        echo()
    assert (str(caught.value), caught.value.permanent) == (told, False)


# ---------------------------------------------------------------- TLS


@pytest.fixture
def ours():
    return ("Site", *authority("Site"))


def test_tls_lets_our_certificates_in_and_no_others(tmp_path, ours):
    server_files = tls_files(tmp_path, "server", ours)
    server = listen([accepted_context(VERIFICATION)], tls=server_tls(server_files))
    good = destination(server, tls=tls_files(tmp_path, "client", ours))
    with associated(good, [build_context(VERIFICATION)], calling_ae="ME") as assoc:
        assert assoc.send_c_echo().Status == 0
    other = ("Other", *authority("Other"))
    foreign = tls_files(tmp_path, "foreign", other, trusts=ours[2])
    expired = tls_files(tmp_path, "expired", ours, until=datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC))
    distrusting = tls_files(tmp_path, "distrusting", ours, trusts=other[2])
    for files in (foreign, expired, distrusting, None):
        assert not failure(destination(server, tls=files)).permanent
    server.shutdown()


def test_a_silent_client_does_not_keep_others_out_of_tls(tmp_path, ours):
    server = listen([accepted_context(VERIFICATION)], tls=server_tls(tls_files(tmp_path, "server", ours)))
    good = destination(server, tls=tls_files(tmp_path, "client", ours))
    silent = socket.create_connection(server.server_address)
    with silent, associated(good, [build_context(VERIFICATION)], calling_ae="ME") as assoc:
        assert assoc.send_c_echo().Status == 0
    server.shutdown()


def test_a_name_that_is_configured_has_to_be_in_the_certificate(tmp_path, ours):
    files = tls_files(tmp_path, "server", ours, names=["archive.test"])
    server = listen([accepted_context(VERIFICATION)], tls=server_tls(files))
    client = tls_files(tmp_path, "client", ours)
    for name, is_let_in in ((None, True), ("archive.test", True), ("other.test", False), ("127.0.0.1", False)):
        there = destination(server, tls=client.model_copy(update={"server_name": name}))
        if is_let_in:
            with associated(there, [build_context(VERIFICATION)], calling_ae="ME") as assoc:
                assert assoc.send_c_echo().Status == 0
        else:
            assert not failure(there).permanent
    server.shutdown()


def test_tls_files_that_do_not_load_are_named(tmp_path, ours):
    files = tls_files(tmp_path, "client", ours)
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        client_tls(files.model_copy(update={"certificate": tmp_path / "missing.pem"}), named=False)
    with pytest.raises(ConfigurationError, match=r"client\.key holds no certificate"):
        server_tls(files.model_copy(update={"authority": files.key}))
    assert client_tls(files, named=False).minimum_version.name == "TLSv1_2"
