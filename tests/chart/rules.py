"""What must hold for whatever the chart renders, as functions of the objects.

Kubernetes' schemas know the form of each object; these rules know what the objects say of each
other: selectors and pods, ports and policies, forebay.toml and the container that reads it.
"""

import copy
import re
import tomllib
from urllib.parse import urlsplit

ROLES = {"proxy", "broker", "storage", "controller"}
WORKLOADS = {"Deployment", "StatefulSet"}
# Who may open connections to whom; proxies take everybody unless values say otherwise.
CALLERS = {
    "broker": {"proxy", "broker", "controller"},
    "storage": {"proxy", "broker", "controller"},
    "controller": set(),
    "etcd": ROLES | {"etcd"},
}
ADMIN_PORTS = {"admin", "metrics"}


def title(one: dict) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def component(one: dict) -> str:
    return one["metadata"]["labels"]["app.kubernetes.io/component"]


def of_kind(objects: list[dict], *kinds: str) -> list[dict]:
    return [one for one in objects if one["kind"] in kinds]


def matches(selector: dict, labels: dict) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def pod_labels(workload: dict) -> dict:
    return workload["spec"]["template"]["metadata"]["labels"]


def pods(objects: list[dict]) -> list[tuple[str, dict]]:
    """Names and specs of everything that runs."""
    found = [(title(one), one["spec"]["template"]["spec"]) for one in of_kind(objects, *WORKLOADS)]
    return found + [(title(one), one["spec"]) for one in of_kind(objects, "Pod")]


def ports(workload: dict) -> dict[str, int]:
    containers = workload["spec"]["template"]["spec"]["containers"]
    return {port["name"]: port["containerPort"] for one in containers for port in one.get("ports", [])}


def config_of(objects: list[dict], workload: dict) -> dict:
    """forebay.toml of a role's pods."""
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    name = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")
    texts = [one["data"]["forebay.toml"] for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == name]
    return tomllib.loads(texts[0]) if texts else {}


def env_of(workload: dict) -> dict[str, dict]:
    container = workload["spec"]["template"]["spec"]["containers"][0]
    return {variable["name"]: variable for variable in container.get("env", [])}


def complaints(objects: list[dict]) -> list[str]:
    if not objects:
        return ["nothing is rendered"]
    rules = [rights, names, pods_are_locked, pods_are_probed, budgets, services, policies, configurations, folders,
             storage_pods, etcd_pods, monitors]
    return [complaint for rule in rules for complaint in rule(objects)]


def rights(objects):
    """Nothing in the pods talks to Kubernetes, so nothing is granted."""
    for one in objects:
        if one["apiVersion"].startswith("rbac.authorization.k8s.io"):
            yield f"{title(one)} grants rights"
        if "namespace" in one["metadata"]:
            yield f"{title(one)} names a namespace"
    for account in of_kind(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)} mounts its token"


def names(objects):
    seen = set()
    for one in objects:
        name = one["metadata"]["name"]
        if title(one) in seen:
            yield f"{title(one)} is there twice"
        seen.add(title(one))
        # A StatefulSet's name goes, with a hash behind it, into a label.
        limit = 52 if one["kind"] == "StatefulSet" else 63
        if len(name) > limit or not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
            yield f"{title(one)}: no name of at most {limit} letters"
        labels = dict(one["metadata"].get("labels", {}))
        if one["kind"] in WORKLOADS:
            labels |= pod_labels(one)
        for key, value in labels.items():
            if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value):
                yield f"{title(one)}: {value!r} of {key} is no label"


