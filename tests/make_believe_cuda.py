"""A make-believe CUDA device for machines without one: the numbers are the CPU's, the rules about devices are CUDA's.

    with MakeBelieveCuda():
        model = workbench.load("organism:story", device="cuda")     # every mistake about devices raises as on a GPU

A tensor "on the device" is a CPU tensor of the class :class:`OnDevice`, which says that it is on cuda:0.  A
TorchFunctionMode sees each call of torch from Python, asks the rules below whether a GPU would do it, lets the CPU
compute, and puts the result where CUDA would put it.

What raises, as on a GPU
    two devices in one call                    RuntimeError; plain numbers and, in pointwise calls, CPU tensors
                                               without dimensions may be mixed in
    .numpy(), np.asarray(), numpy functions    TypeError: copy it to the host first
    indices                                    a tensor on the device takes indices from both, one on the CPU from there
    a generator of the other device            RuntimeError
    an index out of range                      RuntimeError "device-side assert triggered", and from then on every call
                                               on the device, until the context is left: the process would be lost
    pin_memory() on the device                 RuntimeError
What moves: .to() (device, number, tensor, non_blocking), .cuda(), .cpu(), copy_(), x[2:5] = y, nn.Module.to()
(parameters stay the objects they are, so ties and optimisers hold), device= of every factory, torch.device("cuda") as
a context.
Random numbers on the device have a state of their own, as torch.cuda.get_rng_state() tells.

What it cannot see: streams and synchronisation (all is done at once), memory, kernels that compute otherwise or not at
all (no TF32, no half-precision sums, no atomics in another order), autocast for CUDA, several devices and device_map,
threads other than the one that entered, and code below Python (custom autograd functions, compiled graphs).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
TRUE_GENERATOR = torch.Generator

# Calls that take tensors of several devices.
FREE = {
    "copy_", "as_subclass", "is_same_size", "_has_compatible_shallow_copy_type", "__hash__",
    "__repr__", "__format__", "result_type", "can_cast", "promote_types", "is_tensor", "new_tensor", "tensor",
    "as_tensor", "asarray",
}  # fmt: skip
# Calls in which a CPU tensor without dimensions is no number: they are not pointwise.
STRICT = {
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "gather", "index_select", "scatter", "scatter_",
    "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "index_add", "index_add_", "index_copy_",
    "embedding", "take_along_dim", "take", "isin", "searchsorted", "bucketize", "linear", "mm", "matmul", "bmm",
}  # fmt: skip
# Indices that a kernel checks, on a GPU by an assertion.
INDEXING = STRICT | {
    "__getitem__", "__setitem__", "index_put", "index_put_", "cross_entropy", "nll_loss", "index_fill_", "multinomial",
    "one_hot",
}  # fmt: skip
OUT_OF_RANGE = re.compile(
    r"index .*out of (range|bounds)|Target .*out of bounds|out of range|probability tensor contains|"
    r"invalid multinomial|Class values must be"
)
RANDOM = re.compile(r"(rand|randn|randint|randperm|normal|bernoulli|multinomial|uniform|dropout|exponential|geometric)")


class OnDevice(torch.Tensor):
    """A tensor on the make-believe device; works also where the mode is not on (another thread, after the test)."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class Generator(TRUE_GENERATOR):
    """torch.Generator with a device that may be the make-believe one."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, device="cpu")
        made.where = where(device) or CPU
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.where


# ---------------------------------------------------------------- where things are


def where(device: Any) -> torch.device | None:
    """The device that an argument names, or None where it names none."""
    if isinstance(device, torch.device):
        return DEVICE if device.type == "cuda" else device
    if isinstance(device, str) and re.fullmatch(r"(cuda|cpu|meta)(:\d+)?", device):
        return where(torch.device(device))
    return None


def put(x: Any) -> Any:
    return x.as_subclass(OnDevice) if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) else x


def taken(x: Any) -> Any:
    return x.as_subclass(torch.Tensor) if isinstance(x, OnDevice) else x


def refused(name: str, first: str = "cuda:0", second: str = "cpu") -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {first} and {second}! "
        f"(when calling {name})"
    )


class _Broken:
    """Whether an assertion failed on the device: nothing runs there from then on."""

    yes = False


def lost() -> RuntimeError:
    return RuntimeError("CUDA error: device-side assert triggered")


# ---------------------------------------------------------------- the rules


def call(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One call of torch, under CUDA's rules."""
    name = getattr(func, "__name__", str(func))
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on = [x for x in tensors if isinstance(x, OnDevice)]
    with torch._C.DisableTorchFunctionSubclass():
        if name in ("__get__", "__set__"):
            return attribute(func, name, args, kwargs, bool(on))
        if special := SPECIAL.get(name):
            return special(func, args, kwargs)
        if name == "new_tensor" or name.startswith("new_"):
            kwargs = {"device": DEVICE if isinstance(args[0], OnDevice) else CPU, **kwargs}
        target = where(kwargs.get("device"))
        if type(kwargs.get("device")) is int:
            target = DEVICE
        if target == DEVICE:
            kwargs = {**kwargs, "device": CPU}
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        lands = target or (DEVICE if on else CPU)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != lands.type:
            raise RuntimeError(
                f"Expected a '{lands.type}' device type for generator but found '{generator.device.type}'"
            )
        if not on and lands != DEVICE:
            return func(*args, **kwargs)
        if _Broken.yes:
            raise lost()
        if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
            indexed(name, args)
        elif on and name not in FREE and not name.startswith("new_"):
            for x in tensors:
                if not isinstance(x, OnDevice) and (x.dim() > 0 or name in STRICT) and not x.is_meta:
                    raise refused(name)
        if name == "histc" and not args[0].is_floating_point():  # a GPU counts whole numbers, too
            return put(func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype))
        own = generator is None and RANDOM.search(name)
        try:
            with random_state() if own else contextlib.nullcontext():
                found = func(*args, **kwargs)
        except (IndexError, RuntimeError) as error:
            if name in INDEXING and OUT_OF_RANGE.search(str(error)) and by_tensor(name, args):
                _Broken.yes = True
                raise lost() from error
            raise
        if name in ("__getitem__", "__setitem__") and not isinstance(args[0], OnDevice) or lands.type != "cuda":
            return found  # of a tensor elsewhere
        if name == "tensor" and target is None and not isinstance(args[0] if args else kwargs["data"], torch.Tensor):
            return found  # numbers in a list are read, and the list is of the host
        return tree_map(put, found)


