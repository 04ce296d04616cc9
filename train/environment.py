"""What a run runs on."""

import platform
from importlib.metadata import version

import torch


def environment() -> dict[str, str]:
    """Versions, platform and device, as tags of a run."""
    versions = {f"env.{name}": version(name) for name in ("torch", "deepspeed", "timm", "mlflow")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return versions | {
        "env.python": platform.python_version(), "env.platform": platform.platform(), "env.device": device
    }  # fmt: skip
