"""Parameters with the names, shapes and divisions of a small model, without the model."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

VOCAB, HIDDEN, INNER = 14, 6, 10


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HIDDEN, bias=True)
        self.k_norm = nn.RMSNorm(3)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = Mlp()
        self.input_layernorm = nn.RMSNorm(HIDDEN)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.norm = nn.RMSNorm(HIDDEN)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Decoder()
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw) + (parameter.ndim == 1))


def named_parameters(layout: str = "whole") -> dict[str, nn.Parameter]:
    """The same values in every layout: "whole", "fsdp", or all ranks but a factor 2 as "hsdp" or "fsdp x tp"."""
    network = Network()
    if layout != "whole":
        world = torch.distributed.get_world_size()
        shape, names = {
            "fsdp": ((world,), ("shard",)),
            "hsdp": ((2, world // 2), ("replicate", "shard")),
            "fsdp x tp": ((world // 2, 2), ("shard", "tp")),
        }[layout]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        if layout == "fsdp x tp":
            for layer in network.model.layers:
                _divide(layer.mlp.up_proj, mesh["tp"], 0)
                _divide(layer.mlp.down_proj, mesh["tp"], 1)
        for module in (*network.model.layers, network):
            fully_shard(module, mesh=mesh if layout == "hsdp" else mesh["shard"])
    return dict(network.named_parameters())


def set_gradients(parameters: dict[str, nn.Parameter], seed: int, factor: float = 1.0) -> None:
    """The same gradients of whole tensors in every layout."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        gradient = factor * torch.randn(parameter.shape, generator=draw)
        if isinstance(parameter, DTensor):
            whole = DTensor.from_local(gradient, parameter.device_mesh, [Replicate()] * parameter.device_mesh.ndim)
            parameter.grad = whole.redistribute(placements=parameter.placements)
        else:
            parameter.grad = gradient


def numbers(lr: float = 0.01, scale: float = 1.0, skip: float = 0.0) -> tuple[torch.Tensor, ...]:
    """What `Optimizer.step` takes."""
    return tuple(torch.tensor(value, dtype=torch.float32) for value in (lr, scale, skip))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _divide(linear: nn.Linear, mesh: torch.distributed.device_mesh.DeviceMesh, dimension: int) -> None:
    def divide(_: str, module: nn.Module, mesh: torch.distributed.device_mesh.DeviceMesh) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            part = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(dimension)]))
            module.register_parameter(name, part)

    distribute_module(linear, mesh, divide)
