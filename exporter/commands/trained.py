"""A folder of `sparse-tune train` in place of a model: its base, its masks and its adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exporter.request import AdapterRequest, ExportRequest
from exporter.store.listing import CONFIG

RECORD = "train.json"  # what such a folder is known by
BASE = "base"  # a model folder, in the folder of the adapter that was trained on it
MASKS = Path("masks", "masks.safetensors")


def expand_trained(request: ExportRequest) -> ExportRequest:
    """The same request with the parts of a trained folder in their places.

    With a model of its own (a full fine-tune) it is the model; otherwise `base` is, and the folder
    itself the first adapter. A masks file that the user gives is taken before the one inside.
    """
    folder = request.model
    if not (folder / RECORD).is_file():
        return request
    if not (folder / CONFIG).is_file():
        if not (folder / BASE / CONFIG).is_file():
            return request
        adapters = (AdapterRequest(folder), *request.adapters)
        request = replace(request, model=folder / BASE, adapters=adapters)
    masks = request.model / MASKS
    if request.masks is not None or not masks.is_file():
        return request
    return replace(request, masks=masks)