def indexed(name: str, args: tuple) -> None:
    """Indices may come from the CPU; what is written must be at home, unless it is copied or one number."""
    me, at = args[0], args[1]
    home = isinstance(me, OnDevice)
    tensors = [x for x in tree_leaves(at) if isinstance(x, torch.Tensor) and (x.dim() > 0 or x.dtype == torch.bool)]
    if not home and any(isinstance(x, OnDevice) for x in tensors):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    value = args[2] if len(args) > 2 else None
    if tensors and isinstance(value, torch.Tensor) and isinstance(value, OnDevice) != home:
        if value.dim() > 0 or name != "__setitem__":
            raise refused(name, *(("cuda:0", "cpu") if home else ("cpu", "cuda:0")))


def by_tensor(name: str, args: tuple) -> bool:
    """Whether a kernel would have met the index (a Python number is checked on the host)."""
    return name not in ("__getitem__", "__setitem__") or any(
        isinstance(x, torch.Tensor) and x.dim() > 0 for x in tree_leaves(args[1])
    )


def attribute(func: Any, kind: str, args: tuple, kwargs: dict[str, Any], on: bool) -> Any:
    """x.device, x.grad, x.T, x.data = y and the like."""
    what = getattr(func, "__self__", None)
    me = args[0]
    if kind == "__get__":
        if isinstance(me, OnDevice):
            if what is torch.Tensor.device:
                return DEVICE
            if what is torch.Tensor.is_cuda:
                return True
            if what is torch.Tensor.is_cpu:
                return False
        found = func(*args, **kwargs)
        return put(found) if on else found
    value = args[1] if len(args) > 1 else None
    if isinstance(value, torch.Tensor) and isinstance(value, OnDevice) != isinstance(me, OnDevice):
        if what is not torch.Tensor.data:
            raise RuntimeError("attempting to assign a gradient with device type 'cuda' to a tensor with another")
        # The same object, elsewhere: what nn.Module.to() does to a parameter.
        func(me, taken(value))
        was = isinstance(me, nn.Parameter)
        me.__class__ = OnDevice if isinstance(value, OnDevice) else nn.Parameter if was else torch.Tensor
        if was and isinstance(value, OnDevice):
            me._is_param = True
        return None
    return func(*args, **kwargs)


