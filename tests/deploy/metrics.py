"""Dashboards and alerts: their queries are PromQL, and ask for metrics and labels that the services have."""

import json
import re

import promql_parser
import yaml

from report import DEPLOY, ROOT

# What is not ours: Prometheus' own.
OTHERS = {"up": set()}
# Labels that Prometheus adds, and those that histograms have.
ADDED = {"job", "instance"}


def balanced(text, start):
    """From the bracket at `start` to its partner."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return text[start : at + 1]
    raise ValueError("a bracket without a partner")


def known():
    """Name to labels of every metric that the sources make."""
    found = {}
    for path in [*ROOT.glob("*/src/**/*.rs"), *ROOT.glob("common/*/src/**/*.rs")]:
        text = path.read_text()
        for match in re.finditer(r'"(kiln_[a-z0-9_]+)"', text):
            found.setdefault(match.group(1), set())
        for match in re.finditer(r"\b(?:Int)?(?:Counter|Gauge|Histogram)Vec::new\(", text):
            inside = balanced(text, match.end() - 1)
            # Its name is within, or in options made just before.
            names = re.findall(r'"(kiln_[a-z0-9_]+)"', inside) or re.findall(r'"(kiln_[a-z0-9_]+)"', text[: match.start()])
            labels = re.findall(r"&\[([^\]]*)\]", inside)
            if names and labels:
                found[names[-1]] = set(re.findall(r'"([^"]+)"', labels[-1]))
        for match in re.finditer(r'HistogramOpts::new\(\s*"(kiln_[a-z0-9_]+)"', text):
            name = match.group(1)
            for end, more in (("_bucket", {"le"}), ("_sum", set()), ("_count", set())):
                found[name + end] = found.get(name, set()) | more
    return found | OTHERS


def asked(report, where, expression, metrics):
    """Checks one query; gives the labels that its metrics have."""
    try:
        parsed = promql_parser.parse(re.sub(r"\$__(rate_)?interval", "5m", expression))
    except ValueError as error:
        report.problem(f"{where}: {error}: {expression}")
        return set()
    labels = set(ADDED)

    def visit(node):
        if type(node).__name__ == "VectorSelector":
            if not report.expect(node.name in metrics, f"{where}: there is no metric {node.name}"):
                return
            labels.update(metrics[node.name])
            for name in re.findall(r"(\w+)(?:=~|!~|!=|=)\"", str(node.matchers)):
                report.expect(name in metrics[node.name] | ADDED, f"{where}: {node.name} has no label {name}")

    promql_parser.walk(parsed, visit)
    for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        for name in filter(None, map(str.strip, names.split(","))):
            report.expect(name in labels, f"{where}: no metric of it has a label {name}")
    return labels


def check(report):
    metrics = known()
    queries = 0
    used = set()
    told = (DEPLOY / "README.md").read_text()
    for path in sorted((DEPLOY / "helm/kiln/alerts").glob("*.yaml")):
        names = []
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                queries += 1
                names.append(rule["alert"])
                where = f"{path.name}: {rule['alert']}"
                labels = asked(report, where, rule["expr"], metrics)
                used.add(rule["expr"])
                unknown = set(rule) - {"alert", "expr", "for", "labels", "annotations"}
                report.expect(not unknown, f"{where}: unknown keys {unknown}")
                report.expect(rule["labels"]["severity"] in ("page", "ticket"), f"{where}: severity")
                for name in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
                    report.expect(name in labels, f"{where}: says {name}, which it does not have")
                report.expect(f"`{rule['alert']}`" in told, f"{where}: deploy/README.md does not say what to do")
        report.expect(len(set(names)) == len(names), f"{path.name}: two alerts of one name")
    uids = set()
    for path in sorted((DEPLOY / "helm/kiln/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        report.expect(dashboard["uid"] not in uids, f"{path.name}: its uid is taken")
        uids.add(dashboard["uid"])
        ids, places = set(), set()
        for panel in dashboard["panels"]:
            where = f"{path.name}: {panel['title']}"
            report.expect(panel["id"] not in ids, f"{where}: its id is taken")
            ids.add(panel["id"])
            box = panel["gridPos"]
            cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
            report.expect(not cells & places and box["x"] + box["w"] <= 24, f"{where}: overlaps another panel")
            places |= cells
            for target in panel.get("targets", []):
                queries += 1
                used.add(target["expr"])
                labels = asked(report, where, target["expr"], metrics)
                for name in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    report.expect(name in labels, f"{where}: its legend says {name}, which it does not have")
    seen = " ".join(used)
    own = {name for name in metrics if name.startswith("kiln_") and not name.endswith(("_bucket", "_sum", "_count"))}
    unseen = {name for name in own if name not in seen}
    report.expect(not unseen, f"no dashboard or alert shows {', '.join(sorted(unseen))}")
    return f"{queries} queries, {len(own)} metrics of the services, each shown"
