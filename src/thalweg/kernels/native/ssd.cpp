// The scan of Mamba2 as one kernel: a head goes through the blocks of a run with its state in cache. Letters: ops/ssd.py.
//
// Its matrix products are made of tiles: ROWS x COLUMNS sums in registers, to which a row of the left and a row of the right
// operand are multiplied, step by step. Operands are packed for that: of the left ROWS elements of a step lie side by side,
// of the right COLUMNS. Where a machine multiplies pairs of bfloat16, two steps lie side by side.

#include <memory>
#include <vector>

#include "rows.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define HAS_WIDE 1
#define WIDE_TARGET __attribute__((target("arch=x86-64-v4")))
#else
#define HAS_WIDE 0
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

typedef std::uint32_t Pair __attribute__((may_alias));  // of bfloat16, as they lie in memory

INLINE Pair pair_of(float first, float second) { return nearest_bf16(first) >> 16 | (nearest_bf16(second) & 0xffff0000u); }

// n neighbouring rows or columns of the STEPS steps from an even one on, which lie `stride` apart in `from`.
template <typename M>
INLINE void put(typename M::Number* to, const float* from, Index stride, Index n) {
    if constexpr (M::STEPS == 1) {
        for (Index i = 0; i < n; i++) to[i] = from[i];
    } else {
        Pair* pairs = reinterpret_cast<Pair*>(to);
#pragma omp simd
        for (Index i = 0; i < n; i++) pairs[i] = pair_of(from[i], from[stride + i]);
    }
}

