// The matrix memory of xLSTM between its matrix products, and the layers around it. Letters: ops/mlstm.py.

#include "common.hpp"

namespace {

// One head of a segment: a and g of its tokens (see ops/mlstm.py), exp(-m), and m of its last token.
double gates_of_segment(const float* i, const float* log_forget, std::int64_t n, std::int64_t heads, double m0, double* a,
                        double* g, float* floors) {
    double sum = 0, most = m0, m = m0;
    for (std::int64_t t = 0; t < n; t++) {
        sum += double(log_forget[t * heads]);
        a[t] = double(i[t * heads]) - sum;
        most = a[t] > most ? a[t] : most;
        g[t] = most;
        m = sum + most;
        floors[t * heads] = float(-m);  // exponentials later, all at once
    }
    return m;
}

CLONES void negative_softplus(const float* x, float* out, std::int64_t n) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; i++) out[i] = -softplus(-x[i]);
}

CLONES void exponentials(float* x, std::int64_t n) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; i++) x[i] = exponential(x[i]);
}

// One head of a block: weights of the state before it at its tokens, of its tokens in the state after it, and of the one
// state in the other. before: g where the block begins.
CLONES void block_weights(const double* a, const double* g, double before, float log_scale, std::int64_t q,
                          std::int64_t enters, std::int64_t leaves, std::int64_t heads, float* into, float* out_of,
                          float* through) {
    double last = g[q - 1];
    for (std::int64_t t = 0; t < q; t++) {
        into[t * heads] = t < enters ? decayed_state(before + double(log_scale) - g[t]) : 0.0f;
        out_of[t * heads] = t >= q - leaves ? decayed(a[t] - last) : 0.0f;
    }
    *through = decayed_state(before - last);
}

// One head of one block: scores, (q, q), become the weights of token j at token i, 0 where i may not see j; sums: of
// each row, not yet rounded. first: where each token's segment begins, counted from the block's start. A is double, or
// float: then relative to g where the segment begins in the block.
template <typename T, typename A>
INLINE void weights_of_block(T* scores, const double* a, const double* g, const std::int64_t* first, std::int64_t start,
                             float log_scale, float* sums, std::int64_t q, A* at) {
    for (std::int64_t j = 0; j < q; j++) at[j] = A(a[j] - g[first[j] > start ? first[j] - start : 0]);
    for (std::int64_t i = 0; i < q; i++) {
        T* row = scores + i * q;
        std::int32_t from = std::int32_t(first[i] > start ? first[i] - start : 0), to = std::int32_t(i);
        A here = A(g[i] - g[from]) - A(log_scale);
        std::int64_t begin = from / VECTOR * VECTOR, stop = i / VECTOR * VECTOR + VECTOR;
        stop = stop < q ? stop : q;
        for (std::int64_t j = 0; j < begin; j++) store(row[j], 0.0f);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t j = begin; j < stop; j++) {
            float exponent = float(at[j] - here);
            bool seen = std::int32_t(j) >= from && std::int32_t(j) <= to && !(exponent < NOTHING);
            float value = load(row[j]) * exponential(exponent);
            value = seen ? value : 0.0f;
            sum += value;
            store(row[j], value);
        }
        for (std::int64_t j = stop; j < q; j++) store(row[j], 0.0f);
        sums[i] = sum;
    }
}

CLONES void weights_of_blocks(float* scores, const double* a, const double* g, const std::int64_t* first,
                              std::int64_t start, float log_scale, float* sums, std::int64_t q, double* work) {
    weights_of_block(scores, a, g, first, start, log_scale, sums, q, work);
}
CLONES void weights_of_blocks(bf16* scores, const double* a, const double* g, const std::int64_t* first,
                              std::int64_t start, float log_scale, float* sums, std::int64_t q, double* work) {
    weights_of_block(scores, a, g, first, start, log_scale, sums, q, reinterpret_cast<float*>(work));
}

// One head of one block, tokens side by side: queries, keys, values; keys times their weight in the state, and their sum.
template <typename T>
INLINE void by_head_of_block(const T* q, std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                             std::int64_t v_stride, const float* out_of, T* queries, T* keys, T* written, T* values,
                             float* sum, std::int64_t n, std::int64_t heads, std::int64_t K, std::int64_t P) {
    for (std::int64_t c = 0; c < K; c++) sum[c] = 0;
    for (std::int64_t t = 0; t < n; t++) {
        float by = out_of[t * heads];
        const T* key = k + t * k_stride;
        std::memcpy(queries + t * K, q + t * q_stride, std::size_t(K) * sizeof(T));
        std::memcpy(keys + t * K, key, std::size_t(K) * sizeof(T));
        std::memcpy(values + t * P, v + t * v_stride, std::size_t(P) * sizeof(T));
#pragma omp simd
        for (std::int64_t c = 0; c < K; c++) {
            float value = load(key[c]) * by;
            sum[c] += value;
            store(written[t * K + c], value);
        }
    }
}

