// Fused CPU kernels: what lies between the matrix products of a layer, in one pass over memory each.
#include "common.hpp"

namespace {

// ---- RMS norm of one row ----------------------------------------------------------------------------------------

template <typename T>
INLINE void rms_norm_row(const float* x, const float* weight, T* out, std::int64_t width, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < width; i++) sum += x[i] * x[i];
    float scale = 1.0f / std::sqrt(sum / float(width) + eps);
#pragma omp simd
    for (std::int64_t i = 0; i < width; i++) store(out[i], x[i] * scale * weight[i]);
}

CLONES void rms_norm_rows(const float* x, const float* w, float* out, std::int64_t width, float eps) {
    rms_norm_row(x, w, out, width, eps);
}
CLONES void rms_norm_rows(const float* x, const float* w, bf16* out, std::int64_t width, float eps) {
    rms_norm_row(x, w, out, width, eps);
}

// ---- gate, then RMS norm by groups --------------------------------------------------------------------------------

constexpr std::int64_t WIDEST = 32768;  // channels of a gated row that are kept in float32 on the stack

template <typename T>
INLINE void gate_norm_row(const T* y, const T* z, const float* weight, T* out, std::int64_t width, std::int64_t groups,
                          float eps) {
    float gated[WIDEST];
    std::int64_t part = width / groups;
    for (std::int64_t g = 0; g < groups; g++) {
        std::int64_t at = g * part;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = 0; i < part; i++) {
            float value = load(y[at + i]) * silu(load(z[at + i]));
            gated[i] = value;
            sum += value * value;
        }
        float scale = 1.0f / std::sqrt(sum / float(part) + eps);
#pragma omp simd
        for (std::int64_t i = 0; i < part; i++) store(out[at + i], gated[i] * scale * weight[at + i]);
    }
}

CLONES void gate_norm_rows(const float* y, const float* z, const float* w, float* out, std::int64_t width,
                           std::int64_t groups, float eps) {
    gate_norm_row(y, z, w, out, width, groups, eps);
}
CLONES void gate_norm_rows(const bf16* y, const bf16* z, const float* w, bf16* out, std::int64_t width,
                           std::int64_t groups, float eps) {
    gate_norm_row(y, z, w, out, width, groups, eps);
}

// ---- a row added to a row of the residual stream ----------------------------------------------------------------------

template <typename T>
INLINE void add_row(float* u, const T* x, std::int64_t width) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; i++) u[i] += load(x[i]);
}

CLONES void add_rows(float* u, const float* x, std::int64_t width) { add_row(u, x, width); }
CLONES void add_rows(float* u, const bf16* x, std::int64_t width) { add_row(u, x, width); }

// ---- the gate of a feed-forward layer ---------------------------------------------------------------------------------

template <typename T>
INLINE void silu_multiply_row(T* gate, const T* up, std::int64_t width) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; i++) store(gate[i], silu(load(gate[i])) * load(up[i]));
}

CLONES void silu_multiply_rows(float* gate, const float* up, std::int64_t width) { silu_multiply_row(gate, up, width); }
CLONES void silu_multiply_rows(bf16* gate, const bf16* up, std::int64_t width) { silu_multiply_row(gate, up, width); }

// ---- causal convolution of one row ------------------------------------------------------------------------------------

