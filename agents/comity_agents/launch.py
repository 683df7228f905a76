"""Last step before an app's command: set limits on this very process, then become the command.

Run by path (`python -I -S launch.py LIMITS_JSON -- COMMAND…`), so it imports nothing but the standard library. Limits
are set here and not by the parent, because code between fork and exec is unsafe in a process with threads.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIMITS = {
    "address_bytes": resource.RLIMIT_AS,
    "data_bytes": resource.RLIMIT_DATA,
    "cpu_s": resource.RLIMIT_CPU,
    "file_bytes": resource.RLIMIT_FSIZE,
    "processes": resource.RLIMIT_NPROC,
    "open_files": resource.RLIMIT_NOFILE,
    "core_bytes": resource.RLIMIT_CORE,
}


def main(arguments: list[str]) -> None:
    """Apply the limits named in the first argument and replace this process by the command behind `--`."""
    settings = json.loads(arguments[0])
    if arguments[1] != "--" or not arguments[2:]:
        raise SystemExit("usage: launch.py LIMITS_JSON -- COMMAND")
    if settings.pop("die_with_parent", None) and sys.platform == "linux":
        parent = settings.pop("parent", 0)
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent and os.getppid() != parent:
            raise SystemExit("the parent is gone")  # it died before the signal was armed
    settings.pop("parent", None)
    for name, value in settings.items():
        _, hard = resource.getrlimit(_LIMITS[name])
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(_LIMITS[name], (bound, bound))
        except (ValueError, OSError):
            if sys.platform == "linux":  # macOS refuses some limits that it does not implement
                raise
    os.execvp(arguments[2], arguments[2:])  # noqa: S606 - no shell: a fixed argument list


if __name__ == "__main__":
    main(sys.argv[1:])
