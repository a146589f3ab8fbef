// Tokens of a word that never ends: BPE and Unigram, one symbol further at a time (segment.py; the argument is in
// tokenization/segmenters.py).
#include "common.hpp"

#include <atomic>
#include <utility>
#include <vector>

namespace {

using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr u32 NONE = 0xffffffffu;

INLINE u64 key_of(u32 a, u32 b) { return u64(a) << 32 | b; }

INLINE u64 mixed(u64 key) {
    key *= 0x9e3779b97f4a7c15u;
    return key ^ key >> 29;
}

// Open addressing, twice as many slots as keys. No key is all ones.
class Map {
   public:
    void reserve(std::size_t keys) {
        std::size_t size = 16;
        while (size < 2 * keys) size *= 2;
        slots_.assign(size, Slot{~u64(0), NONE});
        mask_ = size - 1;
    }
    u32 get(u64 key) const {
        for (u64 at = mixed(key) & mask_;; at = (at + 1) & mask_) {
            const Slot& slot = slots_[at];
            if (slot.key == key) return slot.value;
            if (slot.key == ~u64(0)) return NONE;
        }
    }
    u32& at(u64 key) {
        u64 at = mixed(key) & mask_;
        while (slots_[at].key != key && slots_[at].key != ~u64(0)) at = (at + 1) & mask_;
        slots_[at].key = key;
        return slots_[at].value;
    }

   private:
    struct Slot {
        u64 key;
        u32 value;
    };
    std::vector<Slot> slots_;
    u64 mask_ = 0;
};

// Entries by their symbols read backwards: from the end of a prefix all entries that end there are met, short ones first.
class Suffixes {
   public:
    static constexpr u32 ROOT = 0;

    void reserve(std::size_t symbols) {
        children_.reserve(symbols + 1);
        token_.assign(1, -1);
    }
    void add(const i32* symbols, i64 length, i32 token) {
        u32 node = ROOT;
        for (i64 i = length - 1; i >= 0; i--) {
            u32& child = children_.at(key_of(node, u32(symbols[i])));
            if (child == NONE) {
                child = u32(token_.size());
                token_.push_back(-1);
            }
            node = child;
        }
        token_[node] = token;
    }
    u32 child(u32 node, i32 symbol) const { return children_.get(key_of(node, u32(symbol))); }
    i32 token(u32 node) const { return token_[node]; }

   private:
    Map children_;
    std::vector<i32> token_;  // -1: no entry
};

// ---- BPE ----------------------------------------------------------------------------------------------------------------

class Bpe {
   public:
    // merges (n_merges, 3): left, right, result, in the order of their ranks; the symbols of token t are
    // symbols[starts[t] : starts[t + 1]].
    Bpe(const i32* merges, i64 n_merges, const i32* symbols, const i64* starts, i64 n_tokens)
        : symbols_(symbols, symbols + starts[n_tokens]), starts_(starts, starts + n_tokens + 1), seen_(SEEN) {
        ranks_.reserve(std::size_t(n_merges));
        results_.resize(std::size_t(n_merges));
        for (i64 rank = 0; rank < n_merges; rank++) {
            ranks_.at(key_of(u32(merges[3 * rank]), u32(merges[3 * rank + 1]))) = u32(rank);
            results_[std::size_t(rank)] = merges[3 * rank + 2];
        }
        suffixes_.reserve(symbols_.size());
        first_step_.push_back(0);
        std::vector<i32> word;
        for (i64 token = 0; token < n_tokens; token++) {
            if (merge(token, word)) suffixes_.add(&symbols_[std::size_t(starts_[std::size_t(token)])], length(token), i32(token));
            first_step_.push_back(steps_.size());
        }
        for (auto& pair : seen_) pair.store(0, std::memory_order_relaxed);
    }

