"""What earlier versions left on disk."""

from __future__ import annotations

import json
from pathlib import Path

from probes.values.tracker import ValueTracker


def as_version_1(tracker: ValueTracker) -> Path:
    """The folder as version 0.1.0 kept it: all that is known of its readings in track.json."""
    path, about = tracker.path, tracker.about
    old = {"format": "latent-workbench values", "version": 1, "items": tracker.folder.head["items"], **about}
    aside = {}
    for own in about.get("aside", []):
        kept = {k: v for k, v in own.items() if k not in ("step", "key", "file", "aside")}
        one = aside.setdefault((own["step"], own["aside"]), {"source": "x", "read": {}, "failed": ""})
        one["read"][own["key"]] = {"file": own["file"].replace(f"-{own['aside']}/", "/"), **kept}
    old["aside"] = [{"step": step, "number": number, **own} for (step, number), own in aside.items()]
    (path / "track.json").write_text(json.dumps(old, indent=1))
    for name in ("manifest.json", "journal.jsonl", "notes.json"):
        (path / name).unlink(missing_ok=True)
    return path
