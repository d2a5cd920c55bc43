"""Child process of llama.cpp, in an environment with llama-cpp-python; protocol of worker.py."""
# pyright: basic, reportMissingImports=false

import json
import os
import sys
import time

import llama_cpp


def main():
    """Load the GGUF of the arguments, serve until the input ends."""
    asked = json.loads(sys.argv[1])
    threads = int(os.environ["OMP_NUM_THREADS"])
    model = llama_cpp.Llama(
        asked["file"], n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    told = {"version": llama_cpp.__version__, "megabytes": os.path.getsize(asked["file"]) / 1e6}
    print(json.dumps({"ready": True, **told}), flush=True)
    for line in sys.stdin:
        want = json.loads(line)
        prompt = [3 + (i * 7919) % 997 for i in range(want["prompt"])]
        model.reset()
        start, at, given = time.perf_counter(), [], prompt
        for _ in range(want["tokens"]):
            model.eval(given)
            vocab = model.n_vocab()
            logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
            given = [max(range(0, vocab, 4096), key=logits.__getitem__)]
            at.append(time.perf_counter() - start)
        gaps = [b - a for a, b in zip(at, at[1:], strict=False)]
        print(json.dumps({"first": at[0], "seconds": gaps}), flush=True)


main()
