"""``load()``: weights + tokenizer or processor + proved anatomy = :class:`Model`."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.adapters import base_of, is_adapter, with_adapter
from workbench.anatomy import (
    Anatomy,
    Replay,
    dissect,
    head_weights,
    proof_is_current,
    proof_rests_on,
    text_config,
)
from workbench.anatomy.block_writes import Parts, block_writes
from workbench.anatomy.moe import MoE, routed_experts
from workbench.errors import InputError, Refused
from workbench.fingerprint import DIGITS, Counted, adapters, execution_device, of_config, placed
from workbench.images.loading import load_processor
from workbench.weights import effective_weight, outermost

if TYPE_CHECKING:
    from workbench.images.proof import Vision

ENGINES = ("auto", "hooks", "prefix")
"""Ways to run a model (:mod:`workbench.engine.drivers`)."""


class Model:
    """A loaded model whose readout has been proved.  Made by :func:`load`.

    Attributes:
        name: what the model is called in figures and provenance; of a folder, its own name.
        source: the hub id or the folder that it was loaded from; None for a model in memory.
        quantization: how the weights were quantised, e.g. "GGUF Q4_K_M"; None where they were not.
        engine: how :func:`workbench.read` runs it where it is not told otherwise.
        module: the ``torch.nn.Module`` (a transformers model).
        tokenizer, processor: as transformers gives them; either may be None.
        no_processor: why a vision-language model that was loaded by name has no processor; "" where it has, or takes
            none.
        anatomy: where things are, and the proof (:class:`workbench.anatomy.Anatomy`).
        known: what was found about the model once, by whoever needed it; forgotten when it is proved again.
        stream: whose residual stream readers see: "text"; of a vision tower, "vision".
    """

    stream = "text"

    def __init__(self, module: nn.Module, *, name: str, tokenizer: Any = None, processor: Any = None) -> None:
        self.name = name
        self.source: str | None = None
        self.quantization: str | None = None
        self.engine = "auto"
        self.no_processor = ""
        self.module = module
        self.tokenizer = tokenizer if tokenizer is not None else getattr(processor, "tokenizer", None)
        self.processor = processor
        self._counted: tuple[Any, str] = (None, "")
        self._matrices: dict[str, tuple[Any, Any]] = {}
        self.prove()

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.anatomy.architecture}, {self.n_layers} layers, d_model {self.d_model}, "
            f"vocabulary {self.vocab_size}, {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"proof {self.anatomy.proof.error:.0e})"
        )

    def prove(self) -> None:
        """Find the anatomy, prove its readout, and forget what was known from an earlier proof."""
        self.anatomy: Anatomy = dissect(self.module)
        self.known: dict[str, Any] = {}
        self.__dict__.pop("replay", None)
        self._proved = proof_rests_on(self.module, self.anatomy)

    def renew(self) -> None:
        """Prove the readout again where what was proved has changed: a head or norm replaced, adapted or hooked.

        Raises Refused when it does not hold any more.
        """
        if not proof_is_current(self.module, self.anatomy, self._proved):
            self.prove()

    def once(self, name: str, find: Callable[[Model], Any]) -> Any:
        """What ``find(model)`` gives, or that it refuses: found once, until the model is proved again."""
        if name not in self.known:
            try:
                self.known[name] = find(self)
            except Refused as reason:
                self.known[name] = reason
        if isinstance(self.known[name], Refused):
            raise self.known[name]
        return self.known[name]

    @property
    def n_layers(self) -> int:
        return self.anatomy.n_layers

    @property
    def d_model(self) -> int:
        return self.anatomy.d_model

    @property
    def vocab_size(self) -> int:
        """Columns of the logits, which may be more than the tokenizer has tokens (padded embeddings)."""
        return self.anatomy.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the inputs go (with several devices: where the embeddings are; offloaded: where they are brought)."""
        return execution_device(self.module)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @cached_property
    def context_length(self) -> int | None:
        """The longest prompt in tokens that the model was built for, or None where it has no limit."""
        config = text_config(self.module)
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx"):
            value = getattr(config, key, None)
            if isinstance(value, int) and value > 0:
                return value
        return None

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.module.get_submodule(self.anatomy.blocks).children())

    @cached_property
    def replay(self) -> Replay:
        return Replay(self.module, self.anatomy)

    @property
    def unembedding(self) -> tuple[Tensor, Tensor | None]:
        """The matrix [vocabulary, features] and the bias [vocabulary] or None, on their own device.

        What the model multiplies with (:mod:`workbench.weights`): with adapters that act, dequantised, fetched.
        """
        return self._effective(self.anatomy.unembedding, lambda _: head_weights(self.module, self.anatomy))

    @property
    def embedding(self) -> Tensor:
        """What the input embedding gives for each id [vocabulary, d_model]; see :attr:`token_vectors`.

        Raises InputError when the embeddings are not vectors of the residual stream (a projection follows).
        """
        found = self.token_vectors if self.anatomy.embedding else None
        if found is None or found.shape[1] != self.d_model:
            shape = None if found is None else tuple(found.shape)
            raise InputError(
                f"The input embeddings of {self.name} have shape {shape} and its residual stream is "
                f"{self.d_model} wide, so states cannot be compared with embeddings. Use LogitLens instead."
            )
        return found

    @property
    def token_vectors(self) -> Tensor:
        """[ids, width]: what the embedding module gives for each id, as ``inputs_embeds`` takes it.

        With adapters that act, and scaled where the module scales (Gemma 3; Gemma 2 scales behind it).
        """
        if self.anatomy.embedding is None:
            raise InputError(f"{self.name} has no input embeddings of its own, so ids have no vectors.")
        return self._effective(self.anatomy.embedding, effective_weight)

    def _effective(self, path: str, read: Any) -> Any:
        """A matrix that is read off a module; once, until something about the module changes."""
        module = outermost(self.module, path)
        token = Counted(module).token()
        if self._matrices.get(path, (None,))[0] != token:
            self._matrices[path] = token, read(module)
        return self._matrices[path][1]

    @property
    def parts(self) -> list[Parts | str]:
        """How each block writes to the stream (:mod:`workbench.anatomy.block_writes`), found when asked for."""
        return block_writes(self)

    @property
    def moe(self) -> dict[int, MoE]:
        """Mixture-of-experts layers by block (:class:`workbench.anatomy.moe.MoE`), proved when first asked for."""
        return routed_experts(self)

    @property
    def vision(self) -> Vision:
        """How pictures get in (:class:`workbench.images.proof.Vision`), proved when first asked for.

        Raises Refused where prompts with pictures cannot be read rightly.
        """
        from workbench.images.proof import Vision

        return self.once("vision", Vision)

    @property
    def adapters(self) -> list[str]:
        """PEFT's adapters that act: their names, with "(merged)" where they are in the weights."""
        return adapters(self.module)

    @property
    def offloaded(self) -> list[str]:
        """Where weights lie that are brought for each pass: "cpu", "disk"; [] where all are on their devices."""
        return placed(self.module)

    def untrained(self, seed: int = 0) -> Model:
        """A model of the same configuration with fresh weights: what its architecture alone would show.

        Same tokenizer, device and dtype, weights as transformers initialises them.  It takes the memory once more.

        Parameters
        ----------
        seed
            Of the weights.

        Raises
        ------
        Refused
            For models that transformers does not build from a configuration alone: adapted, quantised, or of a class
            that its auto classes do not know.
        """
        import transformers

        module, of = self.module, f"No untrained twin of {self.name} can be made"
        if self.adapters or self.quantization or getattr(getattr(module, "config", None), "quantization_config", None):
            raise Refused(f"{of}: it is adapted or quantised. Load the plain base model, and take its twin.")
        if not isinstance(module, transformers.PreTrainedModel):
            raise Refused(f"{of}: {type(module).__name__} is no model of transformers, so its config is not known.")
        auto, _ = _auto_class(module.config, self.name, type(module).__name__)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            made = auto.from_config(copy.deepcopy(module.config))
        if type(made) is not type(module):
            raise Refused(
                f"{of}: from its configuration transformers builds a {type(made).__name__}, and it is a "
                f"{type(module).__name__}. Give a model of your own that has not been trained."
            )
        made = made.to(device=self.device, dtype=self.dtype).eval()  # type: ignore[call-arg]
        return Model(made, name=f"{self.name}, untrained", tokenizer=self.tokenizer, processor=self.processor)

    @property
    def fingerprint(self) -> str:
        """20 hex digits over what runs: config, every weight, adapters that act, hooks, and the tokenizer's vocabulary.

        The same on every device, for every way of spreading the weights (offloaded ones too) and for every dtype that
        holds the same values; see :mod:`workbench.fingerprint`.  Counted again when something has changed.
        """
        counted = Counted(self.module)
        config = of_config(getattr(self.module, "config", None))
        words = self.tokenizer if hasattr(self.tokenizer, "get_vocab") else None
        token = counted.token(), config, (id(words), len(words)) if words is not None else None
        if token != self._counted[0]:
            digest = hashlib.sha256(config)
            counted.into(digest)
            if words is not None:
                digest.update(json.dumps(sorted(words.get_vocab().items())).encode())
            self._counted = token, digest.hexdigest()[:DIGITS]
        return self._counted[1]

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """16 hex digits over the vocabulary and over how a few texts are split; None without a tokenizer.

        The texts tell apart tokenizers of one vocabulary: leading tokens, normalisation, how words are cut.
        """
        if self.tokenizer is None:
            return None
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        for text in ("The cat sat.", " two  Spaces\n\tand 1234567 é e\u0301", "naïve 日本語 🙂 don't"):
            digest.update(json.dumps(list(self.tokenizer(text)["input_ids"])).encode())
        return digest.hexdigest()[:16]


