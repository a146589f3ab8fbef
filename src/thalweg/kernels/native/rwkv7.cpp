// RWKV-7 between its matrix products, and its scan. Letters: models/rwkv7.py and ops/wkv7.py.

#include <new>

#include "common.hpp"

namespace {

// One token: x + (before - x) * mix, for some mixes (m, D), each to its own (n, D).
template <typename T>
INLINE void mix_row(const float* x, const float* before, const float* mixes, std::int64_t m, T* out, std::int64_t stride,
                    std::int64_t width) {
    for (std::int64_t i = 0; i < m; i++) {
        const float* mix = mixes + i * width;
        T* to = out + i * stride;
#pragma omp simd
        for (std::int64_t c = 0; c < width; c++) store(to[c], x[c] + (before[c] - x[c]) * mix[c]);
    }
}

CLONES void mix_rows(const float* x, const float* before, const float* mixes, std::int64_t m, float* out,
                     std::int64_t stride, std::int64_t width) {
    mix_row(x, before, mixes, m, out, stride, width);
}
CLONES void mix_rows(const float* x, const float* before, const float* mixes, std::int64_t m, bf16* out,
                     std::int64_t stride, std::int64_t width) {
    mix_row(x, before, mixes, m, out, stride, width);
}

constexpr float STRONGEST = 0.6065306597126334f;  // e^-0.5

// One token: what the products gave becomes what the scan takes. w, a, k: of D channels; bias_w, bias_a, k_k, k_a (D,).
template <typename T>
INLINE void keys_row(const T* w, const T* a, const T* k, const float* bias_w, const float* bias_a, const float* k_k,
                     const float* k_a, float* log_w, float* a_out, float* k_out, float* kk, std::int64_t heads,
                     std::int64_t width) {
    for (std::int64_t h = 0; h < heads; h++) {
        std::int64_t at = h * width;
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (std::int64_t c = 0; c < width; c++) {
            float key = load(k[at + c]), taken = key * k_k[at + c];
            float rate = sigmoid(load(a[at + c]) + bias_a[at + c]);
            kk[at + c] = taken;
            square += taken * taken;
            log_w[at + c] = -STRONGEST * sigmoid(load(w[at + c]) + bias_w[at + c]);
            a_out[at + c] = rate;
            k_out[at + c] = key + key * (rate - 1.0f) * k_a[at + c];
        }
        float length = std::sqrt(square);
        float scale = 1.0f / (length > 1e-12f ? length : 1e-12f);
#pragma omp simd
        for (std::int64_t c = 0; c < width; c++) kk[at + c] *= scale;
    }
}

// One token: v, or v + (v_first - v) sigmoid(lora + bias).
template <typename T>
INLINE void values_row(const T* v, const T* lora, const float* bias, const float* first, float* out, std::int64_t width) {
    if (!lora) {
#pragma omp simd
        for (std::int64_t c = 0; c < width; c++) out[c] = load(v[c]);
        return;
    }
#pragma omp simd
    for (std::int64_t c = 0; c < width; c++) {
        float own = load(v[c]);
        out[c] = own + (first[c] - own) * sigmoid(load(lora[c]) + bias[c]);
    }
}

CLONES void written_rows(const float* w, const float* a, const float* k, const float* bias_w, const float* bias_a,
                         const float* k_k, const float* k_a, const float* v, const float* lora, const float* bias_v,
                         const float* first, float* log_w, float* k_out, float* v_out, float* kk, float* a_out,
                         std::int64_t heads, std::int64_t width, std::int64_t values) {
    keys_row(w, a, k, bias_w, bias_a, k_k, k_a, log_w, a_out, k_out, kk, heads, width);
    values_row(v, lora, bias_v, first, v_out, values);
}
CLONES void written_rows(const bf16* w, const bf16* a, const bf16* k, const float* bias_w, const float* bias_a,
                         const float* k_k, const float* k_a, const bf16* v, const bf16* lora, const float* bias_v,
                         const float* first, float* log_w, float* k_out, float* v_out, float* kk, float* a_out,
                         std::int64_t heads, std::int64_t width, std::int64_t values) {
    keys_row(w, a, k, bias_w, bias_a, k_k, k_a, log_w, a_out, k_out, kk, heads, width);
    values_row(v, lora, bias_v, first, v_out, values);
}

// One token: the scan's y, each head by its mean and deviation, plus what the token's own value gives, times the gate.
template <typename T>
INLINE void read_row(const float* y, const float* r, const float* k, const float* v, const float* r_k, const T* gate,
                     const float* weight, const float* bias, T* out, std::int64_t heads, std::int64_t width,
                     std::int64_t values, float eps) {
    for (std::int64_t h = 0; h < heads; h++) {
        std::int64_t key = h * width, at = h * values;
        float bonus = 0, sum = 0, square = 0;
#pragma omp simd reduction(+ : bonus)
        for (std::int64_t c = 0; c < width; c++) bonus += r[key + c] * k[key + c] * r_k[key + c];
#pragma omp simd reduction(+ : sum)
        for (std::int64_t p = 0; p < values; p++) sum += y[at + p];
        float mean = sum / float(values);
#pragma omp simd reduction(+ : square)
        for (std::int64_t p = 0; p < values; p++) square += (y[at + p] - mean) * (y[at + p] - mean);
        float scale = 1.0f / std::sqrt(square / float(values) + eps);
#pragma omp simd
        for (std::int64_t p = 0; p < values; p++) {
            float normed = (y[at + p] - mean) * scale * weight[at + p] + bias[at + p];
            store(out[at + p], (normed + bonus * v[at + p]) * load(gate[at + p]));
        }
    }
}

CLONES void read_rows(const float* y, const float* r, const float* k, const float* v, const float* r_k, const float* gate,
                      const float* weight, const float* bias, float* out, std::int64_t heads, std::int64_t width,
                      std::int64_t values, float eps) {
    read_row(y, r, k, v, r_k, gate, weight, bias, out, heads, width, values, eps);
}
CLONES void read_rows(const float* y, const float* r, const float* k, const float* v, const float* r_k, const bf16* gate,
                      const float* weight, const float* bias, bf16* out, std::int64_t heads, std::int64_t width,
                      std::int64_t values, float eps) {
    read_row(y, r, k, v, r_k, gate, weight, bias, out, heads, width, values, eps);
}

template <typename T>
INLINE void relu_square_row(T* x, std::int64_t width) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; i++) {
        float value = load(x[i]);
        store(x[i], value < 0.0f ? 0.0f : value * value);
    }
}