CLONES void by_head_of_blocks(const float* q, std::int64_t q_stride, const float* k, std::int64_t k_stride,
                              const float* v, std::int64_t v_stride, const float* out_of, float* queries, float* keys,
                              float* written, float* values, float* sum, std::int64_t n, std::int64_t heads,
                              std::int64_t K, std::int64_t P) {
    by_head_of_block(q, q_stride, k, k_stride, v, v_stride, out_of, queries, keys, written, values, sum, n, heads, K, P);
}
CLONES void by_head_of_blocks(const bf16* q, std::int64_t q_stride, const bf16* k, std::int64_t k_stride, const bf16* v,
                              std::int64_t v_stride, const float* out_of, bf16* queries, bf16* keys, bf16* written,
                              bf16* values, float* sum, std::int64_t n, std::int64_t heads, std::int64_t K,
                              std::int64_t P) {
    by_head_of_block(q, q_stride, k, k_stride, v, v_stride, out_of, queries, keys, written, values, sum, n, heads, K, P);
}

// One row of the state through one block: what enters it, in T, and what leaves it.
template <typename T>
INLINE void carry_through(const T* added, float through, float* state, T* entering, std::int64_t width) {
#pragma omp simd
    for (std::int64_t p = 0; p < width; p++) {
        float before = state[p];
        store(entering[p], before);
        state[p] = load(added[p]) + (through == 0.0f ? 0.0f : through * before);  // 0: another segment's, maybe not finite
    }
}

CLONES void carry_through_block(const float* added, float through, float* state, float* entering, std::int64_t width) {
    carry_through(added, through, state, entering, width);
}
CLONES void carry_through_block(const bf16* added, float through, float* state, bf16* entering, std::int64_t width) {
    carry_through(added, through, state, entering, width);
}

// One row, which is a key channel of a head, through the blocks of a group.
template <typename T>
void carry_row_through(const T* added, const float* through, const std::int64_t* blocks, std::int64_t n_blocks,
                       std::int64_t block_stride, std::int64_t heads, const float* carried, std::int64_t carried_stride,
                       float* state, T* entering, float* final, std::int64_t* finite, std::int64_t width) {
    for (std::int64_t b = 0; b < n_blocks; b++) {
        const std::int64_t* block = blocks + b * FIELDS;
        std::int64_t q = block[1] - block[0], enters = block[2], leaves = block[3];
        if (block[4] >= 0 && carried)
            std::memcpy(state, carried + block[4] * carried_stride, std::size_t(width) * 4);
        else if (block[4] >= 0 || !enters)
            std::memset(state, 0, std::size_t(width) * 4);
        float kept = enters == q && leaves == q ? through[b * heads] : 0.0f;
        carry_through_block(added + b * block_stride, kept, state, entering + b * block_stride, width);
        if (block[5] < 0) continue;
        std::memcpy(final + block[5] * carried_stride, state, std::size_t(width) * 4);
        float poison = 0;
#pragma omp simd reduction(+ : poison)
        for (std::int64_t p = 0; p < width; p++) poison += state[p] * 0.0f;
        tell(finite, poison);
    }
}

// One token of one head: what it sees in its block and in the state before, over the normaliser. Returned is 0, or NaN
// where that is not finite.
template <typename T>
INLINE float readout_row(const T* inside, const T* past, const T* query, const float* n, float sum, float into, float floor,
                        float eps, T* y, std::int64_t K, std::int64_t P) {
    float poison = 0;
    if (into == 0.0f) {
        float normaliser = (floor > std::fabs(sum) ? floor : std::fabs(sum)) + eps;  // NaN stays
        float scale = 1.0f / normaliser;
#pragma omp simd reduction(+ : poison)
        for (std::int64_t p = 0; p < P; p++) {
            float value = load(inside[p]) * scale;
            poison += value * 0.0f;
            store(y[p], value);
        }
        return poison;
    }
    float seen = 0;
#pragma omp simd reduction(+ : seen)
    for (std::int64_t c = 0; c < K; c++) seen += load(query[c]) * n[c];
    seen = std::fabs(sum + into * seen);
    float scale = 1.0f / ((floor > seen ? floor : seen) + eps);
#pragma omp simd reduction(+ : poison)
    for (std::int64_t p = 0; p < P; p++) {
        float value = (load(inside[p]) + into * load(past[p])) * scale;
        poison += value * 0.0f;
        store(y[p], value);
    }
    return poison;
}