def load(
    source: Any,
    *,
    adapter: str | Path | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    quantization: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    engine: str = "auto",
    name: str | None = None,
    progress: bool = True,
) -> Model:
    """Load a model and prove its readout.

    Args:
        source: ``"organism:story"`` (built in), a hub id, a local folder, a ``.gguf`` file, the folder of a PEFT
            adapter that names its base, a transformers model in memory (give its ``tokenizer=``), an nnsight
            ``LanguageModel`` or a TransformerLens ``TransformerBridge`` (both are read through the model they wrap).
        adapter: the folder or hub id of a PEFT adapter for the source (needs peft).  It stands beside the weights, not
            merged; a model in memory is left as it is, and shares its weights with the one that is returned.
        device: ``"cpu"``, ``"cuda"``, ...; default: a GPU when there is one.  Not together with device_map.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or "auto"; default: as the checkpoint on a GPU, fp32 on CPU.
        device_map: as in transformers, e.g. ``"auto"`` to spread a model over several GPUs (needs accelerate).
        quantization: ``"8bit"`` or ``"4bit"`` (needs bitsandbytes); the unembedding stays unquantised.
        gguf_file: which file of a hub model or folder, e.g. ``"model-Q4_K_M.gguf"``.  Weights of a GGUF file are
            dequantised when they are read (needs gguf).
        revision: a branch, tag or commit of a hub model.
        engine: how :func:`workbench.read` runs the model where it is not told otherwise: ``"hooks"`` (whole prompts;
            what ``"auto"`` means) or ``"prefix"`` (beginnings that prompts share are run once).
        name: what the model is called in figures and files; default: the hub id, or the folder's own name.
        progress: False: no bars while files are fetched and read, so that a sound checkpoint loads without a word
            (warnings, of weights that are missing for instance, are shown).  Other loads show theirs as before.

    Raises:
        Refused: when the readout cannot be found or proved; the message has the nearest reason.
        InputError: when the arguments do not fit together or the source is not there.
    """
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r} is unknown. Use one of {', '.join(map(repr, ENGINES))}.")
    hint = ""
    if isinstance(source, Model):
        if adapter is None:
            if engine not in ("auto", source.engine):
                raise InputError(
                    f"{source.name} is loaded already, with engine={source.engine!r}. Say read(..., engine={engine!r})."
                )
            return source
        name = name or f"{source.name}+{_called(str(adapter))}"
        tokenizer = source.tokenizer if tokenizer is None else tokenizer
        processor, source = source.processor if processor is None else processor, source.module
    if adapter is None and isinstance(source, (str, Path)) and is_adapter(source):
        adapter = source
        source, named = base_of(adapter)
        revision = named if revision is None else revision
        hint = f" It is the base that the adapter in {adapter} names: give yours, load(base, adapter={str(adapter)!r})."
    if adapter is not None and tokenizer is None and (Path(adapter).expanduser() / "tokenizer_config.json").exists():
        import transformers

        # With the chat template that it was trained in.
        tokenizer = _optional(transformers.AutoTokenizer, str(Path(adapter).expanduser()), {})
    rounded, lack = None, ""
    if isinstance(source, (str, Path)):
        found = str(source)
        gguf = _gguf(found, gguf_file, quantization, revision)
        if gguf is not None:
            found, rounded = f"{found}/{gguf_file}" if gguf_file else found, _rounding(gguf)
        with nullcontext() if progress else _no_bars():
            module, tokenizer, processor, lack = _from_pretrained(
                str(source), tokenizer, processor, device, dtype, device_map, quantization, revision, trust_remote_code,
                gguf, hint,
            )  # fmt: skip
    else:
        by_name = {
            "device_map": device_map, "quantization": quantization, "gguf_file": gguf_file, "revision": revision,
        }  # fmt: skip
        for option, value in by_name.items():
            if value is not None:
                raise InputError(f"{option}= is for loading by name; this model is in memory already.")
        module, tokenizer = _unwrap(source, tokenizer)
        found = getattr(getattr(module, "config", None), "_name_or_path", "") or type(module).__name__
        # Only what was asked for: a quantised model moves, and refuses even dtype=None.
        asked = {"device": device, "dtype": _dtype(dtype)}
        if asked := {k: v for k, v in asked.items() if v is not None}:
            module = module.to(**asked)  # type: ignore[arg-type]
    if adapter is not None:
        module = with_adapter(module, adapter)
        name = name or f"{_called(found)}+{_called(str(adapter))}"
    model = Model(module, name=name or _called(found), tokenizer=tokenizer, processor=processor)
    model.source = found if isinstance(source, (str, Path)) else None
    model.quantization = rounded or _quantization(module)
    model.engine = engine
    model.no_processor = lack
    return model


