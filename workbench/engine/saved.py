"""A run that is kept in a folder as it goes: ``read(..., out=folder)``.

While it runs the folder has a part for each finished shard (what the readers' outputs over its prompts came to, in
safetensors); once it is finished, the readings alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from workbench.engine.loop import SHARD_TOKENS, Store
from workbench.inputs import digest
from workbench.readers import Plan, Reader, Run
from workbench.reading import RUN, Reading, open_reading
from workbench.store import Folder


class Saved:
    """The folder of one run of readers.

    Raises
    ------
    InputError
        Where the folder is of another run: the first difference is named.
    """

    def __init__(
        self, out: str | os.PathLike[str], run: Run, readers: Sequence[Reader], plans: Sequence[Plan],
        more: Mapping[str, Any],
    ) -> None:  # fmt: skip
        model = run.model
        head = {
            "model": model.name, "fingerprint": model.fingerprint, "dtype": str(model.dtype),
            "torch": torch.__version__,
            "prompts": len(run.prompts), "digest": digest(run.prompts), "positions": len(run.positions),
            "options": dict(more), "shard_tokens": SHARD_TOKENS,
            "readers": [reader.told(plan) for reader, plan in zip(readers, plans, strict=True)],
        }  # fmt: skip
        self.folder = Folder.create_or_resume(out, head, RUN)
        self._names = [f"{i:02d}-{re.sub('[^A-Za-z0-9_]', '-', r.name)}.nc" for i, r in enumerate(readers)]

    @property
    def finished(self) -> bool:
        return self.folder.sealed

    @property
    def store(self) -> Store:
        from safetensors.numpy import load_file, save_file

        def save(name: str, part: dict[str, np.ndarray]) -> None:
            self.folder.write(f"{name}.safetensors", lambda file: save_file(part, file))

        return Store(
            {name.removesuffix(".safetensors") for name in self.folder.done},
            lambda name: load_file(self.folder.path(f"{name}.safetensors")),
            save,
        )

    def finish(self, readings: Sequence[Reading]) -> None:
        """Keep the readings in place of the shards."""
        for name, reading in zip(self._names, readings, strict=True):
            self.folder.write(name, reading.save)
        self.folder.seal(parts=self._names)

    def readings(self) -> list[Reading]:
        return [open_reading(self.folder.path(name)) for name in self._names]
