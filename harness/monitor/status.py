"""`harness.monitor status`: what Prometheus sees, as a few lines of text."""

from harness.monitor.client import Alert, Prometheus, Target

HIDDEN_LABELS = ("alertname", "alertstate", "kind", "severity")


def render_status(prometheus: Prometheus) -> str:
    """Targets and alerts of all runs. Raises PrometheusUnavailable."""
    targets, alerts = prometheus.targets(), prometheus.alerts()
    lines = [f"prometheus {prometheus.url}", "", *_targets(targets), "", *_alerts(alerts)]
    return "\n".join(lines)


def _targets(targets: list[Target]) -> list[str]:
    nodes = [target for target in targets if target.labels.get("job") == "harness"]
    up = sum(target.health == "up" for target in nodes)
    lines = [f"nodes: {up} up, {len(nodes) - up} not"]
    if not nodes:
        lines.append("  none registered: no run is on, or the agents' monitor.targets_dir is not the one watched here")
    for target in sorted(nodes, key=lambda one: (one.labels.get("run", ""), one.labels.get("node", ""))):
        label = target.labels
        where = f"{label.get('run', '?')}  attempt {label.get('attempt', '?')}  {label.get('node', '?')}"
        lines.append(f"  {target.health:8}{where}  {target.url}" + (f"  {target.error}" if target.error else ""))
    for target in targets:
        if target.labels.get("job") != "harness" and target.health == "down":
            lines.append(f"  down    {target.labels.get('job')}  {target.url}  {target.error}")
    return lines


def _alerts(alerts: list[Alert]) -> list[str]:
    watchdog = any(alert.name == "HarnessWatchdog" and alert.firing for alert in alerts)
    others = [alert for alert in alerts if alert.name != "HarnessWatchdog"]
    firing = sum(alert.firing for alert in others)
    lines = [f"alerts: {firing} firing, {len(others) - firing} pending"]
    if not watchdog:
        lines.append("  the rules are not evaluated: HarnessWatchdog is silent (in the first 15 s that is normal)")
    for alert in sorted(others, key=lambda one: (not one.firing, one.name)):
        labels = " ".join(f"{k}={v}" for k, v in sorted(alert.labels.items()) if k not in HIDDEN_LABELS)
        lines.append(f"  {alert.state:8}{alert.labels.get('severity', ''):7}{alert.name}  {labels}")
        lines.append(
            f"          since {alert.since[:19].replace('T', ' ')} UTC  {alert.annotations.get('summary', '')}"
        )
    return lines
