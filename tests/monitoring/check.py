"""Checks the alert rules and the dashboard that the chart ships.

Every alert fires in one case and stays quiet in another, has a severity and a runbook; every query
of the dashboard parses; and whatever metric either names is in docs/metrics.md with the labels it is
asked for. Usage: check.py [--promtool PATH].
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import cases

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "helm/forebay/files/alerts.yaml"
DASHBOARD = ROOT / "helm/forebay/files/dashboard.json"
METRICS = ROOT / "docs/metrics.md"
RUNBOOKS = ROOT / "docs/runbooks.md"
# Of Prometheus and of the scrape itself.
FOREIGN = {"up"}
COMMON_LABELS = {"instance", "job", "le", "namespace", "pod"}


class Check:
    def __init__(self, promtool: str):
        self.promtool = promtool
        self.complaints: list[str] = []
        self.known = documented()

    def complain(self, where: str, what: str) -> None:
        self.complaints.append(f"{where}: {what}")

    def tool(self, where: str, *arguments: str) -> None:
        done = subprocess.run([self.promtool, *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            self.complain(where, (done.stdout + done.stderr).strip())

    def names(self, where: str, query: str) -> None:
        """Metrics and labels that a query names."""
        for name in set(re.findall(r"\bforebay_\w+", query)):
            if name not in self.known:
                self.complain(where, f"{name} is not in docs/metrics.md")
        for name, selector in re.findall(r"\b(forebay_\w+)\{([^}]*)\}", query):
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selector)):
                if label not in self.known.get(name, set()) | COMMON_LABELS:
                    self.complain(where, f"{name} has no label {label}")

    def alerts(self) -> list[str]:
        text = RULES.read_text()
        self.tool("alerts.yaml", "check", "rules", str(RULES))
        rules = re.split(r"\n\s+- alert: ", text)[1:]
        names = [rule.split("\n", 1)[0].strip() for rule in rules]
        anchors = self.anchors()
        for name, rule in zip(names, rules):
            if not re.search(r"severity: (critical|warning)\}", rule):
                self.complain(name, "has no severity")
            for annotation in ["summary:", "description:", "runbook_url: docs/runbooks.md#"]:
                if annotation not in rule:
                    self.complain(name, f"has no {annotation}")
            anchor = re.search(r"runbook_url: docs/runbooks\.md#(\S+)", rule)
            if anchors is not None and anchor and anchor[1] not in anchors:
                self.complain(name, f"docs/runbooks.md has no heading for #{anchor[1]}")
            self.names(name, rule)
        if len(set(names)) != len(names):
            self.complain("alerts.yaml", "an alert is there twice")
        for name in set(names) ^ set(cases.CASES):
            self.complain(name, "is in only one of alerts.yaml and cases.py")
        return names

    @staticmethod
    def anchors() -> set[str] | None:
        """Anchors of the runbooks' headings; none where there is no such page."""
        if not RUNBOOKS.exists():
            return None
        headings = re.findall(r"^#+ (.+)$", RUNBOOKS.read_text(), re.M)
        slug = lambda text: re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        return {slug(heading) for heading in headings}

    def firing(self, folder: Path) -> None:
        tests = []
        for name, (fires, quiet) in cases.CASES.items():
            for series, count in [(fires, 1), (quiet, 0)]:
                query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
                tests.append({
                    "name": f"{name} {'fires' if count else 'is quiet'}",
                    "interval": "1m",
                    "input_series": [{"series": key, "values": values} for key, values in series.items()],
                    "promql_expr_test": [{
                        "expr": query,
                        "eval_time": f"{cases.MINUTES}m",
                        "exp_samples": [{"labels": "{}", "value": count}],
                    }],
                })
                for key in series:
                    self.names(name, key)
        # JSON is YAML.
        file = folder / "tests.json"
        file.write_text(json.dumps({
            "rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests,
        }))
        self.tool("alerts", "test", "rules", str(file))

    def dashboard(self, folder: Path) -> int:
        board = json.loads(DASHBOARD.read_text())
        for key in ["title", "uid", "schemaVersion", "panels", "templating", "time"]:
            if key not in board:
                self.complain("dashboard", f"has no {key}")
        ids, queries, places = [], [], []
        for panel in board["panels"]:
            where = f"panel {panel.get('title')!r}"
            ids.append(panel["id"])
            place = panel["gridPos"]
            if not (0 <= place["x"] and place["x"] + place["w"] <= 24 and place["h"] > 0):
                self.complain(where, f"does not lie on the grid: {place}")
            for other, at in places:
                apart = (place["x"] >= at["x"] + at["w"] or at["x"] >= place["x"] + place["w"]
                         or place["y"] >= at["y"] + at["h"] or at["y"] >= place["y"] + place["h"])
                if not apart:
                    self.complain(where, f"covers {other}")
            places.append((where, place))
            if panel["type"] == "row":
                continue
            if not panel.get("description") or not panel.get("targets"):
                self.complain(where, "has no description or no queries")
            if panel["type"] == "timeseries" and "unit" not in panel["fieldConfig"]["defaults"]:
                self.complain(where, "has no unit")
            refs = [target["refId"] for target in panel["targets"]]
            if len(set(refs)) != len(refs):
                self.complain(where, "has a refId twice")
            for target in panel["targets"]:
                self.names(where, target["expr"])
                queries.append((where, target["expr"]))
        if len(set(ids)) != len(ids):
            self.complain("dashboard", "a panel's id is there twice")
        rules = [
            {"record": f"panel:query:{at}", "expr": query.replace("$__rate_interval", "5m")}
            for at, (_, query) in enumerate(queries)
        ]
        file = folder / "queries.json"
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        self.tool("dashboard", "check", "rules", str(file))
        return len(queries)


def documented() -> dict[str, set[str]]:
    """Names as they are scraped, with their labels."""
    known: dict[str, set[str]] = {name: set() for name in FOREIGN}
    for line in METRICS.read_text().splitlines():
        if not line.startswith("| `forebay_"):
            continue
        name, kind, labels, _ = [cell.strip() for cell in line.strip("|").split("|", 3)]
        name, of = name.strip("`"), set() if labels == "—" else set(labels.split(", "))
        ends = ["_bucket", "_sum", "_count"] if kind == "histogram" else [""]
        known |= {name + end: of for end in ends}
    return known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promtool", default="promtool")
    check = Check(parser.parse_args().promtool)
    with tempfile.TemporaryDirectory(prefix="forebay-monitoring-") as folder:
        alerts = check.alerts()
        check.firing(Path(folder))
        queries = check.dashboard(Path(folder))
    for complaint in check.complaints:
        print(f"monitoring: {complaint}", file=sys.stderr)
    if check.complaints:
        return 1
    print(f"monitoring: {len(alerts)} alerts fire and stay quiet, {queries} queries of the dashboard parse")
    return 0


if __name__ == "__main__":
    sys.exit(main())
