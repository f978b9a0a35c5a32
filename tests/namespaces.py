"""What this machine lets tests do. Holds no tests."""

import subprocess


def may_mount() -> bool:
    """Whether this process may make namespaces, and file systems in files."""
    try:
        probe = ["unshare", "-n", "-m", "-p", "-f", "sh", "-c", "mount -t tmpfs none /mnt && losetup -f"]
        return subprocess.run(probe, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