def _to(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """x.to(device, dtype, non_blocking, copy), x.to(dtype), x.to(other)."""
    me, rest, named = args[0], list(args[1:]), dict(kwargs)
    target = other = None
    given = named.pop("device", None)
    if rest and (rest[0] is None or type(rest[0]) is int or where(rest[0])):
        given = rest.pop(0)
    elif rest and isinstance(rest[0], torch.Tensor):
        other = rest.pop(0)
    if other is not None:
        target, named = DEVICE if isinstance(other, OnDevice) else other.device, {"dtype": other.dtype, **named}
    elif given is not None:
        target = DEVICE if type(given) is int else where(given)
    home = DEVICE if isinstance(me, OnDevice) else me.device
    target = target or home
    if rest and isinstance(rest[0], bool):  # non_blocking after a tensor
        rest.insert(0, None)
    for key, value in zip(("dtype", "non_blocking", "copy"), rest, strict=False):
        named[key] = value if value is not None else named.get(key)
    named = {k: v for k, v in named.items() if not (k == "dtype" and v is None)}
    if DEVICE in (home, target) and _Broken.yes:
        raise lost()
    if DEVICE not in (home, target):
        return func(me, **named, device=target)
    if target.type == "meta":
        return func(taken(me), **named, device=target)
    if home == target:
        found = func(me, **named)
        return me if found is me else put(found)
    if home == DEVICE:
        return func(taken(me), **{**named, "copy": True})
    return put(func(me, **{**named, "copy": True}))


def _host(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnDevice):
        if _Broken.yes:
            raise lost()
        return taken(args[0]).clone()
    return args[0]


def _cuda(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    return _to(torch.Tensor.to, (args[0], DEVICE), {})


def _numpy(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnDevice):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )
    return func(*args, **kwargs)


def _pinned(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnDevice):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    return args[0]


def _number(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnDevice) and _Broken.yes:
        raise lost()
    return func(*args, **kwargs)


def _type(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnDevice) and len(args) == 1 and not kwargs:
        return func(*args).replace("torch.", "torch.cuda.")
    return put(func(*args, **kwargs)) if isinstance(args[0], OnDevice) else func(*args, **kwargs)


def _hooked(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    me, hook = args

    def under_the_rules(grad: torch.Tensor) -> Any:
        with torch._C._EnableTorchFunction(), Rules():
            return hook(put(grad))

    return func(me, under_the_rules if isinstance(me, OnDevice) else hook)


def _copied(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """copy.deepcopy: a parameter stays one."""
    me, memo = args
    if not isinstance(me, OnDevice):
        return func(me, memo)
    if id(me) not in memo:
        made = put(taken(me).detach().clone()).requires_grad_(me.requires_grad)
        made.__dict__.update(me.__dict__)
        memo[id(me)] = made
    return memo[id(me)]


def _shown(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    text = func(taken(args[0]), **kwargs)
    return f"{text[:-1]}, device='cuda:0')" if isinstance(args[0], OnDevice) else text


SPECIAL = {
    "_parse_to": lambda func, args, kwargs: func(*args, **kwargs),  # the arguments of nn.Module.to()
    "to": _to, "type_as": lambda func, args, kwargs: _to(torch.Tensor.to, args, kwargs),
    "__format__": lambda func, args, kwargs: func(taken(args[0]), *args[1:]),
    "cpu": _host, "cuda": _cuda, "numpy": _numpy, "__array__": _numpy, "pin_memory": _pinned,
    "item": _number, "tolist": _number, "__bool__": _number, "__float__": _number, "__int__": _number,
    "__index__": _number, "type": _type, "register_hook": _hooked, "__deepcopy__": _copied, "__repr__": _shown,
    "get_device": lambda func, args, kwargs: 0 if isinstance(args[0], OnDevice) else func(*args),
    # nn.Module.to() asks: yes, a parameter may become one of the device in place.
    "_has_compatible_shallow_copy_type": lambda func, args, kwargs: True,
}  # fmt: skip


# ---------------------------------------------------------------- torch.cuda


class _Random:
    """The state of the device's own generator."""

    state = TRUE_GENERATOR().get_state()


@contextlib.contextmanager
def random_state() -> Iterator[None]:
    """Draw from the device's generator and leave the CPU's as it was."""
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_Random.state)
    try:
        yield
    finally:
        _Random.state = torch.default_generator.get_state()
        torch.default_generator.set_state(before)


def _seed(seed: int) -> None:
    _Random.state = TRUE_GENERATOR().manual_seed(seed).get_state()


def _set_state(state: torch.Tensor, *_: Any) -> None:
    _Random.state = state.clone()


class Rules(TorchFunctionMode):
    """The rules alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class MakeBelieveCuda(Rules):
    """``torch.cuda.is_available()`` inside, and the rules at the head of this file."""

    def __enter__(self) -> MakeBelieveCuda:
        _Broken.yes, _Random.state = False, TRUE_GENERATOR().manual_seed(0).get_state()
        answers = {
            "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
            "set_device": None, "synchronize": None, "empty_cache": None, "mem_get_info": (8 << 30, 16 << 30),
            "reset_peak_memory_stats": None, "max_memory_allocated": 0, "memory_allocated": 0, "memory_reserved": 0,
            "get_device_capability": (9, 0), "is_bf16_supported": True, "get_device_name": "make-believe",
        }  # fmt: skip
        calls = {
            **{name: (lambda *_, _answer=answer, **__: _answer) for name, answer in answers.items()},
            "get_rng_state": lambda *_: _Random.state.clone(), "set_rng_state": _set_state,
            "get_rng_state_all": lambda: [_Random.state.clone()], "set_rng_state_all": lambda s: _set_state(s[0]),
            "manual_seed": _seed, "manual_seed_all": _seed,
        }  # fmt: skip
        self._patches = ExitStack()
        for name, answer in calls.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, answer))
        self._patches.enter_context(mock.patch.object(torch, "Generator", Generator))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()
        _Broken.yes = False