// x: the row itself, earlier rows of its segment lie before it; `inside` of them do. Columns further back are the last of
// `carried` (width - 1, channels), or zero where that is null.
template <typename T>
INLINE void conv_row(const T* x, std::int64_t stride, std::int64_t inside, const T* carried, const float* taps,
                     const float* bias, T* out, std::int64_t channels, std::int64_t width, bool with_silu) {
    constexpr std::int64_t PART = 512;
    float sum[PART];
    for (std::int64_t start = 0; start < channels; start += PART) {
        std::int64_t n = channels - start < PART ? channels - start : PART;
        if (width == 4 && inside >= 3 && bias && with_silu) {  // the tokens of every public model, bar a text's first three
            const T* x0 = x - 3 * stride + start;
            const T* x1 = x0 + stride;
            const T* x2 = x1 + stride;
            const T* x3 = x2 + stride;
            const float* tap = taps + start;
#pragma omp simd
            for (std::int64_t i = 0; i < n; i++) {
                float value = bias[start + i] + load(x0[i]) * tap[i] + load(x1[i]) * tap[channels + i];
                value += load(x2[i]) * tap[2 * channels + i] + load(x3[i]) * tap[3 * channels + i];
                store(out[start + i], silu(value));
            }
            continue;
        }
        for (std::int64_t i = 0; i < n; i++) sum[i] = bias ? bias[start + i] : 0.0f;
        for (std::int64_t k = 0; k < width; k++) {
            std::int64_t back = width - 1 - k;
            if (back > inside && !carried) continue;
            const T* from = back <= inside ? x - back * stride : carried + (width - 1 + inside - back) * channels;
            from += start;
            const float* tap = taps + k * channels + start;
#pragma omp simd
            for (std::int64_t i = 0; i < n; i++) sum[i] += load(from[i]) * tap[i];
        }
        if (with_silu) {
#pragma omp simd
            for (std::int64_t i = 0; i < n; i++) store(out[start + i], silu(sum[i]));
        } else {
#pragma omp simd
            for (std::int64_t i = 0; i < n; i++) store(out[start + i], sum[i]);
        }
    }
}

CLONES void conv_rows(const float* x, std::int64_t stride, std::int64_t inside, const float* carried, const float* taps,
                      const float* bias, float* out, std::int64_t channels, std::int64_t width, bool with_silu) {
    conv_row(x, stride, inside, carried, taps, bias, out, channels, width, with_silu);
}
CLONES void conv_rows(const bf16* x, std::int64_t stride, std::int64_t inside, const bf16* carried, const float* taps,
                      const float* bias, bf16* out, std::int64_t channels, std::int64_t width, bool with_silu) {
    conv_row(x, stride, inside, carried, taps, bias, out, channels, width, with_silu);
}

// ---- state space duality: the parts of one block between its products -----------------------------------------------

// One block of q tokens: prefix sums of the log decays and what follows from them (see ssd_steps in __init__.py).
CLONES void ssd_steps_block(const float* delta, const float* log_decay, double* sums, float* into, float* out_of,
                            float* through, std::int64_t q, std::int64_t enters, std::int64_t leaves,
                            std::int64_t heads) {
    for (std::int64_t i = 0; i < q; i++) {
        double* here = sums + i * heads;
        const double* before = here - heads;
        const float* decay = log_decay + i * heads;
        if (i == 0) {
#pragma omp simd
            for (std::int64_t h = 0; h < heads; h++) here[h] = decay[h];
        } else {
#pragma omp simd
            for (std::int64_t h = 0; h < heads; h++) here[h] = before[h] + double(decay[h]);
        }
        float* to = into + i * heads;
        if (i < enters) {
#pragma omp simd
            for (std::int64_t h = 0; h < heads; h++) to[h] = decayed(here[h]);
        } else {
            for (std::int64_t h = 0; h < heads; h++) to[h] = 0.0f;
        }
    }
    const double* total = sums + (q - 1) * heads;
#pragma omp simd
    for (std::int64_t h = 0; h < heads; h++) through[h] = decayed(total[h]);
    for (std::int64_t i = 0; i < q; i++) {
        float* to = out_of + i * heads;
        if (i >= q - leaves) {
#pragma omp simd
            for (std::int64_t h = 0; h < heads; h++)
                to[h] = delta[i * heads + h] * decayed(total[h] - sums[i * heads + h]);
        } else {
            for (std::int64_t h = 0; h < heads; h++) to[h] = 0.0f;
        }
    }
}

