"""vLLM as a target: the packed layout, the plugin that loads it, its managed environment."""
