"""One receiver process with nothing mounted: `python -m benchmarks.receiving.serving STORE ADDRESS`."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from medenhance_dicom.node.receive import Receiver
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import Spool

PORT = 11112


def serve(store: Path, address: str) -> None:
    """Until SIGTERM; says "up" once it listens. Imports no more than a receiver of the node does."""
    listener = {
        "ae_title": "NODE",
        "bind": address,
        "port": PORT,
        "maximum_associations_of_a_peer": 20,
        "reserve_bytes": 0,
    }
    settings = NodeSettings.model_validate({"store": store, "listener": listener, "peers": [{"ae_title": "STORESCU"}]})
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    receiver = Receiver(settings, Spool(store))
    receiver.start()
    print("up", flush=True)
    stop.wait()
    receiver.stop()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
