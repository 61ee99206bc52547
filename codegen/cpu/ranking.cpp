// The best coordinates of rows of numbers (`einfuse.ir.ranking`): one key for every candidate, its value above, its coordinate below, so that
// keys are distinct and the largest are the same ones in whatever order they are found.
//
// A row is read twice. Its candidates are dealt out to groups, and so many groups have a largest value of at least `bound` as there are slots:
// what is smaller is none of the best. The rest, little more than the slots, is set aside and put in order. Where values are equal it may be
// more than there is room for: then the best are kept of it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

typedef int64_t Key;
constexpr long STEP = 16;  // candidates that are compared together
constexpr long FEW = 256;  // numbers that are ordered by counting the larger ones: no branch depends on them

// The order of numbers as that of integers: -0 is 0, and NaN is behind every number.
static inline int32_t ordered(float value) {
  const float x = value + 0.0f;
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return INT32_MIN;
  return bits < 0 ? bits ^ INT32_MAX : bits;
}
static inline float value_of(Key key) {
  const int32_t order = (int32_t)(key >> 32), bits = order < 0 ? order ^ INT32_MAX : order;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static inline Key key_of(float value, long at) { return (Key)((uint64_t)(uint32_t)ordered(value) << 32 | (uint32_t)~(uint32_t)at); }
static inline long coordinate(Key key) { return (uint32_t)~(uint32_t)key; }

// How many of the numbers are larger than each of them.
template <class X> static inline void count_larger(const X* all, long n, X* count) {
  std::fill(count, count + n, 0);
  for (long k = 0; k < n; ++k) {
    const X one = all[k];
#pragma omp simd
    for (long c = 0; c < n; ++c) count[c] += one > all[c] ? 1 : 0;
  }
}

struct Row {
  const float* values;
  const uint8_t* exists;  // by `step`; where there is none all candidates exist
  long step, span;

  bool there(long c) const { return !exists || exists[c * step]; }
};

struct Choice {
  const long slots, groups;
  const long room;
  Key *kept, *place;      // those set aside, and where each of them stands in the list
  float *largest, *above;  // of the groups
  void* held;             // all of these: 0 where there is no memory
  long count = 0;
  bool bounded = false;  // does what is chosen from now on have at least the value `bound`?
  float bound = 0;

  explicit Choice(long slots) : slots(slots), groups((2 * slots + STEP - 1) / STEP * STEP), room(2 * slots + FEW) {
    held = std::malloc((room + FEW) * sizeof(Key) + 2 * groups * sizeof(float));
    kept = (Key*)held;
    place = kept + room;
    largest = (float*)(place + FEW);
    above = largest + groups;
  }
  Choice(const Choice&) = delete;
  ~Choice() { std::free(held); }

  void operator()(const Row& row, int64_t* list) {
    count = 0;
    bounded = false;
    if (row.span >= 2 * groups) deal(row);
    for (long at = 0; at < row.span; at += STEP) {
      take(row, at, std::min(at + STEP, row.span));
      if (count + STEP > room) best();
    }
    if (count > FEW) best();
    const long n = std::min(count, slots);
    if (count > FEW) {
      std::sort(kept, kept + n, std::greater<Key>());
      for (long k = 0; k < n; ++k) list[k] = coordinate(kept[k]);
    } else {
      count_larger(kept, count, place);
      for (long k = 0; k < count; ++k)
        if (place[k] < n) list[place[k]] = coordinate(kept[k]);
    }
    std::fill(list + n, list + slots, MISSING);
  }
  void deal(const Row& row) {
    float* const most = largest;
    std::fill(most, most + groups, -INFINITY);
    for (long at = 0; at < row.span; at += groups) {
      const long n = std::min(groups, row.span - at);
      const float* const values = row.values + at;
      if (!row.exists) {
#pragma omp simd
        for (long c = 0; c < n; ++c) most[c] = values[c] > most[c] ? values[c] : most[c];
      } else if (row.step == 1) {
        const uint8_t* const exists = row.exists + at;
#pragma omp simd
        for (long c = 0; c < n; ++c) most[c] = values[c] > most[c] && exists[c] ? values[c] : most[c];
      } else {
        for (long c = 0; c < n; ++c) most[c] = values[c] > most[c] && row.there(at + c) ? values[c] : most[c];
      }
    }
    if (groups > FEW) {
      std::nth_element(most, most + (slots - 1), most + groups, std::greater<float>());
      bound = most[slots - 1];
    } else {
      count_larger(most, groups, above);
      float least = INFINITY;  // of those that few are above
      const float few = (float)slots;
#pragma omp simd reduction(min : least)
      for (long c = 0; c < groups; ++c) least = std::min(least, above[c] < few ? most[c] : INFINITY);
      bound = least;
    }
    bounded = bound > -INFINITY;
  }
  void take(const Row& row, long first, long last) {
    const float* const values = row.values;
    unsigned held = 0;
    if (last - first < STEP || !bounded) {
      for (long c = first; c < last; ++c) held |= (unsigned)(!bounded || values[c] >= bound) << (c - first);
    } else {
#pragma omp simd reduction(| : held)
      for (int c = 0; c < (int)STEP; ++c) held |= (unsigned)(values[first + c] >= bound) << c;
      if (held && row.exists && row.step == 1) {
        const uint8_t* const exists = row.exists + first;
        unsigned there = 0;
#pragma omp simd reduction(| : there)
        for (int c = 0; c < (int)STEP; ++c) there |= (unsigned)(exists[c] != 0) << c;
        held &= there;
      }
    }
    for (; held; held &= held - 1) {
      const long c = first + __builtin_ctz(held);
      if (row.there(c)) kept[count++] = key_of(values[c], c);
    }
  }
  void best() {
    if (count < slots) return;
    std::nth_element(kept, kept + (slots - 1), kept + count, std::greater<Key>());
    count = slots;
    const float last = value_of(kept[slots - 1]);
    bounded = last == last;
    bound = std::nextafter(last, INFINITY);  // an equal one that comes later is none of the best
  }
};

// Pointers: values, what exists (or 0), the list. Strides: of what exists. Sizes: the number of axes before the last, the candidates of a row,
// the slots, and the extents of those axes.
extern "C" int einfuse_kernel(const void* const* ptrs, const long* strides, const long* sizes, const double*, int threads) {
  const long axes = sizes[0], span = sizes[1], slots = sizes[2];
  const long* const extents = sizes + 3;
  long rows = 1;
  for (long a = 0; a < axes; ++a) rows *= extents[a];
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    Choice choose(slots);
    if (!choose.held) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(static)
    for (long r = 0; r < rows; ++r) {
      if (!choose.held) continue;
      const uint8_t* exists = (const uint8_t*)ptrs[1];
      for (long a = axes - 1, rest = r; exists && a >= 0; rest /= extents[a--]) exists += rest % extents[a] * strides[a];
      choose({(const float*)ptrs[0] + r * span, exists, exists ? strides[axes] : 0, span}, (int64_t*)ptrs[2] + r * slots);
    }
  }
  return failed;
}
