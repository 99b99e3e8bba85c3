"""Every key that a user can set, with its type, default, unit and meaning.

These dataclasses are the single source: Hydra rejects keys that are not here and values of another type. Checks that
need more than one field live in `harness.config.check`. Importing this module costs nothing (no torch, no Hydra).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

UNSET = "???"
"""A value that the user must give, in OmegaConf's notation."""


class ClusterKind(StrEnum):
    """Where the job runs."""

    slurm = "slurm"
    local = "local"


class Precision(StrEnum):
    """Number format of the matrix products; master weights and optimizer state are fp32 in each."""

    bf16 = "bf16"
    fp8 = "fp8"
    fp32 = "fp32"


class Fp8Recipe(StrEnum):
    """How the scales of FP8 matrix products are chosen."""

    tensorwise = "tensorwise"
    rowwise = "rowwise"


class ActivationCheckpoint(StrEnum):
    """What the backward pass recomputes instead of keeping."""

    auto = "auto"
    none = "none"
    selective = "selective"
    full = "full"


class PipelineSchedule(StrEnum):
    """Order of forward and backward passes of the micro batches in a pipeline."""

    one_f_one_b = "1f1b"
    interleaved = "interleaved"


class AttentionKernel(StrEnum):
    """Implementation of attention; `auto` takes the fastest that the GPU and the installed packages have."""

    auto = "auto"
    flash4 = "flash4"
    cudnn = "cudnn"
    flash = "flash"
    sdpa = "sdpa"


class Shuffle(StrEnum):
    """How the windows of a source are shuffled in each epoch."""

    sequences = "sequences"
    blocks = "blocks"


class Packing(StrEnum):
    """How documents are laid into samples."""

    chunk = "chunk"
    best_fit = "best_fit"


class NonFinitePolicy(StrEnum):
    """What happens on a NaN or Inf in loss or gradient norm."""

    skip = "skip"
    stop = "stop"


class StageWhen(StrEnum):
    """When a node copies its data to local disk."""

    before = "before"
    while_training = "while_training"


class MonitorMode(StrEnum):
    """How metrics reach Prometheus."""

    pull = "pull"
    off = "off"


class Decay(StrEnum):
    """Shape of the learning rate on its way down."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


@dataclass
class RunConfig:
    name: str = UNSET
    """Folder name under `runs_dir`. Launching an existing name resumes that run. At most 128 letters, digits and `._-=,`, the
    first a letter, a digit or `_`."""


@dataclass
class ClusterConfig:
    kind: ClusterKind = ClusterKind.local
    """`slurm` submits one multi-node job; `local` runs the same code on this machine."""
    nodes: int = 1
    """Nodes in the job. One Slurm task, the agent, runs on each."""
    gpus_per_node: int = 0
    """GPUs asked for on each node; 0 trains on CPU with gloo."""
    ranks_per_node: int | None = None
    """Trainer processes on each node. null: one per GPU, or one where there is no GPU."""
    cpus_per_node: int | None = None
    """CPU cores of the agent's task, and so of all ranks below it. null: 8 per rank with GPUs, 1 per rank without.
    Too few, and the data loader starves in a way that looks like slow storage."""
    time: str = "24:00:00"
    """Time limit as Slurm writes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    spares: int = 0
    """Reserved for in-allocation spare nodes; must be 0 in this version."""
    exclude: list[str] = field(default_factory=list)
    """Nodes that the job must not use, beside those that the run itself has excluded."""
    sbatch: dict[str, str | None] = field(default_factory=dict)
    """Any other sbatch flag without its dashes: `cluster.sbatch.reservation=smol`. `true` gives the flag alone
    (`cluster.sbatch.exclusive=true`), `false` and null leave it out; anything else stands there as typed."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that run on the batch host before the agents start (module load, ...)."""
    signal_delay_seconds: int = 120
    """How long before the time limit the run saves, stops and requeues. Must exceed one step plus one checkpoint."""
    max_restarts_without_progress: int = 3
    """Restarts in a row without a new checkpoint or finished step, after which the run ends and says why. Bad nodes and
    preemptions do not count."""
    hang_seconds: float = 900.0
    """No sign of progress for this long while training or validating (a step, a validated batch): the agent prints every
    rank's stack, looks again, and restarts the ranks. Waiting for data counts; what `planned_hang_seconds` covers does not."""
    planned_hang_seconds: float = 1800.0
    """The same for what takes long by nature: start-up, restoring, compiling (the first step, the first batch of a
    validation), saving, writing a profile. Each is measured from its own last sign of progress, such as a file checked, a
    tensor read or the next stage of a save. Set it above the longest single write of a checkpoint's file."""


