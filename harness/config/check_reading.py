"""What is wrong with the settings for reading the data."""

from collections.abc import Iterator

from harness.config.check_parallel import check_parallel
from harness.config.layout import layout
from harness.config.schema import RootConfig
from harness.data.read_settings import ReadSettings


def check_reading(config: RootConfig) -> Iterator[str]:
    """One sentence for each problem; the memory for batches is looked at where the layout is sound."""
    data = config.data
    settings = ReadSettings.of(data, data.sources)
    yield from settings.problems()
    for group, sources in (("sources", data.sources), ("validation", data.validation)):
        for name, source in sources.items():
            if source.path in source.replicas:
                yield f"data.{group}.{name}.replicas names data.{group}.{name}.path={source.path} itself: name other places"
    samples = config.train.micro_batch_size
    if not list(check_parallel(config)):
        samples *= layout(config).accumulation_steps
    if samples > 0 and data.seq_len > 0:
        try:
            settings.batches(samples, data.seq_len)
        except ValueError as error:
            yield str(error)
