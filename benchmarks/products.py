"""How fast the matrix products of a step can be on this GPU, when it has been busy for a while: `python -m benchmarks.products`

Takes the products of a model in bf16 in turns, forward and backward, random values, for as long as it takes a GPU to come to
the clock that its power allows. With clock and power as they were: the floor under the step's time, whatever else it does.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpus import Gpus, NoGpus, Sampling, visible
from benchmarks.kernels import SEQ
from benchmarks.throughput.settings import shape_config
from harness.config.schema import ModelConfig
from harness.model.family import head_dim

TURN_SECONDS = 0.2
ROUNDS = 5
"""The first of which does not count."""
SAMPLE_SECONDS = 0.25


@dataclass(frozen=True)
class Product:
    """One of a step's products."""

    name: str
    flops: int
    calls: int
    """In a step."""
    run: Callable[[], Any]


def products(model: ModelConfig, tokens: int) -> Iterator[Product]:
    """A linear layer's three, for every kind of layer: outputs, gradients of inputs, gradients of weights."""
    hidden, heads = model.hidden_size, head_dim(model)
    queries = (model.num_attention_heads + 2 * model.num_key_value_heads) * heads
    layers = model.num_hidden_layers
    for name, columns, rows, calls in (
        ("queries, keys and values", hidden, queries, layers),
        ("attention's output", model.num_attention_heads * heads, hidden, layers),
        ("gate, up", hidden, model.intermediate_size, 2 * layers),
        ("down", model.intermediate_size, hidden, layers),
    ):
        x, weight, gradient = (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16)
            for shape in ((tokens, columns), (rows, columns), (tokens, rows))
        )
        flops = 2 * tokens * rows * columns
        yield Product(f"{name}: output", flops, calls, partial(torch.mm, x, weight.T, out=gradient.clone()))
        yield Product(f"{name}: gradient of input", flops, calls, partial(torch.mm, gradient, weight, out=x.clone()))
        yield Product(f"{name}: gradient of weight", flops, calls, partial(torch.mm, gradient.T, x, out=weight.clone()))


def rate(product: Product) -> float:
    """FLOP/s over a turn."""
    repeats = max(3, int(TURN_SECONDS * 7e14 / product.flops))
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    product.run()
    begin.record()
    for _ in range(repeats):
        product.run()
    end.record()
    end.synchronize()
    return product.flops * repeats / begin.elapsed_time(end) * 1000


class Clock(Sampling):
    """Clock and power of the GPU."""

    def __init__(self, gpus: Gpus) -> None:
        super().__init__(SAMPLE_SECONDS)
        self._gpus = gpus
        self.megahertz: list[int] = []
        self.watts: list[float] = []

    def look(self) -> None:
        megahertz, watts = self._gpus.clock()
        self.megahertz.append(megahertz)
        self.watts.append(watts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.products", description=__doc__)
    parser.add_argument("--shape", default="smollm3_3b", help="model in conf/model (default smollm3_3b)")
    parser.add_argument("--micro-batch", type=int, default=4, help=f"sequences of {SEQ} tokens (default 4)")
    options = parser.parse_args()
    try:
        gpus = Gpus(visible(1))
    except NoGpus as error:
        print(error, file=sys.stderr)
        return 2
    all_products = list(products(shape_config(options.shape), options.micro_batch * SEQ))
    rates: dict[str, list[float]] = {product.name: [] for product in all_products}
    for number in range(ROUNDS):
        with Clock(gpus) as clock:
            for product in random.sample(all_products, len(all_products)):
                rates[product.name].append(rate(product))
        if number == ROUNDS - 1:
            print(
                f"    {torch.cuda.get_device_name()}, torch {torch.__version__}; {options.shape}, micro batch "
                f"{options.micro_batch}; {statistics.median(clock.megahertz):.0f} MHz, "
                f"{statistics.median(clock.watts):.0f} W\n"
            )
    print("| product | calls a step | TFLOP/s | ms a step |\n|---|---|---|---|")
    flops = seconds = 0.0
    for product in all_products:
        median = statistics.median(rates[product.name][1:])
        took = product.calls * product.flops / median
        flops, seconds = flops + product.calls * product.flops, seconds + took
        print(f"| {product.name} | {product.calls} | {median / 1e12:.0f} | {1000 * took:.1f} |")
    print(f"| all | | {flops / seconds / 1e12:.0f} | {1000 * seconds:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
