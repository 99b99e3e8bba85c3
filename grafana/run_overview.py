"""The dashboard "Run overview": what an alert links to, and what says in a minute where a run's time goes.

Queries take one run (`$run`) and survive restarts: what describes the run is aggregated over `attempt` and `node`.
"""

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, VariableRefresh, VariableSort

from grafana.panels import SOURCE, Query, Steps, figure, lines
from harness.monitor.panels import GPU_ONLY

UID = "harness-run"
MORE_IS_BAD: Steps = ((None, "green"), (1, "orange"), (3, "red"))
ANY_IS_BAD: Steps = ((None, "green"), (1, "red"))
SHARE_OF_EXPECTED: Steps = ((None, "red"), (0.8, "orange"), (0.95, "green"))


def build() -> dashboards.Dashboard:
    """The dashboard's builder, without annotations (`annotations()` has those)."""
    board = (
        dashboards.Dashboard("Run overview")
        .uid(UID)
        .description("One training run: is it as fast as it should be, and if not, where does the time go?")
        .tags(["harness", "training"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboards.DatasourceVariable("datasource").type("prometheus").label("Data source"))
        .with_variable(
            dashboards.QueryVariable("run")
            .label("Run")
            .datasource(SOURCE)
            .query('label_values(up{job="harness"}, run)')
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
        )
    )
    for add in (_headline, _training, _time, _reads, _copies, _nodes, _gpus, _checkpoints):
        add(board)
    return board


def annotations() -> list[dict[str, object]]:
    """Marks on every panel. As JSON, since the builders lack what Prometheus annotations need."""
    common: dict[str, object] = {"datasource": {"type": "prometheus", "uid": "${datasource}"}, "enable": True}
    return [
        {
            **common,
            "name": "Attempts",
            "iconColor": "blue",
            "expr": 'min by (attempt) (harness_attempt_start_timestamp_seconds{run="$run"}) * 1000',
            "useValueForTime": True,
            "step": "60s",
            "titleFormat": "Attempt {{attempt}} starts",
        },
        {
            **common,
            "name": "Restarts inside an attempt",
            "iconColor": "purple",
            "expr": 'sum by (reason) (increase(harness_restarts_total{run="$run"}[30s])) > 0',
            "step": "15s",
            "titleFormat": "Ranks restarted: {{reason}}",
        },
        {
            **common,
            "name": "Alerts",
            "iconColor": "red",
            "expr": 'ALERTS{run="$run", alertstate="firing"}',
            "step": "15s",
            "titleFormat": "{{alertname}}",
            "textFormat": "{{cause}} {{node}} {{mount}}",
        },
    ]


def _headline(board: dashboards.Dashboard) -> None:
    board.with_row(dashboards.Row("Now"))
    board.with_panel(
        figure("Step", 'max(harness_train_step{run="$run"})', "Global step; goes on across restarts. It rises.")
    )
    board.with_panel(
        figure(
            "Tokens/s",
            'sum(rate(harness_train_tokens_total{run="$run"}[1m]))',
            "Tokens per second of the whole run over the last minute. Steady.",
            decimals=0,
        )
    )
    board.with_panel(
        figure(
            "Of expected",
            'sum(rate(harness_train_tokens_total{run="$run"}[1m]))'
            ' / max(harness_train_expected_tokens_per_second{run="$run"})',
            "The last minute's tokens/s over what this run should reach: 95% and more. Under 80% an alert fires.",
            unit="percentunit",
            decimals=0,
            steps=SHARE_OF_EXPECTED,
        )
    )
    board.with_panel(
        figure("Loss", 'max(harness_train_loss{run="$run"})', "Training loss of the last step. It falls.", decimals=3)
    )
    board.with_panel(
        figure(
            "MFU",
            'max(harness_train_model_flops_utilization_ratio{run="$run"})',
            f"{GPU_ONLY} Model FLOPs utilization: 40-55% is good for bf16. Absent for a GPU whose peak is not known.",
            unit="percentunit",
            decimals=1,
        )
    )
    board.with_panel(
        figure(
            "Last checkpoint",
            'time() - max(harness_ckpt_last_success_timestamp_seconds{run="$run"})',
            "Age of the newest complete checkpoint: all work since then would be lost now. Under the save interval.",
            unit="s",
            decimals=0,
        )
    )
    board.with_panel(
        figure(
            "Restarts",
            'sum(max by (reason) (harness_restarts_total{run="$run"}))',
            "Restarts since the run began. None, or a few in a long run on many nodes.",
            decimals=0,
            steps=MORE_IS_BAD,
        )
    )
    board.with_panel(
        figure(
            "Alerts",
            'count(ALERTS{run="$run", alertstate="firing"}) or vector(0)',
            "Firing alerts of this run. None.",
            decimals=0,
            steps=ANY_IS_BAD,
        )
    )


def _training(board: dashboards.Dashboard) -> None:
    board.with_row(dashboards.Row("Training"))
    board.with_panel(
        lines(
            "Tokens per second",
            [
                Query('sum(rate(harness_train_tokens_total{run="$run"}[$__rate_interval]))', "trained"),
                Query('max(harness_train_expected_tokens_per_second{run="$run"})', "expected", dashed=True),
            ],
            "A flat line at the expected rate. A sawtooth is checkpoints or garbage collection; a step down that stays "
            "is storage, a slow node or the network: see the next row.",
        )
    )
    board.with_panel(
        lines(
            "Loss",
            [Query('max(harness_train_loss{run="$run"})', "loss")],
            "Falls fast, then slowly, with small noise. A spike that does not come back within some hundred steps "
            "wants a rewind; a kink where the learning rate turns is expected.",
            lowest=None,
        )
    )
    board.with_panel(
        lines(
            "Gradient norm",
            [Query('max(harness_train_grad_norm{run="$run"})', "before clipping")],
            "Settles below the clipping norm. Rising for long is the first sign of divergence.",
            columns=8,
        )
    )
    board.with_panel(
        lines(
            "Learning rate",
            [Query('max(harness_train_learning_rate{run="$run"})', "learning rate")],
            "Follows the schedule, also across restarts: a jump at a restart is a resume gone wrong.",
            unit="sci",
            columns=8,
        )
    )
    step = 'sum by (le) (rate(harness_train_step_seconds_bucket{run="$run"}[$__rate_interval]))'
    board.with_panel(
        lines(
            "Step time",
            [
                Query(f"histogram_quantile(0.5, {step})", "median"),
                Query(f"histogram_quantile(0.99, {step})", "99th percentile"),
                Query('max(harness_train_expected_step_seconds{run="$run"})', "expected", dashed=True),
            ],
            "Median and tail near the expected time. A healthy median with a long tail still loses time: most steps are "
            "fine, some wait.",
            unit="s",
            columns=8,
        )
    )


def _time(board: dashboards.Dashboard) -> None:
    board.with_row(dashboards.Row("Where time goes"))
    phase = 'rate(harness_train_phase_seconds_total{run="$run"%s}[$__rate_interval])'
    board.with_panel(
        lines(
            "Share of wall time by phase",
            [Query(f"avg by (phase) ({phase % ''})", "{{phase}}")],
            "Nearly all is forward_backward and optimizer. data_wait: storage or loader. comm_wait: a slow rank or the "
            "network. checkpoint: saving blocks training.",
            unit="percentunit",
            stacked=True,
        )
    )
    data_wait = phase % ', phase="data_wait"'
    board.with_panel(
        lines(
            "Data wait by node",
            [Query(f"max by (node) ({data_wait})", "{{node}}")],
            "Near zero on every node. One node alone: its disk, mount or CPU binding. All: shared storage or the loader.",
            unit="percentunit",
            columns=6,
        )
    )
    wait = 'rate(harness_train_rank_comm_wait_seconds_total{run="$run"}[$__rate_interval])'
    board.with_panel(
        lines(
            "Communication wait by rank",
            [Query(f"max by (node, rank) ({wait})", "{{node}} rank {{rank}}")],
            "Alike on all ranks. The straggler is the one that waits LEAST while the others wait for it.",
            unit="percentunit",
            columns=6,
        )
    )


def _reads(board: dashboards.Dashboard) -> None:
    board.with_row(dashboards.Row("Data"))
    bucket = 'sum by (le, mount) (rate(harness_data_read_seconds_bucket{run="$run"}[$__rate_interval]))'
    board.with_panel(
        lines(
            "Read latency",
            [
                Query(f"histogram_quantile(0.5, {bucket})", "{{mount}} median"),
                Query(f"histogram_quantile(0.99, {bucket})", "{{mount}} 99th percentile"),
            ],
            "Single milliseconds, 99th percentile under 50 ms. Timed where the data is needed: it sees every kind of "
            "storage trouble, and I/O wait or disk counters do not.",
            unit="s",
            columns=8,
            logarithmic=True,
        )
    )
    board.with_panel(
        lines(
            "Canary reads",
            [Query('max by (mount, kind) (harness_canary_read_seconds{run="$run"})', "{{mount}} {{kind}}")],
            "The slowest node's. hot: a small file, past the page cache. cold: a random place in the data set. Hot fast "
            "and cold slow: the storage has evicted the data. Both slow: the storage itself.",
            unit="s",
            columns=8,
            logarithmic=True,
        )
    )
    board.with_panel(
        lines(
            "Oldest read in flight",
            [
                Query(
                    'max by (node, mount) (harness_data_read_oldest_inflight_seconds{run="$run"})', "{{node}} {{mount}}"
                )
            ],
            "Near zero. A read that never returns shows here and nowhere else; over 30 s an alert fires.",
            unit="s",
            columns=8,
        )
    )
    board.with_panel(
        lines(
            "Read rate",
            [Query('sum by (mount) (rate(harness_data_read_bytes_total{run="$run"}[$__rate_interval]))', "{{mount}}")],
            "Small and steady: training needs latency, not bandwidth.",
            unit="Bps",
            columns=8,
        )
    )
    board.with_panel(
        lines(
            "Batches read ahead",
            [Query('min by (node) (harness_data_queue_batches{run="$run"})', "{{node}}")],
            "As many as data.read_ahead_bytes holds. At zero the ranks wait for data.",
            columns=8,
        )
    )
    board.with_panel(
        lines(
            "Slow reads by source",
            [
                Query(
                    'sum by (source) (rate(harness_data_slow_reads_total{run="$run"}[$__rate_interval]))', "{{source}}"
                )
            ],
            "Reads over the slow limit (0.25 s) per second. None; otherwise the sources whose shards are cold.",
            unit="reqps",
            columns=8,
        )
    )


def _copies(board: dashboards.Dashboard) -> None:
    """Where the data lies, in the row that `_reads` has begun."""
    board.with_panel(
        lines(
            "Share of the data that is local",
            [Query('min by (mount, source) (harness_data_resident_ratio{run="$run"})', "{{mount}} {{source}}")],
            "100%: what the file system holds itself. Falling: it moves shards to a slower tier, and reads of them will be slow.",
            unit="percentunit",
            highest=1.0,
        )
    )
    board.with_panel(
        lines(
            "Data staged on the nodes",
            [Query('harness_stage_ready_ratio{run="$run"}', "{{node}}")],
            "Rises to 100% on every node, where data.stage_to is set. One that stays below has no room or can't read a file: "
            "the ledger says which.",
            unit="percentunit",
            highest=1.0,
        )
    )


def _nodes(board: dashboards.Dashboard) -> None:
    board.with_row(dashboards.Row("Nodes"))
    board.with_panel(
        lines(
            "Nodes that answer",
            [
                Query('sum(up{job="harness", run="$run"})', "up"),
                Query('count(up{job="harness", run="$run"})', "registered", dashed=True),
            ],
            "All registered nodes are up. A dead one stays registered for a minute.",
            columns=6,
        )
    )
    board.with_panel(
        lines(
            "Agent CPU",
            [Query('max by (node) (rate(harness_agent_cpu_seconds_total{run="$run"}[$__rate_interval]))', "{{node}}")],
            "What watching costs, in cores: under 1% of one.",
            unit="percentunit",
            columns=6,
        )
    )
    board.with_panel(
        lines(
            "Agent memory",
            [Query('max by (node) (harness_agent_resident_bytes{run="$run"})', "{{node}}")],
            "Resident memory of the agent. Flat.",
            unit="bytes",
            columns=6,
        )
    )
    board.with_panel(
        lines(
            "Free space",
            [Query('min by (node, mount) (harness_node_filesystem_avail_bytes{run="$run"})', "{{node}} {{mount}}")],
            "Room for several checkpoints. Under 5 GB an alert fires.",
            unit="bytes",
            columns=6,
        )
    )


def _gpus(board: dashboards.Dashboard) -> None:
    board.with_row(dashboards.Row("GPUs"))
    legend = "{{node}} GPU {{gpu}}"
    for title, expr, unit, good in (
        (
            "GPU utilization",
            'max by (node, gpu) (harness_gpu_utilization_ratio{run="$run"})',
            "percentunit",
            "Near 100% on all GPUs. It says that kernels run, not that they are fast: MFU says that.",
        ),
        (
            "Temperature",
            'max by (node, gpu) (harness_gpu_temperature_celsius{run="$run"})',
            "celsius",
            "Alike on all GPUs and steady. One that stands out will throttle first.",
        ),
        (
            "Power",
            'max by (node, gpu) (harness_gpu_power_watts{run="$run"})',
            "watt",
            "Alike on all GPUs. One that draws less does less, or waits.",
        ),
        (
            "SM clock of its maximum",
            'min by (node, gpu) (harness_gpu_sm_clock_hertz{run="$run"} / harness_gpu_sm_clock_max_hertz{run="$run"})',
            "percentunit",
            "Alike on all GPUs. One well below the others slows the whole run.",
        ),
    ):
        board.with_panel(lines(title, [Query(expr, legend)], f"{GPU_ONLY} {good}", unit=unit, columns=6))
    throttle = 'rate(harness_gpu_throttle_seconds_total{run="$run"}[$__rate_interval])'
    board.with_panel(
        lines(
            "Throttled time",
            [Query(f"sum by (node, gpu, reason) ({throttle})", legend + " {{reason}}")],
            f"{GPU_ONLY} Zero, but for power_cap, which is normal at full load. thermal_* and hw_slowdown: cooling. "
            "power_brake: the power supply.",
            unit="percentunit",
        )
    )
    board.with_panel(
        lines(
            "GPU memory in use",
            [Query('max by (node, gpu) (harness_gpu_memory_used_bytes{run="$run"})', legend)],
            f"{GPU_ONLY} Flat after the first steps. Growth ends in an out-of-memory error.",
            unit="bytes",
        )
    )


def _checkpoints(board: dashboards.Dashboard) -> None:
    board.with_row(dashboards.Row("Checkpoints and restarts"))
    saved = 'sum by (stage) (harness_ckpt_save_seconds_%s{run="$run"})'
    board.with_panel(
        lines(
            "Mean time to save, by stage",
            [Query(f"{saved % 'sum'} / ({saved % 'count'} > 0)", "{{stage}}")],
            "stage is what training waits for in an asynchronous save; write and commit then happen beside it. Flat.",
            unit="s",
            columns=6,
        )
    )
    board.with_panel(
        lines(
            "Steps at risk",
            [
                Query('max(harness_train_step{run="$run"})', "current step"),
                Query('max(harness_ckpt_last_success_step{run="$run"})', "newest checkpoint"),
            ],
            "The staircase of checkpoints follows the steps closely; the gap is what a failure costs.",
            columns=6,
            lowest=None,
        )
    )
    board.with_panel(
        lines(
            "Failed saves",
            [Query('sum by (node) (harness_ckpt_failures_total{run="$run"})', "{{node}}")],
            "None in this attempt.",
            columns=6,
        )
    )
    board.with_panel(
        lines(
            "Restarts by reason",
            [Query('max by (reason) (harness_restarts_total{run="$run"})', "{{reason}}")],
            "Flat lines. A rising staircase of one reason names what to mend.",
            columns=6,
        )
    )