def _called(source: str) -> str:
    """A folder's own name: where it lies says nothing about the model, and is nobody's business in a paper."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else path.name if path.is_absolute() else source


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers and of the hub; they are as they were after it."""
    from functools import partialmethod

    import huggingface_hub.utils as hub
    from tqdm.auto import tqdm
    from transformers.utils import logging

    def show(own: bool, hubs: bool) -> None:
        with warnings.catch_warnings(action="ignore"):  # where HF_HUB_DISABLE_PROGRESS_BARS has the last word
            logging.enable_progress_bar() if own else logging.disable_progress_bar()  # either sets the hub's, too
            hub.enable_progress_bars() if hubs else hub.disable_progress_bars()

    before = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    own = vars(tqdm).get("__init__")
    show(False, False)
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # the bar of GGUF files asks nobody
    try:
        yield
    finally:
        show(*before)
        del tqdm.__init__
        if own is not None:
            tqdm.__init__ = own


def _unwrap(source: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    """The transformers model inside what nnsight or TransformerLens made of it."""
    origin = type(source).__module__.split(".")[0]
    if origin == "nnsight":
        tokenizer = tokenizer if tokenizer is not None else getattr(source, "tokenizer", None)
        module = getattr(source, "_module", None)
        if not isinstance(module, nn.Module) or next(module.parameters()).is_meta:
            raise InputError(
                "This nnsight model holds no weights yet (they are on the meta device). "
                "Create it with dispatch=True, or give the transformers model itself."
            )
        return module, tokenizer
    if origin == "transformer_lens":
        tokenizer = tokenizer if tokenizer is not None else getattr(source, "tokenizer", None)
        module = getattr(source, "original_model", None)
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{type(source).__name__} wraps no transformers model. Use TransformerBridge.boot_transformers, "
                "or load the model by name."
            )
        return module, tokenizer
    if isinstance(source, nn.Module):
        parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
        while isinstance(source, parallel) or hasattr(source, "_orig_mod"):  # what torch.compile() wrapped
            source = source.module if isinstance(source, parallel) else source._orig_mod
        return source, tokenizer
    raise InputError(
        f"load() was given a {type(source).__name__}. It takes a hub id, a folder, 'organism:NAME', or a model "
        "in memory (transformers, nnsight LanguageModel, TransformerBridge)."
    )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    found = getattr(torch, short.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {dtype!r} is not a floating-point type. Use 'float32', 'bfloat16' or 'float16'.")
    return found


def _from_pretrained(
    source: str,
    tokenizer: Any,
    processor: Any,
    device: Any,
    dtype: Any,
    device_map: Any,
    quantization: str | None,
    revision: str | None,
    trust_remote_code: bool,
    gguf: Path | None = None,
    hint: str = "",
) -> tuple[nn.Module, Any, Any, str]:
    """The module, the tokenizer, the processor, and why there is none."""
    import transformers

    name, lack = source, ""
    if gguf is not None:
        source = str(gguf.parent)
    elif source.startswith("organism:"):
        from workbench.organisms import folder

        source = str(folder(source.removeprefix("organism:")))
    elif Path(source).exists() and not (Path(source) / "config.json").exists():
        inside = sorted(path.parent.name for path in Path(source).glob("*/config.json"))
        if files := sorted(path.name for path in Path(source).glob("*.gguf")):
            raise InputError(f"{source} is a folder of GGUF files. Say which, with gguf_file=: {', '.join(files[:8])}.")
        raise InputError(
            f"{source} is not a model folder: it has no config.json. Give the folder that save_pretrained() wrote"
            + (f"; inside are {', '.join(inside[:8])}." if inside else ".")
        )
    elif not Path(source).expanduser().exists() and (source.startswith((".", "/", "~")) or not _hub_id(source)):
        raise InputError(f"There is no folder {source}.{_near(source)}")
    if device is not None and device_map is not None:
        raise InputError("device= and device_map= were both given. device_map places the model by itself.")
    if device is None and device_map is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if gguf is not None:
        common = {"gguf_file": gguf.name}
    options: dict[str, Any] = dict(common)
    if gguf is not None and hasattr(transformers, "GgufConfig"):  # it may leave weights packed for a kernel
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if dtype is not None and dtype != "auto":
        options["dtype"] = _dtype(dtype)
    else:
        options["dtype"] = torch.float32 if str(device).startswith("cpu") and dtype != "auto" else "auto"
    if device_map is not None:
        options["device_map"] = device_map
    if quantization is not None:
        options["quantization_config"] = _quantized(quantization)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **common)
        auto, multimodal = _auto_class(config, name)
        module = auto.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        if Path(source).expanduser().exists():
            raise InputError(f"{name!r} could not be loaded: {error}") from error
        raise InputError(
            f"There is no folder {name!r} here, so it was taken for a hub id, and the hub did not give it: {error}"
            f"{_near(source)}{hint}"
        ) from error
    if device_map is None and quantization is None:
        module = module.to(device)
    if multimodal and processor is None:
        processor, lack = load_processor(source, config, common)
    if tokenizer is None and getattr(processor, "tokenizer", None) is None:
        tokenizer = _optional(transformers.AutoTokenizer, source, common)
        # Without tokenizer files transformers makes an empty one of the model's usual kind.
        if tokenizer is not None and not tokenizer("a b", add_special_tokens=False)["input_ids"]:
            tokenizer = None
    return module, tokenizer, processor, lack


