"""What pruning could bring on this machine, before anything is pruned: `sparse-bench what-if`."""
