"""`embag.ray`: tables on many nodes of a Ray cluster.

    _plan.py         `plan`: which shard holds which rows
    _collection.py   `ShardedCollection`: lookups and updates in sharded tables

Importing this package does not import Ray; what needs it does.

Tested in tests/ray/.
"""

from embag.ray._actors import ShardError, nodes
from embag.ray._collection import ShardedCollection
from embag.ray._plan import Plan, TableSpec, plan

__all__ = ["Plan", "ShardError", "ShardedCollection", "TableSpec", "nodes", "plan"]
