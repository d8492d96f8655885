"""What people bring, of the kinds that other tools' trackers tell of: read rightly, or refused."""

import threading
import warnings

import numpy as np
import pytest
import torch
import transformers
from tiny import SMALL, prompts, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import workbench
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitLens
from probes.superposition.thoughts import Given, think
from workbench.engine.prefix import Prefix
from workbench.engine.run import observe
from workbench.errors import InputError, Refused, StateError
from workbench.inputs import collate, encode


def entropy(model, ids, **options):
    return workbench.read(model, ids, LogitLens(top_k=2), progress=False, **options).data.entropy.values


def plainly(module, ids):
    """Entropy of the model's own logits, one prompt at a time."""
    with torch.no_grad():
        logprob = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return (-logprob.exp() * logprob).sum(-1).numpy()


# ---------------------------------------------------------------- rotary frequencies of the longest row


def longrope(limit=16):
    """Prompts of more than 16 tokens turn otherwise (QwenLM/Qwen issue 401 is of the same kind)."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 7.0]}
    config = transformers.Phi3Config(
        **SMALL,
        original_max_position_embeddings=limit,
        rope_parameters={**rope, "original_max_position_embeddings": limit},
    )
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return module


LENGTHS = (6, 40, 16, 17, 40, 3)


def drawn(lengths=LENGTHS, start=()):
    generator = torch.Generator().manual_seed(1)
    return [[*start, *torch.randint(3, 97, (n,), generator=generator).tolist()] for n in lengths]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_short_prompt_beside_one_beyond_the_trained_length_keeps_its_frequencies(side):
    model, ids = workbench.load(longrope()), drawn()
    found = entropy(model, ids, padding_side=side)[:, -1]
    for own, mine in zip(ids, found, strict=True):
        assert abs(mine[: len(own)] - plainly(longrope(), own)).max() < 1e-4
    given = encode(model, ids)
    assert collate(model, given, [0, 2, 5], side).inputs["input_ids"].shape == (3, 16)  # all are short
    with pytest.raises(Refused, match="Run prompts of one length together"):
        collate(model, given, [0, 3], side)


def test_an_index_pads_no_sentence_beyond_the_trained_length(tmp_path):
    tokenizer, module = numbers(), longrope(15)
    model, ids = workbench.load(module, tokenizer=tokenizer), drawn((15, 40, 15, 12))
    corpus = [" ".join(str(i) for i in own) for own in ids]
    ids = [tokenizer(text)["input_ids"] for text in corpus]
    index = ContextIndex.build(model, corpus, tmp_path / "index", layers=[4], progress=False, contexts_per_token=99)
    with torch.no_grad():
        for own in ids:
            blocks = []
            handle = module.model.layers[3].register_forward_hook(lambda m, a, out, b=blocks: b.append(out))
            module(input_ids=torch.tensor([own]))
            handle.remove()
            state = blocks[0][0] if isinstance(blocks[0], tuple) else blocks[0]
            nearest = index.search(state.reshape(-1, 32), top_k=1).similarity.values
            assert nearest.min() > 0.9999


def test_no_cache_is_kept_over_the_trained_length():
    model = workbench.load(longrope(40))
    deep, shallow = drawn((25, 18))
    ids = [[*deep, *end] for end in drawn((3,) * 12)] + [[*shallow, *end] for end in drawn((9, 30) * 6)]
    lens = LogitLens(top_k=2, layers=[-1])
    reading = workbench.read(model, ids, lens, positions="last", engine="prefix", progress=False)
    expected = [plainly(longrope(40), own)[-1] for own in ids]
    assert abs(reading.data.entropy.values[:, 0, 0] - expected).max() < 1e-4
    short = [i for i in ids if len(i) <= 40]
    drives = Prefix(model, encode(model, short, "last"))
    observe(model, drives.prompts, lens, drives)
    assert drives.saved > 0


def test_thoughts_beyond_the_trained_length_are_those_of_a_whole_pass():
    model, ids = workbench.load(longrope()), drawn((14, 9))
    vectors = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    thoughts = think(model, ids, Given(vectors), readers=[LogitLens(top_k=2, layers=[-1])])
    found = thoughts.readings[0].data.entropy.values[:, 0, -1]
    for own, given, mine in zip(ids, vectors, found, strict=True):
        fresh = longrope()
        with torch.no_grad():
            embeds = torch.cat([fresh.get_input_embeddings()(torch.tensor(own)), torch.tensor(given)])[None]
            logprob = fresh(inputs_embeds=embeds, use_cache=False).logits[0, -1].log_softmax(-1)
        assert abs(float(-(logprob.exp() * logprob).sum()) - mine) < 1e-4


# ---------------------------------------------------------------- two threads


def test_two_threads_read_what_each_would_alone():
    """Hooks of one pass would fire in the other (huggingface/transformers issue 42673 is of the same kind)."""
    model, ids = workbench.load(tiny("llama")), prompts(24)
    expected, found = entropy(model, ids, batch_size=4), {}
    torch.set_default_dtype(torch.float64)
    try:

        def work(k):
            found[k] = entropy(model, ids[::-1] if k % 2 else ids, batch_size=4)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for k in range(4):
        np.testing.assert_allclose(found[k][::-1] if k % 2 else found[k], expected, atol=1e-5)


def test_a_pass_of_another_thread_is_not_seen():
    module, logits = tiny("llama"), []

    def other():
        with torch.no_grad():
            logits.append(module(input_ids=torch.tensor([[5, 6, 7]])).logits)

    def meanwhile(*_):
        if len(threads) < 2:
            own = threading.Thread(target=other)
            threads.append(own)  # whose pass comes here, too, and adds another
            own.start()
            own.join()

    threads = [threading.Thread()] * 2
    module.model.layers[1].mlp.register_forward_hook(meanwhile)
    model, ids = workbench.load(module), prompts(4)
    expected = entropy(model, ids)
    threads.clear()
    np.testing.assert_allclose(entropy(model, ids), expected, atol=1e-5)
    torch.testing.assert_close(logits[0], module(input_ids=torch.tensor([[5, 6, 7]])).logits)


# ---------------------------------------------------------------- what wraps a model


def test_a_model_in_data_parallel_is_read_through_the_model_it_wraps():
    model = workbench.load(torch.nn.DataParallel(tiny("llama")))
    np.testing.assert_array_equal(entropy(model, prompts(3)), entropy(workbench.load(tiny("llama")), prompts(3)))


def test_mixed_precision_around_a_forward_is_left_out_and_put_back():
    """huggingface/accelerate pull request 860: what prepare() puts around a forward."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(tiny("llama"))
    wrapped, plain = prepared.forward, workbench.load(tiny("llama"))
    model = workbench.load(prepared)
    np.testing.assert_array_equal(entropy(model, prompts(3)), entropy(plain, prompts(3)))
    assert prepared.forward is wrapped and model.fingerprint == plain.fingerprint
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_an_edit_past_the_version_counter_is_another_model():
    """Pruning writes through .data, and tensors of inference mode count no changes."""
    module = tiny("llama")
    model = workbench.load(module)
    for edit in (
        lambda w: w.data[29].zero_(),
        lambda w: w.data[:, 11].zero_(),
        lambda w: w.data.add_(1e-3 * torch.outer(torch.randn(w.shape[0]), torch.randn(w.shape[1]))),
    ):
        before = model.fingerprint
        edit(module.model.layers[2].mlp.up_proj.weight)
        assert model.fingerprint != before
    with torch.inference_mode():
        module = tiny("llama")
        model = workbench.load(module)
        before = model.fingerprint
        module.model.layers[1].mlp.up_proj.weight[3, 7] += 1
    assert model.fingerprint != before


