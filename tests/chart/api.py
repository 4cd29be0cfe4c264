"""As much of a Kubernetes API as Helm asks for when it looks an object up: for the refusals of
changes that would lose data, which the chart decides by what is running.
"""

import http.server
import json
import threading
from pathlib import Path

# What the chart makes; Helm asks for the kinds before it looks at anything.
KINDS = {
    "v1": ["ConfigMap", "Pod", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
# Whose the objects are: the release `t`.
OWNED = {
    "labels": {"app.kubernetes.io/managed-by": "Helm"},
    "annotations": {"meta.helm.sh/release-name": "t", "meta.helm.sh/release-namespace": "messaging"},
}


def group(version: str) -> dict:
    versions = {"groupVersion": version, "version": "v1"}
    return {"name": version.split("/")[0], "versions": [versions], "preferredVersion": versions}


def resource(kind: str) -> dict:
    name = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
    return {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["get"]}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = self.server.answer(self.path.split("?")[0])
        body = json.dumps(answer or NOT_FOUND).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """What was asked is of no interest."""


class Api(http.server.ThreadingHTTPServer):
    """Serves these StatefulSets, by name, until the block ends."""

    def __init__(self, folder: Path, replicas: dict[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replicas = replicas
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "users": [{"name": "it", "user": {}}],
        }))

    def answer(self, path: str) -> dict | None:
        if path == "/version":
            return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [group(version) for version in KINDS if "/" in version]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version in KINDS:
            kinds = [resource(kind) for kind in KINDS[version]]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": kinds}
        name = path.rsplit("/", 1)[1]
        if path.startswith("/apis/apps/v1/namespaces/messaging/statefulsets/") and name in self.replicas:
            metadata = {"name": name, "namespace": "messaging", **OWNED}
            spec = {"replicas": self.replicas[name]}
            return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}
        return None

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
