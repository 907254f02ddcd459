"""One model over several processes (FSDP2), of which only the first ever holds the whole of it.

The first process loads the model and sends the others its modules, with buffers and all else, but with
parameters that have no contents. Then the model is gone through in the groups that are sharded: layer by
layer, and last what is around them. Of each group all processes get the contents, do what wants whole
weights, and keep their rows. So none but the first holds more than its rows and one group, nor does a GPU.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from clair_apo.errors import ClairError
from clair_apo.terminal import one_line
from clair_apo.train import attention
from clair_apo.train.kernels.layers import install
from clair_apo.train.split import rows_of

if TYPE_CHECKING:
    from clair_apo.train.kernels.layers.install import Installed, Layers
    from clair_apo.train.launch import Processes
    from clair_apo.train.load import Loaded
    from clair_apo.train.policy import Policy

# --- the modules ---------------------------------------------------------------------------------


def load_once(load: Callable[[], Loaded], processes: Processes) -> Loaded:
    """What `load` gives in the first process; in the others the same without weights."""
    attention.register()

    def send(loaded: Loaded) -> bytes:
        return without_parameters(replace(loaded, low=dict.fromkeys(loaded.low)))

    loaded: Loaded = processes.from_first(load, send, unpickled)
    return loaded


def without_parameters(thing: Any) -> bytes:
    """Pickles it; of each parameter only shape and dtype, and where else it is (tied weights stay tied).

    Raises: ClairError for a model that cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(thing)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ClairError(
            f"this model cannot be sent to other processes ({one_line(str(error), 200)}); --sharding ddp "
            "loads it in each"
        ) from error
    return buffer.getvalue()


def unpickled(data: bytes) -> Any:
    """What `without_parameters` pickled, its parameters on the meta device."""
    return _Unpickler(io.BytesIO(data)).load()


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, nn.Parameter):
            return None
        number = self._numbers.setdefault(id(obj), len(self._numbers))
        return number, tuple(obj.shape), obj.dtype, obj.requires_grad


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self._made: dict[int, nn.Parameter] = {}

    def persistent_load(self, pid: Any) -> Any:
        number, shape, dtype, trained = pid
        if number not in self._made:
            empty = torch.empty(shape, dtype=dtype, device="meta")
            self._made[number] = nn.Parameter(empty, requires_grad=trained)
        return self._made[number]


# --- the weights ---------------------------------------------------------------------------------


def spread(
    policy: Policy, low: Mapping[str, Tensor | None], processes: Processes, layers: Layers | None
) -> tuple[dict[str, Tensor], Installed | None]:
    """Shards the policy over the processes: layer by layer, with the embedding and the head in one group
    around them. Called by all processes at once; the first has the weights, on any device.

    `low`: the low bits of weights by name (`split_weights`), None but in the first process; `layers`: what
    is installed in the model (`install`), if anything. Returns the low bits, sharded as the weights are,
    and what was installed.
    """
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    angles = [module for module in policy.modules() if module._buffers and not list(module.parameters())]
    kept: dict[str, Tensor] = {}
    installed = None if layers is None else install.Installed(layers.name)
    for module, names, parts in list(_groups(policy)):
        _fill(policy, names, processes)
        bits = {name: _received(low[name], policy.get_parameter(name)) for name in names if name in low}
        if installed is not None and layers is not None:
            # With the modules whose buffers are the angles of rotary positions.
            found = install.install(nn.ModuleList([*parts, *angles]), layers, policy.autocast)
            installed.modules += found.modules
            installed.kinds += found.kinds
            installed.left += found.left
        fully_shard(module, mesh=mesh, mp_policy=precision)
        kept |= {name: _own_rows(whole, policy.get_parameter(name), mesh) for name, whole in bits.items()}
    register_fsdp_forward_method(policy, "plain_logps")
    return kept, installed


def _groups(policy: Policy) -> Iterator[tuple[nn.Module, list[str], Sequence[nn.Module]]]:
    """What is sharded as one, in this order: the module, the names of its parameters in the policy (tied
    ones once), and the modules that they belong to."""
    left = [name for name, _ in policy.named_parameters()]
    prefixes = {id(module): name for name, module in policy.named_modules()}
    for layer in policy.layers:
        own = [name for name in left if name.startswith(f"{prefixes[id(layer)]}.")]
        left = [name for name in left if name not in set(own)]
        yield layer, own, [layer]
    yield policy, left, list(_around(policy, {id(layer) for layer in policy.layers}))


def _around(module: nn.Module, layers: set[int]) -> Iterator[nn.Module]:
    """The largest modules without a layer in them."""
    for child in module.children():
        if id(child) in layers:
            continue
        if any(id(inner) in layers for inner in child.modules()):
            yield from _around(child, layers)
        else:
            yield child


def _fill(policy: nn.Module, names: Sequence[str], processes: Processes) -> None:
    """Puts contents into parameters: those that the first process has. In the first, its own memory of
    them is free then, where the device is another."""
    filled: dict[int, nn.Parameter] = {}
    for name in names:
        parameter = policy.get_parameter(name)
        whole = parameter.detach().contiguous() if processes.first else parameter.detach()
        tensor = _everywhere(whole, processes.device)
        filled[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    for module in policy.modules():  # a tied weight is a parameter of several
        for name, own in module._parameters.items():
            if own is not None and id(own) in filled:
                module._parameters[name] = filled[id(own)]


def _received(low: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """The low bits of a parameter, from the first process."""
    if low is None:
        low = torch.empty(parameter.shape, dtype=torch.int16, device="meta")
    return _everywhere(low, parameter.device)


def _everywhere(tensor: Tensor, device: torch.device) -> Tensor:
    """The first process's contents, on `device`; in the others `tensor` says shape and dtype."""
    out = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    dist.broadcast(out.flatten().view(torch.uint8), src=0)  # bytes: not every dtype is sent everywhere
    return out


def _own_rows(whole: Tensor, parameter: nn.Parameter, mesh: DeviceMesh) -> DTensor:
    """`whole` sharded as the parameter of its shape is."""
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        whole[rows_of(parameter, whole.shape[0])].clone(),
        mesh,
        parameter.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )
