// Memory in huge pages: scattered reads of small ones wait for their addresses.
#pragma once
#include <stdint.h>

namespace se {

void *take(int64_t bytes); // zeros, at a multiple of 64; null without memory
void give(void *arena, int64_t bytes);

// Memory that a thread keeps from call to call.
struct Scratch {
  void *data = nullptr;
  int64_t bytes = 0;
  ~Scratch() { drop(); }
  void *need(int64_t wanted) { // what it held before may be gone; null without memory
    if (wanted <= bytes) return data;
    drop();
    data = take(wanted);
    bytes = data ? wanted : 0;
    return data;
  }

private:
  void drop() {
    if (data) give(data, bytes);
  }
};

} // namespace se