def _gguf(source: str, name: str | None, quantization: str | None, revision: str | None) -> Path | None:
    """The GGUF file that is meant, fetched from the hub where it is there; None for any other model."""
    from importlib.util import find_spec

    from workbench.errors import missing

    path = Path(source).expanduser()
    if name is None and path.suffix != ".gguf":
        return None
    if name is not None and (path.is_file() or source.startswith("organism:")):
        raise InputError(f"gguf_file= names a file of a hub model or of a folder, and {source} is neither.")
    if quantization is not None:
        raise InputError("A GGUF file is quantised already: leave out quantization=.")
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise missing(package, "Loading a .gguf file", "gguf")
    if name is None or path.is_dir():
        path = path if name is None else path / name
        if not path.is_file():
            beside = sorted(file.name for file in path.parent.glob("*.gguf"))
            raise InputError(
                f"There is no file {path}." + (f" Beside it are {', '.join(beside[:8])}." if beside else "")
            )
        return path.absolute()
    from huggingface_hub import hf_hub_download

    if not _hub_id(source):
        raise InputError(f"There is no folder {source}.{_near(source)}")
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except (OSError, ValueError) as error:
        raise InputError(
            f"There is no folder {source!r} here, so it was taken for a hub id, and the hub did not give {name}: "
            f"{error}"
        ) from error