@dataclass
class ModelConfig:
    """A decoder from transformers. Field names are those of its config class."""

    model_type: str = "smollm3"
    """transformers' name of the architecture: smollm3, llama, qwen3, mistral or olmo2 (which has no tensor-parallel plan)."""
    hidden_size: int = UNSET  # type: ignore[assignment]
    intermediate_size: int = UNSET  # type: ignore[assignment]
    num_hidden_layers: int = UNSET  # type: ignore[assignment]
    num_attention_heads: int = UNSET  # type: ignore[assignment]
    num_key_value_heads: int = UNSET  # type: ignore[assignment]
    head_dim: int | None = None
    """null: hidden_size / num_attention_heads."""
    vocab_size: int = UNSET  # type: ignore[assignment]
    max_position_embeddings: int = 4096
    """Longest sequence that the positions are made for; `data.seq_len` may not exceed it."""
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    tie_word_embeddings: bool = True
    no_rope_layer_interval: int = 0
    """Every n-th layer has no rotary positions (NoPE); 0: every layer has them. smollm3 only."""
    no_rope_layers: list[int] | None = None
    """For each layer 1 if it has rotary positions, 0 if not; null: as `no_rope_layer_interval` says. smollm3 only."""
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    """Scaled rotary positions: `rope_type` (linear, dynamic, yarn, longrope, llama3, proportional) and its parameters, as in
    transformers' `rope_parameters`, without `rope_theta`. {}: not scaled."""
    hidden_act: str = "silu"
    """Activation of the gated MLP, by transformers' name."""
    attention_bias: bool = False
    """The projections of attention add a bias. Not in mistral."""
    mlp_bias: bool = False
    """The projections of the MLP add a bias. llama and smollm3 only."""
    sliding_window: int | None = None
    """Tokens that a query sees, itself included, in layers of sliding attention: all layers of mistral, those that
    `layer_types` names of qwen3 and smollm3. null: attention reaches back to the start of the document."""
    layer_types: list[str] | None = None
    """For each layer `full_attention` or `sliding_attention`; null: the same in all. qwen3 and smollm3 only."""
    init_from: str | None = None
    """Folder of a Hugging Face model in safetensors to start from. null: random weights. What its config.json says is taken
    for every key of `model` that you did not set, and refused if it contradicts one that you did. You set a key on the
    command line, in an experiment that names it, or by choosing a group on the command line (`model=NAME`); a group that
    an experiment or the root config chooses only gives defaults. Not needed any more, and free to change, once the run
    has a checkpoint."""
    init_from_changes: list[str] = field(default_factory=list)
    """Keys of `model` in which the run departs from the config.json of `init_from` on purpose, such as [rope_theta] to train
    on with longer sequences. Only keys that leave the weights' shapes as they are."""


@dataclass
class SourceConfig:
    """One data set: a folder (or one file) of datatrove token files."""

    path: str = UNSET
    """Where the run reads it: a folder with `*.ds` files; or, with `data.stage_to`, a URL of one that fsspec lists
    (s3://bucket/folder): a launch needs no copy of it, only a listing and a few small reads per file."""
    replicas: list[str] = field(default_factory=list)
    """Other places with the same files, asked in this order when `path` does not answer: folders, or URLs that fsspec reads
    (s3://bucket/folder). Copy the `.sums` files along: without them only the sizes of what is read there are checked."""
    id: str = ""
    """Where it lives (a hub name, a bucket). Kept in the run's record, never read."""


@dataclass
class StageConfig:
    """A stretch of training with one mixture."""

    name: str = "stage"
    until_step: int | None = None
    """Last step of the stage. null: to the end; only the last stage may say so."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of the samples per source. Sums other than 1 are normalised with a warning."""


@dataclass
class MixtureChange:
    """Other stages from a step on, in a run that has begun."""

    step: int = UNSET  # type: ignore[assignment]
    """First step of the new stages, counted as `until_step` counts."""
    stages: list[StageConfig] = field(default_factory=list)
    """Take the place of all that was to come; their `until_step` counts from the start of the run too."""


