"""What the plugin uses of vLLM 0.32, for the type checker; tests/vllm compares it with vLLM."""