CLONES void relu_square_rows(float* x, std::int64_t width) { relu_square_row(x, width); }
CLONES void relu_square_rows(bf16* x, std::int64_t width) { relu_square_row(x, width); }

// ---- the scan: one head of one segment, LANES of its value channels, token by token -------------------------------------

typedef float Lane __attribute__((vector_size(64)));

constexpr std::int64_t PARTS = 4, LANES = 64;  // a state of 64 by 64 channels fills a third of the first-level cache

// All pointers at the segment's first token and the head's first channel; `stride` floats from token to token. y_row:
// where to write each token's y (in tokens from y), -1 for nowhere; null for all in order. r goes with y. state: (K, PARTS).
INLINE void wkv7_segment(const float* r, const float* log_w, const float* k, const float* v, const float* kk, const float* a,
                         const std::int64_t* y_row, float* y, Lane* state, float* work, std::int64_t n, std::int64_t keys,
                         std::int64_t stride, std::int64_t v_stride, std::int64_t lanes) {
    float *decay = work, *taken = work + keys;
    for (std::int64_t t = 0; t < n; t++) {
        const float *direction = kk + t * stride, *written = k + t * stride;
        Lane removed[PARTS] = {}, out[PARTS] = {}, value[PARTS] = {};
        std::memcpy(value, v + t * v_stride, std::size_t(lanes) * 4);
#pragma omp simd
        for (std::int64_t c = 0; c < keys; c++) {
            decay[c] = exponential(log_w[t * stride + c]);
            taken[c] = direction[c] * a[t * stride + c];
        }
        for (std::int64_t c = 0; c < keys; c++) {
#pragma GCC unroll 4
            for (std::int64_t p = 0; p < PARTS; p++) removed[p] += state[c * PARTS + p] * direction[c];
        }
        std::int64_t row = y_row ? y_row[t] : t;
        const float* read = row < 0 ? direction : r + row * stride;
        for (std::int64_t c = 0; c < keys; c++) {
            float keep = decay[c], take = taken[c], write = written[c], by = read[c];
#pragma GCC unroll 4
            for (std::int64_t p = 0; p < PARTS; p++) {
                Lane next = state[c * PARTS + p] * keep - removed[p] * take + value[p] * write;
                state[c * PARTS + p] = next;
                out[p] += next * by;
            }
        }
        if (row >= 0) std::memcpy(y + row * v_stride, out, std::size_t(lanes) * 4);
    }
}

CLONES void wkv7_segments(const float* r, const float* log_w, const float* k, const float* v, const float* kk,
                          const float* a, const std::int64_t* y_row, float* y, float* state, float* work, std::int64_t n,
                          std::int64_t keys, std::int64_t stride, std::int64_t v_stride, std::int64_t lanes) {
    wkv7_segment(r, log_w, k, v, kk, a, y_row, y, reinterpret_cast<Lane*>(state), work, n, keys, stride, v_stride, lanes);
}

}  // namespace

