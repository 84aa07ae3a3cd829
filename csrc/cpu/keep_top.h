// Keeps the best b of a stream in O(b) memory: candidates above a rising threshold go to a buffer of 2b, and a full
// buffer is cut back to its best b. Amortized O(1) per value in any order; exact, and independent of how a stream is
// cut.
#pragma once

#include <algorithm>
#include <vector>

#include "../math/order.h"

namespace prunefuse::cpu {

template <class T>
class KeepTop {
 public:
  using Key = order_key_t<T>;
  struct Entry {
    Key key;
    int64_t index;
    // Larger utility first, lower index on ties.
    bool operator<(const Entry& other) const { return key != other.key ? key > other.key : index < other.index; }
  };

  explicit KeepTop(int64_t b) : b_(static_cast<size_t>(b)) {}

  // Entries may come in any order of index.
  void push(Key key, int64_t index) {
    if (key < threshold_ || key == kNeverSelected<Key>) return;
    entries_.push_back({key, index});
    if (entries_.size() >= 2 * b_ + kSlack) cut();
  }

  void merge(const KeepTop& other) {
    for (const Entry& entry : other.entries_) push(entry.key, entry.index);
  }

  // The best b (or fewer, if there were fewer), in order.
  std::vector<Entry> sorted() {
    cut();
    std::sort(entries_.begin(), entries_.end());
    return entries_;
  }

 private:
  static constexpr size_t kSlack = 256;

  void cut() {
    if (entries_.size() <= b_ || b_ == 0) return;
    const auto last = entries_.begin() + static_cast<std::ptrdiff_t>(b_) - 1;
    std::nth_element(entries_.begin(), last, entries_.end());
    threshold_ = last->key;
    entries_.resize(b_);
  }

  size_t b_;
  Key threshold_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace prunefuse::cpu
