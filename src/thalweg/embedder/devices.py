"""Which devices can be used here, and what helps where one cannot."""

from __future__ import annotations

import torch

from thalweg.errors import InvalidInputError


def check_device(device: str | torch.device) -> torch.device:
    """The device, if tensors can be put there.

    Raises:
        InvalidInputError: torch does not know it or cannot use it here, saying what can be used instead.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise _refusal(device, "it must be cpu, cuda, cuda:N or mps") from error
    if found.type == "meta":
        raise _refusal(device, "it holds no numbers; take cpu, cuda, cuda:N or mps")
    try:
        torch.empty(1, device=found)
    except Exception as error:  # backends that are not installed have their own
        raise _refusal(device, _cure(found, error)) from error
    return found


def _refusal(device: object, why: str) -> InvalidInputError:
    shown = repr(str(device) if isinstance(device, torch.device) else device)
    return InvalidInputError(f"device {shown} cannot be used: {why}")


def _cure(device: torch.device, error: Exception) -> str:
    if device.type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return (
            f"PyTorch {torch.__version__} was built without CUDA; install a build with it, or leave the device out to "
            "run on the CPU"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no GPU; check the driver with nvidia-smi, or leave the device out to run on the CPU"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"PyTorch finds {torch.cuda.device_count()} here, numbered from cuda:0 on"
    if device.type == "mps":
        return "it takes a Mac with Apple silicon; leave the device out to run on the CPU"
    return (str(error).splitlines() or [type(error).__name__])[0]