// r and y: (N or M, H, K or V), the others of N tokens; states (S, H, V, K).
EXPORT thalweg_wkv7(const float* r, const float* log_w, const float* k, const float* v, const float* kk, const float* a,
                    const std::int64_t* y_row, const std::int64_t* bounds, const std::int64_t* wanted_rows,
                    std::int64_t n_segments, const float* carried, const std::int64_t* initial_rows, float* y, float* final,
                    std::int64_t heads, std::int64_t keys, std::int64_t values) {
    std::int64_t parts = (values + LANES - 1) / LANES, stride = heads * keys, v_stride = heads * values;
#pragma omp parallel
    {
        float* state = new (std::align_val_t(64)) float[std::size_t(keys * LANES)];
        float* work = new float[std::size_t(2 * keys)];
#pragma omp for schedule(static) collapse(2)
        for (std::int64_t s = 0; s < n_segments; s++) {
            for (std::int64_t task = 0; task < heads * parts; task++) {
                std::int64_t h = task / parts, at = task % parts * LANES;
                std::int64_t lanes = values - at < LANES ? values - at : LANES;
                std::int64_t begin = bounds[s], n = bounds[s + 1] - begin, matrix = h * values * keys + at * keys;
                const std::int64_t row = initial_rows[s];
                const float* from = carried && row >= 0 ? carried + row * heads * values * keys + matrix : nullptr;
                for (std::int64_t c = 0; c < keys; c++)
                    for (std::int64_t e = 0; e < LANES; e++)
                        state[c * LANES + e] = from && e < lanes ? from[e * keys + c] : 0.0f;
                std::int64_t key = begin * stride + h * keys, value = h * values + at;
                std::int64_t shift = y_row ? 0 : begin;  // rows of r and y are counted from their own start
                wkv7_segments(r + shift * stride + h * keys, log_w + key, k + key, v + begin * v_stride + value, kk + key,
                              a + key, y_row ? y_row + begin : nullptr, y + shift * v_stride + value, state, work, n,
                              keys, stride, v_stride, lanes);
                if (wanted_rows[s] < 0) continue;
                float* to = final + wanted_rows[s] * heads * values * keys + matrix;
                for (std::int64_t e = 0; e < lanes; e++)
                    for (std::int64_t c = 0; c < keys; c++) to[e * keys + c] = state[c * LANES + e];
            }
        }
        delete[] work;
        operator delete[](state, std::align_val_t(64));
    }
}

#define FOR_DTYPE(T, SUFFIX)                                                                                           \
    EXPORT thalweg_mix_##SUFFIX(const float* x, const float* before, const float* mixes, std::int64_t m, T* out,       \
                                std::int64_t rows, std::int64_t width) {                                               \
        PARALLEL_FOR for (std::int64_t t = 0; t < rows; t++)                                                           \
            mix_rows(x + t * width, before + t * width, mixes, m, out + t * width, rows * width, width);               \
    }                                                                                                                  \
    EXPORT thalweg_rwkv7_written_##SUFFIX(                                                                             \
        const T* w, const T* a, const T* k, const float* bias_w, const float* bias_a, const float* k_k,                \
        const float* k_a, const T* v, const T* lora, const float* bias_v, const float* first, float* log_w,            \
        float* k_out, float* v_out, float* kk, float* a_out, std::int64_t rows, std::int64_t heads,                    \
        std::int64_t width, std::int64_t values) {                                                                     \
        std::int64_t d = heads * width;                                                                                \
        PARALLEL_FOR for (std::int64_t t = 0; t < rows; t++) {                                                         \
            std::int64_t at = t * d, own = t * values;                                                                 \
            written_rows(w + at, a + at, k + at, bias_w, bias_a, k_k, k_a, v + own, lora ? lora + own : nullptr,       \
                         bias_v, first ? first + own : nullptr, log_w + at, k_out + at, v_out + own, kk + at,          \
                         a_out + at, heads, width, values);                                                            \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_rwkv7_read_##SUFFIX(const float* y, const float* r, const float* k, const float* v,                 \
                                       const float* r_k, const T* gate, const float* weight, const float* bias,        \
                                       T* out, std::int64_t rows, std::int64_t heads, std::int64_t width,              \
                                       std::int64_t values, float eps) {                                               \
        PARALLEL_FOR for (std::int64_t t = 0; t < rows; t++) {                                                         \
            std::int64_t key = t * heads * width, at = t * heads * values;                                             \
            read_rows(y + at, r + key, k + key, v + at, r_k, gate + at, weight, bias, out + at, heads, width, values,  \
                      eps);                                                                                            \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_relu_square_##SUFFIX(T* x, std::int64_t rows, std::int64_t width) {                                 \
        PARALLEL_FOR for (std::int64_t t = 0; t < rows; t++) relu_square_rows(x + t * width, width);                   \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(bf16, bfloat16)
