#include "memory.h"

#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace se {
namespace {

int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

} // namespace

void *take(int64_t bytes) {
#if defined(__linux__) && !defined(SE_SANITIZE)
  // Reads of 4 KB pages reach 70 % of what huge pages give, and only whole ones can be huge.
  constexpr int64_t kHuge = 1 << 21, kPage = 4096;
  const int64_t spare = bytes >= kHuge ? kHuge : 0;
  uint8_t *found = (uint8_t *)mmap(nullptr, (size_t)(bytes + spare), PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == (uint8_t *)MAP_FAILED) return nullptr;
  if (!spare) return found;
  const int64_t before = (kHuge - (int64_t)((uintptr_t)found % kHuge)) % kHuge;
  const int64_t after = (spare - before) / kPage * kPage;
  if (before) munmap(found, (size_t)before);
  found += before;
  if (after) munmap(found + up(bytes, kPage), (size_t)after);
  madvise(found, (size_t)bytes, MADV_HUGEPAGE);
  return found;
#else
  void *found = aligned_alloc(64, (size_t)up(bytes, 64));
  if (found) memset(found, 0, (size_t)up(bytes, 64));
  return found;
#endif
}

void give(void *arena, int64_t bytes) {
#if defined(__linux__) && !defined(SE_SANITIZE)
  munmap(arena, (size_t)bytes);
#else
  (void)bytes;
  free(arena);
#endif
}

} // namespace se