// One head: weights[i, j] = scores[i, j] * exp(sums[i] - sums[j]) * delta[j] for first[i] <= j <= i, else 0; then the skip
// on the diagonal.
template <typename T>
INLINE void ssd_weights_head(const float* scores, const double* sums, const float* delta, const std::int32_t* first,
                             float skip, T* weights, std::int64_t q, std::int64_t heads, double* at, float* step) {
    for (std::int64_t j = 0; j < q; j++) {
        at[j] = sums[j * heads];
        step[j] = delta[j * heads];
    }
    for (std::int64_t i = 0; i < q; i++) {
        T* row = weights + i * q;
        const float* score = scores + i * q;
        double here = at[i];
        // Whole vectors: what lies outside [first, i] is computed with them and replaced by 0.
        std::int64_t start = first[i] / VECTOR * VECTOR, stop = i / VECTOR * VECTOR + VECTOR;
        stop = stop < q ? stop : q;
        for (std::int64_t j = 0; j < start; j++) store(row[j], 0.0f);
        std::int32_t from = first[i], to = std::int32_t(i);
#pragma omp simd
        for (std::int64_t j = start; j < stop; j++) {
            float exponent = float(here - at[j]);
            float value = score[j] * exponential(exponent) * step[j];
            bool seen = std::int32_t(j) >= from && std::int32_t(j) <= to && exponent >= NOTHING;
            store(row[j], seen ? value : 0.0f);
        }
        for (std::int64_t j = stop; j < q; j++) store(row[j], 0.0f);
        store(row[i], score[i] * step[i] + skip);
    }
}

CLONES void ssd_weights_heads(const float* scores, const double* sums, const float* delta, const std::int32_t* first,
                              float skip, float* weights, std::int64_t q, std::int64_t heads, double* at, float* step) {
    ssd_weights_head(scores, sums, delta, first, skip, weights, q, heads, at, step);
}
CLONES void ssd_weights_heads(const float* scores, const double* sums, const float* delta, const std::int32_t* first,
                              float skip, bf16* weights, std::int64_t q, std::int64_t heads, double* at, float* step) {
    ssd_weights_head(scores, sums, delta, first, skip, weights, q, heads, at, step);
}

// One token: y[h, :] = inside[h, token, :] + past[h, :] * into[h]. past may be null.
template <typename T>
INLINE void ssd_combine_row(const T* inside, const T* past, const float* into, T* y, std::int64_t token, std::int64_t q,
                            std::int64_t heads, std::int64_t width) {
    for (std::int64_t h = 0; h < heads; h++) {
        const T* own = inside + (h * q + token) * width;
        const T* before = past + h * width;
        T* out = y + h * width;
        float decay = into[h];
#pragma omp simd
        for (std::int64_t p = 0; p < width; p++) store(out[p], load(own[p]) + load(before[p]) * decay);
    }
}

CLONES void ssd_combine_rows(const float* inside, const float* past, const float* into, float* y, std::int64_t token,
                             std::int64_t q, std::int64_t heads, std::int64_t width) {
    ssd_combine_row(inside, past, into, y, token, q, heads, width);
}
CLONES void ssd_combine_rows(const bf16* inside, const bf16* past, const float* into, bf16* y, std::int64_t token,
                             std::int64_t q, std::int64_t heads, std::int64_t width) {
    ssd_combine_row(inside, past, into, y, token, q, heads, width);
}

// One token: out[h, :] = x[h, :] * factor[h].
template <typename T>
INLINE void scale_row(const T* x, const float* factor, T* out, std::int64_t heads, std::int64_t width) {
    for (std::int64_t h = 0; h < heads; h++) {
        float by = factor[h];
#pragma omp simd
        for (std::int64_t p = 0; p < width; p++) store(out[h * width + p], load(x[h * width + p]) * by);
    }
}

CLONES void scale_rows(const float* x, const float* factor, float* out, std::int64_t heads, std::int64_t width) {
    scale_row(x, factor, out, heads, width);
}
CLONES void scale_rows(const bf16* x, const float* factor, bf16* out, std::int64_t heads, std::int64_t width) {
    scale_row(x, factor, out, heads, width);
}

