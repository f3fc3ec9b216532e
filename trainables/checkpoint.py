"""A trial's checkpoint: everything needed to go on exactly, in one file that is written whole or not at all."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from trainables.files import CHECKPOINT


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators, as types that `weights_only` loading takes."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Sets what `random_state` gave."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seeds all generators, so that a trial does not depend on what ran before it in the same process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_deterministic(deterministic: bool) -> None:
    """Has PyTorch take only operations that give the same numbers each time, for all that follows in this process.

    Where a model needs one that has no such form on a GPU, PyTorch raises RuntimeError and names it.
    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False  # it brings nothing here: `python tests/benchmarks/run.py options`


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes the checkpoint to a partial file first, so that a killed writer leaves the previous one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{CHECKPOINT}.partial"
    torch.save(state, partial)
    os.replace(partial, folder / CHECKPOINT)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last whole checkpoint of a trial, on the CPU (random states must be there), None where there is none."""
    path = folder / CHECKPOINT
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Writes a model's state dict as safetensors, whole or not at all; plain timm loads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    plain = torch.contiguous_format  # cloned, since safetensors refuses tensors that models share between two names
    tensors = {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in model.state_dict().items()}
    save_file(tensors, partial)
    os.replace(partial, path)
