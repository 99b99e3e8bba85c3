"""`python -m harness.monitor {up,reap,status}`."""

import argparse
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

DEFAULT_PORT = 9090
MAX_SCRAPE_SECONDS = 15.0
UNAVAILABLE, REFUSED = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(arguments)
    return int(options.function(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.monitor", description="Prometheus beside the runs.")
    commands = parser.add_subparsers(required=True, metavar="{up,reap,status}")

    up = commands.add_parser("up", help="start what is installed of Prometheus, Alertmanager, Grafana; on loopback")
    _add_folders(up)
    up.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="series, logs, rendered config; a local disk (RUNS_DIR/.monitor)"
    )
    up.add_argument(
        "--port",
        type=_port(lowest=0, highest=65532),
        default=DEFAULT_PORT,
        metavar="FIRST",
        help="first of four ports: Prometheus, Grafana, discovery, Alertmanager; 0: any that are free (%(default)s)",
    )
    up.add_argument("--scrape-interval", type=_seconds, default=5.0, metavar="TIME", help="such as 5s or 500ms (5s)")
    up.set_defaults(function=_up)

    reap = commands.add_parser("reap", help="turn the agents' registrations into a file for Prometheus' file_sd")
    _add_folders(reap)
    reap.add_argument(
        "--sd-dir", type=Path, required=True, metavar="DIR", help="local folder; harness.json in it is the list"
    )
    reap.add_argument("--interval", type=_seconds, default=5.0, metavar="TIME", help="between polls (5s)")
    reap.add_argument(
        "--port",
        type=_port(lowest=1, highest=65535),
        default=DEFAULT_PORT + 2,
        help="of its own /metrics on loopback (%(default)s)",
    )
    reap.set_defaults(function=_reap)

    status = commands.add_parser("status", help="nodes up and down, alerts")
    status.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
    status.add_argument("--url", help="a Prometheus that `up` did not start, such as http://prometheus:9090")
    status.set_defaults(function=_status)
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
    parser.add_argument(
        "--targets-dir", type=Path, metavar="DIR", help="where agents register: monitor.targets_dir (RUNS_DIR/.targets)"
    )


def _up(options: argparse.Namespace) -> int:
    from harness.monitor.components import Ports
    from harness.monitor.ports import free_row
    from harness.monitor.up import Options, up

    if options.scrape_interval > MAX_SCRAPE_SECONDS:
        print(
            f"--scrape-interval: at most {MAX_SCRAPE_SECONDS:.0f}s, since the alerts look at one minute",
            file=sys.stderr,
        )
        return REFUSED
    runs_dir = options.runs_dir.absolute()
    return up(
        Options(
            runs_dir=runs_dir,
            targets_dir=(options.targets_dir or runs_dir / ".targets").absolute(),
            data_dir=(options.data_dir or runs_dir / ".monitor").absolute(),
            ports=Ports(options.port or free_row(4)),
            scrape_interval=options.scrape_interval,
        )
    )


def _reap(options: argparse.Namespace) -> int:
    from prometheus_client import start_http_server

    from harness.monitor.ports import LOOPBACK, holder
    from harness.monitor.reaper import Reaper

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    targets_dir = options.targets_dir or options.runs_dir / ".targets"
    try:
        reaper = Reaper(targets_dir, options.sd_dir, interval=options.interval)
    except OSError as error:
        print(f"--sd-dir {options.sd_dir} cannot be used: {error.strerror}", file=sys.stderr)
        return REFUSED
    try:
        server, _ = start_http_server(options.port, LOOPBACK, reaper.metrics.registry)
    except OSError as error:
        owner = holder(options.port)
        print(
            f"port {options.port} on {LOOPBACK}{f', held by {owner}' if owner else ''}: {error.strerror}; "
            "choose another with --port, also in prometheus.yml's job harness-discovery",
            file=sys.stderr,
        )
        return REFUSED
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    logging.info("%s -> %s every %g s", targets_dir, reaper.sd_file, options.interval)
    while True:
        reaper.poll()
        if stop.wait(options.interval):
            break
    server.shutdown()
    return 0


def _status(options: argparse.Namespace) -> int:
    from harness.monitor.client import Prometheus, PrometheusUnavailable, connect
    from harness.monitor.status import render_status

    prometheus = Prometheus(options.url) if options.url else connect(options.runs_dir)
    try:
        print(render_status(prometheus))
    except PrometheusUnavailable as error:
        print(
            f"no Prometheus: {error}\nStart one with `python -m harness.monitor up --runs-dir {options.runs_dir}`, "
            "or name yours with --url.",
            file=sys.stderr,
        )
        return UNAVAILABLE
    return 0


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    seconds = float(match[1]) * (0.001 if match[2] == "ms" else 1.0) if match else 0.0
    if seconds < 0.1:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: a number with s or ms, at least 100ms, such as 5s")
    return seconds


def _port(lowest: int, highest: int) -> Callable[[str], int]:
    """A parser of port numbers in that range."""

    def parse(text: str) -> int:
        if not text.isdigit() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is no port here: {lowest} to {highest}")
        return int(text)

    return parse


if __name__ == "__main__":
    sys.exit(main())
