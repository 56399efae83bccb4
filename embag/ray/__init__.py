"""`embag.ray`: tables on many nodes of a Ray cluster.

    _plan.py         `plan`: which shard holds which rows
    _collection.py   `ShardedCollection`: lookups and updates in sharded tables
    _pool.py         `Pool`: list columns to vectors, in Ray Data

Importing this package does not import Ray; what needs it does.

Tested in tests/sharding/.
"""

from embag.ray._actors import ShardError, nodes
from embag.ray._collection import ShardedCollection
from embag.ray._plan import Plan, TableSpec, plan
from embag.ray._pool import Pool

__all__ = ["Plan", "Pool", "ShardError", "ShardedCollection", "TableSpec", "nodes", "plan"]