// COLUMNS columns of STEPS steps, each step times its factor.
template <typename M>
INLINE void scale_steps(typename M::Number* to, const typename M::Number* from, const float* by) {
    if constexpr (M::STEPS == 1) {
        for (Index i = 0; i < M::COLUMNS; i++) to[i] = from[i] * by[0];
    } else {
        const Pair* pairs = reinterpret_cast<const Pair*>(from);
        Pair* out = reinterpret_cast<Pair*>(to);
        float first = by[0], second = by[1];
#pragma omp simd
        for (Index i = 0; i < M::COLUMNS; i++)
            out[i] = pair_of(load(bf16(pairs[i])) * first, load(bf16(pairs[i] >> 16)) * second);
    }
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

#if HAS_WIDE
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

// ---- step sizes ------------------------------------------------------------------------------------------------------

constexpr float STRONGEST = -120.0f;  // e^-120 is 0 in float32, and the bound keeps a block's sums small

constexpr Index STEP_ROWS = 64;

// Some tokens: delta and the log decay of each head. Loops without conditions, which vectors can do.
template <typename T>
INLINE void steps_tile(const T* dt, Index stride, const float* bias, const float* A, bool with_softplus, float low,
                       float high, float* delta, float* log_decay, Index rows, Index heads) {
    for (Index i = 0; i < rows; i++) {
        const T* raw = dt + i * stride;
        float* step = delta + i * heads;
#pragma omp simd
        for (Index h = 0; h < heads; h++) step[h] = load(raw[h]) + bias[h];
    }
    if (with_softplus) {
#pragma omp simd
        for (Index n = 0; n < rows * heads; n++) delta[n] = softplus(delta[n]);
    }
    for (Index i = 0; i < rows; i++) {
        float *step = delta + i * heads, *out = log_decay + i * heads;
#pragma omp simd
        for (Index h = 0; h < heads; h++) {
            float kept = step[h] < low ? low : step[h];  // NaN stays
            kept = kept > high ? high : kept;
            float decay = kept * A[h];
            step[h] = kept;
            out[h] = decay < STRONGEST ? STRONGEST : decay;
        }
    }
}

CLONES void steps_tiles(const float* dt, Index stride, const float* bias, const float* A, bool with_softplus, float low,
                        float high, float* delta, float* log_decay, Index rows, Index heads) {
    steps_tile(dt, stride, bias, A, with_softplus, low, high, delta, log_decay, rows, heads);
}
CLONES void steps_tiles(const bf16* dt, Index stride, const float* bias, const float* A, bool with_softplus, float low,
                        float high, float* delta, float* log_decay, Index rows, Index heads) {
    steps_tile(dt, stride, bias, A, with_softplus, low, high, delta, log_decay, rows, heads);
}

// ---- the scan ------------------------------------------------------------------------------------------------------

// A run of N tokens. The kernel takes x, B and C, or what a convolution makes them of; it gives y, or y gated and normed.
template <typename T>
struct Run {
    const T *x, *B, *C;                  // a row for each token: (H, P), (G, K), (G, K)
    Index x_stride, B_stride, C_stride;
    const float *taps, *bias;            // (taps, E) and (E,) or null, E = H P + 2 G K; taps null: no convolution
    Index n_taps;
    const T* columns;                    // (S_in, taps - 1, E) before the run, or null for zeros
    const float *delta, *log_decay;      // (N, H)
    const float* skip;                   // (H,), or null
    const Index* blocks;                 // (b, FIELDS)
    const Index *segments, *first;       // (N,): the token's segment, and where that begins
    const Index* initial_rows;           // (S,): row of `columns` that the segment continues from, -1 for none
    const Index* rows;                   // (N,): where y of the token is written, -1 for nowhere; null: y of all
    const float* carried;                // (S_in, K, H, P), or null for zeros
    const T* z;                          // (M, H P), or null: no gate and no norm
    Index z_stride;
    const float* weight;                 // (H P,), of the norm
    Index norm_groups;
    float eps;
    T* y;                                // (M, H P)
    float* final;                        // (S_out, K, H, P)
    Index* finite;                       // becomes 0 where y or a final state is not
    Index heads, groups, K, P;
    Index q;                             // tokens of the largest block
};

template <typename T>
INLINE bool any_wanted(const Run<T>& run, Index start, Index stop) {
    if (!run.rows) return true;
    for (Index t = start; t < stop; t++)
        if (run.rows[t] >= 0) return true;
    return false;
}

// Of a block.
template <typename M>
struct Sizes {
    Index rows, steps;        // its tokens as rows of tiles, and as steps
    Index state_rows, inner;  // K as rows of tiles, and as steps
    Index panels;             // of COLUMNS channels of a head
    Sizes(Index q, Index K, Index P)
        : rows(up(q, M::ROWS)),
          steps(up(q, M::STEPS)),
          state_rows(up(K, M::ROWS)),
          inner(up(K, M::STEPS)),
          panels(up(P, M::COLUMNS) / M::COLUMNS) {}
};

// What threads hand each other of a few neighbouring blocks, for each block, and head or group. What tokens are taken into
// is there twice: while the heads go through some blocks, the next are taken in. Blocks lie in turn in the room there is.
template <typename M>
struct Shared {
    using Number = typename M::Number;
    Index most;                                              // blocks at a time
    Index of_values, of_queries, of_keys, of_B, of_scores, of_y;  // elements of a block
    std::unique_ptr<Number[]> values;                        // (H, panels, step token, COLUMNS)
    std::unique_ptr<Number[]> queries;                       // (G, tiles of tokens, step K)
    std::unique_ptr<Number[]> keys;                          // (G, tiles of K, step token)
    std::unique_ptr<float[]> B;                              // (token, G, K)
    std::unique_ptr<float[]> scores;                         // (G, tiles of tokens, step token)
    std::unique_ptr<float[]> y;                              // (token, H P)
    template <typename T>
    Shared(const Run<T>& run, const Sizes<M>& size, Index most)
        : most(most),
          of_values(run.heads * size.panels * size.steps * M::COLUMNS),
          of_queries(run.groups * size.rows * size.inner),
          of_keys(run.groups * size.state_rows * size.steps),
          of_B(run.q * run.groups * run.K),
          of_scores(run.groups * size.rows * size.steps),
          of_y(run.q * run.heads * run.P),
          values(new Number[2 * most * of_values]),
          queries(new Number[2 * most * of_queries]),
          keys(new Number[2 * most * of_keys]),
          B(new float[most * of_B]),
          scores(new float[most * of_scores]),
          y(new float[most * of_y]) {}
    Number* values_of(Index b) const { return values.get() + b % (2 * most) * of_values; }
    Number* queries_of(Index b) const { return queries.get() + b % (2 * most) * of_queries; }
    Number* keys_of(Index b) const { return keys.get() + b % (2 * most) * of_keys; }
    float* B_of(Index b) const { return B.get() + b % most * of_B; }
    float* scores_of(Index b) const { return scores.get() + b % most * of_scores; }
    float* y_of(Index b) const { return y.get() + b % most * of_y; }
};

// x, B and C of token j of a block, one after the other; zeros behind its last.
template <typename T>
INLINE void read_token(const Run<T>& run, const Index* block, Index j, float* row) {
    Index t = block[0] + j, width = run.heads * run.P, shared_width = run.groups * run.K;
    Index channels = width + 2 * shared_width;
    if (t >= block[1]) {
        for (Index i = 0; i < channels; i++) row[i] = 0.0f;
    } else if (run.taps) {
        Index segment = run.segments[t];
        bool past = run.columns && run.initial_rows[segment] >= 0;
        conv_row(run.x + t * run.x_stride, run.x_stride, t - run.first[t],
                 past ? run.columns + run.initial_rows[segment] * (run.n_taps - 1) * channels : nullptr, run.taps, run.bias, row, channels,
                 run.n_taps, true);
    } else {
        for (Index i = 0; i < width; i++) row[i] = load(run.x[t * run.x_stride + i]);
        for (Index i = 0; i < shared_width; i++) row[width + i] = load(run.B[t * run.B_stride + i]);
        for (Index i = 0; i < shared_width; i++) row[width + shared_width + i] = load(run.C[t * run.C_stride + i]);
    }
}

// As `put`, of `there` rows or columns and zeros after them, N together.
template <typename M, Index N>
INLINE void put_some(typename M::Number* to, const float* from, Index stride, Index there) {
    if (there >= N) return put<M>(to, from, stride, N);
    float filled[M::STEPS * N] = {};
    for (Index s = 0; s < M::STEPS; s++)
        for (Index i = 0; i < there; i++) filled[s * N + i] = from[s * stride + i];
    put<M>(to, filled, N, N);
}

// Tokens from .. to of block b: x, B and C to where the next steps find them. row: room for x, B and C of STEPS tokens.
template <typename M, typename T>
INLINE void take_in(const Run<T>& run, const Shared<M>& shared, Index b, Index from, Index to, float* row) {
    constexpr Index R = M::ROWS, W = M::COLUMNS;
    const Sizes<M> size(run.q, run.K, run.P);
    const Index* block = run.blocks + b * FIELDS;
    Index q = block[1] - block[0], width = run.heads * run.P, shared_width = run.groups * run.K;
    typename M::Number *values = shared.values_of(b), *queries = shared.queries_of(b), *keys = shared.keys_of(b);
    Index channels = width + 2 * shared_width;
    for (Index j = from; j < to && j < up(q, M::STEPS); j += M::STEPS) {
        for (Index s = 0; s < M::STEPS; s++) read_token(run, block, j + s, row + s * channels);
        const float *B = row + width, *C = B + shared_width;
        for (Index s = 0; s < M::STEPS && j + s < q; s++)
            std::memcpy(shared.B_of(b) + (j + s) * shared_width, B + s * channels, std::size_t(shared_width) * sizeof(float));
        for (Index g = 0; g < run.groups; g++) {
            typename M::Number* query = queries + g * size.rows * size.inner + j / R * R * size.inner;
            for (Index s = 0; s < M::STEPS; s++)
                for (Index k = 0; k < size.inner; k++)
                    store(query[packed<M>((j + s) % R, k, R)], k < run.K ? C[s * channels + g * run.K + k] : 0.0f);
            if (!block[3]) continue;  // no state leaves it
            typename M::Number* key = keys + g * size.state_rows * size.steps;
            for (Index k0 = 0; k0 < size.state_rows; k0 += R)
                put_some<M, R>(key + k0 * size.steps + packed<M>(0, j, R), B + g * run.K + k0, channels, run.K - k0);
        }
        for (Index h = 0; h < run.heads; h++)
            for (Index p = 0; p < size.panels; p++) {
                typename M::Number* panel = values + (h * size.panels + p) * size.steps * W;
                put_some<M, W>(panel + packed<M>(0, j, W), row + h * run.P + p * W, channels, run.P - p * W);
            }
    }
}

// Of block b and one group: scores C_i . B_j of COLUMNS tokens j from j0 on, where j <= i. right: room for their B.
template <typename M, typename T>
INLINE void score(const Run<T>& run, const Shared<M>& shared, Index b, Index group, Index j0, typename M::Number* right) {
    constexpr Index R = M::ROWS, W = M::COLUMNS;
    const Sizes<M> size(run.q, run.K, run.P);
    const Index* block = run.blocks + b * FIELDS;
    Index start = block[0], q = block[1] - start, K = run.K, inner = size.inner, stride = run.groups * K;
    if (j0 >= q || !any_wanted(run, start + j0, start + q)) return;
    const float* B = shared.B_of(b) + group * K;
    const typename M::Number* queries = shared.queries_of(b) + group * size.rows * inner;
    float* scores = shared.scores_of(b) + group * size.rows * size.steps;
    Index n = q - j0 < W ? q - j0 : W;
    for (Index c = 0; c < W; c++)
        for (Index k = 0; k < inner; k++)
            store(right[packed<M>(c, k, W)], c < n && k < K ? B[(j0 + c) * stride + k] : 0.0f);
    for (Index i0 = j0 / R * R; i0 < q; i0 += R) {
        if (!any_wanted(run, start + i0, start + (i0 + R < q ? i0 + R : q))) continue;
        if (run.first[start + i0] - start >= j0 + W) continue;  // sees none of these tokens
        Tile<M> tile;
        clear(tile);
        multiply(tile, queries + i0 * inner, right, inner);
        float found[R * W];
        write_tile(tile, found, W);
        Index last = j0 + W < i0 + R ? j0 + W : i0 + R;
        for (Index j = j0; j < (last < q ? last : q); j++)
            for (Index r = 0; r < R; r++) scores[i0 * size.steps + j * R + r] = found[r * W + j - j0];
    }
}

// What a thread needs of its own.
template <typename M>
struct Scratch {
    std::vector<double> sums;                       // log decay from the start of the segment, or block, to the token
    std::vector<float> delta, into, out_of, far;
    std::vector<typename M::Number> weights;        // (tiles of i, step j)
    std::vector<typename M::Number> written, state;           // (step, COLUMNS) each
    std::vector<typename M::Number> right;
    std::vector<float> row;
    Scratch(const Sizes<M>& size, Index channels)
        : sums(size.rows + size.steps),
          delta(size.rows + size.steps),
          into(size.rows),
          out_of(size.steps),
          far(size.steps),
          weights(size.rows * size.steps),
          written(size.steps * M::COLUMNS),
          state(size.inner * M::COLUMNS),
          right(size.inner * M::COLUMNS),
          row(M::STEPS * channels) {}
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
        for (Index j = from; j < i0; j += M::STEPS) {
            float given[M::STEPS * R];
            UNROLL for (Index s = 0; s < M::STEPS; s++) {
                float by = far[j + s], step = delta[j + s];
#pragma omp simd
                for (Index r = 0; r < R; r++) {
                    float decay = by * near[r];
                    given[s * R + r] = decay < LEAST ? 0.0f : score[(j + s) * R + r] * (decay * step);
                }
            }
            put<M>(weight + packed<M>(0, j, R), given, R, R);
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

// The decays of one head and block.
template <typename M, typename T>
INLINE float decays(const Run<T>& run, Index h, const Index* block, Scratch<M>& work) {
    Index start = block[0], q = block[1] - start, enters = block[2], leaves = block[3];
    double sum = 0;
    for (Index t = 0; t < q; t++) {
        if (run.first[start + t] == start + t) sum = 0;  // a segment's sums know nothing of those before it in the block
        sum += double(run.log_decay[(start + t) * run.heads + h]);
        work.sums[t] = sum;
        work.delta[t] = run.delta[(start + t) * run.heads + h];
    }
    for (Index t = q; t < Index(work.sums.size()); t++) work.sums[t] = sum, work.delta[t] = 0.0f;
    const double* sums = work.sums.data();
    const float* delta = work.delta.data();
    float *into = work.into.data(), *out_of = work.out_of.data();
#pragma omp simd
    for (Index t = 0; t < Index(work.into.size()); t++) into[t] = t < enters ? decayed_state(sums[t]) : 0.0f;
#pragma omp simd
    for (Index t = 0; t < Index(work.out_of.size()); t++)
        out_of[t] = t >= q - leaves && t < q ? delta[t] * decayed(sum - sums[t]) : 0.0f;
    return decayed(sum);
}

// One head through blocks begin .. end. state: (panels, K as rows of tiles, COLUMNS), what the block before left and the last
// leaves.
template <typename M, typename T>
INLINE void head(const Run<T>& run, const Shared<M>& shared, Index h, Index begin, Index end, float* state,
                 Scratch<M>& work) {
    constexpr Index R = M::ROWS, W = M::COLUMNS;
    using Number = typename M::Number;
    const Sizes<M> size(run.q, run.K, run.P);
    Index group = h * run.groups / run.heads, width = run.heads * run.P;
    Number *weights = work.weights.data(), *written = work.written.data();
    for (Index b = begin; b < end; b++) {
        const Index* block = run.blocks + b * FIELDS;
        Index start = block[0], q = block[1] - start, enters = block[2], leaves = block[3], initial = block[4];
        Index steps = up(q, M::STEPS);
        const Number* queries = shared.queries_of(b) + group * size.rows * size.inner;
        const Number* keys = shared.keys_of(b) + group * size.state_rows * size.steps;
        const float* scores = shared.scores_of(b) + group * size.rows * size.steps;
        bool seen = any_wanted(run, start, start + q);
        bool past = initial >= 0 ? run.carried != nullptr : enters > 0;
        float through = decays(run, h, block, work);
        if (seen) weigh(run, h, start, q, scores, size, work);
        for (Index p = 0; p < size.panels; p++) {
            float* own = state + p * size.state_rows * W;
            Index at = h * run.P + p * W, columns = run.P - p * W < W ? run.P - p * W : W;
            const Number* values = shared.values_of(b) + (h * size.panels + p) * size.steps * W;
            if (initial >= 0 && past)
                for (Index k = 0; k < size.state_rows; k++)
                    for (Index c = 0; c < W; c++)
                        own[k * W + c] = k < run.K && c < columns ? run.carried[(initial * run.K + k) * width + at + c] : 0.0f;
            if (seen) {
                const Number* before;
                if constexpr (M::STEPS == 1) {
                    before = own;
                } else {
                    if (past)
                        for (Index k = 0; k < size.inner; k += M::STEPS)
                            put<M>(work.state.data() + packed<M>(0, k, W), own + k * W, W, W);
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
                    multiply(tile, weights + i0 * size.steps + from * R, values + from * W, stop - from);
                    float* y = shared.y_of(b) + i0 * width + at;
                    if (n == R && columns == W) {
                        write_tile(tile, y, width);
                        continue;
                    }
                    float found[R * W];
                    write_tile(tile, found, W);
                    for (Index r = 0; r < n; r++)
                        for (Index c = 0; c < columns; c++) y[r * width + c] = found[r * W + c];
                }
            }
            if (!leaves) continue;
            bool keep = past && enters == q && leaves == q;
            Index first = (q - leaves) / M::STEPS * M::STEPS;
            for (Index j = first; j < steps; j += M::STEPS) scale_steps<M>(written + j * W, values + j * W, work.out_of.data() + j);
            for (Index k0 = 0; k0 < size.state_rows; k0 += R) {
                Tile<M> tile;
                if (keep)
                    read_tile(tile, own + k0 * W, W, through);
                else
                    clear(tile);
                multiply(tile, keys + k0 * size.steps + first * R, written + first * W, steps - first);
                write_tile(tile, own + k0 * W, W);
            }
            if (block[5] < 0) continue;
            float poison = 0;
            for (Index k = 0; k < run.K; k++) {
                float* out = run.final + (block[5] * run.K + k) * width + at;
#pragma omp simd reduction(+ : poison)
                for (Index c = 0; c < columns; c++) {
                    out[c] = own[k * W + c];
                    poison += own[k * W + c] * 0.0f;
                }
            }
            tell(run.finite, poison);
        }
    }
}

// y of tokens from .. to of block b to where it is wanted.
template <typename M, typename T>
INLINE void give_out(const Run<T>& run, const Shared<M>& shared, Index b, Index from, Index to) {
    Index start = run.blocks[b * FIELDS], stop = run.blocks[b * FIELDS + 1], width = run.heads * run.P;
    for (Index j = from; j < to && start + j < stop; j++) {
        Index row = run.rows ? run.rows[start + j] : start + j;
        if (row < 0) continue;
        float* y = shared.y_of(b) + j * width;
        T* out = run.y + row * width;
        if (run.z) {
            tell(run.finite,
                 gate_norm_row(y, run.z + row * run.z_stride, run.weight, out, width, run.norm_groups, run.eps, y));
        } else {
            float poison = 0;
#pragma omp simd reduction(+ : poison)
            for (Index i = 0; i < width; i++) {
                store(out[i], y[i]);
                poison += y[i] * 0.0f;
            }
            tell(run.finite, poison);
        }
    }
}

// ---- for each kind of machine and each dtype ---------------------------------------------------------------------------

#define BUILD(M, T, TARGET)                                                                                           \
    TARGET void take_in_on(const Run<T>& run, const Shared<M>& shared, Index b, Index from, Index to, float* row) {   \
        take_in<M>(run, shared, b, from, to, row);                                                                    \
    }                                                                                                                 \
    TARGET void score_on(const Run<T>& run, const Shared<M>& shared, Index b, Index group, Index j0,                   \
                         M::Number* right) {                                                                           \
        score<M>(run, shared, b, group, j0, right);                                                                    \
    }                                                                                                                  \
    TARGET void head_on(const Run<T>& run, const Shared<M>& shared, Index h, Index begin, Index end, float* state,     \
                        Scratch<M>& work) {                                                                            \
        head<M>(run, shared, h, begin, end, state, work);                                                              \
    }                                                                                                                  \
    TARGET void give_out_on(const Run<T>& run, const Shared<M>& shared, Index b, Index from, Index to) {              \
        give_out<M>(run, shared, b, from, to);                                                                        \
    }

BUILD(Narrow, float, CLONES)
BUILD(Narrow, bf16, CLONES)
#if HAS_WIDE
BUILD(Wide, float, WIDE_TARGET)
BUILD(Wide, bf16, WIDE_TARGET)
BUILD(Paired, bf16, WIDE_TARGET)
BUILD(PairedByHardware, bf16, WIDE_TARGET)
#endif

constexpr Index TOKENS = 64;  // taken at a time, at least a block: what they hand from step to step stays in cache
constexpr Index PART = 16;     // tokens of a block that one thread takes in or gives out

template <typename M, typename T>
void scan(const Run<T>& run, Index n_blocks) {
    const Sizes<M> size(run.q, run.K, run.P);
    Index most = TOKENS / run.q > 1 ? TOKENS / run.q : 1;
    most = most < n_blocks ? most : n_blocks;
    Index of_state = size.panels * size.state_rows * M::COLUMNS, parts = (size.steps + PART - 1) / PART;
    Index panels = up(run.q, M::COLUMNS) / M::COLUMNS;
    Shared<M> shared(run, size, most);
    std::unique_ptr<float[]> states(new float[run.heads * of_state]);
#pragma omp parallel
    {
        Scratch<M> work(size, run.heads * run.P + 2 * run.groups * run.K);
        auto take_in_part = [&](Index i) {
            take_in_on(run, shared, i / parts, i % parts * PART, i % parts * PART + PART, work.row.data());
        };
        auto score_panel = [&](Index i) {
            score_on(run, shared, i / panels / run.groups, i / panels % run.groups, i % panels * M::COLUMNS, work.right.data());
        };
#pragma omp for schedule(static)
        for (Index i = 0; i < most * parts; i++) take_in_part(i);
#pragma omp for schedule(static)
        for (Index i = 0; i < most * run.groups * panels; i++) score_panel(i);
        for (Index begin = 0; begin < n_blocks; begin += most) {
            Index end = begin + most < n_blocks ? begin + most : n_blocks, next = end + most < n_blocks ? end + most : n_blocks;
#pragma omp for schedule(static) nowait
            for (Index h = 0; h < run.heads; h++) head_on(run, shared, h, begin, end, states.get() + h * of_state, work);
#pragma omp for schedule(dynamic)
            for (Index i = end * parts; i < next * parts; i++) take_in_part(i);
#pragma omp for schedule(dynamic) nowait
            for (Index i = end * run.groups * panels; i < next * run.groups * panels; i++) score_panel(i);
#pragma omp for schedule(dynamic)
            for (Index i = begin * parts; i < end * parts; i++)
                give_out_on(run, shared, i / parts, i % parts * PART, i % parts * PART + PART);
        }
    }
}

enum Machine : Index { BEST = -1, NARROW, WIDE, PAIRED };

#if HAS_WIDE
bool is_wide() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

void scan_on(const Run<float>& run, Index n_blocks, [[maybe_unused]] Index machine) {
#if HAS_WIDE
    if (is_wide() && machine != NARROW) return scan<Wide>(run, n_blocks);
#endif
    scan<Narrow>(run, n_blocks);
}

void scan_on(const Run<bf16>& run, Index n_blocks, [[maybe_unused]] Index machine) {
#if HAS_WIDE
    if (is_wide()) {
        bool by_hardware = __builtin_cpu_supports("avx512bf16");
        if (by_hardware && (machine == BEST || machine == PAIRED)) return scan<PairedByHardware>(run, n_blocks);
        if (machine == PAIRED) return scan<Paired>(run, n_blocks);
        if (machine != NARROW) return scan<Wide>(run, n_blocks);
    }
#endif
    scan<Narrow>(run, n_blocks);
}

}  // namespace

#define FOR_DTYPE(T, SUFFIX)                                                                                           \
    EXPORT thalweg_ssd_##SUFFIX(                                                                                       \
        const T* x, Index x_stride, const T* B, Index B_stride, const T* C, Index C_stride, const float* taps,         \
        const float* bias, Index n_taps, const T* columns, const float* delta, const float* log_decay,                 \
        const float* skip, const Index* blocks, Index n_blocks, Index q, const Index* segments, const Index* first,    \
        const Index* initial_rows, const Index* rows, const float* carried, const T* z, Index z_stride,                \
        const float* weight, Index norm_groups, float eps, T* y, float* final, Index* finite, Index heads,             \
        Index groups, Index K, Index P, Index machine) {                                                               \
        scan_on(Run<T>{x, B, C, x_stride, B_stride, C_stride, taps, bias, n_taps, columns, delta, log_decay, skip,     \
                       blocks, segments, first, initial_rows, rows, carried, z, z_stride, weight, norm_groups, eps, y, \
                       final, finite, heads, groups, K, P, q},                                                         \
                n_blocks, machine);                                                                                    \
    }                                                                                                                  \
    EXPORT thalweg_ssd_steps_##SUFFIX(const T* dt, Index stride, const float* bias, const float* A,                    \
                                      Index with_softplus, float low, float high, float* delta, float* log_decay,      \
                                      Index rows, Index heads) {                                                       \
        PARALLEL_FOR for (Index i = 0; i < rows; i += STEP_ROWS)                                                       \
            steps_tiles(dt + i * stride, stride, bias, A, with_softplus != 0, low, high, delta + i * heads,            \
                        log_decay + i * heads, rows - i < STEP_ROWS ? rows - i : STEP_ROWS, heads);                    \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(bf16, bfloat16)