def pods_are_locked(objects):
    for name, spec in pods(objects):
        context = spec.get("securityContext", {})
        if not context.get("runAsNonRoot") or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} runs as root or without seccomp"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} mounts a token"
        if spec.get("enableServiceLinks") is not False:
            yield f"{name} gets the variables of Services, which Forebay takes for configuration"
        if not spec.get("serviceAccountName"):
            yield f"{name} has no service account"
        for container in spec["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name} may gain rights"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{name} may write to its image"
            resources = container.get("resources", {})
            if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
                yield f"{name} requests no processor or no memory"
            if "memory" not in resources.get("limits", {}):
                yield f"{name} has no memory limit"
            if container["image"].endswith(":latest") or not re.search(r"[:@]", container["image"]):
                yield f"{name} runs some image: {container['image']}"


def pods_are_probed(objects):
    for workload in of_kind(objects, *WORKLOADS):
        for container in workload["spec"]["template"]["spec"]["containers"]:
            known = {port["name"] for port in container.get("ports", [])}
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port not in known & ADMIN_PORTS:
                    yield f"{title(workload)}: {probe} asks port {port}"
        grace = workload["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 0)
        # What `Running::shutdown` of the cli may take.
        needed = {"broker": 35, "controller": 0}.get(component(workload), 20)
        if component(workload) in ROLES and grace < needed:
            yield f"{title(workload)} has {grace} s to end, it may need {needed} s"


def budgets(objects):
    found = of_kind(objects, "PodDisruptionBudget")
    for workload in of_kind(objects, *WORKLOADS):
        selector = workload["spec"]["selector"]["matchLabels"]
        if not matches(selector, pod_labels(workload)):
            yield f"{title(workload)} does not select its own pods"
        others = [one for one in of_kind(objects, *WORKLOADS) if one is not workload]
        if any(matches(selector, pod_labels(other)) for other in others):
            yield f"{title(workload)} selects pods of others"
        mine = [one for one in found if matches(one["spec"]["selector"]["matchLabels"], pod_labels(workload))]
        if len(mine) != 1:
            yield f"{title(workload)} has {len(mine)} disruption budgets"
        for constraint in workload["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            if not matches(constraint["labelSelector"]["matchLabels"], pod_labels(workload)):
                yield f"{title(workload)} is spread among the pods of others"


def services(objects):
    workloads = of_kind(objects, *WORKLOADS)
    for service in of_kind(objects, "Service"):
        chosen = [one for one in workloads if matches(service["spec"]["selector"], pod_labels(one))]
        if len(chosen) != 1:
            yield f"{title(service)} selects the pods of {len(chosen)} workloads"
            continue
        if any(matches(service["spec"]["selector"], one["metadata"]["labels"]) for one in of_kind(objects, "Pod")):
            yield f"{title(service)} selects the test"
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports(chosen[0]):
                yield f"{title(service)}: {title(chosen[0])} has no port {port['targetPort']}"
            if service["spec"].get("clusterIP") == "None" and port["port"] != ports(chosen[0]).get(port["targetPort"]):
                yield f"{title(service)}: port {port['port']} of a headless service is not the pod's"
    for workload in of_kind(objects, "StatefulSet"):
        name = workload["spec"]["serviceName"]
        heads = [one for one in of_kind(objects, "Service") if one["metadata"]["name"] == name]
        if [one["spec"].get("clusterIP") for one in heads] != ["None"]:
            yield f"{title(workload)} has no headless service"
        elif not heads[0]["spec"].get("publishNotReadyAddresses"):
            yield f"{title(heads[0])} hides pods that are not ready"


def policies(objects):
    found = of_kind(objects, "NetworkPolicy")
    if not found:
        return
    for workload in of_kind(objects, *WORKLOADS):
        mine = [one for one in found if matches(one["spec"]["podSelector"]["matchLabels"], pod_labels(workload))]
        if len(mine) != 1:
            yield f"{title(workload)} has {len(mine)} network policies"
            continue
        yield from one_policy(objects, workload, mine[0])


def one_policy(objects, workload, policy):
    role, rules = component(workload), policy["spec"].get("ingress", [])
    known = set(ports(workload).values())
    admin = {port for name, port in ports(workload).items() if name in ADMIN_PORTS}
    opened, callers = set(), set()
    for rule in rules:
        numbers = {port["port"] for port in rule.get("ports", [])}
        if not numbers or not numbers <= known:
            yield f"{title(policy)} opens {numbers or 'every port'}, its pods have {known}"
        opened |= numbers
        if numbers & admin and not rule.get("from"):
            yield f"{title(policy)} opens the admin port to everybody"
        if not rule.get("from") and role != "proxy":
            yield f"{title(policy)} lets everybody in"
        for peer in rule.get("from", []) if not numbers & admin else []:
            labels = peer.get("podSelector", {}).get("matchLabels", {})
            callers.add(labels.get("app.kubernetes.io/component"))
            targets = [one for one in of_kind(objects, *WORKLOADS, "Pod")
                       if matches(labels, pod_labels(one) if one["kind"] in WORKLOADS else one["metadata"]["labels"])]
            if role != "proxy" and not targets:
                yield f"{title(policy)} lets in nobody by {peer}"
    if known - admin - opened:
        yield f"{title(policy)} leaves {known - admin - opened} closed"
    if role in CALLERS and callers != CALLERS[role]:
        yield f"{title(policy)} lets in {callers}, should let in {CALLERS[role]}"


def configurations(objects):
    for workload in of_kind(objects, *WORKLOADS):
        role = component(workload)
        if role not in ROLES:
            continue
        config, env, known = config_of(objects, workload), env_of(workload), ports(workload)
        if not config:
            yield f"{title(workload)} has no forebay.toml"
            continue
        container = workload["spec"]["template"]["spec"]["containers"][0]
        if container["args"] != ["serve", "--roles", role, "--config", "/etc/forebay/forebay.toml"]:
            yield f"{title(workload)} runs {container['args']}"
        addresses = {"admin": config["listen"]["admin"], "grpc": config["listen"]["grpc"]}
        if role in ("broker", "storage"):
            addresses["data"] = config[role]["data_listen"]
        for name, address in addresses.items():
            if name in known and int(address.rsplit(":", 1)[1]) != known[name]:
                yield f"{title(workload)}: port {name} is {known[name]}, forebay.toml says {address}"
        if "FOREBAY_LISTEN__ADVERTISED_HOST" not in env:
            yield f"{title(workload)} advertises the address that it is bound to"
        if "checksum/config" not in workload["spec"]["template"]["metadata"]["annotations"]:
            yield f"{title(workload)} does not roll with its configuration"
        for name in env:
            section, _, key = name.removeprefix("FOREBAY_").lower().partition("__")
            if name.startswith("FOREBAY_") and key in config.get(section, {}):
                yield f"{title(workload)}: {section}.{key} is in forebay.toml and in the environment"
        if role == "broker" and config["broker"]["id"] != 0:
            yield f"{title(workload)}: all its brokers would have the id {config['broker']['id']}"


def folders(objects):
    """What Forebay writes to is a volume: the image cannot be written."""
    for workload in of_kind(objects, *WORKLOADS):
        if component(workload) not in ROLES:
            continue
        config = config_of(objects, workload)
        container = workload["spec"]["template"]["spec"]["containers"][0]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        url = config.get("object_store", {}).get("url", "")
        written = [config.get("cache", {}).get("dir", ""), url.removeprefix("file://") if url.startswith("file:") else ""]
        for folder in written:
            if folder and folder not in mounts:
                yield f"{title(workload)} writes to {folder}, mounted are {sorted(mounts)}"


def storage_pods(objects):
    for workload in of_kind(objects, "StatefulSet"):
        if component(workload) != "storage":
            continue
        if workload["spec"].get("ordinals") != {"start": 1} or workload["spec"]["podManagementPolicy"] != "Parallel":
            yield f"{title(workload)} does not start its nodes together from number 1"
        variable = env_of(workload).get("FOREBAY_STORAGE__ID", {})
        path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        if path != "metadata.labels['apps.kubernetes.io/pod-index']":
            yield f"{title(workload)}: its nodes take their id from {path}"
        host = env_of(workload).get("FOREBAY_LISTEN__ADVERTISED_HOST", {}).get("value", "")
        if not host.startswith(f"$(POD_NAME).{workload['spec']['serviceName']}."):
            yield f"{title(workload)} advertises {host}"
        names = list(env_of(workload))
        if "POD_NAME" not in names or names.index("POD_NAME") > names.index("FOREBAY_LISTEN__ADVERTISED_HOST"):
            yield f"{title(workload)}: POD_NAME is not known where it is used"
        mounts = workload["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        claims = {claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]}
        folders = [mount["mountPath"] for mount in mounts if mount["name"] in claims]
        data = config_of(objects, workload).get("storage", {}).get("data_dir", "")
        if not any(data.startswith(f"{folder}/") for folder in folders):
            yield f"{title(workload)} writes to {data}, its volumes are at {folders}"


def etcd_pods(objects):
    members = {}
    for workload in of_kind(objects, "StatefulSet"):
        if component(workload) != "etcd":
            continue
        arguments = workload["spec"]["template"]["spec"]["containers"][0]["args"]
        flags = dict(one.removeprefix("--").split("=", 1) for one in arguments)
        members = dict(one.split("=", 1) for one in flags["initial-cluster"].split(","))
        expected = [f"{workload['metadata']['name']}-{number}" for number in range(workload["spec"]["replicas"])]
        if list(members) != expected:
            yield f"{title(workload)} begins with {list(members)}, its pods are {expected}"
        for name, url in members.items():
            if flags["initial-advertise-peer-urls"].replace("$(POD_NAME)", name) != url:
                yield f"{title(workload)}: {name} says another address than {url}"
    if not members:
        return
    hosts = {urlsplit(url).hostname for url in members.values()}
    for workload in of_kind(objects, *WORKLOADS):
        if component(workload) in ROLES:
            endpoints = config_of(objects, workload).get("metadata", {}).get("etcd", [])
            if {urlsplit(url).hostname for url in endpoints} != hosts or len(endpoints) != len(hosts):
                yield f"{title(workload)} asks {endpoints}, etcd is at {sorted(hosts)}"


def monitors(objects):
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        chosen = [one for one in of_kind(objects, "Service") if matches(wanted, one["metadata"]["labels"])]
        if {component(one) for one in chosen} != ROLES or len(chosen) != len(ROLES):
            yield f"{title(monitor)} reads {[title(one) for one in chosen]}"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in chosen:
                if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                    yield f"{title(monitor)}: {title(service)} has no port {endpoint['port']}"


def rolled(before: list[dict], after: list[dict]) -> set[str]:
    """Components whose pods are replaced when one set of objects follows the other."""
    def templates(objects):
        return {component(one): one["spec"]["template"] for one in of_kind(objects, *WORKLOADS)}

    old, new = templates(before), templates(after)
    return {name for name in new if old.get(name) != new[name]}


def spoilt(objects: list[dict]):
    """The objects with one mistake each, for a test of the rules."""
    def spoil(name, change, *which):
        other = copy.deepcopy(objects)
        touched = [one for one in other if one["kind"] == which[0] and (len(which) < 2 or component(one) == which[1])]
        if not touched:
            raise LookupError(f"nothing to spoil for {name}")
        change(touched[0], other)
        return name, other

    def container(one):
        spec = one["spec"].get("template", one)["spec"]
        return spec["containers"][0]

    def pod(one):
        return one["spec"]["template"]["spec"]

    def drop(one, other):
        other.remove(one)

    def toml(old, new):
        def change(one, _):
            assert old in one["data"]["forebay.toml"], old
            one["data"]["forebay.toml"] = one["data"]["forebay.toml"].replace(old, new)
        return change

    def put(path, value):
        def change(one, _):
            *way, last = path.split(".")
            for part in way:
                one = one[int(part)] if isinstance(one, list) else one[part]
            one[last if isinstance(one, dict) else int(last)] = value
        return change

    yield spoil("a role", lambda one, other: other.append(
        {"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "x"}}), "Service")
    yield spoil("a mounted token", put("automountServiceAccountToken", True), "ServiceAccount")
    yield spoil("a long name", put("metadata.name", "x" * 53), "StatefulSet", "storage")
    yield spoil("a label that is none", put("metadata.labels.x", "a b"), "Service")
    yield spoil("root", lambda one, _: pod(one)["securityContext"].pop("runAsNonRoot"), "Deployment", "proxy")
    yield spoil("service links", lambda one, _: pod(one).pop("enableServiceLinks"), "Deployment", "broker")
    yield spoil("a writable image", lambda one, _: container(one).pop("securityContext"), "Pod", "test")
    yield spoil("no resources", lambda one, _: container(one).pop("resources"), "StatefulSet", "etcd")
    yield spoil("the latest image", lambda one, _: container(one).update(image="x:latest"), "Deployment", "proxy")
    yield spoil("no readiness", lambda one, _: container(one).pop("readinessProbe"), "StatefulSet", "storage")
    yield spoil("a probe of no port", lambda one, _: container(one)["startupProbe"]["httpGet"].update(port="x"),
                "Deployment", "controller")
    yield spoil("a short end", put("spec.template.spec.terminationGracePeriodSeconds", 5), "Deployment", "broker")
    for role in ["proxy", "broker", "storage", "controller", "etcd"]:
        yield spoil(f"{role} without a budget", drop, "PodDisruptionBudget", role)
        yield spoil(f"{role} without a policy", drop, "NetworkPolicy", role)
    yield spoil("a selector of others", put("spec.selector.matchLabels", {"app.kubernetes.io/instance": "t"}),
                "Deployment", "proxy")
    yield spoil("a service of nobody", put("spec.selector", {"a": "b"}), "Service", "proxy")
    yield spoil("a service of all", lambda one, _: one["spec"]["selector"].pop("app.kubernetes.io/component"),
                "Service", "proxy")
    yield spoil("a port that is not there", put("spec.ports.0.targetPort", "x"), "Service", "proxy")
    yield spoil("hidden nodes", put("spec.publishNotReadyAddresses", False), "Service", "storage")
    yield spoil("a policy of another port", put("spec.ingress.0.ports.0.port", 80), "NetworkPolicy", "proxy")
    yield spoil("a policy of no port", lambda one, _: one["spec"]["ingress"][0].pop("ports"), "NetworkPolicy", "broker")
    yield spoil("a policy for everybody", lambda one, _: one["spec"]["ingress"][0].pop("from"),
                "NetworkPolicy", "storage")
    yield spoil("a caller too few", lambda one, _: one["spec"]["ingress"][0]["from"].pop(), "NetworkPolicy", "storage")
    yield spoil("another listener", toml(":7450", ":7000"), "ConfigMap", "proxy")
    yield spoil("another data listener", toml(":7470", ":7000"), "ConfigMap", "storage")
    yield spoil("one id for all brokers", toml("id = 0", "id = 1"), "ConfigMap", "broker")
    yield spoil("a folder beside the volume", toml("/var/lib/forebay/data", "/data"), "ConfigMap", "storage")
    yield spoil("a cache beside the volume", toml("/var/cache/forebay", "/cache"), "ConfigMap", "proxy")
    yield spoil("objects beside the volume", toml("s3://bucket", "file:///objects"), "ConfigMap", "storage")
    yield spoil("another etcd", toml("etcd-0.", "etcd-9."), "ConfigMap", "controller")
    yield spoil("no configuration", drop, "ConfigMap", "controller")
    yield spoil("a key twice", toml("[storage]", "[storage]\nid = 1"), "ConfigMap", "storage")
    yield spoil("no checksum", lambda one, _: one["spec"]["template"]["metadata"]["annotations"].pop("checksum/config"),
                "Deployment", "proxy")
    yield spoil("nodes from number 0", lambda one, _: one["spec"].pop("ordinals"), "StatefulSet", "storage")
    yield spoil("a name used too early", lambda one, _: container(one)["env"].reverse(), "StatefulSet", "storage")
    yield spoil("a member too many", put("spec.replicas", 5), "StatefulSet", "etcd")
    yield spoil("a monitor of nothing", put("spec.selector.matchLabels", {"a": "b"}), "ServiceMonitor")
    yield spoil("a monitor of no port", put("spec.endpoints.0.port", "x"), "ServiceMonitor")
