"""A vision-language model of transformers on this machine as judge."""

from __future__ import annotations

import hashlib
from typing import Any

from lenses.judge.questions import INSTRUCTIONS, Question, Verdict, digest
from workbench.errors import InputError
from workbench.fingerprint import Counted, execution_device


class LocalModel:
    """A vision-language model that writes its answer (``generate``), without drawing at random.

    It is shown the picture with its box, the question and the close-up, in this order, in a turn of its own chat
    template where it has one.  It must be able to read two pictures in a prompt.

    Parameters
    ----------
    model
        What :func:`workbench.load` takes, or a transformers model together with ``processor``.
    processor
        Of a transformers model.
    max_new_tokens
        Of an answer.
    options
        Of ``generate``.

    Raises
    ------
    InputError
        For a model without a processor of pictures.
    """

    def __init__(self, model: Any, processor: Any = None, *, max_new_tokens: int = 256, **options: Any) -> None:
        if processor is None:
            import workbench

            loaded = workbench.load(model)
            model, processor, called = loaded.module, loaded.processor, f"{loaded.name} {loaded.fingerprint}"
        else:
            counted = hashlib.blake2b(digest_size=10)
            Counted(model).into(counted)
            called = f"{model.config.name_or_path or type(model).__name__} {counted.hexdigest()}"
        if not hasattr(processor, "image_processor") or not hasattr(model, "generate"):
            raise InputError(
                f"{called} has {type(processor).__name__} for a processor, which takes no pictures: a judge must see "
                "them. Give a vision-language model, or processor=."
            )
        self.model, self.processor = model, processor
        self.options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        self.name = f"{called} {digest(INSTRUCTIONS, sorted((k, str(v)) for k, v in self.options.items()))}"

    def __call__(self, question: Question) -> Verdict:
        import torch

        from workbench.engine.hooks import untouched

        pictures = [question.image, question.crop]
        given = self.processor(images=pictures, text=self._prompt(question), return_tensors="pt")
        device, dtype = execution_device(self.model), next(self.model.parameters()).dtype
        given = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in given.items()
            if isinstance(value, torch.Tensor)
        }
        with untouched(self.model), torch.inference_mode():
            written = self.model.generate(**given, **self.options)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        new = written[0, given["input_ids"].shape[1] :]
        return Verdict.parsed(tokenizer.decode(new, skip_special_tokens=True))

    def _prompt(self, question: Question) -> str:
        if getattr(self.processor, "chat_template", None):
            parts = [{"type": "image"}, {"type": "text", "text": question.text}, {"type": "image"}]
            turns = [{"role": "user", "content": parts}]
            return self.processor.apply_chat_template(turns, add_generation_prompt=True)
        token = getattr(self.processor, "image_token", "<image>")
        return f"{token}\n{question.text}\n{token}\n"