// One row (of the K state rows): state[h, :] = added[h, :] + through[h] * before[h, :], and its copy in T. before may be
// null, and so may copy.
template <typename T>
INLINE void carry_row(const T* added, const float* through, const float* before, float* state, T* copy,
                      std::int64_t heads, std::int64_t width) {
    for (std::int64_t h = 0; h < heads; h++) {
        const T* own = added + h * width;
        float* out = state + h * width;
        if (before) {
            const float* past = before + h * width;
            float by = through[h];
#pragma omp simd
            for (std::int64_t p = 0; p < width; p++) out[p] = load(own[p]) + by * past[p];
        } else {
#pragma omp simd
            for (std::int64_t p = 0; p < width; p++) out[p] = load(own[p]);
        }
        if (copy) {
            T* to = copy + h * width;
#pragma omp simd
            for (std::int64_t p = 0; p < width; p++) store(to[p], out[p]);
        }
    }
}

CLONES void carry_rows(const float* added, const float* through, const float* before, float* state, float* copy,
                       std::int64_t heads, std::int64_t width) {
    carry_row(added, through, before, state, copy, heads, width);
}
CLONES void carry_rows(const bf16* added, const float* through, const float* before, float* state, bf16* copy,
                       std::int64_t heads, std::int64_t width) {
    carry_row(added, through, before, state, copy, heads, width);
}

// ---- selective scan: some neighbouring channels through one segment --------------------------------------------------

constexpr std::int64_t LANES = 32;  // channels treated together: their states stay in the first-level cache

// x, dt, y: the first token and channel of (n, E); rates (K, E); B, C (n, K); bias, skip: of these channels, or null;
// state (K, LANES) float64, entering and leaving.
template <typename T>
INLINE void selective_scan_part(const T* x, std::int64_t x_stride, const T* dt, std::int64_t dt_stride,
                                const float* rates, const float* B, const float* C, const float* bias, const float* skip,
                                bool with_softplus, T* y, double* state, std::int64_t n, std::int64_t channels,
                                std::int64_t width, std::int64_t lanes) {
    for (std::int64_t t = 0; t < n; t++) {
        float delta[LANES], added[LANES], out[LANES];
#pragma omp simd
        for (std::int64_t e = 0; e < lanes; e++) {
            float step = load(dt[t * dt_stride + e]) + (bias ? bias[e] : 0.0f);
            delta[e] = with_softplus ? softplus(step) : step;
            float in = load(x[t * x_stride + e]);
            added[e] = delta[e] * in;
            out[e] = skip ? skip[e] * in : 0.0f;
        }
        for (std::int64_t k = 0; k < width; k++) {
            const float* rate = rates + k * channels;
            double* h = state + k * LANES;
            float write = B[t * width + k], read = C[t * width + k];
#pragma omp simd
            for (std::int64_t e = 0; e < lanes; e++) {
                double change = double(exponential_minus_one(delta[e] * rate[e]));
                double next = h[e] + (h[e] * change + double(write * added[e]));
                h[e] = next;
                out[e] += read * float(next);
            }
        }
        T* to = y + t * channels;
#pragma omp simd
        for (std::int64_t e = 0; e < lanes; e++) store(to[e], out[e]);
    }
}

CLONES void selective_scan_parts(const float* x, std::int64_t x_stride, const float* dt, std::int64_t dt_stride,
                                 const float* rates, const float* B, const float* C, const float* bias,
                                 const float* skip, bool with_softplus, float* y, double* state, std::int64_t n,
                                 std::int64_t channels, std::int64_t width, std::int64_t lanes) {
    if (lanes == LANES)
        selective_scan_part(x, x_stride, dt, dt_stride, rates, B, C, bias, skip, with_softplus, y, state, n, channels,
                            width, LANES);
    else
        selective_scan_part(x, x_stride, dt, dt_stride, rates, B, C, bias, skip, with_softplus, y, state, n, channels,
                            width, lanes);
}
CLONES void selective_scan_parts(const bf16* x, std::int64_t x_stride, const bf16* dt, std::int64_t dt_stride,
                                 const float* rates, const float* B, const float* C, const float* bias,
                                 const float* skip, bool with_softplus, bf16* y, double* state, std::int64_t n,
                                 std::int64_t channels, std::int64_t width, std::int64_t lanes) {
    if (lanes == LANES)
        selective_scan_part(x, x_stride, dt, dt_stride, rates, B, C, bias, skip, with_softplus, y, state, n, channels,
                            width, LANES);
    else
        selective_scan_part(x, x_stride, dt, dt_stride, rates, B, C, bias, skip, with_softplus, y, state, n, channels,
                            width, lanes);
}

