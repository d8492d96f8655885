"""Make the environment that the Makefile uses: ``.venv``, a link to a finished one under ``.envs/``.

An environment is built beside the one in use, stamped when complete, and only then linked.  So an
interrupted installation leaves the last good environment (or none), never half of one; the next call starts
afresh.  A lock makes parallel calls wait; the processes that install hold it too, so that it outlives this
one if it is killed.

Up to date means: same dependencies (pyproject.toml without its tool settings, constraints.txt), same place,
and a Python that still is what it was.  No package is imported here: this runs before there are any.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVS = ROOT / ".envs"
LINK = ROOT / ".venv"
STAMP = "complete.json"
EXTRAS = "all,dev"


def main() -> int:
    want = {"inputs": inputs(), "root": str(ROOT)}
    if "--this-python" in sys.argv:
        want["python"] = version()
    if ready(want):
        return 0
    if LINK.exists() and not LINK.is_symlink():
        print(
            f"setup: {LINK} was not made by this Makefile, so it is left alone. Move it away, or use it as\n"
            "it is: .venv/bin/pip install -e '.[all,dev]' -c constraints.txt; make VENV=.venv test",
            file=sys.stderr,
        )
        return 1
    ENVS.mkdir(exist_ok=True)
    with (ENVS / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: waiting for another set-up of this folder to end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return 0 if ready(want) else build({**want, "python": version()}, lock.fileno())


def inputs() -> str:
    """A hash of everything that decides what is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    tools = project.pop("tool", {})
    parts = [json.dumps([project, tools.get("hatch"), EXTRAS], sort_keys=True)]
    parts.append((ROOT / "constraints.txt").read_text("utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


ASK = "import sys; print('{}.{}.{}'.format(*sys.version_info))"


def version() -> str:
    return "{}.{}.{}".format(*sys.version_info)


def ready(want: dict[str, str]) -> bool:
    """Whether the linked environment is complete, is the one wanted, and has a Python that still runs."""
    try:
        have = json.loads((LINK / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if any(have.get(name) != value for name, value in want.items()):
        return False
    try:
        answer = subprocess.run([LINK / "bin" / "python", "-ISc", ASK], capture_output=True, text=True)
    except OSError:
        return False
    return answer.stdout.strip() == have.get("python")


def build(stamp: dict[str, str], lock: int) -> int:
    """Build, stamp, link, and remove what nothing links to any more."""
    name = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
    new = ENVS / name
    if not (new / STAMP).is_file() or (LINK.is_symlink() and LINK.resolve() == new):
        if LINK.is_symlink() and LINK.resolve() == new:
            LINK.unlink()  # it is what was found broken
        shutil.rmtree(new, ignore_errors=True)
        print(f"setup: installing into .venv with Python {stamp['python']} (a few minutes)", flush=True)
        pip = [str(new / "bin" / "python"), "-m", "pip"]
        # The user's own pip settings decide where packages come from. A terminal sees pip's progress.
        quiet = [] if sys.stdout.isatty() else ["-qq"]
        steps = [
            [sys.executable, "-m", "venv", str(new)],
            [*pip, "install", *quiet, "-e", f".[{EXTRAS}]", "-c", "constraints.txt"],
        ]
        elsewhere = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
        env = {k: v for k, v in os.environ.items() if k not in elsewhere}
        env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        for step in steps:
            code = subprocess.run(step, cwd=ROOT, env=env, pass_fds=[lock]).returncode
            if code:
                shutil.rmtree(new, ignore_errors=True)
                print(f"setup: failed at: {' '.join(step)}", file=sys.stderr)
                return code if code > 0 else 1
        written = new / (STAMP + ".new")
        with written.open("w", encoding="utf-8") as file:
            json.dump(stamp, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(new / STAMP)
    fresh = ENVS / "link"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(new.relative_to(ROOT))
    fresh.replace(LINK)
    for old in ENVS.iterdir():
        if old.is_dir() and old != new:
            shutil.rmtree(old, ignore_errors=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
