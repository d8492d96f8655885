"""What the blocks of the real model write adds up: its first position is a hundred times the others in the stream."""

import numpy as np
import pytest

import workbench
from lenses import LogitAttribution, LogitLens
from workbench.anatomy.block_writes import Parts, Write

TEXTS = ["The capital of France is Paris, and the capital of Italy is", "Deposit the money in the bank.", "Once upon"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_block_is_its_input_plus_attention_plus_mlp(real_folder, dtype):
    model = workbench.load(real_folder, dtype=dtype, progress=False)
    assert set(model.anatomy.pad_sides) == {"right", "left"}
    assert model.parts == [Parts(Write("self_attn"), Write("mlp"), parallel=False)] * 30
    readers = [LogitAttribution(), *(LogitLens(at=at, top_k=1) for at in ("attn_out", "resid_mid", "mlp_out"))]
    data = workbench.read(model, TEXTS, readers, progress=False)[0].data
    summed, logit = data.contribution.sum("component", skipna=False).values, data.logit.values
    real = np.isfinite(logit)
    # Of a logit near 20; what a pass of 61 sums in that type rounds.
    atol = {"float32": 2e-4, "float16": 0.1, "bfloat16": 1.0}[dtype]
    np.testing.assert_allclose(summed[real], logit[real], atol=atol)
    np.testing.assert_allclose((logit - summed)[real], data.remainder.values[real], atol=1e-3)
