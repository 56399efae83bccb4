"""The same training on one machine and on shards, compared bit by bit."""

import numpy as np
from cases import assert_same_bits
from shards import make_both

N_BAGS = 10


class Both:
    """A collection on one machine and one on shards, with optimizers by the same rules."""

    def __init__(self, tables, features, n_blocks, rules):
        tables = {name: table.copy() for name, table in tables.items()}
        self.local, self.sharded = make_both(tables, features, n_blocks, memory="copy")
        self.rules = dict.fromkeys(tables, rules) if not isinstance(rules, dict) else rules
        self.optimizers = {name: rule(tables[name]) for name, rule in self.rules.items()}
        self.rng = np.random.default_rng(4)

    def grad(self, values):
        """Return gradients of the outputs; rows of features without bags have 4 entries."""
        n_bags = N_BAGS if self.local.dim else 0  # without features with bags there are none
        grad = self.rng.standard_normal((n_bags, self.local.dim))
        rows = {
            feature.name: self.rng.standard_normal((*values[feature.name].shape, 4))
            for feature in self.local.features
            if feature.mode == "none"
        }
        return (grad, rows) if rows else grad

    def step(self, values, weights=None, wrt="weight"):
        """Update both; return the gradients of the weights of each."""
        grad = self.grad(values)
        arguments = grad, values, None, weights
        expected = self.local.update(*arguments, optimizers=self.optimizers, wrt=wrt)
        found = self.sharded.update(*arguments, optimizers=self.rules, wrt=wrt)
        return expected, found

    def loaded(self, name):
        """Return what the shard of each block of a table has loaded."""
        shards = self.sharded._actors.shards
        return [shards[block.shards[0]]._loaded[0] for block in self.sharded.plan.blocks[name]]

    def tables(self):
        """Return the tables of the shards, whole."""
        return {
            name: np.concatenate([at.tables[name, i] for i, at in enumerate(self.loaded(name))])
            for name in self.sharded.plan.tables
        }

    def rules_of(self, name):
        """Return the optimizer of each block of a table."""
        return [at.optimizers[name, i] for i, at in enumerate(self.loaded(name))]


def check(both):
    """Check tables, the states of their optimizers, and the steps of each block."""
    for name, table in both.tables().items():
        assert_same_bits(table, both.local.tables[name], name)
    for name, optimizer in both.optimizers.items():
        rules = both.rules_of(name)
        assert {rule.n_steps for rule in rules} == {optimizer.n_steps}
        for state, expected in optimizer.states.items():
            found = np.concatenate([rule.states[state] for rule in rules])
            assert_same_bits(found, expected, (name, state))
