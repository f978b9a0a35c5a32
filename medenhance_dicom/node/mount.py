"""What a receiver serves besides Verification and Storage; apart, so that receivers load only what they need."""

from __future__ import annotations

from collections.abc import Callable

from medenhance_dicom.audit import Audit
from medenhance_dicom.node.commit import commitment_handlers
from medenhance_dicom.node.index import Index
from medenhance_dicom.node.logs import LogFormat, set_up_logs
from medenhance_dicom.node.query import query_handlers
from medenhance_dicom.node.receive import Mounted
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.trail import open_trail


def mount(settings: Callable[[], NodeSettings], spool: Spool, *, log_format: LogFormat) -> Mounted:
    """Storage Commitment, query and retrieve, the audit trail; sets the process's logs up on the way.

    Args:
        settings: As they are now: peers may be added while the process runs.
        spool: What is held.
        log_format: Of the logs.
    """
    set_up_logs(log_format)
    audit = open_trail(settings())
    commitment, on_commitment = commitment_handlers(spool, settings, on_report(audit))
    query, on_query = query_handlers(Index(spool), settings)
    return Mounted([*commitment, *query], [*on_commitment, *on_query], audit.append)


def on_report(audit: Audit) -> Callable[[str, str, str], None]:
    """Writes what became of a Storage Commitment to the audit trail; without its UID."""
    return lambda _, peer, what: _write(audit, peer, what)


def _write(audit: Audit, peer: str, what: str) -> None:
    audit.append("storage commitment", peer=peer, what=what)
