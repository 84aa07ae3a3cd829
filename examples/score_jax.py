"""Arrays of JAX, as of any library with DLPack (CuPy, TensorFlow, ...): no copy on the way in, torch tensors on the way out."""

import jax
import jax.numpy as jnp
import numpy as np

import prunefuse

hidden = jax.random.normal(jax.random.key(0), (1000, 16))
weight = jax.random.normal(jax.random.key(1), (10, 16))
logits = hidden @ weight.T

utilities = prunefuse.score(logits, "margin")
picks, _ = prunefuse.top_b(utilities, 5)
print(f"rows {jnp.asarray(picks)}")  # a tensor back to JAX
np.testing.assert_array_equal(utilities, prunefuse.score(np.asarray(logits), "margin"))

narrow = prunefuse.score(logits.astype(jnp.bfloat16), "margin")
print(f"bfloat16: within {float(abs(narrow - utilities).max()):.4f}")
linear = prunefuse.score_linear(hidden, weight, strategy="margin")  # without the logits
print(f"from hidden states: within {float(abs(linear - utilities).max()):.0e}")
print(f"k-center: rows {prunefuse.k_center_greedy(hidden, 5, labeled=jnp.arange(20))}")

keeper = prunefuse.StreamingTopB(5, "margin")
for start in range(0, 1000, 250):
    keeper.update(logits[start : start + 250], indices=jnp.arange(start, start + 250))
assert keeper.result()[0].tolist() == picks.tolist()
