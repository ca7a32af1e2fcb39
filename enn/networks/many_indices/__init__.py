"""Why many epistemic indices are cheap here.

A prediction averages over many indices z, often 1000. Run one by one, they would cost
1000 forward passes. Three facts make them cheap; the first needs no code of this
package, the other two have one file each.

**What does not depend on z is computed once.** `jax.vmap` over z alone keeps a value
without z unmapped. So layers keep the two apart for as long as they can: the first
layer of an epinet on [z, x] is z W_z + x W_x (`enn.networks.mlp.ConcatLinear`), where
x W_x has no z, and its last one is h (W z), not (h W) z (`ConcatLinear.projected`).
Inside a loop XLA does not always see this; `hoisting` moves it out.

**Members of an ensemble are few.** With 10 members, 1000 indices have at most 10
different outputs. `members.apply_member` runs each member once and picks, if there are
at least as many indices as members, and otherwise only the members picked. It also does
so where `enn.apply` is under someone else's `jax.vmap`, gradients included. Members
with convolutions run one after the other on a CPU, which is linear in their number.

**Blocks fit in cache.** `index_map.map_indices` is `jax.vmap` in blocks of `batch_z`
indices, by default as many as fit in cache on a CPU, or in 256 MiB elsewhere.

An example: 3 members and 5 indices, of which one member is never picked.

>>> import jax, jax.numpy as jnp
>>> from enn.networks.many_indices import index_map, members
>>> weights = jnp.array([[1.0], [2.0], [3.0]])  # [num_members, num_features]
>>> inputs = jnp.array([[10.0], [20.0]])  # [batch, num_features]
>>> def member(w, x):  # Runs 3 times, not 5.
...     return x @ w
>>> def forward(z):
...     return members.apply_member(member, weights, inputs, z, num_members=3)
>>> index_map.map_indices(forward, jnp.array([0, 2, 2, 0, 0]))
Array([[10., 20.],
       [30., 60.],
       [30., 60.],
       [10., 20.],
       [10., 20.]], dtype=float32)
"""
