"""Measure the peak memory of a network's training step, in a process of its own."""

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from umamba.inference.precision import autocast
from umamba.io.resources import peak_resident_bytes
from umamba.records import CheckpointRecord
from umamba.training.activation_checkpointing import checkpoint_stages
from umamba.training.freed_memory import freed_memory_kept
from umamba.training.module import SegmentationModule

_STEPS = 3  # the optimiser allocates its state in the first one


def step_peak(record: CheckpointRecord, checkpointing: bool, copies: int, device: str, precision: str) -> float:
    """Train some steps on random patches in a new process, and return the peak memory in bytes.

    Args:
        record: architecture, plan, labels and recipe; its configuration has the patch and the batch of a step.
        checkpointing: whether activations are computed again in the backward pass.
        copies: of the weights, which are kept beside the network.
        device: cpu or cuda.
        precision: Lightning's name.

    Returns:
        Without a GPU the resident memory of the process, else the memory of its tensors; infinity: it ran out of
        memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(peak_here, record, checkpointing, copies, device, precision).result()
        except (BrokenProcessPool, MemoryError):  # the system ends a process that takes too much
            return math.inf


def peak_here(record: CheckpointRecord, checkpointing: bool, copies: int, device: str, precision: str) -> float:
    """Train some steps in this process; arguments and result are those of `step_peak`."""
    place = torch.device(device)
    try:
        with freed_memory_kept(place.type == "cpu"):
            _train(record, checkpointing, copies, place, precision)
    except torch.OutOfMemoryError:
        return math.inf
    except RuntimeError as error:  # PyTorch's allocator on a CPU
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            return math.inf
        raise
    return float(torch.cuda.max_memory_allocated(place) if place.type == "cuda" else peak_resident_bytes())


def _train(record: CheckpointRecord, checkpointing: bool, copies: int, device: torch.device, precision: str) -> None:
    configuration = record.configuration
    module = SegmentationModule(record).to(device).train()
    if checkpointing:
        checkpoint_stages(module.network)
    kept = [parameter.detach().clone() for parameter in module.parameters() for _ in range(copies)]
    optimizer = module.configure_optimizers()
    clip = module.recipe.gradient_clip_norm
    shape, spatial = (configuration.batch_size, record.num_channels), configuration.patch_size
    values = torch.tensor(record.labels.all_values, device=device)
    for _ in range(_STEPS):
        image = torch.randn(*shape, *spatial, device=device)
        label = values[torch.randint(len(values), (shape[0], 1, *spatial), device=device)]
        with autocast(device, precision):
            loss = module.loss(module(image), label)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    del kept
