"""Chooses the device and the number type of a model in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gems.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["free_memory", "pick_devices", "pick_dtype"]


def pick_devices(names: str | None) -> tuple[str, ...]:
    """The devices with these names, separated by commas; by default every GPU, or else the CPU.

    Raises:
        InputError: A device does not exist.
    """
    import torch

    if names:
        return tuple(_checked(name.strip()) for name in names.split(","))
    if torch.cuda.is_available():
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return ("mps",) if torch.backends.mps.is_available() else ("cpu",)


def _checked(name: str) -> str:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f'unknown device {name!r}; give "cuda", "cuda:1", "mps" or "cpu"') from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name} is not available: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            'choose another, such as "cpu", or install a torch that is built for CUDA'
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError('device mps is not available; choose another, such as "cpu"')
    return name


def pick_dtype(name: str | None, device: str) -> torch.dtype:
    """The number type with this name; by default the fastest that the device supports well.

    GPUs get bfloat16, or float16 if they do not have it. CPUs get float32, since most are slow at anything else.
    """
    import torch

    kind = torch.device(device).type
    if name:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if kind == "cpu":
        return torch.float32
    if kind == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = kind != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def free_memory(device: str) -> int:
    """Free memory of a device in bytes; for a CPU or an Apple GPU, the free memory of the machine."""
    import psutil
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return int(psutil.virtual_memory().available)
