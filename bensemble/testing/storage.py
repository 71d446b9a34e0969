"""Contracts about the layer as a module: conversion, copies, checkpoints, dtypes, hooks, leaving randomness alone."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.testing import assert_close

from ..noise.stack import sampling
from .case import Case, require, require_equal, require_same_state, seeded, to_bayesian, to_plain

__all__ = ["CONTRACTS"]


def round_trip(case: Case) -> None:
    """Back to the deterministic type nothing has changed, and from there to Bayesian again neither."""
    layer, twin = case.pair()
    if twin is None:
        return
    back = to_plain(layer)
    require(type(back) is type(twin), f"the way back gives a {type(back).__name__}, not a {type(twin).__name__}")
    require_same_state(back, twin)
    require(repr(back) == repr(twin), f"the way back gives {back!r}, not {twin!r}")
    x = case.make_input()
    with seeded(0):
        expected = twin.train()(x)
    with seeded(0):
        require_equal(back.train()(x), expected, "outputs before and after the round trip")
    require_equal(to_bayesian(back).eval()(x), twin.eval()(x), "outputs before and after the second conversion")


def copies(case: Case) -> None:
    """state_dict, pickle and deepcopy carry the whole layer, masks included, also when taken inside ``sampling``."""
    layer, fresh, x = case.layer(), case.layer(), case.make_input()
    for posterior in layer.posteriors():
        posterior.set_mask((torch.rand_like(posterior.mu) < 0.5).float())
    fresh.load_state_dict(layer.state_dict())
    others = {"state_dict": fresh, "deepcopy": copy.deepcopy(layer), "pickle": pickle.loads(pickle.dumps(layer))}
    with sampling(layer):
        others["deepcopy inside sampling"] = inside = copy.deepcopy(layer)
        others["pickle inside sampling"] = pickle.loads(pickle.dumps(layer))
        require_equal(inside.eval()(x), copy.deepcopy(fresh).eval()(x), "outputs of a copy inside sampling")
    for name, other in others.items():
        require(type(other) is type(layer), f"{name} gives a {type(other).__name__}")
        require_same_state(other, layer)
        require_equal(other.eval()(x), copy.deepcopy(layer).eval()(x), f"outputs before and after {name}")
        assert_close(other.kl_divergence(), layer.kl_divergence())
        with seeded(0):
            expected = layer(x)
        with seeded(0):
            require_equal(other.train()(x), expected, f"training forwards before and after {name}")


def checkpoint(case: Case) -> None:
    """A deterministic checkpoint loads with strict=True and one warning; the means are replaced, the sigmas kept."""
    layer, twin = case.pair()
    if twin is None:
        return
    sigmas = {posterior.name: posterior.sigma().detach().clone() for posterior in layer.posteriors()}
    state = {key: torch.randn_like(value) for key, value in twin.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer.load_state_dict(state)
    require(len(caught) == 1, f"loading a deterministic checkpoint gives {len(caught)} warnings, not one")
    for posterior in layer.posteriors():
        require_equal(posterior.mu, state[posterior.name], f"the loaded {posterior.name} and the mean")
        require_equal(posterior.sigma(), sigmas[posterior.name], f"sigmas of {posterior.name} before and after loading")


def dtypes(case: Case) -> None:
    """Outputs have the dtype of the weights; rho has float32, or float64 for float64, and moves under Adam."""
    for dtype in case.dtypes:
        layer, x = case.layer().to(dtype), case.make_input().to(dtype)
        precise = torch.float64 if dtype is torch.float64 else torch.float32
        # Adam's second moments and its epsilon vanish in float16, so the means are left out.
        optimizer = torch.optim.Adam([posterior.rho for posterior in layer.posteriors()], lr=1e-3)
        before = {posterior.name: posterior.rho.detach().clone() for posterior in layer.posteriors()}
        outputs = {"train()": layer(x)}
        (outputs["train()"].to(precise).square().mean() + layer.kl_divergence()).backward()
        optimizer.step()
        with sampling(layer):
            outputs["sampling"] = layer(x)
        outputs["eval()"] = layer.eval()(x)
        for state, y in outputs.items():
            require(y.dtype is dtype, f"outputs in {state} are {y.dtype} in a layer of {dtype}")
            require(bool(y.isfinite().all()), f"outputs in {state} and {dtype} are not finite")
        for posterior in layer.posteriors():
            name, rho = posterior.name, posterior.rho
            require(posterior.mu.dtype is dtype, f"mu of {name} is {posterior.mu.dtype} in a layer of {dtype}")
            require(rho.dtype is precise, f"rho of {name} is {rho.dtype} in a layer of {dtype}, not {precise}")
            moved = bool(((rho - before[name]).abs() > 5e-4).all())  # Adam's first step is its learning rate
            require(moved, f"rho of {name} does not move under Adam in {dtype}")


def hooks(case: Case) -> None:
    """Forward hooks, pre-hooks and backward hooks run in each of the three states."""
    layer, x = case.layer(), case.make_input().requires_grad_()
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    for state in ("train()", "sampling", "eval()"):
        seen.clear()
        with sampling(layer) if state == "sampling" else nullcontext():
            layer.train(state == "train()")(x).sum().backward()
        require(seen == ["pre", "forward", "backward"], f"hooks that ran in {state}: {', '.join(seen) or 'none'}")


def quiet(case: Case) -> None:
    """Looking at a layer in training mode never moves torch's random generator."""
    layer, twin = case.pair()
    looks: dict[str, Callable[[], Any]] = {
        "repr": lambda: repr(layer),
        "state_dict": layer.state_dict,
        "deepcopy": lambda: copy.deepcopy(layer),
        "pickle": lambda: pickle.dumps(layer),
        "get_pruning_masks": layer.get_pruning_masks,
    }
    for posterior in layer.posteriors() if twin is not None else ():
        looks[f"reading the shape and dtype of {posterior.name}"] = partial(_metadata, layer, posterior.name)
    for what, look in looks.items():
        before = torch.get_rng_state()
        look()
        require_equal(torch.get_rng_state(), before, f"states of the random generator around {what}")


def _metadata(layer: nn.Module, name: str) -> tuple[Any, ...]:
    weight = getattr(layer, name)
    return weight.dtype, weight.shape, weight.stride(), weight.device, weight.requires_grad


CONTRACTS: dict[str, Callable[[Case], None]] = {
    "round trip": round_trip,
    "copies": copies,
    "checkpoint": checkpoint,
    "dtypes": dtypes,
    "hooks": hooks,
    "quiet": quiet,
}