@dataclass
class DataConfig:
    seq_len: int = 4096
    """Tokens per sample."""
    seed: int = 0
    """Fixes the order of all samples of the run."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    stages: list[StageConfig] = field(default_factory=list)
    change_at: list[MixtureChange] = field(default_factory=list)
    """Changes of the mixture in a run that has begun: `data.change_at=[{step: 1000, stages: [{weights: {web: 1}}]}]`. What
    came before stays as it was, each source goes on where it stood, and sources may be added. A run that is past `step`
    goes back to its newest checkpoint before it."""
    shuffle: Shuffle = Shuffle.sequences
    """`sequences` draws from the whole source; `blocks` shuffles blocks of neighbouring windows and then the windows within
    a group of blocks, for storage where small reads all over the source are expensive."""
    shuffle_block: int = 256
    """Windows in a block of `shuffle=blocks`."""
    shuffle_group: int = 256
    """Blocks in a group of `shuffle=blocks`. Two neighbours meet in one batch about as often as in a source of this size."""
    packing: Packing = Packing.chunk
    """`chunk` cuts the files every `seq_len` tokens; `best_fit` splits no document that fits a sample, at the price of some
    padding, which does not train but counts in tokens per second. Needs the files' `.ds.index`."""
    packing_cache: str = "${runs_dir}/.packing"
    """Where the tables of `packing=best_fit` go if the token files' folder can't be written. Every node must see it."""
    validation: dict[str, SourceConfig] = field(default_factory=dict)
    """Held-out token files for `train.eval_every`; each contributes in proportion to its size."""
    tokenizer: str | None = None
    """Folder or file of the tokenizer behind the token files. null: taken from the token files where they name one.
    Its size must fit `model.vocab_size`."""
    eos_token_id: int | None = None
    """Token that ends a document. null: taken from the tokenizer."""
    document_mask: bool = True
    """Attention does not cross document boundaries, and positions restart at each."""
    read_ahead_bytes: int = 268435456
    """Memory of each rank for batches read ahead, at 4 bytes a token; at least two must fit."""
    read_threads: int = 4
    """Threads per rank that read. While some wait for slow storage more are added, up to 64 in all."""
    slow_read_seconds: float = 0.25
    """Reads above this count as slow and are logged with file and offset."""
    hedge_seconds: float = 3.0
    """A read that is not back by then is asked of the next replica as well; the first answer is used. From then on the
    ledger calls it a stall."""
    read_timeout_seconds: float = 30.0
    """A read that is not back by then counts as failed and is tried again, by another thread."""
    give_up_seconds: float = 600.0
    """The run ends when a read has not come by then from any place. Keep it below `cluster.hang_seconds`, or the ranks are
    restarted before they can say which file does not answer."""
    verify_reads: bool = True
    """Check what is read against the files' checksums (`X.ds.sums`) where there are some."""
    stage_to: str | None = None
    """Folder on each node's own disk that the token files are copied to, and read from, with their tokenizer and packing
    table. Runs may share it: a copy serves all of them. null: they are read where they are. Held-out files stay where they
    are."""
    stage_when: StageWhen = StageWhen.before
    """`before`: no node starts to train until every node has its copies. `while_training`: training begins at once, files
    are copied in the order in which it will need them, and each is read from its copy as soon as that is complete."""
    stage_keep_free_bytes: int | None = None
    """Space that staging leaves free on that disk; files that do not fit are read where they are. null: 5% of the disk, at
    most 100 GB."""
    stage_threads: int = 8
    """Files that a node copies at once."""
    stage_bytes_per_second: float | None = None
    """Most that one node reads for staging. null: as fast as it goes."""
    stage_from_peers: bool = True
    """Nodes fetch files from each other where another one has them already: each serves its copies, read-only, to whoever
    has the run's token (RUN/peers/token)."""


@dataclass
class ParallelConfig:
    """How the ranks divide the work. The product must equal the number of ranks."""

    dp_replicate: int = 1
    """Replicas of the sharded model: gradients are all-reduced between them."""
    dp_shard: int = -1
    """Ranks that share one copy of weights, gradients and optimizer state (FSDP2). -1: all that is left."""
    tp: int = 1
    """Tensor parallel: ranks that share each layer's matrices. Must divide the key/value heads."""
    cp: int = 1
    """Context parallel: ranks that share each sequence, for sequences too long for one GPU. 2 x cp must divide
    `data.seq_len`."""
    pp: int = 1
    """Pipeline parallel: ranks that share the layers."""
    pp_schedule: PipelineSchedule = PipelineSchedule.one_f_one_b
    """`interleaved` gives each rank several short stages: fewer idle moments, more messages."""
    pp_stages_per_rank: int = 2
    """Stages of each rank in the interleaved schedule."""
    reshard_after_forward: bool | None = None
    """Free each layer's gathered weights after its forward pass and gather them again for the backward pass. null: only
    where keeping them would not fit the GPU."""


