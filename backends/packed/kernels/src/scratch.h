// Memory that a thread keeps from call to call.
#pragma once
#include <stddef.h>
#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace se {

struct Scratch {
  void *data = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(data); }
  void *need(size_t wanted) {
    if (wanted > bytes) {
      free(data);
      // Lists meet their panels in no order: with small pages each meeting may wait for a page.
      const size_t page = wanted < kHuge / 2 ? 65536 : kHuge;
      bytes = (wanted + page - 1) / page * page;
      data = aligned_alloc(page, bytes);
      if (!data) bytes = 0;
#if defined(__linux__)
      if (data && page == kHuge) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    }
    return data;
  }

private:
  static constexpr size_t kHuge = 2 << 20;
};

} // namespace se
