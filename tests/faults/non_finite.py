"""Numbers that are not finite, put into a command; for the ``before`` of ``helpers.forked``."""

import functools
import math

import torch


def inject(where):
    """``where``: [kind, call, value]; from that call of its kind on, once."""
    kind, at, value = where[0], where[1], float(where[2])
    _KINDS[kind](functools.partial(_strike, [0], at), value)


def _strike(calls, at):
    """Whether this is the call chosen."""
    calls[0] += 1
    return calls[0] == at


def _wrap(owner, name, change):
    original = getattr(owner, name)

    @functools.wraps(original)
    def changed(self, *arguments, **keywords):
        return change(lambda: original(self, *arguments, **keywords), self)

    setattr(owner, name, changed)


def _loss(now, value):
    from ncsn_cli.losses import Loss
    from ncsn_cli.training.state import Training

    for kind in Loss.__subclasses__():
        _wrap(kind, "given", lambda call, loss: call() * (value if now() else 1.0))
    _wrap(Training, "excess_loss", lambda call, training: 0.0)  # it evaluates losses, too


def _data(now, value):
    from ncsn_cli.training.state import Training

    def change(call, training):
        batches, draws = call()
        return (torch.full_like(batches, value) if now() else batches), draws

    _wrap(Training, "_draw", change)


def _weight(now, value):
    from ncsn_cli.training.state import Training

    def change(call, training):
        if now():
            with torch.no_grad():
                training.model.layers[2].bias[0] = value
        return call()

    _wrap(Training, "advance", change)


def _gradient(now, value):
    from ncsn_cli.training.state import Training

    def spoil(parameter):
        if now():
            parameter.grad[0] = value

    def change(call, training):
        call()
        training.model.layers[0].weight.register_post_accumulate_grad_hook(spoil)

    _wrap(Training, "__init__", change)


def _score(now, value):
    from ncsn_cli.datasets import GaussianMixture

    _wrap(GaussianMixture, "score", lambda call, mixture: call() * (value if now() else 1.0))


_KINDS = {
    "loss": _loss, "data": _data, "weight": _weight, "gradient": _gradient, "score": _score,
}  # fmt: skip
VALUES = [math.nan, math.inf, -math.inf]
