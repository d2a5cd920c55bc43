"""Program: copy_model.py MODEL OUT, every tensor through our reader and our writer, unchanged.

The yardstick of a streaming merge: it reads and writes the same bytes and computes nothing.
"""

import json
import sys
import time
from pathlib import Path

from exporter.store.checkpoint import Checkpoint
from exporter.store.writer import SafetensorsWriter

BLOCK_BYTES = 8 << 20


def copy_model(model: Path, out: Path) -> None:
    """Write `out/model.safetensors` with the tensors of `model`, bit for bit."""
    checkpoint = Checkpoint.open(model)
    out.mkdir(parents=True)
    layout = [(name, entry.dtype, entry.shape) for name, entry in checkpoint.entries.items()]
    with SafetensorsWriter(out / "model.safetensors", layout, {"format": "pt"}) as writer:
        for name, _, shape in layout:
            rows = shape[0] if shape else 1
            width = checkpoint.entries[name].nbytes // max(1, rows)
            step = max(1, BLOCK_BYTES // max(1, width))
            for r0 in range(0, rows, step):
                writer.write(name, checkpoint.view(name, r0, min(rows, r0 + step)))
        writer.close()
    checkpoint.close()


if __name__ == "__main__":
    start = time.perf_counter()
    copy_model(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps({"seconds": time.perf_counter() - start}))
