"""From states to statistics over the vocabulary, in a stream: full logits are never built.

The vocabulary is walked in chunks of columns.  Each chunk is multiplied with the states of *all* layers at
once (so the unembedding is read from memory once, not once a layer), and reduced at once to running maxima,
sums and the best few.  Two sweeps: the final layer first, because every other layer is compared with it, then
the rest.

For logits z (after scale and softcap), with m a running maximum and in natural logarithms:

    logsumexp  Z = m + log sum exp(z - m)
    entropy    H = Z - sum p z
    KL(p_final || p) = sum p_final log p_final - sum p_final z + Z          (tuned lens, Belrose et al. 2023)

Without a softcap sum_v p_final(v) z(v) = x . sum_v p_final(v) W_v + sum_v p_final(v) b_v: one product with the
*expected unembedding row* of the final layer gives the KL of every layer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import InputError, StateError

if TYPE_CHECKING:
    from workbench.model import Model

COLUMNS = {"cpu": 2048, "cuda": 8192}
"""Columns of the unembedding in one chunk: a tile of logits should stay in cache while it is reduced."""
ROWS = {"cpu": 1024, "cuda": 2048}
CANDIDATES = 54
"""With precision="bf16": how many tokens beyond top_k are recomputed in fp32."""
LOOSE = 1.5e-4
"""With precision="bf16": rows whose log-probabilities have a larger standard error are read again in fp32."""
WORTH = 1.1
"""With precision="bf16" on a CPU: how many times as fast it has to be."""
_GAINS: dict[tuple, float] = {}
NEVER = -1e30
"""The logit of a token that the model masks: finite, so that 0 * logit is 0 and not NaN."""
GROUP = 64
"""Scores of which first only the maximum is looked at."""


class Best:
    """A running top k of each row over a stream of column chunks; ids are -1 where nothing was found yet."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self.score = torch.full((rows, k), -torch.inf, device=device)
        self.id = torch.full((rows, k), -1, device=device)

    def see(self, rows: slice, scores: Tensor, first: int) -> None:
        """Scores [rows, n] of columns first..first + n."""
        best = self.score[rows]
        n = scores.shape[1]
        hits, groups, top = n, scores, scores
        if n % GROUP == 0 and n > GROUP:
            # The k best are in the k groups with the highest maxima; mostly a chunk has no or few of them.
            groups = scores.view(len(scores), -1, GROUP)
            top = groups.amax(-1)
            hits = min(int((top > best[:, -1:]).sum(1).max()), self.k, top.shape[1])
            if not hits:
                return
        if hits * GROUP < n // 2:
            group = top.topk(hits, 1).indices
            scores = groups.gather(1, group[..., None].expand(-1, -1, GROUP)).flatten(1)
            value, at = scores.topk(min(self.k, scores.shape[1]), 1)
            column = first + group.gather(1, at // GROUP) * GROUP + at % GROUP
        else:
            value, at = scores.topk(min(self.k, n), 1)
            column = first + at
        self.score[rows], pick = torch.cat([best, value], 1).topk(self.k, 1)
        self.id[rows] = torch.cat([self.id[rows], column], 1).gather(1, pick)


def logprob(logits: Tensor, logsumexp: Tensor) -> Tensor:
    """Log-probabilities; of masked tokens minus infinity."""
    return (logits - logsumexp).masked_fill_(logits <= NEVER / 2, -torch.inf)


def nearest_rows(states: Tensor, matrix: Tensor, norms: Tensor, k: int, columns: int | None = None) -> Best:
    """The k rows of a matrix with the highest cosine to each state [rows, d]; ``norms``: lengths of its rows.

    The matrix is read once, in chunks, whatever the number of states.
    """
    x = torch.nn.functional.normalize(states.float(), dim=1)
    columns, step = columns or COLUMNS.get(x.device.type, 4096), ROWS.get(x.device.type, 1024)
    best = Best(len(x), k, x.device)
    buffer = torch.empty(min(step, len(x)) * columns, device=x.device)
    for lo in range(0, len(matrix), columns):
        hi = min(lo + columns, len(matrix))
        # The chunk is brought to length 1, not each tile of products.
        part = (matrix[lo:hi].float() / norms[lo:hi, None]).T
        for n in range(0, len(x), step):
            rows = x[n : n + step]
            out = buffer[: len(rows) * (hi - lo)].view(len(rows), hi - lo)
            best.see(slice(n, n + len(rows)), torch.mm(rows, part, out=out), lo)
    return best


@dataclass
class Statistics:
    """Over the vocabulary, for [layers, rows]; natural logarithms.

    token_id, logprob: [layers, rows, top_k].  logsumexp, entropy: [layers, rows].
    kl: [layers, rows] or None.  rank, target_logprob: [layers, rows, targets] or None.
    """

    token_id: Tensor
    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor
    kl: Tensor | None = None
    rank: Tensor | None = None
    target_logprob: Tensor | None = None


@dataclass
class Final:
    """The final layer's distribution, kept as what other layers are compared with."""

    features: Tensor
    statistics: Statistics
    expected_row: Tensor
    expected_bias: Tensor

    def at(self, rows: Tensor) -> Final:
        """The same for chosen rows, in any order and number."""
        kept = {k: v[:, rows] for k, v in vars(self.statistics).items() if v is not None}
        return Final(self.features[rows], Statistics(**kept), self.expected_row[rows], self.expected_bias[rows])


class Readout:
    """The unembedding of one model, read as a stream of column chunks.

    Args:
        model: its proved anatomy gives the way from states to logits.
        precision: "fp32"; or "bf16": the product with the unembedding in bfloat16, the best candidates and
            their share of the normaliser recomputed in fp32 (the final layer is always fp32).
        chunk: columns at a time; changes no result.

    Raises InputError for precision="bf16" on a CPU that does not gain by it (:meth:`gain`, measured).
    """

    def __init__(self, model: Model, precision: str = "fp32", chunk: int | None = None) -> None:
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision={precision!r} is unknown. Use 'fp32' or 'bf16'.")
        model.renew()
        self.weight, self.bias = model.unembedding
        self.scale, self.softcap = model.anatomy.scale, model.anatomy.softcap
        self.vocab_size = self.weight.shape[0]
        device = self.weight.device
        masked = torch.zeros(self.vocab_size, dtype=torch.bool, device=device)
        masked[list(model.anatomy.masked)] = True
        if self.bias is not None:
            self.bias = self.bias.detach().float()
            shift = self.bias * self.scale
            _finite(model.name, "bias", ~(shift < torch.inf))
            never = shift == -torch.inf
            if self.softcap is None:  # with a softcap -infinity is the cap's lower end, a logit like any other
                masked |= never
                self.bias = self.bias.masked_fill(never, 0.0)
        self.masked = masked.nonzero()[:, 0]
        self.columns = chunk or COLUMNS.get(device.type, 4096)
        self.rows = ROWS.get(device.type, 1024)
        self._name, self._replay = model.name, model.replay
        self._half = self.weight.to(torch.bfloat16) if precision == "bf16" else None
        # The typical length of a row, from a sample: how far rounding moves a logit.
        sample = self.weight[:: max(1, self.vocab_size // 1024)].float()
        self._row_norm = float(sample.norm(dim=1).mean())
        if precision == "bf16" and device.type == "cpu" and (gain := self.gain()) < WORTH:
            raise InputError(
                f"precision='bf16' is not faster here: on this unembedding {list(self.weight.shape)}, with "
                f"{torch.get_num_threads()} threads, the same in fp32 takes {gain:.2f} times as long (measured; "
                f"{WORTH} is asked for, because some rows are read again). Use precision='fp32', which is exact."
            )

    def gain(self) -> float:
        """How many times as long the reading takes in fp32 as in bf16: measured on the first columns, once a process.

        Candidates that are read again cost the same however large the vocabulary is, so they are timed apart.
        """
        key = (*self.weight.shape, self.weight.dtype, self.columns, torch.get_num_threads())
        if key not in _GAINS:
            part = copy.copy(self)
            part.vocab_size = min(self.vocab_size, 4 * self.columns)
            part.weight, part.bias, part.masked = self.weight[: part.vocab_size], None, self.masked[:0]
            part._half = None
            x = torch.randn(1, 128, self.weight.shape[1], generator=torch.Generator().manual_seed(0))
            width = min(10 + CANDIDATES, self.vocab_size)
            ids = torch.arange(128 * width).view(128, width) * 7919 % self.vocab_size
            whole = _seconds(lambda: part._sweep(x, 10))
            part._half = self.weight[: part.vocab_size].to(torch.bfloat16)
            half = _seconds(lambda: part._sweep(x, min(width, part.vocab_size)))
            again = _seconds(lambda: self.logits_at(x[0], ids))
            times = self.vocab_size / part.vocab_size
            _GAINS[key] = whole * times / (max(half - again, 0.0) * times + again)
        return _GAINS[key]

    def features(self, states: Tensor) -> Tensor:
        """States [rows, d_model] -> [rows, features] in fp32, through the final norm, scaled for the product."""
        x = self._replay.features(states).to(self.weight.device).float()
        return x if self.scale == 1 else x * self.scale

    def logits_at(self, features: Tensor, ids: Tensor) -> Tensor:
        """Exact fp32 logits of chosen tokens: features [rows, f] and ids [rows, n] -> [rows, n]."""
        z = torch.empty(ids.shape, device=features.device)
        step = max(1, 2**21 // max(1, ids.shape[1] * features.shape[1]))
        for lo in range(0, len(ids), step):
            rows = self.weight[ids[lo : lo + step]].float()
            z[lo : lo + step] = torch.bmm(rows, features[lo : lo + step, :, None])[..., 0]
        if self.bias is not None:
            z += self.bias[ids].float() * self.scale
        self._cap(z)
        if len(self.masked):
            z[torch.isin(ids, self.masked)] = NEVER
        return z

    def logits_of(self, features: Tensor, ids: Tensor) -> Tensor:
        """Exact fp32 logits of the same tokens for all rows: features [rows, f] and ids [n] -> [rows, n]."""
        z = features @ self.weight[ids].float().T
        if self.bias is not None:
            z += self.bias[ids].float() * self.scale
        self._cap(z)
        if len(self.masked):
            z[:, torch.isin(ids, self.masked)] = NEVER
        return z

    def final(self, features: Tensor, top_k: int) -> Final:
        """Read the final layer: features [rows, f]."""
        row, bias = torch.zeros_like(features), torch.zeros(len(features), device=features.device)
        exact, self._half = self._half, None
        try:
            statistics = self._sweep(features[None], top_k, expected=(row, bias))
        finally:
            self._half = exact
        return Final(features, statistics, row, bias)

    def read(
        self, features: Tensor, top_k: int, *, final: Final | None = None, targets: Tensor | None = None
    ) -> Statistics:
        """Read [layers, rows, f] features; against ``final`` and for ``targets`` [rows, n] token ids where given."""
        if self._half is None:
            return self._sweep(features, top_k, final=final, targets=targets)
        found, error = self._fast(features, top_k, final, targets)
        layer, row = (error > LOOSE).nonzero(as_tuple=True)
        if len(row):
            half, self._half = self._half, None
            try:
                one = final and final.at(row)
                exact = self._sweep(
                    features[layer, row][None], top_k, final=one, targets=None if targets is None else targets[row]
                )
            finally:
                self._half = half
            for name, value in vars(exact).items():
                if value is not None:
                    getattr(found, name)[layer, row] = value[0].to(getattr(found, name).dtype)
        return found

    def _fast(
        self, features: Tensor, top_k: int, final: Final | None, targets: Tensor | None
    ) -> tuple[Statistics, Tensor]:
        """The sweep in bfloat16, and the standard error [layers, rows] of the log-probabilities it gives.

        Tokens beyond the candidates keep their rounded logits.  Their errors d are independent, so the
        normaliser is off by d sqrt(sum p^2) <= d sqrt(p_last p_rest), p_last being the last candidate's.
        """
        wide = top_k + CANDIDATES
        found = self._sweep(features, min(wide, self.vocab_size), final=final, targets=targets)
        last = found.logprob[..., -1].exp()
        rest = (1 - found.logprob.exp().sum(-1)).clamp_min(0)
        logit = (found.logprob[..., 0] + found.logsumexp).abs()
        spread = features.norm(dim=-1) * self._row_norm / features.shape[-1] ** 0.5
        error = (logit + spread) * 2**-9 * (last * rest).sqrt()
        found.token_id, found.logprob = found.token_id[..., :top_k], found.logprob[..., :top_k]
        return found, error

    def _cap(self, z: Tensor) -> Tensor:
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z

    def _matrix(self, lo: int, hi: int, half: bool) -> Tensor:
        return self._half[lo:hi] if half and self._half is not None else self.weight[lo:hi].float()

    def _logits(self, x: Tensor, matrix: Tensor, lo: int, hi: int, out: Tensor) -> Tensor:
        """One tile of logits [rows, hi - lo], written into ``out`` where the dtype allows."""
        if matrix.dtype is torch.bfloat16:
            z = out.copy_(torch.mm(x.to(torch.bfloat16), matrix.T))
        else:
            z = torch.mm(x, matrix.T, out=out)
        if self.bias is not None:
            z += self.bias[lo:hi].float() * self.scale
        self._cap(z)
        inside = self.masked[(self.masked >= lo) & (self.masked < hi)] - lo
        if len(inside):
            z[:, inside] = NEVER
        return z

    def _tiles(self, layers: int, rows: int) -> Iterator[tuple[slice, slice]]:
        """Cut [layers, rows] into contiguous pieces of at most ``self.rows`` rows."""
        if rows <= self.rows:
            step = max(1, self.rows // max(1, rows))
            yield from ((slice(s, min(s + step, layers)), slice(0, rows)) for s in range(0, layers, step))
        else:
            for s in range(layers):
                for n in range(0, rows, self.rows):
                    yield slice(s, s + 1), slice(n, min(n + self.rows, rows))

    def _sweep(
        self,
        features: Tensor,
        top_k: int,
        *,
        final: Final | None = None,
        targets: Tensor | None = None,
        expected: tuple[Tensor, Tensor] | None = None,
    ) -> Statistics:
        """Walk the vocabulary once.  ``expected`` is filled with the expected unembedding row and bias."""
        S, N, f = features.shape
        device = features.device
        half = self._half is not None
        keep = min(top_k, self.vocab_size)
        top = Best(S * N, keep, device)
        peak = torch.full((S, N), -torch.inf, device=device)
        total = torch.zeros((S, N), device=device)  # sum exp(z - peak)
        moment = torch.zeros((S, N), device=device)  # sum exp(z - peak) (z - peak)
        cross = torch.zeros((S, N), device=device)  # sum p_final z, with a softcap only
        elementwise = final is not None and self.softcap is not None
        goal = above = None
        if targets is not None:
            # One row of targets serves every layer.
            goal = torch.stack([self.logits_at(features[s], targets) for s in range(S)])
            above = torch.zeros_like(goal)
        tiles = list(self._tiles(S, N))
        size = max(((t.stop - t.start) * (n.stop - n.start) for t, n in tiles), default=0) * self.columns
        buffer, spare = torch.empty(size, device=device), torch.empty(size, device=device)
        for lo in range(0, self.vocab_size, self.columns):
            hi = min(lo + self.columns, self.vocab_size)
            matrix = self._matrix(lo, hi, half)
            whole = self._matrix(lo, hi, False) if half and elementwise else matrix
            for s, n in tiles:
                x = features[s, n].reshape(-1, f)
                rows, shape = len(x), (s.stop - s.start, n.stop - n.start)
                z = self._logits(x, matrix, lo, hi, buffer[: rows * (hi - lo)].view(rows, hi - lo))
                # Tiles are contiguous: whole layers, or a part of one.
                flat = slice(s.start * N + n.start, s.start * N + n.start + rows)
                top.see(flat, z, lo)
                work = spare[: rows * (hi - lo)].view(rows, hi - lo)
                if above is not None and goal is not None and targets is not None:
                    for j in range(targets.shape[1]):
                        torch.sub(z, goal[s, n, j].reshape(-1, 1), out=work)
                        work.gt_(0)
                        # The target is not above itself, however its logit was rounded here.
                        own = targets[n, j].expand(shape).reshape(-1, 1) - lo
                        inside = (own >= 0) & (own < hi - lo)
                        work.scatter_(1, own.clamp(0, hi - lo - 1), work.gather(1, own.clamp(0, hi - lo - 1)) * ~inside)
                        above[s, n, j] += work.sum(-1).view(shape)
                if elementwise and final is not None:
                    p = self._logits(final.features[n], whole, lo, hi, torch.empty_like(work[: shape[1]]))
                    p = p.sub_(final.statistics.logsumexp[0, n, None]).exp_()
                    cross[s, n] += torch.einsum("snv,nv->sn", z.view(*shape, hi - lo), p)
                old = peak[s, n].reshape(-1)
                new = top.score[flat, 0].clone()
                shift = torch.where(old.isinf(), torch.zeros_like(old), old - new)
                kept = torch.where(old.isinf(), torch.zeros_like(old), shift.exp())
                z.sub_(new[:, None])
                torch.exp(z, out=work)
                sums = total[s, n].reshape(-1)
                added = work.sum(-1)
                if expected is not None:
                    row, bias = expected
                    row[n] = row[n] * kept[:, None] + work @ matrix
                    if self.bias is not None and self.softcap is None:
                        bias[n] = bias[n] * kept + work @ (self.bias[lo:hi].float() * self.scale)
                moment[s, n] = (kept * (moment[s, n].reshape(-1) + shift * sums) + work.mul_(z).sum(-1)).view(shape)
                total[s, n] = (kept * sums + added).view(shape)
                peak[s, n] = new.view(shape)
        best, best_id = top.score.view(S, N, keep), top.id.view(S, N, keep)
        if half:
            best, best_id = self._rerank(features, best, best_id, peak, total, moment)
            if above is not None and goal is not None and targets is not None:
                exact = (best[..., None] > goal[..., None, :]) & (best_id[..., None] != targets[None, :, None])
                above = torch.where(goal >= best[..., -1:], exact.sum(-2).to(above.dtype), above)
        if expected is not None:
            expected[0].div_(total[0, :, None])
            expected[1].div_(total[0])
        logsumexp = peak + total.log()
        if not bool(torch.isfinite(logsumexp).all()):
            for lo in range(0, self.vocab_size, self.columns):
                _finite(self._name, "row", ~torch.isfinite(self.weight[lo : lo + self.columns]).all(1), lo)
            raise StateError(f"The logits of {self._name} overflow float32, so no probability can be read from them.")
        found = Statistics(best_id, logprob(best, logsumexp[..., None]), logsumexp, total.log() - moment / total)
        if final is not None:
            if not elementwise:
                cross = torch.einsum("snf,nf->sn", features, final.expected_row) + final.expected_bias
            found.kl = (logsumexp - cross - final.statistics.entropy[0]).clamp_min(0)
        if goal is not None and above is not None:
            found.rank, found.target_logprob = above.round().int(), logprob(goal, logsumexp[..., None])
        return found

    def _rerank(
        self, features: Tensor, best: Tensor, best_id: Tensor, peak: Tensor, total: Tensor, moment: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put exact logits in place of the best candidates' rounded ones; correct the sums in place."""
        S, _, keep = best.shape
        exact = torch.stack([self.logits_at(features[s], best_id[s]) for s in range(S)])
        rounded = (best - peak[..., None]).exp()
        true = (exact - peak[..., None]).exp()
        # What is left of the sums must stay positive: with one token near 1 the rest is below rounding.
        total.add_((true - rounded).sum(-1)).clamp_min_(true.sum(-1))
        moment.add_((true * (exact - peak[..., None]) - rounded * (best - peak[..., None])).sum(-1))
        exact, order = exact.sort(-1, descending=True)
        return exact, best_id.gather(-1, order)


def _finite(name: str, what: str, bad: Tensor, first: int = 0) -> None:
    """Raise StateError for the first token whose part of the unembedding is not a number to compute with."""
    if bool(bad.any()):
        token = first + int(bad.nonzero()[0, 0])
        raise StateError(
            f"The unembedding {what} of token {token} in {name} holds NaN or infinity, so every probability is "
            "undefined. Check the weights; to mask a token, give it a bias of minus infinity."
        )


def _seconds(run: Callable[[], object], times: int = 3) -> float:
    """The shortest of several runs, after one that warms up."""
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found[1:])
