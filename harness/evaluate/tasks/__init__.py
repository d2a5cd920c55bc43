"""Zero-shot tasks, MMLU and GSM8K by lm-eval, on local files, of torch models and of artefacts."""
