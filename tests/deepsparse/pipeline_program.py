"""pipeline_program.py FOLDER N TEXT...: what a user of deepsparse.TextGeneration does.

Runs in DeepSparse's environment; prints, as its last line, JSON: token ids of each text by the
folder's tokenizer, and each generated text.
"""

import json
import sys
from pathlib import Path

import deepsparse
from transformers import AutoTokenizer

if __name__ == "__main__":
    folder, n, *texts = sys.argv[1:]
    arguments = json.loads(Path(folder, "deepsparse.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipeline = deepsparse.TextGeneration(model_path=folder, force_max_tokens=True, **arguments)
    # The pipeline makes one token more than it is asked for.
    answers = [pipeline(prompt=t, max_new_tokens=int(n) - 1).generations[0].text for t in texts]
    print(json.dumps({"ids": [tokenizer(t)["input_ids"] for t in texts], "answers": answers}))
