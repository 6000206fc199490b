"""Count copies to a device and waits for it, on the meta device if there is no other."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = ("_to_copy", "copy_", "to")  # the last one in inference mode
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal")
"""Operations whose result the host needs, so that it waits for the device."""


class DeviceTraffic(TorchDispatchMode):
    """uploads: copies from the CPU to another device. waits: operations that make the host wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.uploads = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        on_device = bool(tensors) and tensors[0].device.type != "cpu"
        if name in COPIES:
            source = tensors[-1].device.type
            self.uploads += source == "cpu" and result.device.type != "cpu"
            self.waits += source != "cpu" and result.device.type == "cpu"
        elif on_device and name in WAITS:
            self.waits += 1
        return result
