// What a kernel asks of the machine: scratch memory of a thread, the queue of its work, and which blocks are packed.

// Buffers of less than a page lie one behind the other in memory that needs no asking for: of few rows, all do. A sanitizer sees each.
struct Scratch {
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t NEAR = 0, GRAIN = 64;
#else
  static constexpr size_t NEAR = 1 << 14, GRAIN = 4096;
#endif
  void* held[MOST_BUFFERS] = {};
  int count = 0;
  bool ok = true;
  size_t used = 0;
  alignas(64) char near[NEAR + 64];
  template <class E> E* take(long n) {
    size_t bytes = ((size_t)(n + W) * sizeof(E) + 63) / 64 * 64;
    if (bytes < 4096 && used + bytes <= NEAR) {
      char* const p = near + used;
      used += bytes;
      return (E*)std::memset(p, 0, bytes);
    }
    bytes = (bytes + GRAIN - 1) / GRAIN * GRAIN;
    void* p = ok ? std::aligned_alloc(bytes >= (1 << 21) ? 1 << 21 : GRAIN, bytes >= (1 << 21) ? (bytes + (1 << 21) - 1) >> 21 << 21 : bytes)
                 : nullptr;
    if (!p) { ok = false; return nullptr; }
#if defined(__linux__)
    if (bytes >= (1 << 21)) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    if (bytes <= (1 << 17)) std::memset(p, 0, bytes);
    return (E*)(held[count++] = p);
  }
  ~Scratch() { for (int n = 0; n < count; ++n) std::free(held[n]); }
};

// Items 0 .. total in runs that get shorter towards the end and never cross a multiple of `group` (what shares packed blocks).
struct Queue {
  const long total, group, threads;
  long next_item = 0;  // read and written as an atomic
  Queue(long total, long group, long threads) : total(total), group(group), threads(threads) {}
  bool next(long& first, long& last) {
    first = __atomic_load_n(&next_item, __ATOMIC_SEQ_CST);
    do {
      if (first >= total) return false;
      const long most = maximum(1L, (total - first) / (2 * threads));
      last = minimum(minimum(first + most, total), (first / group + 1) * group);
    } while (!__atomic_compare_exchange_n(&next_item, &first, last, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return true;
  }
  bool finished() const { return __atomic_load_n(&next_item, __ATOMIC_SEQ_CST) >= total; }  // a thread without memory takes no items
};

// Which blocks of a folded rank a thread holds in packed form, for the ambient point they were packed at.
template <int KEYS> struct Packed {
  double key[KEYS + 1];
  long version = 0;
  int32_t* of;
  template <class... K> void at(K... values) {
    const double now[KEYS + 1] = {(double)values..., 0.0};
    bool same = version > 0;
    for (int n = 0; n < KEYS; ++n) same = same && key[n] == now[n];
    if (same) return;
    std::memcpy(key, now, sizeof now);
    ++version;
  }
  template <class F> void need(long from, long n, long granule, long size, F pack) {
    for (long g = from / granule; g * granule < from + n; ++g)
      if (of[g] != (int32_t)version) { pack(g * granule, minimum(granule, size - g * granule), g * granule); of[g] = (int32_t)version; }
  }
};