CLONES float readout_rows(const float* inside, const float* past, const float* query, const float* n, float sum, float into,
                          float floor, float eps, float* y, std::int64_t K, std::int64_t P) {
    return readout_row(inside, past, query, n, sum, into, floor, eps, y, K, P);
}
CLONES float readout_rows(const bf16* inside, const bf16* past, const bf16* query, const float* n, float sum, float into,
                          float floor, float eps, bf16* y, std::int64_t K, std::int64_t P) {
    return readout_row(inside, past, query, n, sum, into, floor, eps, y, K, P);
}

constexpr std::int64_t PART = 512;  // channels that are kept in float32 on the stack

// One token: each head by its mean and deviation, times weight, plus bias, times sigmoid(o).
template <typename T>
INLINE void head_norm_gate_row(const T* y, const T* o, const float* weight, const float* bias, T* out, std::int64_t heads,
                               std::int64_t width, float eps) {
    float values[PART];
    for (std::int64_t h = 0; h < heads; h++) {
        const T* own = y + h * width;
        float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t p = 0; p < width; p++) sum += load(own[p]);
        float mean = sum / float(width);
#pragma omp simd reduction(+ : square)
        for (std::int64_t p = 0; p < width; p++) {
            float off = load(own[p]) - mean;
            square += off * off;
        }
        float scale = 1.0f / std::sqrt(square / float(width) + eps);
        for (std::int64_t begin = 0; begin < width; begin += PART) {
            std::int64_t n = width - begin < PART ? width - begin : PART, at = h * width + begin;
#pragma omp simd
            for (std::int64_t p = 0; p < n; p++) values[p] = sigmoid(load(o[at + p]));
#pragma omp simd
            for (std::int64_t p = 0; p < n; p++) {
                float normed = (load(y[at + p]) - mean) * scale * weight[at + p] + bias[at + p];
                store(out[at + p], normed * values[p]);
            }
        }
    }
}

CLONES void head_norm_gate_rows(const float* y, const float* o, const float* weight, const float* bias, float* out,
                                std::int64_t heads, std::int64_t width, float eps) {
    head_norm_gate_row(y, o, weight, bias, out, heads, width, eps);
}
CLONES void head_norm_gate_rows(const bf16* y, const bf16* o, const float* weight, const float* bias, bf16* out,
                                std::int64_t heads, std::int64_t width, float eps) {
    head_norm_gate_row(y, o, weight, bias, out, heads, width, eps);
}

}  // namespace

EXPORT thalweg_mlstm_gates(const float* i, const float* f, const std::int64_t* bounds, std::int64_t n_segments,
                           const std::int64_t* wanted_rows, const float* m0, const std::int64_t* initial_rows, float log_scale,
                           const std::int64_t* blocks, std::int64_t n_blocks, double* a, double* g, float* floors,
                           float* into, float* out_of, float* through, float* m_final, std::int64_t n,
                           std::int64_t heads) {
    negative_softplus(f, into, n * heads);  // `into` is scratch until the blocks are looked at
    PARALLEL_FOR for (std::int64_t h = 0; h < heads; h++) {
        for (std::int64_t s = 0; s < n_segments; s++) {
            std::int64_t start = bounds[s];
            double m = gates_of_segment(i + start * heads + h, into + start * heads + h, bounds[s + 1] - start, heads,
                                        m0 && initial_rows[s] >= 0 ? double(m0[initial_rows[s] * heads + h]) : 0.0, a + h * n + start,
                                        g + h * n + start, floors + start * heads + h);
            if (wanted_rows[s] >= 0) m_final[wanted_rows[s] * heads + h] = float(m);
        }
        for (std::int64_t b = 0; b < n_blocks; b++) {
            const std::int64_t* block = blocks + b * FIELDS;
            std::int64_t at = block[0], initial = block[4];
            double before = 0;
            if (initial >= 0)
                before = m0 ? double(m0[initial * heads + h]) : 0.0;
            else if (block[2])
                before = g[h * n + at - 1];
            block_weights(a + h * n + at, g + h * n + at, before, log_scale, block[1] - at, block[2], block[3], heads,
                          into + at * heads + h, out_of + at * heads + h, through + b * heads + h);
        }
    }
    exponentials(floors, n * heads);
}

