"""The chapter's VGG-11 at ratio 4 in flax, with optax.

python with_flax.py DATA.npz fp32|bf16
"""

import sys
from functools import partial
from typing import Any

import jax
import meter
import numpy as np
import optax
from flax import linen as nn
from jax import numpy as jnp

path, precision = sys.argv[1:]
data, dtype = np.load(path), jnp.bfloat16 if precision == "bf16" else jnp.float32


class VGG(nn.Module):
    """(N, S, S, 1) images in, (N, 10) logits out."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for convs, channels in ((1, 16), (1, 32), (2, 64), (2, 128), (2, 128)):
            for _ in range(convs):
                x = nn.relu(nn.Conv(channels, (3, 3), dtype=dtype)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.Dropout(0.5, deterministic=False)(nn.relu(nn.Dense(1024, dtype=dtype)(x)))
        return nn.Dense(10)(x)


net, key, adam = VGG(), jax.random.key(0), optax.adam(1e-3)
weights = net.init({"params": key, "dropout": key}, data["images"][:1])
assert sum(weight.size for weight in jax.tree.leaves(weights)) == int(data["parameters"])
state = adam.init(weights)


@jax.jit
def train(weights: Any, state: Any, key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    """One step; returns the new weights and the optimizer's new state."""

    def loss(weights: Any) -> Any:
        logits = net.apply(weights, images, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = adam.update(jax.grad(loss)(weights), state)
    return optax.apply_updates(weights, updates), state


for _ in range(meter.LAST):
    key, drop, draw = jax.random.split(key, 3)
    chosen = np.asarray(jax.random.randint(draw, (128,), 0, len(data["labels"])))
    weights, state = train(weights, state, drop, data["images"][chosen], data["labels"][chosen])
    meter.step(partial(jax.block_until_ready, weights))