template <typename T>
void selective_scan(const T* x, std::int64_t x_stride, const T* dt, std::int64_t dt_stride, const float* rates,
                    const float* B, const float* C, const float* bias, const float* skip, bool with_softplus,
                    const std::int64_t* bounds, const std::int64_t* final_rows, std::int64_t n_segments,
                    const float* carried, std::int64_t n_carried, T* y, float* final, std::int64_t channels,
                    std::int64_t width) {
    std::int64_t parts = (channels + LANES - 1) / LANES;
#pragma omp parallel
    {
        double* state = new double[width * LANES];
#pragma omp for schedule(static)
        for (std::int64_t part = 0; part < parts; part++) {
            std::int64_t at = part * LANES;
            std::int64_t lanes = channels - at < LANES ? channels - at : LANES;
            for (std::int64_t s = 0; s < n_segments; s++) {
                const float* from = carried && s < n_carried ? carried + s * width * channels + at : nullptr;
                for (std::int64_t k = 0; k < width; k++)
                    for (std::int64_t e = 0; e < lanes; e++)
                        state[k * LANES + e] = from ? double(from[k * channels + e]) : 0.0;
                std::int64_t begin = bounds[s], n = bounds[s + 1] - begin;
                selective_scan_parts(x + begin * x_stride + at, x_stride, dt + begin * dt_stride + at, dt_stride,
                                     rates + at, B + begin * width, C + begin * width, bias ? bias + at : nullptr,
                                     skip ? skip + at : nullptr, with_softplus, y + begin * channels + at, state, n,
                                     channels, width, lanes);
                if (final_rows[s] < 0) continue;
                float* to = final + final_rows[s] * width * channels + at;
                for (std::int64_t k = 0; k < width; k++)
                    for (std::int64_t e = 0; e < lanes; e++) to[k * channels + e] = float(state[k * LANES + e]);
            }
        }
        delete[] state;
    }
}

template <typename T>
void ssd_weights(const float* scores, const double* sums, const float* delta, const std::int32_t* first, const float* skip,
                 T* weights, std::int64_t q, std::int64_t heads, std::int64_t groups) {
#pragma omp parallel
    {
        double* at = new double[q];
        float* step = new float[q];
#pragma omp for schedule(static)
        for (std::int64_t h = 0; h < heads; h++)
            ssd_weights_heads(scores + (h * groups / heads) * q * q, sums + h, delta + h, first, skip ? skip[h] : 0.0f,
                              weights + h * q * q, q, heads, at, step);
        delete[] at;
        delete[] step;
    }
}

}  // namespace

// ---- what Python calls: T is float or bf16 -------------------------------------------------------------------------

EXPORT thalweg_ssd_steps(const float* delta, const float* log_decay, const std::int64_t* blocks, double* sums, float* into,
                         float* out_of, float* through, std::int64_t n_blocks, std::int64_t heads) {
#pragma omp parallel for schedule(static)
    for (std::int64_t b = 0; b < n_blocks; b++) {
        const std::int64_t* block = blocks + 4 * b;  // start, stop, enters, leaves
        std::int64_t at = block[0] * heads;
        ssd_steps_block(delta + at, log_decay + at, sums + at, into + at, out_of + at, through + b * heads,
                        block[1] - block[0], block[2], block[3], heads);
    }
}

