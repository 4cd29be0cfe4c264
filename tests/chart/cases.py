"""The sets of values that the chart is rendered with, and those that it must refuse."""

from pathlib import Path

PRODUCTION = [
    "-f", "values-production.yaml",
    "--set", "image.repository=registry.example.com/forebay",
    "--set", "image.digest=sha256:" + "0123456789abcdef" * 4,
    "--set", "metadata.externalEndpoints={http://etcd-0.example.com:2379,http://etcd-1.example.com:2379}",
    "--set", "objectStore.url=s3://bucket/forebay,objectStore.region=eu-central-1",
    "--set", "objectStore.credentials.existingSecret=forebay-s3",
]

EVERYTHING = ["-f", str(Path(__file__).resolve().with_name("everything.yaml"))]

# Name to arguments of `helm template`.
GOOD = {
    "default": [],
    "production": PRODUCTION,
    "one node": ["-f", "values-one-node.yaml"],
    "everything": EVERYTHING,
    "shared folder": ["--set", "objectStore.url=file:///objects,objectStore.existingClaim=objects"],
    "nothing optional": [
        "--set", "networkPolicy.enabled=false,serviceAccount.create=false,zone.podLabel=,proxy.preStopSeconds=0",
        "--set", "proxy.topologySpread.zone=,proxy.topologySpread.host=",
    ],
    "dashboard": ["--set", "dashboard.enabled=true"],
    "seven storage nodes": [
        "--set", "cluster.replicas=5,cluster.ackQuorum=3,storage.replicas=7,storage.pdb.maxUnavailable=2",
    ],
}

DIGEST = "sha256:" + "0" * 63

# Arguments, and what the refusal must say.
BAD = [
    (["storage.replicas=2"], "storage.replicas = 2 is less than cluster.replicas = 3"),
    (["cluster.ackQuorum=1"], "cluster.ackQuorum = 1 must be more than half of cluster.replicas = 3"),
    (["cluster.ackQuorum=4"], "cluster.ackQuorum = 4 must be more than half of cluster.replicas = 3"),
    (["cluster.replicas=8"], "replicas"),
    (["storage.pdb.maxUnavailable=2"], "storage.pdb.maxUnavailable = 2 would let an eviction take the quorum"),
    (["etcd.pdb.maxUnavailable=2"], "etcd.pdb.maxUnavailable = 2"),
    (["etcd.enabled=false"], "metadata.externalEndpoints must name an etcd"),
    (["metadata.externalEndpoints={http://a:2379}"], "set one of them"),
    (["etcd.enabled=false", "metadata.externalEndpoints={https://a:2379}"], "externalEndpoints"),
    (["etcd.enabled=false", "metadata.externalEndpoints={http://a}"], "externalEndpoints"),
    (["etcd.replicas=2"], "replicas"),
    (["objectStore.url=file:///objects"], "objectStore.existingClaim"),
    (["objectStore.existingClaim=c"], "objectStore.existingClaim is only for"),
    (["objectStore.url=gs://bucket"], "url"),
    (["objectStore.region=x"], "objectStore.region is given"),
    (["objectStore.credentials.existingSecret=x"], "objectStore.credentials.existingSecret is given"),
    (["objectStore.url=s3://b", "objectStore.endpoint=http://minio:9000"], "objectStore.allowHttp=true"),
    (["config.storage.id=7"], "config.storage.id belongs to the chart"),
    (["config.broker.tail_cache_bytes=1GiB"], "use broker.tailCacheBytes"),
    (["config.storage.a.b=1"], "config"),
    (["storage.extraEnv[0].name=FOREBAY_STORAGE__ID"], "storage.extraEnv has FOREBAY_STORAGE__ID"),
    (["config.cache.dir=/tmp"], "use proxy.diskCacheBytes"),
    (["proxy.diskCacheBytes=2GB"], "diskCacheBytes"),
    (["proxy.memoryBytes=1GiB"], "proxy.resources.limits.memory = 1Gi is less than proxy.memoryBytes"),
    (["broker.tailCacheBytes=2GiB"], "broker.resources.limits.memory = 1Gi is less than broker.memoryBytes"),
    (["proxy.memoryBytes=512MB"], "memoryBytes"),
    (["proxy.terminationGracePeriodSeconds=24"], "proxy.preStopSeconds = 5"),
    (["broker.terminationGracePeriodSeconds=30"], "terminationGracePeriodSeconds"),
    (["proxy.replicas=0"], "replicas"),
    (["proxy.replica=3"], "replica"),
    (["brokers.replicas=3"], "brokers"),
    (["image.digest=" + DIGEST], "digest"),
    (["listenHost=127.0.0.1"], "listenHost"),
    (["storage.persistence.size=lots"], "size"),
    (["fullnameOverride=" + "a" * 41], "fullnameOverride"),
]

# Of a release with five storage nodes and three members of etcd; none where the change is allowed.
CHANGES = [
    ("storage.replicas=4", "storage.replicas = 4 takes away storage nodes that hold data, there are 5"),
    ("storage.replicas=4,storage.allowScaleDown=true", None),
    ("storage.replicas=6", None),
    ("storage.replicas=5,etcd.replicas=5", "a running etcd of 3 members cannot be resized"),
    ("storage.replicas=5,etcd.enabled=false,metadata.externalEndpoints={http://a:2379}", "would remove the etcd"),
]
