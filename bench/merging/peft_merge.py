"""Program: peft_merge.py MODEL ADAPTER OUT, as PEFT's documentation tells a user to merge."""

import json
import sys
import time

from peft import PeftModel
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    start = time.perf_counter()
    base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
    merged = PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload()
    merged.save_pretrained(sys.argv[3])
    print(json.dumps({"seconds": time.perf_counter() - start}))
