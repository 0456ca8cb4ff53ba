"""The sdist and the wheel, built in a process while tests go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parent.parent


def git_files(*options: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *options], cwd=REPO, capture_output=True, text=True, check=False
    )
    return [name for name in listed.stdout.split("\0") if name and (REPO / name).is_file()]


class Packages:
    """Of the files that git knows or would know, built outside the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = folder / "source"
        for name in git_files("--cached", "--others", "--exclude-standard"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, source / name)
        script = Path(__file__).with_name("build_packages.py")
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, script, source, folder / "dist"],
                cwd=folder,
                # Byte code of SciPy would be made for one import of NumPy.
                env=os.environ | {"PIP_NO_COMPILE": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that `end` ends the compiler too
            )

    def wait(self) -> tuple[Path, Path]:
        """(sdist, wheel); the source is gone."""
        code = self.process.wait()
        assert code == 0, (self.folder / "log").read_text()[-8000:]
        shutil.rmtree(self.folder / "source", ignore_errors=True)
        (sdist,) = (self.folder / "dist").glob("*.tar.gz")
        (wheel,) = (self.folder / "dist").glob("*.whl")
        return sdist, wheel

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
