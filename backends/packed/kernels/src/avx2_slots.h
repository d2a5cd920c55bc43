// One row of x against slots (slots.h): x in planes of bytes, picked by shuffles, so that kept values
// are read as they lie.
#pragma once
#include "driver.h"
#include "slots.h"
#include "table.h"

namespace {

// 16 bytes of nibbles: the lower ones in the lower half of a register, the upper ones in the other.
inline __m256i nibbles(const uint8_t *at) {
  const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)at));
  const __m256i apart = _mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4));
  return _mm256_and_si256(apart, _mm256_set1_epi8(15));
}

struct Windows { // of the two slots of a two, in the first plane of x
  const uint8_t *first, *second;
};

// Bytes of one plane, `plane` bytes on from the first, by their places.
inline __m256i picked(const Windows &at, int64_t plane, __m256i places) {
  const __m128i first = _mm_loadu_si128((const __m128i *)(at.first + plane));
  const __m128i second = _mm_loadu_si128((const __m128i *)(at.second + plane));
  return _mm256_shuffle_epi8(join(first, second), places);
}

// `count` twos: way.add(values, windows, places) for each. Returns where the next ones are, and moves
// x to the last window.
template <class Way>
inline const uint8_t *each_two(const uint8_t *data, int64_t count, const uint8_t *&x, Way &way) {
  constexpr int kBytes = Way::kBytes + (int)kTwoTail;
  for (; count > 0; --count, data += kBytes) {
    for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(data + kAhead + i);
    const uint8_t *first = x + data[kBytes - 2], *second = first + data[kBytes - 1];
    x = second;
    way.add(data, Windows{first, second}, nibbles(data + Way::kBytes));
  }
  return data;
}

inline int64_t count_at(const uint8_t *head, int64_t section) {
  uint16_t found;
  memcpy(&found, head + 2 * section, 2);
  return found;
}

// Rows 0 to 3 and 4 to 7, each in both halves of a register, to all 8 in order.
inline __m256 rows_of(__m256 low, __m256 high) {
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                       _mm256_permute2f128_ps(low, high, 0x31));
}
inline __m256i rows_of(__m256i low, __m256i high) {
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

template <__m256 half_of(const Weight &, int64_t, const uint8_t *, const float *)>
void slot_blocks(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
                 int64_t b1) {
  alignas(64) float sums[kRows];
  for (int64_t b = b0; b < b1; ++b) {
    for (int64_t half = 0; half < 2; ++half) {
      const float *scales = w.scales ? w.scales + b * w.groups * kRows + half * kHalf : nullptr;
      const __m256 found = half_of(w, 2 * b + half, (const uint8_t *)x.data, scales);
      _mm256_store_ps(sums + half * kHalf, found);
    }
    store(x, job, y_type, w, b, 0, sums);
  }
}

} // namespace
