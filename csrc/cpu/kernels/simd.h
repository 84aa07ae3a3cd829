// Vectors of the level this file is compiled for, by the compilers' vector extension; intrinsics only in this file, for
// the few things that the compilers do not find by themselves.
#pragma once

#if defined(__SSE2__)
// GCC 12 takes the undefined operand that its own AVX-512 header passes for a mistake (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "../../math/exp_log.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t shorts __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef double doubles __attribute__((vector_size(kLanes * sizeof(float))));
typedef int64_t longs __attribute__((vector_size(kLanes * sizeof(float))));
typedef int16_t keys __attribute__((vector_size(2 * kLanes * sizeof(int16_t))));

inline floats load(const float* from) {
  floats value;
  memcpy(&value, from, sizeof(value));
  return value;
}

inline ints load(const int32_t* from) {
  ints value;
  memcpy(&value, from, sizeof(value));
  return value;
}

inline doubles load(const double* from) {
  doubles value;
  memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float* to, floats value) { memcpy(to, &value, sizeof(value)); }

// Vectors of 16-bit numbers, widened.
inline floats widen_lanes(shorts bits, bfloat16_bits) {
  return bits_as<floats>(__builtin_convertvector(bits, words) << 16);
}

inline floats widen_lanes(shorts bits, half_bits) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(bits_as<__m256i>(bits));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(bits_as<__m128i>(bits));
#else
  // The vector form of widen(half_bits).
  const words wide = __builtin_convertvector(bits, words);
  const floats scaled = bits_as<floats>((wide & 0x7fffu) << 13) * 0x1p112f;
  // A comparison's mask is all ones where it holds.
  const words special = bits_as<words>((wide & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return bits_as<floats>(bits_as<words>(scaled) | special | ((wide & 0x8000u) << 16));
#endif
}

template <class Stored>
inline floats load(const Stored* from) {
  shorts bits;
  memcpy(&bits, from, sizeof(bits));
  return widen_lanes(bits, Stored{});
}

// Narrowed to nearest, ties to even: the vector forms of narrow_to (math/dynamics.h).
inline shorts narrow_lanes(floats value, bfloat16_bits) {
  const words bits = bits_as<words>(value), nan = bits_as<words>(value != value);
  const words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), shorts);
}

