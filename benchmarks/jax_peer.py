"""The same works in JAX: all steps of a work are one jitted scan, compiled ahead of its time."""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Request = dict[str, Any]
Layers = list[tuple[jax.Array, jax.Array]]


def perceptron(key: jax.Array, sizes: list[int]) -> Layers:
    """Weights (in, out) and biases, as torch draws weights."""
    layers = []
    for before, after in itertools.pairwise(sizes):
        key, own = jax.random.split(key)
        bound = 1 / math.sqrt(before)
        weight = jax.random.uniform(own, (before, after), minval=-bound, maxval=bound)
        layers.append((weight, jnp.zeros(after)))
    return layers


def apply(layers: Layers, x: jax.Array) -> jax.Array:
    """The perceptron with relu."""
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def scan(loss: Callable[..., jax.Array], lr: float, steps: int) -> Callable[..., Any]:
    """``steps`` of Adam from ``weights``; returns the weights and the loss of every step."""
    optimizer = optax.adam(lr)

    def run(weights: Any, key: jax.Array) -> tuple[Any, jax.Array]:  # noqa: ANN401
        def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:  # noqa: ANN401
            weights, state = carry
            value, gradient = jax.value_and_grad(loss)(weights, key)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(weights, updates), state), value

        carry = (weights, optimizer.init(weights))
        (weights, _), losses = jax.lax.scan(step, carry, jax.random.split(key, steps))
        return weights, losses

    return run


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:  # noqa: ANN401
    """The function compiled for such arguments, and the seconds that it took."""
    start = time.perf_counter()
    made = jax.jit(function).lower(*arguments).compile()
    return made, time.perf_counter() - start


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:  # noqa: ANN401
    """The function's results, and the seconds until they are there."""
    start = time.perf_counter()
    results = jax.block_until_ready(function(*arguments))
    return results, time.perf_counter() - start


@functools.cache
def _one_dimensional(
    points: int, levels: int, steps: int, width: int, seeds: int | None
) -> tuple[Any, float, Any, jax.Array]:
    key = jax.random.PRNGKey(0)
    sigmas = jnp.geomspace(2, 0.5, levels)
    signs = 2 * jax.random.bernoulli(key, 0.9, (points, 1)) - 1
    x = jax.random.normal(key, (points, 1)) + 3 * signs

    def loss(weights: Layers, key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (points, levels))
        x_noisy = x + sigmas * z
        inputs = jnp.stack([x_noisy, jnp.broadcast_to(sigmas, x_noisy.shape)], -1)
        return ((sigmas * apply(weights, inputs)[..., 0] + z) ** 2).mean() / 2

    run = scan(loss, 1e-2, steps)
    if seeds is None:
        weights, keys = perceptron(key, [2, width, 1]), jax.random.PRNGKey(1)
    else:
        run = jax.vmap(run)
        keys = jax.random.split(key, seeds)
        weights = jax.vmap(lambda key: perceptron(key, [2, width, 1]))(keys)
    made, seconds = compiled(run, weights, keys)
    return made, seconds, weights, keys


