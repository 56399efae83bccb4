"""Shards in this process: a `ShardedCollection` without Ray.

Requests and replies are pickled, as Ray pickles them.
"""

import itertools
import pickle
from contextlib import contextmanager, suppress

from embag import EmbeddingBagCollection
from embag.ray import Plan, ShardedCollection, ShardError, _collection, _shard
from embag.ray._plan import Block, Node, block_rows, spec_of
from embag.ray._shard import Shard

_stored = []


def cut_plan(tables, n_blocks, n_shards=3, n_copies=1):
    """Return a plan in which every table (but remapped ones) is cut."""
    specs = {name: spec_of(table, name) for name, table in tables.items()}
    blocks = {}
    for i, (name, spec) in enumerate(specs.items()):
        n = 1 if spec.is_remapped else n_blocks
        size = block_rows(spec, n)
        cuts = [min(j * size, spec.n_rows) for j in range(n + 1)]
        cuts[-1] = spec.n_rows
        blocks[name] = tuple(
            Block(
                start + spec.first_id,
                stop + spec.first_id,
                tuple(sorted((i + j + k) % n_shards for k in range(n_copies))),
            )
            for j, (start, stop) in enumerate(itertools.pairwise(cuts))
        )
    nodes = tuple(Node(f"node{shard}", 10**9) for shard in range(n_shards))
    return Plan(nodes, specs, blocks, dict.fromkeys(specs, 1 / max(1, len(specs))))


def make_both(tables, features, n_blocks, n_copies=1, **options):
    """Return a collection of one machine, and one with the same tables on shards."""
    policy = {"invalid": options["invalid"]} if "invalid" in options else {}
    found = cut_plan(tables, n_blocks, n_copies=n_copies)
    return (
        EmbeddingBagCollection(tables, features, **policy),
        ShardedCollection(tables, features, plan=found, **options),
    )


class Reference:
    """A reference to an object in the store."""

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return type(other) is Reference and self.number == other.number

    __hash__ = None


def store(value):
    _stored.append(pickle.dumps(value))
    return Reference(len(_stored) - 1)


def get_object(reference):
    return pickle.loads(_stored[reference.number])


class LocalActors:
    """`_actors.Actors` with shards in this process."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.shards = [Shard(*given) for given in arguments]
        self.asked = []  # (method, shards) of each step
        self.before = lambda method, shard: None  # called before each method of a shard
        self.is_stopped = False

    @classmethod
    def start(cls, arguments, places, n_cpus):
        return cls(arguments)

    def __len__(self):
        return len(self.shards)

    def __reduce__(self):
        return _same, (id(self),)

    def restart(self, shard):
        """Replace a shard by one that has nothing loaded, as Ray does."""
        self.shards[shard] = Shard(*self.arguments[shard])

    def check_connection(self):
        pass

    def choose(self, shards):
        return shards[0]

    def ask(self, method, arguments, limit=None):
        self.asked.append((method, sorted(arguments)))
        answers = {}
        for shard, given in arguments.items():
            try:
                self.before(method, shard)
                answer = getattr(self.shards[shard], method)(*pickle.loads(pickle.dumps(given)))
            except Exception as error:
                message = f"shard {shard} failed: {type(error).__name__}: {error}"
                raise ShardError(message, [shard]) from error
            answers[shard] = pickle.loads(pickle.dumps(answer))
        return answers

    def tell(self, method, arguments):
        with suppress(ShardError):
            self.ask(method, arguments)

    async def ask_async(self, method, arguments, limit):
        return self.ask(method, arguments)

    def stop(self):
        self.is_stopped = True


_running = {}


def _same(key):
    return _running[key]


@contextmanager
def local_shards(monkeypatch):
    """Make collections with shards in this process."""

    def start(arguments, places, n_cpus):
        actors = LocalActors(arguments)
        _running[id(actors)] = actors
        return actors

    monkeypatch.setattr(_collection.Actors, "start", start)
    monkeypatch.setattr(_collection, "store", store)
    monkeypatch.setattr(_shard, "get_object", get_object)
    try:
        yield
    finally:
        _running.clear()
        _stored.clear()
