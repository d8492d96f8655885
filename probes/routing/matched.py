"""Which other sets of experts a claim stands beside: of the same size, and near in load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import InputError

Set = dict[int, list[int]]


@dataclass(frozen=True)
class Pool:
    """Experts of one block that may stand for each other, and those of them that are claimed."""

    block: int
    members: tuple[int, ...]
    claimed: tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """All sets with as many experts of each pool as are claimed.  The claim is one of them.

    Attributes
    ----------
    pools
        No expert is in two.

    Notes
    -----
    Permutations of experts within pools take the claim to each set of the family, equally often.  If the experts of a
    pool are exchangeable (what one costs does not depend on whether it is claimed), all ranks of the claim's cost among
    sets drawn evenly from the family, without replacement, are as likely: p = (1 + sets that cost as much) / (1 + sets)
    is valid for claims of any size (Phipson & Smyth 2010).  That needs sets which may share experts with the claim.
    Sets of other experts alone are more alike among themselves than like the claim, and p of a claim of several experts
    is too small.
    """

    pools: tuple[Pool, ...]

    @property
    def others(self) -> int:
        """How many sets there are, the claim left out."""
        return math.prod(math.comb(len(pool.members), len(pool.claimed)) for pool in self.pools) - 1

    def draw(self, sets: int, seed: int = 0) -> list[Set]:
        """So many different sets, all equally likely; all that there are, if they are no more."""
        rng = np.random.default_rng(seed)
        claim = tuple(pool.claimed for pool in self.pools)
        if self.others <= 2 * sets:
            every = [one for one in self._every() if one != claim]
            some = range(len(every)) if len(every) <= sets else sorted(rng.choice(len(every), sets, replace=False))
            return [self._by_block(every[i]) for i in some]
        found: dict[tuple[tuple[int, ...], ...], None] = {}
        while len(found) < sets:
            one = tuple(
                tuple(sorted(rng.choice(pool.members, len(pool.claimed), replace=False).tolist()))
                for pool in self.pools
            )
            if one != claim:
                found.setdefault(one)
        return [self._by_block(one) for one in found]

    def _every(self) -> Iterator[tuple[tuple[int, ...], ...]]:
        return itertools.product(*(itertools.combinations(pool.members, len(pool.claimed)) for pool in self.pools))

    def _by_block(self, one: Sequence[Sequence[int]]) -> Set:
        found: Set = {}
        for pool, own in zip(self.pools, one, strict=True):
            found[pool.block] = sorted([*found.get(pool.block, []), *own])
        return found


def alike(experts: Mapping[int, Sequence[int]], loads: Mapping[int, np.ndarray], caliper: float) -> Family:
    """The sets that a claim is compared with.

    Parameters
    ----------
    experts
        Block -> experts that are claimed.
    loads
        Block -> slots of each expert [expert].
    caliper
        By what share of the larger one two loads may differ: with 0.5 the larger is at most twice the smaller; 1: loads
        do not matter.

    Returns
    -------
    Family
        An expert may stand for a claimed one if their loads are within the caliper.  Claimed experts that some expert
        may both stand for share a pool.  (A caliper of the sum over the set would leave sets that no permutation of
        experts takes into each other, and p would not be exact.)

    Raises
    ------
    InputError
        For a caliper outside 0 to 1.
    """
    if not 0 <= caliper <= 1:
        raise InputError(f"caliper={caliper} is no share of the larger load. Give 0.5 (a factor of two), or 0 to 1.")
    pools = []
    for block, own in experts.items():
        load = np.asarray(loads[block], float)
        near = np.abs(load[:, None] - load) <= caliper * np.maximum(load[:, None], load)
        found: list[set[int]] = []
        for expert in own:
            mine = {int(e) for e in np.flatnonzero(near[expert])}
            met = [pool for pool in found if pool & mine]
            found = [*(pool for pool in found if pool not in met), mine.union(*met)]
        pools += [Pool(block, tuple(sorted(pool)), tuple(sorted(pool & {*own}))) for pool in found]
    return Family(tuple(pools))
