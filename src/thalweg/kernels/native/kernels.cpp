// Fused CPU kernels: what lies between the matrix products of a layer, in one pass over memory each.
#include "rows.hpp"

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

// ---- the norm of each head, then its gate -----------------------------------------------------------------------------

// One token: y (heads, width) by head through the norm, times weight (width), times silu or sigmoid of gate; written to y.
template <typename T>
INLINE void rms_norm_gate_row(T* y, const T* gate, const float* weight, std::int64_t heads, std::int64_t width,
                              float eps, bool with_silu) {
    for (std::int64_t h = 0; h < heads; h++, y += width, gate += width) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = 0; i < width; i++) sum += load(y[i]) * load(y[i]);
        float scale = 1.0f / std::sqrt(sum / float(width) + eps);
        if (with_silu) {
#pragma omp simd
            for (std::int64_t i = 0; i < width; i++) store(y[i], load(y[i]) * scale * weight[i] * silu(load(gate[i])));
        } else {
#pragma omp simd
            for (std::int64_t i = 0; i < width; i++)
                store(y[i], load(y[i]) * scale * weight[i] * sigmoid(load(gate[i])));
        }
    }
}

CLONES void rms_norm_gate_rows(float* y, const float* gate, const float* weight, std::int64_t heads, std::int64_t width,
                               float eps, bool with_silu) {
    rms_norm_gate_row(y, gate, weight, heads, width, eps, with_silu);
}
CLONES void rms_norm_gate_rows(bf16* y, const bf16* gate, const float* weight, std::int64_t heads, std::int64_t width,
                               float eps, bool with_silu) {
    rms_norm_gate_row(y, gate, weight, heads, width, eps, with_silu);
}

// ---- causal convolution of one row ------------------------------------------------------------------------------------

CLONES void conv_rows(const float* x, std::int64_t stride, std::int64_t inside, const float* carried, const float* taps,
                      const float* bias, float* out, std::int64_t channels, std::int64_t width, bool with_silu) {
    conv_row(x, stride, inside, carried, taps, bias, out, channels, width, with_silu);
}
CLONES void conv_rows(const bf16* x, std::int64_t stride, std::int64_t inside, const bf16* carried, const float* taps,
                      const float* bias, bf16* out, std::int64_t channels, std::int64_t width, bool with_silu) {
    conv_row(x, stride, inside, carried, taps, bias, out, channels, width, with_silu);
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
                    const std::int64_t* bounds, const std::int64_t* wanted_rows, std::int64_t n_segments,
                    const float* carried, const std::int64_t* initial_rows, T* y, float* final, std::int64_t channels,
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
                const float* from = carried && initial_rows[s] >= 0 ? carried + initial_rows[s] * width * channels + at : nullptr;
                for (std::int64_t k = 0; k < width; k++)
                    for (std::int64_t e = 0; e < lanes; e++)
                        state[k * LANES + e] = from ? double(from[k * channels + e]) : 0.0;
                std::int64_t begin = bounds[s], n = bounds[s + 1] - begin;
                selective_scan_parts(x + begin * x_stride + at, x_stride, dt + begin * dt_stride + at, dt_stride,
                                     rates + at, B + begin * width, C + begin * width, bias ? bias + at : nullptr,
                                     skip ? skip + at : nullptr, with_softplus, y + begin * channels + at, state, n,
                                     channels, width, lanes);
                if (wanted_rows[s] < 0) continue;
                float* to = final + wanted_rows[s] * width * channels + at;
                for (std::int64_t k = 0; k < width; k++)
                    for (std::int64_t e = 0; e < lanes; e++) to[k * channels + e] = float(state[k * LANES + e]);
            }
        }
        delete[] state;
    }
}

}  // namespace

// ---- what Python calls: T is float or bf16 -------------------------------------------------------------------------

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
    EXPORT thalweg_rms_norm_gate_##SUFFIX(T* y, const T* gate, std::int64_t gate_stride, const float* weight,          \
                                          std::int64_t rows, std::int64_t heads, std::int64_t width, float eps,        \
                                          std::int64_t with_silu) {                                                    \
        PARALLEL_FOR for (std::int64_t i = 0; i < rows; i++)                                                           \
            rms_norm_gate_rows(y + i * heads * width, gate + i * gate_stride, weight, heads, width, eps, with_silu);   \
    }                                                                                                                  \
    EXPORT thalweg_causal_conv_##SUFFIX(const T* x, std::int64_t stride, const std::int64_t* segments,                 \
                                        const std::int64_t* starts, const T* carried,                                  \
                                        const std::int64_t* initial_rows, const float* taps, const float* bias, T* out, \
                                        std::int64_t rows, std::int64_t channels, std::int64_t width,                  \
                                        std::int64_t with_silu) {                                                      \
        _Pragma("omp parallel for schedule(static)") for (std::int64_t i = 0; i < rows; i++) {                         \
            std::int64_t segment = segments[i];                                                                        \
            bool has_past = carried && initial_rows[segment] >= 0;                                                     \
            conv_rows(x + i * stride, stride, i - starts[segment],                                                     \
                      has_past ? carried + initial_rows[segment] * (width - 1) * channels : nullptr, taps, bias,       \
                      out + i * channels, channels, width, with_silu != 0);                                            \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT thalweg_selective_scan_##SUFFIX(                                                                            \
        const T* x, std::int64_t x_stride, const T* dt, std::int64_t dt_stride, const float* rates, const float* B,    \
        const float* C, const float* bias, const float* skip, std::int64_t with_softplus, const std::int64_t* bounds,  \
        const std::int64_t* wanted_rows, std::int64_t n_segments, const float* carried,                                \
        const std::int64_t* initial_rows, T* y, float* final, std::int64_t channels, std::int64_t width) {             \
        selective_scan(x, x_stride, dt, dt_stride, rates, B, C, bias, skip, with_softplus != 0, bounds, wanted_rows,    \
                       n_segments, carried, initial_rows, y, final, channels, width);                                  \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(bf16, bfloat16)