def _rounding(gguf: Path) -> str:
    """How the weights of a GGUF file are quantised, e.g. "GGUF Q4_K_M": as the file says, or its commonest type."""
    from collections import Counter

    from gguf import GGUFReader, LlamaFileType

    reader = GGUFReader(gguf)
    said = reader.get_field("general.file_type")
    if said is not None and (number := int(said.parts[-1][0])) in set(LlamaFileType):
        return f"GGUF {LlamaFileType(number).name.removeprefix('MOSTLY_').removeprefix('ALL_')}"
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return f"GGUF {sizes.most_common(1)[0][0]}"


def _quantization(module: nn.Module) -> str | None:
    """How the weights of a transformers model are quantised, e.g. "bitsandbytes 4bit"; None where they are not."""
    config = getattr(getattr(module, "config", None), "quantization_config", None)
    if config is None:
        return None
    known = config if isinstance(config, dict) else config.to_dict()
    method = str(getattr(known.get("quant_method"), "value", known.get("quant_method")) or type(config).__name__)
    bits = known.get("bits") or (known.get("load_in_4bit") and 4) or (known.get("load_in_8bit") and 8)
    return f"{method.removeprefix('bitsandbytes_')} {bits}bit" if bits else method


def _hub_id(source: str) -> bool:
    """Whether a text may be the id of a model on the hub: "name" or "owner/name"."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None


def _near(source: str) -> str:
    """Where a name has no model: folders and organisms of nearly that name."""
    from workbench.organisms import names

    path = Path(source).expanduser()
    beside = [child.name for child in path.parent.iterdir() if child.is_dir()] if path.parent.is_dir() else []
    found = [str(path.with_name(name)) for name in get_close_matches(path.name, beside)]
    found += [f"organism:{name}" for name in get_close_matches(source.removeprefix("organism:"), names())]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def _auto_class(config: Any, name: str, kind: str = "") -> tuple[Any, bool]:
    """The auto class for a config (of a model of class ``kind``), and whether the model also takes images."""
    import transformers
    from transformers.models.auto import modeling_auto as mappings

    # Some types are in both: a checkpoint that was saved with its vision tower is loaded with it.
    own = mappings.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    own = {own} if isinstance(own, str) else set(own or ())
    saved = {kind} if kind else set(getattr(config, "architectures", None) or ())
    if config.model_type in mappings.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not saved & own:
        return transformers.AutoModelForCausalLM, False
    if config.model_type in mappings.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText, True
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return transformers.AutoModelForCausalLM, False
    raise Refused(
        f"{name} is a {config.model_type!r} model, which transformers has neither as a causal language model nor "
        "as an image-text-to-text model. A lens needs logits over tokens at each position."
    )


def _quantized(quantization: str) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    from workbench.errors import missing

    if quantization not in ("8bit", "4bit"):
        raise InputError(f"quantization={quantization!r} is unknown. Use '8bit' or '4bit'.")
    if find_spec("bitsandbytes") is None:
        raise missing("bitsandbytes", f"Loading in {quantization}", "quantization")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)


def _optional(auto: Any, source: str, common: dict[str, Any]) -> Any:
    """A tokenizer or processor if the source has one; models without can be read by token ids."""
    try:
        return auto.from_pretrained(source, **common)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError):
        return None