#define FOR_DTYPE(T, SUFFIX)                                                                                           \
    EXPORT thalweg_rms_norm_##SUFFIX(const float* x, const float* weight, T* out, std::int64_t rows,                   \
                                     std::int64_t width, float eps) {                                                  \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < rows; i++)                           \
            rms_norm_rows(x + i * width, weight, out + i * width, width, eps);                                         \
    }                                                                                                                  \
    EXPORT thalweg_add_##SUFFIX(float* u, const T* x, std::int64_t rows, std::int64_t width) {                         \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < rows; i++)                           \
            add_rows(u + i * width, x + i * width, width);                                                             \
    }                                                                                                                  \
    EXPORT thalweg_silu_multiply_##SUFFIX(T* gate, std::int64_t gate_stride, const T* up, std::int64_t up_stride,      \
                                          std::int64_t rows, std::int64_t width) {                                     \
        PARALLEL_FOR for (std::int64_t i = 0; i < rows; i++)                                                           \
            silu_multiply_rows(gate + i * gate_stride, up + i * up_stride, width);                                     \
    }                                                                                                                  \
    EXPORT thalweg_gate_norm_##SUFFIX(const T* y, std::int64_t y_stride, const T* z, std::int64_t z_stride,            \
                                      const float* weight, T* out, std::int64_t rows, std::int64_t width,              \
                                      std::int64_t groups, float eps) {                                                \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < rows; i++)                           \
            gate_norm_rows(y + i * y_stride, z + i * z_stride, weight, out + i * width, width, groups, eps);           \
    }                                                                                                                  \
    EXPORT thalweg_causal_conv_##SUFFIX(const T* x, std::int64_t stride, const std::int64_t* segments,                 \
                                        const std::int64_t* starts, const T* carried, std::int64_t n_carried,          \
                                        const float* taps, const float* bias, T* out, std::int64_t rows,               \
                                        std::int64_t channels, std::int64_t width, std::int64_t with_silu) {           \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < rows; i++) {                         \
            std::int64_t segment = segments[i];                                                                        \
            bool has_past = carried && segment < n_carried;                                                            \
            conv_rows(x + i * stride, stride, i - starts[segment],                                                     \
                      has_past ? carried + segment * (width - 1) * channels : nullptr, taps, bias, out + i * channels, \
                      channels, width, with_silu != 0);                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_ssd_weights_##SUFFIX(const float* scores, const double* sums, const float* delta,                   \
                                        const std::int32_t* first, const float* skip, T* weights, std::int64_t q,      \
                                        std::int64_t heads, std::int64_t groups) {                                     \
        ssd_weights(scores, sums, delta, first, skip, weights, q, heads, groups);                                      \
    }                                                                                                                  \
    EXPORT thalweg_ssd_combine_##SUFFIX(const T* inside, const T* past, const float* into, T* y, std::int64_t q,       \
                                        std::int64_t heads, std::int64_t width) {                                      \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < q; i++)                              \
            ssd_combine_rows(inside, past + i * heads * width, into + i * heads, y + i * heads * width, i, q, heads,   \
                             width);                                                                                   \
    }                                                                                                                  \
    EXPORT thalweg_scale_##SUFFIX(const T* x, std::int64_t stride, const float* factor, T* out, std::int64_t rows,     \
                                  std::int64_t heads, std::int64_t width) {                                            \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < rows; i++)                           \
            scale_rows(x + i * stride, factor + i * heads, out + i * heads * width, heads, width);                     \
    }                                                                                                                  \
    EXPORT thalweg_selective_scan_##SUFFIX(                                                                            \
        const T* x, std::int64_t x_stride, const T* dt, std::int64_t dt_stride, const float* rates, const float* B,    \
        const float* C, const float* bias, const float* skip, std::int64_t with_softplus, const std::int64_t* bounds,  \
        const std::int64_t* final_rows, std::int64_t n_segments, const float* carried, std::int64_t n_carried, T* y,   \
        float* final, std::int64_t channels, std::int64_t width) {                                                     \
        selective_scan(x, x_stride, dt, dt_stride, rates, B, C, bias, skip, with_softplus != 0, bounds, final_rows,    \
                       n_segments, carried, n_carried, y, final, channels, width);                                     \
    }                                                                                                                  \
    EXPORT thalweg_carry_##SUFFIX(const T* added, const float* through, const float* before, float* state, T* copy,    \
                                  std::int64_t rows, std::int64_t heads, std::int64_t width) {                         \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < rows; i++) {                         \
            std::int64_t at = i * heads * width;                                                                       \
            carry_rows(added + at, through, before ? before + at : nullptr, state + at, copy ? copy + at : nullptr,    \
                       heads, width);                                                                                  \
        }                                                                                                              \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(bf16, bfloat16)
