"""The checks themselves; run by `check.py` in the environment that has their tools."""

import functools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kubernetes_validate
import kubernetes_validate.utils
import yaml

import api
import cases
import containerfile
import rules
import tools

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "forebay"
# The oldest version but one that the chart allows, and the newest but one that has schemas.
KUBERNETES = ["1.29", "1.36"]
# Kinds of other projects, whose schemas are not Kubernetes'.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
# The longest name that Helm gives a release.
LONG_RELEASE = "r" * 53
# Flags of `helm upgrade` that `helm template` does not have.
ONLY_UPGRADE = {"--install", "--reset-then-reuse-values"}

# The schemas are a megabyte each, and read anew for every object otherwise.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Suite:
    def __init__(self, folder: Path) -> None:
        self.helms = {name: folder / "bin" / name for name in tools.HELMS}
        self.home = tempfile.TemporaryDirectory(prefix="forebay-chart-")
        # Neither a Kubernetes of the user's nor plugins have a part in this.
        self.env = {"PATH": os.environ["PATH"], "HOME": self.home.name, "KUBECONFIG": "/dev/null"}
        self.complaints: list[str] = []
        self.checked = 0

    def complain(self, where: str, text: str) -> None:
        self.complaints.append(f"{where}: {text}")

    def helm(self, name: str, *args, cwd: Path = CHART) -> subprocess.CompletedProcess:
        return subprocess.run([self.helms[name], *map(str, args)], cwd=cwd, env=self.env, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60)

    def each_helm(self, run) -> list[tuple[str, subprocess.CompletedProcess]]:
        """What each Helm answers; they run at the same time."""
        with ThreadPoolExecutor(max_workers=len(self.helms)) as pool:
            return list(zip(self.helms, pool.map(run, self.helms)))

    def template(self, name: str, version: str, args: list[str], release: str = "t") -> subprocess.CompletedProcess:
        return self.helm(name, "template", release, ".", "--namespace", "messaging", "--kube-version", version, *args)

    def rendered(self, where: str, args: list[str], version: str, release: str = "t") -> list[dict]:
        """What all Helms agree on, empty where one refuses."""
        answers = {}
        for name, done in self.each_helm(lambda name: self.template(name, version, args, release)):
            if done.returncode != 0:
                self.complain(where, f"{name}: {done.stderr.strip()}")
                return []
            answers[name] = [one for one in yaml.load_all(done.stdout, Loader) if one]
        ordered = [sorted(objects, key=rules.title) for objects in answers.values()]
        if any(objects != ordered[0] for objects in ordered):
            self.complain(where, f"{' and '.join(answers)} render different objects")
        return ordered[0]

    # ---- the checks -------------------------------------------------------------------------

    def lint(self) -> None:
        for values, args in cases.GOOD.items():
            for name, done in self.each_helm(lambda name: self.helm(name, "lint", "--strict", ".", *args)):
                if done.returncode != 0:
                    self.complain(f"values {values!r}, {name} lint --strict", done.stdout + done.stderr)

    def package(self) -> None:
        for name in self.helms:
            done = self.helm(name, "package", ".", "--destination", self.home.name)
            packed = Path(self.home.name) / f"forebay-{self.version()}.tgz"
            if done.returncode != 0 or not packed.exists():
                self.complain(f"{name} package", done.stderr or "no package of the workspace's version was made")
                continue
            done = self.template(name, KUBERNETES[0], [])
            again = self.helm(name, "template", "t", packed, "--namespace", "messaging",
                              "--kube-version", KUBERNETES[0])
            if again.stdout != done.stdout:
                self.complain(f"{name} package", "the package renders other objects than its folder")
            packed.unlink()

    @staticmethod
    def version() -> str:
        return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]

    def versions(self) -> None:
        chart = yaml.load((CHART / "Chart.yaml").read_text(), Loader)
        for key in ["version", "appVersion"]:
            if chart[key] != self.version():
                self.complain("Chart.yaml", f"{key} is {chart[key]}, the workspace's is {self.version()}")

    def good(self) -> None:
        sets = {name: (args, "t") for name, args in cases.GOOD.items()}
        sets["long name"] = ([], LONG_RELEASE)
        alerts = ["--set", "prometheusRule.enabled=true"]
        if (CHART / "files" / "alerts.yaml").exists():
            sets["alerts"] = (alerts, "t")
        else:
            self.refused(alerts, "no files/alerts.yaml")
        for name, (args, release) in sets.items():
            for version in KUBERNETES:
                where = f"values {name!r}, Kubernetes {version}"
                objects = self.rendered(where, args, version, release)
                for one in objects:
                    self.validate(where, one, version)
                for complaint in rules.complaints(objects):
                    self.complain(where, complaint)
                self.checked += len(objects)

    def validate(self, where: str, one: dict, version: str) -> None:
        if one["kind"] in FOREIGN:
            return
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(str(part) for part in error.path)
            self.complain(where, f"{rules.title(one)}: {path}: {error.message}")

    def refused(self, args: list[str], reason: str) -> None:
        for name in self.helms:
            done = self.template(name, KUBERNETES[1], args)
            if done.returncode == 0:
                self.complain(" ".join(args), f"{name} takes it, it should say {reason!r}")
            elif reason not in done.stderr:
                self.complain(" ".join(args), f"{name} does not say {reason!r} but {done.stderr.strip()!r}")

    def bad(self) -> None:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for args, reason in cases.BAD:
                pool.submit(self.refused, [part for one in args for part in ("--set", one)], reason).add_done_callback(
                    lambda done: done.result())

    def old_kubernetes(self) -> None:
        for name in self.helms:
            done = self.template(name, "1.27.0", [])
            if done.returncode == 0 or "incompatible" not in done.stderr:
                self.complain("Kubernetes 1.27", f"{name} takes it: {done.stderr.strip()}")

    def running(self) -> None:
        """Changes of a running release that would lose data."""
        with api.Api(Path(self.home.name), {"t-forebay-storage": 5, "t-forebay-etcd": 3}) as running:
            ask = ["template", "t", ".", "--namespace", "messaging", "--dry-run=server",
                   "--disable-openapi-validation", "--kubeconfig", running.kubeconfig]
            for change, reason in cases.CHANGES:
                for name, done in self.each_helm(lambda name: self.helm(name, *ask, "--set", change)):
                    if (done.returncode == 0) != (reason is None) or (reason or "") not in done.stderr:
                        self.complain(f"{change} for a running release",
                                      f"{name} should say {reason!r}: {done.stderr.strip()!r}")

    def rolls(self) -> None:
        """A change of one role's configuration restarts that role's pods and no others."""
        before = self.rendered("rolls", [], KUBERNETES[1])
        for changed, expected in [
            ("storage.terminationGracePeriodSeconds=61", {"storage"}),
            ("config.storage.direct_io=false", {"storage"}),
            ("broker.diskCacheBytes=1GiB", {"broker"}),
            ("broker.tailCacheBytes=64MiB", {"broker"}),
            ("config.broker.repair_after=10min", {"broker"}),
            ("config.controller.rebalance=false", {"controller"}),
            ("proxy.memoryBytes=256MiB", {"proxy"}),
            ("config.proxy.decompressed_bytes_max=32MiB", {"proxy", "broker"}),
            ("config.telemetry.log_filter=debug", {"proxy", "broker", "storage", "controller"}),
            ("storage.replicas=5", set()),
            ("networkPolicy.enabled=false", set()),
        ]:
            after = self.rendered(changed, ["--set", changed], KUBERNETES[1])
            found = rules.rolled(before, after)
            if found != expected:
                self.complain(changed, f"restarts {sorted(found)}, should restart {sorted(expected)}")

    def notes(self) -> None:
        # Helm 3 asks a cluster even for this.
        for name, args in cases.GOOD.items():
            done = self.helm("helm4", "install", "t", ".", "--dry-run=client", "--namespace", "messaging", *args)
            if done.returncode != 0 or "helm -n messaging test t" not in done.stdout:
                self.complain(f"values {name!r}, helm4 install --dry-run", done.stderr or "the notes are missing")

    def documents(self) -> None:
        """Commands of the documentation are rendered, values that it names exist."""
        guide = ROOT / "docs" / "kubernetes.md"
        text = guide.read_text().replace("\\\n", " ")
        commands = re.findall(r"^helm (?:install|upgrade) .*$", text, re.MULTILINE)
        if len(commands) < 2:
            self.complain("docs/kubernetes.md", "has no commands that install")
        for command in commands:
            words = [word for word in shlex.split(command)[2:] if word not in ONLY_UPGRADE]
            for name in self.helms:
                done = self.helm(name, "template", *words, cwd=ROOT)
                if done.returncode != 0:
                    self.complain("docs/kubernetes.md", f"{command}: {name}: {done.stderr.strip()}")
        values = yaml.load((CHART / "values.yaml").read_text(), Loader)
        table = re.findall(r"^\| `([\w.]+)` ", (CHART / "README.md").read_text(), re.MULTILINE)
        table = [name for name in table if not name.endswith(".yaml")]
        if len(table) < 10:
            self.complain("README.md", "has no table of values")
        for name in table:
            try:
                functools.reduce(lambda node, part: node[part], name.split("."), values)
            except (KeyError, TypeError):
                self.complain("README.md", f"{name} is not in values.yaml")

    def rules_bite(self) -> None:
        """Each rule finds what it is there for."""
        objects = self.rendered("rules", cases.EVERYTHING, KUBERNETES[1])
        for name, spoilt in rules.spoilt(objects) if objects else []:
            if not rules.complaints(spoilt):
                self.complain("rules", f"nothing is said about {name}")

    def container(self) -> None:
        hadolint = self.helms["helm4"].parent / "hadolint"
        for complaint in containerfile.complaints(ROOT, hadolint):
            self.complain("Containerfile", complaint)

    def run(self, binary: Path | None) -> int:
        checks = [self.versions, self.lint, self.good, self.bad, self.old_kubernetes, self.running, self.rolls,
                  self.rules_bite, self.notes, self.documents, self.package, self.container]
        for check in checks:
            began = time.monotonic()
            check()
            if os.environ.get("CHART_TIMES"):
                print(f"{check.__name__}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        if binary and not self.complaints:
            import play

            play.run(self, binary)
        for complaint in self.complaints:
            print(f"chart: {complaint}", file=sys.stderr)
        if self.complaints:
            return 1
        print(f"chart: clean, {self.checked} objects of {len(cases.GOOD) + 1} sets of values checked, "
              f"{len(cases.BAD)} sets refused", file=sys.stderr)
        return 0


if __name__ == "__main__":
    suite = Suite(tools.folder_of(Path(sys.argv[1]), Path(__file__).resolve().parent))
    with suite.home:
        sys.exit(suite.run(Path(sys.argv[2]) if len(sys.argv) > 2 else None))
