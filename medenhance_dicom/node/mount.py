"""What a receiver serves besides Verification and Storage; apart, so that receivers load only what they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medenhance_dicom.audit import Audit
from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.commit import commitment_handlers
from medenhance_dicom.node.index import Index
from medenhance_dicom.node.logs import LogFormat, set_up_logs
from medenhance_dicom.node.query import query_handlers
from medenhance_dicom.node.receive import Mounted
from medenhance_dicom.node.settings import NodeSettings, load_settings
from medenhance_dicom.node.spool import Spool


def mount(settings: NodeSettings, spool: Spool, *, config: Path, log_format: LogFormat) -> Mounted:
    """Storage Commitment, query and retrieve, the audit trail; sets the process's logs up on the way.

    Args:
        settings: At the start of the process.
        spool: What is held.
        config: Read anew for each request, as peers may have been added since.
        log_format: Of the logs.
    """
    set_up_logs(log_format)
    audit = Audit(settings.store / "audit" / "audit.jsonl")
    read = current(config, settings)
    commitment, on_commitment = commitment_handlers(spool, read, on_report(audit))
    query, on_query = query_handlers(Index(spool), read)
    return Mounted([*commitment, *query], [*on_commitment, *on_query], audit.append)


def current(config: Path, settings: NodeSettings) -> Callable[[], NodeSettings]:
    """A function that reads the configuration, and goes on with the last good one where it is broken."""
    last = settings

    def read() -> NodeSettings:
        nonlocal last
        try:
            last = load_settings(config).model_copy(update={"store": settings.store})
        except ConfigurationError:  # the node says so when it is told to reload
            return last
        return last

    return read


def on_report(audit: Audit) -> Callable[[str, str, str], None]:
    """Writes what became of a Storage Commitment to the audit trail; without its UID."""
    return lambda _, peer, what: _write(audit, peer, what)


def _write(audit: Audit, peer: str, what: str) -> None:
    audit.append("storage commitment", peer=peer, what=what)