def one_dimensional(request: Request, seeds: int | None = None) -> dict[str, Any]:
    """P1; with ``seeds`` so many at once."""
    sizes = [request[key] for key in ("points", "levels", "steps", "width")]
    run, compiling, weights, keys = _one_dimensional(*sizes, seeds)
    (_, losses), seconds = timed(run, weights, keys)
    loss = float(losses[..., -(request["steps"] // 10) :].mean())
    return {"seconds": seconds, "compile": compiling, "check": {"loss": loss}}


@functools.cache
def _two_dimensional(
    batch: int, levels: int, steps: int, width: int
) -> tuple[Any, float, Any, jax.Array]:
    key = jax.random.PRNGKey(0)
    sigmas = jnp.geomspace(20, 0.1, levels)
    signs = 2 * jax.random.bernoulli(key, 0.05, (1000, 1)) - 1
    data = jax.random.normal(key, (1000, 2)) + 5 * signs

    def loss(weights: dict[str, Layers], key: jax.Array) -> jax.Array:
        of_points, of_levels, of_noise = jax.random.split(key, 3)
        x = data[jax.random.randint(of_points, (batch,), 0, len(data))]
        sigma = sigmas[jax.random.randint(of_levels, (batch,), 0, levels)][:, None]
        z = jax.random.normal(of_noise, (batch, 2))
        inputs = jnp.concatenate([x + sigma * z, apply(weights["embedding"], sigma)], 1)
        return ((sigma * apply(weights["layers"], inputs) + z) ** 2).sum(1).mean() / 2

    weights = {
        "embedding": perceptron(key, [1, 16, 16]),
        "layers": perceptron(jax.random.PRNGKey(1), [18, width, 2]),
    }
    made, seconds = compiled(scan(loss, 1e-3, steps), weights, key)
    return made, seconds, weights, key


def two_dimensional(request: Request) -> dict[str, Any]:
    """P2; batches are drawn with replacement."""
    sizes = [request[key] for key in ("batch", "levels", "steps", "width")]
    run, compiling, weights, key = _two_dimensional(*sizes)
    (_, losses), seconds = timed(run, weights, key)
    loss = float(losses[-(request["steps"] // 10) :].mean())
    return {"seconds": seconds, "compile": compiling, "check": {"loss": loss}}


@functools.cache
def _sample(
    path: str, particles: int, levels: int, steps: int
) -> tuple[Any, float, tuple[jax.Array, jax.Array]]:
    arrays = [jnp.asarray(array) for array in np.load(path).values()]
    embedding = [(arrays[0].T, arrays[1]), (arrays[2].T, arrays[3])]
    into, bias, out, exit_bias = arrays[4].T, arrays[5], arrays[6].T, arrays[7]
    sigmas = jnp.geomspace(20, 0.1, levels)
    taus = 0.0005 * (sigmas / sigmas[-1]) ** 2

    def run(x: jax.Array, key: jax.Array) -> jax.Array:
        shifts = apply(embedding, sigmas[:, None]) @ into[2:] + bias  # (L, H), once a level

        def level(carry: Any, plan: Any) -> tuple[Any, None]:  # noqa: ANN401
            tau, shift = plan

            def step(carry: Any, _: None) -> tuple[Any, None]:  # noqa: ANN401
                x, key = carry
                key, own = jax.random.split(key)
                score = jax.nn.relu(x @ into[:2] + shift) @ out + exit_bias
                z = jax.random.normal(own, x.shape)
                return (x + tau * score + jnp.sqrt(2 * tau) * z, key), None

            return jax.lax.scan(step, carry, length=steps)[0], None

        return jax.lax.scan(level, (x, key), (taus, shifts))[0][0]

    x = jax.random.uniform(jax.random.PRNGKey(0), (particles, 2), minval=-8.0, maxval=8.0)
    made, seconds = compiled(run, x, jax.random.PRNGKey(1))
    return made, seconds, (x, jax.random.PRNGKey(1))


def sample(request: Request) -> dict[str, Any]:
    """P3: the embedding of a level is computed once for it."""
    sizes = [request[key] for key in ("weights", "particles", "levels", "steps")]
    run, compiling, arguments = _sample(*sizes)
    x, seconds = timed(run, *arguments)
    return {"seconds": seconds, "compile": compiling, "samples": np.asarray(x)}


def sweep(request: Request) -> dict[str, Any]:
    """P4: all seeds at once by vmap, or one after the other."""
    if request["vmap"]:
        return one_dimensional(request, request["seeds"])
    runs = [one_dimensional(request) for _ in range(request["seeds"])]
    return {**runs[0], "seconds": sum(run["seconds"] for run in runs)}


WORKS = {"P1": one_dimensional, "P2": two_dimensional, "P3": sample, "P4": sweep}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(WORKS[given["work"]](given))