    // The last token of the encoding of every prefix that ends in symbols [from, n): its id and its length. `before` is
    // the token before symbol 0, -1 at the start of the word. Returns n, or the symbol at which nothing fits.
    i64 extend(const i32* symbols, i32* tokens, i32* lengths, i32 before, i64 from, i64 n) const {
        std::vector<std::pair<i32, i32>> ending;
        for (i64 p = from; p < n; p++) {
            ending.clear();
            u32 node = Suffixes::ROOT;
            for (i64 start = p; start >= 0; start--) {
                node = suffixes_.child(node, symbols[start]);
                if (node == NONE) break;
                if (suffixes_.token(node) >= 0) ending.emplace_back(suffixes_.token(node), i32(p - start + 1));
            }
            bool found = false;
            while (!found && !ending.empty()) {
                auto [token, length] = ending.back();
                ending.pop_back();
                i64 start = p + 1 - length;
                i32 left = start > 0 ? tokens[start - 1] : before;
                if (left >= 0 && !stay_apart(left, token)) continue;
                tokens[p] = token;
                lengths[p] = length;
                found = true;
            }
            if (!found) return p;
        }
        return n;
    }

   private:
    struct Step {  // one merge in the encoding of a token
        u32 rank;
        i32 first, last;  // the first and the last symbol afterwards, -1 where they stay the same
    };
    static constexpr std::size_t SEEN = 1 << 16;

    i64 length(i64 token) const { return starts_[std::size_t(token) + 1] - starts_[std::size_t(token)]; }

    // Notes the merges of one token's symbols; whether they end in this token.
    bool merge(i64 token, std::vector<i32>& word) {
        word.assign(symbols_.begin() + starts_[std::size_t(token)], symbols_.begin() + starts_[std::size_t(token) + 1]);
        while (word.size() > 1) {
            u32 best = NONE;
            std::size_t at = 0;
            for (std::size_t i = 0; i + 1 < word.size(); i++) {
                u32 rank = ranks_.get(key_of(u32(word[i]), u32(word[i + 1])));
                if (rank < best) best = rank, at = i;
            }
            if (best == NONE) return false;
            i32 result = results_[best];
            word[at] = result;
            word.erase(word.begin() + i64(at) + 1);
            steps_.push_back({best, at == 0 ? result : -1, at + 1 == word.size() ? result : -1});
        }
        return word.size() == 1 && word[0] == i32(token);
    }

    // Whether the encoding of two tokens' symbols is these two tokens: no merge joins them while each is being made. Of
    // equal ranks the leftmost merge comes first.
    bool stay_apart(i32 left, i32 right) const {
        u64 pair = (u64(u32(left)) << 31 | u32(right)) + 1;
        std::atomic<u64>& known = seen_[mixed(pair) % SEEN];
        u64 answer = known.load(std::memory_order_relaxed);
        if (answer >> 1 == pair) return answer & 1;
        bool apart = merges_apart(left, right);
        known.store(pair << 1 | u64(apart), std::memory_order_relaxed);
        return apart;
    }

    bool merges_apart(i32 left, i32 right) const {
        std::size_t l = first_step_[std::size_t(left)], l_end = first_step_[std::size_t(left) + 1];
        std::size_t r = first_step_[std::size_t(right)], r_end = first_step_[std::size_t(right) + 1];
        i32 last = symbols_[std::size_t(starts_[std::size_t(left) + 1]) - 1];
        i32 first = symbols_[std::size_t(starts_[std::size_t(right)])];
        u32 across = ranks_.get(key_of(u32(last), u32(first)));
        while (true) {
            u32 in_left = l < l_end ? steps_[l].rank : NONE, in_right = r < r_end ? steps_[r].rank : NONE;
            if (across < in_left && across <= in_right && across != NONE) return false;
            if (in_left == NONE && in_right == NONE) return true;
            bool changed;
            if (in_left <= in_right) {
                changed = steps_[l].last >= 0;
                if (changed) last = steps_[l].last;
                l++;
            } else {
                changed = steps_[r].first >= 0;
                if (changed) first = steps_[r].first;
                r++;
            }
            if (changed) across = ranks_.get(key_of(u32(last), u32(first)));
        }
    }

    std::vector<i32> symbols_;
    std::vector<i64> starts_;
    Map ranks_;
    std::vector<i32> results_;
    Suffixes suffixes_;
    std::vector<Step> steps_;
    std::vector<std::size_t> first_step_;
    mutable std::vector<std::atomic<u64>> seen_;  // pairs asked for, with the answer in the lowest bit
};

// ---- Unigram ------------------------------------------------------------------------------------------------------------

class Unigram {
   public:
    Unigram(const i32* symbols, const i64* starts, const double* scores, i64 n_tokens, i32 unknown, double unknown_score)
        : scores_(scores, scores + n_tokens), unknown_(unknown), unknown_score_(unknown_score) {
        suffixes_.reserve(std::size_t(starts[n_tokens]));
        for (i64 token = 0; token < n_tokens; token++)
            if (starts[token + 1] > starts[token])
                suffixes_.add(symbols + starts[token], starts[token + 1] - starts[token], i32(token));
    }

