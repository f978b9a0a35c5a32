"""DCMTK's storescu, one or several at once."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

from benchmarks.receiving.serving import PORT


def environment_of(nodelay: bool) -> dict[str, str]:
    """Of sender and receiver; DCMTK and Orthanc heed TCP_NODELAY."""
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    return environment | {"OMP_NUM_THREADS": "1"} | ({"TCP_NODELAY": "1"} if nodelay else {})


def send(
    folders: list[Path], environment: dict[str, str], seconds: float, host: str = "127.0.0.1", title: str = "STORESCU"
) -> float:
    """Instances per second: a storescu for every folder, all at once; each ends after `seconds` at the latest."""
    answers = [0] * len(folders)
    began = time.perf_counter()

    def run(at: int) -> None:
        command = ["/usr/bin/storescu", "-v", "+sd", "-aet", title, "-aec", "NODE", host, str(PORT), str(folders[at])]
        sender = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True)
        assert sender.stdout is not None
        for line in sender.stdout:
            answers[at] += "Received Store Response (Success)" in line
            if time.perf_counter() - began > seconds:
                sender.terminate()
                break
        sender.stdout.close()
        sender.wait()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answers) / (time.perf_counter() - began)
