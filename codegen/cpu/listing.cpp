// Rows in the order of the blocks that they list (`einfuse.runtime.lists`): a stable sort by counting, for every lane of rows. An entry that a
// row lists twice counts once, and one outside the blocks for none.
//
//   lists[row[lane, r], slots]  ->  rows[lane, ..]: the r that list block 0, in order, then those of block 1 ..; each block from a multiple of
//   `tile` on, which is `start`, with `count` of them. What is between is -1.

#include <algorithm>
#include <cstdint>
#include <cstdlib>

extern "C" int einfuse_kernel(const void* const* ptrs, const long*, const long* sizes, const double*, int threads) {
  const int64_t* const lists = (const int64_t*)ptrs[0];
  const int64_t* const list_of = (const int64_t*)ptrs[1];  // -1: there is no such row
  int32_t* const all_rows = (int32_t*)ptrs[2];
  int32_t* const all_starts = (int32_t*)ptrs[3];
  int32_t* const all_counts = (int32_t*)ptrs[4];
  const long lanes = sizes[0], length = sizes[1], slots = sizes[2], span = sizes[3], tile = sizes[4], room = sizes[5];
  bool failed = false;
#pragma omp parallel num_threads(threads)
  {
    int32_t* const last = (int32_t*)std::malloc((span + 1) * sizeof(int32_t));  // the row that was the last to list a block
    int32_t* const next = (int32_t*)std::malloc((span + 1) * sizeof(int32_t));
    if (!last || !next) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(dynamic)
    for (long lane = 0; lane < lanes; ++lane) {
      if (!last || !next) continue;
      int32_t *const rows = all_rows + lane * room, *const start = all_starts + lane * span, *const count = all_counts + lane * span;
      const auto each = [&](auto take) {
        std::fill(last, last + span, -1);
        for (long r = 0; r < length; ++r) {
          const int64_t at = list_of[lane * length + r];
          if (at < 0) continue;
          for (const int64_t *e = lists + at * slots, *end = e + slots; e < end; ++e)
            if ((uint64_t)*e < (uint64_t)span && last[*e] != r) last[*e] = (int32_t)r, take(*e, (int32_t)r);
        }
      };
      std::fill(count, count + span, 0);
      each([&](int64_t e, int32_t) { ++count[e]; });
      long place = 0;
      for (long e = 0; e < span; ++e) {
        start[e] = next[e] = (int32_t)place;
        place += (count[e] + tile - 1) / tile * tile;
      }
      if (place < room || tile > 1) std::fill(rows, rows + room, -1);
      each([&](int64_t e, int32_t r) { rows[next[e]++] = r; });
    }
    std::free(last);
    std::free(next);
  }
  return failed;
}
