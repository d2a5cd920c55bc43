// Memory that a thread keeps from call to call.
#pragma once
#include <stddef.h>
#include <stdlib.h>

namespace se {

struct Scratch {
  void *data = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(data); }
  void *need(size_t wanted) {
    if (wanted > bytes) {
      free(data);
      bytes = (wanted + 65535) / 65536 * 65536;
      data = aligned_alloc(64, bytes);
      if (!data) bytes = 0;
    }
    return data;
  }
};

} // namespace se
