"""CPU kernels for the packed layout: a C++ library without Python's ABI, and its typed face."""
