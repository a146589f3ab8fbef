// One row of the ops that more than one kernel contains.

#pragma once

#include "common.hpp"

namespace {

// ---- causal convolution --------------------------------------------------------------------------------------------

// x: the row itself, earlier rows of its segment lie before it; `inside` of them do. Columns further back are the last of
// `carried` (width - 1, channels), or zero where that is null.
template <typename T, typename Out>
INLINE void conv_row(const T* x, std::int64_t stride, std::int64_t inside, const T* carried, const float* taps,
                     const float* bias, Out* out, std::int64_t channels, std::int64_t width, bool with_silu) {
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

// ---- gate, then RMS norm by groups ------------------------------------------------------------------------------------

// y times silu(z), each of `groups` equal parts by its root mean square, times weight. gated: room for a row; may be y.
// Returned is 0, or NaN where a sum is not finite.
template <typename Y, typename T>
INLINE float gate_norm_row(const Y* y, const T* z, const float* weight, T* out, std::int64_t width, std::int64_t groups,
                          float eps, float* gated) {
    std::int64_t part = width / groups;
    float poison = 0;
    for (std::int64_t g = 0; g < groups; g++) {
        std::int64_t at = g * part;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = at; i < at + part; i++) {
            float value = load(y[i]) * silu(load(z[i]));
            gated[i] = value;
            sum += value * value;
        }
        poison += sum * 0.0f;
        float scale = 1.0f / std::sqrt(sum / float(part) + eps);
#pragma omp simd
        for (std::int64_t i = at; i < at + part; i++) store(out[i], gated[i] * scale * weight[i]);
    }
    return poison;
}

}  // namespace
