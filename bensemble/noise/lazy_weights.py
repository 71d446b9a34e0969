"""What reading ``layer.weight`` gives when it is not the mean: a read-only tensor that is computed on first use.

Real code reads weights for their dtype or device alone in every forward, so a read must not cost a draw. A
``WeightDraw`` knows shape, strides, dtype and device at once and makes its value when an operation needs it.

It is a wrapper tensor without storage. Autograd sees it as the output of :class:`_Reparameterize`, so gradients
reach mu and rho through any operation, custom autograd functions included; below autograd every operation is sent
here and runs on the value. Writing into it raises, because the write would be lost with the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ReadOnlyError, SamplingError
from ..gaussian import precise, tracing
from ..posterior import Posterior
from ..torch_internals import NO_TORCH_FUNCTION, argument_schema, pytree, version, wrapper_tensor

__all__ = ["WeightDraw", "random_draw", "read_only"]


class _Draw:
    """The value behind a ``WeightDraw``, made once and on demand, with the noise that made it."""

    def __init__(self, posterior: Posterior, make: Callable[[], tuple[Tensor, Tensor | None]]) -> None:
        self.posterior = posterior
        self.mu = posterior.mu  # what the layer held at the time of the read; functional_call swaps it
        self._make: Callable[[], tuple[Tensor, Tensor | None]] | None = make
        self._value: Tensor | None = None
        self.noise: Tensor | None = None

    def value(self) -> Tensor:
        if self._value is None:
            assert self._make is not None
            with torch.no_grad():
                self._value, self.noise = self._make()
            self._make = None
        return self._value


class WeightDraw(torch.Tensor):
    """A posterior weight as an operation sees it: read-only, computed on first use, differentiable."""

    _draw: _Draw
    __torch_function__ = NO_TORCH_FUNCTION

    @classmethod
    def wrap(cls, like: Tensor, draw: _Draw) -> WeightDraw:
        """A wrapper with the metadata of ``like`` around the value of ``draw``."""
        wrapper: WeightDraw = wrapper_tensor(cls, like)
        wrapper._draw = draw
        return wrapper

    @property
    def source(self) -> _Draw:
        """Where the value comes from: the posterior and the mean it was read with."""
        return self._draw

    @property
    def data(self) -> Tensor:
        """The same draw without gradients, read-only as well: a write would be lost with the draw."""
        return WeightDraw.wrap(self, self._draw)

    @data.setter
    def data(self, value: Tensor) -> None:
        raise ReadOnlyError(_read_only_message(self, "data"))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation on the values; refuse writes; keep views of a draw read-only as well."""
        kwargs = kwargs or {}
        schema = argument_schema(func)
        if schema.is_mutable:
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, WeightDraw):
                    raise ReadOnlyError(_read_only_message(value, schema.name.removeprefix("aten::")))
            if isinstance(kwargs.get("out"), WeightDraw):
                raise ReadOnlyError(_read_only_message(kwargs["out"], "out="))
        plain_args, plain_kwargs = pytree.tree_map(_value_of, (args, kwargs))
        result = func(*plain_args, **plain_kwargs)
        if any(r.alias_info is not None for r in schema.returns):
            viewed = next((a for a in args if isinstance(a, WeightDraw)), None)
            if viewed is not None and not schema.is_mutable:
                return pytree.tree_map_only(torch.Tensor, lambda view: _view_of(viewed, view), result)
        return result

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightDraw({self._draw.value()!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._draw.value().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self._draw.value().clone()

    def tolist(self) -> Any:
        """The value as nested lists."""
        return self._draw.value().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """The value as an array, by the rules of ``torch.Tensor.numpy``."""
        return self._draw.value().requires_grad_(self.requires_grad and not force).numpy(force=force)


class _Reparameterize(torch.autograd.Function):
    """w = mu + sigma * eps with the noise drawn when the value is first needed."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, rho: Tensor, draw: _Draw) -> Tensor:
        ctx.draw = draw
        # Not saved for backward: checkpointing counts what is, and a weight that was read before is not read again.
        ctx.rho, ctx.version = rho, version(rho)
        return WeightDraw.wrap(mu, draw)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,), rho, draw = grads, ctx.rho, ctx.draw
        if version(rho) != ctx.version:
            raise SamplingError(
                f"backward: rho of '{draw.posterior.name}' was changed in place since the forward; step the optimizer "
                "after backward()."
            )
        mask = draw.posterior.mask
        if mask is not None:
            grad = grad * mask.to(grad.dtype)
        draw.value()
        grad_rho = None
        if draw.noise is not None and ctx.needs_input_grad[1]:
            basis, slope = draw.posterior.basis, precise(grad)
            grad_rho = (slope if basis is None else basis.from_plain(slope)) * draw.noise * torch.sigmoid(rho)
        return grad, grad_rho, None


def random_draw(posterior: Posterior, noise: Callable[[], Tensor]) -> Tensor:
    """A reparameterized draw of the weight: read-only in eager mode, an ordinary tensor under a transform.

    Args:
        posterior: The weight.
        noise: Gives standard normal noise in the shape of the weight, called once, when the value is needed.
    """

    def make() -> tuple[Tensor, Tensor]:
        eps = noise()
        return posterior.draw(eps), eps

    return _made_when_needed(posterior, make)


def read_only(posterior: Posterior, make: Callable[[], Tensor]) -> Tensor:
    """A computed weight without noise of its own (a pruned mean), read-only in eager mode."""
    return _made_when_needed(posterior, lambda: (make(), None))


def _made_when_needed(posterior: Posterior, make: Callable[[], tuple[Tensor, Tensor | None]]) -> Tensor:
    """What ``make`` gives, later; at once where torch.compile or torch.func sees the operations.

    There only plain formulas work: no tensor subclasses, no autograd functions.
    """
    if tracing():
        return make()[0]
    draw = _Draw(posterior, make)
    if not torch.is_grad_enabled():
        return WeightDraw.wrap(draw.mu, draw)
    return _Reparameterize.apply(draw.mu, posterior.rho, draw)


def _value_of(item: Any) -> Any:
    return item._draw.value() if isinstance(item, WeightDraw) else item


def _view_of(base: WeightDraw, view: Tensor) -> WeightDraw:
    """A view of a draw, read-only like its base."""
    return WeightDraw.wrap(view, _Draw(base._draw.posterior, lambda: (view, None)))


def _read_only_message(draw: WeightDraw, operation: str) -> str:
    posterior = draw._draw.posterior
    return (
        f"{operation}: '{posterior.name}' of {type(posterior.layer).__name__} is computed from its posterior at every "
        f"read, so the write would be lost; write into `{posterior.stem}_mu` under torch.no_grad(), or exclude the "
        "layer from bayesify where its own forward writes (given example_inputs, bayesify does so itself)."
    )
