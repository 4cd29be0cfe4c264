#!/usr/bin/env python3
"""Checks helm/forebay and Containerfile: `./dev chart [--forebay BINARY]`.

1. Fetches pinned tools into a folder outside the checkout (`tools.py`), once.
2. Goes on in the virtual environment among them: lint, templates for several sets of values under
   two Helms, Kubernetes' own schemas of two versions, the rules of `rules.py`, values that must be
   refused, the container file.
3. With --forebay: the configuration that the chart renders is given to that binary, and its pods
   are played by processes of this machine (`play.py`).

Only the standard library here: this file runs before the environment exists.
"""

import argparse
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev chart", description="check the Helm chart and the Containerfile")
    parser.add_argument("--forebay", metavar="BINARY", type=Path, help="also try what is rendered with this binary")
    parser.add_argument("--tools", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("chart: skipped, its tools are for Linux on x86-64 only", file=sys.stderr)
        return 0
    if sys.version_info < (3, 11):
        parser.error(f"Python 3.11 or later is needed, this is {platform.python_version()}")
    if options.forebay and not os.access(options.forebay, os.X_OK):
        parser.error(f"--forebay: {options.forebay} cannot be run")
    sys.path.insert(0, str(HERE))
    import tools

    python = tools.fetch(options.tools, HERE)
    command = [str(python), str(HERE / "suite.py"), str(options.tools)]
    if options.forebay:
        command.append(str(options.forebay.resolve()))
    os.execv(python, command)


if __name__ == "__main__":
    sys.exit(main())
