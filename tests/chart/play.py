"""Plays the rendered pods by processes of this machine, with a given binary: a very small kubelet.

1. Every forebay.toml of every set of values is given to `forebay config check`, where the binary has
   that command.
2. The default set is rendered, and each pod becomes a process, those of etcd too: its arguments, its
   environment with the fields that Kubernetes would fill in, its configuration from its ConfigMap,
   its probes by HTTP, its end by SIGTERM within its grace period. A pod's address is one of
   127.0.0.0/8, so that all of them have the ports that the chart says.
3. The pod of `helm test` is run against them.

What differs from a cluster: addresses in place of names, one machine, and its etcd.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import cases
import rules

READY_SECONDS = 90


class Failed(Exception):
    """The play did not go as it should; says what was seen."""


def say(text: str) -> None:
    print(f"chart: {text}", file=sys.stderr)


def run(suite, binary: Path) -> None:
    check_configurations(suite, binary)
    with tempfile.TemporaryDirectory(prefix="forebay-play-") as folder:
        stage = Stage(Path(folder), binary)
        try:
            stage.play(suite)
            say(f"{len(stage.pods)} pods played, and `helm test` with them")
        except Failed as failure:
            suite.complain("play", f"{failure}")
        finally:
            stage.end()


def check_configurations(suite, binary: Path) -> None:
    asked = subprocess.run([binary, "config", "check", "--help"], capture_output=True, text=True)
    if asked.returncode != 0:
        say("this forebay has no `config check`: forebay.toml is tried by the play only")
        return
    with tempfile.TemporaryDirectory(prefix="forebay-config-") as folder:
        for name, args in cases.GOOD.items():
            for one in rules.of_kind(suite.rendered(name, args, "1.36"), "ConfigMap"):
                # The dashboard's has none.
                if "forebay.toml" not in one["data"]:
                    continue
                path = Path(folder) / "forebay.toml"
                path.write_text(one["data"]["forebay.toml"])
                done = subprocess.run([binary, "config", "check", path], capture_output=True, text=True, timeout=30)
                if done.returncode != 0:
                    suite.complain(f"values {name!r}, {rules.title(one)}", done.stderr.strip())


def expand(text: str, env: dict[str, str]) -> str:
    """Puts the variables in that Kubernetes puts in."""
    return re.sub(r"\$\((\w+)\)", lambda name: env[name[1]], text)


class Pod:
    """One process, and what its template says of it."""

    def __init__(self, name: str, address: str, template: dict) -> None:
        self.name, self.address, self.template = name, address, template
        self.container = template["spec"]["containers"][0]
        self.role = template["metadata"]["labels"]["app.kubernetes.io/component"]
        self.process: subprocess.Popen | None = None

    def field(self, path: str) -> str:
        if path == "metadata.name":
            return self.name
        if path == "status.podIP":
            return self.address
        label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
        # What the StatefulSet adds to the template's; a label that is missing is an empty text.
        labels = {**self.template["metadata"]["labels"], "apps.kubernetes.io/pod-index": self.name.rsplit("-", 1)[1]}
        return labels.get(label[1], "")

    def environment(self) -> dict[str, str]:
        env: dict[str, str] = {}
        for variable in self.container["env"]:
            if "valueFrom" in variable:
                env[variable["name"]] = self.field(variable["valueFrom"]["fieldRef"]["fieldPath"])
            else:
                env[variable["name"]] = expand(variable["value"], env)
        return env

    def probe(self, kind: str) -> str:
        """Empty where the probe passes, else what is wrong."""
        get = self.container[kind]["httpGet"]
        port = next(port["containerPort"] for port in self.container["ports"] if port["name"] == get["port"])
        # The etcd of this machine may be older than the chart's, which has the other two paths.
        path = "/health" if self.role == "etcd" else get["path"]
        try:
            with urllib.request.urlopen(f"http://{self.address}:{port}{path}", timeout=3):
                return ""
        except urllib.error.HTTPError as error:
            return error.read().decode().strip()
        except OSError as error:
            return str(error)


class Stage:
    def __init__(self, folder: Path, binary: Path) -> None:
        self.folder, self.binary = folder, binary
        self.net = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}"
        self.pods: list[Pod] = []
        # What stands in for DNS, and for the mounts and addresses that only a container has.
        self.names: dict[str, str] = {}

    def play(self, suite) -> None:
        args = ["--set", "config.storage.journal_file_bytes=16MiB,zone.podLabel=app.kubernetes.io/component",
                "--set", "objectStore.url=file:///objects,objectStore.existingClaim=objects",
                "--set", "proxy.diskCacheBytes=64MiB"]
        objects = suite.rendered("play", args, "1.36")
        if not objects:
            raise Failed("nothing is rendered")
        for workload in rules.of_kind(objects, *rules.WORKLOADS):
            self.admit(workload)
        for pod in self.pods:
            self.start(pod, objects)
        self.wait_ready()
        self.round_trip(objects)
        self.check_members()
        self.stop_in_time()

    def admit(self, workload: dict) -> None:
        """Gives the workload's pods their addresses and names."""
        first = workload["spec"].get("ordinals", {}).get("start", 0)
        for number in range(first, first + workload["spec"]["replicas"]):
            pod = Pod(f"{workload['metadata']['name']}-{number}", f"{self.net}.{len(self.pods) + 1}",
                      workload["spec"]["template"])
            self.pods.append(pod)
            if service := workload["spec"].get("serviceName"):
                self.names[f"{pod.name}.{service}.messaging.svc.cluster.local"] = pod.address

    def of(self, *roles: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.role in roles]

    def on_this_machine(self, pod: Pod, text: str) -> str:
        own = self.folder / pod.name
        changes = {**self.names, "0.0.0.0": pod.address, "/var/lib/forebay": str(own), "/var/lib/etcd": str(own),
                   "/var/cache/forebay": str(own / "cache"), "/etc/forebay": str(own),
                   "file:///objects": f"file://{self.folder}/objects"}
        for old, new in changes.items():
            text = text.replace(old, new)
        return text

    def start(self, pod: Pod, objects: list[dict]) -> None:
        own = self.folder / pod.name
        own.mkdir()
        for volume in pod.template["spec"].get("volumes", []):
            if "configMap" not in volume:
                continue
            config = next(one for one in rules.of_kind(objects, "ConfigMap")
                          if one["metadata"]["name"] == volume["configMap"]["name"])
            for name, text in config["data"].items():
                (own / name).write_text(self.on_this_machine(pod, text))
        env = pod.environment()
        arguments = [self.on_this_machine(pod, expand(word, env)) for word in pod.container["args"]]
        env = {name: self.on_this_machine(pod, value) for name, value in env.items()}
        program = "etcd" if pod.role == "etcd" else self.binary
        pod.process = subprocess.Popen([program, *arguments], env=env, cwd="/", stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=open(own / "log", "w"))

    def tail(self, pod: Pod) -> str:
        return (self.folder / pod.name / "log").read_text()[-1500:]

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        for pod in self.pods:
            for kind in ["startupProbe", "livenessProbe", "readinessProbe"]:
                while wrong := pod.probe(kind):
                    if pod.process.poll() is not None:
                        raise Failed(f"{pod.name} ended with status {pod.process.returncode}: {self.tail(pod)}")
                    if time.monotonic() > deadline:
                        raise Failed(f"{pod.name}: {kind}: {wrong}: {self.tail(pod)}")
                    time.sleep(0.05)

    def client(self, *command: str, **options) -> subprocess.CompletedProcess:
        proxy = self.of("proxy")[0]
        tools = self.folder / "bin"
        if not tools.exists():
            tools.mkdir()
            (tools / "forebay").symlink_to(self.binary)
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "FOREBAY_SERVER": f"{proxy.address}:7450"}
        return subprocess.run(command, env=env, text=True, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=120, cwd=self.folder, **options)

    def round_trip(self, objects: list[dict]) -> None:
        container = rules.of_kind(objects, "Pod")[0]["spec"]["containers"][0]
        script = container["args"][0].replace("/tmp/", f"{self.folder}/")
        done = self.client(*container["command"], script)
        if done.returncode != 0 or "were written and read back" not in done.stdout:
            raise Failed(f"helm test: status {done.returncode}: {done.stdout}{done.stderr}")

    def check_members(self) -> None:
        """Who is where: nodes by the numbers of their pods, brokers by ids of their own."""
        done = self.client("forebay", "cluster", "status", "--format", "json")
        if done.returncode != 0:
            raise Failed(f"forebay cluster status: {done.stderr}")
        status = json.loads(done.stdout)
        for role, key in [("storage", "storage_nodes"), ("broker", "brokers"), ("proxy", "proxies")]:
            known = status[key]
            expected = {pod.address: pod for pod in self.of(role)}
            found = {re.search(r"127\.[0-9.]+", one["address"])[0]: one for one in known}
            if found.keys() != expected.keys() or any(one["zone"] != role for one in known):
                raise Failed(f"{role}: known are {known}, played are {sorted(expected)}")
            for address, one in found.items():
                if role == "storage" and not expected[address].name.endswith(f"-{one['id']}"):
                    raise Failed(f"{expected[address].name} has the id {one['id']}")

    def stop_in_time(self) -> None:
        for roles in [["proxy", "broker", "storage", "controller"], ["etcd"]]:
            for pod in self.of(*roles):
                pod.process.send_signal(signal.SIGTERM)
            for pod in self.of(*roles):
                self.wait_end(pod)

    def wait_end(self, pod: Pod) -> None:
        grace = pod.template["spec"]["terminationGracePeriodSeconds"]
        try:
            status = pod.process.wait(grace)
        except subprocess.TimeoutExpired:
            raise Failed(f"{pod.name} does not end within {grace} s: {self.tail(pod)}") from None
        # etcd ends in order and then by the signal that it was sent.
        if status != 0 and (pod.role, status) != ("etcd", -signal.SIGTERM):
            raise Failed(f"{pod.name} ends with status {status}: {self.tail(pod)}")

    def end(self) -> None:
        for process in [pod.process for pod in self.pods]:
            if process and process.poll() is None:
                process.kill()
                process.wait()