inline shorts narrow_lanes(floats value, half_bits) {
  const words bits = bits_as<words>(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  const words tiny = bits_as<words>(size < 0x38800000u), nan = bits_as<words>(value != value);
  const words subnormal = bits_as<words>(bits_as<floats>(size) + 0.5f) - 0x3f000000u;
  const words normal = ((size + 0xfffu + ((size >> 13) & 1u)) >> 13) - (112u << 10);
  const words number = (tiny & subnormal) | (~tiny & normal);
  return __builtin_convertvector(sign | (nan & 0x7e00u) | (~nan & number), shorts);
}

template <class Stored>
inline void store(Stored* to, floats value) {
  const shorts bits = narrow_lanes(value, Stored{});
  memcpy(to, &bits, sizeof(bits));
}

// Half as many numbers as there are lanes, in float64.
constexpr int kWideLanes = kLanes / 2;
typedef double doubles __attribute__((vector_size(kWideLanes * sizeof(double))));

// kLanes values in float64, the first half of them and the second.
inline void load_wide(const double* from, doubles& low, doubles& high) {
  memcpy(&low, from, sizeof(low));
  memcpy(&high, from + kWideLanes, sizeof(high));
}

inline void load_wide(const float* from, doubles& low, doubles& high) {
#if defined(__AVX512F__)
  low = _mm512_cvtps_pd(_mm256_loadu_ps(from));
  high = _mm512_cvtps_pd(_mm256_loadu_ps(from + kWideLanes));
#elif defined(__AVX__)
  low = _mm256_cvtps_pd(_mm_loadu_ps(from));
  high = _mm256_cvtps_pd(_mm_loadu_ps(from + kWideLanes));
#else
  typedef float half_floats __attribute__((vector_size(kWideLanes * sizeof(float))));
  half_floats first, second;
  memcpy(&first, from, sizeof(first));
  memcpy(&second, from + kWideLanes, sizeof(second));
  low = __builtin_convertvector(first, doubles);
  high = __builtin_convertvector(second, doubles);
#endif
}

template <class Stored>
inline void load_wide(const Stored* from, doubles& low, doubles& high) {
  float values[kLanes];
  store(values, load(from));
  load_wide(values, low, high);
}

// The numbers in the lower and in the upper half of each word.
inline void widen_pairs(words pairs, bfloat16_bits, floats& low, floats& high) {
  low = bits_as<floats>(pairs << 16);
  high = bits_as<floats>(pairs & 0xffff0000u);
}

inline void widen_pairs(words pairs, half_bits stored, floats& low, floats& high) {
  low = widen_lanes(__builtin_convertvector(pairs, shorts), stored);
  high = widen_lanes(__builtin_convertvector(pairs >> 16, shorts), stored);
}

// 2 * kLanes values, in any order.
template <class Stored>
inline void load_two(const Stored* from, floats& a, floats& b) {
  a = load(from);
  b = load(from + kLanes);
}

inline void load_two(const bfloat16_bits* from, floats& a, floats& b) {
  words pairs;
  memcpy(&pairs, from, sizeof(pairs));
  widen_pairs(pairs, bfloat16_bits{}, a, b);
}

// 16-bit floating numbers as integers of the same order (a NaN beyond the infinity of its sign), and back.
inline keys ordered(keys bits) { return bits ^ ((bits >> 15) & 0x7fff); }
inline keys larger(keys a, keys b) { return a > b ? a : b; }
inline keys smaller(keys a, keys b) { return a < b ? a : b; }

inline floats broadcast(float value) { return floats{} + value; }

// a > b ? a : b and a < b ? a : b, so b where one of them is NaN: what the processor's own instruction does.
#if defined(__AVX512F__)
inline floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }
inline floats smaller(floats a, floats b) { return _mm512_min_ps(a, b); }
#elif defined(__AVX__)
inline floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }
inline floats smaller(floats a, floats b) { return _mm256_min_ps(a, b); }
#elif defined(__SSE2__)
inline floats larger(floats a, floats b) { return _mm_max_ps(a, b); }
inline floats smaller(floats a, floats b) { return _mm_min_ps(a, b); }
#else
inline floats larger(floats a, floats b) { return select(a > b, a, b); }
inline floats smaller(floats a, floats b) { return select(a < b, a, b); }
#endif

inline floats zero_where(ints mask, floats value) { return bits_as<floats>(bits_as<ints>(value) & ~mask); }

// Of a comparison's result.
inline bool any(ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bits_as<__m512i>(mask), bits_as<__m512i>(mask)) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps(bits_as<__m256>(mask)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(bits_as<__m128>(mask)) != 0;
#else
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
  return found != 0;
#endif
}

// Lanes as numbers in memory. The compilers would take each from the vector instead: two instructions of a port that
// the arithmetic needs, for each lane.
inline void spill(ints value, int32_t (&lanes)[kLanes]) {
  memcpy(lanes, &value, sizeof(lanes));
#if defined(__GNUC__)
  asm("" : "+m"(lanes));
#endif
}

// Whether they are equal in any lane.
inline bool any_equal(floats a, floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0;
#else
  return any(a == b);
#endif
}

// A bit for every lane of a comparison's result.
inline uint32_t bits_of(ints mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bits_as<__m512i>(mask));
#elif defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bits_as<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(bits_as<__m128>(mask)));
#else
  uint32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= (mask[lane] & 1u) << lane;
  return found;
#endif
}

// Writes the lanes that `bits` names to `to`, packed, and returns how many they are. What follows them, up to kLanes in
// all, is written, too.
inline int64_t pack(float* to, floats value, uint32_t bits) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), value));
  return __builtin_popcount(bits);
#else
  int64_t count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    to[count] = value[lane];
    count += bits >> lane & 1u;
  }
  return count;
#endif
}

// first + value, for the lanes that `bits` names.
inline void pack(int64_t* to, ints value, int64_t first, uint32_t bits) {
#if defined(__AVX512F__)
  const __m512i packed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), bits_as<__m512i>(value));
  const __m512i base = _mm512_set1_epi64(first);
  _mm512_storeu_si512(to, _mm512_add_epi64(base, _mm512_cvtepi32_epi64(_mm512_castsi512_si256(packed))));
  _mm512_storeu_si512(to + 8, _mm512_add_epi64(base, _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(packed, 1))));
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    *to = first + value[lane];
    to += bits >> lane & 1u;
  }