@dataclass
class TrainConfig:
    steps: int = UNSET  # type: ignore[assignment]
    """Optimizer steps of the whole run."""
    micro_batch_size: int = 1
    """Sequences in one forward pass of one rank."""
    global_batch_size: int = UNSET  # type: ignore[assignment]
    """Sequences in one optimizer step over all ranks. Gradient accumulation follows from it."""
    seed: int = 0
    """Fixes the initial weights."""
    precision: Precision = Precision.bf16
    fp8_recipe: Fp8Recipe = Fp8Recipe.tensorwise
    """Used with `precision=fp8`. `tensorwise` is the fastest; `rowwise` keeps outliers apart."""
    attention: AttentionKernel = AttentionKernel.auto
    """A kernel that is named but missing falls back to the next one with a message."""
    compile: bool = True
    """torch.compile for each layer. Has no effect on CPU, where compiling costs more than it gains."""
    activation_checkpoint: ActivationCheckpoint = ActivationCheckpoint.auto
    """`selective` keeps the results of every second matrix product and of attention; `full` keeps each layer's input
    alone; `auto` takes the least that fits the GPU by the plan's memory estimate."""
    z_loss: float = 0.0
    """Weight of the mean squared log of the softmax's denominator, which keeps logits from drifting; 1e-5 is usual."""
    stats_every: int = 100
    """Steps between lines of stats.jsonl: norms of gradients and weights by module, and the logits' size. 0: never."""
    spike_sigmas: float = 6.0
    """A step whose loss or gradient norm lies this many standard deviations above the last `spike_window` steps leaves the
    weights as they are. 0: never."""
    spike_window: int = 128
    """Steps that the standard deviation is taken over; no step is skipped before there are that many."""
    skip: list[list[int]] = field(default_factory=list)
    """Ranges [from, to] of batches never to train on, both included; batch n is what step n would have seen without them.
    A run that is past `from` goes back to its newest checkpoint before it."""
    eval_every: int = 0
    """Steps between validations on `data.validation`; 0: never."""
    eval_sequences: int = 256
    """Sequences of each validation, always the same ones."""
    early_stop_evals: int = 0
    """Validations in a row without a new lowest loss after which the run ends; 0: never."""
    deterministic: bool = False
    """Only kernels that give the same bits each time. Slower."""
    nonfinite: NonFinitePolicy = NonFinitePolicy.skip
    """`skip` leaves the weights as they were for that step; `stop` ends the run."""
    max_nonfinite: int = 10
    """Skipped steps in a row after which the run ends all the same; where they were spikes (see `spike_sigmas`), it goes
    on and takes the new level for granted."""
    log_every: int = 1
    """Steps between lines of the log and of metrics.jsonl."""


@dataclass
class OptimConfig:
    name: str = "adamw"
    """adamw, muon or lamb. Muon updates the layers' matrices; embeddings, head and norms go on with AdamW."""
    lr: float = 2e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    """Muon's momentum (Nesterov)."""
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    """Weight decay on the token embeddings too. Norms and biases never decay."""
    clip_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0: never."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay per step (0.999, say); `harness.export --ema`
    writes it. null: none."""


@dataclass
class LrOverride:
    """From `step` on, the peak learning rate is `lr`."""

    step: int = UNSET  # type: ignore[assignment]
    lr: float = UNSET  # type: ignore[assignment]


@dataclass
class ScheduleConfig:
    """Learning rate as a function of the step: linear warm-up, a plateau, a decay."""

    name: str = "wsd"
    """wsd, cosine or linear; decides the defaults in conf/schedule."""
    warmup_steps: int = 0
    decay_steps: int | None = None
    """Length of the decay, which ends with the last step. null: everything after the warm-up."""
    decay: Decay = Decay.linear
    final_lr_ratio: float = 0.0
    """Learning rate of the last step as a share of the peak."""
    overrides: list[LrOverride] = field(default_factory=list)
    """Changes of the peak during the run, by step: `schedule.overrides=[{step: 1000, lr: 1e-4}]`."""


@dataclass
class CheckpointConfig:
    every_steps: int = 1000
    keep: int | None = 3
    """Complete checkpoints to keep; older ones are removed after a newer one is complete, but for the last one before a decay
    (`schedule.decay_steps`): a longer run goes on from there. null: all."""
    async_save: bool = False
    """Typed as `checkpoint.async`. Training goes on while a copy of the state is written."""
    verify: bool = True
    """Check every file's checksum before a checkpoint is loaded (its size is always checked)."""


@dataclass
class MonitorConfig:
    mode: MonitorMode = MonitorMode.pull
    expected_tokens_per_second: float | None = None
    """What the whole run should reach, for alerts and arrival times. null: calibrated by the run after warm-up."""
    host: str | None = None
    """Address that /metrics listens on. null: loopback for `cluster=local`, the node's own address on Slurm."""
    port: int = 0
    """Port of /metrics; 0: any free one. Discovery tells Prometheus which."""
    targets_dir: str = "${runs_dir}/.targets"
    """Shared folder where agents register for discovery. Keep it off the data set's file system."""
    canary_seconds: float = 10.0
    """Seconds between the canary's small timed reads; 0: none."""


@dataclass
class RootConfig:
    """The whole config of one run."""

    exp: str = ""
    """Name of the experiment; set by the files in conf/exp."""
    runs_dir: str = "runs"
    """Folder that holds all runs; on a cluster, on a file system that every node sees."""
    follow: bool = False
    """Stay and print the run's progress until it ends."""
    dry_run: bool = False
    """Print plan and batch script, submit nothing."""
    run: RunConfig = field(default_factory=RunConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
