"""The make-believe device refuses what CUDA refuses and allows what CUDA allows.

With a CUDA device at hand the same statements are run on it, so that the rules are CUDA's and not ours.
"""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from make_believe_cuda import MakeBelieveCuda
from torch import nn
from torch.nn import functional as F


@pytest.fixture(params=["make-believe", pytest.param("true", marks=pytest.mark.gpu)], autouse=True)
def device(request):
    with MakeBelieveCuda() if request.param == "make-believe" else contextlib.nullcontext():
        yield request.param


def on(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="cuda")


MIXED = {
    "add": lambda: on(3) + torch.ones(3),
    "add in place": lambda: torch.ones(3).add_(on(3)),
    "a number of the device": lambda: torch.ones(3) + on(),
    "matmul": lambda: on(2, 3) @ torch.ones(3, 2),
    "cat": lambda: torch.cat([on(3), torch.ones(3)]),
    "stack without dimensions": lambda: torch.stack([on(), torch.tensor(1.0)]),
    "where": lambda: torch.where(torch.ones(3) > 0, on(3), 0.0),
    "linear": lambda: F.linear(on(2, 3), torch.ones(4, 3)),
    "module": lambda: nn.Linear(3, 3)(on(2, 3)),
    "layer_norm": lambda: F.layer_norm(on(2, 3), (3,), torch.ones(3)),
    "embedding": lambda: F.embedding(torch.tensor([0]), on(4, 3)),
    "gather": lambda: on(2, 3).gather(1, torch.zeros(2, 1).long()),
    "index_select": lambda: on(3).index_select(0, torch.tensor([0])),
    "index_add": lambda: on(3).index_add_(0, torch.tensor([0]).cuda(), torch.ones(1)),
    "isin": lambda: torch.isin(on(3), torch.ones(3)),
    "index of the device": lambda: torch.ones(3)[torch.tensor([1], device="cuda")],
    "mask of the device": lambda: torch.ones(3)[torch.ones(3, device="cuda") > 0],
    "write at an index": lambda: on(3).__setitem__(torch.tensor([1, 2]), torch.ones(2)),
    "write at a mask": lambda: torch.ones(3).__setitem__(torch.ones(3) > 0, on(3)),
    "out": lambda: torch.mul(on(3), 2, out=torch.empty(3)),
    "out of the device": lambda: torch.mul(torch.ones(3), 2, out=torch.empty(3, device="cuda")),
    "masked_fill": lambda: on(3).masked_fill_(torch.ones(3) > 0, 0.0),
    "einsum": lambda: torch.einsum("ij,j->i", on(2, 3), torch.ones(3)),
    "generator": lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
    "generator of the device": lambda: torch.randn(3, generator=torch.Generator("cuda")),
    "multinomial": lambda: torch.multinomial(on(3), 1, generator=torch.Generator()),
    "normal in place": lambda: on(3).normal_(generator=torch.Generator()),
    "pin": lambda: on(3).pin_memory(),
    "cross entropy": lambda: F.cross_entropy(on(2, 3), torch.tensor([0, 1])),
}


@pytest.mark.parametrize("name", MIXED)
def test_two_devices_in_one_call_are_refused(name):
    with pytest.raises((RuntimeError, ValueError)):
        MIXED[name]()


@pytest.mark.parametrize(
    "convert",
    [lambda x: x.numpy(), np.asarray, np.abs, lambda x: np.zeros(3) + np.asarray(x), lambda x: x.numpy(force=False)],
)
def test_numpy_never_sees_the_device(convert):
    with pytest.raises(TypeError, match=r"Tensor\.cpu\(\)"):
        convert(on(3))


def test_numpy_sees_what_was_copied_to_the_host():
    assert on(3).cpu().numpy().sum() == 3 and torch.ones(3).numpy().sum() == 3


def same(found: torch.Tensor, expected: torch.Tensor, kind: str = "cuda") -> None:
    assert found.device.type == kind and found.is_cuda == (kind == "cuda")
    torch.testing.assert_close(found.cpu(), expected)


def test_numbers_may_be_of_the_host():
    two = torch.tensor(2.0)
    same(on(3) * two, torch.full((3,), 2.0))
    same(two * on(3), torch.full((3,), 2.0))
    same(torch.where(on(3) > 0, two, 0.0), torch.full((3,), 2.0))
    same(on(3).mul_(two), torch.full((3,), 2.0))