# ---------------------------------------------------------------- texts and chats


def words(*vocabulary, first=None, last=None):
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(w, vocabulary.index(w)) for w in (first, last) if w]
    if special:
        raw.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, (first, "$A", last))), special_tokens=special
        )
    return raw


def numbers():
    raw = words("<unk>", *map(str, range(1, 97)))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def speaker(**ends):
    raw = words("<unk>", "<s>", "</s>", "user", "assistant", "hello", "there", ":", **ends)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "<s> {% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    return workbench.load(tiny("llama"), tokenizer=tokenizer, name="speaker")


def ids_of(model, *given, **options):
    return [p.ids for p in encode(model, *given, **options)]


def test_text_that_a_template_has_written_gets_no_second_first_token(tmp_path):
    """huggingface/open-r1 pull request 462, vllm-project/vllm pull request 27515."""
    model = speaker(first="<s>")
    chat = [{"role": "user", "content": "hello"}]
    text = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ids_of(model, text) == ids_of(model, chat) == [[1, 3, 7, 5, 2, 4, 7]]
    assert ids_of(model, "hello") == [[1, 5]] and ids_of(model, "<s> <s> hello") == [[1, 1, 5]]  # asked for by hand
    index = ContextIndex.build(model, ["<s> hello there"], tmp_path / "i", layers=[1], progress=False)
    assert index.store.token_ids()[0].tolist() == [1, 5, 6]


