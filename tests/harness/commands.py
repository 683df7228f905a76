"""Commands as a person types them, run in this process: an interpreter that starts costs more than most of them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from comity_client.main import main


def run(*args: str, stdin: str = "", env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `comity` with these arguments to its end, as the installed script does; `env` replaces the environment."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    before = os.umask(0)
    os.umask(before)
    with (
        mock.patch.object(sys, "argv", ["comity", *args]),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.dict(os.environ, env or {}, clear=env is not None),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os.umask(before)
    return subprocess.CompletedProcess(["comity", *args], status, out.getvalue(), err.getvalue())