def test_indices_may_be_of_the_host():
    x = torch.arange(6.0, device="cuda").view(2, 3)
    same(x[:, torch.tensor([2, 0])], torch.tensor([[2.0, 0], [5, 3]]))
    same(x[torch.tensor([True, False])], torch.tensor([[0.0, 1, 2]]))
    x[torch.tensor([0]), torch.tensor([1])] = 7.0
    x[1, torch.tensor([1])] = torch.tensor(8.0)
    same(x, torch.tensor([[0.0, 7, 2], [3, 8, 5]]))


def test_copies_cross():
    x, y = on(3), torch.zeros(3)
    y.copy_(x)
    assert y.sum() == 3 and y.device.type == "cpu"
    x[:2] = torch.zeros(2)
    same(x, torch.tensor([0.0, 0, 1]))
    y[1:] = x[1:]
    assert y.tolist() == [1, 0, 1] and y.device.type == "cpu"


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.cuda(), lambda x: x.to("cuda"), lambda x: x.to("cuda:0"), lambda x: x.to(torch.device("cuda")),
        lambda x: x.to(0), lambda x: x.to(on(1)), lambda x: x.to(device="cuda"),
        lambda x: x.to("cuda", torch.float32), lambda x: x.to("cuda", non_blocking=True),
        lambda x: x.to("cuda", torch.float32, True), lambda x: x.to("cuda", torch.float32, False, True),
        lambda x: x.pin_memory().to("cuda", non_blocking=True), lambda x: x.type_as(on(1)),
    ],
)  # fmt: skip
def test_a_tensor_moves_by_a_copy(move):
    x = torch.arange(3.0)
    there = move(x)
    same(there, torch.arange(3.0))
    there += 1
    assert x.tolist() == [0, 1, 2]
    back = there.to("cpu")
    back += 1
    same(there, torch.arange(3.0) + 1)
    assert there.to("cuda") is there and x.to("cpu") is x and x.cpu() is x


def test_a_tensor_keeps_its_place_when_only_its_dtype_changes():
    same(on(2).to(torch.float64), torch.ones(2, dtype=torch.float64))
    same(on(2).double(), torch.ones(2, dtype=torch.float64))
    same(torch.ones(2).to(torch.float64), torch.ones(2, dtype=torch.float64), "cpu")
    assert torch.ones(2).to(torch.ones(1)).device.type == "cpu"


def test_factories_say_where():
    made = [
        torch.tensor([1.0], device="cuda"), torch.zeros(1, device="cuda"), torch.full((1,), 2.0, device="cuda:0"),
        torch.arange(1, device=torch.device("cuda")), torch.zeros_like(on(1)),
        torch.zeros_like(torch.ones(1), device="cuda"),
        on(1).new_zeros(1), on(1).new_tensor([1.0]), torch.as_tensor([1.0], device="cuda"), torch.tensor(on(1)[0]),
        torch.randn(1, device="cuda", generator=torch.Generator("cuda").manual_seed(0)), torch.as_tensor(on(1)),
        torch.from_numpy(np.ones(1)).cuda(), torch.empty(1, device=0),
    ]  # fmt: skip
    assert [x.device for x in made] == [torch.device("cuda", 0)] * len(made)
    here = [
        torch.tensor([1.0]), torch.zeros(1), torch.zeros_like(on(1), device="cpu"), torch.ones(1).new_zeros(1),
        torch.tensor([on(1)[0], 2.0]), torch.from_numpy(np.ones(1)), on(1).new_zeros(1, device="cpu"),
    ]  # fmt: skip
    assert [x.device.type for x in here] == ["cpu"] * len(here)
    with torch.device("cuda"):
        assert torch.zeros(1).is_cuda
    assert not torch.zeros(1).is_cuda


def test_results_in_place_and_views_are_the_tensors_themselves():
    x = on(2, 3)
    assert x.add_(1) is x and torch.mul(x, 2, out=x) is x
    x[0].zero_()
    same(x, torch.tensor([[0.0, 0, 0], [4, 4, 4]]))
    assert x.T.is_cuda and x.data.is_cuda and all(row.is_cuda for row in x) and x.max(1).values.is_cuda
    assert isinstance(x.sum().item(), float) and x.tolist()[0] == [0, 0, 0] and bool(x[1, 0] == 4)
    assert "cuda:0" in repr(x) and f"{x.sum():.1f}" == "12.0" and x.get_device() == 0
    assert x.type() == "torch.cuda.FloatTensor"


