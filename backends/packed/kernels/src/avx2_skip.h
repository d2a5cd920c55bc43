// Many rows of x against strips: a row of the weight becomes a list of its kept columns, and each
// of them is one product with 16 rows of x that stand side by side. Zeros cost nothing.
#pragma once
#include "avx2_rows.h"

namespace {

constexpr int64_t kPanel = 4; // row blocks whose lists one piece of x meets
constexpr int64_t kHalf = 8;  // rows whose lists stay in the L1 cache beside a piece of x
constexpr int64_t kListed = kPanel * kRows;
constexpr int64_t kListRoom = kListed * 4 * kCols + 16; // and what a store may pass

struct PlaceTable { // entry b: the columns of the set bits of b, times the bytes between columns
  alignas(64) uint16_t places[256][8];
  constexpr PlaceTable() : places() {
    for (int b = 0; b < 256; ++b)
      for (int i = 0, found = 0; i < 8; ++i)
        if (b >> i & 1) places[b][found++] = (uint16_t)(i * kLanes * 4);
  }
};
constexpr PlaceTable kPlaces;

// Row i's kept columns (as bytes from column 0 of x) and values are [ends[i], ends[i + 1]).
struct Lists {
  int32_t ends[kListed + 1];
  alignas(32) uint16_t places[kListRoom];
  alignas(32) float values[kListRoom];
};

inline __m256 eight_floats(int32_t value, const uint8_t *from) {
  const __m128i raw = _mm_loadu_si128((const __m128i *)from);
  if (value == SE_BF16)
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  if (value == SE_FP16) return _mm256_cvtph_ps(raw);
  if (value == SE_FP32) return _mm256_loadu_ps((const float *)from);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw));
}

// Lists [at, at + rows) of `rows` rows. All places first and all values then: loops whose ends are
// known early, since one mistaken branch a row costs more than the row.
template <int32_t kValue>
const uint8_t *make_lists(const uint8_t *mask, const uint8_t *values, int64_t width, int64_t rows,
                          Lists &lists, int64_t at) {
  constexpr int64_t kSize = kValue == SE_FP32 ? 4 : kValue < SE_FP32 ? 2 : 1;
  const __m128i on = _mm_set1_epi16(8 * kLanes * 4);
  const uint64_t first = (uint64_t)lists.ends[at];
  uint64_t found = first;
  for (int64_t r = 0; r < rows; ++r) {
    __m128i base = _mm_setzero_si128();
    for (int64_t i = 0; i < width; i += 64, mask += 8) {
      uint64_t word;
      memcpy(&word, mask, 8);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j, word >>= 8) {
        const __m128i places = _mm_load_si128((const __m128i *)kPlaces.places[word & 255]);
        _mm_storeu_si128((__m128i *)(lists.places + found), _mm_add_epi16(base, places));
        found += (uint64_t)_mm_popcnt_u64(word & 255);
        base = _mm_add_epi16(base, on);
      }
    }
    lists.ends[at + r + 1] = (int32_t)found;
    __builtin_prefetch(mask + kRows * width / 8);
  }
  for (uint64_t i = first; i < found; i += 8, values += 8 * kSize) {
    _mm256_storeu_ps(lists.values + i, eight_floats(kValue, values));
    __builtin_prefetch(values + kAhead);
  }
  _mm_storel_epi64((__m128i *)(lists.places + found), _mm_setzero_si128());
  return values - (found - first + 7) / 8 * 8 * kSize + (found - first) * kSize;
}

template <int kLane> inline __m256 lane(__m256 four) {
  return _mm256_shuffle_ps(four, four, kLane * 0x55);
}

// Entry n: which of four values are the first n.
alignas(16) constexpr int32_t kFirst[4][4] = {{}, {-1}, {-1, -1}, {-1, -1, -1}};

template <int kHalves>
inline void four_places(const uint16_t *places, __m256 four, const float *x, __m256 (*now)[4]) {
  const __m256 each[4] = {lane<0>(four), lane<1>(four), lane<2>(four), lane<3>(four)};
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float *at = (const float *)((const uint8_t *)x + places[j]);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h)
      now[h][j] = _mm256_fmadd_ps(each[j], _mm256_load_ps(at + 8 * h), now[h][j]);
  }
}

// sums [rows, 16] += the products of lists [first, first + rows) with 8 kHalves rows of x; `x` is
// column 0 of the strip.
template <int kHalves>
void lists_times(const Lists &lists, int64_t first, int64_t rows, const float *x, float *sums) {
  for (int64_t r = first; r < first + rows; ++r, sums += kLanes) {
    __m256 now[kHalves][4];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) now[h][j] = _mm256_setzero_ps();
    int64_t i = lists.ends[r];
    const int64_t end = lists.ends[r + 1];
#pragma GCC unroll 1
    for (; i + 4 <= end; i += 4)
      four_places<kHalves>(lists.places + i,
                           _mm256_broadcast_ps((const __m128 *)(lists.values + i)), x, now);
    const __m128 left = _mm_and_ps(_mm_loadu_ps(lists.values + i),
                                   _mm_load_ps((const float *)kFirst[end - i]));
    four_places<kHalves>(lists.places + i, _mm256_set_m128(left, left), x, now);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const __m256 all = plus(plus(now[h][0], now[h][1]), plus(now[h][2], now[h][3]));
      _mm256_store_ps(sums + 8 * h, plus(_mm256_load_ps(sums + 8 * h), all));
    }
  }
}