#endif
}

// Of kLanes numbers in memory, which may begin at `to` or behind it.
inline void pack(int64_t* to, const int64_t* from, uint32_t bits) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + 8);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(static_cast<__mmask8>(bits), low));
  to += __builtin_popcount(bits & 0xffu);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(static_cast<__mmask8>(bits >> 8), high));
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    *to = from[lane];
    to += bits >> lane & 1u;
  }
#endif
}

inline uint32_t bits_of(longs mask) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask(bits_as<__m512i>(mask));
#elif defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_pd(bits_as<__m256d>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_pd(bits_as<__m128d>(mask)));
#else
  uint32_t found = 0;
  for (int lane = 0; lane < kLanes / 2; ++lane) found |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return found;
#endif
}

// A bit for every lane where a < b is not so, where a <= b is not so, and where a is NaN: the first two are set there,
// too. GCC does not find by itself that AVX-512 compares to bits.
#if defined(__AVX512F__)
inline uint32_t bits_not_below(floats a, floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
inline uint32_t bits_not_at_most(floats a, floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
inline uint32_t bits_nan(floats a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
inline uint32_t bits_not_below(doubles a, doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLT_UQ); }
inline uint32_t bits_not_at_most(doubles a, doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLE_UQ); }
inline uint32_t bits_nan(doubles a) { return _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q); }
#else
template <class V>
inline uint32_t bits_not_below(V a, V b) {
  return bits_of(~(a < b));
}
template <class V>
inline uint32_t bits_not_at_most(V a, V b) {
  return bits_of(~(a <= b));
}
template <class V>
inline uint32_t bits_nan(V a) {
  return bits_of(a != a);
}
#endif

template <int... Lane>
struct lane_numbers {};
template <int Count, int... Lane>
struct count_lanes : count_lanes<Count - 1, Count - 1, Lane...> {};
template <int... Lane>
struct count_lanes<0, Lane...> {
  using type = lane_numbers<Lane...>;
};

using all_lanes = typename count_lanes<kLanes>::type;

template <int... Lane>
inline ints numbered(lane_numbers<Lane...>) {
  return ints{Lane...};
}

// Lane i gets lane i ^ Step.
template <int Step, int... Lane>
inline floats swapped(floats value, lane_numbers<Lane...>) {
  return __builtin_shufflevector(value, value, (Lane ^ Step)...);
}

// All lanes added up, as a tree.
template <int Step = kLanes / 2>
inline float sum(floats value) {
  if constexpr (Step == 0) {
    return value[0];
  } else {
    return sum<Step / 2>(value + swapped<Step>(value, all_lanes{}));
  }
}

// The largest of all lanes, none of them NaN.
template <int Step = kLanes / 2>
inline float largest(floats value) {
  if constexpr (Step == 0) {
    return value[0];
  } else {
    return largest<Step / 2>(larger(value, swapped<Step>(value, all_lanes{})));
  }
}

// Writes first + the number of every lane whose bit is set, in order, and returns how many they are. All kLanes places
// may be written.
inline int64_t store_positions(int32_t* to, uint32_t bits, int32_t first) {
#if defined(__AVX512F__)
  const ints places = numbered(all_lanes{}) + first;
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), bits_as<__m512i>(places)));
#else
  int32_t* next = to;
  for (uint32_t left = bits; left != 0; left &= left - 1) *next++ = first + __builtin_ctz(left);
#endif
  return __builtin_popcount(bits);
}

// The first `count` (0 to kLanes) values; `filler` in the other lanes. Reads nothing else.
template <class Stored>
inline floats load_first(const Stored* from, int64_t count, float filler) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(Stored) == sizeof(float)) {
    return _mm512_mask_loadu_ps(broadcast(filler), mask, from);
  } else {
    Stored lanes[kLanes];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_maskz_loadu_epi16(mask, from));
    return _mm512_mask_mov_ps(broadcast(filler), mask, load(lanes));
  }
