// The scan of Mamba2 as one kernel: a head goes through the blocks of a run with its state in cache. Letters: ops/ssd.py.
//
// Its matrix products are made of tiles: ROWS x COLUMNS sums in registers, to which a row of the left and a row of the right
// operand are multiplied, step by step. Operands are packed for that: of the left ROWS elements of a step lie side by side,
// of the right COLUMNS. Where a machine multiplies pairs of bfloat16, two steps lie side by side.

#include <memory>
#include <vector>

#include "common.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif
#define UNROLL _Pragma("GCC unroll 16")

namespace {

using Index = std::int64_t;
typedef float Vector __attribute__((vector_size(4 * VECTOR)));

INLINE Vector read(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

INLINE void write(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

INLINE Index up(Index n, Index to) { return (n + to - 1) / to * to; }

// ---- tiles ---------------------------------------------------------------------------------------------------------

struct Wide {  // 32 registers of 16 floats
    using Number = float;
    static constexpr Index ROWS = 8, VECTORS = 2, COLUMNS = VECTORS * VECTOR, STEPS = 1;
};

struct Narrow {  // 16 registers of 8 floats, or 32 of 4
    using Number = float;
    static constexpr Index ROWS = 6, VECTORS = 1, COLUMNS = VECTORS * VECTOR, STEPS = 1;
};

struct Paired {  // as Wide; elements are bfloat16, two steps at a time
    using Number = bf16;
    static constexpr Index ROWS = 8, VECTORS = 2, COLUMNS = VECTORS * VECTOR, STEPS = 2;
};

struct PairedByHardware : Paired {};

template <typename M>
struct Tile {
    Vector sum[M::ROWS][M::VECTORS];
};

// Where the element of row or column i and step k lies in a packed operand of that many rows or columns.
template <typename M>
INLINE Index packed(Index i, Index k, Index width) {
    return (k / M::STEPS * width + i) * M::STEPS + k % M::STEPS;
}

template <typename M>
INLINE void clear(Tile<M>& tile) {
    UNROLL for (Index r = 0; r < M::ROWS; r++) UNROLL for (Index v = 0; v < M::VECTORS; v++) tile.sum[r][v] = Vector{};
}

// Reads or writes ROWS x COLUMNS floats; rows lie `stride` apart.
template <typename M>
INLINE void read_tile(Tile<M>& tile, const float* from, Index stride, float by) {
    UNROLL for (Index r = 0; r < M::ROWS; r++)
        UNROLL for (Index v = 0; v < M::VECTORS; v++) tile.sum[r][v] = by * read(from + r * stride + v * VECTOR);
}

template <typename M>
INLINE void write_tile(const Tile<M>& tile, float* to, Index stride) {
    UNROLL for (Index r = 0; r < M::ROWS; r++)
        UNROLL for (Index v = 0; v < M::VECTORS; v++) write(to + r * stride + v * VECTOR, tile.sum[r][v]);
}

// Row r of the tile times by[r]; 0 where that is 0, whatever was there.
template <typename M>
INLINE void scale_tile(Tile<M>& tile, const float* by) {
    UNROLL for (Index r = 0; r < M::ROWS; r++)
        UNROLL for (Index v = 0; v < M::VECTORS; v++)
            tile.sum[r][v] = by[r] == 0.0f ? Vector{} : by[r] * tile.sum[r][v];
}

INLINE void add_products(Vector& sum, float a, Vector b, Narrow) { sum += a * b; }
INLINE void add_products(Vector& sum, float a, Vector b, Wide) { sum += a * b; }

// a: a pair of bfloat16; b: 16 of them. The first of a pair lies in the lower half of its 32 bits.
typedef std::uint32_t Bits __attribute__((vector_size(4 * VECTOR)));

INLINE void add_products(Vector& sum, float a, Vector b, Paired) {
    std::uint32_t pair;
    std::memcpy(&pair, &a, sizeof pair);
    Bits pairs = (Bits)b;
    float first = load(bf16(pair)), second = load(bf16(pair >> 16));
    sum += first * (Vector)(pairs << 16);
    sum += second * (Vector)(pairs & 0xffff0000u);
}

#if HAS_PAIRS
INLINE void add_products(Vector& sum, float a, Vector b, PairedByHardware) {
    std::uint32_t pair;
    std::memcpy(&pair, &a, sizeof pair);
    Bits pairs = pair + Bits{};
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(b));  // no name for it is the same in all compilers
}
#endif

// tile += left times right, n steps.
template <typename M>
INLINE void multiply(Tile<M>& tile, const typename M::Number* left, const typename M::Number* right, Index n) {
    const float *a = reinterpret_cast<const float*>(left), *b = reinterpret_cast<const float*>(right);
    for (Index k = 0; k < n / M::STEPS; k++, a += M::ROWS, b += M::COLUMNS) {
        Vector row[M::VECTORS];
        UNROLL for (Index v = 0; v < M::VECTORS; v++) row[v] = read(b + v * VECTOR);
        UNROLL for (Index r = 0; r < M::ROWS; r++)
            UNROLL for (Index v = 0; v < M::VECTORS; v++) add_products(tile.sum[r][v], a[r], row[v], M{});
    }
}

// ---- the scan ------------------------------------------------------------------------------------------------------

template <typename T>
struct Run {
    const T *x, *B, *C;                 // the token's row of a tensor that may be wider
    Index x_stride, B_stride, C_stride;
    const float *delta, *log_decay;     // (N, H)
    const float* skip;                  // (H,), or null
    const Index* blocks;                // (b, FIELDS)
    const Index* first;                 // (N,): where the token's segment begins
    const std::uint8_t* wanted;         // (N,): whether y of the token is, or null for all
    const float* carried;               // (S_in, K, H, P), or null for zeros
    T* y;                               // (N, H, P)
    float* final;                       // (S_out, K, H, P)
    Index heads, groups, K, P;
    Index q;                            // tokens of the largest block
};

template <typename T>
INLINE bool any_wanted(const Run<T>& run, Index start, Index stop) {
    if (!run.wanted) return true;
    for (Index t = start; t < stop; t++)
        if (run.wanted[t]) return true;
    return false;
}

// Elements of the operands of a block and group that all heads of the group share, and of what a head needs beside them.
template <typename M>
struct Sizes {
    Index rows, steps;          // tokens of a block as rows of tiles, and as steps
    Index state_rows, inner;    // K as rows of tiles, and as steps
    Index panels;               // of COLUMNS channels
    Sizes(Index q, Index K, Index P)
        : rows(up(q, M::ROWS)),
          steps(up(q, M::STEPS)),
          state_rows(up(K, M::ROWS)),
          inner(up(K, M::STEPS)),
          panels(up(P, M::COLUMNS) / M::COLUMNS) {}
};

// Of one block and group: queries (tiles of tokens, step K), keys (tiles of K, step token), and scores C_i . B_j, (tiles of
// i, step j), where j <= i.
template <typename M, typename T>
INLINE void prepare(const Run<T>& run, const Index* block, Index group, typename M::Number* queries,
                    typename M::Number* keys, float* scores, typename M::Number* right) {
    constexpr Index R = M::ROWS, W = M::COLUMNS;
    const Sizes<M> size(run.q, run.K, run.P);
    Index start = block[0], q = block[1] - start, leaves = block[3], K = run.K;
    Index steps = up(q, M::STEPS), inner = size.inner;
    const T* B = run.B + start * run.B_stride + group * K;
    const T* C = run.C + start * run.C_stride + group * K;
    if (leaves) {
        for (Index k0 = 0; k0 < size.state_rows; k0 += R)
            for (Index j = 0; j < steps; j++)
                for (Index r = 0; r < R; r++)
                    store(keys[k0 * size.steps + packed<M>(r, j, R)],
                          j < q && k0 + r < K ? load(B[j * run.B_stride + k0 + r]) : 0.0f);
    }
    for (Index j0 = 0; j0 < q; j0 += W) {
        if (!any_wanted(run, start + j0, start + q)) continue;
        Index n = q - j0 < W ? q - j0 : W;
        for (Index c = 0; c < W; c++)
            for (Index k = 0; k < inner; k++)
                store(right[packed<M>(c, k, W)], c < n && k < K ? load(B[(j0 + c) * run.B_stride + k]) : 0.0f);
        for (Index i0 = j0 / R * R; i0 < q; i0 += R) {
            if (!any_wanted(run, start + i0, start + (i0 + R < q ? i0 + R : q))) continue;
            typename M::Number* left = queries + i0 * inner;
            if (j0 == 0)
                for (Index r = 0; r < R; r++)
                    for (Index k = 0; k < inner; k++)
                        store(left[packed<M>(r, k, R)],
                              i0 + r < q && k < K ? load(C[(i0 + r) * run.C_stride + k]) : 0.0f);
            if (run.first[start + i0] - start >= j0 + W) continue;  // sees none of these tokens
            Tile<M> tile;
            clear(tile);
            multiply(tile, left, right, inner);
            float found[R * W];
            write_tile(tile, found, W);
            Index last = j0 + W < i0 + R ? j0 + W : i0 + R;
            for (Index j = j0; j < (last < q ? last : q); j++)
                for (Index r = 0; r < R; r++) scores[i0 * size.steps + j * R + r] = found[r * W + j - j0];
        }
    }
}

// What a thread needs of its own.
template <typename M>
struct Scratch {
    std::vector<double> sums;                       // log decay from the block's start to the token
    std::vector<float> delta, into, out_of, far, near;
    std::vector<typename M::Number> weights;        // (tiles of i, step j)
    std::vector<typename M::Number> values, written, state;  // (step, COLUMNS) each
    explicit Scratch(const Sizes<M>& size)
        : sums(size.rows + size.steps),
          delta(size.rows + size.steps),
          into(size.rows),
          out_of(size.steps),
          far(size.steps),
          near(size.rows),
          weights(size.rows * size.steps),
          values(size.steps * M::COLUMNS),
          written(size.steps * M::COLUMNS),
          state(size.inner * M::COLUMNS) {}
};

constexpr double HALF_NOTHING = -40.0;  // factors of a decay are cut here: their product is then no denormal number

// weights: what token j of the block gives token i, 0 where i may not see j. The decay from j to an i of a later tile is
// that to the tile's first token times that from there: an exponential for each j of a tile instead of each i and j.
template <typename M, typename T>
INLINE void weigh(const Run<T>& run, Index h, Index start, Index q, const float* scores, const Sizes<M>& size,
                  Scratch<M>& work) {
    constexpr Index R = M::ROWS;
    const double* sums = work.sums.data();
    const float* delta = work.delta.data();
    float* far = work.far.data();
    for (Index i0 = 0; i0 < q; i0 += R) {
        if (!any_wanted(run, start + i0, start + (i0 + R < q ? i0 + R : q))) continue;
        Index from = run.first[start + i0] - start;
        from = (from < 0 ? 0 : from) / M::STEPS * M::STEPS;
        const float* score = scores + i0 * size.steps;
        typename M::Number* weight = work.weights.data() + i0 * size.steps;
        double here = sums[i0];
        float near[R];
#pragma omp simd
        for (Index r = 0; r < R; r++) near[r] = sums[i0 + r] - here < HALF_NOTHING ? 0.0f : exponential(float(sums[i0 + r] - here));
#pragma omp simd
        for (Index j = from; j < i0; j++) far[j] = here - sums[j] < HALF_NOTHING ? 0.0f : exponential(float(here - sums[j]));
        constexpr float LEAST = 8.75651076e-27f;  // e^NOTHING
        for (Index j = from; j < i0; j++) {
            float by = far[j], step = delta[j];
#pragma omp simd
            for (Index r = 0; r < R; r++) {
                float decay = by * near[r];
                store(weight[packed<M>(r, j, R)], decay < LEAST ? 0.0f : score[j * R + r] * (decay * step));
            }
        }
        for (Index j = i0; j < i0 + R && j < up(q, M::STEPS); j++) {
            float decay[R];
#pragma omp simd
            for (Index r = 0; r < R; r++) decay[r] = decayed(sums[i0 + r] - sums[j]);
            for (Index r = 0; r < R; r++) {
                bool seen = j < q && j <= i0 + r;
                float value = seen ? score[j * R + r] * decay[r] * delta[j] : 0.0f;
                store(weight[packed<M>(r, j, R)], value + (run.skip && j == i0 + r ? run.skip[h] : 0.0f));
            }
        }
        for (Index r = 0; r < R && i0 + r < q; r++)  // tokens of earlier segments
            for (Index j = from; j < run.first[start + i0 + r] - start; j++) store(weight[packed<M>(r, j, R)], 0.0f);
    }
}

// What the heads of a group share of some neighbouring blocks: see `prepare`.
template <typename M>
struct Shared {
    const Index* blocks;
    Index n_blocks;
    std::unique_ptr<typename M::Number[]> queries, keys;
    std::unique_ptr<float[]> scores;
    Shared(const Sizes<M>& size, Index most)
        : queries(new typename M::Number[most * size.rows * size.inner]),
          keys(new typename M::Number[most * size.state_rows * size.steps]),
          scores(new float[most * size.rows * size.steps]) {}
};

// The decays of one head and block.
template <typename M, typename T>
INLINE float decays(const Run<T>& run, Index h, const Index* block, Scratch<M>& work) {
    Index start = block[0], q = block[1] - start, enters = block[2], leaves = block[3];
    double sum = 0;
    for (Index t = 0; t < q; t++) {
        sum += double(run.log_decay[(start + t) * run.heads + h]);
        work.sums[t] = sum;
        work.delta[t] = run.delta[(start + t) * run.heads + h];
    }
    for (Index t = q; t < Index(work.sums.size()); t++) work.sums[t] = sum, work.delta[t] = 0.0f;
    const double* sums = work.sums.data();
    const float* delta = work.delta.data();
    float *into = work.into.data(), *out_of = work.out_of.data();
#pragma omp simd
    for (Index t = 0; t < Index(work.into.size()); t++) into[t] = t < enters ? decayed(sums[t]) : 0.0f;
#pragma omp simd
    for (Index t = 0; t < Index(work.out_of.size()); t++)
        out_of[t] = t >= q - leaves && t < q ? delta[t] * decayed(sum - sums[t]) : 0.0f;
    return decayed(sum);
}

// One head through some blocks. state: (panels, K as rows of tiles, COLUMNS), what the block before left and the last
// leaves.
template <typename M, typename T>
INLINE void head(const Run<T>& run, Index h, const Shared<M>& shared, float* state, Scratch<M>& work) {
    constexpr Index R = M::ROWS, W = M::COLUMNS;
    const Sizes<M> size(run.q, run.K, run.P);
    Index group = h * run.groups / run.heads;
    for (Index b = 0; b < shared.n_blocks; b++) {
        const Index* block = shared.blocks + b * FIELDS;
        Index start = block[0], q = block[1] - start, enters = block[2], leaves = block[3], initial = block[4];
        Index steps = up(q, M::STEPS), slot = b * run.groups + group;
        const typename M::Number* queries = shared.queries.get() + slot * size.rows * size.inner;
        const typename M::Number* keys = shared.keys.get() + slot * size.state_rows * size.steps;
        bool seen = any_wanted(run, start, start + q);
        bool past = initial >= 0 ? run.carried != nullptr : enters > 0;
        float through = decays(run, h, block, work);
        if (seen) weigh(run, h, start, q, shared.scores.get() + slot * size.rows * size.steps, size, work);
        for (Index p = 0; p < size.panels; p++) {
            float* own = state + p * size.state_rows * W;
            Index at = h * run.P + p * W, width = run.heads * run.P;
            Index columns = run.P - p * W < W ? run.P - p * W : W;
            typename M::Number *values = work.values.data(), *written = work.written.data();
            if (initial >= 0 && past)
                for (Index k = 0; k < size.state_rows; k++)
                    for (Index c = 0; c < W; c++)
                        own[k * W + c] = k < run.K && c < columns ? run.carried[(initial * run.K + k) * width + at + c] : 0.0f;
            for (Index j = 0; j < steps; j++) {
                const T* x = run.x + (start + j) * run.x_stride + at;
                float by = work.out_of[j];
                if (j < q && columns == W) {
#pragma omp simd
                    for (Index c = 0; c < W; c++) {
                        store(values[packed<M>(c, j, W)], load(x[c]));
                        store(written[packed<M>(c, j, W)], load(x[c]) * by);
                    }
                } else {
                    for (Index c = 0; c < W; c++) {
                        float value = j < q && c < columns ? load(x[c]) : 0.0f;
                        store(values[packed<M>(c, j, W)], value);
                        store(written[packed<M>(c, j, W)], value * by);
                    }
                }
            }
            if (seen) {
                const typename M::Number* before;
                if constexpr (M::STEPS == 1) {
                    before = own;
                } else {
                    if (past && enters)
                        for (Index k = 0; k < size.inner; k++)
                            for (Index c = 0; c < W; c++) store(work.state[packed<M>(c, k, W)], own[k * W + c]);
                    before = work.state.data();
                }
                for (Index i0 = 0; i0 < q; i0 += R) {
                    Index n = q - i0 < R ? q - i0 : R;
                    if (!any_wanted(run, start + i0, start + i0 + n)) continue;
                    Tile<M> tile;
                    clear(tile);
                    if (past && i0 < enters) {
                        multiply(tile, queries + i0 * size.inner, before, size.inner);
                        scale_tile(tile, work.into.data() + i0);
                    }
                    Index from = run.first[start + i0] - start;
                    from = (from < 0 ? 0 : from) / M::STEPS * M::STEPS;
                    Index stop = i0 + R < steps ? i0 + R : steps;
                    multiply(tile, work.weights.data() + i0 * size.steps + from * R, values + from * W, stop - from);
                    float found[R * W];
                    write_tile(tile, found, W);
                    for (Index r = 0; r < n; r++) {
                        T* y = run.y + (start + i0 + r) * width + at;
                        if (columns == W) {
#pragma omp simd
                            for (Index c = 0; c < W; c++) store(y[c], found[r * W + c]);
                        } else {
                            for (Index c = 0; c < columns; c++) store(y[c], found[r * W + c]);
                        }
                    }
                }
            }
            if (!leaves) continue;
            bool keep = past && enters == q && leaves == q;
            Index begin = (q - leaves) / M::STEPS * M::STEPS;
            for (Index k0 = 0; k0 < size.state_rows; k0 += R) {
                Tile<M> tile;
                if (keep)
                    read_tile(tile, own + k0 * W, W, through);
                else
                    clear(tile);
                multiply(tile, keys + k0 * size.steps + begin * R, written + begin * W, steps - begin);
                write_tile(tile, own + k0 * W, W);
            }
            if (block[5] < 0) continue;
            for (Index k = 0; k < run.K; k++)
                for (Index c = 0; c < columns; c++) run.final[(block[5] * run.K + k) * width + at + c] = own[k * W + c];
        }
    }
}

// ---- for each kind of machine and each dtype ---------------------------------------------------------------------------

#define BUILD(M, T, TARGET)                                                                                               TARGET void prepare_for(const Run<T>& run, const Index* block, Index group, M::Number* queries, M::Number* keys,                              float* scores, M::Number* right, M) {                                                             prepare<M>(run, block, group, queries, keys, scores, right);                                                      }                                                                                                                     TARGET void head_for(const Run<T>& run, Index h, const Shared<M>& shared, float* state, Scratch<M>& work) {               head<M>(run, h, shared, state, work);                                                                             }

BUILD(Narrow, float, CLONES)
BUILD(Narrow, bf16, CLONES)
BUILD(Wide, float, CLONES)
BUILD(Wide, bf16, CLONES)
BUILD(Paired, bf16, CLONES)
#if HAS_PAIRS
BUILD(PairedByHardware, bf16, __attribute__((target("arch=x86-64-v4"))))
#endif

constexpr Index SHARED = 1 << 19;  // elements, about, of what heads share that are kept at a time: they should stay in cache

template <typename M, typename T>
void scan(const Run<T>& run, Index n_blocks) {
    const Sizes<M> size(run.q, run.K, run.P);
    Index of_block = run.groups * (size.rows * size.inner + size.state_rows * size.steps + size.rows * size.steps);
    Index most = SHARED / of_block > 1 ? SHARED / of_block : 1;
    most = most < n_blocks ? most : n_blocks;
    Index of_state = size.panels * size.state_rows * M::COLUMNS;
    Shared<M> shared(size, most * run.groups);
    std::unique_ptr<float[]> states(new float[run.heads * of_state]);
#pragma omp parallel
    {
        Scratch<M> work(size);
        std::unique_ptr<typename M::Number[]> right(new typename M::Number[size.inner * M::COLUMNS]);
        for (Index begin = 0; begin < n_blocks; begin += most) {
#pragma omp single
            {
                shared.blocks = run.blocks + begin * FIELDS;
                shared.n_blocks = n_blocks - begin < most ? n_blocks - begin : most;
            }
#pragma omp for schedule(static)
            for (Index i = 0; i < shared.n_blocks * run.groups; i++)
                prepare_for(run, shared.blocks + i / run.groups * FIELDS, i % run.groups,
                            shared.queries.get() + i * size.rows * size.inner,
                            shared.keys.get() + i * size.state_rows * size.steps,
                            shared.scores.get() + i * size.rows * size.steps, right.get(), M{});
#pragma omp for schedule(static)
            for (Index h = 0; h < run.heads; h++) head_for(run, h, shared, states.get() + h * of_state, work);
        }
    }
}

enum Machine : Index { BEST = -1, NARROW, WIDE, PAIRED };

bool is_wide() {
#if defined(__x86_64__) && defined(__GNUC__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

void scan_on(const Run<float>& run, Index n_blocks, Index machine) {
    bool wide = machine == BEST ? is_wide() : machine == WIDE;
    wide ? scan<Wide>(run, n_blocks) : scan<Narrow>(run, n_blocks);
}

void scan_on(const Run<bf16>& run, Index n_blocks, Index machine) {
#if HAS_PAIRS
    if (machine == BEST && is_wide() && __builtin_cpu_supports("avx512bf16"))
        return scan<PairedByHardware>(run, n_blocks);
#endif
    if (machine == PAIRED) return scan<Paired>(run, n_blocks);
    bool wide = machine == BEST ? is_wide() : machine == WIDE;
    wide ? scan<Wide>(run, n_blocks) : scan<Narrow>(run, n_blocks);
}

}  // namespace

#define FOR_DTYPE(T, SUFFIX)                                                                                           \
    EXPORT thalweg_ssd_##SUFFIX(                                                                                       \
        const T* x, std::int64_t x_stride, const T* B, std::int64_t B_stride, const T* C, std::int64_t C_stride,       \
        const float* delta, const float* log_decay, const float* skip, const std::int64_t* blocks,                     \
        std::int64_t n_blocks, std::int64_t q, const std::int64_t* first, const std::uint8_t* wanted,                  \
        const float* carried, T* y, float* final, std::int64_t heads, std::int64_t groups, std::int64_t K,             \
        std::int64_t P, std::int64_t machine) {                                                                        \
        scan_on(Run<T>{x, B, C, x_stride, B_stride, C_stride, delta, log_decay, skip, blocks, first, wanted, carried,  \
                       y, final, heads, groups, K, P, q},                                                              \
                n_blocks, machine);                                                                                    \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(bf16, bfloat16)