// Memory of one thread: lists of a panel, and sums [blocks, chunks, 16 rows, 16 lanes].
struct Skip {
  Lists lists;
  alignas(64) float now[kPanel][kMaxLines / kLanes][kRows * kLanes];
  alignas(64) float all[kPanel][kMaxLines / kLanes][kRows * kLanes];
};

inline auto lists_of(int32_t value) {
  return value == SE_BF16   ? make_lists<SE_BF16>
         : value == SE_FP16 ? make_lists<SE_FP16>
         : value == SE_FP32 ? make_lists<SE_FP32>
                            : make_lists<SE_INT8>;
}

// One strip, at most 8 rows at a time: calls each(first row, rows, first list). Lists follow those
// of `at`; where `alone` each time from 0. Returns the next strip's values.
template <class Each>
const uint8_t *each_lists(const Weight &w, const uint8_t *mask, const uint8_t *values,
                          int64_t width, Lists &lists, int64_t at, bool alone, Each each) {
  alignas(64) uint8_t codes[kCodesRoom];
  const uint8_t *next = nullptr;
  const bool narrow = w.value == SE_INT4;
  if (narrow) next = strip_codes(mask, values, width, codes), values = codes;
  const auto make = lists_of(w.value);
  for (int64_t r = 0; r < kRows; r += kHalf, mask += kHalf * width / 8) {
    const int64_t first = alone ? 0 : at + r;
    values = make(mask, values, width, kHalf, lists, first);
    each(r, kHalf, first);
  }
  return narrow ? next : values;
}

inline void flush_lanes(Skip &s, int64_t blocks, int64_t chunks, const float *const *scales) {
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t i = 0; i < chunks; ++i)
      for (int64_t r = 0; r < kRows; ++r) {
        const __m256 scale = _mm256_set1_ps(scales[b] ? scales[b][r] : 1.f);
        for (int64_t half = 0; half < kLanes; half += 8) {
          float *now = s.now[b][i] + r * kLanes + half, *all = s.all[b][i] + r * kLanes + half;
          _mm256_store_ps(all, plus(_mm256_load_ps(all), _mm256_mul_ps(_mm256_load_ps(now), scale)));
          _mm256_store_ps(now, _mm256_setzero_ps());
        }
      }
}

// Row blocks [b, b + blocks) of rows [16 first, 16 (first + chunks)) of x.
inline void skip_panel(const Weight &w, const Prepared &x, int64_t b, int64_t blocks, int64_t first,
                       int64_t chunks, Skip &s) {
  const uint8_t *mask[kPanel], *values[kPanel];
  const float *scales[kPanel];
  for (int64_t i = 0; i < blocks; ++i) {
    mask[i] = w.mask + (b + i) * w.tiles * kMaskBytes, values[i] = w.values + w.begins[b + i];
    memset(s.now[i], 0, sizeof s.now[i]);
    memset(s.all[i], 0, sizeof s.all[i]);
  }
  const int64_t pitch = x.tiles * kCols * kLanes;
  const auto times = x.m <= 8 ? lists_times<1> : lists_times<2>;
  const bool alone = chunks == 1;
  s.lists.ends[0] = 0;
  for (int64_t c = 0; c < w.tiles; c += w.strip) {
    const int64_t width = strip_width(w, c), next = c + width / kCols;
    const float *at = (const float *)x.data + first * pitch + c * kCols * kLanes;
    for (int64_t i = 0; i < blocks; ++i, mask[i - 1] += kRows * width / 8)
      values[i] = each_lists(w, mask[i], values[i], width, s.lists, i * kRows, alone,
                             [&](int64_t r, int64_t rows, int64_t list) {
                               if (alone)
                                 times(s.lists, list, rows, at, s.now[i][0] + r * kLanes);
                             });
    for (int64_t j = 0; j < chunks && !alone; ++j, at += pitch)
      for (int64_t i = 0; i < blocks; ++i)
        times(s.lists, i * kRows, kRows, at, s.now[i][j]);
    if (next % w.flush && next < w.tiles) continue;
    for (int64_t i = 0; i < blocks; ++i)
      scales[i] = w.scales ? w.scales + ((b + i) * w.groups + c / w.group_tiles) * kRows : nullptr;
    flush_lanes(s, blocks, chunks, scales);
  }
}

inline void many_rows(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type,
                      int64_t b0, int64_t b1) {
  Skip s;
  const int64_t all = (x.m + kLanes - 1) / kLanes, most = kMaxLines / kLanes;
  for (int64_t b = b0; b < b1; b += kPanel) {
    const int64_t blocks = b1 - b < kPanel ? b1 - b : kPanel;
    for (int64_t first = 0; first < all; first += most) {
      const int64_t chunks = all - first < most ? all - first : most;
      skip_panel(w, x, b, blocks, first, chunks, s);
      for (int64_t i = 0; i < blocks; ++i)
        for (int64_t m = first * kLanes; m < (first + chunks) * kLanes && m < x.m; ++m) {
          float row[kRows];
          const float *from = s.all[i][m / kLanes - first] + m % kLanes;
          for (int64_t r = 0; r < kRows; ++r) row[r] = from[r * kLanes];
          store(x, job, y_type, w, b + i, m, row);
        }
    }
  }
}

} // namespace
