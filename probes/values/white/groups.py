"""Which prompts are set against which, and what follows from inner products of their states alone.

A *group* is the items of one topic, one cluster, one label and one key, taken as their mean state: near-duplicates
count once.  The stance direction of a topic is the mean of its groups labelled +1 less the mean of those labelled -1.
The pooled direction is the coefficient of the label when states are regressed on it and on a mean for each topic: the
topics' directions, weighted by n+ n- / (n+ + n-), so that what a topic is about is in none of it.

A direction is a sum of states, so its products with states and with other directions are sums of entries of kernels
(inner products of states), and nothing of size [draws, width] is built.
"""

from __future__ import annotations

import numpy as np

from probes.values.units import Units
from workbench.stats import over

SIDES = (1, -1)
DIRECTIONS = ("pooled", "own topic")
"""The direction that an item is read on: that of all topics, or that of its own."""


class Groups:
    """Groups of items, and directions between them.

    Args:
        units: of the items.
        label: [item] +1, -1, or 0 for an item that is in no direction.
        key: [item] +1, -1, or 0: the sign with which an item's projection counts towards its topic's direction.

    Attributes:
        average: [group, item], whose product with states is the groups' mean states.
        same: [item, group] whether the group is of the item's cluster.
        usable: [topic] whether it has two clusters or more of each label.
    """

    def __init__(self, units: Units, label: np.ndarray, key: np.ndarray) -> None:
        self.units, self.topics, self.item_topic = units, units.topics, units.item_topic
        tags = np.stack([units.unit, label.astype(int), key.astype(int)])
        found, self.group = np.unique(tags, axis=1, return_inverse=True)
        self.group = self.group.reshape(-1)
        self.unit, self.label, self.key = found
        self.topic, self.cluster = units.topic[self.unit], units.cluster[self.unit]
        self.size = np.bincount(self.group)
        self.average = np.equal.outer(np.arange(len(self.size)), self.group) / self.size[:, None]
        self.same = np.equal.outer(units.cluster[units.unit], self.cluster)
        self.apart = np.not_equal.outer(self.cluster, self.cluster)
        """[group, group]: of different clusters."""
        self.own = [np.flatnonzero(self.topic == t) for t in range(len(self.topics))]
        self.usable = np.array(
            [all(len({*self.cluster[own[self.label[own] == s]]}) > 1 for s in SIDES) for own in self.own]
        )
        others = np.equal.outer(self.item_topic, self.topic) & (self.label != 0) & ~self.same
        self.others = np.nan_to_num(over(others, others.sum(1, keepdims=True)))
        """[item, group] of which the product with groups is the mean of the topic without the item's own cluster.

        Centred so, an item's projection on a direction that leaves its cluster out has no bias: with a mean that holds
        the item itself, or the midpoint of two class means, left-out scores of noise alone lean to one side.
        """

    def shuffled(self, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and keys [draw, group], permuted together within topics, among groups that have both, and among those
        that have one of the two."""
        rng = np.random.default_rng([seed, 11])
        order = np.tile(np.arange(len(self.label)), (draws, 1))
        kind = 2 * (self.label != 0) + (self.key != 0)
        for own in self.own:
            for some in (own[kind[own] == k] for k in (1, 2, 3)):
                order[:, some] = rng.permuted(order[:, some], axis=1)
        return self.label[order], self.key[order]

    # ---------------------------------------------------------------- directions

    def contrast(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels [draw, group] -> weights [draw, group] of groups in their topic's direction (0 where it is not
        usable), and shares [draw, topic] of topics in the pooled one."""
        weights, share = np.zeros(labels.shape), np.zeros((len(labels), len(self.topics)))
        for t, own in enumerate(self.own):
            if not self.usable[t]:
                continue
            side = [labels[:, own] == s for s in SIDES]
            n = [x.sum(1, keepdims=True) for x in side]
            weights[:, own] = side[0] / n[0] - side[1] / n[1]
            share[:, t] = (n[0] * n[1] / (n[0] + n[1]))[:, 0]
        return weights, np.nan_to_num(over(share, share.sum(1, keepdims=True)))

    def lengths(self, kernel: np.ndarray, weights: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [group, group] of the states that make directions -> their lengths: pooled [draw], own [draw, topic];
        NaN where a direction has none."""

        def root(a: np.ndarray, own: np.ndarray) -> np.ndarray:
            found = np.sqrt(np.maximum(0, ((a @ kernel[np.ix_(own, own)]) * a).sum(1)))
            return np.where(found > 1e-9 * scale, found, np.nan)

        scale = np.sqrt(max(0.0, float(np.trace(kernel)) / len(kernel)))
        topics = np.stack([root(weights[:, own], own) for own in self.own], 1)
        return root(weights * share[:, self.topic], np.arange(len(self.label))), topics

    def projected(self, kernel: np.ndarray, weights: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Kernel [item, group] -> products [draw, item, direction] of items with directions of given weights."""
        found = np.full((len(weights), len(self.item_topic), 2), np.nan)
        found[..., 0] = (weights * share[:, self.topic]) @ kernel.T
        for t, own in enumerate(self.own):
            mine = self.item_topic == t
            found[:, mine, 1] = weights[:, own] @ kernel[np.ix_(mine, own)].T
        return found

    def held_out(self, kernel: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Kernel [item, group] -> products [draw, item, direction] of each item with directions to which the items of
        its own cluster did not contribute: leave-one-cluster-out cross-validation, in one step.

        ``labels`` [draw, group].  NaN where nothing is left of a class, and for the own topic's where it is not usable.
        """
        apart = np.where(self.same, 0, kernel)
        found = np.zeros((len(labels), len(self.item_topic), 2))
        found[..., 1] = np.nan
        share = self.contrast(labels)[1]
        for t, own in enumerate(self.own):
            if not self.usable[t]:
                continue
            score = np.zeros((len(labels), len(self.item_topic)))
            for s in SIDES:
                side = (labels[:, own] == s).astype(float)
                left = side.sum(1, keepdims=True) - side @ self.same[:, own].T
                score += s * over(side @ apart[:, own].T, left)
            found[..., 0] += share[:, t, None] * score
            mine = self.item_topic == t
            found[:, mine, 1] = score[:, mine]
        if not self.usable.any():
            found[..., 0] = np.nan
        return found

    # ---------------------------------------------------------------- projections of items

    def spread(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Projections and keys [draw, item, ...] -> pooled SD within topic and key: [draw, 1 + topic], over all topics
        and of each alone.  Of the baseline's states it is the unit in which projections are given."""
        square, free = (np.zeros((len(x), len(self.topics))) for _ in range(2))
        for t in range(len(self.topics)):
            mine = self.item_topic == t
            for s in SIDES:
                there = ((keys[:, mine] == s) & ~np.isnan(x[:, mine])).astype(float)
                own, n = np.nan_to_num(x[:, mine]), there.sum(1, keepdims=True)
                mean = np.nan_to_num(over((own * there).sum(1, keepdims=True), n))
                square[:, t] += (((own - mean) * there) ** 2).sum(1)
                free[:, t] += np.maximum(0, n[:, 0] - 1)
        square, free = (np.concatenate([v.sum(1, keepdims=True), v], 1) for v in (square, free))
        return np.sqrt(over(square, free))

    def scale(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The SD in which each of projections [draw, item, direction] is given: [draw, item, direction]; NaN where
        they do not vary."""
        found = np.stack(
            [
                np.repeat(self.spread(x[..., 0], keys)[:, :1], x.shape[1], 1),
                self.spread(x[..., 1], keys)[:, 1:][:, self.item_topic],
            ],
            -1,
        )
        return np.where(found > 1e-9, found, np.nan)

    def keyed_means(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Projections [draw, item, direction] and keys [draw, item] -> [draw, topic, direction]: keyed, averaged over
        the items of a cluster, and over clusters."""
        found = np.full((len(x), len(self.topics), x.shape[2]), np.nan)
        members = np.equal.outer(np.arange(len(self.units.topic)), self.units.unit).astype(float)
        for d in range(x.shape[2]):
            there = (keys != 0) & ~np.isnan(x[..., d])
            mean = over(np.where(there, keys * np.nan_to_num(x[..., d]), 0) @ members.T, there @ members.T)
            for t in range(len(self.topics)):
                own = mean[:, self.units.topic == t]
                some = ~np.isnan(own)
                found[:, t, d] = over(np.nansum(own, 1), some.sum(1))
        return found

    # ---------------------------------------------------------------- products of directions

    def products(self, kernel: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [group, group] of states at two checkpoints -> products of their directions [draw, 1 + topic], pooled
        and by topic: plain, and between directions of different clusters.

        ``times`` [draw, group]: how often each group is there when clusters are drawn again.

        The second is the mean of w^A . v^B over all splits of the clusters into halves A and B, in closed form: sums
        over pairs of groups of different clusters alone, each pair of classes over its own number of pairs.  What is
        peculiar to the items of a direction is in both of its plain factors, and in one of these.  NaN: a class with
        fewer than two clusters.
        """
        n, k = len(times), len(self.topics)
        plain, fair = np.full((n, 1 + k), np.nan), np.full((n, 1 + k), np.nan)
        side = {(t, s): own[self.label[own] == s] for t, own in enumerate(self.own) for s in SIDES}
        total = {at: times[:, own].sum(1) for at, own in side.items()}
        weights, share = np.zeros(times.shape), np.zeros((n, k))

        def between(a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
            one, two = np.zeros(n), np.zeros(n)
            for s in SIDES:
                for r in SIDES:
                    rows, columns = side[a, s], side[b, r]
                    left, right = times[:, rows], times[:, columns]
                    block, apart = kernel[np.ix_(rows, columns)], self.apart[np.ix_(rows, columns)]
                    one += s * r * over(((left @ block) * right).sum(1), total[a, s] * total[b, r])
                    there = ((left @ apart.astype(float)) * right).sum(1)
                    two += s * r * over(((left @ (block * apart)) * right).sum(1), there)
            return one, two

        mends = np.zeros(n)
        for t in np.flatnonzero(self.usable):
            plain[:, 1 + t], fair[:, 1 + t] = between(t, t)
            good = ~np.isnan(fair[:, 1 + t])
            share[:, t] = np.where(good, over(total[t, 1] * total[t, -1], total[t, 1] + total[t, -1]), 0)
            for s in SIDES:
                weights[:, side[t, s]] = s * np.nan_to_num(over(times[:, side[t, s]], total[t, s][:, None]))
        share = np.nan_to_num(over(share, share.sum(1, keepdims=True)))
        for a in np.flatnonzero(self.usable):
            for b in np.flatnonzero(self.usable):
                if a != b and self.apart[np.ix_(self.own[a], self.own[b])].all():
                    continue  # no cluster is in both: the plain product is that of different clusters
                one, two = (plain[:, 1 + a], fair[:, 1 + a]) if a == b else between(a, b)
                mends += share[:, a] * share[:, b] * np.nan_to_num(two - one)
        full = weights * share[:, self.topic]
        there = share.sum(1) > 0
        plain[:, 0] = np.where(there, ((full @ kernel) * full).sum(1), np.nan)
        fair[:, 0] = np.where(there, plain[:, 0] + mends, np.nan)
        return plain, fair
