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
constexpr long WORD = 64;  // candidates for which a word says which are set aside: its end is guessed wrong less often than that of a step
constexpr long FEW = 256;  // numbers that are ordered by counting the larger ones: no branch depends on them
typedef float Values __attribute__((vector_size(4 * STEP)));
typedef int32_t Truths __attribute__((vector_size(4 * STEP)));
typedef uint16_t Shorts __attribute__((vector_size(2 * STEP)));
typedef uint8_t Bytes __attribute__((vector_size(STEP)));

template <class X> static inline X loaded(const void* p) {
  X x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// The order of numbers as that of integers: -0 is 0, and NaN is behind every number.
static inline int32_t ordered(float value) {
  const float x = value + 0.0f;
  const int32_t bits = loaded<int32_t>(&x);
  if (x != x) return INT32_MIN;
  return bits < 0 ? bits ^ INT32_MAX : bits;
}
static inline float value_of(Key key) {
  const int32_t order = (int32_t)(key >> 32), bits = order < 0 ? order ^ INT32_MAX : order;
  return loaded<float>(&bits);
}
static inline Key key_of(float value, long at) { return (Key)((uint64_t)(uint32_t)ordered(value) << 32 | (uint32_t)~(uint32_t)at); }
static inline long coordinate(Key key) { return (uint32_t)~(uint32_t)key; }

// How many of the numbers are larger than each of them. Behind both there is room for a vector.
template <class X, class N> static inline void count_larger(const X* all, long n, N* count) {
  typedef X Vector __attribute__((vector_size(4 * STEP)));
  for (long c = 0; c < n; c += 4 * STEP / sizeof(X)) {
    const Vector here = loaded<Vector>(all + c);
    decltype(here < here) larger = {};
    for (long k = 0; k < n; ++k) larger -= all[k] - Vector{} > here;
    std::memcpy(count + c, &larger, sizeof larger);
  }
}

#if defined(__AVX512F__)
// Sets the keys of the candidates of a step that are found behind each other, and returns how many there are. No branch depends on them but
// where steps with one are rare.
static inline long set_aside(Key* to, Values values, Truths found, long at, bool rare) {
  typedef int32_t Half __attribute__((vector_size(2 * STEP)));
  typedef long long Wide __attribute__((vector_size(4 * STEP)));
  const Values x = values + 0.0f;
  Truths bits = loaded<Truths>(&x), coordinate;
  bits ^= bits >> 31 & INT32_MAX;
  bits = x == x ? bits : Truths{} + INT32_MIN;
  for (int c = 0; c < STEP; ++c) coordinate[c] = ~(int32_t)c;
  coordinate -= (int32_t)at;
  const unsigned all = __builtin_ia32_ptestmd512(found, found, 0xffff);
  long count = 0;
  if (rare && !all) return 0;
  for (int half = 0; half < 2; ++half) {
    Half high, low;
    std::memcpy(&high, (const char*)&bits + half * sizeof high, sizeof high);
    std::memcpy(&low, (const char*)&coordinate + half * sizeof low, sizeof low);
    const Wide keys = __builtin_convertvector(high, Wide) << 32 | (__builtin_convertvector(low, Wide) & 0xffffffffLL);
    const uint8_t mine = all >> 8 * half;
    const Wide together = __builtin_ia32_compressdi512_mask(keys, Wide{}, mine);
    std::memcpy(to + count, &together, sizeof together);
    count += __builtin_popcount(mine);
  }
  return count;
}
#endif

// A bit for each of `WORD` candidates.
static inline uint64_t word(const Truths* held) {
  Truths bit;
  for (int c = 0; c < STEP; ++c) bit[c] = 1 << c;
  uint64_t out = 0;
  for (int half = 0; half < 2; ++half) {
    const Truths both = (held[2 * half] & bit) | (held[2 * half + 1] & bit << STEP);
    uint64_t parts[8], any = 0;
    std::memcpy(parts, &both, sizeof both);
    for (const uint64_t part : parts) any |= part;
    out |= (uint64_t)(uint32_t)(any | any >> 32) << 32 * half;
  }
  return out;
}

static inline bool any(const uint8_t* truths, long n) {
  typedef uint64_t Line __attribute__((vector_size(64)));
  Line found = {};
  long at = 0;
  for (; at + 64 <= n; at += 64) found |= loaded<Line>(truths + at);
  uint64_t some = 0;
  for (int k = 0; k < 8; ++k) some |= found[k];
  for (; at < n; ++at) some |= truths[at];
  return some;
}

struct Row {
  const float* values;
  const uint8_t* exists;  // 0: all of them
  long span, room;        // candidates, and how many numbers lie in memory

  // Behind the last candidate that exists lie half of the candidates of all causal rows, and all before it exist.
  Row(const float* values, const uint8_t* exists, long room) : values(values), exists(exists), span(room), room(room) {
    if (!exists) return;
    const void* const first = std::memchr(exists, 0, span);
    const long all = first ? (const uint8_t*)first - exists : span;
    if (!any(exists + all, span - all)) {
      this->exists = nullptr;
      span = all;
    } else {
      while (!exists[span - 1]) --span;
    }
  }
  // The candidates from `at` on, and which of them exist: none behind the last one.
  Values read(long at, Truths& there) const {
    Truths step;
    for (int c = 0; c < STEP; ++c) step[c] = c;
    there = step < (int32_t)std::min(STEP, span - at);
    if (at + STEP <= room) {
      if (exists) there &= __builtin_convertvector(__builtin_convertvector(loaded<Bytes>(exists + at), Shorts), Truths) != 0;
      return loaded<Values>(values + at);
    }
    Values last = {};
    for (long c = 0; at + c < span; ++c) last[c] = values[at + c], there[c] = -(!exists || exists[at + c]);
    return last;
  }
};

struct Choice {
  const long slots, groups, room;
  Key *kept, *place, *order;  // those set aside, where each of them stands in the list, and the coordinates as they stand there
  float* largest;             // of the groups
  int32_t* above;             // how many groups have a larger one
  void* held;                 // all of these: 0 where there is no memory
  long count = 0;
  bool bounded = false;  // does what is chosen from now on have at least the value `bound`?
  float bound = 0;

  explicit Choice(long slots) : slots(slots), groups((2 * slots + STEP - 1) / STEP * STEP), room(2 * slots + FEW) {
    held = std::malloc((room + 2 * FEW + 2 * STEP) * sizeof(Key) + 2 * groups * sizeof(float));
    kept = (Key*)held;
    place = kept + room + STEP;
    order = place + FEW + STEP;
    largest = (float*)(order + FEW);
    above = (int32_t*)(largest + groups);
  }
  Choice(const Choice&) = delete;
  ~Choice() { std::free(held); }

  void operator()(const Row& row, int64_t* list) {
    count = 0;
    bounded = false;
    if (row.span >= 2 * groups) deal(row);
    for (long at = 0; at < row.span; at += WORD) {
      take(row, at);
      if (count + WORD > room) best();
    }
    if (count > FEW) best();
    const long n = std::min(count, slots);
    if (count > FEW) {
      std::sort(kept, kept + n, std::greater<Key>());
      for (long k = 0; k < n; ++k) list[k] = coordinate(kept[k]);
    } else {
      count_larger(kept, count, place);
      for (long k = 0; k < count; ++k) order[place[k]] = coordinate(kept[k]);
      std::copy(order, order + n, list);
    }
    std::fill(list + n, list + slots, MISSING);
  }
  void deal(const Row& row) {
    for (long group = 0; group < groups; group += STEP) {
      Values most = Values{} - INFINITY;
      for (long at = group; at < row.span; at += groups) {
        Truths there;
        const Values here = row.read(at, there);
        most = there & here > most ? here : most;
      }
      std::memcpy(largest + group, &most, sizeof most);
    }
    if (groups > FEW) {
      std::nth_element(largest, largest + (slots - 1), largest + groups, std::greater<float>());
      bound = largest[slots - 1];
    } else {
      count_larger(largest, groups, above);
      Values least = Values{} + INFINITY;  // of those that few are above
      for (long c = 0; c < groups; c += STEP) {
        const Values here = loaded<Values>(largest + c);
        least = (loaded<Truths>(above + c) < (int32_t)slots) & (here < least) ? here : least;
      }
      bound = least[0];
      for (int c = 1; c < STEP; ++c) bound = std::min(bound, least[c]);
    }
    bounded = bound > -INFINITY;
  }
  void take(const Row& row, long first) {
    Truths found[WORD / STEP] = {};
    for (long c = 0; c < WORD / STEP && first + c * STEP < row.span; ++c) {
      const Values here = row.read(first + c * STEP, found[c]);
      if (bounded) found[c] &= here >= bound;
#if defined(__AVX512F__)
      count += set_aside(kept + count, here, found[c], first + c * STEP, row.span > 2 * STEP * slots);
    }
#else
    }
    for (uint64_t left = word(found); left; left &= left - 1) {
      const long c = first + __builtin_ctzll(left);
      kept[count++] = key_of(row.values[c], c);
    }
#endif
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

// Pointers: values, what exists (or 0), the list. Strides: of what exists, but for the candidates, which are neighbours. Sizes: the number of
// axes before the last, the candidates of a row, the slots, and the extents of those axes.
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
      choose({(const float*)ptrs[0] + r * span, exists, span}, (int64_t*)ptrs[2] + r * slots);
    }
  }
  return failed;
}
