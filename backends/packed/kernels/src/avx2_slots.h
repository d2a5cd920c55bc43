// One row of x against slots (slots.h): shuffles pick x, so that kept values are read as they lie.
#pragma once
#include "driver.h"
#include "slots.h"
#include "table.h"

namespace {

inline __m256i four_bytes(const uint8_t *at) { // in each lane
  int32_t raw;
  memcpy(&raw, at, 4);
  return _mm256_set1_epi32(raw);
}

// How 8 values of a slot become floats.
struct SlotBf16 {
  static constexpr int kBytes = 16;
  static __m256 load(const uint8_t *at) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
};
struct SlotFp16 {
  static constexpr int kBytes = 16;
  static __m256 load(const uint8_t *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
  }
};
struct SlotFp32 {
  static constexpr int kBytes = 32;
  static __m256 load(const uint8_t *at) { return _mm256_loadu_ps((const float *)at); }
};
struct SlotInt8 {
  static constexpr int kBytes = 8;
  static __m256 load(const uint8_t *at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
  }
};
struct SlotInt4 {
  static constexpr int kBytes = 4;
  static __m256 load(const uint8_t *at) {
    const __m256i up = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i codes = _mm256_sllv_epi32(four_bytes(at), up);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(codes, 28));
  }
};

struct Slotted { // where the next window of a half row block lies
  const uint8_t *data;
  const uint16_t *windows;
};

// `count` windows of kSlots slots each: sums [4] of 8 rows += values times x. With groups each
// window's sum is scaled by its group's scales, 8 of each 16; `inverse` is 2^32 over a group's
// windows, rounded up: exact for numbers of 16 bits, where a division would cost as much as a slot.
template <class V, bool kGroups, int kSlots>
inline void windows_times(Slotted &at, int64_t count, const float *x, int64_t stride,
                          const float *scales, uint64_t inverse, __m256 *sums) {
  constexpr int kBytes = (V::kBytes + kPlaceBytes) * kSlots;
  const __m256i down = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21);
  for (; count > 0; --count, at.data += kBytes) {
    const int64_t window = *at.windows++;
    const __m256 columns = _mm256_loadu_ps(x + stride * window);
    const uint8_t *places = at.data + V::kBytes * kSlots;
    for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(at.data + kAhead / 2 + i);
    __m256 own[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
#pragma GCC unroll 8
    for (int s = 0; s < kSlots; ++s) {
      // The shuffle looks at 3 bits of each lane only: what stands above them does not matter.
      const __m256i place = _mm256_srlv_epi32(four_bytes(places + kPlaceBytes * s), down);
      const __m256 picked = _mm256_permutevar8x32_ps(columns, place);
      __m256 &sum = kGroups ? own[s & 1] : sums[s & 3];
      sum = _mm256_fmadd_ps(V::load(at.data + V::kBytes * s), picked, sum);
    }
    if (!kGroups) continue;
    const __m256 scale = _mm256_loadu_ps(scales + ((uint64_t)window * inverse >> 32) * kRows);
    sums[0] = _mm256_fmadd_ps(_mm256_add_ps(own[0], own[1]), scale, sums[0]);
  }
}

template <class V, bool kGroups>
__m256 half_block(const Weight &w, int64_t h, const float *x, const float *scales) {
  const uint8_t *from = w.slots.data + w.slots.begins[h];
  const uint16_t *counts = (const uint16_t *)from;
  const int64_t stride = w.slots.stride, group_windows = w.group_tiles * kCols / stride;
  const uint64_t inverse = (((uint64_t)1 << 32) + (uint64_t)group_windows - 1) / (uint64_t)group_windows;
  Slotted at = {from + head_bytes(w), counts + kCounts};
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  at.windows += counts[0];
#define SE_WINDOWS(n) windows_times<V, kGroups, n>(at, counts[n], x, stride, scales, inverse, sums);
  SE_WINDOWS(1) SE_WINDOWS(2) SE_WINDOWS(3) SE_WINDOWS(4)
  SE_WINDOWS(5) SE_WINDOWS(6) SE_WINDOWS(7) SE_WINDOWS(8)
#undef SE_WINDOWS
  return _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
}

template <class V>
void slot_blocks(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
                 int64_t b1) {
  const float *data = (const float *)x.data;
  alignas(64) float sums[kRows];
  for (int64_t b = b0; b < b1; ++b) {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t h = 2 * b + half;
      const float *scales = w.scales ? w.scales + b * w.groups * kRows + half * kHalf : nullptr;
      __m256 found;
      if (w.groups > 1) {
        found = half_block<V, true>(w, h, data, scales);
      } else {
        found = half_block<V, false>(w, h, data, nullptr);
        if (scales) found = _mm256_mul_ps(found, _mm256_loadu_ps(scales));
      }
      _mm256_store_ps(sums + half * kHalf, found);
    }
    store(x, job, y_type, w, b, 0, sums);
  }
}

inline bool in_slots(const Weight &w, const Prepared &x) {
  return w.slots.data && x.m == 1 && (!integer(w.value) || x.form == kRowCodes);
}

inline void one_row(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type,
                    int64_t b0, int64_t b1) {
  switch (w.value) {
  case SE_BF16:
    return slot_blocks<SlotBf16>(w, x, job, y_type, b0, b1);
  case SE_FP16:
    return slot_blocks<SlotFp16>(w, x, job, y_type, b0, b1);
  case SE_FP32:
    return slot_blocks<SlotFp32>(w, x, job, y_type, b0, b1);
  case SE_INT8:
    return slot_blocks<SlotInt8>(w, x, job, y_type, b0, b1);
  default:
    return slot_blocks<SlotInt4>(w, x, job, y_type, b0, b1);
  }
}

} // namespace