def test_a_module_moves_and_its_parameters_stay_the_objects_they_are():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight
            self.register_buffer("scale", torch.tensor([2.0, 2.0, 2.0]))

        def forward(self, ids):
            return self.head(self.table(ids) * self.scale)

    module = Tied()
    weight, expected = module.head.weight, module(torch.tensor([1, 2])).detach()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for there in (module.to("cuda"), module.cpu().cuda(), module.cpu().to(device="cuda", dtype=None)):
        assert there.head.weight is weight is there.table.weight and weight.is_cuda and isinstance(weight, nn.Parameter)
        assert there.scale.is_cuda and len(list(there.parameters())) == 1
    found = module(torch.tensor([1, 2], device="cuda"))
    torch.testing.assert_close(found.detach().cpu(), expected)
    found.sum().backward()
    assert weight.grad.is_cuda
    before = weight.detach().clone()
    optimiser.step()
    assert not torch.equal(before, weight)
    twin = copy.deepcopy(module)
    assert isinstance(twin.head.weight, nn.Parameter) and twin.head.weight.is_cuda
    assert twin.head.weight is twin.table.weight and torch.equal(twin.head.weight, weight)
    module.half()
    assert module.head.weight.dtype == torch.float16 and module.head.weight.is_cuda
    module.to("cpu", torch.float32)
    assert module.head.weight is weight and not weight.is_cuda and not module.scale.is_cuda


def test_gradients_and_their_hooks_are_on_the_device():
    seen = []
    x = on(3).requires_grad_()
    y = x * 2
    y.register_hook(lambda grad: seen.append(grad.device.type))
    (grad,) = torch.autograd.grad(y.sum(), x)
    same(grad, torch.full((3,), 2.0))
    assert seen == ["cuda"]


def test_random_numbers_on_the_device_have_their_own_state():
    torch.manual_seed(3)
    here, there = torch.get_rng_state(), torch.cuda.get_rng_state()
    first = torch.rand(4, device="cuda")
    assert torch.equal(here, torch.get_rng_state()) and not torch.equal(there, torch.cuda.get_rng_state())
    torch.cuda.set_rng_state(there)
    assert torch.equal(first, torch.rand(4, device="cuda"))
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(4, device="cuda"))
    torch.rand(4)
    states = torch.cuda.get_rng_state_all()
    assert len(states) >= 1 and not any(s.is_cuda for s in states)
    generator = torch.Generator("cuda").manual_seed(1)
    assert generator.device.type == "cuda" and torch.Generator().device.type == "cpu"
    assert torch.randperm(4, device="cuda", generator=generator).is_cuda


def test_counts_of_whole_numbers():
    same(torch.histc(torch.tensor([0, 1, 1, 3], device="cuda"), 4, 0, 3), torch.tensor([1, 2, 0, 1]))
    same(torch.bincount(torch.tensor([0, 1, 1], device="cuda")), torch.tensor([1, 2]))


def test_the_queries_that_code_asks():
    assert torch.cuda.is_available() and torch.cuda.device_count() >= 1
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total and torch.cuda.get_device_name()
    torch.cuda.synchronize(), torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() >= 0 and torch.cuda.current_device() == 0


def test_a_wrong_number_as_index_is_seen_on_the_host():
    with pytest.raises(IndexError):
        on(3)[5]
    assert on(3).sum() == 3


# A true device is lost with its whole process: these are tried on the make-believe one alone.
ASSERTS = {
    "index": lambda: on(3)[torch.tensor([5])],
    "negative": lambda: on(3)[torch.tensor([-4], device="cuda")],
    "write": lambda: on(3).__setitem__(torch.tensor([5]), 1.0),
    "gather": lambda: on(2, 3).gather(1, torch.tensor([[5], [0]], device="cuda")),
    "embedding": lambda: F.embedding(torch.tensor([9], device="cuda"), on(4, 3)),
    "index_select": lambda: on(3).index_select(0, torch.tensor([5], device="cuda")),
    "scatter": lambda: on(3).scatter_(0, torch.tensor([5], device="cuda"), 1.0),
    "cross entropy": lambda: F.cross_entropy(on(1, 3), torch.tensor([7], device="cuda")),
    "multinomial": lambda: torch.multinomial(-on(3), 1),
}


@pytest.mark.parametrize("name", ASSERTS)
def test_an_index_out_of_range_loses_the_device(name, device):
    if device == "true":
        pytest.skip("an assertion on a true device ends its process")
    with pytest.raises(RuntimeError, match="device-side assert"):
        ASSERTS[name]()
    for after in (lambda: on(3), lambda: torch.ones(3).cuda()):
        with pytest.raises(RuntimeError, match="device-side assert"):
            after()
    assert torch.ones(3).sum() == 3


def test_the_host_is_as_ever_after_the_context(device):
    if device == "true":
        pytest.skip("of the make-believe device")
    with MakeBelieveCuda():
        pass
    assert torch.ones(3)[torch.tensor([1])].tolist() == [1]
