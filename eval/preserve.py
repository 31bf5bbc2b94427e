"""Leaving no trace: an evaluation inside training must not change what training does next."""

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator
from functools import partialmethod
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm  # type: ignore[import-untyped]


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch (all devices in use).

    mteb seeds all of them when it is imported, when a task is made and when a metric is computed.
    """
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if on_cuda else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_cpu)
        if on_cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put a module in eval mode without gradients and give every submodule its own mode back afterwards."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        if isinstance(model, torch.nn.Module):
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter from the libraries below: the terminal belongs to the caller.

    Silenced warnings are those that belong to mteb's protocol: its classifiers stop after 100 iterations, and a macro
    average over a class that is never predicted counts as zero.
    """
    import datasets  # a training that does not evaluate begins without it

    bars = datasets.are_progress_bars_disabled()
    level = logging.getLogger("mteb").level
    start = tqdm.__init__
    try:
        datasets.disable_progress_bars()
        logging.getLogger("mteb").setLevel(logging.ERROR)
        tqdm.__init__ = partialmethod(start, disable=True)  # mteb's bitext search offers no switch of its own
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn|mteb")
            yield
    finally:
        tqdm.__init__ = start
        logging.getLogger("mteb").setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