def test_a_chat_that_the_assistant_has_begun_to_answer_goes_on():
    """huggingface/transformers pull request 33198: a second heading is nothing that models were trained with."""
    model = speaker(first="<s>")
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello there"}]
    assert ids_of(model, [chat]) == [[1, 3, 7, 5, 2, 4, 7, 5, 6]]
    model.tokenizer.chat_template = "<s> {% for m in messages %}{{ m.content | upper }} {% endfor %}"
    with pytest.raises(InputError, match="ends with what the assistant says, and the chat template of speaker"):
        encode(model, [chat])


def test_an_end_of_text_that_the_tokenizer_puts_is_told_of_once():
    model = speaker(first="<s>", last="</s>")
    with pytest.warns(UserWarning, match="'</s>', behind texts: the last position of a prompt is that token"):
        assert ids_of(model, "hello there") == [[1, 5, 6, 2]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(model, "hello")
        encode(speaker(first="<s>"), "hello </s>")  # written out
        encode(speaker(first="<s>", last="</s>"), [[1, 5, 2]])


def test_a_space_that_a_tokenizer_puts_has_no_characters(tmp_path):
    """huggingface/tokenizers issue 1775: it gets the span of the first character."""
    pieces = {"<unk>": 0.0, "▁": -2.0, "中文": -2.5, "日本": -3.0, "▁the": -3.0, "▁cat": -3.0}
    raw = Tokenizer(models.Unigram(list(pieces.items()), unk_id=0, byte_fallback=False))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    model = workbench.load(tiny("llama"), tokenizer=tokenizer)
    index = ContextIndex.build(model, ["中文", "the cat 日本"], tmp_path / "i", layers=[1], progress=False)
    found = index.search(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)), top_k=index.n_rows)
    said = {
        (str(t), s[a:b])
        for t, s, a, b in zip(
            found.token.values[0], found.sentence.values[0], found.char_start.values[0], found.char_end.values[0],
            strict=True,
        )
    }  # fmt: skip
    assert said == {(" ", ""), ("中文", "中文"), (" the", "the"), (" cat", "cat"), ("日本", "日本")}


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_context_that_begins_alike_is_the_same_state_only_where_nothing_looks_ahead(kind, tmp_path):
    tokenizer = numbers()
    torch.manual_seed(0)
    encoder = transformers.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    module = tiny("llama") if kind == "llama" else transformers.BertForMaskedLM(encoder).eval()
    model = workbench.load(module, tokenizer=tokenizer)
    corpus = ["7 8 9 31 32 33", "20 21 22"]
    index = ContextIndex.build(model, corpus, tmp_path / "i", layers=[model.n_layers], progress=False)
    lens = LatentLens(index, layers=[model.n_layers], top_k=index.n_rows, floors=False)
    data = workbench.read(model, [corpus[0], "7 8 9 40 41"], lens, progress=False).data
    texts, table = index.store.sentences["text"].to_pylist(), index.store.contexts

    def found(prompt, at):
        rows = data.context.values[prompt, 0, at]
        return {(texts[table["sentence"][r]], int(table["position"][r])) for r in rows if r >= 0}

    for at in range(6):
        assert (corpus[0], at) not in found(0, at)
    for at in range(3):
        assert ((corpus[0], at) in found(1, at)) == (kind == "bert")


# ---------------------------------------------------------------- states without a direction, short contexts


def test_a_state_of_zeros_is_near_to_no_token():
    module = tiny("llama")
    with torch.no_grad():
        module.model.embed_tokens.weight[5] = 0
    lens = EmbeddingLens(layers=[0], top_k=3)
    data = workbench.read(workbench.load(module), [[5, 6], [7, 5]], lens, progress=False).data
    assert data.cosine.isnull().all("rank").values[:, 0].tolist() == [[True, False], [False, True]]
    assert data.token_id.values[0, 0, 0].tolist() == [-1] * 3 and data.token_id.values[0, 0, 1, 0] == 6
    assert data.cosine_p.isnull().values[:, 0].tolist()[0][0]


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_a_query_whose_length_float32_does_not_hold_is_refused(size, tmp_path):
    model = workbench.load("organism:story", progress=False)
    index = ContextIndex.build(model, ["The bell rang."], tmp_path / "i", layers=[1], progress=False)
    with pytest.raises(StateError, match="whose squares float32 does not hold"):
        index.search(torch.full((1, model.d_model), size))


def test_sinks_are_found_in_a_model_of_few_positions():
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=12, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        module.transformer.wte.weight[7, 3] = 300.0
    data = workbench.read(workbench.load(module), [[7, 8, 9], [8, 9]], LogitLens(top_k=1), progress=False).data
    assert data.sink.values[:, 0].tolist() == [[True, False, False], [False, False, False]]