#else
  Stored lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return select(numbered(all_lanes{}) < static_cast<int32_t>(count), load(lanes), broadcast(filler));
#endif
}

// The first `count` (0 to kLanes) lanes. Writes nothing else.
template <class Stored>
inline void store_first(Stored* to, floats value, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Stored) == sizeof(float)) {
    return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value);
  }
#endif
  Stored lanes[kLanes];
  store(lanes, value);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// Rows and columns of `a` and `b` whose number has the bit `Step` change places.
template <int Step, int... Lane>
inline void exchange(floats& a, floats& b, lane_numbers<Lane...>) {
  const floats low = __builtin_shufflevector(a, b, ((Lane & Step) == 0 ? Lane : Lane - Step + kLanes)...);
  const floats high = __builtin_shufflevector(a, b, ((Lane & Step) == 0 ? Lane + Step : Lane + kLanes)...);
  a = low;
  b = high;
}

template <int Step>
inline void transpose_from(floats (&rows)[kLanes]) {
  if constexpr (Step < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if ((i & Step) == 0) exchange<Step>(rows[i], rows[i + Step], all_lanes{});
    }
    transpose_from<2 * Step>(rows);
  }
}

// rows[i][j] becomes rows[j][i].
inline void transpose(floats (&rows)[kLanes]) { transpose_from<1>(rows); }

// Numbers P of each group of four lanes: 0 to 3 of `a`, 4 to 7 of `b`.
template <int P0, int P1, int P2, int P3, int... Lane>
inline floats pick(floats a, floats b, lane_numbers<Lane...>) {
  constexpr int from[4] = {P0, P1, P2, P3};
  return __builtin_shufflevector(a, b, (Lane / 4 * 4 + from[Lane % 4] % 4 + from[Lane % 4] / 4 * kLanes)...);
}

// 16 bytes from each of kLanes / 4 places, one place after the other.
template <class Place>
inline floats load_pieces(const Place& place) {
  const auto piece = [&](int i) { return reinterpret_cast<const float*>(place(i)); };
#if defined(__AVX512F__)
  floats value = _mm512_castps128_ps512(_mm_loadu_ps(piece(0)));
  value = _mm512_insertf32x4(value, _mm_loadu_ps(piece(1)), 1);
  value = _mm512_insertf32x4(value, _mm_loadu_ps(piece(2)), 2);
  return _mm512_insertf32x4(value, _mm_loadu_ps(piece(3)), 3);
#elif defined(__AVX__)
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(piece(0))), _mm_loadu_ps(piece(1)), 1);
#else
  floats value;
  for (int i = 0; i < kLanes / 4; ++i) memcpy(reinterpret_cast<char*>(&value) + 16 * i, piece(i), 16);
  return value;
#endif
}

// Columns that load_columns takes at a time: what 16 bytes hold.
template <class Stored>
constexpr int64_t kColumns = 16 / sizeof(Stored);

// Neighboring columns of kLanes rows, a row in every lane: `row(lane)` is where a row's values start.
template <class Stored, class Row>
inline void load_columns(const Row& row, floats (&columns)[kColumns<Stored>]) {
  floats part[4];
  for (int i = 0; i < 4; ++i) part[i] = load_pieces([&](int group) { return row(4 * group + i); });
  constexpr all_lanes lanes;
  const floats low = pick<0, 4, 1, 5>(part[0], part[1], lanes), high = pick<2, 6, 3, 7>(part[0], part[1], lanes);
  const floats low2 = pick<0, 4, 1, 5>(part[2], part[3], lanes), high2 = pick<2, 6, 3, 7>(part[2], part[3], lanes);
  const floats words_of[4] = {pick<0, 1, 4, 5>(low, low2, lanes), pick<2, 3, 6, 7>(low, low2, lanes),
                              pick<0, 1, 4, 5>(high, high2, lanes), pick<2, 3, 6, 7>(high, high2, lanes)};
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(Stored) == sizeof(float)) {
      columns[i] = words_of[i];
    } else {
      widen_pairs(bits_as<words>(words_of[i]), Stored{}, columns[2 * i], columns[2 * i + 1]);
    }
  }
}

}  // namespace
}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