#define FOR_DTYPE(T, SUFFIX)                                                                                           \
    EXPORT thalweg_mlstm_by_head_##SUFFIX(const T* q, std::int64_t q_stride, const T* k, std::int64_t k_stride,        \
                                          const T* v, std::int64_t v_stride, const float* out_of, T* queries, T* keys, \
                                          T* written, T* values, float* sums, std::int64_t n_blocks, std::int64_t n,   \
                                          std::int64_t heads, std::int64_t K, std::int64_t P) {                        \
        PARALLEL_FOR for (std::int64_t i = 0; i < n_blocks * heads; i++) {                                             \
            std::int64_t at = i / heads * n, h = i % heads;                                                            \
            by_head_of_blocks(q + at * q_stride + h * K, q_stride, k + at * k_stride + h * K, k_stride,                \
                              v + at * v_stride + h * P, v_stride, out_of + at * heads + h, queries + i * n * K,       \
                              keys + i * n * K, written + i * n * K, values + i * n * P, sums + i * K, n, heads, K,    \
                              P);                                                                                      \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_mlstm_weights_##SUFFIX(T* scores, const double* a, const double* g, std::int64_t stride,            \
                                          const std::int64_t* first, std::int64_t start, float log_scale, float* sums, \
                                          std::int64_t n_blocks, std::int64_t n, std::int64_t heads) {                 \
        _Pragma("omp parallel") {                                                                                      \
            double* work = new double[std::size_t(n)];                                                                 \
            _Pragma("omp for schedule(static)") for (std::int64_t i = 0; i < n_blocks * heads; i++) {                  \
                std::int64_t at = i / heads * n, head = i % heads * stride + at;                                       \
                weights_of_blocks(scores + i * n * n, a + head, g + head, first + at, start + at, log_scale,           \
                                  sums + i * n, n, work);                                                                       \
            }                                                                                                          \
            delete[] work;                                                                                             \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_mlstm_carry_##SUFFIX(const T* added, const float* added_n, const float* through,                    \
                                        const std::int64_t* blocks, std::int64_t n_blocks, const float* carried,       \
                                        const float* carried_n, float* state, float* state_n, T* entering,             \
                                        float* entering_n, float* final, float* final_n, std::int64_t* finite,         \
                                        std::int64_t heads, std::int64_t K, std::int64_t P) {                          \
        std::int64_t rows = heads * K;                                                                                 \
        PARALLEL_FOR for (std::int64_t r = 0; r < rows; r++) {                                                         \
            carry_row_through(added + r * P, through + r / K, blocks, n_blocks, rows * P, heads,                       \
                              carried ? carried + r * P : nullptr, rows * P, state + r * P, entering + r * P,          \
                              final + r * P, finite, P);                                                               \
            carry_row_through(added_n + r, through + r / K, blocks, n_blocks, rows, heads,                             \
                              carried_n ? carried_n + r : nullptr, rows, state_n + r, entering_n + r, final_n + r,     \
                              finite, 1);                                                                              \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_mlstm_readout_##SUFFIX(const T* inside, const T* past, const T* queries, const float* entering_n,   \
                                          const float* sums, const float* into, const float* floors, float eps, T* y,  \
                                          std::int64_t* finite, std::int64_t n_blocks, std::int64_t n,                 \
                                          std::int64_t heads, std::int64_t K, std::int64_t P) {                        \
        PARALLEL_FOR for (std::int64_t t = 0; t < n_blocks * n; t++) {                                                 \
            for (std::int64_t h = 0; h < heads; h++) {                                                                 \
                std::int64_t head = t / n * heads + h, row = head * n + t % n;                                         \
                tell(finite, readout_rows(inside + row * P, past + row * P, queries + row * K, entering_n + head * K,  \
                                          sums[row], into[t * heads + h], floors[t * heads + h], eps,                  \
                                          y + (t * heads + h) * P, K, P));                                             \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_head_norm_gate_##SUFFIX(const T* y, const T* o, std::int64_t o_stride, const float* weight,         \
                                           const float* bias, T* out, std::int64_t rows, std::int64_t heads,           \
                                           std::int64_t width, float eps) {                                            \
        PARALLEL_FOR for (std::int64_t t = 0; t < rows; t++)                                                           \
            head_norm_gate_rows(y + t * heads * width, o + t * o_stride, weight, bias, out + t * heads * width, heads, \
                                width, eps);                                                                           \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(bf16, bfloat16)
