"""The README of an exported model: where it comes from."""

from harness import __version__
from harness.checkpoint.manifest import Manifest
from harness.config.schema import RootConfig
from harness.launch.record import config_hash
from harness.run.folder import RunFolder, config_as_dict
from harness.text import count_text

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---
# {name}, step {step:,}

A {model_type} language model of {parameters} parameters.

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH OF THIS FOLDER")
```
"""


def model_card(
    run: RunFolder, config: RootConfig, manifest: Manifest, *, parameters: int, dtype: str, ema: bool
) -> str:
    """Markdown that names the run, its step, tokens and config."""
    record = run.record()
    weights = f"moving average with optim.ema_decay={config.optim.ema_decay}" if ema else "as trained"
    facts = {
        "run": record.get("run_id", run.name),
        "step": f"{manifest.step:,} of {config.train.steps:,}",
        "tokens": f"{manifest.tokens:,}",
        "sequence length": f"{config.data.seq_len:,}",
        "data": ", ".join(source.id or name for name, source in config.data.sources.items()),
        "weights": f"{weights}, {dtype}",
        "config hash": config_hash(config_as_dict(config)),
        "code": f"harness {__version__}, commit {record.get('git_commit', 'unknown')}",
        "torch": manifest.torch,
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return _CARD.format(
        name=run.name,
        step=manifest.step,
        model_type=config.model.model_type,
        parameters=count_text(parameters),
        rows=rows,
    )