    // The best last token of every prefix that ends in symbols [from, n), and best[p + 1], the score of that prefix. Of
    // equal scores the longest token wins, and sums are made in the order of the text, as the library does.
    void extend(const i32* symbols, i32* tokens, i32* lengths, double* best, i64 from, i64 n) const {
        for (i64 p = from; p < n; p++) {
            i32 token = unknown_, length = 1;
            double score = unknown_score_ + best[p];
            u32 node = Suffixes::ROOT;
            for (i64 start = p; start >= 0; start--) {
                node = suffixes_.child(node, symbols[start]);
                if (node == NONE) break;
                i32 found = suffixes_.token(node);
                if (found < 0) continue;
                double candidate = scores_[std::size_t(found)] + best[start];
                if (start < p && candidate < score) continue;
                score = candidate;
                token = found;
                length = i32(p - start + 1);
            }
            tokens[p] = token;
            lengths[p] = length;
            best[p + 1] = score;
        }
    }

   private:
    Suffixes suffixes_;
    std::vector<double> scores_;
    i32 unknown_;
    double unknown_score_;
};

// How many of n symbols are in tokens that the paths of the last `live` prefixes share.
i64 shared(const i32* lengths, i64 n, i64 live) {
    if (live > n) return 0;
    std::vector<char> on_a_path(std::size_t(n) + 1, 0);
    for (i64 p = n - live + 1; p <= n; p++) on_a_path[std::size_t(p)] = 1;
    i64 paths = live;
    for (i64 p = n; p > 0; p--) {
        if (!on_a_path[std::size_t(p)]) continue;
        if (paths == 1) return p;
        char& earlier = on_a_path[std::size_t(p - lengths[p - 1])];
        if (earlier) paths--;
        earlier = 1;
    }
    return 0;
}

}  // namespace

EXPORT thalweg_bpe_create(const i32* merges, i64 n_merges, const i32* symbols, const i64* starts, i64 n_tokens, i64* handle) {
    auto made = new Bpe(merges, n_merges, symbols, starts, n_tokens);
    *handle = i64(reinterpret_cast<std::uintptr_t>(made));
}
EXPORT thalweg_bpe_extend(i64 handle, const i32* symbols, i32* tokens, i32* lengths, i64 before, i64 from, i64 n, i64* done) {
    *done = reinterpret_cast<const Bpe*>(handle)->extend(symbols, tokens, lengths, i32(before), from, n);
}
EXPORT thalweg_bpe_destroy(i64 handle) { delete reinterpret_cast<Bpe*>(handle); }

EXPORT thalweg_unigram_create(const i32* symbols, const i64* starts, const double* scores, i64 n_tokens, i64 unknown,
                              const double* unknown_score, i64* handle) {
    auto made = new Unigram(symbols, starts, scores, n_tokens, i32(unknown), *unknown_score);
    *handle = i64(reinterpret_cast<std::uintptr_t>(made));
}
EXPORT thalweg_unigram_extend(i64 handle, const i32* symbols, i32* tokens, i32* lengths, double* best, i64 from, i64 n) {
    reinterpret_cast<const Unigram*>(handle)->extend(symbols, tokens, lengths, best, from, n);
}
EXPORT thalweg_unigram_destroy(i64 handle) { delete reinterpret_cast<Unigram*>(handle); }

// ends (n,): where the shared tokens end, in order; count: how many there are.
EXPORT thalweg_segment_shared(const i32* lengths, i64 n, i64 live, i32* ends, i64* count) {
    i64 stop = shared(lengths, n, live), found = 0;
    for (i64 p = stop; p > 0; p -= lengths[p - 1]) ends[found++] = i32(p);
    for (i64 i = 0; i < found / 2; i++) {
        i32 end = ends[i];
        ends[i] = ends[found - 1 - i];
        ends[found - 1 - i] = end;
    }
    *count = found;
}
