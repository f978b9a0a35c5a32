"""Peers for the node's tests: listeners of ours on loopback, DCMTK's in a network namespace, certificates."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import ipaddress
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pynetdicom import evt

from medenhance_dicom.node.settings import Destination, NodeSettings, TLSFiles
from medenhance_dicom.node.wire import application_entity, on_open
from tests.waiting import wait_until

VERIFICATION = "1.2.840.10008.1.1"
BEFORE, AFTER = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


def listen(contexts, handlers=(), *, timeout=30.0, tls=None, title="SERVER"):
    entity = application_entity(title)
    entity.acse_timeout = 30
    entity.network_timeout = 30
    return entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=contexts,
        ssl_context=tls,
        evt_handlers=[(evt.EVT_CONN_OPEN, on_open, [timeout]), *handlers],
    )


def destination(server, **more):
    return Destination(name="there", ae_title="SERVER", host="127.0.0.1", port=server.server_address[1], **more)


def authority(name):
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _signed(name, key.public_key(), name, key, ca=True)


def _signed(subject, public_key, issuer, issuer_key, *, ca=False, until=AFTER, names=()):
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEFORE)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def tls_files(folder, name, signer, *, until=AFTER, trusts=None, names=()):
    """Certificate `name` of the authority `signer` (name, key, certificate), in PEM files; good for host `names`."""
    signer_name, signer_key, signer_certificate = signer
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(name, key.public_key(), signer_name, signer_key, until=until, names=names)
    pem = serialization.Encoding.PEM
    files = TLSFiles(
        certificate=folder / f"{name}.pem", key=folder / f"{name}.key", authority=folder / f"{name}-trusts.pem"
    )
    files.certificate.write_bytes(certificate.public_bytes(pem))
    files.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    files.authority.write_bytes((trusts or signer_certificate).public_bytes(pem))
    return files


def in_own_network(test):
    """Run a test in a thread with a network namespace of its own: DCMTK and Orthanc listen on every interface."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        raised = []

        def body():
            if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET, of this thread alone
                raised.append(None)
                return
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            try:
                test(*args, **kwargs)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if raised == [None]:
            pytest.skip("no right to make a network namespace")
        if raised:
            raise raised[0]

    return run


@contextlib.contextmanager
def running(*command, port, cwd=None):
    """A program that listens on a port of loopback; ended on leaving."""
    program = subprocess.Popen(
        [os.fspath(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=cwd
    )
    try:
        wait_until(lambda: program.poll() is not None or is_listening(port), what=f"{command[0]} does not listen")
        assert program.poll() is None, f"{command[0]} has ended"
        yield program
    finally:
        program.terminate()
        program.wait(60)


def is_listening(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def dcmtk(name):
    """The full path: pynetdicom installs namesakes."""
    path = Path("/usr/bin") / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@contextlib.contextmanager
def receiving(spool, mounted, port, *peers, title="NODE"):
    """The node's own listener with what is mounted on it; `peers` are (AE title, port) at loopback, or AE titles."""
    from medenhance_dicom.node.receive import Mounted, Receiver

    rows = [
        {"ae_title": peer, "query": True}
        if isinstance(peer, str)
        else {"ae_title": peer[0], "host": "127.0.0.1", "port": peer[1]}
        for peer in peers
    ]
    listener = {"ae_title": title, "port": port, "reserve_bytes": 0}
    settings = NodeSettings.model_validate({"store": spool.store, "peers": rows, "listener": listener})
    contexts, handlers = mounted(settings)
    receiver = Receiver(settings, spool, Mounted(contexts, handlers))
    receiver.start()
    try:
        yield settings
    finally:
        receiver.stop(0)
