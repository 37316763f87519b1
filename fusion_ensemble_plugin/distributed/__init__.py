"""Members spread over the ranks of a Fabric run: more than one process, more than one machine.

Each rank holds some of the members and gets its own shard of the data. In a forward, `link` brings the shards of all
ranks together, each rank runs its members on all of them, and every rank gets back what the members made of its
shard. `layout` says which rank holds which member, `packing` turns trees of tensors into bytes, `shards` keeps the
ranks' rows apart, `roll` and `failures` name the rank that is missing, and `ensemble` puts it together.
"""

from __future__ import annotations
