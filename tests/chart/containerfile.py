"""Checks the Containerfile without an engine: hadolint, and what only this repository knows.

That is: the build's command is one that Cargo takes here, what is copied exists and is not left out
by .containerignore, the final stage is not root and runs what the first one built.
"""

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions with their arguments, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()]


def ignored(patterns: list[str], path: str) -> bool:
    """Whether .containerignore leaves a path out; the last pattern that fits decides."""
    out = False
    for pattern in patterns:
        keep = pattern.startswith("!")
        name = pattern.lstrip("!").strip("/")
        # A pattern without ** is of the root only, and covers what lies below it.
        parts = [name.removeprefix("**/")] if name.startswith("**/") else [name]
        candidates = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        if name.startswith("**/"):
            fits = any(fnmatch.fnmatch(Path(one).name, parts[0]) for one in candidates)
        else:
            fits = any(fnmatch.fnmatch(one, name) for one in candidates)
        if fits:
            out = not keep
    return out


def complaints(root: Path, hadolint: Path) -> list[str]:
    path = root / "Containerfile"
    found = []
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        found.append((done.stdout + done.stderr).strip())
    steps = instructions(path.read_text())
    stages = [arguments.split() for name, arguments in steps if name == "FROM"]
    names = {words[2] for words in stages if len(words) == 3 and words[1].upper() == "AS"}
    patterns = [line for line in (root / ".containerignore").read_text().splitlines()
                if line and not line.startswith("#")]
    manifest = tomllib.loads((root / "Cargo.toml").read_text())
    for name, arguments in steps:
        if name != "COPY":
            continue
        source = re.match(r"--from=(\S+)", arguments)
        if source and source[1] not in names:
            found.append(f"COPY from stage {source[1]}, there are {sorted(names)}")
        if source:
            continue
        for copied in [word for word in arguments.split()[:-1] if not word.startswith("--")]:
            if not (root / copied).exists() or ignored(patterns, copied):
                found.append(f"COPY {copied}: it does not exist or .containerignore leaves it out")
    needed = ["Cargo.toml", "Cargo.lock", *manifest["workspace"]["members"], "proto/build.rs", "LICENSE"]
    found += [f".containerignore leaves out {one}, the build needs it" for one in needed if ignored(patterns, one)]
    for one in ["target", ".git", "cli/target"]:
        if not ignored(patterns, one):
            found.append(f".containerignore lets {one} into the build")
    found += build_complaints(root, steps, manifest)
    final = steps[max(index for index, (name, _) in enumerate(steps) if name == "FROM"):]
    users = [arguments for name, arguments in final if name == "USER"]
    if not users or not re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*)?", users[-1]):
        found.append(f"the image's user is {users}, Kubernetes needs a number that is not 0")
    entry = [json.loads(arguments) for name, arguments in final if name == "ENTRYPOINT"]
    built = [arguments.split() for name, arguments in final if name == "COPY" and arguments.startswith("--from=")]
    if len(entry) != 1 or entry[0] not in [[words[-1]] for words in built]:
        found.append(f"the entry point is {entry}, copied is {built}")
    version = next((re.search(r"image\.version=\"?([0-9.]+)", arguments)
                    for name, arguments in final if name == "LABEL" and "image.version" in arguments), None)
    if not version or version[1] != manifest["workspace"]["package"]["version"]:
        found.append("the label of the version is not the workspace's")
    return found


def build_complaints(root: Path, steps, manifest) -> list[str]:
    commands = [match[0] for name, arguments in steps if name == "RUN"
                for match in [re.search(r"cargo build [^&;|]*", arguments)] if match]
    if len(commands) != 1 or "--locked" not in commands[0].split():
        return [f"builds with {commands}, not with one cargo build --locked"]
    package = re.search(r"(?:-p|--package)[ =](\S+)", commands[0])
    # Cargo reads the whole command, and stops before it compiles.
    done = subprocess.run(["cargo", "tree", "--locked", "--offline", "--depth", "0", "-p", package[1]],
                          cwd=root, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        return [f"{commands[0]}: {done.stderr.strip()}"]
    rust = next((re.search(r"rust:([0-9]+\.[0-9]+)", arguments) for name, arguments in steps if name == "FROM"), None)
    if not rust or rust[1] != manifest["workspace"]["package"]["rust-version"]:
        return ["the Rust of the build is not the workspace's rust-version"]
    return []
