"""Target `packed`: a decoder on the CPU kernels, one native call a step."""
