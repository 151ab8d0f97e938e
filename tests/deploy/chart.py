"""deploy/helm/kiln: rendered by Helm's library for several sets of values, each object checked against the schema of
Kubernetes, its references, and the settings of each service against the program."""

import re

import kubernetes_validate
import yaml

try:
    import helm_python
except ImportError:
    helm_python = None

from report import DEPLOY

CHART = DEPLOY / "helm/kiln"
KEY = "ZXhhbXBsZS1jbHVzdGVyLWtleS1jaGFuZ2UtbWU="
KUBERNETES = ["1.30", "1.37"]
# Kinds of operators; their schemas are not part of Kubernetes.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
# What a pod knows of itself.
OF_THE_POD = {"status.podIP": "10.1.2.3"}
# What Secrets of certificates hold; made by `kiln certs`.
certificates = {}

SETS = {
    "a secret that exists": {"secret": {"existing": "outside"}},
    "a secret of its own": {
        "secret": {"clusterKey": KEY, "databaseUrl": "postgres://k:p@db:5432/kiln", "amqpUrl": "amqp://k:p@mq:5672/%2f"}
    },
    "everything on": {
        "secret": {"existing": "outside"},
        "tls": {"enabled": True, "publicSecret": "public"},
        "telemetry": {"otlpEndpoint": "http://collector:4317"},
        "amqpPrefix": "kiln.",
        "storage": {"accessModes": ["ReadWriteMany"], "storageClassName": "shared"},
        "networkPolicy": {"enabled": True},
        "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "front", "annotations": {"a": "b"}},
        "nodes": {"enabled": True, "tokenSecret": "join", "storage": {"storageClassName": "fast"}},
        "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboards": True, "labels": {"release": "p"}},
        "imagePullSecrets": [{"name": "pull"}],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "podAnnotations": {"x": "y"},
        "priorityClassName": "high",
        "services": {
            "gateway": {"autoscaling": {"enabled": True}, "config": {"max_open_requests": 2048}},
            "storage-svc": {"autoscaling": {"enabled": True}, "config": {"host_style": False}},
            "job-svc": {"config": {"lease_ms": 45000}},
            "pool-svc": {"localNodes": {"enabled": False}, "config": {"heartbeat_interval_seconds": 10}},
        },
    },
}
REFUSED = {
    "no secret at all": {},
    "nodes without a token": {"secret": {"existing": "s"}, "nodes": {"enabled": True}},
    "two storage services and a volume for one": {"secret": {"existing": "s"}, "services": {"storage-svc": {"replicas": 2}}},
}


def rendered(values):
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name="test", namespace="kiln")
    return [
        document
        for path, text in sorted(files.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def check(report, tree):
    if helm_python is None:
        report.not_checked("the chart: Helm's library is not made for this machine (requirements.txt)")
        return None
    values = next(iter(SETS.values()))
    certificates.update(tree.certificates())
    linted = helm_python.lint(CHART, values, strict=True)
    for message in linted["messages"]:
        report.expect(message["severity"] < 2, f"lint: {message['path']}: {message['error']}")
    for error in linted["errors"]:
        report.problem(f"lint: {error}")
    for why, values in REFUSED.items():
        try:
            rendered(values)
            report.problem(f"{why}: rendered all the same")
        except helm_python.HelmRenderError:
            pass
    objects = 0
    for name, values in SETS.items():
        documents = rendered(values)
        objects += len(documents)
        for document in documents:
            valid(report, name, document)
        named = {(document["kind"], document["metadata"]["name"]): document for document in documents}
        report.expect(len(named) == len(documents), f"{name}: two objects have one name")
        for document in documents:
            if document["kind"] == "Deployment":
                deployment(report, tree, name, document, named)
            if document["kind"] == "StatefulSet":
                node(report, tree, name, document)
    report.not_checked(f"{', '.join(sorted(FOREIGN))} against their own schemas; an installation on a cluster")
    return f"{len(SETS)} sets of values, {objects} objects against Kubernetes {' and '.join(KUBERNETES)}"


def valid(report, name, document):
    what = f"{name}: {document['kind']} {document['metadata']['name']}"
    if document["kind"] in FOREIGN:
        return
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            report.problem(f"{what} ({version}): {error.message[:300]}")


def deployment(report, tree, name, document, named):
    """What it names is there, and the program takes the settings that its container gets."""
    what = f"{name}: {document['metadata']['name']}"
    pod = document["spec"]["template"]
    labels = pod["metadata"]["labels"]
    container = pod["spec"]["containers"][0]
    selected = document["spec"]["selector"]["matchLabels"]
    report.expect(selected.items() <= labels.items(), f"{what}: its pods are not those it selects")
    service = named.get(("Service", document["metadata"]["name"]))
    if report.expect(service, f"{what}: no Service"):
        report.expect(service["spec"]["selector"].items() <= labels.items(), f"{what}: its Service selects other pods")
        ports = {port["name"] for port in container["ports"]}
        wanted = {port["targetPort"] for port in service["spec"]["ports"]}
        report.expect(wanted <= ports, f"{what}: its Service leads to ports that are not there: {wanted - ports}")
    budget = named.get(("PodDisruptionBudget", document["metadata"]["name"]))
    report.expect(budget, f"{what}: no PodDisruptionBudget")
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    report.expect(set(volumes) == set(mounted), f"{what}: volumes {set(volumes)}, mounts {set(mounted)}")

    files = {}
    for volume, path in mounted.items():
        source = volumes[volume]
        if "configMap" in source:
            config = named.get(("ConfigMap", source["configMap"]["name"]))
            if report.expect(config, f"{what}: no ConfigMap {source}"):
                files.update({f"{path}/{key}": text for key, text in config["data"].items()})
        elif "secret" in source:
            for item in source["secret"].get("items") or [{"key": key, "path": key} for key in ("tls.crt", "tls.key", "ca.crt")]:
                files[f"{path}/{item['path']}"] = secret(named, source["secret"]["secretName"], item["key"])
        elif "persistentVolumeClaim" in source:
            claim = source["persistentVolumeClaim"]["claimName"]
            report.expect(("PersistentVolumeClaim", claim) in named, f"{what}: no claim {claim}")
    environment = {}
    for variable in container["env"]:
        if "value" in variable:
            # As Kubernetes puts in what was named before.
            known = lambda match: environment.get(match[1], match[0])
            environment[variable["name"]] = re.sub(r"\$\((\w+)\)", known, variable["value"])
        elif "fieldRef" in variable["valueFrom"]:
            environment[variable["name"]] = OF_THE_POD[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            environment[variable["name"]] = secret(named, reference["name"], reference["key"])
    told = tree.check_config(container["command"], environment, files)
    report.expect(told is None, f"{what} refuses its settings: {told}")


def node(report, tree, name, document):
    """The command line is one that the program takes: all that it misses is the token."""
    container = document["spec"]["template"]["spec"]["containers"][0]
    told = tree.run(container["command"], {})
    report.expect("--token is required" in told, f"{name}: {container['command']}: {told}")


def secret(named, name, key):
    made = named.get(("Secret", name))
    if made:
        return made["stringData"][key]
    outside = {
        "cluster-key": KEY,
        "database-url": "postgres://k:p@db:5432/kiln",
        "amqp-url": "amqp://k:p@mq:5672/%2f",
    }
    return outside.get(key) or certificates[key]
