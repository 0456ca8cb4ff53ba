"""python build_packages.py SOURCE OUT: the sdist of SOURCE, and from that the wheel, into OUT.

As `python -m build` does it, but for one environment with the build's requirements, not two.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

import build.env


def make(env: build.env.DefaultIsolatedEnv, kind: str, source: Path, out: Path) -> str:
    builder = build.ProjectBuilder.from_isolated_env(env, source)
    env.install(builder.build_system_requires)
    env.install(builder.get_requires_for_build(kind))
    return builder.build(kind, out)


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    with build.env.DefaultIsolatedEnv() as env, tempfile.TemporaryDirectory() as folder:
        with tarfile.open(make(env, "sdist", source, out)) as sdist:
            sdist.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        make(env, "wheel", unpacked, out)


if __name__ == "__main__":
    main()
