"""Every isolation level: limits hold, the environment is scrubbed, and nothing outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.sandbox import IsolationLevel, Limits, best_isolation, interpreter_paths, kill, require, spawn

LEVELS = [level for level in IsolationLevel if level <= best_isolation()]
PYTHON = Path(sys.executable)
PLAIN = Limits()


def run(code: str, level: IsolationLevel, folder: Path, limits: Limits = PLAIN, **env: str) -> tuple[int, str]:
    with (folder / "log").open("w+b") as log:
        process = spawn(
            [str(PYTHON), "-P", "-s", "-c", code],
            level=level,
            limits=limits,
            readonly=interpreter_paths(PYTHON),
            writable=folder,
            env=env,
            log=log,
        )
        status = process.wait(20)
        log.seek(0)
        return status, log.read().decode()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("level", LEVELS)
def test_environment_and_descriptors_are_scrubbed(level, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_SECRET", "SECRET")
    code = "import os; print(sorted(os.environ), os.environ['MINE'], [int(n) for n in os.listdir('/proc/self/fd')])"
    status, text = run(code, level, tmp_path, MINE="yes")
    assert status == 0
    assert "SECRET" not in text
    assert "yes" in text
    assert "[0, 1, 2, 3]" in text  # 3 is the listing itself


@pytest.mark.parametrize("level", LEVELS)
def test_limits_hold(level, tmp_path):
    limits = Limits(memory_bytes=256 << 20, cpu_s=1, file_bytes=1 << 20, open_files=32)
    assert "MemoryError" in run("bytearray(512 << 20)", level, tmp_path, limits)[1]
    assert "File too large" in run("open('f', 'wb').write(bytes(2 << 20))", level, tmp_path, limits)[1]
    assert "Too many open files" in run("x = [open('/dev/null') for _ in range(40)]", level, tmp_path, limits)[1]
    status, _ = run("while True: pass", level, tmp_path, limits)
    assert status != 0


@pytest.mark.parametrize("level", [level for level in LEVELS if level is not IsolationLevel.PROCESS])
def test_there_is_no_network(level, tmp_path):
    status, text = run("import socket; print(socket.if_nameindex())", level, tmp_path)
    assert (status, text.strip()) == (0, "[(1, 'lo')]")


@pytest.mark.skipif(best_isolation() < IsolationLevel.SANDBOX, reason="no bubblewrap on this machine")
def test_only_the_scratch_folder_can_be_written(tmp_path):
    code = """
import os, tempfile
for path in ("/", "/usr", "/etc", os.path.dirname(os.__file__)):
    try:
        open(os.path.join(path, "x"), "w")
        print("wrote", path)
    except OSError:
        pass
open("mine", "w").write("1")
print(os.path.exists("/sys"), os.path.exists("/etc/passwd"), tempfile.gettempdir())
"""
    assert run(code, IsolationLevel.SANDBOX, tmp_path) == (0, "False False /tmp\n")
    assert (tmp_path / "mine").read_text() == "1"


PARENT = """
import sys, time
from pathlib import Path
from comity_agents.sandbox import IsolationLevel, Limits, interpreter_paths, spawn
python, folder = Path(sys.executable), Path(sys.argv[2])
code = "import subprocess, time; subprocess.Popen(['sleep', '61']); print('up', flush=True); time.sleep(61)"
with (folder / "log").open("wb") as log:
    spawn([str(python), "-c", code], level=IsolationLevel(int(sys.argv[1])), limits=Limits(),
          readonly=interpreter_paths(python), writable=folder, env={}, log=log)
time.sleep(60)
"""


def descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    # a child started by another thread is listed under that thread
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in thread.read_text().split()]
    return [found for child in dict.fromkeys(children) for found in (child, *descendants(child))]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("level", LEVELS)
def test_processes_die_with_a_parent_that_is_killed(level, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(int(level)), str(tmp_path)])
    try:
        log = tmp_path / "log"
        assert wait_until(lambda: log.exists() and b"up" in log.read_bytes())
        below = descendants(parent.pid)
        assert below
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # At level `process` a grandchild has no namespace that dies with it: only the child itself is promised.
        promised = below if level is not IsolationLevel.PROCESS else below[:1]
        assert wait_until(lambda: not any(alive(pid) for pid in promised))
    finally:
        parent.kill()
        parent.wait()
        for pid in below:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("level", LEVELS)
def test_kill_ends_the_whole_group(level, tmp_path):
    code = "import subprocess, time; subprocess.Popen(['sleep', '61']); print('up', flush=True); time.sleep(61)"
    with (tmp_path / "log").open("wb") as log:
        process = spawn(
            [str(PYTHON), "-c", code],
            level=level,
            limits=Limits(),
            readonly=interpreter_paths(PYTHON),
            writable=tmp_path,
            env={},
            log=log,
        )
    assert wait_until(lambda: b"up" in (tmp_path / "log").read_bytes())
    below = [process.pid, *descendants(process.pid)]
    assert len(below) > 1
    kill(process)
    kill(process)
    assert wait_until(lambda: not any(alive(pid) for pid in below))


def test_a_level_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("comity_agents.sandbox.best_isolation", lambda: IsolationLevel.PROCESS)
    with pytest.raises(ComityError) as caught:
        require(IsolationLevel.SANDBOX)
    assert caught.value.code is ErrorCode.ISOLATION_TOO_WEAK
    with pytest.raises(ComityError):
        IsolationLevel.for_term("container")
    assert IsolationLevel.for_term("sandbox").term == "sandbox"
    assert IsolationLevel.NAMESPACE.term == IsolationLevel.for_term(None).term == "process"


def test_paths_for_the_interpreter_never_hold_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not any(tmp_path.is_relative_to(path) for path in interpreter_paths(PYTHON))
