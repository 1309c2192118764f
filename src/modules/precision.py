"""Which numbers a processor computes with."""

from typing import Any

import torch


def emulates(precision: str) -> bool:
    """Whether a `trainer.precision` is bfloat16 and this processor has no instructions for it, as far as torch says."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    known = not capabilities or any(has for name, has in capabilities.items() if "bf16" in name)
    return precision.startswith("bf16") and not known
