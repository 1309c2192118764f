"""Which numbers a device computes with."""

from typing import Any

import torch


def emulates(precision: str, device: torch.device) -> bool:
    """Whether a `trainer.precision` is bfloat16, and the device a processor without instructions for it.

    False where torch does not say what the processor has.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has = not capabilities or any(value for name, value in capabilities.items() if "bf16" in name)
    return precision.startswith("bf16") and device.type == "cpu" and not has
